"""Averages over draws, against loops written out and against sums over all states."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import oracles
import pytest
import torch
from stats import assert_within_standard_errors
from torch import nn
from torch.nn import functional as F

from bayesbin import BinaryPosterior
from bayesbin.distributions import Support
from bayesbin.nn import BinaryLinear, StateBatchNorm, recalibrate, to_binary_
from bayesbin.posterior import RealPosterior
from bayesbin.predict import draw_log_probs, draw_outputs, predict, predict_regression

S = 7


def network():
    torch.manual_seed(2)
    return to_binary_(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), scale=0.9)


def posterior():
    torch.manual_seed(3)
    return BinaryPosterior({"0.weight": 0.5 * torch.randn(4, 3), "2.weight": torch.randn(3, 4)})


def inputs(rows=6):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(4))


def outputs_by_hand(net, q, x, count=S, seed=0):
    """Logits of each draw, (S, B, C)."""
    results = []
    for s in range(count):
        w = q.signs(s, seed=seed)
        hidden = torch.tanh(F.linear(x, 0.9 * w["0.weight"], net[0].bias))
        results.append(F.linear(hidden, 0.9 * w["2.weight"], net[2].bias))
    return torch.stack(results).detach()


def entropy(probs):
    return -(probs * probs.log()).sum(-1)


def test_probabilities_are_averaged_and_logits_are_not():
    net, q, x = network(), posterior(), inputs()
    logits = outputs_by_hand(net, q, x, seed=5)
    probs = torch.softmax(logits, -1)
    found = predict(net, q, x, num_samples=S, seed=5)
    torch.testing.assert_close(found.probs, probs.mean(0))
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(6))
    torch.testing.assert_close(found.log_probs, probs.mean(0).log())
    assert not torch.allclose(found.probs, torch.softmax(logits.mean(0), -1), atol=1e-3)
    torch.testing.assert_close(found.probs_std, probs.std(0, correction=0))
    torch.testing.assert_close(found.entropy, entropy(probs.mean(0)))
    torch.testing.assert_close(found.expected_entropy, entropy(probs).mean(0))
    assert found.num_samples == S


def test_uncertainty_splits_into_noise_and_disagreement():
    found = predict(network(), posterior(), inputs(50), num_samples=S)
    assert bool((found.mutual_information >= 0).all())
    torch.testing.assert_close(found.entropy, found.expected_entropy + found.mutual_information)
    assert bool((found.entropy <= math.log(3.0) + 1e-12).all())
    assert bool((found.mutual_information > 1e-3).any())


@pytest.mark.parametrize("size", [1, 4, 50])
def test_every_batch_sees_the_same_draws(size):
    net, q, x = network(), posterior(), inputs(50)
    whole = predict(net, q, x, num_samples=S)
    pairs = [(part, torch.zeros(len(part))) for part in x.split(size)]
    for batches in (x.split(size), pairs, iter([list(pair) for pair in pairs])):
        parts = predict(net, q, batches, num_samples=S)
        torch.testing.assert_close(parts.log_probs, whole.log_probs)
        torch.testing.assert_close(parts.mutual_information, whole.mutual_information)


def test_more_draws_begin_with_the_same_ones():
    net, q, x = network(), posterior(), inputs()
    few, many = (list(draw_log_probs(net, q, x, count)) for count in (3, S))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=False))
    assert not torch.equal(
        predict(net, q, x, S, seed=0).log_probs, predict(net, q, x, S, seed=1).log_probs
    )


def test_no_draws_is_the_mode():
    net, q, x = network(), posterior(), inputs()
    found = predict(net, q, x, num_samples=0)
    torch.testing.assert_close(found.probs, torch.softmax(q.mode_network(net)(x), -1).detach())
    assert found.num_samples == 1
    torch.testing.assert_close(found.mutual_information, torch.zeros(6))
    torch.testing.assert_close(found.probs_std, torch.zeros(6, 3), atol=1e-7, rtol=0.0)


def test_the_network_is_left_alone_and_its_mode_does_not_matter():
    net, q, x = network(), posterior(), inputs()
    net.append(nn.Dropout(0.5))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = predict(net.train(), q, x, S)
    assert net.training
    torch.testing.assert_close(predict(net.eval(), q, x, S).probs, first.probs)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not first.log_probs.requires_grad


def test_each_draw_is_normalised_by_its_own_statistics():
    net = to_binary_(nn.Sequential(nn.Linear(3, 4), StateBatchNorm(4), nn.Tanh(), nn.Linear(4, 3)))
    q = BinaryPosterior({"0.weight": torch.randn(4, 3), "3.weight": torch.randn(3, 4)})
    x = inputs(20)
    statistics = recalibrate(net, q, x, num_samples=3, seed=6)
    found = list(draw_outputs(net, q, x, 3, seed=6, statistics=statistics))
    for s, output in enumerate(found):
        w = q.signs(s, seed=6)
        h = F.linear(x * net[0].scale, w["0.weight"], net[0].bias)
        h = torch.tanh((h - h.mean(0)) / (h.var(0) + 1e-5).sqrt())
        by_hand = F.linear(h * net[3].scale, w["3.weight"], net[3].bias)
        torch.testing.assert_close(output, by_hand.detach())
    with pytest.raises(ValueError, match="asked for draw 3 of seed 6"):
        predict(net, q, x, 4, seed=6, statistics=statistics)
    with pytest.raises(ValueError, match="of seed 7"):
        predict(net, q, x, 2, seed=7, statistics=statistics)


class Constant(nn.Module):
    """Logits that do not depend on anything, beside a binary weight."""

    def __init__(self, logits):
        super().__init__()
        self.layer = BinaryLinear(3, 1)
        self.logits = logits

    def forward(self, x):
        return self.logits.expand(len(x), -1) + 0.0 * self.layer(x)


@pytest.mark.parametrize("logits", [[0.0, 0.0], [500.0, -500.0], [1.0, 3.0], [0.0, -math.inf]])
def test_constant_predictors(logits):
    logits = torch.tensor(logits, dtype=torch.float64)
    found = predict(
        Constant(logits), BinaryPosterior({"layer.weight": torch.zeros(1, 3)}), inputs(), S
    )
    probs = torch.softmax(logits, -1)
    torch.testing.assert_close(found.probs, probs.expand(6, 2))
    torch.testing.assert_close(found.entropy, torch.special.entr(probs).sum().expand(6))
    assert bool((found.mutual_information.abs() < 1e-12).all())
    torch.testing.assert_close(found.probs_std, torch.zeros(6, 2), atol=1e-7, rtol=0.0)
    assert bool(found.expected_entropy.isfinite().all())


def test_float32_networks_are_averaged_in_float64():
    net, q, x = network().float(), posterior().to(torch.float32), inputs().float()
    found = predict(net, q, x, S)
    assert found.log_probs.dtype == torch.float64
    exact = predict(network(), posterior().to(torch.float32).to(torch.float64), inputs(), S)
    torch.testing.assert_close(found.probs, exact.probs, atol=1e-5, rtol=1e-5)


def test_bfloat16_networks():
    found = predict(network().bfloat16(), posterior().to(torch.bfloat16), inputs().bfloat16(), S)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(6))


def test_non_contiguous_and_empty_inputs():
    net, q = network(), posterior()
    x = inputs(5).t().contiguous().t()
    assert not x.is_contiguous()
    torch.testing.assert_close(
        predict(net, q, x, S).probs, predict(net, q, x.contiguous(), S).probs
    )
    assert predict(net, q, inputs(0), S).probs.shape == (0, 3)


def test_memory_does_not_grow_with_the_number_of_draws():
    """Draws are consumed one at a time, and none is kept."""
    net, q = to_binary_(nn.Linear(60, 50)), BinaryPosterior({"weight": torch.randn(50, 60)})
    x = torch.randn(4, 60)
    live, most = 0, 0

    class Counted(dict):
        def __init__(self, *args):
            nonlocal live, most
            super().__init__(*args)
            live += 1
            most = max(most, live)

        def __del__(self):
            nonlocal live
            live -= 1

    class Watched(BinaryPosterior):
        def signs(self, index=None, *, seed=0):
            return Counted(super().signs(index, seed=seed))

    predict(net, Watched(q), x, num_samples=40)
    assert most <= 2 and live == 0
    peaks = []
    for count in (5, 50):
        tracemalloc.start()
        predict(net, q, x, num_samples=count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_convergence_to_the_sum_over_all_states():
    net = to_binary_(nn.Linear(3, 2), scale=0.8)
    natural = torch.tensor([[0.4, -0.3, 1.2], [0.0, 0.8, -0.6]])
    q, x = BinaryPosterior({"weight": natural}), inputs(4)

    def probability(w):
        return torch.softmax(F.linear(0.8 * x, w.view(2, 3), net.bias), -1)

    weights = oracles.state_probabilities(natural)
    states = torch.stack([probability(w).detach() for w in oracles.all_states(6)])
    exact = (weights[:, None, None] * states).sum(0)
    draws = torch.stack([one.exp() for one in draw_log_probs(net, q, x, 1500)])
    assert_within_standard_errors(draws, exact)
    assert_within_standard_errors(entropy(draws), (weights[:, None] * entropy(states)).sum(0))
    torch.testing.assert_close(predict(net, q, x, 1500).probs, draws.mean(0))


# Regression


def regression():
    net = to_binary_(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    real = {"noise": RealPosterior(torch.tensor(-1.0), torch.tensor(0.4), Support("positive"))}
    return net, BinaryPosterior(
        {"0.weight": torch.randn(4, 3), "2.weight": torch.randn(1, 4)}, real
    )


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("noise", [0.3, "noise"])
def test_regression_is_a_loop_over_draws(noise, flat):
    net, q = regression()
    x = inputs() + 1e3 * flat  # large inputs: the variance must not cancel
    if flat:
        net.append(nn.Flatten(0))
    found = predict_regression(net, q, x, noise, num_samples=S, seed=2)
    means = torch.stack([q.sample_network(net, s, seed=2)(x).detach().flatten() for s in range(S)])
    scales = [noise if noise == 0.3 else q.sample(s, seed=2)["noise"] for s in range(S)]
    aleatoric = sum(float(scale) ** 2 for scale in scales) / S
    torch.testing.assert_close(found.mean, means.mean(0))
    torch.testing.assert_close(found.epistemic, means.var(0, correction=0))
    torch.testing.assert_close(found.aleatoric, torch.full((6,), aleatoric))
    torch.testing.assert_close(found.std, (means.var(0, correction=0) + aleatoric).sqrt())
    assert found.num_samples == S


def test_regression_with_the_mode():
    net, q = regression()
    found = predict_regression(net, q, inputs(), num_samples=0)
    torch.testing.assert_close(found.mean, q.mode_network(net)(inputs()).detach().flatten())
    torch.testing.assert_close(found.aleatoric, torch.full((6,), math.exp(-2.0)))
    assert torch.equal(found.epistemic, torch.zeros(6))
    assert predict_regression(net, q, inputs(0)).mean.shape == (0,)


# Errors


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_that_are_not_finite(bad):
    x = inputs()
    x[2, 1] = bad
    for given in (x, x.split(2)):
        with pytest.raises(ValueError, match="inputs contain NaN or infinity"):
            predict(network(), posterior(), given)
    with pytest.raises(ValueError, match="inputs contain NaN or infinity"):
        predict_regression(*regression(), x)


def test_errors():
    net, q, x = network(), posterior(), inputs()
    with pytest.raises(ValueError, match="num_samples to be a whole number of at least 0"):
        predict(net, q, x, num_samples=-1)
    with pytest.raises(ValueError, match="has no batch"):
        predict(net, q, [])
    with pytest.raises(
        ValueError, match=r"logits of shape \(B, classes\) from the network; got \(6,\)"
    ):
        predict(nn.Sequential(*net, nn.Linear(3, 1), nn.Flatten(0)), q, x)
    with pytest.raises(ValueError, match=r"one mean per input from the network.*got \(6, 3\)"):
        predict_regression(net, q, x, 0.1)
    with pytest.raises(ValueError, match=r"no real-valued site 'noise' \(it has none\)"):
        predict_regression(net, q, x)
    with pytest.raises(ValueError, match=r"no real-valued site 'sigma' \(it has noise\)"):
        predict_regression(*regression(), x, "sigma")
    with pytest.raises(KeyError, match="no weight named"):
        predict(BinaryLinear(3, 3), q, x)
    with pytest.raises(ValueError, match="the posterior's"):
        predict(BinaryLinear(3, 3), BinaryPosterior({"weight": torch.zeros(3)}), x)


def test_an_endless_stream_of_draws_is_lazy():
    net, q = network(), posterior()
    assert len(list(itertools.islice(q.draws(net), 3))) == 3
