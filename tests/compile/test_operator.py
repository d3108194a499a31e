"""The averaged prediction as one operator: the predictor's answers, under compile and export, anywhere."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from program_cases import DRAWS, site_of

from bayesbin.compile import device_model, operator
from bayesbin.compile.device_model import AVERAGES, DeviceModel
from bayesbin.compile.devices import program_on
from bayesbin.compile.operator import PredictModule, module, results_of
from bayesbin.compile.torch_backend import TorchProgram
from bayesbin.core.files import CorruptFileError
from bayesbin.runtime import files
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Constant, Program, Step, Value

FIELDS = {
    "classes": ("log_probs", "expected_entropy", "probs_std"),
    "normal": ("mean", "aleatoric_variance", "epistemic_variance"),
}


def program(
    units: int = 3, draws: int = DRAWS, seed: int = 0, outputs: tuple[str, ...] = ("y",)
) -> Program:
    """x (7,): binary (6, 7), affine, sign, binary (units, 6), bias."""
    generator = np.random.default_rng(seed)
    sites = {
        "w": site_of(generator, (6, 7), drawn=draws == DRAWS),
        "v": site_of(generator, (units, 6), drawn=True, number=1),
    }
    if draws == 1:
        sites["v"] = site_of(generator, (units, 6), drawn=False)
        sites = {name: type(s)(s.shape, s.bits[:1]) for name, s in sites.items()}  # type: ignore[union-attr]
    constants = {
        "slope": Constant(generator.random((1, 6)).astype(np.float32) + 0.1),
        "shift": Constant(generator.standard_normal((1, 6)).astype(np.float32)),
        "bias": Constant(generator.standard_normal((1, units)).astype(np.float32)),
    }
    steps = (
        Step("linear", ("x", "w"), ("a",)),
        Step("affine", ("a", "slope", "shift"), ("b",), attributes={"axis": 0}),
        Step("tanh", ("b",), ("c",)),
        Step("linear", ("c", "v", "bias"), ("y",)),
        Step("greater", ("y", "bias"), ("z",), "b1"),
    )
    return Program({"x": Value((7,), "f4")}, constants, sites, steps, outputs, draws)


def predictor(kind: str = "classes", draws: int = DRAWS, **settings: object) -> Predictor:
    head: dict = {"kind": kind}
    if kind == "normal":
        head["noise"] = [0.5, 1.0, 2.0]
    units = 1 if kind == "normal" else 3
    outputs = ("y", "z") if kind == "outputs" else ("y",)
    return Predictor(program(units, draws, outputs=outputs), head, **settings)  # type: ignore[arg-type]


def expected(predicting: Predictor, x: torch.Tensor) -> list[torch.Tensor]:
    kind = predicting.head["kind"]
    if kind in FIELDS:
        found = predicting.predict(x.numpy())
        return [torch.from_numpy(getattr(found, name)) for name in FIELDS[kind]]
    return [torch.from_numpy(each) for each in predicting.outputs(x.numpy())]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 7).float()


# Values


@pytest.mark.parametrize("kind", ["classes", "normal", "outputs"])
def test_the_answers_are_those_of_the_predictor(kind, x):
    predicting = predictor(kind)
    found = module(predicting)(x)
    for one, other in zip(found, expected(predicting, x), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    if kind == "outputs":
        assert [each.dtype for each in found] == [torch.float32, torch.bool]


QUANTITIES = {
    "classes": ("log_probs", "expected_entropy", "probs_std"),
    "normal": ("mean", "aleatoric_variance", "epistemic_variance"),
    "outputs": ("mean", "variance"),
}


@pytest.mark.parametrize("averages", ["torch", "numpy"])
@pytest.mark.parametrize("kind", QUANTITIES)
def test_on_another_device_torch_runs_the_network(kind, averages, x, monkeypatch):
    if averages == "numpy":  # as heads of which torch knows nothing
        monkeypatch.delitem(AVERAGES, kind)
    predicting = predictor(kind)
    runner = DeviceModel(predicting.model, "cpu")
    assert type(runner._network) is TorchProgram
    for given in (x, x.numpy(), x[:, :, None].double().requires_grad_()):
        found, wanted = runner.predict(given), predicting.predict(given)
        assert type(found) is type(wanted) and found.num_samples == wanted.num_samples
        for name in QUANTITIES[kind]:
            pair = [getattr(prediction, name) for prediction in (found, wanted)]
            pair = [each if isinstance(each, tuple) else (each,) for each in pair]
            for one, other in zip(*pair, strict=True):
                assert one.dtype == other.dtype == np.float64 and one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    outputs, wanted = runner.outputs(x), predicting.outputs(x)
    for one, other in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_draws_that_agree_have_no_spread_on_a_device(x):
    same = predictor().model.select([1, 1, 1])
    assert not DeviceModel(same, "cpu").predict(x).probs_std.any()


def test_what_is_wrong_is_refused_on_a_device(x):
    runner = DeviceModel(predictor().model, "cpu")
    with pytest.raises(ValueError, match=r"expected inputs of shape \(B, 7\), got \(5, 6\)"):
        runner.predict(x[:, :6])
    with pytest.raises(ValueError, match="finite inputs"):
        runner.predict(x * math.inf)
    with pytest.raises(ValueError, match="the model has no preprocessing"):
        runner.predict(x, preprocess=True)


def test_blocks_on_a_device_change_nothing(x, monkeypatch):
    predicting = predictor()
    whole = DeviceModel(predicting.model, "cpu").predict(x)
    monkeypatch.setattr(device_model, "NUMBERS", 2 * DRAWS * 3)  # two rows at a time
    parts = DeviceModel(predicting.model, "cpu").predict(x)
    np.testing.assert_allclose(parts.log_probs, whole.log_probs, rtol=1e-6)
    assert DeviceModel(predicting.model, "cpu").outputs(x).shape == (DRAWS, 5, 3)
    assert DeviceModel(predicting.model, "cpu").predict(x[:0]).probs.shape == (0, 3)


def test_preprocessing_belongs_to_the_model(x):
    half = Constant(np.full((1, 1), 0.5, np.float32))
    steps = (Step("mul", ("pixels", "half"), ("x",)),)
    before = Program({"pixels": Value((7,), "f4")}, {"half": half}, {}, steps, ("x",))
    predicting = Predictor(program(), {"kind": "classes"}, preprocessing=before)
    pixels = torch.randint(0, 5, (4, 7))
    for given in (pixels, x):
        for one, other in zip(module(predicting)(given), expected(predicting, given), strict=True):
            assert torch.equal(one, other)
    there = DeviceModel(predicting.model, "cpu").predict(pixels)
    np.testing.assert_allclose(there.log_probs, predicting.predict(pixels).log_probs, rtol=1e-5)
    assert not torch.allclose(
        module(predicting)(pixels)[0], module(predicting)(pixels.float() + 0.01)[0]
    )


def test_several_inputs():
    step = Step("add", ("a", "b"), ("y",))
    two = Program({"a": Value((3,), "f4"), "b": Value((3,), "f8")}, {}, {}, (step,), ("y",))
    predicting = Predictor(two, {"kind": "outputs"})
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    (found,) = module(predicting)(a, b)
    assert torch.equal(found[0], a.float() + b.float())
    there = DeviceModel(predicting.model, "cpu").outputs((a, b))
    assert np.array_equal(there, found.numpy())


def test_inputs_of_any_type_and_layout(x):
    predicting = module(predictor())
    wanted = predicting(x)
    for given in (
        x.double(), x.t().contiguous().t(), x[:, :, None, None], x.clone().requires_grad_(),
        torch.stack([x, x], 1)[:, 0],
    ):  # fmt: skip
        found = predicting(given)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert not found[0].requires_grad
    assert torch.equal(predicting(x.bfloat16())[0], predicting(x.bfloat16().float())[0])
    assert [tuple(one.shape) for one in predicting(x[:0])] == [(0, 3), (0,), (0, 3)]


# Under torch's compilers


@pytest.mark.parametrize("kind", ["classes", "normal", "outputs"])
def test_torch_finds_nothing_wrong_with_it(kind, x):
    predicting = module(predictor(kind))
    operation = torch.ops.bayesbin.predict.default
    result = torch.library.opcheck(operation, ([x], predicting.model, predicting.results))
    assert set(result.values()) == {"SUCCESS"}


def test_it_compiles_as_one_graph_for_any_batch(x):
    predicting = module(predictor())
    torch._dynamo.reset()
    compiled = torch.compile(predicting, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, x[:2], torch.cat([x, x])):
        for one, other in zip(compiled(batch), predicting(batch), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["classes", "outputs"])
def test_it_is_exported_with_its_bytes_for_any_batch(kind, x):
    predicting = module(predictor(kind))
    batch = torch.export.Dim("batch")
    exported = torch.export.export(predicting, (x,), dynamic_shapes={"inputs": ({0: batch},)})
    assert sum("bayesbin.predict" in str(node.target) for node in exported.graph.nodes) == 1
    assert set(exported.state_dict) == {"model"}
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (x, x[:1], torch.cat([x, x])):
        for one, other in zip(loaded(rows), predicting(rows), strict=True):
            assert torch.equal(one, other)


# Bytes


def test_all_it_knows_is_in_its_buffer(x):
    predicting = module(predictor())
    twin = module(Predictor(program(seed=1), {"kind": "classes"}))
    assert not torch.equal(predicting(x)[0], twin(x)[0])
    twin.load_state_dict(predicting.state_dict())
    assert torch.equal(predicting(x)[0], twin(x)[0])
    for copied in (copy.deepcopy(predicting), pickle.loads(pickle.dumps(predicting))):
        assert torch.equal(predicting(x)[0], copied(x)[0])
    predicting.double().half()
    assert torch.equal(predicting(x)[0], twin(x)[0])
    predicting.model[100] += 1
    with pytest.raises(CorruptFileError, match="do not match their digest"):
        predicting(x)


def test_the_smaller_of_posterior_and_draws_is_kept():
    few = files.from_bytes(module(predictor()).model.numpy().tobytes())
    assert few.contents == "draws"
    whole = program()
    many = whole.select([0, 1, 2] * 6)
    kept = files.from_bytes(module(Predictor(many, {"kind": "outputs"})).model.numpy().tobytes())
    assert kept.contents == "posterior" and kept.model.program.num_draws == 18


def test_the_bytes_of_a_model_are_those_of_its_file(tmp_path):
    predicting = predictor()
    for contents in ("draws", "posterior"):
        path = predicting.save(tmp_path / "model.bbn", contents)
        assert files.to_bytes(predicting.model, contents) == path.read_bytes()
        read = files.from_bytes(path.read_bytes())
        assert read.digest == files.read(path).digest and read.size == path.stat().st_size
    with pytest.raises(CorruptFileError, match="bytes of a model: expected a bayesbin model"):
        files.from_bytes(b"nothing")


def test_models_are_read_once_and_few_are_kept(x, monkeypatch):
    monkeypatch.setattr(operator, "_models", [])
    reads = []
    read = files.from_bytes
    monkeypatch.setattr(files, "from_bytes", lambda data: reads.append(len(data)) or read(data))
    modules = [module(Predictor(program(seed=seed), {"kind": "classes"})) for seed in range(5)]
    for _ in range(2):
        modules[0](x)
        copy.deepcopy(modules[0])(x)  # the same bytes elsewhere
    assert len(reads) == 1
    for predicting in modules:
        predicting(x)
    assert len(reads) == 5 and len(operator._models) == operator.MODELS
    modules[4](x)
    modules[0](x)
    assert len(reads) == 6


# Errors


def test_what_does_not_fit_is_refused(x):
    predicting = module(predictor())
    with pytest.raises(ValueError, match=r"expected inputs of shape \(B, 7\), got \(5, 6\)"):
        predicting(x[:, :6])
    with pytest.raises(ValueError, match="finite inputs"):
        predicting(x * math.inf)
    operation = torch.ops.bayesbin.predict
    with pytest.raises(ValueError, match="make the module of this model"):
        operation([x], predicting.model, results_of(predictor("normal").model))
    with pytest.raises(ValueError, match=r"uint8 of one axis, got torch\.float32"):
        operation([x], predicting.model.float(), predicting.results)
    with pytest.raises(CorruptFileError, match="bytes of a model: expected a bayesbin model"):
        operation([x], torch.zeros(100, dtype=torch.uint8), predicting.results)
    watched = operation([x.clone().requires_grad_()], predicting.model, predicting.results)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        watched[0].sum().backward()


def test_backends_are_named_and_refused():
    model: Model = predictor().model
    assert type(program_on(model.program, "cpu", "torch")) is TorchProgram
    with pytest.raises(ValueError, match="expected backend to be one of auto, torch, triton"):
        program_on(model.program, "cpu", "cuda")
    assert isinstance(module(predictor()), PredictModule)
