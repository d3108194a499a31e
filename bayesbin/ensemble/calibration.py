"""Calibration: the statistics of batch normalisation for each draw of an ensemble, from data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bayesbin.ensemble.in_torch import statistics_of_draws
from bayesbin.ensemble.inputs import NetworkInputs
from bayesbin.ensemble.members import Draw, Member, Statistics
from bayesbin.ensemble.programs import raw_program, runner
from bayesbin.nn.batch_statistics import Buffers, ChannelMoments, in_buffers, require_several
from bayesbin.runtime.program import Program, Step

_SLOW = 2.0  # seconds after which a bar shows
_MEMORY = 1 << 28  # bytes of the values of a block of data, about
_CHUNK = 1 << 15  # numbers whose moments are computed at a time
_DRAWS = 16  # at a time: what does not depend on the draw is computed once for them

Values = Mapping[str, torch.Tensor]


def statistics(
    members: Sequence[Member],
    inputs: NetworkInputs,
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
    member: Member, inputs: NetworkInputs, buffers: Sequence[Buffers], bar: Any
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


def _blocks(program: Program, inputs: NetworkInputs) -> list[list[np.ndarray]]:
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
) -> dict[int | None, dict[Buffers, ChannelMoments]]:
    """Moments of what each normalisation sees, by draw; None: of those that come before any draw."""
    places, run = range(program.num_draws), runner(program)
    sums: dict[int | None, dict[Buffers, ChannelMoments]] = {place: {} for place in (None, *places)}

    def observe(
        step: Step, draws: Sequence[int] | None, arrays: Sequence[Any]
    ) -> list[np.ndarray] | None:
        pair = (step.inputs[1], step.inputs[2]) if step.kind == "batch_norm" else ("", "")
        if pair not in buffers:
            return None
        x, _, _, *affine = arrays
        out, norm = np.empty_like(x, order="C"), (step.attributes["axis"], step.attributes["eps"])

        def work(task: tuple[int, int | None]) -> None:
            place, draw = task
            own = [None if each is None else each[place % len(each)] for each in affine]
            _take_in(
                sums[draw].setdefault(pair, ChannelMoments()), x[place], out[place], own, *norm
            )

        # numpy's loops run side by side; each draw's numbers are its own, whatever the threads.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(work, enumerate([None] if draws is None else draws)))
        return [out]

    for block in blocks:
        run(block, places, observe=observe)
    return sums


def _take_in(
    moments: ChannelMoments,
    x: np.ndarray,
    out: np.ndarray,
    affine: Sequence[np.ndarray | None],
    axis: int,
    eps: float,
) -> None:
    """Take in a block of one draw, (B, *shape), and normalise it by its own mean and biased variance."""
    cells, target = _cells(np.ascontiguousarray(x), axis), _cells(out, axis)
    require_several(cells.shape[0] * cells.shape[2])
    step = max(1, _CHUNK // max(1, math.prod(cells.shape[1:])))
    chunks = [slice(first, first + step) for first in range(0, len(cells), step)]
    # Deviations from a number near the mean: their squares lose no digits.
    centre = cells[0].mean(axis=1, dtype=np.float64)
    wide = np.empty((min(step, len(cells)), *cells.shape[1:]))
    total, squares = np.zeros_like(centre), np.zeros_like(centre)
    for rows in chunks:
        part = wide[: len(cells[rows])]
        np.subtract(cells[rows], centre[:, None], out=part)
        total += np.einsum("rcp->rc", part).sum(axis=0)
        squares += np.einsum("rcp,rcp->rc", part, part).sum(axis=0)
    count = cells.shape[0] * cells.shape[2]
    apart = total / count
    squares -= total * apart
    moments.add(count, centre + apart, squares)
    weight, bias = (*affine, None, None)[:2]
    slope = 1.0 / np.sqrt(squares / count + eps)
    slope = slope if weight is None else slope * np.ravel(weight)
    shift = np.zeros(1) if bias is None else np.ravel(bias)
    numbers = [each.astype(x.dtype)[:, None] for each in (centre + apart, slope, shift)]
    for rows in chunks:
        part = target[rows]
        np.subtract(cells[rows], numbers[0], out=part)
        part *= numbers[1]
        part += numbers[2]


def _cells(x: np.ndarray, axis: int) -> np.ndarray:
    """(rows, channels, places): the channels in the middle, as a view."""
    shape = x.shape
    if x.ndim == 1:
        return x[:, None, None]
    return x.reshape(math.prod(shape[: axis + 1]), shape[axis + 1], math.prod(shape[axis + 2 :]))
