"""Calibration: the statistics of batch normalisation for each draw of an ensemble, from data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from bayesbin.ensemble.in_torch import statistics_of_draws
from bayesbin.ensemble.inputs import Inputs
from bayesbin.ensemble.members import Draw, Member, Statistics
from bayesbin.ensemble.programs import raw_program, runner
from bayesbin.nn.batch_statistics import Buffers, Moments, in_buffers, require_several
from bayesbin.runtime.program import Program, Step

_SLOW = 2.0  # seconds after which a bar shows
_MEMORY = 1 << 28  # bytes of the values of a block of data, about
_CHUNK = 1 << 16  # numbers whose moments are computed at a time
_DRAWS = 16  # at a time: what does not depend on the draw is computed once for them

Values = Mapping[str, torch.Tensor]


def statistics(
    members: Sequence[Member],
    inputs: Inputs,
    buffers: Sequence[Buffers],
    progress: bool | None,
) -> list[Statistics]:
    """The statistics of each member's draws and of its mode.

    :param buffers: those that the network normalises by.
    :raises ValueError: for a batch with one value in a channel, which has no variance.
    """
    if not buffers:
        return [Statistics({d: {} for d in (*m.draws, None)}, m.origin) for m in members]
    total = sum(len({*member.draws, None}) for member in members)
    hidden = None if progress is None else not progress
    with tqdm(
        total=total, desc="Calibrating", unit="draw", delay=_SLOW, disable=hidden, leave=False
    ) as bar:
        return [
            Statistics(dict(_of_member(member, inputs, buffers, bar)), member.origin)
            for member in members
        ]


def _of_member(
    member: Member, inputs: Inputs, buffers: Sequence[Buffers], bar: Any
) -> Iterator[tuple[Draw, Values]]:
    member = replace(member, statistics=None)
    numbers = list(dict.fromkeys(draw for draw in member.draws if draw is not None))
    groups = [numbers[k : k + _DRAWS] for k in range(0, len(numbers), _DRAWS)] + [[None]]
    try:
        raw_program(member, inputs.signature, [None])
    except ValueError:  # a network that does not compile
        for found in statistics_of_draws(member, [*numbers, None], inputs.batches):
            yield found
            bar.update()
        return
    for draws in groups:
        program = raw_program(member, inputs.signature, draws)
        sums = _by_program(program, _blocks(program, inputs), buffers)
        for place, draw in enumerate(draws):
            yield draw, in_buffers(member.net, sums[None] | sums[place])
            bar.update()


def _blocks(program: Program, inputs: Inputs) -> list[list[np.ndarray]]:
    """Batches that fit the memory: a batch that does not is cut in equal parts."""
    rows = max(2, _MEMORY // (8 * max(value.size for value in program.values.values())))
    blocks = []
    for batch in inputs.batches:
        count = math.ceil(len(batch[0]) / rows)
        parts = zip(*(np.array_split(x.numpy(), count) for x in batch), strict=True)
        blocks += [[np.ascontiguousarray(x) for x in part] for part in parts]
    return blocks


def _by_program(
    program: Program, blocks: Sequence[list[np.ndarray]], buffers: Sequence[Buffers]
) -> dict[int | None, dict[Buffers, Moments]]:
    """Moments of what each normalisation sees, by draw; None: of those that come before any draw."""
    places, run = range(program.num_draws), runner(program)
    sums: dict[int | None, dict[Buffers, Moments]] = {place: {} for place in (None, *places)}

    def observe(step: Step, draw: int | None, arrays: Sequence[Any]) -> list[np.ndarray] | None:
        pair = (step.inputs[1], step.inputs[2]) if step.kind == "batch_norm" else ("", "")
        if pair not in buffers:
            return None
        x, _, _, *affine = arrays
        mean, variance = _add(sums[draw].setdefault(pair, Moments()), x, step.attributes["axis"])
        return [_normalised(x, mean, variance, affine, step.attributes)]

    for block in blocks:
        run(block, places, observe=observe)
    return sums


def _add(moments: Moments, x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Take in a block; its own mean and biased variance by channel."""
    cells, own = _cells(x, axis), Moments()
    require_several(cells.shape[0] * cells.shape[2])
    step = max(1, _CHUNK // max(1, math.prod(cells.shape[1:])))
    for first in range(0, len(cells), step):
        part = cells[first : first + step].astype(np.float64)
        count = part.shape[0] * part.shape[2]
        mean = part.sum(axis=(0, 2)) / count
        part -= mean[:, None]
        own.add(count, mean, np.einsum("rcp,rcp->c", part, part))
    moments.add(own.count, own.mean, own.squares)
    return own.mean, own.squares / own.count


def _cells(x: np.ndarray, axis: int) -> np.ndarray:
    """(rows, channels, places): the channels in the middle, as a view."""
    shape = x.shape
    if x.ndim == 1:
        return x[:, None, None]
    return x.reshape(math.prod(shape[: axis + 1]), shape[axis + 1], math.prod(shape[axis + 2 :]))


def _normalised(
    x: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    affine: Sequence[np.ndarray | None],
    attributes: Mapping[str, Any],
) -> np.ndarray:
    """A block normalised by its own statistics, as torch does in training."""
    cells = torch.from_numpy(_cells(x, attributes["axis"]))

    def numbers(values: np.ndarray | None) -> torch.Tensor | None:
        if values is None:
            return None
        return torch.as_tensor(np.ravel(values), dtype=cells.dtype).expand(len(mean))

    weight, bias = (*affine, None, None)[:2]
    found = F.batch_norm(
        cells,
        numbers(mean),
        numbers(variance),
        numbers(weight),
        numbers(bias),
        eps=attributes["eps"],
    )
    return found.numpy().reshape(x.shape)
