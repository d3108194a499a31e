"""Guides over latents per datum: minibatches against sums over all states of local and global signs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import bayesbin.guides.base
from bayesbin.arviz import to_inference_data
from bayesbin.distributions import SignBernoulli
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import Concrete, Enumerate
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, to_binary_
from bayesbin.posterior import BinaryPosterior

Batch = dict[str, Tensor]  # plate -> the rows of a call
EXACT = 1e-8  # a standard deviation at which an average over a Normal is its value at the location


def log_prob(signs: Tensor, natural: Any) -> Tensor:
    """log of 1 / (1 + exp(-2 lambda w)), written out."""
    return -torch.log1p(torch.exp(-2.0 * natural * signs))


def normal(y: Tensor, mean: Tensor, std: float = 0.7) -> Tensor:
    return -0.5 * ((y - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2.0 * math.pi)


def kl_to_standard_normal(loc: Tensor, std: float) -> Tensor:
    return (0.5 * (std**2 + loc**2 - 1.0) - math.log(std)).sum()


@dataclass(frozen=True)
class Arrangement:
    """A model with latents per datum, and its log joint written out for one state of all its signs.

    :param model: takes the rows of each plate by name; None leaves the choice to a plate of ``counts`` rows.
    :param sizes: of the plates. :param counts: rows of a minibatch.
    :param log_joint: of the signs by site, and of the locations of real-valued sites.
    """

    model: Callable[..., Any]
    sizes: dict[str, int]
    counts: dict[str, int]
    log_joint: Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


GENERATOR = torch.Generator().manual_seed(5)
Y = torch.randn(4, generator=GENERATOR)
SQUARE = torch.randn(2, 2, generator=GENERATOR)
KEPT = torch.tensor([True, False, True, True])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.3])


def plate(name, size, rows, count, dim=None):
    if rows is None:
        return pyro.plate(name, size, subsample_size=count, dim=dim)
    return pyro.plate(name, size, subsample=rows, dim=dim)


def one_plate(data=None, count=2):
    """A local sign whose prior depends on a global one."""
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.3, -0.2])).to_event(1))
    with plate("data", 4, data, count) as rows:
        z = pyro.sample("z", SignBernoulli(natural=0.4 * w[0] + 0.1))
        pyro.sample("y", dist.Normal(z * w[1] + 0.3 * w[0], 0.7), obs=Y[rows])


def one_plate_log_joint(s, real):
    w, z = s["w"], s["z"]
    prior = log_prob(w, torch.tensor([0.3, -0.2])).sum() + log_prob(z, 0.4 * w[0] + 0.1).sum()
    return prior + normal(Y, z * w[1] + 0.3 * w[0]).sum()


def masked_and_weighted(data=None, count=2):
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.3)))
    with plate("data", 4, data, count) as rows:
        with poutine.scale(scale=WEIGHTS[rows]), poutine.mask(mask=KEPT[rows]):  # pyright: ignore[reportArgumentType]
            z = pyro.sample("z", SignBernoulli(natural=0.4 * w))
            pyro.sample("y", dist.Normal(z + 0.5 * w, 0.7), obs=Y[rows])


def masked_and_weighted_log_joint(s, real):
    # A row that is masked, or of weight 0, has neither a prior nor an entropy: see `entropy_weights`.
    w, z = s["w"], s["z"]
    each = log_prob(z, 0.4 * w) + normal(Y, z + 0.5 * w)
    return log_prob(w, 0.3) + (KEPT * WEIGHTS * each).sum()


def crossed(rows=None, columns=None, count=1):
    """A sign for each row and each column, and one for each cell."""
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.2)))
    along = plate("rows", 2, rows, count, dim=-2)
    across = plate("columns", 2, columns, 1, dim=-1)
    with along as i:
        u = pyro.sample("u", SignBernoulli(natural=0.3 * w))
    with across as j:
        v = pyro.sample("v", SignBernoulli(natural=torch.tensor(-0.1)))
    with along, across:
        s = pyro.sample("s", SignBernoulli(natural=0.5 * u))
        pyro.sample("y", dist.Normal(u + 0.5 * v * s + 0.2 * w, 0.7), obs=SQUARE[i][:, j])


def crossed_log_joint(g, real):
    w, u, v, s = g["w"], g["u"], g["v"], g["s"]
    prior = log_prob(w, 0.2) + log_prob(u, 0.3 * w).sum() + log_prob(v, -0.1).sum()
    return prior + log_prob(s, 0.5 * u).sum() + normal(SQUARE, u + 0.5 * v * s + 0.2 * w).sum()


def inside(groups=None, items=None, count=1):
    """A plate inside a plate, with a vector of two signs for each item."""
    with plate("groups", 2, groups, 1, dim=-1) as g:
        u = pyro.sample("u", SignBernoulli(natural=torch.tensor(0.2)))
        with plate("items", 2, items, count, dim=-2) as i:
            s = pyro.sample("s", SignBernoulli(natural=torch.tensor([0.1, -0.4])).to_event(1))
            mean = u + 0.5 * s[..., 0] * s[..., 1] + 0.2 * s[..., 1]
            pyro.sample("y", dist.Normal(mean, 0.7), obs=SQUARE[i][:, g])


def inside_log_joint(g, real):
    u, s = g["u"], g["s"]
    prior = log_prob(u, 0.2).sum() + log_prob(s, torch.tensor([0.1, -0.4])).sum()
    mean = u + 0.5 * s[..., 0] * s[..., 1] + 0.2 * s[..., 1]
    return prior + normal(SQUARE, mean).sum()


def in_a_loop(data=None, count=1):
    """Two groups in a loop, each with a sign of its own, around a plate of data."""
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.2)))
    within = plate("data", 2, data, count)
    for g in pyro.plate("groups", 2):
        u = pyro.sample(f"u{g}", SignBernoulli(natural=0.3 * w))
        with within as rows:
            z = pyro.sample(f"z{g}", SignBernoulli(natural=0.2 * u))
            pyro.sample(f"y{g}", dist.Normal(z + 0.5 * u, 0.7), obs=SQUARE[:, int(g)][rows])


def in_a_loop_log_joint(s, real):
    total = log_prob(s["w"], 0.2)
    for g in range(2):
        u, z = s[f"u{g}"], s[f"z{g}"]
        total = total + log_prob(u, 0.3 * s["w"]) + log_prob(z, 0.2 * u).sum()
        total = total + normal(SQUARE[:, g], z + 0.5 * u).sum()
    return total


def real_and_signs(data=None, count=2):
    """Local vectors of two numbers beside local and global signs, and a global number."""
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.2)))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with plate("data", 4, data, count) as rows:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z = pyro.sample("z", SignBernoulli(natural=a[..., 0]))
        pyro.sample("y", dist.Normal(z * a[..., 1] + w * shift, 0.7), obs=Y[rows])


def real_and_signs_log_joint(s, real):
    a, z = real["a"], s["z"]
    prior = log_prob(s["w"], 0.2) + log_prob(z, a[..., 0]).sum()
    return prior + normal(Y, z * a[..., 1] + s["w"] * real["shift"]).sum()


ARRANGEMENTS = {
    "one plate": Arrangement(one_plate, {"data": 4}, {"data": 2}, one_plate_log_joint),
    "masked and weighted": Arrangement(
        masked_and_weighted, {"data": 4}, {"data": 2}, masked_and_weighted_log_joint
    ),
    "crossed": Arrangement(
        crossed, {"rows": 2, "columns": 2}, {"rows": 1, "columns": 1}, crossed_log_joint
    ),
    "one inside another": Arrangement(
        inside, {"groups": 2, "items": 2}, {"groups": 1, "items": 1}, inside_log_joint
    ),
    "in a loop": Arrangement(in_a_loop, {"data": 2}, {"data": 1}, in_a_loop_log_joint),
    "real and signs": Arrangement(
        real_and_signs, {"data": 4}, {"data": 2}, real_and_signs_log_joint
    ),
}
each_arrangement = pytest.mark.parametrize(
    "arrangement", ARRANGEMENTS.values(), ids=list(ARRANGEMENTS)
)


def entropy_weights(arrangement: Arrangement, name: str) -> Any:
    masked = arrangement.model is masked_and_weighted and name == "z"
    return KEPT * WEIGHTS if masked else 1.0


def exact(arrangement: Arrangement, guide: Any) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient over all the data, by a sum over all states of all signs."""
    natural = {n: guide.natural_of(n) for n, s in guide.sites.items() if s.is_binary}
    locations: dict[str, Tensor] = {
        n: guide._parameter("loc", n) for n, s in guide.sites.items() if not s.is_binary
    }
    shapes = {name: value.shape for name, value in natural.items()}
    sizes = [value.numel() for value in natural.values()]
    states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sum(sizes))))
    by_site = {
        name: part.reshape(len(states), *shapes[name])
        for (name, _), part in zip(natural.items(), states.split(sizes, 1), strict=True)
    }
    terms = torch.vmap(lambda s: arrangement.log_joint(s, locations))(by_site)
    log_q, entropy = torch.zeros(len(states)), torch.tensor(0.0)
    for name, lam in natural.items():
        log_q = log_q + log_prob(by_site[name], lam).reshape(len(states), -1).sum(1)
        both = torch.stack([log_prob(torch.tensor(sign), lam) for sign in (1.0, -1.0)])
        weights = entropy_weights(arrangement, name)
        entropy = entropy - (weights * (both.exp() * both).sum(0)).sum()
    kl = sum((kl_to_standard_normal(loc, EXACT) for loc in locations.values()), torch.tensor(0.0))
    loss = kl - (log_q.exp() * terms).sum() - entropy
    parameters = [*natural.values(), *locations.values()]
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


def minibatch(arrangement, guide, batch: Batch | None) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient of one minibatch."""
    module = TraceBinary_ELBO(Enumerate())(arrangement.model, guide)
    loss = module(**(batch or {}))
    binary = [guide.natural_of(n) for n, s in guide.sites.items() if s.is_binary]
    real = [guide._parameter("loc", n) for n, s in guide.sites.items() if not s.is_binary]
    return loss.detach(), list(torch.autograd.grad(loss, [*binary, *real]))


def minibatches(arrangement: Arrangement, seed: int = 0) -> list[Batch]:
    """Every choice of rows once, each in a random order."""
    generator = torch.Generator().manual_seed(seed)
    choices = []
    for name, size in arrangement.sizes.items():
        subsets = [
            torch.tensor(c) for c in itertools.combinations(range(size), arrangement.counts[name])
        ]
        choices.append([(name, s[torch.randperm(len(s), generator=generator)]) for s in subsets])
    return [dict(each) for each in itertools.product(*choices)]


def guide_of(arrangement: Arrangement, **options: Any) -> AutoSignBernoulli:
    torch.manual_seed(2)
    first = minibatches(arrangement)[0]
    guide = AutoSignBernoulli(
        arrangement.model, kwargs=first, init_scale=0.7, real_scale=EXACT, **options
    )
    with torch.no_grad():
        for name, site in guide.sites.items():
            if not site.is_binary:
                guide._parameter("loc", name).normal_(0.0, 0.5)
    return guide


def largest_difference(
    one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]
) -> float:
    pairs = zip([one[0], *one[1]], [other[0], *other[1]], strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def mean_of(found: list[tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
    losses, gradients = zip(*found, strict=True)
    return torch.stack(losses).mean(), [
        torch.stack(each).mean(0) for each in zip(*gradients, strict=True)
    ]


@each_arrangement
def test_the_average_over_all_minibatches_is_the_sum_over_all_states(arrangement, monkeypatch):
    guide = guide_of(arrangement)
    truth = exact(arrangement, guide)
    batches = minibatches(arrangement)
    assert len(batches) > 1
    found = mean_of([minibatch(arrangement, guide, batch) for batch in batches])
    assert largest_difference(found, truth) < 1e-6

    def first_rows(parameter, axes, rows):
        for axis in axes:
            if (indices := rows.get(axis.name)) is not None:
                parameter = parameter.narrow(axis.axis, 0, len(indices))
        return parameter

    monkeypatch.setattr(bayesbin.guides.base, "at_rows", first_rows)  # the biased twin
    found = mean_of([minibatch(arrangement, guide, batch) for batch in batches])
    assert largest_difference(found, truth) > 1e-2


@each_arrangement
def test_rows_in_any_order_and_in_order_have_one_objective(arrangement):
    guide = guide_of(arrangement)
    truth = exact(arrangement, guide)
    for order in (torch.arange, torch.randperm):
        batch = {name: order(size) for name, size in arrangement.sizes.items()}
        assert largest_difference(minibatch(arrangement, guide, batch), truth) < 1e-6


@each_arrangement
def test_rows_that_pyro_draws_have_the_objective_of_the_same_rows_given(arrangement):
    guide = guide_of(arrangement)
    seen: Batch = {}

    class Spy(poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"] in arrangement.sizes:
                seen[msg["name"]] = msg["value"]

    with Spy():
        found = minibatch(arrangement, guide, None)
    assert {name: len(rows) for name, rows in seen.items()} == arrangement.counts
    assert largest_difference(found, minibatch(arrangement, guide, seen)) < 1e-6


@each_arrangement
def test_create_plates_spares_the_search_for_indices(arrangement):
    calls = []

    def counted(**rows):
        calls.append(rows)
        return arrangement.model(**rows)

    dims = {"rows": -2, "items": -2}

    def create_plates(**rows):
        return [
            plate(name, arrangement.sizes[name], indices, None, dims.get(name))
            for name, indices in rows.items()
        ]

    guide, other = guide_of(arrangement), guide_of(arrangement, create_plates=create_plates)
    vars(other)["_model"] = (counted,)
    batch = minibatches(arrangement)[-1]
    found = minibatch(arrangement, other, batch)
    assert largest_difference(found, minibatch(arrangement, guide, batch)) < 1e-6
    assert bool(calls) == (arrangement.model is in_a_loop)  # a loop has to be looked at


def test_rows_may_come_more_than_once():
    """Each copy counts, with a draw of its own: rows drawn with replacement give an unbiased estimate."""
    arrangement = ARRANGEMENTS["one plate"]
    guide = guide_of(arrangement)
    found = [
        minibatch(arrangement, guide, {"data": torch.tensor(rows)})
        for rows in itertools.product(range(4), repeat=2)
    ]
    assert largest_difference(mean_of(found), exact(arrangement, guide)) < 1e-9


# Every guide, and what is made of it

GUIDES = {
    "mean-field": (bayesbin.guides.AutoSignBernoulli, {}),
    "nested": (bayesbin.guides.AutoNestedSignBernoulli, {"sharing": ("layer", "filter", "weight")}),
    "random effects": (
        bayesbin.guides.AutoNestedSignBernoulli,
        {"sharing": ("layer", "weight"), "kind": "random-effects"},
    ),
    "low-bit": (bayesbin.guides.AutoLowBit, {}),
    "relaxed": (bayesbin.guides.AutoRelaxedSignBernoulli, {}),
    "point": (bayesbin.guides.AutoSignDelta, {}),
}


@pytest.mark.parametrize(("Guide", "options"), GUIDES.values(), ids=list(GUIDES))
def test_every_guide_gathers_the_rows_of_its_call(Guide, options):
    """Rows are told apart by their draws; a minibatch trains its own rows and what all of them share."""
    model, size = inside, 2
    first = {"groups": torch.arange(1), "items": torch.arange(1)}
    guide = Guide(model, kwargs=first, init_scale=3.0, **options)
    with torch.no_grad():  # all but certain, so that a draw shows its row
        for parameter in guide.parameters():
            parameter.mul_(50.0)
    mode = guide.median()["s"]
    assert mode.shape == (size, size, 2)
    batch = {"groups": torch.tensor([1]), "items": torch.tensor([1, 0])}
    torch.manual_seed(0)
    if options.get("kind") != "random-effects":  # whose draws move all rows
        drawn = guide(**batch)["s"]
        assert drawn.shape == (2, 1, 2)
        assert (drawn.round() == mode[[1, 0]][:, [1]]).double().mean() > 0.7
    guide = Guide(model, kwargs=first, **options)
    estimator = Concrete(temperature=1.0)
    TraceBinary_ELBO(estimator)(model, guide)(**batch).backward()
    for name, parameter in guide.named_parameters():
        if name.endswith((".s", ".s.weight")) and parameter.grad is not None:
            assert parameter.grad[:, 0].abs().sum() == 0 < parameter.grad[:, 1].abs().sum()


def test_what_is_made_of_a_posterior_with_local_latents():
    """Draws of all rows go to ArviZ in the data's order; an ensemble of a network refuses them by name."""
    everything = {"data": torch.arange(4)}
    guide = AutoSignBernoulli(one_plate, kwargs=everything)
    posterior = guide.posterior()

    def model(rows):  # no input of it has the name of a plate
        return one_plate(rows)

    found = to_inference_data(posterior, model, (everything["data"],), num_samples=5)
    assert found.posterior["z"].shape == (1, 5, 4)
    assert found.log_likelihood["y"].shape == (1, 5, 4)
    with pytest.raises(ValueError, match="comes from outside of that plate, for unknown rows"):
        to_inference_data(posterior, model, (torch.arange(4).flip(0),), num_samples=2)

    net = to_binary_(torch.nn.Linear(3, 2))

    def with_network(x, y):
        weight = pyro.sample("weight", SignBernoulli(natural=torch.zeros(2, 3)).to_event(2))
        with pyro.plate("data", 4):
            z = pyro.sample("z", SignBernoulli(natural=torch.tensor(0.0)))
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal((x @ weight.T)[:, 0] + z + a, 1.0), obs=y)

    x = torch.randn(4, 3)
    posterior = AutoSignBernoulli(with_network, args=(x, Y)).posterior()
    for network in (net, Classifier(net, 4)):
        with pytest.raises(ValueError, match="a site 'z', but the network has no"):
            Ensemble(network, posterior)
    signs = BinaryPosterior({"weight": posterior["weight"]}, {"a": posterior.real["a"]})
    with pytest.raises(ValueError, match="real-valued site 'a'"):
        Ensemble(Classifier(net, 4), signs)
    assert Ensemble(net, BinaryPosterior({"weight": posterior["weight"]})).outputs(x).shape[1:] == (
        4,
        2,
    )
