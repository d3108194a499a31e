"""A group of steps as a program of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesbin.runtime import reference
from bayesbin.runtime.kinds import Shape
from bayesbin.runtime.native_plan import Decision, Group, channels_of, decisions, threshold_of
from bayesbin.runtime.program import DrawnSite, Program, Step
from bayesbin.runtime.reference_elementwise import in_range

# Which sums a layer marks that are not numbers, for a maximum of decisions to see them
_NO_MARKS, _RISING, _ALL = range(3)


@dataclass(frozen=True)
class Argument:
    """Numbers that each call hands over: a value that all data share, as the kernels want it."""

    name: str
    dtype: str
    shape: Shape

    def of(self, array: np.ndarray) -> np.ndarray:
        """In one row, from an array (1, *shape of the value)."""
        with np.errstate(all="ignore"):
            wanted = np.broadcast_to(array[0].astype(self.dtype, copy=False), self.shape)
        return np.ascontiguousarray(wanted).reshape(math.prod(self.shape))


class Region:
    """A group of steps, built once and run for any draws and rows.

    :param kernels: the extension module. :param fast: whether sums of real inputs are in 16-bit numbers.
    """

    def __init__(self, kernels: Any, program: Program, group: Group, fast: bool = False) -> None:
        self.kernels, self.program, self.group, self.fast = kernels, program, group, fast
        self.built = kernels.Program(program.num_draws)
        self.inputs: list[str] = []
        self.arguments: list[Argument] = []
        self._slots: dict[str, int] = {}
        self._numbers: dict[Argument, Any] = {}
        self._sites: dict[str, Any] = {}
        found = decisions(program, set(group.places))
        self._decisions = {each.layer: each for each in found}
        self.kinds: dict[int, str] = {}  # of the sums of each layer, by the place of its step
        with np.errstate(all="ignore"):  # infinities and NaN are numbers like others
            self._build()
        self.outputs = [(name, program.values[name]) for name in group.gives]
        for name, value in self.outputs:
            self.built.output(self._slots[name], value.dtype)
        self.built.finish()

    def _build(self) -> None:
        done = {place for each in self._decisions.values() for place in each[1:]}
        for place in self.group.places:
            if place in done:
                continue
            step = self.program.steps[place]
            slot = _EMIT[step.kind](self, step, place)
            if place in self._decisions:
                step = self.program.steps[self._decisions[place].last]
            self._slots[step.outputs[0]] = slot

    def run(
        self,
        given: Mapping[str, np.ndarray],
        draws: Sequence[int],
        rows: int,
        threads: int,
        isa: str,
    ) -> dict[str, np.ndarray]:
        """The values that others use, (draws, rows, *shape).

        :param given: what the group needs, (draws or 1, rows, *shape); of values that all data share
            (draws or 1, 1, *shape).
        """
        arrays = [self._rows_of(given[name], name, rows) for name in self.inputs]
        handed = [
            np.stack([argument.of(each) for each in given[argument.name]])
            for argument in self.arguments
        ]
        found = [np.empty((len(draws), rows, value.size), value.dtype) for _, value in self.outputs]
        self.built.run(isa, arrays, handed, draws, found, threads)
        return {
            name: array.reshape(len(draws), rows, *value.shape)
            for (name, value), array in zip(self.outputs, found, strict=True)
        }

    def _rows_of(self, array: np.ndarray, name: str, rows: int) -> np.ndarray:
        value = self.program.values[name]
        if array.shape[1] != rows:  # one row for all
            array = np.broadcast_to(array, (len(array), rows, *array.shape[2:]))
        array = np.ascontiguousarray(array, dtype=value.dtype)
        return array.reshape(len(array), rows, value.size)

    # What the steps are made of

    def slot(self, name: str) -> int:
        """Where a value is; one that comes from elsewhere becomes an input."""
        if name not in self._slots:
            value = self.program.values[name]
            self.inputs.append(name)
            self._slots[name] = self.built.input(
                value.size, value.dtype, value.signs, not value.drawn
            )
        return self._slots[name]

    def numbers(self, name: str, dtype: str, shape: Shape | None = None) -> Any:
        """Numbers that all data share, converted and repeated."""
        key = Argument(name, dtype, self.program.values[name].shape if shape is None else shape)
        if key in self._numbers:
            return self._numbers[key]
        constant = self.program.constants.get(name)
        if constant is None or constant.levels is not None:
            self.arguments.append(key)
            found = self.built.argument(dtype, math.prod(key.shape))
        else:
            data = constant.data.astype(dtype, copy=False)
            data = np.broadcast_to(data, (len(data), *key.shape))
            found = self.built.numbers(np.ascontiguousarray(data), constant.rows)
        self._numbers[key] = found
        return found

    def site(self, name: str) -> Any:
        """Signs of weights."""
        if name not in self._sites:
            site = self.program.sites[name]
            if isinstance(site, DrawnSite):
                arrays = (site.mode, site.flip, site.keys)
                found = self.built.drawn(*map(np.ascontiguousarray, arrays), site.rows)
            else:
                inputs = math.prod(site.shape[1:])
                found = self.built.stored(np.ascontiguousarray(site.bits), inputs, site.rows)
            self._sites[name] = found
        return self._sites[name]

    def shape(self, name: str) -> Shape:
        return self.program.values[name].shape

    # Layers

    def layer(self, step: Step, place: int, geometry: Any, channels: tuple[int, int, int]) -> int:
        """Sums with weights of either sort."""
        x, weight, *rest = step.inputs
        bias = rest[0] if rest else ""
        units = (channels[1],)
        if weight not in self.program.sites:
            weights = self.numbers(weight, _dtype_of(self.program, weight))
            added = self.numbers(bias, step.dtype, units) if bias else None
            return self.built.real_layer(self.slot(x), geometry, weights, added, step.dtype)
        if place in self._decisions:
            return self._decided(step, self._decisions[place], geometry, units)
        kind = "real"
        if self.program.values[x].signs:
            kind = "sign"
        elif self.fast and step.kind == "linear" and step.dtype == "f4":
            kind = "fast"
        self.kinds[place] = kind
        slot = self.built.sign_layer(self.slot(x), geometry, self.site(weight), kind, step.dtype)
        if not bias:
            return slot
        added = self.numbers(bias, step.dtype, units)
        return self.built.per_channel(slot, "bias", *channels, added, None, step.dtype)

    def _decided(self, step: Step, decision: Decision, geometry: Any, units: Shape) -> int:
        """Decisions about sums, or about maxima of them."""
        x, weight = step.inputs
        kind = "decide_sign" if self.program.values[x].signs else "decide"
        self.kinds[decision.layer] = kind
        t, d = self._thresholds(decision, units)
        marks = _NO_MARKS
        if decision.pool is not None:  # behind an affine map the maximum is of what has risen
            marks = _RISING if decision.affine is None else _ALL
        slot = self.built.sign_layer(
            self.slot(x), geometry, self.site(weight), kind, step.dtype, t, d, marks
        )
        if decision.pool is None:
            return slot
        if decision.affine is not None:
            d = self.built.numbers(np.ones((1, *units)))
        return self.built.pool_signs(slot, *_pooled(self, self.program.steps[decision.pool]), d)

    def _thresholds(self, decision: Decision, shape: Shape) -> tuple[Any, Any]:
        """t and d of a decision, for each unit."""
        last = self.program.steps[decision.last]
        if decision.affine is not None:
            return self._led_back(self.program.steps[decision.affine], shape)
        if last.kind == "threshold":
            names = last.inputs[1:]
            return self.numbers(names[0], "f8", shape), self.numbers(names[1], "f8", shape)
        return self.built.numbers(np.zeros((1, *shape))), self.built.numbers(np.ones((1, *shape)))

    def _led_back(self, step: Step, shape: Shape) -> tuple[Any, Any]:
        """Thresholds on what goes into an affine map."""
        constants = [self.program.constants[name] for name in step.inputs[1:]]
        draws = range(self.program.num_draws)
        if all(each.rows is None for each in constants):
            draws = range(1)
        slope, shift = (
            np.stack([np.broadcast_to(each.at(draw), shape) for draw in draws]).astype(step.dtype)
            for each in constants
        )
        rows = None if len(draws) == 1 else np.arange(len(draws), dtype=np.int64)
        t, d = threshold_of(slope, shift), np.sign(slope).astype(np.float64)
        return self.built.numbers(t, rows), self.built.numbers(d, rows)

    # Numbers that move

    def moved(self, names: Sequence[str], places: np.ndarray, dtype: str, fill: float = 0.0) -> int:
        """Numbers in other places: each one's place among those of all values, one after another."""
        slots = [self.slot(name) for name in names]
        flat = np.ascontiguousarray(places, dtype=np.int64).reshape(-1)
        return self.built.move(slots, flat, fill, dtype)

    def places(self, name: str, first: int = 0) -> np.ndarray:
        """The places of a value's numbers, (1, *shape)."""
        shape = self.shape(name)
        return np.arange(first, first + math.prod(shape)).reshape(1, *shape)

    def expanded(self, name: str, shape: Shape, dtype: str) -> int:
        """A value repeated to a shape."""
        if self.shape(name) == shape:
            return self.slot(name)
        places = self.places(name)[0]
        return self.moved([name], np.broadcast_to(places, shape), dtype)


def _dtype_of(program: Program, name: str) -> str:
    return program.values[name].dtype


# One function for each kind: it adds the step and says where its output is


def _linear(region: Region, step: Step, place: int) -> int:
    shape = region.shape(step.inputs[0])
    units = region.shape(step.inputs[1])[0]
    positions = math.prod(shape[:-1])
    geometry = region.kernels.Geometry(channels=shape[-1], units=units, positions=positions)
    return region.layer(step, place, geometry, (positions, units, 1))


def _conv(region: Region, step: Step, place: int) -> int:
    x, weight = region.shape(step.inputs[0]), region.shape(step.inputs[1])
    attributes = step.attributes
    axes = [
        region.kernels.Axis(size, wide, hop, low, high, spread)
        for size, wide, hop, (low, high), spread in zip(
            x[1:], weight[2:], attributes["stride"], attributes["padding"], attributes["dilation"],
            strict=True,
        )
    ]  # fmt: skip
    if len(axes) == 1:
        axes.insert(0, region.kernels.Axis())
    groups = attributes["groups"]
    geometry = region.kernels.Geometry(x[0], weight[0], groups, 1, *axes)
    pixels = math.prod(region.shape(step.outputs[0])[1:])
    return region.layer(step, place, geometry, (1, weight[0], pixels))


def _per_channel(name: str) -> Callable[[Region, Step, int], int]:
    def emit(region: Region, step: Step, place: int) -> int:
        x, *rest = step.inputs
        channels = channels_of(region.program.values[x], step.attributes["axis"])
        numbers = [region.numbers(each, step.dtype, channels[1:2]) for each in rest]
        numbers += [None] * (2 - len(numbers))
        return region.built.per_channel(region.slot(x), name, *channels, *numbers, step.dtype)

    return emit


def _batch_norm(region: Region, step: Step, place: int) -> int:
    x, mean, variance, *rest = step.inputs
    channels = channels_of(region.program.values[x], step.attributes["axis"])
    shape = channels[1:2]
    constant = region.program.constants[variance]
    root = np.sqrt(constant.data.astype(np.float64) + step.attributes["eps"])
    root = np.ascontiguousarray(np.broadcast_to(root, (len(root), *shape)))
    scales = [region.numbers(name, "f8", shape) if name else None for name in rest]
    scales += [None] * (2 - len(scales))
    return region.built.norm(
        region.slot(x), *channels, region.numbers(mean, "f8", shape),
        region.built.numbers(root, constant.rows), *scales, step.dtype,
    )  # fmt: skip


def _sign(region: Region, step: Step, place: int) -> int:
    return region.built.sign(region.slot(step.inputs[0]))


def _threshold(region: Region, step: Step, place: int) -> int:
    x, *rest = step.inputs
    channels = channels_of(region.program.values[x], step.attributes["axis"])
    numbers = [region.numbers(name, "f8", channels[1:2]) for name in rest]
    return region.built.threshold(region.slot(x), *channels, *numbers)


def _unary(*names: str) -> Callable[[Region, Step, int], int]:
    """A step of one number each; its attributes, by name, are up to two numbers."""

    def emit(region: Region, step: Step, place: int) -> int:
        numbers = [_rounded(step.attributes[name], step.dtype) for name in names]
        numbers += [0.0] * (2 - len(numbers))
        return region.built.unary(region.slot(step.inputs[0]), step.kind, *numbers, step.dtype)

    return emit


def _rounded(number: float, dtype: str) -> float:
    return float(np.dtype(dtype).type(in_range(number)))


def _binary(region: Region, step: Step, place: int) -> int:
    a, b = step.inputs
    shape = region.shape(step.outputs[0])
    moving = [region.program.values[name].batched for name in step.inputs]
    if all(moving):
        slots = [region.expanded(name, shape, step.dtype) for name in step.inputs]
        return region.built.binary(*slots, step.kind, step.dtype)
    x, numbers = (a, b) if moving[0] else (b, a)
    return region.built.with_numbers(
        region.expanded(x, shape, step.dtype), region.numbers(numbers, step.dtype, shape),
        step.kind, moving[0], step.dtype,
    )  # fmt: skip


def _pooled(region: Region, step: Step) -> tuple[Any, ...]:
    """Channels, the windows along both axes, and how many there are."""
    shape, out = region.shape(step.inputs[0]), region.shape(step.outputs[0])
    of = step.attributes
    dilation = of.get("dilation", (1,) * (len(shape) - 1))
    axes = [
        region.kernels.Axis(size, wide, hop, pad, pad, spread)
        for size, wide, hop, pad, spread in zip(
            shape[1:], of["size"], of["stride"], of["padding"], dilation, strict=True
        )
    ]
    places = list(out[1:])
    if len(axes) == 1:
        axes.insert(0, region.kernels.Axis())
        places.insert(0, 1)
    return shape[0], *axes, *places


def _pool(region: Region, step: Step, place: int) -> int:
    of = step.attributes
    return region.built.pool(
        region.slot(step.inputs[0]), step.kind == "max_pool", *_pooled(region, step),
        of.get("count_padding", True), of.get("divisor", 0), step.dtype,
    )  # fmt: skip


def _reduced(region: Region, step: Step, place: int) -> int:
    x = step.inputs[0]
    axes = sorted(step.attributes["axes"])
    shape = region.shape(x)
    order = [axis for axis in range(len(shape)) if axis not in axes] + axes
    slot = region.slot(x)
    if order != list(range(len(shape))):
        slot = region.moved([x], region.places(x)[0].transpose(order), _dtype_of(region.program, x))
    count = math.prod(shape[axis] for axis in axes)
    return region.built.sum(slot, count, step.kind == "mean", step.dtype)


def _adaptive(region: Region, step: Step, place: int) -> int:
    x, size = step.inputs[0], step.attributes["size"]
    shape = region.shape(x)
    split = [
        part
        for have, wanted in zip(shape[1:], size, strict=True)
        for part in (wanted, have // wanted)
    ]
    axes = len(size)
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
    places = region.places(x).reshape(shape[0], *split).transpose(order)
    slot = region.slot(x)
    if math.prod(size) > 1:
        slot = region.moved([x], places, _dtype_of(region.program, x))
    return region.built.sum(slot, math.prod(split[1::2]), True, step.dtype)


def _reshape(region: Region, step: Step, place: int) -> int:
    """Values stay where they are, unless they are rounded."""
    x = step.inputs[0]
    if (_dtype_of(region.program, x), step.dtype) != ("f8", "f4"):
        return region.slot(x)
    return region.moved([x], region.places(x), step.dtype)


def _move(region: Region, step: Step, place: int) -> int:
    """Whatever numpy does with the numbers, it does with their places."""
    x, *rest = step.inputs
    attributes, fill = dict(step.attributes), 0.0
    if step.kind == "pad":
        fill, attributes["value"] = _rounded(attributes["value"], step.dtype), -1
    arrays = [region.places(x), *(region.program.constants[name].data[:1] for name in rest)]
    of_places = Step(step.kind, step.inputs, step.outputs, "i8", attributes)
    (places,) = reference.compute(of_places, arrays)
    return region.moved([x], places, step.dtype, fill)


def _concat(region: Region, step: Step, place: int) -> int:
    arrays, first = [], 0
    for name in step.inputs:
        arrays.append(region.places(name, first))
        first += arrays[-1].size
    places = np.concatenate(arrays, axis=step.attributes["axis"] + 1)
    return region.moved(step.inputs, places, step.dtype)


_EMIT: dict[str, Callable[[Region, Step, int], int]] = {
    "linear": _linear,
    "conv": _conv,
    "affine": _per_channel("affine"),
    "prelu": _per_channel("prelu"),
    "batch_norm": _batch_norm,
    "sign": _sign,
    "threshold": _threshold,
    "relu": _unary(),
    "clamp": _unary("low", "high"),
    "tanh": _unary(),
    "leaky_relu": _unary("slope"),
    "abs": _unary(),
    "neg": _unary(),
    "cast": _reshape,
    "add": _binary,
    "sub": _binary,
    "mul": _binary,
    "maximum": _binary,
    "minimum": _binary,
    "sum": _reduced,
    "mean": _reduced,
    "max_pool": _pool,
    "avg_pool": _pool,
    "adaptive_avg_pool": _adaptive,
    "reshape": _reshape,
    "permute": _move,
    "slice": _move,
    "concat": _concat,
    "pad": _move,
    "expand": _move,
    "flip": _move,
    "take": _move,
}
