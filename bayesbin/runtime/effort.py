"""How much time and memory a file may ask of whoever predicts with it.

A file of a few kilobytes can describe a network that computes for hours: images that grow with every
padding, a million draws, recurrent layers over long sequences. A file is therefore refused if predicting
one datum with numpy takes more than about a second and 200 megabytes, or more than a file of its size
has reason to; large networks come in large files.

One table, :data:`COSTS`, keyed by the kind of step, estimates both. The numbers are of the numpy backend,
which is the slowest one, on one core of 2024, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bayesbin.runtime.kinds import KINDS, Attributes, Shape
from bayesbin.runtime.model import Model
from bayesbin.runtime.program import DrawnSite, Program, Step

SECONDS, MEGABYTES = 1.0, 160.0  # for a file of no size; what it holds is added to that
_STEP, _TURN = 20e3, 4e3  # nanoseconds of any step, and of any operation on small arrays
_COLUMNS = 1 << 22  # inputs of products that the numpy backend lays out at once


class Cost(NamedTuple):
    """Of one step, for one datum and one draw.

    :param time: in nanoseconds. :param memory: in bytes, beside the values that steps pass on.
    """

    time: float
    memory: float


class Work(NamedTuple):
    """What is known of a step: attributes, shapes that go in and come out, and whether weights are signs."""

    attributes: Attributes
    before: Sequence[Shape]
    after: Sequence[Shape]
    signs: bool

    @property
    def numbers(self) -> int:
        """How many go in and come out."""
        return sum(math.prod(shape) for shape in (*self.before, *self.after))

    @property
    def out(self) -> int:
        """How many come out."""
        return sum(math.prod(shape) for shape in self.after)


def _simple(each: float, copies: float = 0.5) -> Callable[[Work], Cost]:
    """Some nanoseconds for each number, and copies of all of them in float64."""
    return lambda work: Cost(each * work.numbers, 8.0 * copies * work.numbers)


def _product(work: Work) -> Cost:
    """Linear maps and convolutions: panels of 32 inputs under signs, input after input if not."""
    weight = work.before[1]
    inputs, units = math.prod(weight[1:]), weight[0]
    groups = work.attributes.get("groups", 1)
    places = work.out // units
    lines = (
        work.after[0][1] if "groups" in work.attributes else places
    )  # laid out one by one at least
    columns, weights = float(inputs) * groups * places, float(units) * inputs
    time = 40.0 * columns + 350.0 * units + (60 * _TURN * groups if groups > 1 else 0.0)
    if work.signs:
        panels = -(-inputs // 32) * groups
        time += weights * places + 150.0 * panels * places + _TURN * panels + 2.0 * weights
    else:
        time += 4.0 * weights * places + _TURN * inputs * groups + 30.0 * weights
    laid = 3.0 * max(min(columns, _COLUMNS), columns / lines)
    return Cost(time, 8.0 * (work.numbers + laid + _padded(work) + weights + 16.0 * units))


def _padded(work: Work) -> float:
    """Numbers of images with their padding."""
    padding = work.attributes.get("padding")
    if padding is None:
        return 0.0
    pairs = [pad if isinstance(pad, tuple) else (pad, pad) for pad in padding]
    sizes = [size + sum(pair) for size, pair in zip(work.before[0][1:], pairs, strict=True)]
    return float(work.before[0][0]) * math.prod(sizes)


def _transposed(work: Work) -> Cost:
    weight, padding = work.before[1], work.attributes["padding"]
    spread = [size + 2 * pad for size, pad in zip(work.after[0][1:], padding, strict=True)]
    whole = float(work.after[0][0]) * math.prod(spread)
    sums = float(math.prod(work.before[0])) * math.prod(weight[1:])
    turns = weight[0] * math.prod(weight[2:])
    return Cost(4.0 * sums + 6.0 * _TURN * turns, 8.0 * (3.0 * whole + 2.0 * work.numbers))


def _matmul(work: Work) -> Cost:
    shape = work.after[0]
    sums = float(math.prod(shape)) * work.before[0][-1]
    time = 12.0 * sums + _TURN * work.before[0][-1] + 1e3 * math.prod(shape[:-2])
    return Cost(time, 32.0 * work.numbers)


def _attention(work: Work) -> Cost:
    query, key = work.before[:2]
    scores = float(math.prod(work.after[0][:-1])) * key[-2]
    sums = scores * (query[-1] + work.after[0][-1])
    return Cost(
        15.0 * sums + 200.0 * scores + _TURN * (key[-2] + key[-1]),
        64.0 * scores + 16.0 * work.numbers,
    )


def _recurrent(work: Work) -> Cost:
    steps, inputs = work.before[0]
    size = work.before[1][0]
    weights = sum(math.prod(shape) for shape in work.before[2:])
    time = steps * (_TURN * size + 100e3 + 40.0 * weights) + _TURN * inputs
    return Cost(time, 8.0 * (2.0 * steps * 4 * size + 4.0 * weights + work.numbers))


def _pool(work: Work) -> Cost:
    places = math.prod(work.attributes["size"])
    return Cost(places * (3.0 * work.out + 3 * _TURN), 8.0 * (_padded(work) + 2 * work.numbers))


def _adaptive(work: Work) -> Cost:
    """Windows overlap by at most one line on each side."""
    wanted, have = work.after[0][1:], work.before[0][1:]
    numbers = math.prod(size + 2 * out for size, out in zip(have, wanted, strict=True))
    return Cost(3 * _TURN * numbers + 10.0 * work.numbers, 16.0 * work.numbers)


def _one_by_one(work: Work) -> Cost:
    """Reductions that compare or multiply number after number."""
    axes = work.attributes["axes"]
    count = math.prod(work.before[0][axis] for axis in axes)
    return Cost(2 * _TURN * count + 20.0 * work.numbers, 16.0 * work.numbers)


COSTS: dict[str, Callable[[Work], Cost]] = {
    **dict.fromkeys(KINDS, _simple(20.0, 2.0)),  # of those that are not named below
    **dict.fromkeys(("linear", "conv"), _product),
    **dict.fromkeys(("lstm", "gru", "rnn"), _recurrent),
    **dict.fromkeys(("max_pool", "avg_pool"), _pool),
    **dict.fromkeys(("adaptive_max_pool", "adaptive_avg_pool"), _adaptive),
    **dict.fromkeys(("max", "min", "prod", "norm"), _one_by_one),
    **dict.fromkeys(("erf", "gelu", "pow", "tanh"), _simple(75.0, 5.0)),
    **dict.fromkeys(("relu", "clamp", "add", "sub", "mul", "abs", "neg", "affine"), _simple(4.0)),
    **dict.fromkeys(("reshape", "permute", "slice", "flip", "expand", "cast"), _simple(4.0)),
    "conv_transpose": _transposed,
    "matmul": _matmul,
    "attention": _attention,
}  # fmt: skip


def cost_of(step: Step, program: Program) -> Cost:
    """What one step takes for one datum and one draw, with the drawing of its weights."""
    values = program.values
    used = [name for name in step.inputs if name]
    signs = any(name in program.sites for name in used[1:2])
    before = [values[name].shape for name in used]
    work = Work(step.attributes, before, [values[name].shape for name in step.outputs], signs)
    time, memory = COSTS[step.kind](work)
    drawn = sum(
        math.prod(program.sites[name].shape)
        for name in used
        if isinstance(program.sites.get(name), DrawnSite)
    )
    return Cost(_STEP + time + 10.0 * drawn, memory + 24.0 * drawn)


def effort_of(program: Program) -> tuple[float, float]:
    """Seconds and megabytes of predicting one datum with all draws, in numpy, about."""
    once = each = most = 0.0
    for step in program.steps:
        time, memory = cost_of(step, program)
        most = max(most, memory)
        if program.values[step.outputs[0]].drawn:
            each += time
        else:
            once += time
    outputs = sum(program.values[name].size for name in program.outputs)
    each += _STEP + 150.0 * outputs  # the head's part
    most = max(most, 80.0 * outputs)
    return (once + program.num_draws * each) / 1e9, (8.0 * program.peak + most) / 1e6


def check_effort(model: Model, size: int) -> None:
    """Refuse a model that asks for more than a file of ``size`` bytes may.

    :raises ValueError: in a sentence that says what it asks for, and what to do about it.
    """
    seconds, megabytes = effort_of(model.program)
    if model.preprocessing is not None:
        before = effort_of(model.preprocessing)
        seconds, megabytes = seconds + before[0], max(megabytes, before[1])
    bits = 8.0 * size
    # A weight is used once for each place of an image, and larger networks have larger images.
    allowed = SECONDS + 4e-9 * bits**1.5, MEGABYTES + 12e-6 * bits
    if seconds > allowed[0] or megabytes > allowed[1]:
        raise ValueError(
            f"expected a file of {size:,} bytes to ask for at most {allowed[0]:.3g} seconds and "
            f"{allowed[1]:.0f} MB per datum, but it asks for about {seconds:.3g} seconds and "
            f"{megabytes:.0f} MB; if you trust it, load it with trusted=True."
        )
