"""A guide and a model that do not mean the same rows of a plate are refused, each in a sentence."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import PyroOptim

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO

N = 12
Y = torch.randn(N, generator=torch.Generator().manual_seed(1))
ORDER = torch.arange(N)
ROWS = torch.tensor([7, 2, 2 + 3, 0])


def model(y, rows, size=N, dim=None, real=False):
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.3)))
    with pyro.plate("data", size, subsample=rows, dim=dim):
        prior = dist.Normal(0.2 * w, 1.0) if real else SignBernoulli(natural=0.2 * w)
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def by_hand(y, rows, size=N, dim=None, real=False, plate="data", count=None):
    """A guide that is a function, with a parameter for each row."""
    pyro.sample("w", SignBernoulli(natural=pyro.param("w0", torch.tensor(0.1))))
    with pyro.plate(plate, size, subsample=rows, dim=dim) as indices:
        full = pyro.param("z0", torch.linspace(-1.0, 1.0, N))
        z = full[indices][:count]
        pyro.sample("z", dist.Normal(z, 1.0) if real else SignBernoulli(natural=z))


def outside(y, rows, real=False):
    """One value for each row of the call, whichever they are."""
    pyro.sample("w", SignBernoulli(natural=torch.tensor(0.1)))
    z = torch.zeros(len(y))
    pyro.sample("z", (dist.Normal(z, 1.0) if real else SignBernoulli(natural=z)).to_event(1))


def for_all(y, rows, real=False):
    """One value for all rows."""
    pyro.sample("w", SignBernoulli(natural=torch.tensor(0.1)))
    z = torch.zeros(1)
    pyro.sample("z", (dist.Normal(z, 1.0) if real else SignBernoulli(natural=z)).to_event(1))


def loss_of(model, guide, *args):
    pyro.clear_param_store()
    return TraceBinary_ELBO(StraightThrough()).loss(model, guide, *args)


REFUSED = {
    "other rows": (
        lambda y, i: by_hand(y, i.flip(0)),
        r"has the rows \[7, 2, 5, 0\] in the model and",
    ),
    "other number of rows": (lambda y, i: by_hand(y, i[:1]), "in the model and"),
    "another plate": (lambda y, i: by_hand(y, i, plate="rows"), "comes from outside of that plate"),
    "another size": (
        lambda y, i: by_hand(y, i, size=20),
        "'data' of 'z' has the size 20 in the guide and 12 in the model",
    ),
    "another dim": (lambda y, i: by_hand(y, i, dim=-2), r"guide has shape|has the dim"),
    "outside of the plate": (outside, "comes from outside of that plate, for unknown rows"),
    "one row for all": (for_all, r"guide has shape \(1,\) and the model \(4,\)"),
}


@pytest.mark.parametrize("real", [False, True], ids=["sign", "real"])
@pytest.mark.parametrize(("guide", "message"), REFUSED.values(), ids=list(REFUSED))
def test_guides_by_hand_that_mean_other_rows(guide, message, real):
    bound = guide if guide in (outside, for_all) else None

    def wrapped(y, rows):
        return bound(y, rows, real=real) if bound else guide(y, rows)

    def given(y, rows):
        return model(y, rows, real=real and bound is not None)

    for call in (loss_of, lambda *a: TraceBinary_ELBO(StraightThrough()).terms(*a)):
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=message):
            call(given, wrapped, Y[ROWS], ROWS)


@pytest.mark.parametrize("real", [False, True], ids=["sign", "real"])
def test_guides_by_hand_that_mean_the_same_rows(real):
    """Any order has one objective, and a guide outside of a plate of all rows is right."""

    def given(y, rows):
        return model(y, rows, real=real)

    def guide(y, rows):
        return by_hand(y, rows, real=real)

    def loss(rows, guide=guide):
        torch.manual_seed(0)  # of real latents, the same draw for all: shifts by a constant cancel
        return TraceBinary_ELBO(StraightThrough()).terms(given, guide, Y[rows], rows).kl

    shuffled = torch.randperm(N)
    torch.testing.assert_close(loss(shuffled), loss(ORDER))
    assert TraceBinary_ELBO(StraightThrough()).loss(
        given, lambda y, rows: outside(y, rows, real=real), Y, ORDER
    )
    with pytest.raises(ValueError, match="for unknown rows"):
        loss_of(given, lambda y, rows: outside(y, rows, real=real), Y[shuffled], shuffled)


def test_the_rows_of_a_loss_in_steps_of_pyros_own():
    """SVI with our loss and with Pyro's over an automatic guide: the gathered rows alone move."""
    for loss, draws in ((TraceBinary_ELBO(StraightThrough()), 1), (Trace_ELBO(), 1)):
        guide = AutoSignBernoulli(model, args=(Y, ORDER))
        before = guide.natural_of("z").detach().clone()
        svi = SVI(model, guide, PyroOptim(torch.optim.SGD, {"lr": 0.1}), loss)
        for _ in range(draws):
            svi.step(Y[ROWS], ROWS)
        moved = (guide.natural_of("z") != before).nonzero().flatten().tolist()
        assert moved == sorted(ROWS.tolist())
        pyro.clear_param_store()


CALLS = {
    "a plate of another size": ((Y[:5], ORDER[:5], 5), "the size 5 in this call and had 12"),
    "rows that do not exist": ((Y[:2], torch.tensor([0, 12])), "from 0 to 11; got 0 to 12"),
    "rows from the end": ((Y[:2], torch.tensor([0, -1])), "from 0 to 11; got -1 to 0"),
    "a mask for rows": ((Y, torch.ones(N) > 0), "a vector of whole numbers; got torch.bool"),
}


@pytest.mark.parametrize(("args", "message"), CALLS.values(), ids=list(CALLS))
def test_calls_of_an_automatic_guide_that_cannot_work(args, message):
    guide = AutoSignBernoulli(model, args=(Y, ORDER))
    with pytest.raises(ValueError, match=message):
        guide(*args)


PLATES = {
    "other rows": (lambda y, rows: pyro.plate("data", N, subsample=rows.flip(0)), "has the rows"),
    "another size": (lambda y, rows: pyro.plate("data", 7, subsample=rows), "of size 7"),
    "another dim": (lambda y, rows: pyro.plate("data", N, subsample=rows, dim=-2), "dim=-2"),
    "no plate": (lambda y, rows: [rows], "returns a pyro.plate or several; got Tensor"),
    "not even a list": (lambda y, rows: None, "returns a pyro.plate or several; got NoneType"),
}


@pytest.mark.parametrize(("create_plates", "message"), PLATES.values(), ids=list(PLATES))
def test_create_plates_that_do_not_fit(create_plates, message):
    guide = AutoSignBernoulli(model, args=(Y, ORDER), create_plates=create_plates)
    with pytest.raises(ValueError, match=message):
        TraceBinary_ELBO(StraightThrough()).terms(model, guide, Y[ROWS], ROWS)


def test_a_plate_whose_size_is_that_of_the_batch():
    def sized(y):
        pyro.sample("w", SignBernoulli(natural=torch.tensor(0.3)))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", SignBernoulli(natural=torch.tensor(0.0)))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    guide = AutoSignBernoulli(sized, args=(Y,))
    assert guide(Y)["z"].shape == (N,)
    for run in (guide, lambda y: Trace_ELBO().loss(sized, guide, y)):
        with pytest.raises(ValueError, match="the size 5 in this call and had 12"):
            run(Y[:5])


def test_a_loop_that_sees_fewer_rows_than_the_guide_has():
    def loop(count):
        pyro.sample("w", SignBernoulli(natural=torch.tensor(0.3)))
        for i in pyro.plate("data", N, subsample_size=count):
            pyro.sample(f"z{i}", SignBernoulli(natural=torch.tensor(0.0)))

    guide = AutoSignBernoulli(loop, args=(N,))
    assert len(guide(N)) == N + 1
    with pytest.raises(ValueError, match="a loop over 3 of 12 rows"):
        guide(3)


def test_a_guide_by_itself_has_all_rows():
    guide = AutoSignBernoulli(model, args=(Y[ROWS], ROWS))
    assert guide()["z"].shape == guide.median()["z"].shape == (N,)
    assert guide.posterior()["z"].natural.shape == (N,)
    assert guide(Y[ROWS], ROWS)["z"].shape == (len(ROWS),)


def test_predictions_by_pyro():
    """Predictive draws guide and model one after the other: rows that are given agree, drawn ones do not."""

    def drawn(y):
        pyro.sample("w", SignBernoulli(natural=torch.tensor(0.3)))
        with pyro.plate("data", N, subsample_size=3) as rows:
            z = pyro.sample("z", SignBernoulli(natural=torch.tensor(0.0)))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[rows])

    guide = AutoSignBernoulli(model, args=(Y, ORDER))
    with torch.no_grad():
        guide.natural_of("z").copy_(20.0 * torch.where(ORDER % 2 == 0, 1.0, -1.0))
    draws = Predictive(model, guide=guide, num_samples=3)(Y[ROWS], ROWS)["z"]
    assert torch.equal(draws, torch.where(ROWS % 2 == 0, 1.0, -1.0).expand(3, -1))
    assert Predictive(model, guide=guide, num_samples=3)(Y, ORDER)["z"].shape == (3, N)
    with pytest.raises(ValueError, match="draws 3 of its 12 rows"):
        Predictive(drawn, guide=AutoSignBernoulli(drawn, args=(Y,)), num_samples=3)(Y)


def test_a_guide_without_its_model_and_a_copy_with_it():
    guide = AutoSignBernoulli(model, args=(Y[ROWS], ROWS))
    guide(Y[ROWS], ROWS)
    assert copy.deepcopy(guide)(Y[ROWS], ROWS)["z"].shape == (len(ROWS),)
    loaded = pickle.loads(pickle.dumps(guide))
    with pytest.raises(
        ValueError, match="loaded without its model, which tells the rows of the plate"
    ):
        loaded(Y[ROWS], ROWS)
    loaded.create_plates = lambda y, rows: pyro.plate("data", N, subsample=rows)
    assert loaded(Y[ROWS], ROWS)["z"].shape == (len(ROWS),)
    in_order = pickle.loads(pickle.dumps(AutoSignBernoulli(model, args=(Y, ORDER))))
    assert in_order(Y, ORDER)["z"].shape == (N,)
    with pytest.raises(ValueError, match="has the rows"):
        TraceBinary_ELBO(StraightThrough()).loss(model, in_order, Y[ROWS], ROWS)


def test_a_guide_among_others():
    """In Pyro's list of guides the plates are the list's."""
    plates = {"create_plates": lambda y, rows: pyro.plate("data", N, subsample=rows)}
    for options, fits in (({}, False), (plates, True)):
        guide = AutoGuideList(model, **options)
        guide.append(AutoSignBernoulli(poutine.block(model, hide=["y"]), args=(Y, ORDER)))
        elbo = TraceBinary_ELBO(StraightThrough())
        if fits:
            assert elbo.loss(model, guide, Y[ROWS], ROWS)
        else:
            with pytest.raises(ValueError, match=r"has the rows|shape"):
                elbo.loss(model, guide, Y.flip(0), ORDER.flip(0))
