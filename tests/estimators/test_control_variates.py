"""REBAR and RELAX: the noise behind a sign, the coupled control variate, and what tuning learns."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn
from torch.nn.functional import softplus

from bayesbin.core import numerics
from bayesbin.estimators import REBAR, RELAX, Estimator, ScoreFunction
from bayesbin.estimators.control_variate import coupling_gap

NATURAL = torch.tensor([0.0, 0.4, -0.7, 1.0], dtype=torch.float64)
MAP = torch.tensor([0.9, -0.6, 0.5, 0.8], dtype=torch.float64)


def curved(values: dict[str, list[Tensor]]) -> Tensor:
    return torch.exp(0.6 * torch.stack(list(values["w"])) @ MAP)


def hard(values: dict[str, list[Tensor]]) -> Tensor:
    return (torch.stack(list(values["w"])).detach() @ MAP > 0.3).double()


def leaf(natural: Tensor = NATURAL) -> dict[str, Tensor]:
    return {"w": natural.clone().requires_grad_()}


def call(estimator: Estimator, objective: Callable[..., Tensor], seed: int) -> tuple[Tensor, ...]:
    """The value, the gradient in lambda and those in the estimator's parameters, at one seed."""
    natural = leaf()
    torch.manual_seed(seed)
    surrogate = estimator(objective, natural)
    learned = [p for p in estimator.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(surrogate, [natural["w"], *learned], materialize_grads=True)
    return surrogate.detach(), *slopes


def gradients(estimator: Estimator, objective: Callable[..., Tensor], count: int) -> Tensor:
    natural = leaf()
    return torch.stack(
        [torch.autograd.grad(estimator(objective, natural), natural["w"])[0] for _ in range(count)]
    )


# The noise behind a sign


def conditional_noise(natural: Tensor, signs: Tensor, uniform: Tensor) -> Tensor:
    """z = lambda + delta given its sign w: (w/2) log(1 + exp(logit v + log(1 + exp(2 w lambda))))."""
    zero = torch.zeros(())
    inner = torch.logaddexp(2.0 * signs * natural, zero)
    return 0.5 * signs * torch.logaddexp(torch.logit(uniform) + inner, zero)


@pytest.mark.parametrize("natural", [0.0, 0.4, -1.1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_conditional_noise_has_the_distribution_of_the_noise_that_gives_the_sign(natural, sign):
    count = 20_000
    lam = torch.full((count,), natural)
    noise = conditional_noise(lam, torch.full((count,), sign), torch.rand(count))
    drawn = natural + 0.5 * torch.logit(torch.rand(20 * count))
    kept = drawn[drawn.sign() == sign][:count]
    for power in (1, 2, 3):
        both = torch.stack([noise[: len(kept)], kept]) ** power
        assert_within_standard_errors(both[0] - both[1], 0.0)
    # The distribution function of a logistic, cut off at 0, makes the draws uniform.
    at_zero, at = torch.sigmoid(torch.tensor(-2.0 * natural)), torch.sigmoid(2 * (noise - natural))
    uniform = (at - at_zero) / (1 - at_zero) if sign > 0 else at / at_zero
    steps = torch.arange(1, count + 1) / count
    distance = (uniform.sort().values - steps).abs().max()
    assert distance < 3.0 / count**0.5  # Kolmogorov: 2 exp(-2 * 9), 3e-8
    # The other sign's noise would not pass.
    assert exceeds_standard_errors(-noise[: len(kept)] - kept, 0.0)


def test_the_coupling_gap_is_one_less_the_slope_of_the_noise_in_lambda():
    natural = torch.tensor([0.0, 0.5, -1.2, 3.0, -8.5, 20.0]).repeat(40).requires_grad_()
    signs = torch.randint(0, 2, natural.shape) * 2.0 - 1.0
    uniform = torch.rand(natural.shape)
    noise = conditional_noise(natural, signs, uniform)
    (slope,) = torch.autograd.grad(noise.sum(), natural)
    gap = coupling_gap(natural, noise.detach())
    torch.testing.assert_close(gap, 1.0 - slope, rtol=0, atol=1e-14)
    # 1 - slope has lost its digits where the sign is the likely one and lambda saturated.
    lam = torch.tensor([40.0], dtype=torch.float32)
    assert 0 < coupling_gap(lam, torch.tensor([40.0], dtype=torch.float32)).item() < 1e-30


# Identities at one seed


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_without_its_control_variate_rebar_is_the_score_function(temperature):
    estimator = REBAR(temperature, eta=0.0, tune=False)
    for seed in range(5):
        value, slope = call(estimator, curved, seed)
        plain_value, plain_slope = call(ScoreFunction(1, baseline=None), curved, seed)
        assert torch.equal(value, plain_value)
        torch.testing.assert_close(slope, plain_slope, rtol=1e-12, atol=1e-14)


def rebar_by_hand(natural: Tensor, seed: int, temperature: float, eta: float) -> Tensor:
    """g from a relaxed draw and its coupled twin, differentiated by autograd."""
    torch.manual_seed(seed)
    uniform = torch.rand(natural.shape)
    lam = natural.clone().requires_grad_()
    z = lam + 0.5 * torch.logit(uniform)
    w = z.detach().sign()
    # The noise v that makes the conditional draw the very z.
    v = (torch.expm1(2.0 * z.abs()).log() - softplus(2.0 * w * lam)).detach()
    coupled = 0.5 * w * softplus(v + softplus(2.0 * w * lam))
    torch.testing.assert_close(coupled, z)

    def at(noise: Tensor) -> Tensor:
        return curved({"w": [torch.tanh(noise / temperature)]})[0]

    (difference,) = torch.autograd.grad(at(z) - at(coupled), lam)
    rest = (curved({"w": [w]})[0] - eta * at(z)).detach()
    return rest * (w - torch.tanh(natural)) + eta * difference


@pytest.mark.parametrize(("temperature", "eta"), [(0.3, 1.0), (0.5, 0.4), (1.5, -0.7)])
def test_rebar_is_the_published_estimator_at_a_coupled_draw(temperature, eta):
    for seed in range(5):
        _, slope = call(REBAR(temperature, eta, tune=False), curved, seed)
        torch.testing.assert_close(slope, rebar_by_hand(NATURAL, seed, temperature, eta))


def test_relax_starts_as_rebar():
    for seed in range(5):
        for tune in (True, False):
            relax, rebar = RELAX(num_samples=2, tune=tune), REBAR(num_samples=2, tune=tune)
            for got, expected in zip(
                call(relax, curved, seed)[:2], call(rebar, curved, seed)[:2], strict=True
            ):
                torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("build", [REBAR, RELAX])
def test_tuning_is_no_part_of_the_gradient_in_lambda(build):
    for seed in range(5):
        tuned, fixed = (
            call(build(num_samples=2, tune=tune), curved, seed) for tune in (True, False)
        )
        for got, expected in zip(tuned[:2], fixed, strict=True):
            torch.testing.assert_close(got, expected)


def test_a_temperature_may_be_given_to_both():
    torch.testing.assert_close(
        call(RELAX(temperature=1.3), curved, 0)[1], call(REBAR(1.3), curved, 0)[1]
    )
    assert REBAR(1.3).temperature == pytest.approx(1.3)


# Tuning


@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_gradient_left_in_the_parameters_lowers_the_log_of_the_squared_norm(num_samples):
    def log_size(seed: int, temperature: float, eta: float) -> float:
        """log of the sum over the draws of |g|^2, at the same noise."""
        torch.manual_seed(seed)
        uniform = torch.stack([torch.rand(4) for _ in range(num_samples)])
        total = 0.0
        for u in uniform:
            z = NATURAL + 0.5 * torch.logit(u)
            w = z.sign()
            s = torch.tanh(z / temperature).requires_grad_()
            c = curved({"w": [s]})[0]
            (slope,) = torch.autograd.grad(c, s)
            steep = (1 - s.detach() ** 2) / temperature
            rest = curved({"w": [w]})[0] - eta * c.detach()
            g = rest * (w - torch.tanh(NATURAL)) + eta * slope * steep * coupling_gap(NATURAL, z)
            total += g.square().sum().item()
        return math.log(total)

    h = 1e-5
    for seed in range(4):
        estimator = REBAR(temperature=0.7, eta=0.6, num_samples=num_samples)
        names = [name for name, _ in estimator.named_parameters()]
        slopes = dict(zip(names, call(estimator, curved, seed)[2:], strict=True))
        expected = {
            "log_temperature": log_size(seed, 0.7 * math.exp(h), 0.6)
            - log_size(seed, 0.7 * math.exp(-h), 0.6),
            "eta": log_size(seed, 0.7, 0.6 + h) - log_size(seed, 0.7, 0.6 - h),
        }
        for name, difference in expected.items():
            # The surrogate is maximised.
            assert slopes[name].item() == pytest.approx(-difference / (2 * h), rel=1e-6, abs=1e-8)


def tuned(estimator: Estimator, objective: Callable[..., Tensor], steps: int) -> Estimator:
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (-estimator(objective, leaf())).backward()
        optimizer.step()
    return estimator


def spread(estimator: Estimator, objective: Callable[..., Tensor], count: int = 400) -> float:
    estimator.eval()
    return gradients(estimator, objective, count).var(0).sum().item()


@pytest.mark.parametrize(("temperature", "eta"), [(2.0, 0.0), (0.1, 1.0)])
def test_tuning_from_a_bad_start_lowers_the_variance(temperature, eta):
    learned = tuned(REBAR(temperature, eta), curved, 400)
    after = spread(learned, curved)
    assert after < 0.7 * spread(REBAR(temperature, eta, tune=False), curved)
    assert after < 0.7 * spread(REBAR(eta=0.0, tune=False), curved)
    exact = oracles.gradient(lambda w: curved({"w": [w]})[0], NATURAL)
    assert_within_standard_errors(gradients(learned, curved, 400), exact)


def test_tuning_from_the_usual_start_does_not_raise_the_variance():
    learned = tuned(REBAR(), curved, 300)
    assert spread(learned, curved) < 1.3 * spread(REBAR(tune=False), curved)


class Network(nn.Module):
    """A control variate of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, relaxed: dict[str, Tensor]) -> Tensor:
        return self.layers(relaxed["w"]).squeeze(-1)


def test_relax_learns_a_control_variate_for_an_objective_without_a_slope():
    learned = tuned(RELAX(Network(), temperature=0.7), hard, 400)
    slopes = gradients(learned.eval(), hard, 400)
    exact = oracles.gradient(lambda w: hard({"w": [w]})[0], NATURAL)
    assert_within_standard_errors(slopes, exact)
    assert exceeds_standard_errors(slopes, -exact)
    assert slopes.var(0).sum() < 0.8 * spread(ScoreFunction(1, baseline=None), hard)


def test_tuned_relax_beats_rebar_on_an_objective_far_from_zero():
    def shifted(values: dict[str, list[Tensor]]) -> Tensor:
        return 5.0 + torch.sin(2.0 * torch.stack(list(values["w"])) @ MAP)

    learned = tuned(RELAX(), shifted, 300)
    assert spread(learned, shifted) < spread(RELAX(tune=False), shifted)
    exact = oracles.gradient(lambda w: shifted({"w": [w]})[0], NATURAL)
    assert_within_standard_errors(gradients(learned, shifted, 400), exact)


@pytest.mark.parametrize("build", [REBAR, RELAX, lambda: RELAX(Network())])
def test_tuning_reaches_the_objectives_parameters_only_through_its_value_at_signs(build):
    scale = torch.tensor(1.3, requires_grad=True)
    seen = []

    def objective(values):
        results = scale * curved(values)
        if not seen:
            seen.append(results.detach() / scale.detach())
        return results

    torch.manual_seed(1)
    surrogate = build()(objective, leaf())
    (slope,) = torch.autograd.grad(surrogate, scale)
    torch.testing.assert_close(slope, seen[0].mean())


@pytest.mark.parametrize("build", [REBAR, RELAX])
def test_nothing_is_learned_where_nothing_is_to_be_tuned(build):
    estimator = build(tune=False)
    estimator(curved, leaf()).backward()
    assert all(not p.requires_grad and p.grad is None for p in estimator.parameters())
    estimator = build()
    estimator(curved, leaf()).backward()
    assert all(p.grad is not None for p in estimator.parameters())


@pytest.mark.parametrize("build", [REBAR, RELAX, lambda: RELAX(Network())])
def test_without_gradients_it_is_the_mean_of_the_objective(build):
    evaluated = []

    def objective(values):
        evaluated.append(curved(values))
        return evaluated[-1]

    with torch.no_grad():
        value = build()(objective, leaf())
    assert len(evaluated) == 1 and not value.requires_grad
    torch.testing.assert_close(value, evaluated[0].mean())


def test_frozen_natural_parameters_do_not_stop_the_tuning():
    estimator = REBAR()
    estimator(curved, {"w": NATURAL.clone()}).backward()
    assert estimator.eta.grad is not None and estimator.log_temperature.grad is not None


def test_relax_follows_the_objective_in_training_only():
    estimator = RELAX()
    estimator.eval()
    estimator(curved, leaf())
    assert not estimator.default.moments.started
    estimator.train()
    estimator(curved, leaf())
    assert estimator.default.moments.started
    again = RELAX()
    again.load_state_dict(estimator.state_dict())
    for got, expected in zip(
        call(again.eval(), curved, 3), call(estimator.eval(), curved, 3), strict=True
    ):
        assert torch.equal(got, expected)


# Errors and names


@pytest.mark.parametrize("build", [REBAR, RELAX])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_the_temperature_is_positive(build, temperature):
    with pytest.raises(ValueError, match=r"temperature to be a .*number above 0; got"):
        build(temperature=temperature)


@pytest.mark.parametrize("eta", [math.inf, math.nan])
def test_eta_is_finite(eta):
    with pytest.raises(ValueError, match="eta to be a finite number"):
        REBAR(eta=eta)


def test_a_control_variate_is_a_module_with_one_number_per_draw():
    with pytest.raises(ValueError, match="control_variate is a torch module"):
        RELAX(lambda relaxed: relaxed["w"].sum(1))

    class PerWeight(nn.Module):
        def forward(self, relaxed):
            return relaxed["w"]

    with pytest.raises(ValueError, match=r"one number per draw, shape \(2,\); got \(2, 4\)"):
        RELAX(PerWeight(), num_samples=2)(curved, leaf())

    class Number(nn.Module):
        def forward(self, relaxed):
            return 1.0

    with pytest.raises(ValueError, match=r"one number per draw.*got float"):
        RELAX(Number())(curved, leaf())


def test_it_prints_how_it_was_set_up_on_one_line():
    estimator = tuned(REBAR(0.3, eta=0.5, num_samples=2), curved, 2)
    assert repr(estimator) == "REBAR(eta=0.5, temperature=0.3, num_samples=2, tune=True)"
    assert repr(RELAX(tune=False)) == "RELAX(temperature=0.5, num_samples=1, tune=False)"
    assert repr(RELAX(Network())).startswith("RELAX(Network(...), temperature=0.5")


def test_low_precision():
    natural = {"w": NATURAL.bfloat16().requires_grad_()}
    objective = lambda values: torch.stack([w.exp().sum() for w in values["w"]])
    for build in (REBAR, RELAX):
        surrogate = build()(objective, natural)
        slope = torch.autograd.grad(surrogate, natural["w"])[0]
        assert surrogate.dtype == slope.dtype == torch.bfloat16
        assert bool(torch.isfinite(slope).all())


def test_the_relaxed_draw_lies_on_the_side_of_its_sign_where_lambda_saturates():
    natural = {"w": torch.tensor([40.0, -40.0, 8.5, -8.5], requires_grad=True)}
    seen = []

    def objective(values):
        seen.append(torch.stack(list(values["w"])).detach())
        return curved(values)

    REBAR(num_samples=50)(objective, natural)
    signs, relaxed = seen
    assert torch.equal(signs, numerics.sign_of(relaxed))
