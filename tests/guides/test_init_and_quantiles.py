"""Conventions of Pyro's automatic guides: init_loc_fn, median, quantiles, call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from torch import Tensor
from torch.distributions import constraints

from bayesbin.distributions import LowBitCategorical, SignBernoulli, Support
from bayesbin.guides import (
    AutoLowBit,
    AutoNestedSignBernoulli,
    AutoRelaxedSignBernoulli,
    AutoSignBernoulli,
    AutoSignDelta,
)
from bayesbin.posterior import RealPosterior

SIGNS = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)


def random_effects(model: Any, **options: Any) -> Any:
    return AutoNestedSignBernoulli(model, ("filter", "weight"), "random-effects", **options)


GUIDES: dict[str, Callable[..., Any]] = {
    "mean field": AutoSignBernoulli,
    "nested": AutoNestedSignBernoulli,
    "random effects": random_effects,
    "levels": AutoLowBit,
    "points": AutoSignDelta,
    "relaxed": AutoRelaxedSignBernoulli,
}
every_guide = pytest.mark.parametrize("make", GUIDES.values(), ids=list(GUIDES))


def model() -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2, 3)).to_event(2))
    scale = pyro.sample("scale", dist.LogNormal(0.5, 1.0))
    share = pyro.sample("share", dist.Uniform(-1.0, 3.0))
    bias = pyro.sample("bias", dist.Normal(torch.tensor([0.5, -1.0]), 1.0).to_event(1))
    pyro.factor("data", w.sum() * scale + share + bias.sum())


def locations(guide: Any) -> dict[str, Tensor]:
    return {
        name: value for name, value in guide.median().items() if name in ("scale", "share", "bias")
    }


VALUES = {"scale": torch.tensor(2.5), "share": torch.tensor(1.5), "bias": torch.tensor([3.0, 4.0])}


@every_guide
@pytest.mark.parametrize("way", ["value", "generated", "a function"])
def test_values_are_the_start_of_real_sites_and_signs(make: Any, way: str) -> None:
    values = {**VALUES, "w": SIGNS}
    start: Any = init_to_value(values=values)
    if way == "generated":
        start = init_to_generated(generate=lambda: init_to_value(values=values))
    elif way == "a function":
        start = lambda site: values[site["name"]]

    guide = make(model, init_loc_fn=start, init_scale=0.7)
    found = locations(guide)
    for name, value in VALUES.items():
        torch.testing.assert_close(found[name], value)
    assert torch.equal(guide.median()["w"], SIGNS)
    if make in (AutoSignBernoulli, AutoNestedSignBernoulli):
        torch.testing.assert_close(guide.posterior()["w"].natural, 0.7 * SIGNS)


@every_guide
def test_the_other_functions_start_real_sites_alone(make: Any) -> None:
    expected: dict[Any, dict[str, Tensor]] = {
        init_to_mean: {
            "scale": torch.tensor(1.0).exp(),  # exp(.5 + 1 / 2)
            "share": torch.tensor(1.0),
            "bias": torch.tensor([0.5, -1.0]),
        },
        init_to_feasible: {
            "scale": torch.tensor(1.0),
            "share": torch.tensor(1.0),
            "bias": torch.zeros(2),
        },
    }
    for function, values in expected.items():
        found = locations(make(model, init_loc_fn=function))
        for name, value in values.items():
            torch.testing.assert_close(found[name], value)
    for function in (init_to_sample, init_to_median, init_to_uniform(radius=0.1)):
        guide = make(model, init_loc_fn=function)
        natural = guide.natural_of("w").detach()
        assert len(natural.flatten().unique()) > 2  # drawn, not those of a draw of the prior
        assert locations(guide)["scale"] > 0


def test_starts_that_do_not_fit() -> None:
    for value, message in (
        (torch.tensor([1.0, 2.0]), r"'scale' a tensor of shape \(\), got \(2,\)"),
        (torch.tensor(-1.0), r"'scale' values in"),
        (3.0, r"'scale' a tensor of shape \(\), got 3.0"),
    ):
        values = {**VALUES, "scale": value}
        with pytest.raises(ValueError, match=message):
            AutoSignBernoulli(model, init_loc_fn=init_to_value(values=values))
    with pytest.raises(ValueError, match=r"'w' a tensor of shape \(2, 3\), got \(3,\)"):
        AutoSignBernoulli(model, init_loc_fn=init_to_value(values={"w": torch.ones(3)}))


@every_guide
def test_quantiles_are_those_of_draws(make: Any) -> None:
    """P(x <= quantile) is at least q, and P(x < quantile) at most q, over draws of the guide."""
    guide = make(model, init_scale=0.5, real_scale=0.4)
    at, count = [0.1, 0.5, 0.8], 300
    quantiles = guide.quantiles(at)
    with torch.no_grad():
        draws = [guide() for _ in range(count)]
    for name in ("w", "scale", "share", "bias"):
        if name == "w" and make is AutoRelaxedSignBernoulli:
            continue  # its posterior is that of signs, its draws are relaxed
        values = torch.stack([draw[name] for draw in draws])
        assert quantiles[name].shape == (3, *values.shape[1:])
        for q, row in zip(at, quantiles[name], strict=True):
            error = 5 * (q * (1 - q) / count) ** 0.5
            assert bool(((values <= row + 1e-9).double().mean(0) >= q - error).all())
            assert bool(((values < row - 1e-9).double().mean(0) <= q + error).all())
    one = guide.quantiles(0.5)
    assert all(torch.equal(one[name], quantiles[name][1]) for name in one)
    for name in ("scale", "share", "bias"):
        torch.testing.assert_close(one[name], guide.median()[name])
    with pytest.raises(ValueError, match="quantiles"):
        guide.quantiles([0.5, 1.5])


def test_quantiles_of_signs_and_levels() -> None:
    signs = SignBernoulli(probs=torch.tensor([0.3, 0.3, 0.3, 0.9]))
    assert signs.icdf(torch.tensor([0.0, 0.7, 0.71, 0.2])).tolist() == [-1, -1, 1, 1]
    levels = LowBitCategorical((-1, 0, 2), torch.tensor([0.2, 0.3, 0.5]).log().expand(4, 3))
    assert levels.icdf(torch.tensor([0.1, 0.4, 0.6, 1.0])).tolist() == [-1, 0, 2, 2]


@pytest.mark.parametrize(
    "constraint", [constraints.less_than(2.0), constraints.greater_than(1.0), constraints.real]
)
def test_quantiles_increase_whatever_the_transform(constraint: Any) -> None:
    site = RealPosterior(torch.tensor(0.3), torch.tensor(0.5), Support.of(constraint, "x"))
    low, high = site.icdf(torch.tensor(0.1)), site.icdf(torch.tensor(0.9))
    assert low < high
    draws = site.distribution().sample((4000,))
    assert abs((draws <= low).double().mean() - 0.1) < 0.025


@every_guide
def test_call_gives_a_tuple(make: Any) -> None:
    guide = make(model)
    drawn = guide.call()
    assert [tuple(value.shape) for value in drawn[:3]] == [(2,), (), ()]
