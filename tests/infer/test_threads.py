"""Threads and processes: what runs beside something else is what it is alone, or is refused."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np
import pyro.optim
import pytest
import torch
from pyro.infer import SVI
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesbin.core.turns import alone, in_turn, turn_given_up
from bayesbin.data import Batches, two_moons
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import DisARM, LocalReparameterization
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import GibbsWithGradients, TraceBinary_ELBO, fit, run_mcmc
from bayesbin.nn import BinaryLinear, Classifier, mlp, to_binary_
from bayesbin.recipes import recipe
from bayesbin.sklearn import BinaryNetworkClassifier, BinaryNetworkRegressor

DATA = two_moons(60, seed=1)


def network(seed: int) -> nn.Module:
    with in_turn(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return to_binary_(mlp(2, [4], 2, activation="tanh", normalize=False))


def model_of(seed: int) -> Classifier:
    return Classifier(network(seed), dataset_size=len(DATA))


def fitted(seed: int, callbacks: Any = (), **options: Any) -> list[Any]:
    model = model_of(seed)
    with in_turn(), torch.random.fork_rng():
        torch.manual_seed(seed)
        guide = AutoSignBernoulli(model)
    options = {"epochs": 3, "validation": [(DATA.x, DATA.y)], **options}
    found = fit(
        model, guide, Batches(DATA, batch_size=20), seed=seed, progress=False, callbacks=callbacks,
        **options,
    )  # fmt: skip
    losses = [row["loss"] for row in found.history]
    return [*losses, *guide.natural_parameters()]


def sampled(seed: int) -> list[Any]:
    with in_turn(), torch.random.fork_rng():
        model = Classifier(BinaryLinear(2, 2, bias=False), len(DATA))
    result = run_mcmc(
        model, (DATA.x, DATA.y), kernel=GibbsWithGradients, num_samples=8, num_warmup=3,
        num_chains=2, seed=seed,
    )  # fmt: skip
    return [result.signs["weight"], result.log_joint]


def drawn(seed: int) -> list[Any]:
    with in_turn(), torch.random.fork_rng():  # layers draw their initial weights
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        model = Classifier(to_binary_(net), len(DATA))
        guide = AutoSignBernoulli(model)
    ensemble = Ensemble(model, guide.posterior(), 3, seed).calibrate(DATA.x)
    return [ensemble.predict(DATA.x[:5]).probs, ensemble.outputs(DATA.x[:5])]


def by_recipe(seed: int) -> list[Any]:
    with in_turn(), torch.random.fork_rng():
        torch.manual_seed(seed)
        made = recipe("bayesbin", model_of(seed), epochs=2)
    result = made.fit(Batches(DATA, batch_size=30), seed=seed, progress=False)
    return [row["loss"] for row in result.history]


def classified(seed: int) -> list[Any]:
    estimator = BinaryNetworkClassifier((4,), num_bins=0, epochs=2, random_state=seed)
    estimator.fit(DATA.x.numpy(), DATA.y.numpy())
    return [estimator.predict_proba(DATA.x.numpy())]


def regressed(seed: int) -> list[Any]:
    estimator = BinaryNetworkRegressor((4,), num_bins=2, epochs=2, random_state=seed)
    estimator.fit(DATA.x.numpy(), DATA.x[:, 0].numpy())
    return list(estimator.predict(DATA.x.numpy(), return_std=True))


JOBS = [
    fitted,
    functools.partial(fitted, estimator=DisARM(), num_particles=2),
    functools.partial(fitted, estimator=LocalReparameterization(), kl_weight=lambda epoch: epoch),
    sampled, drawn, by_recipe, classified, regressed,
]  # fmt: skip


def equal(one: list[Any], two: list[Any]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(np.array_equal(np.asarray(plain(a)), np.asarray(plain(b))) for a, b in pairs)


def plain(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, Tensor) else value


@pytest.mark.slow
def test_what_runs_in_threads_is_to_the_bit_what_it_is_alone():
    expected = [job(seed) for seed, job in enumerate(JOBS)]
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(len(JOBS)) as pool:
        for _ in range(2):
            running = [pool.submit(job, seed) for seed, job in enumerate(JOBS)]
            for job, one, other in zip(JOBS, expected, running, strict=True):
                assert equal(one, other.result()), job
    assert torch.equal(torch.random.get_rng_state(), before)


class NoLock:
    """Lets every thread in."""

    def acquire(self, blocking: bool = True) -> bool:
        return True

    def release(self) -> None:
        pass

    __enter__ = acquire

    def __exit__(self, *error: object) -> None:
        pass


class Waits(nn.Module):
    """Waits a moment at each call, so that another thread comes to the same place if it may."""

    def __init__(self, meeting: threading.Barrier) -> None:
        super().__init__()
        self.meeting = meeting

    def forward(self, x: Tensor) -> Tensor:
        try:
            self.meeting.wait(0.01)
        except threading.BrokenBarrierError:
            self.meeting.reset()
        return x


def two_fits(meeting: threading.Barrier) -> list[list[float]]:
    torch.manual_seed(3)
    models, guides = [], []
    for seed in (0, 1):
        model = model_of(seed)
        guides.append(AutoSignBernoulli(model))
        layers: Any = model.net
        layers.append(Waits(meeting))
        models.append(model)

    def job(seed: int) -> list[float]:
        found = fit(
            models[seed], guides[seed], [(DATA.x, DATA.y)], epochs=2, seed=seed, progress=False
        )
        return [row["loss"] for row in found.history]

    with ThreadPoolExecutor(2) as pool:
        return [running.result() for running in [pool.submit(job, seed) for seed in (0, 1)]]


def test_without_turns_two_fits_disturb_each_other(monkeypatch):
    alone_in_turn, again = two_fits(threading.Barrier(1)), two_fits(threading.Barrier(2))
    assert alone_in_turn == again
    monkeypatch.setattr("bayesbin.core.turns._TURN.lock", NoLock())
    try:
        disturbed = two_fits(threading.Barrier(2))
    except Exception:
        return  # of Pyro's stack, most often
    assert disturbed != again


def other_thread(call: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=60)


def by_hand() -> dict[str, Any]:
    model = model_of(0)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(LocalReparameterization())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)  # pyright: ignore[reportAttributeAccessIssue]
    kernel = GibbsWithGradients(functools.partial(model, DATA.x, DATA.y))
    return {
        "ELBO": lambda: elbo(model, guide)(DATA.x, DATA.y),
        "ELBO at hard draws": lambda: elbo.loss(model, guide, DATA.x, DATA.y),
        "SVI": lambda: svi.step(DATA.x, DATA.y),
        "guide": lambda: guide(DATA.x, DATA.y),
        "model": lambda: model(DATA.x),
        "kernel": lambda: kernel.setup(0),
    }


@pytest.mark.parametrize("name", by_hand())
def test_what_a_thread_does_by_hand_is_refused_while_another_is_inside(name):
    call = by_hand()[name]
    call()
    other_thread(call)  # nobody is inside
    with (
        in_turn(),
        pytest.raises(RuntimeError, match=r"by one thread at a time.*bayesbin\.fit, which"),
    ):
        other_thread(call)
    other_thread(call)


def test_prediction_runs_beside_training():
    model = model_of(0)
    ensemble = Ensemble(model, AutoSignBernoulli(model).posterior(), 3)
    expected = ensemble.predict(DATA.x.numpy()).probs
    with in_turn():  # as long as another thread trains
        found = other_thread(lambda: ensemble.predict(DATA.x.numpy()).probs)
    assert np.array_equal(expected, found)


def test_a_callback_may_wait_for_threads_that_train():
    run = functools.partial(fitted, epochs=1, validation=None)
    expected, found = (run(5), run(6)), []
    callback = run(5, [lambda report: found.append(other_thread(lambda: run(6)))])
    assert equal(callback, expected[0]) and equal(found[0], expected[1])
    nested = run(5, [lambda report: found.append(run(6))])
    assert equal(nested, expected[0]) and equal(found[1], expected[1])


class Stops:
    """Data that stop the training in the second epoch."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.epochs = error, 0

    def __iter__(self):
        self.epochs += 1
        yield DATA.x, DATA.y
        if self.epochs == 2:
            raise self.error("stop")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_exception_gives_the_turn_back(error):
    model = model_of(0)
    guide = AutoSignBernoulli(model)
    with pytest.raises(error):
        fit(model, guide, Stops(error), epochs=3, progress=False)
    with pytest.raises(error):
        fit(model, guide, [(DATA.x, DATA.y)], epochs=3, progress=False, callbacks=[_raises(error)])
    assert other_thread(lambda: fitted(0, epochs=1))


def _raises(error: type[BaseException]) -> Any:
    def callback(report: Any) -> None:
        raise error("stop")

    return callback


def test_turns_nest_and_are_given_up_only_as_a_whole():
    def free() -> bool:
        try:
            with alone("it"):
                return True
        except RuntimeError:
            return False

    with in_turn():
        assert not other_thread(free)
        with turn_given_up():
            assert other_thread(free)
            with turn_given_up():  # it is not ours
                assert other_thread(free)
        assert not other_thread(free)
        with alone("it"), turn_given_up():
            assert not other_thread(free)
    assert other_thread(free)


def test_coroutines_train_as_threads_do():
    async def both() -> list[Any]:
        jobs = (asyncio.to_thread(fitted, seed, epochs=1) for seed in (0, 1))
        return await asyncio.gather(*jobs)

    for seed, found in enumerate(asyncio.run(both())):
        assert equal(found, fitted(seed, epochs=1))


def _put(queue: Any) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    queue.put([float(x) for x in fitted(4, epochs=1)[:1]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_not_locked_by_a_thread_that_is_not_in_it():
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with in_turn():
            entered.set()
            leave.wait(120)

    torch.set_num_threads(1)
    expected = [float(x) for x in fitted(4, epochs=1)[:1]]
    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(60)
    try:
        queue = multiprocessing.get_context("fork").SimpleQueue()
        process = multiprocessing.get_context("fork").Process(target=_put, args=(queue,))
        process.start()
        process.join(timeout=120)
        assert process.exitcode == 0 and queue.get() == expected
    finally:
        leave.set()
        holder.join()


@pytest.mark.slow
@pytest.mark.parametrize("make", [BinaryNetworkClassifier, BinaryNetworkRegressor])
def test_a_search_in_joblibs_threads_is_the_one_in_sequence(make):
    x, y = DATA.x.numpy(), DATA.y.numpy()
    search = functools.partial(
        GridSearchCV, make((4,), num_bins=2, epochs=2, random_state=0), {"lr": [0.05, 0.2]}, cv=2,
        error_score="raise",  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    expected = search().fit(x, y).cv_results_["mean_test_score"]
    with joblib.parallel_backend("threading", n_jobs=2):
        found = search(n_jobs=2).fit(x, y).cv_results_["mean_test_score"]
    assert np.array_equal(expected, found) and np.isfinite(found).all()


@pytest.mark.slow
def test_workers_of_a_loader_do_not_wait_for_the_turn():
    class Augmented(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            with in_turn():  # as everything does that uses torch's generators
                return super().__getitem__(index)

    loader = DataLoader(Augmented(DATA.x, DATA.y), batch_size=30, num_workers=1)
    model = model_of(0)
    assert fit(model, AutoSignBernoulli(model), loader, epochs=1, progress=False).steps == 2
