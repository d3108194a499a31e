"""``fit`` compares its number of data with the one that a model scales its likelihood to."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit

N, B = 40, 10


def weights() -> torch.Tensor:
    return pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))


def normal(name: str, x: Any, y: Any, w: Any) -> None:
    pyro.sample(name, dist.Normal(x @ w, 1.0), obs=y)


def one_plate(x, y):
    w = weights()
    with pyro.plate("data", N, subsample_size=len(x)):
        normal("y", x, y, w)


def sequential(x, y):
    w = weights()
    for n in pyro.plate("data", N, subsample_size=len(x)):
        normal(f"y{n}", x[n % B], y[n % B], w)


def crossed(x, y):
    w = weights()
    with pyro.plate("targets", 2, dim=-2), pyro.plate("data", N, subsample_size=len(x), dim=-1):
        normal("y", x, torch.stack([y, y]), w)


def two_plates(x, y):
    w = weights()
    with pyro.plate("first", 30, subsample_size=5):
        normal("y", x[:5], y[:5], w)
    with pyro.plate("second", 10, subsample_size=5):
        normal("z", x[5:], y[5:], w)


def scaled(x, y):
    w = weights()
    with poutine.scale(scale=N / len(x)):
        normal("y", x, y, w)


def scaled_event(x, y):
    w = weights()
    with poutine.scale(scale=N / len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)


def whole(x, y):
    normal("y", x, y, weights())


def tempered(x, y):
    with poutine.scale(scale=0.5):
        one_plate(x, y)


def weighted(x, y):
    w = weights()
    with pyro.plate("data", N, subsample_size=len(x)):
        with poutine.scale(scale=torch.linspace(0.1, 2.0, len(x))):
            normal("y", x, y, w)


def with_a_latent_observed(x, y):
    pyro.sample("noise", dist.LogNormal(0.0, 1.0), obs=torch.ones(()))
    one_plate(x, y)


@pytest.mark.parametrize(
    ("model", "right", "wrong", "says"),
    [
        (one_plate, [N], [4000, B], "40 in the plate 'data'"),
        (sequential, [N], [4000, B], "40 in the plate 'data'"),
        (crossed, [N, 2 * N], [4000, B], "2 in the plate 'targets', 40 in the plate 'data'"),
        (two_plates, [N], [4000], "30 in the plate 'first', 10 in the plate 'second'"),
        (scaled, [N], [4000, B], "40 by the rows of its observed sites"),
        (scaled_event, [N], [4000, B], "40 by the rows of its observed sites"),
        (whole, [B], [4000, N], "10 by the rows of its observed sites"),
        (tempered, [N], [4000, B], "40 in the plate 'data'"),
        (weighted, [N], [4000, B], "40 in the plate 'data'"),
        (with_a_latent_observed, [N], [4000, B], "40 in the plate 'data'"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_contradicting_numbers_of_data_are_refused(model, right, wrong, says):
    batch = torch.randn(B, 3), torch.randn(B)

    def trained(size):
        guide = AutoSignBernoulli(model, args=batch)
        found = fit(
            model, guide, [batch], epochs=1, dataset_size=size, estimator=StraightThrough(), progress=False
        )  # fmt: skip
        return found.epochs

    for size in right:
        assert trained(size) == 1
    for size in wrong:
        with pytest.raises(ValueError, match=rf"{says}; got {size}\."):
            trained(size)
