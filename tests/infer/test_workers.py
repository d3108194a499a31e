"""Data that worker processes make: an epoch is a function of (seed, epoch), before and after a resume."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    get_worker_info,
)

from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.infer.noise import ordered_batches
from bayesbin.nn import BinaryLinear, Regressor


class Augmented(Dataset[Any]):
    """Numbers 0 to 11, each with a draw from every global generator."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = [float(index), torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return torch.tensor(drawn), torch.tensor([drawn[1]])


class Stream(IterableDataset[Any]):
    """The same numbers, each from one of the workers."""

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return (Augmented()[index] for index in range(first, 12, step))


def shuffled(**options: Any) -> Callable[[], DataLoader[Any]]:
    return lambda: DataLoader(Augmented(), 4, shuffle=True, **options)


def own() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def in_batches() -> DataLoader[Any]:
    sampler = BatchSampler(RandomSampler(range(12), generator=own()), 4, drop_last=False)
    return DataLoader(Augmented(), batch_sampler=sampler, num_workers=1, persistent_workers=True)


LOADERS: dict[str, Callable[[], Any]] = {
    "no workers": shuffled(),
    "no workers, a generator": lambda: DataLoader(Augmented(), 4, shuffle=True, generator=own()),
    "one": shuffled(num_workers=1),
    "one that persists": shuffled(num_workers=1, persistent_workers=True, prefetch_factor=4),
    "two": shuffled(num_workers=2),
    "two that persist": shuffled(num_workers=2, persistent_workers=True),
    "batches": in_batches,
    "a stream": lambda: DataLoader(Stream(), 4),
    "a stream of two": lambda: DataLoader(Stream(), 4, num_workers=2, persistent_workers=True),
    "no loader": lambda: _Anew(),
}


class _Anew:
    def __iter__(self):
        return (Augmented()[index] for index in range(12))


def epoch_of(data: Any, epoch: int) -> Tensor:
    random.seed(epoch)  # of no consequence, as are draws elsewhere
    np.random.seed(epoch)  # noqa: NPY002
    torch.rand(epoch)
    return torch.cat([x.reshape(-1, 4) for x, _ in ordered_batches(data, 0, epoch)])


def global_states() -> tuple[Any, ...]:
    keys: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), keys[1].tolist(), torch.random.get_rng_state().tolist()


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_an_epoch_after_a_resume_is_that_of_an_unbroken_run(make):
    whole, states = make(), global_states()
    batches = ordered_batches(whole, 0, 1)
    for _ in range(2):
        next(batches)
    assert global_states() == states
    del batches  # killed in the middle
    first, second = (epoch_of(whole, epoch) for epoch in (1, 2))
    resumed = make()
    assert torch.equal(epoch_of(resumed, 2), second)
    assert torch.equal(epoch_of(make(), 1), first)
    assert sorted(second[:, 0].tolist()) == list(range(12))
    for column in (1, 2, 3):  # drawn anew in each epoch
        assert not set(first[:, column].tolist()) & set(second[:, column].tolist())
        assert len(set(first[:, column].tolist())) == 12


def test_workers_that_persist_would_draw_something_else(monkeypatch):
    monkeypatch.setattr("bayesbin.infer.noise._with_new_workers", lambda loader: loader)
    make = LOADERS["one that persists"]
    whole = make()
    _, second = (epoch_of(whole, epoch) for epoch in (1, 2))
    assert not torch.equal(epoch_of(make(), 2), second)


@pytest.mark.slow
def test_a_fit_resumes_to_the_same_bits_with_workers_that_persist(tmp_path):
    def run(epochs: int, folder: Any) -> list[float]:
        torch.manual_seed(0)
        model = Regressor(BinaryLinear(4, 1), dataset_size=12)
        torch.manual_seed(0)
        guide = AutoSignBernoulli(model)
        options: Any = {"optimizers": torch.optim.Adam([*guide.parameters(), *model.parameters()])}
        loader = LOADERS["two that persist"]()
        result = fit(
            model, guide, loader, epochs=epochs, checkpoint_dir=folder, progress=False, **options
        )
        return [row["loss"] for row in result.history]

    run(1, tmp_path / "broken")
    assert run(2, tmp_path / "broken") == run(2, tmp_path / "whole")
