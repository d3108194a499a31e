"""What is held against a guide: k-hat, evidence, leave-one-out, replicated data, restarts; all enumerable."""

from __future__ import annotations

import math
import warnings

import arviz as az
import arviz_api
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor

from bayesbin import BinaryPosterior
from bayesbin.distributions import SignBernoulli
from bayesbin.guides import (
    AutoLowBit,
    AutoNestedSignBernoulli,
    AutoRelaxedSignBernoulli,
    AutoSignBernoulli,
    AutoSignDelta,
)
from bayesbin.infer.checks import (
    compare_loo,
    convergence,
    elbo_with_standard_error,
    evidence,
    evidence_gap,
    log_joint_and_guide,
    pareto_khat,
    posterior_predictive_check,
    psis_loo,
    replicate,
    restarts_as_chains,
)
from bayesbin.infer.checks.importance import traces_at_draws
from bayesbin.infer.checks.pareto import pareto_smoothed
from bayesbin.infer.checks.pointwise import observed_sites, pointwise_of
from bayesbin.nn import BinaryLinear, Classifier

D, N, SLOPE = 6, 12, 0.35


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = (x[:, 0] - x[:, 1] + 0.5 * torch.randn(N, generator=generator) > 0).double()
    return x, y


X, Y = data()
PRIOR = torch.linspace(-0.4, 0.4, D, dtype=torch.float64)


def pointwise(w: Tensor) -> Tensor:
    return dist.Bernoulli(logits=SLOPE * X @ w).log_prob(Y)


def logistic() -> None:
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Bernoulli(logits=SLOPE * X @ w), obs=Y)


def log_likelihood(w: Tensor) -> Tensor:
    return pointwise(w).sum()


def guide_at(natural: Tensor, model=logistic, **options) -> AutoSignBernoulli:
    guide = AutoSignBernoulli(model, **options)
    with torch.no_grad():
        next(guide.natural_parameters()).copy_(natural)
    return guide


def marginal_guide(factor: float = 1.0) -> AutoSignBernoulli:
    """The product of the exact posterior's marginals, or an overconfident one."""
    probability = oracles.posterior_marginals(log_likelihood, PRIOR)
    return guide_at(factor * 0.5 * torch.logit(probability))


MANY = torch.linspace(-0.2, 0.2, 12, dtype=torch.float64)


def independent() -> None:
    """12 signs, whose posterior is a product, at lambda = prior + 0.5."""
    w = pyro.sample("w", SignBernoulli(natural=MANY).to_event(1))
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Normal(w, 2.0**0.5), obs=torch.ones(12))


# log p and log q


def mean_weight(model, guide, num_samples: int = 400) -> Tensor:
    """p(y, w) / (q(w) p(y)) at draws of q: 1 on average, whatever the guide, if both are right."""
    log_p, log_q = log_joint_and_guide(model, guide, num_samples=num_samples)
    return (log_p - log_q - evidence(model)).exp()


def hierarchical_guide() -> AutoNestedSignBernoulli:
    guide = AutoNestedSignBernoulli(
        logistic_matrix, ("layer", "weight"), "random-effects", real_scale=0.6, effect_scale=0.8
    )
    with torch.no_grad():
        natural = 0.5 * torch.logit(oracles.posterior_marginals(log_likelihood, PRIOR))
        next(guide.offsets()).copy_(0.6 * natural.reshape(2, 3))
    return guide


def logistic_matrix() -> None:
    w = pyro.sample("w", SignBernoulli(natural=PRIOR.reshape(2, 3)).to_event(2))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Bernoulli(logits=SLOPE * X @ w.flatten()), obs=Y)


@pytest.mark.parametrize("kind", ["mean-field", "shared", "random-effects", "levels"])
def test_importance_weights_average_to_the_evidence(kind):
    if kind == "mean-field":
        weights = mean_weight(logistic, marginal_guide())
    elif kind == "shared":
        guide = AutoNestedSignBernoulli(logistic_matrix, init=BinaryPosterior(
            {"w": marginal_guide().posterior()["w"].natural.reshape(2, 3)}
        ))  # fmt: skip
        weights = mean_weight(logistic_matrix, guide)
    elif kind == "random-effects":
        weights = mean_weight(logistic_matrix, hierarchical_guide())
    else:
        weights = mean_weight(logistic, AutoLowBit(logistic, levels=(-1.0, 1.0)))
    assert_within_standard_errors(weights, 1.0)
    assert weights.std() > 0


def test_random_effects_count_in_both_densities():
    guide = hierarchical_guide()
    offsets = next(guide.offsets()).detach()
    loc, scale = (p.detach() for p in guide.real_parameters())
    found = log_joint_and_guide(logistic_matrix, guide, num_samples=5)
    for s, (_, trace) in enumerate(traces_at_draws(logistic_matrix, guide, (), 5, 0)):
        w, effect = trace.nodes["w"]["value"], trace.nodes["w.layer"]["value"]
        log_q = dist.Normal(loc, scale.exp()).log_prob(effect).sum()
        log_q = log_q + SignBernoulli(natural=offsets + effect).log_prob(w).sum()
        log_p = log_likelihood(w.flatten()) + dist.Normal(0.0, 0.8).log_prob(effect).sum()
        log_p = log_p + SignBernoulli(natural=PRIOR).log_prob(w.flatten()).sum()
        torch.testing.assert_close(found.log_q[s], log_q)
        torch.testing.assert_close(found.log_p[s], log_p)


def test_draws_are_a_function_of_the_seed():
    guide, state = marginal_guide(), torch.random.get_rng_state()
    first, again, other = (
        log_joint_and_guide(logistic, guide, num_samples=5, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.log_p, again.log_p) and not torch.equal(first.log_p, other.log_p)


def with_auxiliary() -> None:
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("w", SignBernoulli(natural=scale.expand(D)).to_event(1))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda: AutoRelaxedSignBernoulli(logistic), "draws signs, got relaxed ones at 'w'"),
        (lambda: AutoSignDelta(logistic), r"got a point \(Delta\) at 'w'"),
        (lambda: with_auxiliary, "got also scale: with sites that are only the guide's"),
    ],
)
def test_guides_without_a_density_are_refused(guide, message):
    with pytest.raises(ValueError, match=message):
        log_joint_and_guide(logistic, guide(), num_samples=2)


def test_a_part_of_the_data_is_refused():
    model = Classifier(BinaryLinear(D, 2), dataset_size=100)
    batch = X, Y.long()
    for function in (log_joint_and_guide, elbo_with_standard_error, psis_loo):
        with pytest.raises(ValueError, match="got 12 of 100 in the plate 'data'"):
            function(model, AutoSignBernoulli(model), batch, 30)
    with pytest.raises(ValueError, match="got 12 of 100"):
        evidence(model, batch)


# k-hat


def test_khat_passes_the_exact_guide_and_flags_an_overconfident_one():
    exact, overconfident = (guide_at(c * (MANY + 0.5), independent) for c in (1.0, 4.0))
    assert pareto_khat(*log_joint_and_guide(independent, exact, num_samples=200)) == -math.inf
    assert pareto_khat(*log_joint_and_guide(independent, overconfident, num_samples=400)) > 0.7
    good = log_joint_and_guide(logistic, marginal_guide(), num_samples=400)
    assert pareto_khat(*good) < 0.5


@pytest.mark.parametrize("draws", [50, 200, 1000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_khat_is_that_of_arviz(draws, spread):
    weights = torch.randn(3, draws).mul(spread)
    smoothed, khat = pareto_smoothed(weights)
    expected, shape = arviz_api.psislw(weights.numpy())
    if arviz_api.MAJOR >= 1:  # its tail has the cutoff's equals, here the largest of the others
        agree = torch.from_numpy(shape).isfinite()
        torch.testing.assert_close(khat[agree], torch.from_numpy(shape)[agree], rtol=0.3, atol=0.1)
    else:
        torch.testing.assert_close(smoothed, torch.from_numpy(expected), rtol=0.0, atol=1e-8)
        torch.testing.assert_close(khat, torch.from_numpy(shape), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(smoothed.logsumexp(-1), torch.zeros(3))


@pytest.mark.parametrize("states", [1, 2, 3, 5, 16, 64])
@pytest.mark.parametrize("draws", [25, 30, 200])
def test_equal_weights_have_a_shape_or_none_but_never_nan(states, draws):
    """Binary weights visit the same states again, so the tail has ties or is a single value."""
    values = torch.randn(states)
    row = values[torch.randint(states, (draws,))] + 1e-14 * torch.randn(draws)
    smoothed, khat = pareto_smoothed(row)
    assert not khat.isnan() and smoothed.isfinite().all() and khat.dtype == torch.float64
    torch.testing.assert_close(smoothed.logsumexp(-1), torch.tensor(0.0))
    larger = row[:, None] > row + 1e-9
    assert (smoothed[:, None] - smoothed)[larger].ge(-1e-9).all()  # smoothing keeps the order
    if states == 1:
        assert khat == -math.inf
    torch.testing.assert_close(pareto_smoothed(row.flip(0))[1], khat)
    both = pareto_smoothed(torch.stack([row, row]))
    assert torch.equal(both[0][1], smoothed) and torch.equal(both[1], khat.expand(2))


def test_draws_that_no_tail_can_be_fitted_to_are_refused():
    with pytest.raises(ValueError, match="at least 25 draws to fit a tail to, got 20"):
        pareto_khat(torch.zeros(20), torch.zeros(20))
    with pytest.raises(ValueError, match="finite log weights"):
        pareto_khat(torch.full((30,), -torch.inf), torch.zeros(30))
    with pytest.raises(ValueError, match=r"one shape \(S,\), got \(30,\) and \(31,\)"):
        pareto_khat(torch.zeros(30), torch.zeros(31))


# Evidence


def test_evidence_elbo_and_gap_are_those_of_enumeration():
    exact = oracles.log_evidence(log_likelihood, PRIOR)
    assert evidence(logistic) == pytest.approx(exact, abs=1e-10)
    guide = marginal_guide(1.3)
    natural = next(guide.natural_parameters()).detach()
    elbo = oracles.expectation(log_likelihood, natural) - oracles.kl(natural, PRIOR)
    gap, error, log_evidence, bound = evidence_gap(logistic, guide)
    assert (gap, error, log_evidence, bound) == pytest.approx((exact - elbo, 0.0, exact, elbo))
    assert gap > 0
    value, error = elbo_with_standard_error(logistic, guide, num_samples=400)
    assert 0 < error < 0.5 and abs(value - elbo) < 5 * error
    assert abs(value - exact) > 0.0


def test_the_standard_error_of_the_elbo_is_that_of_repetition():
    guide = marginal_guide(0.5)
    repeated = [
        elbo_with_standard_error(logistic, guide, num_samples=20, seed=s) for s in range(40)
    ]
    values, errors = torch.tensor(repeated).T
    assert values.std() / errors.mean() == pytest.approx(1.0, abs=5 / math.sqrt(2 * 40))


def test_the_gap_of_random_effects_is_averaged_over_them():
    gap = evidence_gap(logistic_matrix, hierarchical_guide(), num_samples=10)
    assert gap.standard_error > 0 and gap.gap > -5 * gap.standard_error
    log_p, log_q = log_joint_and_guide(logistic_matrix, hierarchical_guide(), num_samples=400)
    mean, error = (log_p - log_q).mean(), (log_p - log_q).std() / 20
    assert abs(gap.elbo - mean) < 5 * (error**2 + gap.standard_error**2) ** 0.5


def test_models_without_a_finite_sum_are_refused():
    def noisy() -> None:
        pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.sample("noise", dist.LogNormal(0.0, 1.0))

    with pytest.raises(ValueError, match="signs alone to sum over, got the real-valued noise"):
        evidence(noisy)
    with pytest.raises(ValueError, match=r"at most 4 weights to sum over .* states, got 6"):
        evidence(logistic, max_weights=4)
    with pytest.raises(ValueError, match="got AutoLowBit with other levels"):
        evidence_gap(logistic, AutoLowBit(logistic, levels=(-1.0, 0.0, 1.0)))


# Leave one out


def exact_loo(prior: Tensor = PRIOR) -> Tensor:
    """log p(y_n | all others) = log p(y) - log p(all others), (N,)."""
    states = oracles.all_states(D)
    each = torch.stack([pointwise(w) for w in states])  # (states, N)
    joint = each.sum(1) + oracles.state_probabilities(prior).log()
    return joint.logsumexp(0) - (joint[:, None] - each).logsumexp(0)


def test_loo_meets_exact_loo_where_the_uncorrected_one_does_not():
    exact, guide = exact_loo(), marginal_guide(0.2)
    right = psis_loo(logistic, guide, num_samples=500)
    wrong = psis_loo(logistic, guide, num_samples=500, correct=False)
    assert right.elpd == pytest.approx(exact.sum().item(), abs=0.3)
    assert abs(wrong.elpd - exact.sum().item()) > 1.0
    assert (right.pointwise - exact).abs().max() < (wrong.pointwise - exact).abs().max()
    assert right.standard_error == pytest.approx(
        (N * exact.var(correction=0)).sqrt().item(), rel=0.1
    )
    assert 0 < right.p_loo < D and right.corrected and not wrong.corrected
    assert f"over {N} data" in str(right)


@arviz_api.needs_no_equal_weights
def test_uncorrected_loo_is_that_of_arviz():
    result = psis_loo(
        independent, guide_at(MANY + 0.5, independent), num_samples=200, correct=False
    )
    guide = guide_at(MANY + 0.5, independent)
    rows = [
        torch.cat([pointwise_of(site).log_prob for _, site in observed_sites(t)])
        for t, _ in traces_at_draws(independent, guide, (), 200, 0)
    ]
    each = torch.stack(rows)[None].numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter")
        other = arviz_api.loo({"w": each[..., 0]}, {"y": each})
    near = 1e-6 if arviz_api.MAJOR < 1 else 0.05 * other.se  # see infer/checks/pareto.py
    assert result.elpd == pytest.approx(other.elpd, abs=near)
    assert result.standard_error == pytest.approx(other.se, abs=near)
    assert result.p_loo == pytest.approx(other.p, abs=near)
    assert result.good_khat == pytest.approx(other.good_k)


def test_a_comparison_is_paired_by_datum():
    guides = {"exact marginals": marginal_guide(), "prior": guide_at(PRIOR)}
    results = {
        name: psis_loo(logistic, guide, num_samples=300, correct=False)
        for name, guide in guides.items()
    }
    best, worst = compare_loo(results).rows
    assert (best.name, worst.name) == ("exact marginals", "prior")
    difference = results["prior"].pointwise - results["exact marginals"].pointwise
    assert worst.difference == pytest.approx(difference.sum().item()) and best.difference == 0
    assert worst.difference_error == pytest.approx(math.sqrt(N * difference.var(correction=0)))
    lines = str(compare_loo(results)).splitlines()
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match="two results or more"):
        compare_loo({"one": results["prior"]})


def test_loo_needs_data():
    def unobserved() -> None:
        pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))

    with pytest.raises(ValueError, match="observed data, got none"):
        psis_loo(unobserved, AutoSignBernoulli(unobserved), num_samples=30)


# Replicated data


def test_replicated_data_have_the_distribution_of_the_posterior_predictive():
    posterior = marginal_guide().posterior()
    found = replicate(logistic, (posterior.sample(s) for s in range(400)), seed=3)["y"]
    assert found.shape == (400, N)
    states = oracles.all_states(D)
    probability = torch.sigmoid(SLOPE * states @ X.T)
    weights = oracles.state_probabilities(posterior["w"].natural)
    assert_within_standard_errors(found, weights @ probability)
    assert exceeds_standard_errors(found, torch.full((N,), 0.5))
    with pytest.raises(ValueError, match="observed data, got none"):
        replicate(logistic, [])


def test_a_predictive_check_tells_data_of_the_model_from_others():
    replicated = torch.randn(200, 30)
    fits = posterior_predictive_check(torch.std, torch.randn(30), replicated)
    fails = posterior_predictive_check(torch.std, 3.0 * torch.randn(30), replicated)
    assert 0.01 < fits.p_value < 0.99 and fails.p_value == 0.0
    torch.testing.assert_close(fits.replicated, replicated.std(1))
    ties = posterior_predictive_check(torch.sum, torch.zeros(30), torch.zeros(5, 30))
    assert ties.p_value == 0.5 and "p = 0.500" in str(ties)
    with pytest.raises(ValueError, match=r"replications \(S, 30\), got \(200, 29\)"):
        posterior_predictive_check(torch.std, torch.zeros(30), replicated[:, 1:])
    with pytest.raises(ValueError, match="one finite number"):
        posterior_predictive_check(lambda y: y, torch.zeros(30), replicated)


# Restarts and convergence


def test_restarts_agree_on_outputs_where_weights_are_permuted():
    def hidden(draw) -> Tensor:
        return torch.relu(X @ draw["w"].T).sum(1)

    def posterior_of(seed: int) -> BinaryPosterior:  # hidden units in another order in each
        units = torch.linspace(-1.5, 1.5, 4 * D).sin().reshape(4, D)
        return BinaryPosterior({"w": units.roll(seed, dims=0)})

    outputs = restarts_as_chains(posterior_of, hidden, num_samples=200)
    assert outputs.values.shape == (4, 200, N) and len(outputs.posteriors) == 4
    weights = restarts_as_chains(posterior_of, lambda draw: draw["w"].flatten(), num_samples=200)
    assert outputs.convergence.worst_rhat < 1.02 < 1.1 < weights.convergence.worst_rhat
    assert outputs.convergence.least_ess > 400
    assert "4 restarts: R-hat up to 1.0" in str(outputs)
    with pytest.raises(ValueError, match="return a BinaryPosterior, got Tensor"):
        restarts_as_chains(lambda seed: torch.zeros(3), hidden)  # pyright: ignore
    with pytest.raises(ValueError, match="num_restarts to be a whole number of at least 2"):
        restarts_as_chains(posterior_of, hidden, num_restarts=1)


def test_chains_that_never_move_have_an_infinite_r_hat():
    values = torch.zeros(2, 10, 2)
    values[1] = 1.0
    values[:, 5:, 1] += 3.0  # or moved once, all at the same time
    assert convergence(values).rhat.tolist() == [math.inf, math.inf]


def test_convergence_is_that_of_arviz_and_constants_count_for_nothing():
    chains = torch.randn(3, 50, 2)
    chains[..., 1] = 1.0
    found = convergence(chains)
    column = chains[..., 0].numpy()
    assert found.rhat[0].item() == az.rhat(column) and found.worst_rhat == found.rhat[0]
    assert found.ess_bulk[0].item() == az.ess(column, method="bulk")
    quantiles = [az.ess(column, method="quantile", prob=prob) for prob in (0.05, 0.95)]
    assert found.ess_tail[0].item() == min(quantiles)
    assert found.rhat[1].isnan() and found.ess_bulk[1].isnan()
    one = convergence(chains[:1])
    assert one.rhat.isnan().all() and one.ess_bulk[0] > 10 and math.isnan(one.worst_rhat)
    with pytest.raises(ValueError, match="at least 4 draws"):
        convergence(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite values"):
        convergence(torch.full((2, 5), torch.nan))


def test_the_summary_of_a_posterior_already_has_the_effective_bits():
    posterior = marginal_guide().posterior()
    (row,) = posterior.summary().rows  # KL to the uniform prior: the bits that data have decided
    assert row.kl_bits == pytest.approx(row.weights * (1.0 - row.entropy_bits))
