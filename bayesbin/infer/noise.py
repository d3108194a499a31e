"""Noise from counters: what a step draws is a function of (seed, stream, counter) alone.

There is no generator state to save, and a draw elsewhere (logging, evaluation) changes no result.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from bayesbin.core.checks import whole_number
from bayesbin.core.turns import in_turn

# Stream numbers keep apart what shares a counter. Results depend on them: they never change.
STEP_NOISE, DATA_ORDER, VALIDATION_NOISE = 0, 1, 2


def counter_word(seed: int, stream: int, counter: int) -> int:
    """The 32 bits that seed ``stream`` at ``counter``.

    One word, hashed, rather than ``seed * M + counter``: CPU generators of torch use only the low
    32 bits of a seed, so that seeds 7 and 7 + 2**32 would coincide.

    >>> counter_word(0, STEP_NOISE, 0) == counter_word(0, DATA_ORDER, 0)
    False

    Source: ``numpy.random.SeedSequence``; M. O'Neill, Developing a seed_seq alternative, 2015.
    """
    seed = whole_number("seed", seed)
    return int(np.random.SeedSequence(seed, spawn_key=(stream, counter)).generate_state(1)[0])


class NoiseStream:
    """A private state of torch's global generators, seeded with :func:`counter_word`.

    Inside ``with stream.active():`` the generators of the CPU, and of CUDA where it is in use, are
    the stream's; it continues from block to block, and after each the caller's states are back.

    :param everywhere: whether the global generators of Python and NumPy are the stream's too.

    >>> stream = NoiseStream(0, STEP_NOISE, 7)
    >>> with stream.active():
    ...     noise = torch.rand(3)
    """

    def __init__(self, seed: int, stream: int, counter: int, everywhere: bool = False) -> None:
        self.word = counter_word(seed, stream, counter)
        # Asking for the CUDA generators of a process that does not use CUDA would initialise it.
        cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        others = (_Python, _NumPy) if everywhere else ()
        self._generators: list[Any] = [torch.default_generator, *cuda, *others]
        self._states: list[Any] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        with in_turn():
            outside = [generator.get_state() for generator in self._generators]
            try:
                if self._states is None:
                    for generator in self._generators:
                        generator.manual_seed(self.word)
                else:
                    _set_states(self._generators, self._states)
                yield
            finally:
                self._states = [generator.get_state() for generator in self._generators]
                _set_states(self._generators, outside)


def _set_states(generators: list[Any], states: list[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


class _Python:
    """Python's global generator, with the methods of one of torch's."""

    get_state, set_state, manual_seed = random.getstate, random.setstate, random.seed


class _NumPy:
    """NumPy's global generator, with the methods of one of torch's."""

    get_state, set_state, manual_seed = np.random.get_state, np.random.set_state, np.random.seed


def ordered_batches(data: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches of ``data`` in the order, and with the augmentation, of (seed, epoch).

    What ``data`` draws from the global generators of torch, NumPy and Python comes from a NoiseStream of its
    own. Generators that a DataLoader or its samplers own are reseeded with the same word at each epoch, a
    DistributedSampler is told the epoch, and workers are started anew: torch seeds them when they start,
    so that those that persist would draw what depends on how many epochs they have seen.

    >>> list(ordered_batches(["first", "second"], seed=0, epoch=1))
    ['first', 'second']
    """
    stream = NoiseStream(seed, DATA_ORDER, epoch, everywhere=True)
    if isinstance(data, DataLoader):
        _reseed(data, stream.word, epoch)
        data = _with_new_workers(data)
    with stream.active():
        iterator = iter(data)
    while True:
        with stream.active():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def _reseed(loader: DataLoader[Any], word: int, epoch: int) -> None:
    inner = getattr(loader.batch_sampler, "sampler", None)
    for owner in (loader, loader.sampler, loader.batch_sampler, inner):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(word)
        if isinstance(owner, DistributedSampler):
            owner.set_epoch(epoch)


def _with_new_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader, with workers that end with the epoch."""
    if not loader.persistent_workers:
        return loader
    found = copy.copy(loader)
    vars(found).update(persistent_workers=False, _iterator=None)  # it takes no assignment
    return found


@contextmanager
def seeded_float32(seed: int) -> Iterator[None]:
    """Initial states in float32 from ``seed``; the caller's generator and default dtype come back after."""
    with in_turn(), torch.random.fork_rng(devices=[]):
        dtype = torch.get_default_dtype()
        torch.manual_seed(whole_number("seed", seed))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
