"""The report of estimators: its bias, variance and cost are what they are said to be."""

from __future__ import annotations

import json

import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    REBAR,
    DisARM,
    Enumerate,
    Estimator,
    LocalExpectation,
    MovingAverage,
    ScoreFunction,
    StraightThrough,
)
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer.checks import estimator_report
from bayesbin.infer.checks.gradient_statistics import GROUPS, GradientStatistics, Reference
from bayesbin.nn import BinaryLinear, Classifier, Regressor


def problem(width: int = 3) -> tuple[Classifier, AutoSignBernoulli, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, width, generator=generator)
    y = (x.sum(1) > 0.3).long()
    model = Classifier(BinaryLinear(width, 2, bias=False, scale=1.0), dataset_size=12)
    return model, AutoSignBernoulli(model, init_scale=0.4), (x, y)


class Scaled(DisARM):
    """DisARM with its gradient, but not its value, multiplied by 1.5: a known bias of half the gradient."""

    unbiased = False

    def forward(self, objective, natural):
        surrogate = super().forward(objective, natural)
        return 1.5 * surrogate - 0.5 * surrogate.detach()


def test_bias_and_reference_are_those_of_enumeration():
    model, guide, (x, y) = problem()
    report = estimator_report(model, guide, (x, y), [DisARM(4), Scaled(4), Enumerate()], 300)

    def log_likelihood(state: Tensor) -> Tensor:
        return dist.Categorical(logits=x @ state.reshape(2, 3).T).log_prob(y).sum()

    (natural,) = guide.natural_parameters()
    gradient = oracles.gradient(log_likelihood, natural.detach())
    unbiased, scaled, exact = report.rows
    assert report.num_weights == 6 and report.reference_standard_error == 0.0
    assert report.reference == "Enumerate(max_weights=16)"
    assert unbiased.reference_norm == pytest.approx(gradient.norm().item())
    assert unbiased.bias <= 3 * unbiased.bias_standard_error
    assert scaled.bias == pytest.approx(
        0.5 * unbiased.reference_norm, abs=4 * scaled.bias_standard_error
    )
    assert scaled.bias > 3 * scaled.bias_standard_error
    # 1.5 times the gradient has 2.25 times the variance, up to the spread of a variance.
    assert scaled.total_variance / unbiased.total_variance == pytest.approx(2.25, rel=0.4)
    assert (exact.bias, exact.total_variance) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert exact.cosine == pytest.approx(1.0)


def test_variance_and_cost_count_draws():
    model, guide, batch = problem()
    estimators = {"one": StraightThrough(), "four": StraightThrough(4), "pairs": DisARM(3)}
    report = estimator_report(model, guide, batch, estimators, 300)
    one, four, pairs = report.rows
    assert [row.name for row in report.rows] == ["one", "four", "pairs"]
    assert (one.evaluations, four.evaluations, pairs.evaluations) == (1, 4, 6)
    assert one.total_variance / four.total_variance == pytest.approx(4.0, rel=0.5)
    for row in report.rows:
        assert row.seconds > 0 and row.computation > 0
        assert row.variance_times_computation == pytest.approx(row.total_variance * row.computation)
        assert -1 <= row.cosine <= 1


def test_references_grow_with_the_model():
    model, guide, batch = problem(width=10)
    report = estimator_report(model, guide, batch, [StraightThrough()], 20)
    assert report.reference == "40 x LocalExpectation(num_samples=1, max_weights=2000)"
    assert report.reference_standard_error > 0
    chosen = estimator_report(
        model, guide, batch, [StraightThrough()], 20, reference=DisARM(), reference_replicates=60
    )
    assert chosen.reference == "60 x DisARM(num_pairs=1)"
    assert chosen.reference_standard_error > report.reference_standard_error


def test_the_same_seed_gives_the_same_numbers_and_disturbs_nothing():
    model, guide, batch = problem()
    before = [p.clone() for p in guide.parameters()]
    state = torch.random.get_rng_state()
    rebar, moving = REBAR(), ScoreFunction(1, MovingAverage())
    reports = [
        estimator_report(model, guide, batch, [rebar, moving], 20, num_warmup=10, seed=seed)
        for seed in (3, 3, 4)
    ]
    variances = [[row.total_variance for row in report.rows] for report in reports]
    assert variances[0] == variances[1] != variances[2]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    # The estimators given are copied before they are tuned.
    assert rebar.eta.item() == 1.0 and all(p.grad is None for p in rebar.parameters())
    assert not any(buffer.any() for buffer in moving.buffers())


@pytest.mark.slow
def test_warming_up_tunes_what_an_estimator_learns():
    model, guide, batch = problem(width=5)
    estimators = {"tuned": REBAR(eta=-2.0)}
    cold = estimator_report(model, guide, batch, estimators, 150, num_warmup=0)
    warm = estimator_report(model, guide, batch, estimators, 150, num_warmup=300)
    assert warm.rows[0].total_variance < 0.7 * cold.rows[0].total_variance


def test_real_valued_sites_and_other_guides_are_allowed():
    x, y = torch.randn(9, 3), torch.randn(9)
    model = Regressor(BinaryLinear(3, 1, bias=False), dataset_size=9)
    report = estimator_report(model, AutoSignBernoulli(model), {"x": x, "y": y}, [DisARM()], 20)
    assert report.num_weights == 3
    shared = nn.Parameter(torch.tensor(0.2))

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("weight", SignBernoulli(natural=shared.expand(1, 3)).to_event(2))
        pyro.sample("noise", dist.LogNormal(torch.tensor(0.0), torch.tensor(0.1)))

    assert estimator_report(model, guide, (x, y), [DisARM()], 20).num_weights == 3


def test_it_prints_a_table_and_goes_into_json():
    model, guide, batch = problem()
    report = estimator_report(model, guide, batch, [DisARM(), StraightThrough()], 20)
    first, head, *rows = str(report).splitlines()
    assert "6 weights, 20 gradients each" in first and "variance" in head
    assert len({len(line) for line in (head, *rows)}) == 1
    saved = json.loads(json.dumps(report.to_dict()))
    assert [row["unbiased"] for row in saved["rows"]] == [True, False]


def test_bad_arguments_are_named():
    model, guide, batch = problem()
    with pytest.raises(ValueError, match="num_replicates to be a whole number of at least 20"):
        estimator_report(model, guide, batch, [DisARM()], 5)
    with pytest.raises(ValueError, match=r"got none"):
        estimator_report(model, guide, batch, [])
    with pytest.raises(ValueError, match=r"a name each; got DisARM\(num_pairs=1\), DisARM"):
        estimator_report(model, guide, batch, [DisARM(), DisARM()])
    with pytest.raises(ValueError, match="instances such as DisARM"):
        estimator_report(model, guide, batch, {"x": DisARM})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="takes at most 2 weights"):
        estimator_report(model, guide, batch, [LocalExpectation(max_weights=2)], 20)


def test_a_guide_without_signs_is_refused():
    def model() -> None:
        pyro.sample(
            "y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.ones(())
        )

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="no SignBernoulli site"):
        estimator_report(model, guide, (), [DisARM()], 20)


# The statistics by themselves


def test_statistics_of_known_gradients():
    generator = torch.Generator().manual_seed(2)
    truth = torch.tensor([1.0, -2.0, 0.5])
    shift = torch.tensor([0.3, 0.0, -0.4])  # a bias of norm 0.5
    reference, seen = Reference(exact=True), None
    reference.add(truth)
    seen = GradientStatistics(reference)
    draws = (
        truth + shift + torch.randn(4000, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    )
    for gradient in draws:
        seen.add(gradient)
    bias, error = seen.bias()
    assert seen.total_variance() == pytest.approx(draws.var(0).sum().item())
    assert abs(bias - 0.5) < 4 * error and 0 < error < 0.2
    assert seen.cosine() == pytest.approx(torch.cosine_similarity(draws, truth[None]).mean().item())


def test_the_error_of_the_bias_is_that_of_repetition():
    generator = torch.Generator().manual_seed(3)
    shift = torch.tensor([1.0, 0.0])
    norms, errors = [], []
    for _ in range(120):
        reference = Reference()
        for _ in range(60):
            reference.add(torch.randn(2, generator=generator))
        seen = GradientStatistics(reference)
        for _ in range(60):
            seen.add(shift + torch.randn(2, generator=generator))
        norm, error = seen.bias()
        norms.append(norm)
        errors.append(error)
    spread = torch.tensor(norms).std().item()
    assert torch.tensor(norms).mean().item() == pytest.approx(1.0, abs=0.08)
    assert torch.tensor(errors).mean().item() == pytest.approx(spread, rel=0.3)


def test_groups_need_not_be_of_one_size():
    reference = Reference()
    gradients = torch.randn(GROUPS + 7, 4, generator=torch.Generator().manual_seed(4))
    for gradient in gradients:
        reference.add(gradient)
    torch.testing.assert_close(reference.mean(), gradients.mean(0))
    assert reference.variance_of_mean() == pytest.approx(
        (gradients.var(0).sum() / len(gradients)).item()
    )
    kept = torch.cat([gradients[1:GROUPS], gradients[GROUPS + 1 :]])
    torch.testing.assert_close(reference.without_each_group()[0], kept.mean(0))


def test_every_exported_estimator_can_be_reported():
    import bayesbin.estimators as package

    model, guide, batch = problem()
    classes = [getattr(package, name) for name in package.__all__]
    instances = [
        c()
        for c in classes
        if isinstance(c, type) and issubclass(c, Estimator) and c is not Estimator
    ]
    report = estimator_report(model, guide, batch, instances, 20, num_warmup=3)
    assert len(report.rows) == len(instances) >= 13
