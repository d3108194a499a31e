"""Noise from counters: what a step draws is a function of (seed, stream, counter) alone.

There is no generator state to save, and a draw elsewhere (logging, evaluation) changes no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from bayesbin.core.checks import whole_number

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
    Python's and NumPy's generators are left alone.

    >>> stream = NoiseStream(0, STEP_NOISE, 7)
    >>> with stream.active():
    ...     noise = torch.rand(3)
    """

    def __init__(self, seed: int, stream: int, counter: int) -> None:
        self.word = counter_word(seed, stream, counter)
        # Asking for the CUDA generators of a process that does not use CUDA would initialise it.
        cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        self._generators = [torch.default_generator, *cuda]
        self._states: list[Tensor] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
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


def _set_states(generators: list[torch.Generator], states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def ordered_batches(data: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches of ``data`` in the order, and with the augmentation, of (seed, epoch).

    What ``data`` draws from torch's global generators comes from a NoiseStream of its own.
    Generators that a DataLoader or its samplers own are reseeded with the same word at each epoch,
    and a DistributedSampler is told the epoch.

    >>> list(ordered_batches(["first", "second"], seed=0, epoch=1))
    ['first', 'second']
    """
    stream = NoiseStream(seed, DATA_ORDER, epoch)
    if isinstance(data, DataLoader):
        _reseed(data, stream.word, epoch)
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


@contextmanager
def seeded_float32(seed: int) -> Iterator[None]:
    """Initial states in float32 from ``seed``; the caller's generator and default dtype come back after."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole_number("seed", seed))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
