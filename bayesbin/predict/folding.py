"""Scales, biases and normalisation between two layers, folded into one line per channel and draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.nn.state_norm import Statistics
from bayesbin.predict.program import (
    Activation,
    Add,
    Affine,
    Flatten,
    Pool,
    Push,
    Step,
    Swap,
    Weighted,
    affine_at,
)


@dataclass(frozen=True)
class Folded:
    """y = slope x + shift for each draw and channel, float32 of shape (draws or 1, channels or 1)."""

    slope: np.ndarray
    shift: np.ndarray


Operation = Weighted | Folded | Activation | Pool | Flatten | Push | Swap | Add


def fold(
    net: nn.Module,
    steps: Sequence[Step],
    draws: Sequence[int | None],
    seed: int,
    statistics: Statistics | None,
) -> list[Operation]:
    """The steps with every run of lines replaced by one, computed in float64 for each draw.

    :param draws: indices of draws; None is the mode. :param statistics: of those draws, if any.
    """
    result: list[Operation] = []
    for is_line, group in groupby(steps, key=lambda step: isinstance(step, Affine)):
        run = list(group)
        if is_line:
            result.append(
                _fold_run(net, [s for s in run if isinstance(s, Affine)], draws, seed, statistics)
            )
        else:
            result += [step for step in run if not isinstance(step, Affine)]
    return result


def _fold_run(
    net: nn.Module,
    lines: list[Affine],
    draws: Sequence[int | None],
    seed: int,
    statistics: Statistics | None,
) -> Folded:
    changes = statistics is not None and any(line.norm is not None for line in lines)
    slopes: list[Tensor] = []
    shifts: list[Tensor] = []
    for index in draws if changes else [None]:
        state = None
        if changes and statistics is not None:
            state = statistics.mode if index is None else statistics.of_draw(index, seed)
        slope, shift = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for line in lines:
            a, b = affine_at(net, line, state)
            slope, shift = a * slope, a * shift + b
        slope, shift = torch.broadcast_tensors(slope, shift)
        slopes.append(slope.reshape(-1))
        shifts.append(shift.reshape(-1))
    return Folded(
        torch.stack(slopes).float().cpu().numpy(), torch.stack(shifts).float().cpu().numpy()
    )
