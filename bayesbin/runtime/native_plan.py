"""Which steps of a program the compiled kernels run, and in which groups.

Steps are grouped so that values pass between the kernels and numpy as seldom as their order allows. Steps
that no draw changes are apart from the others: they are run once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bayesbin.runtime.kinds import Shape
from bayesbin.runtime.program import Program, Step, Value

_NUMBERS = ("f4", "f8")
_MOST_SIGNS = 511 * 64  # whose sums fit 16 bits


@dataclass(frozen=True)
class Group:
    """Steps that run one after another, all in the kernels or all in numpy.

    :param native: whether the kernels run them. :param drawn: whether their values differ between draws.
    :param places: of the steps. :param needs: names of values, and inputs of the program, that come from
        elsewhere. :param gives: names of values that others use.
    """

    native: bool
    drawn: bool
    places: tuple[int, ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]


def groups(program: Program, in_numpy: Collection[str] = ()) -> list[Group]:
    """The groups, in an order in which they can run.

    A step's stage is that of the last group it depends on, or the next where that is of another sort; so a
    group never depends on a step that depends on it.

    :param in_numpy: kinds that the kernels are not to run.
    """
    sorts, stages = [], []
    made_by = {name: place for place, step in enumerate(program.steps) for name in step.outputs}
    for step in program.steps:
        native = step.kind not in in_numpy and runs_natively(program, step)
        sort = (program.values[step.outputs[0]].drawn, native)
        stage = 0
        for name in step.inputs:
            if name in made_by:
                before = made_by[name]
                stage = max(stage, stages[before] + (sorts[before] != sort))
        sorts.append(sort)
        stages.append(stage)
    members: dict[tuple[bool, int, bool], list[int]] = {}
    for place, ((drawn, native), stage) in enumerate(zip(sorts, stages, strict=True)):
        members.setdefault((drawn, stage, native), []).append(place)
    found = [
        _group(program, made_by, native, drawn, places)
        for (drawn, _, native), places in sorted(members.items())
    ]
    return [group for group in found if group.gives]  # the values of others are of no use


def _group(
    program: Program, made_by: dict[str, int], native: bool, drawn: bool, places: list[int]
) -> Group:
    mine = set(places)
    used = dict.fromkeys(
        name
        for place in places
        for name in program.steps[place].inputs
        if name and made_by.get(name) not in mine and (name in made_by or name in program.inputs)
    )
    outputs = [name for place in places for name in program.steps[place].outputs]
    given = [
        name
        for name in outputs
        if name in program.outputs or not mine.issuperset(program.uses.get(name, ()))
    ]
    return Group(native, drawn, tuple(places), tuple(used), tuple(given))


class Decision(NamedTuple):
    """Steps of sums that feed one decision: their places, the layer's first, the decision's last.

    Between them may stand an affine map, which then makes the threshold, and a maximum over windows: it
    reaches a threshold where one of its values does.
    """

    layer: int
    affine: int | None
    pool: int | None
    last: int


def decisions(program: Program, places: Collection[int]) -> list[Decision]:
    """Sums under signs that feed a decision and nothing else.

    The kernels decide about the sums as they form them: about those of signs in whole numbers, about others
    from float32 sums where these are far enough from the threshold, and from float64 sums elsewhere.
    """
    found = []
    for place in places:
        step = program.steps[place]
        if not _forms_sums(program, step):
            continue
        axis = len(program.values[step.inputs[0]].shape) - 1 if step.kind == "linear" else 0
        affine = pool = None
        exact = program.values[step.inputs[0]].signs
        after = _only_use(program, place, places)
        if after is not None and _is_line(program, program.steps[after], axis):
            affine, exact = after, False
            step = program.steps[after]
            after = _only_use(program, after, places)
        if after is not None and _largest(program.steps[after], exact, step.dtype):
            pool = after
            after = _only_use(program, after, places)
        if after is None:
            continue
        last = program.steps[after]
        if last.kind == "sign" or (affine is None and _has_threshold(last, axis)):
            found.append(Decision(place, affine, pool, after))
    return found


def _only_use(program: Program, place: int, places: Collection[int]) -> int | None:
    """The one step among ``places`` that reads what a step gives, first of all its inputs."""
    name = program.steps[place].outputs[0]
    uses = program.uses.get(name, [])
    if len(uses) != 1 or uses[0] not in places or name in program.outputs:
        return None
    return uses[0] if program.steps[uses[0]].inputs[0] == name else None


def _forms_sums(program: Program, step: Step) -> bool:
    """Whether it forms sums under signs, of signs or of float32 numbers in float64, without a bias."""
    x, weight, *bias = step.inputs if step.kind in ("linear", "conv") else ("", "", "")
    if bias:
        return False
    value = program.values[x]
    if weight not in program.sites:
        return False
    if value.signs:
        return math.prod(program.sites[weight].shape[1:]) <= _MOST_SIGNS
    return step.dtype == "f8" and value.dtype == "f4"


def _is_line(program: Program, step: Step, axis: int) -> bool:
    """Whether it is an affine map of each channel that is no constant."""
    if step.kind != "affine" or step.attributes["axis"] != axis:
        return False
    numbers = [program.constants.get(name) for name in step.inputs[1:]]
    if any(each is None or each.levels is not None for each in numbers):
        return False
    slope, shift = (each.data.astype(step.dtype) for each in numbers if each is not None)
    return bool(np.isfinite(slope).all() and np.isfinite(shift).all() and (slope != 0).all())


def _largest(step: Step, exact: bool, dtype: str) -> bool:
    """Whether it takes maxima of numbers of a type, and does not round them."""
    return (
        step.kind == "max_pool"
        and (exact or step.dtype in ("f8", dtype))
        and set(step.attributes["dilation"]) == {1}
    )


def _has_threshold(step: Step, axis: int) -> bool:
    """Whether a step decides about each number by its place along an axis."""
    return step.kind == "threshold" and step.attributes["axis"] == axis


def threshold_of(slope: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The float64 number from which on slope x + shift is at least 0, as it is rounded.

    For slopes below 0 the number up to which it is. Both are finite, float32 or float64, no slope is 0, and
    the map is computed in their type: it rises, or falls, without fail. The numbers in question are counted,
    and the one that divides them is found by halving.
    """
    dtype, sign = slope.dtype, np.where(slope < 0, -1.0, 1.0)

    def reached(count: np.ndarray) -> np.ndarray:
        x = (sign * _number(count)).astype(dtype)
        return x * slope + shift >= 0

    most = _count(np.full(slope.shape, np.finfo(np.float64).max))
    near = _count(-shift.astype(np.float64) / slope * sign)
    far = 1 << (8 if dtype == np.float64 else 34)
    low, high = np.maximum(near - far, -most - 1), np.minimum(near + far, most + 1)
    low = np.where((low >= -most) & reached(low.clip(-most, most)), -most - 1, low)
    high = np.where((high <= most) & ~reached(high.clip(-most, most)), most + 1, high)
    while (high - low > 1).any():  # not reached at low, but at high
        middle = low + (high - low) // 2
        plus = reached(middle.clip(-most, most))
        low, high = np.where(plus, low, middle), np.where(plus, middle, high)
    return sign * np.where(high > most, np.inf, _number(high.clip(-most, most)))


def _count(x: np.ndarray) -> np.ndarray:
    """Numbers in their order: neighbours are one apart."""
    bits = np.nan_to_num(x).view(np.int64)
    return np.where(bits < 0, np.iinfo(np.int64).min - bits, bits)


def _number(count: np.ndarray) -> np.ndarray:
    bits = np.where(count < 0, np.iinfo(np.int64).min - count, count)
    return np.ascontiguousarray(bits, dtype=np.int64).view(np.float64)


# Whether the kernels run a step


def runs_natively(program: Program, step: Step) -> bool:
    """Whether the kernels compute this step."""
    fits = _FITS.get(step.kind)
    if fits is None or step.dtype not in _NUMBERS:
        return False
    if any(program.values[name].size == 0 for name in step.outputs):
        return False
    return fits(program, step)


def _moving(program: Program, name: str) -> bool:
    """Whether a value is of numbers, one for each datum."""
    value = program.values[name]
    return value.batched and value.dtype in _NUMBERS and value.size > 0


def _still(program: Program, name: str) -> bool:
    """Whether it is of numbers that all data share, no packed signs."""
    value = program.values[name]
    return not value.batched and value.dtype in _NUMBERS and name not in program.sites


def _one(program: Program, step: Step) -> bool:
    return _moving(program, step.inputs[0])


def _with_numbers(program: Program, step: Step) -> bool:
    """x, and numbers for each channel."""
    rest = [name for name in step.inputs[1:] if name]
    return _one(program, step) and all(_still(program, name) for name in rest)


def _constants_only(program: Program, step: Step) -> bool:
    """x, and numbers that are known before anything is run."""
    rest = [name for name in step.inputs[1:] if name]
    return _one(program, step) and all(
        name in program.constants and program.constants[name].levels is None for name in rest
    )


def _two(program: Program, step: Step) -> bool:
    moving = [_moving(program, name) for name in step.inputs]
    return any(moving) and all(
        each or _still(program, name) for name, each in zip(step.inputs, moving, strict=True)
    )


def _all(program: Program, step: Step) -> bool:
    return all(_moving(program, name) for name in step.inputs)


def _layer(program: Program, step: Step) -> bool:
    x, weight, *bias = step.inputs
    known = weight in program.sites or _still(program, weight)
    return (
        _moving(program, x)
        and known
        and all(_still(program, name) for name in bias if name)
        and program.values[weight].size > 0
    )


def _plane(program: Program, step: Step) -> bool:
    """Images of one axis or two."""
    return _one(program, step) and len(program.values[step.inputs[0]].shape) in (2, 3)


def _conv(program: Program, step: Step) -> bool:
    return _plane(program, step) and _layer(program, step)


def _single(program: Program, step: Step) -> bool:
    return _one(program, step) and step.dtype == "f4"


def _even(program: Program, step: Step) -> bool:
    """Images whose axes are divided evenly."""
    shape = program.values[step.inputs[0]].shape[1:]
    parts = zip(shape, step.attributes["size"], strict=True)
    return _one(program, step) and all(size % wanted == 0 for size, wanted in parts)


def _taken(program: Program, step: Step) -> bool:
    places = program.constants.get(step.inputs[1])
    return _one(program, step) and places is not None and places.rows is None


_FITS: dict[str, Callable[[Program, Step], bool]] = {
    "linear": _layer,
    "conv": _conv,
    "affine": _with_numbers,
    "batch_norm": _constants_only,
    "sign": _one,
    "threshold": _with_numbers,
    "relu": _one,
    "clamp": _one,
    "tanh": _single,
    "leaky_relu": _one,
    "prelu": _with_numbers,
    "abs": _one,
    "neg": _one,
    "cast": _one,
    "add": _two,
    "sub": _two,
    "mul": _two,
    "maximum": _two,
    "minimum": _two,
    "sum": _one,
    "mean": _one,
    "max_pool": _plane,
    "avg_pool": _plane,
    "adaptive_avg_pool": _even,
    "reshape": _one,
    "permute": _one,
    "slice": _one,
    "concat": _all,
    "pad": _one,
    "expand": _one,
    "flip": _one,
    "take": _taken,
}


def channels_of(value: Value, axis: int) -> tuple[int, int, int]:
    """A value seen as (outer, channels, inner)."""
    shape: Shape = value.shape if value.shape else (1,)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
