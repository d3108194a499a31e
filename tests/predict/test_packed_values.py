"""Packed prediction over unusual inputs and probabilities, and from several threads and processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn

from bayesbin import BinaryPosterior
from bayesbin.nn import BinaryLinear, Scale, Sign, binary_sites, conv_net, mlp, to_binary_
from bayesbin.predict import PackedPredictive, Prediction, draw_outputs, kernels, predict

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
PRECISIONS = ["exact", "fast"]


def posterior_for(net: nn.Module) -> BinaryPosterior:
    sites = {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    return BinaryPosterior(sites)


def streamed(net: nn.Module, posterior: BinaryPosterior, x: Tensor, draws: int) -> Tensor:
    """The same draws in float64, (S, B, C)."""
    return torch.stack(list(draw_outputs(net, posterior, x.double(), draws)))


def classified(packed: PackedPredictive, x: Tensor) -> Prediction:
    found = packed.predict(x)
    assert isinstance(found, Prediction)
    return found


def plain(inputs: int, units: int) -> nn.Sequential:
    """y = W x and nothing else."""
    return nn.Sequential(BinaryLinear(inputs, units, bias=False, scale=1.0))


# Types and layouts


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
def test_inputs_of_any_type_and_layout(images, precision):
    net = to_binary_(conv_net((2, 12, 12), (4,), (6,), 3) if images else mlp(20, [16], 3))
    packed = PackedPredictive(net, posterior_for(net), 3, precision=precision)
    x = torch.randn(7, *((2, 12, 12) if images else (20,)))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        rounded = x.to(dtype)
        assert torch.equal(packed.outputs(rounded), packed.outputs(rounded.float()))
    expected = packed.outputs(x)
    layouts = [x.transpose(0, -1).contiguous().transpose(0, -1), torch.stack([x, -x], -1)[..., 0]]
    if images:
        layouts.append(x.to(memory_format=torch.channels_last))
    for strided in layouts:
        assert not strided.is_contiguous() and torch.equal(packed.outputs(strided), expected)
    assert torch.equal(packed.outputs(x[:1].expand_as(x)), expected[:, :1].expand_as(expected))
    assert torch.equal(packed.outputs(x.flip(0)), expected.flip(1))
    watched = x.clone().requires_grad_()
    found = classified(packed, watched)
    assert torch.equal(found.probs, classified(packed, x).probs) and not found.probs.requires_grad


@pytest.mark.parametrize("noise", [None, 0.1], ids=["classifier", "regressor"])
def test_an_empty_batch_gives_empty_answers(noise):
    net = to_binary_(mlp(5, [4], 3 if noise is None else 1))
    packed = PackedPredictive(net, posterior_for(net), 3, noise=noise)
    nothing = torch.zeros(0, 5)
    found = packed.predict(nothing)
    if isinstance(found, Prediction):
        assert noise is None
        assert found.probs.shape == (0, 3) and found.mutual_information.shape == (0,)
    else:
        assert found.mean.shape == found.std.shape == (0,)
    assert packed.outputs(nothing).shape == (3, 0, 3 if noise is None else 1)
    assert packed.predict([nothing, torch.ones(2, 5)]).num_samples == 3


# Values


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_of_any_size(precision):
    """Each row has a size of its own, and no row knows of another."""
    net = to_binary_(nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 5, bias=False)))
    net[0].bias.data.zero_()  # pyright: ignore
    posterior, x = posterior_for(net), torch.randn(9, 70)
    sizes = torch.tensor([1.0, 1e30, 1e-30, 1e-3, 0.0, 1.0, 1.0, 1.0, 1e4])
    x = sizes[:, None] * x
    x[4, ::2] = -0.0
    x[5] = x[5].abs()
    x[6] = -x[6].abs()
    x[7], x[7, 3] = 1e-9 * x[7], -1.0  # one value far above the others
    packed = PackedPredictive(net, posterior, 4, precision=precision)
    found, expected = packed.outputs(x), streamed(net, posterior, x.float(), 4)
    error = (found - expected).abs().amax((0, 2))
    assert bool(
        (error <= (2e-5 if precision == "exact" else 2e-3) * expected.abs().amax((0, 2))).all()
    )
    assert torch.equal(found[:, 4], torch.zeros(4, 5).float())
    for row in range(len(x)):
        assert torch.equal(packed.outputs(x[row : row + 1]), found[:, row : row + 1])
    # The logits' differences are beyond any float64 probability.
    huge = classified(packed, 1e4 * x[1:2])
    assert torch.equal(huge.probs.sum(1), torch.ones(1)) and not huge.log_probs.isnan().any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_denormals_are_summed_exactly(precision):
    """Multiples of the smallest float32: their sums have no rounding."""
    net = plain(21, 6)
    posterior, x = posterior_for(net), 2.0**-149 * torch.randint(-99, 99, (5, 21)).double()
    found = PackedPredictive(net, posterior, 3, precision=precision).outputs(x)
    expected = streamed(net, posterior, x, 3)
    if precision == "exact":
        assert torch.equal(found.double(), expected)
    else:  # in steps of the row's own size
        assert (found - expected).abs().max() <= 21 * 2.0**-149
    assert bool((expected != 0).any())


def test_zero_of_either_sign_is_plus_one_before_a_layer_of_signs():
    net = nn.Sequential(Sign(), *plain(6, 4))
    posterior = BinaryPosterior({"1.weight": torch.randn(4, 6)})
    x = torch.tensor([[0.0, -0.0, 0.0, -0.0, -0.0, 1.0], [1.0, -1.0, 2.0, -1e-45, 1e-45, 0.5]])
    found = PackedPredictive(net, posterior, 5).outputs(x.float())
    signs = torch.stack([posterior.signs(s)["1.weight"] for s in range(5)])
    expected = signs @ torch.tensor([[1.0] * 6, [1.0, -1.0, 1.0, -1.0, 1.0, 1.0]]).T
    assert torch.equal(found.double(), expected.transpose(1, 2))
    assert torch.equal(found, streamed(net, posterior, x, 5).float())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ties_before_a_sign_and_scales_of_any_sign(precision):
    """Whole numbers throughout, so that what is exactly 0 is 0 in both: gamma < 0, gamma = 0, ties."""
    norm = nn.BatchNorm1d(40, eps=0.0)
    net = nn.Sequential(*plain(8, 40), norm, Sign(), *plain(40, 3))
    with torch.no_grad():
        norm.running_mean = 2.0 * torch.randint(-2, 3, (40,)).double()
        norm.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0] * 10))
        norm.bias[2::8], norm.bias[6::8] = -0.0, -1.0  # constants: sign(-0) = +1, and -1
    posterior = BinaryPosterior({"0.weight": torch.randn(40, 8), "3.weight": torch.randn(3, 40)})
    x = torch.randint(0, 2, (30, 8)).double() * 2.0 - 1.0
    found = PackedPredictive(net, posterior, 6, precision=precision).outputs(x)
    expected = streamed(net, posterior, x, 6)
    assert torch.equal(found.double(), expected)
    sums = x @ posterior.signs(0)["0.weight"].T
    assert int((sums == norm.running_mean).sum()) > 100


def test_logits_far_apart():
    net = to_binary_(nn.Sequential(nn.Linear(6, 4), Scale(1e4)))
    posterior, x = posterior_for(net), torch.randn(8, 6)
    found = classified(PackedPredictive(net, posterior, 9), x)
    expected = predict(net, posterior, x, 9)
    assert streamed(net, posterior, x, 9).abs().max() > 1e4
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.expected_entropy, expected.expected_entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.probs.sum(1), torch.ones(8))
    assert bool(found.log_probs.isfinite().all() and found.mutual_information.isfinite().all())


@pytest.mark.parametrize("draws", [0, 1, 7])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_uncertainties_are_ordered(draws, size):
    """0 <= mutual information <= entropy <= log C, and probabilities that sum to 1."""
    net = to_binary_(mlp(9, [12, 12], 5, normalize=False))
    net[-1].log_scale.data.fill_(math.log(size))  # pyright: ignore
    found = classified(PackedPredictive(net, posterior_for(net), draws), torch.randn(50, 9))
    rounding = 1e-12
    torch.testing.assert_close(found.probs.sum(1), torch.ones(50), rtol=0, atol=rounding)
    information, entropy = found.mutual_information, found.entropy
    assert bool((information >= 0).all() and (information <= entropy + rounding).all())
    assert bool((entropy <= math.log(5) + rounding).all() and (found.expected_entropy >= 0).all())
    assert bool((found.expected_entropy <= entropy + rounding).all())  # unclamped
    if draws < 2:
        assert information.max() <= rounding
    else:
        assert information.max() > (1e-9 if size < 1 else 1e-3)


# Draws


def test_weights_of_any_probability():
    """Inputs of one 1 each show the weights: 0, 1, 1/2, and around the smallest threshold."""
    probs = torch.tensor([0.0, 1.0, 0.5, 2.0**-18, 1 - 2.0**-18, 2.0**-17, 1 - 2.0**-17, 0.01])
    units, draws = 60, 400
    natural = (0.5 * torch.logit(probs)).clamp(-40.0, 40.0).expand(units, 8).clone()
    net, posterior = plain(8, units), BinaryPosterior({"0.weight": natural})
    found = PackedPredictive(net, posterior, draws).outputs(torch.eye(8)).transpose(1, 2)
    for s in (0, 1, draws - 1):
        assert torch.equal(found[s].double(), posterior.signs(s)["0.weight"])
    plus = (found > 0).double()
    frequency = plus.mean((0, 1))
    # A probability is met to 2^-17, which itself is half way between the thresholds 0 and 2^-16.
    assert frequency[[0, 3]].tolist() == [0.0, 0.0] and frequency[[1, 4]].tolist() == [1.0, 1.0]
    # 24,000 draws of 2^-16: more than 8 flips in them have probability 1e-9.
    assert frequency[5] * units * draws <= 8 and (1.0 - frequency[6]) * units * draws <= 8
    for place in (2, 7):
        assert_within_standard_errors(plus[:, :, place].flatten(), probs[place])
        # Chi-square over the units: mean `units`, variance about 2 `units`.
        p = probs[place]
        deviations = (plus[:, :, place].sum(0) - draws * p) / (draws * p * (1 - p)).sqrt()
        assert abs(deviations.square().sum() - units) < 6 * (2 * units) ** 0.5


def test_draws_of_other_layers_and_seeds_are_independent():
    """Correlations over 24,000 pairs: normal with variance 1 / pairs if there is none."""

    def weights(place: int, seed: int) -> Tensor:
        net = nn.Sequential(*[nn.Identity()] * place, *plain(10, 10))
        posterior = BinaryPosterior({f"{place}.weight": torch.zeros(10, 10)})
        return PackedPredictive(net, posterior, 240, seed).outputs(torch.eye(10)).double()

    first = weights(0, 0)
    for other in (weights(1, 0), weights(0, 1), weights(1, 1), first.roll(1, 0)):
        assert abs((first * other).mean() * first.numel() ** 0.5) < 5
    assert torch.equal(weights(0, 0), first)


def test_many_draws_converge_to_the_sum_over_all_networks():
    """Twelve weights in two layers: 4096 networks, each with its probability."""
    net = nn.Sequential(*plain(3, 2), nn.BatchNorm1d(2), nn.Tanh(), *plain(2, 3), Scale(0.6)).eval()
    natural, x = 0.6 * torch.randn(12), torch.randn(4, 3)

    def probs(w: Tensor) -> Tensor:
        hidden = torch.tanh(net[1](x @ w[:6].view(2, 3).T)).detach()
        return (0.6 * hidden @ w[6:].view(3, 2).T).softmax(-1)

    states = torch.stack([probs(w) for w in oracles.all_states(12)])
    weights = oracles.state_probabilities(natural)
    mean = (weights[:, None, None] * states).sum(0)
    entropy = (weights[:, None] * torch.special.entr(states).sum(-1)).sum(0)

    def of(sign: float, draws: int) -> tuple[PackedPredictive, Tensor]:
        distributions = {
            "0.weight": natural[:6].view(2, 3),
            "3.weight": sign * natural[6:].view(3, 2),
        }
        packed = PackedPredictive(net, BinaryPosterior(distributions), draws)
        return packed, packed.outputs(x).double().softmax(-1)

    for draws in (100, 10_000):
        packed, drawn = of(1.0, draws)
        assert_within_standard_errors(drawn, mean)
        assert_within_standard_errors(torch.special.entr(drawn).sum(-1), entropy)
        found = classified(packed, x)
        torch.testing.assert_close(found.probs, drawn.mean(0))
        torch.testing.assert_close(
            found.expected_entropy, torch.special.entr(drawn).sum(-1).mean(0)
        )
        torch.testing.assert_close(
            found.probs_std, drawn.std(0, correction=0), rtol=1e-6, atol=1e-9
        )
    assert exceeds_standard_errors(
        of(-1.0, 10_000)[1], mean
    )  # another distribution would be noticed


# Threads, processes, signals


def test_calls_from_several_threads():
    net = to_binary_(conv_net((1, 12, 12), (4,), (8,), 3))
    packed = PackedPredictive(net, posterior_for(net), 8)
    packed_on_two = PackedPredictive(net, packed._posterior, 8, threads=2)
    x = torch.randn(40, 1, 12, 12)
    expected = classified(packed, x).log_probs
    found: list[Tensor] = []

    def call(predictor: PackedPredictive) -> None:
        for _ in range(5):
            found.append(classified(predictor, x).log_probs)

    threads = [threading.Thread(target=call, args=(p,)) for p in (packed, packed_on_two) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and all(torch.equal(one, expected) for one in found)


SET_UP = """
import multiprocessing, sys, time
import torch
from bayesbin import BinaryPosterior
from bayesbin.nn import mlp, to_binary_, binary_sites
from bayesbin.predict import PackedPredictive
def packed(width, draws, threads):
    net = to_binary_(mlp(width, [width], 3))
    sites = {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    return PackedPredictive(net, BinaryPosterior(sites), draws, threads=threads)
"""

FORKED = """
predictor, x = packed(40, 8, 3), torch.randn(50, 40)
before = predictor.predict(x).log_probs
def compute():
    sys.exit(0 if torch.equal(predictor.predict(x).log_probs, before) else 1)
child = multiprocessing.get_context("fork").Process(target=compute)
child.start()
after = predictor.predict(x).log_probs
child.join(60)
assert torch.equal(after, before)
sys.exit(child.exitcode)
"""

INTERRUPTED = """
predictor, x = packed(1024, 100_000, int(sys.argv[1])), torch.randn(32, 1024)
print("running", flush=True)
try:
    predictor.predict(x)
except KeyboardInterrupt:
    print(time.time(), flush=True)
print(predictor.predict(x[:0]).probs.shape)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", SET_UP + program, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_predicts_the_same():
    with start(FORKED) as child:
        assert child.wait(timeout=120) == 0


@pytest.mark.parametrize("threads", [pytest.param("1", marks=pytest.mark.slow), "3"])
def test_an_interrupt_stops_a_prediction(threads):
    with start(INTERRUPTED, threads) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        sent = time.time()
        stopped, after = child.communicate(timeout=60)[0].splitlines()
    assert child.returncode == 0 and after == "torch.Size([0, 3])"
    assert float(stopped) - sent < 2.0  # a tenth of a second on a machine with nothing else to do
