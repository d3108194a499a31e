"""Calibration: the statistics of batch normalisation for each draw of an ensemble, from data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from bayesbin.runtime.batch import normalise_by_batch
from bayesbin.runtime.program import Program, Step

_SLOW = 2.0  # seconds after which a bar shows
_MEMORY = 1 << 28  # bytes of the values of a block of data, about
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
        given, _, _, *affine = arrays
        axis, eps = step.attributes["axis"], step.attributes["eps"]
        channels = given.shape[axis + 2] if given.ndim > 2 else 1
        require_several(given[0].size // channels)
        weight, bias = (
            None
            if each is None
            else np.broadcast_to(each.reshape(len(each), -1), (len(each), channels))
            for each in (*affine, None, None)[:2]
        )
        # Values that another step reads as well stay as they are.
        once = len(program.uses[step.inputs[0]]) == 1 and step.inputs[0] not in program.outputs
        x = given if once and given.flags.writeable else given.copy()
        out, mean, squares = normalise_by_batch(
            np.ascontiguousarray(x), axis, weight, bias, eps, threads=torch.get_num_threads()
        )
        for place, draw in enumerate([None] if draws is None else draws):
            moments = sums[draw].setdefault(pair, ChannelMoments())
            moments.add(given[0].size // channels, mean[place], squares[place])
        return [out]

    for block in blocks:
        run(block, places, observe=observe)
    return sums
