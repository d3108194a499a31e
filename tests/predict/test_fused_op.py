"""The averaged prediction as one operator: PackedPredictive's answers, under compile and export, anywhere."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesbin import BinaryPosterior
from bayesbin.distributions import Support
from bayesbin.nn import Residual, Scale, Sign, binary_sites, mlp, recalibrate, to_binary_
from bayesbin.posterior import RealPosterior
from bayesbin.predict import FusedPredictive, PackedPredictive, Prediction, kernels, predict
from bayesbin.predict.kernel_program import Program
from bayesbin.predict.program_rows import FIELDS, replay, rows_of
from bayesbin.predict.torch_program import TorchProgram

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
BOTH = ["torch", pytest.param("kernels", marks=needs_kernels)]
IMAGE = (2, 8, 8)


@pytest.fixture(params=BOTH)
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_module", None)
    return request.param


def everything() -> nn.Module:
    """Every kind of step."""
    body = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh())
    layers = [
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 2)), nn.BatchNorm2d(4), nn.Hardtanh(-0.5, 2.0),
        nn.MaxPool2d(2, padding=1), Residual(body, nn.Conv2d(4, 5, 1)),
        nn.AvgPool2d((2, 1), padding=(1, 0)), nn.ReLU(), nn.Flatten(), nn.Linear(60, 9), Sign(),
        nn.Linear(9, 3), Scale(0.7),
    ]  # fmt: skip
    return nn.Sequential(*layers)


def example(fast: bool = False, draws: int = 6) -> tuple[PackedPredictive, Tensor]:
    net = to_binary_(everything()).float()
    sites = {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    posterior, x = BinaryPosterior(sites), torch.randn(9, *IMAGE).float()
    statistics = recalibrate(net, posterior, torch.randn(50, *IMAGE).float(), draws, 2)
    precision = "fast" if fast else "exact"
    return (
        PackedPredictive(net, posterior, draws, 2, statistics=statistics, precision=precision),
        x,
    )


def simple(draws: int = 4) -> tuple[PackedPredictive, Tensor]:
    net = to_binary_(mlp(7, [6], 3)).float()
    sites = {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    return PackedPredictive(net, BinaryPosterior(sites), draws), torch.randn(5, 7).float()


def classified(packed: PackedPredictive, x: Tensor) -> Prediction:
    found = packed.predict(x)
    assert isinstance(found, Prediction)
    return found


def arguments(module: FusedPredictive, x: Tensor) -> tuple:
    buffers = [buffer for name, buffer in module.named_buffers() if name != "rows"]
    rows = module.get_buffer("rows")
    return x.flatten(1), rows, buffers, module.draws, list(module.shape), module.outputs


# Values


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("draws", [0, 1, 6], ids=lambda draws: f"{draws} draws")
def test_the_answers_are_those_of_the_predictor(backend, fast, draws):
    packed, x = example(fast, draws)
    log_probs, expected_entropy, probs_std = packed.module(IMAGE)(x)
    found = classified(packed, x)
    for one, other in (
        (log_probs, found.log_probs),
        (expected_entropy, found.expected_entropy),
        (probs_std, found.probs_std),
    ):
        assert one.dtype == torch.float64
        if backend == "torch":
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
        elif one is not probs_std:
            assert torch.equal(one, other)  # sums of the same kernels
        else:  # the root of a difference, by torch's exponential or numpy's: 1e-15 becomes 3e-8
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-7)


@needs_kernels
def test_both_backends_draw_the_same(monkeypatch):
    packed, x = example()
    module = packed.module(IMAGE)
    compiled = module(x)
    monkeypatch.setattr(kernels, "_module", None)
    for one, other in zip(module(x), compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    assert not torch.equal(module(x)[0], compiled[0])  # it was not the kernels again


def test_of_a_joint_posterior_it_holds_all_draws(backend):
    net, x = to_binary_(nn.Sequential(nn.Linear(5, 3))).float(), torch.randn(4, 5).float()
    effect = RealPosterior(torch.zeros(3, 1), torch.full((3, 1), 1.5), Support("real"))
    joint = BinaryPosterior({"0.weight": torch.randn(3, 5)}, {"a": effect}, {"0.weight": ["a"]})
    module = PackedPredictive(net, joint, 11, 2).module()
    expected = predict(net, joint, x, 11, 2)
    torch.testing.assert_close(module(x)[0], expected.log_probs, rtol=1e-4, atol=2e-5)
    assert module.get_buffer("array_0").shape == (11, 3, 1)


def test_inputs_of_any_type_and_layout(backend):
    packed, x = simple()
    module = packed.module()
    expected = module(x)
    for given in (
        x.double(), x.t().contiguous().t(), x[:, :, None, None], x.clone().requires_grad_(),
        torch.stack([x, x], 1)[:, 0],
    ):  # fmt: skip
        found = module(given)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not found[0].requires_grad
    assert torch.equal(module(x.bfloat16())[0], module(x.bfloat16().float())[0])
    assert [tuple(one.shape) for one in module(x[:0])] == [(0, 3), (0,), (0, 3)]


# Under torch's compilers


def test_torch_finds_nothing_wrong_with_it(backend):
    packed, x = example()
    operator = torch.ops.bayesbin.fused_predict.default
    result = torch.library.opcheck(operator, arguments(packed.module(IMAGE), x))
    assert set(result.values()) == {"SUCCESS"}


def test_it_compiles_as_one_graph_for_any_batch(backend):
    packed, x = example()
    module = packed.module(IMAGE)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, x[:2], torch.cat([x, x])):
        for one, other in zip(compiled(batch), module(batch), strict=True):
            assert torch.equal(one, other)


def test_it_is_exported_with_its_buffers_for_any_batch(backend):
    packed, x = example()
    module = packed.module(IMAGE)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
    assert sum("fused_predict" in str(node.target) for node in exported.graph.nodes) == 1
    assert set(exported.state_dict) == set(module.state_dict())
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (x, x[:1], torch.cat([x, x])):
        for one, other in zip(loaded(rows), module(rows), strict=True):
            assert torch.equal(one, other)


def test_all_it_knows_is_in_its_buffers(backend):
    (packed, x), (other, _) = simple(), simple()
    module, twin = packed.module(), other.module()
    assert not torch.equal(module(x)[0], twin(x)[0])
    twin.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], twin(x)[0])
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(module(x)[0], copied(x)[0])
    before = classified(packed, x).log_probs
    for buffer in module.buffers():  # its own, not the predictor's
        buffer.zero_()
    assert torch.equal(classified(packed, x).log_probs, before)


# Rows


def test_a_program_is_its_rows_and_arrays():
    packed, _ = example()
    program = packed._network.program(IMAGE, 0, 6)
    again = Program(IMAGE, 6)
    replay(program.rows, program.arrays, again)
    assert np.array_equal(again.rows, program.rows) and again.shape == program.shape
    assert all(
        np.array_equal(a, b) for a, b in zip(again.arrays, program.arrays, strict=True)
    ) and len(again.arrays) > 10  # fmt: skip


def test_rows_that_make_no_program_are_refused():
    arrays = [np.ones((1, 3), np.float32)] * 2
    for program in (Program((3, 1, 1), 1), TorchProgram((3, 1, 1), 1)):
        replay(rows_of([[1, 1, 2]]), arrays, program)
        for row in ([1, 1, 3], [1, -1, 2], [1, 2, 0], [12], [-1], [3, 1], [0, 7, 2, 3]):
            with pytest.raises(ValueError, match=r"rows name 2 arrays|no step that there is"):
                replay(rows_of([row]), arrays, program)
        for wrong in (np.zeros((1, FIELDS)), np.zeros((1, 3), np.int64)):
            with pytest.raises(ValueError, match=r"rows are int64 \(steps, 16\)"):
                replay(wrong, arrays, program)


# Errors


def test_what_does_not_fit_is_refused(backend):
    packed, x = simple()
    module = packed.module()
    with pytest.raises(ValueError, match=r"Expected inputs .*\(B, 7\)"):
        module(x[:, :6])
    with pytest.raises(ValueError, match="NaN or infinity"):
        module(x * math.inf)
    with pytest.raises(ValueError, match="Convert inputs, not the module"):
        copy.deepcopy(module).double()(x)
    values, rows, buffers, draws, shape, outputs = arguments(module, x)
    operator = torch.ops.bayesbin.fused_predict
    watched = operator(values.clone().requires_grad_(), rows, buffers, draws, shape, outputs)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        watched[0].sum().backward()
    with pytest.raises(ValueError, match=r"float32 inputs \(B, 7\)"):
        operator(values.double(), rows, buffers, draws, shape, outputs)
    with pytest.raises(ValueError, match="3 outputs; got 4"):
        operator(values, rows, buffers, draws, shape, 4)
    with pytest.raises(ValueError, match="keys has the shape"):
        operator(values, rows, buffers, draws + 1, shape, outputs)
    with pytest.raises(ValueError, match="rows name 0 arrays"):
        operator(values, rows, [], draws, shape, outputs)
    images, _ = example()
    with pytest.raises(
        ValueError, match=r"left out only where a linear layer comes first; got None"
    ):
        images.module()
    with pytest.raises(ValueError, match=r"got \(8, 8\)"):
        images.module((8, 8))
    regressor = to_binary_(nn.Sequential(nn.Linear(3, 1))).float()
    posterior = BinaryPosterior({"0.weight": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match=r"of classifiers; use predict\(\) of a regressor"):
        PackedPredictive(regressor, posterior, 2, noise=0.1).module()
