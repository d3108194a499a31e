"""Entropies and votes of draws, against hand computation; the jackknife, against the plain estimate."""

from __future__ import annotations

import math

import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.diagnostics import uncertainty
from bayesbin.ensemble import Ensemble
from bayesbin.nn import to_binary_

QUANTITIES = ["entropy", "expected_entropy", "mutual_information", "max_probability"]
OF_DRAWS = ["mutual_information_jackknife", "variation_ratio", "disagreement"]


def dirichlet(num_samples, batch, num_classes=4, concentration=1.0):
    alpha = torch.full((num_classes,), concentration)
    return torch.distributions.Dirichlet(alpha).sample((num_samples, batch))


def entropy(probs):
    return torch.distributions.Categorical(probs=probs).entropy()


def test_entropies_of_random_draws():
    probs = dirichlet(7, 50)
    found = uncertainty(probs.log())
    mean = probs.mean(0)
    torch.testing.assert_close(found.entropy, entropy(mean))
    torch.testing.assert_close(found.expected_entropy, entropy(probs).mean(0))
    torch.testing.assert_close(found.mutual_information, entropy(mean) - entropy(probs).mean(0))
    # The mutual information is also the mean divergence of the draws from their mean.
    divergence = (probs * (probs.log() - mean.log())).sum(-1).mean(0)
    torch.testing.assert_close(found.mutual_information, divergence)
    torch.testing.assert_close(found.max_probability, mean.max(-1).values)
    assert found.num_samples == 7 and found.unit == "nats"


def test_the_jackknife_leaves_out_each_draw_once():
    probs = dirichlet(5, 20)
    plain = uncertainty(probs.log()).mutual_information
    kept = [[s for s in range(5) if s != out] for out in range(5)]
    without = torch.stack([uncertainty(probs[rows].log()).mutual_information for rows in kept])
    expected = 5 * plain - 4 * without.mean(0)
    torch.testing.assert_close(uncertainty(probs.log()).mutual_information_jackknife, expected)


def test_votes_by_hand():
    labels = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2], [0, 2, 0, 2], [0, 0, 0, 2], [0, 0, 0, 2]])
    sure = torch.full((5, 4, 3), 0.05).scatter(-1, labels[..., None], 0.9)
    found = uncertainty(sure.log())
    assert found.variation_ratio.tolist() == pytest.approx([0.0, 0.4, 0.4, 0.0])
    assert found.disagreement.tolist() == pytest.approx([0.0, 0.4, 0.4, 0.0])


def test_disagreement_is_with_the_mean_not_with_the_majority():
    # Two draws lean to class 0, one is certain of class 1: the mean says 1.
    probs = torch.tensor([[[0.6, 0.4]], [[0.6, 0.4]], [[0.0, 1.0]]])
    found = uncertainty(probs.log())
    assert found.variation_ratio.item() == pytest.approx(1 / 3)
    assert found.disagreement.item() == pytest.approx(2 / 3)


def test_certain_draws_have_finite_uncertainty():
    probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    found = uncertainty(probs.log())
    assert found.entropy.tolist() == pytest.approx([math.log(2.0), 0.0])
    assert found.expected_entropy.tolist() == [0.0, 0.0]
    assert found.mutual_information.tolist() == pytest.approx([math.log(2.0), 0.0])
    # Without either draw nothing is left to disagree: 2 log 2 - 0.
    assert found.mutual_information_jackknife.tolist() == pytest.approx([2 * math.log(2.0), 0.0])
    assert found.max_probability.tolist() == pytest.approx([0.5, 1.0])


def test_draws_that_agree_have_no_epistemic_part():
    probs = dirichlet(1, 30).expand(6, 30, 4)
    found = uncertainty(probs.log())
    for name in ("mutual_information", "mutual_information_jackknife", "disagreement"):
        torch.testing.assert_close(getattr(found, name), torch.zeros(30), atol=1e-12, rtol=0)


def test_one_draw_and_one_class():
    found = uncertainty(dirichlet(1, 3).log())
    assert found.mutual_information_jackknife.isnan().all()
    torch.testing.assert_close(found.mutual_information, torch.zeros(3), atol=1e-12, rtol=0)
    assert found.variation_ratio.tolist() == found.disagreement.tolist() == [0.0] * 3
    alone = uncertainty(torch.zeros(4, 2, 1))
    assert alone.entropy.tolist() == [0.0, 0.0] and alone.max_probability.tolist() == [1.0, 1.0]


def test_bits():
    nats = uncertainty(dirichlet(4, 10).log())
    bits = nats.in_bits()
    assert bits.unit == "bits" and bits.in_bits() is bits
    for name in ("entropy", "expected_entropy", "mutual_information", OF_DRAWS[0]):
        torch.testing.assert_close(getattr(bits, name), getattr(nats, name) / math.log(2.0))
    for name in ("max_probability", "variation_ratio", "disagreement"):
        assert getattr(bits, name) is getattr(nats, name)


def test_the_jackknife_is_less_biased_with_four_draws():
    """Against the exact value for Dirichlet draws, in standard errors; the plain estimate is biased."""
    alpha = torch.full((4,), 1.0)
    found = uncertainty(dirichlet(4, 40_000).log())
    # E H[p] of a symmetric Dirichlet: digamma(C + 1) - digamma(2) at concentration 1.
    aleatoric = (
        torch.special.digamma(alpha.sum() + 1.0) - torch.special.digamma(alpha[0] + 1.0)
    ).item()
    exact = math.log(4.0) - aleatoric
    assert_within_standard_errors(found.expected_entropy, aleatoric)
    plain, corrected = found.mutual_information, found.mutual_information_jackknife
    assert exceeds_standard_errors(plain, exact, k=50)  # the biased twin
    assert plain.mean() < exact
    biases = torch.stack([(plain - exact).mean().abs(), (corrected - exact).mean().abs()])
    error = corrected.std() / 200.0
    assert biases[1] + 5 * error < 0.35 * biases[0]
    # To first order the plain bias is -sum_c Var[p_c] / (2 S E[p_c]), here (C - 1) / (2 S (C + 1)).
    assert biases[0].item() == pytest.approx(3 / (2 * 4 * 5), rel=0.25)


def network():
    net = to_binary_(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)))
    posterior = BinaryPosterior({"0.weight": torch.randn(6, 3), "2.weight": torch.randn(3, 6)})
    return net, posterior, torch.randn(40, 3)


def test_predictions_and_their_draws_give_the_same():
    net, posterior, x = network()
    ensemble = Ensemble(net, posterior, 8, seed=1, head="classes")
    draws = uncertainty(ensemble.log_probs(x))
    for prediction in (ensemble.predict(x), ensemble.predict(x.numpy())):
        summary = uncertainty(prediction)
        for name in QUANTITIES:
            torch.testing.assert_close(getattr(summary, name), getattr(draws, name))
        assert all(getattr(summary, name).isnan().all() for name in OF_DRAWS)
        assert summary.num_samples == 8
    one_by_one = uncertainty(iter(ensemble.log_probs(x)))
    assert torch.equal(one_by_one.mutual_information_jackknife, draws.mutual_information_jackknife)


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (torch.zeros(3, 2), r"log-probabilities \(S, B, C\).*got \(3, 2\)"),
        (torch.zeros(0, 3, 2), "at least 1 of each"),
        (torch.zeros(2, 3, 2), "6 of 6 rows; pass log_softmax"),
        (torch.full((1, 1, 2), math.nan), "got NaN"),
        ([], "at least one draw"),
    ],
)
def test_errors(log_probs, message):
    with pytest.raises(ValueError, match=message):
        uncertainty(log_probs)
