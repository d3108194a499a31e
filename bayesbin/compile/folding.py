"""From the program of a network as it is written to the one that is run: fewer steps, exact decisions.

Constants are computed once, normalisation and the scales, biases and shifts around it become one affine
map for each draw, and a run of such maps before a sign becomes a comparison with a threshold. Whatever else
a decision hangs on is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bayesbin.compile.decisions import in_float64, pruned
from bayesbin.runtime import reference
from bayesbin.runtime.program import Constant, Program, Step

# Steps that keep the sign of every number: a sign behind one of them is the sign of what goes into it.
_ODD = {"tanh", "softsign", "cast"}


def fold(program: Program) -> Program:
    """The program to run: the same network with fewer steps and with exact decisions.

    - What depends on no datum and on no binary weight is computed here, in float64, and rounded once.
    - Products and sums with one number per channel, biases of binary layers and normalisation become affine
      maps y = slope (x - centre) + shift; those that follow one another are composed in float64.
    - Such maps before a sign become a threshold on what goes into them, solved backwards in float64: at
      x = mean a normalisation without shift decides exactly as it should.
    - All other values between exact ones (inputs, signs, sums of signs) and a decision become float64.
    """
    program = _fold_constants(program)
    steps, constants = _Maps(program).folded()
    program = replace(program, steps=tuple(steps), constants=constants)
    return pruned(in_float64(pruned(program)))


# Constants


def _fold_constants(program: Program) -> Program:
    """The program with every value computed that depends on constants alone, but for its outputs."""
    known, done, kept = set(program.constants), [], []
    for step in program.steps:
        if known.issuperset(filter(None, step.inputs)) and not known.isdisjoint(step.inputs):
            known |= set(step.outputs)
            done.append(step)
        else:
            kept.append(step)
    used = {name for step in kept for name in step.inputs} - set(program.outputs)
    wanted = tuple(name for step in done for name in step.outputs if name in used)
    if not wanted:
        return program
    alone = replace(program, inputs={}, sites={}, steps=tuple(done), outputs=wanted)
    constants = dict(program.constants)
    for name in wanted:
        drawn = alone.values[name].drawn
        draws = range(program.num_draws) if drawn else [0]
        (found,) = reference.run(replace(alone, outputs=(name,)), [], draws)
        rows = np.arange(program.num_draws, dtype=np.int64) if drawn else None
        constants[name] = Constant(np.ascontiguousarray(found[:, 0]), rows)
    left = (step for step in program.steps if not set(step.outputs) & set(wanted))
    return pruned(replace(program, constants=constants, steps=tuple(left)))


# Affine maps


@dataclass(frozen=True)
class _Stage:
    """y = slope (x - centre) + shift for each draw and channel, float64 (draws or 1, channels or 1)."""

    slope: np.ndarray
    centre: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class _Map:
    """Some stages one after another, of the value ``source``, for the channels of one axis."""

    source: str
    axis: int
    stages: tuple[_Stage, ...]

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Slope and shift of all stages, (draws or 1, channels or 1)."""
        slope, shift = np.ones((1, 1)), np.zeros((1, 1))
        for stage in self.stages:
            slope, shift = stage.slope * slope, stage.slope * (shift - stage.centre) + stage.shift
        return _common(slope, shift)

    def threshold(self) -> tuple[np.ndarray, np.ndarray]:
        """t and d, so that the map is at least 0 where d (x - t) is; (draws or 1, channels or 1).

        0 is led back through the stages: t <- centre + (t - shift) / slope. Where a slope is 0, the map is
        a constant, and t is minus infinity if that is at least 0, and infinity if not. d is the slope of the
        map, of which decisions use the sign and gradients all: it is rounded to float32, but never to 0.
        """
        t, d, slope = np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1))
        with np.errstate(all="ignore"):
            for stage in reversed(self.stages):
                t = stage.centre + (t - stage.shift) / stage.slope
                d = d * np.where(stage.slope < 0.0, -1.0, 1.0)
                slope = slope * np.abs(stage.slope)
        single = np.finfo(np.float32)
        d = d * np.where(slope == slope, np.clip(slope, single.tiny, single.max), 1.0)
        value, flat = np.zeros((1, 1)), np.zeros((1, 1), dtype=bool)
        for stage in self.stages:
            value = stage.slope * (value - stage.centre) + stage.shift
            flat = flat | (stage.slope == 0.0)
        t, d, value, flat = np.broadcast_arrays(t, d, value, flat)
        always = np.where(value >= 0.0, -np.inf, np.inf)
        return np.where(flat, always, t), np.where(flat, 1.0, d)


class _Maps:
    """The steps of a program on their way to fewer, with the affine maps that have been met."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.constants = dict(program.constants)
        self.values = program.values
        self.maps: dict[str, _Map] = {}
        self.makers = {name: step for step in program.steps for name in step.outputs}
        self.steps: list[Step] = []

    def folded(self) -> tuple[list[Step], Mapping[str, Constant]]:
        """The new steps and constants; steps that nothing needs any more are still among them."""
        for step in self.program.steps:
            found = self._map_of(step)
            if found is not None:
                self._add_map(step, found)
            elif step.kind == "sign" and (led := self._before_sign(step)) is not None:
                self._add_threshold(step, led)
            else:
                self.steps.append(self._without_bias(step))
        return self.steps, self.constants

    def _map_of(self, step: Step) -> _Map | None:
        """The map that a step is, together with those before it that only it uses."""
        stage = self._stage_of(step)
        if stage is None:
            return None
        source, axis, found = stage
        before = self.maps.get(source)
        alone = len(self.program.uses.get(source, ())) == 1 and source not in self.program.outputs
        if before is None or not alone or not _fit(before, axis, found):
            return _Map(source, axis, (found,))
        along = axis if all(map(_is_single, before.stages)) else before.axis
        return _Map(before.source, along, (*before.stages, found))

    def _stage_of(self, step: Step) -> tuple[str, int, _Stage] | None:
        """Where a step is affine in one value: that value, the axis of channels, slope, centre and shift."""
        if step.kind in ("affine", "batch_norm"):
            if not all(name in self.constants for name in step.inputs[1:] if name):
                return None
            numbers = [self._numbers(name) if name else None for name in step.inputs[1:]]
            axis = step.attributes["axis"]
            if step.kind == "affine":
                return step.inputs[0], axis, _stage(slope=numbers[0], shift=numbers[1])
            mean, variance, weight, bias = (*numbers, None, None)[:4]
            assert mean is not None and variance is not None
            slope = 1.0 / np.sqrt(variance + step.attributes["eps"])
            slope = slope if weight is None else slope * weight
            return step.inputs[0], axis, _stage(slope=slope, centre=mean, shift=bias)
        return self._arithmetic(step)

    def _arithmetic(self, step: Step) -> tuple[str, int, _Stage] | None:
        """A sum, difference, product or quotient of a value and one number per channel."""
        if step.kind == "neg":
            return step.inputs[0], 0, _stage(slope=-np.ones((1, 1)))
        if step.kind not in ("add", "sub", "mul", "div"):
            return None
        turned = step.inputs[0] in self.constants
        x, name = reversed(step.inputs) if turned else step.inputs
        value = self.values[x]
        floats = {step.dtype, value.dtype} <= {"f4", "f8"}
        if not floats or not value.batched or self.values[step.outputs[0]].shape != value.shape:
            return None
        found = self._per_channel(name, len(value.shape))
        stage = None if found is None else _stage_with(step.kind, turned, found[1])
        return None if found is None or stage is None else (x, found[0], stage)

    def _per_channel(self, name: str, rank: int) -> tuple[int, np.ndarray] | None:
        """The axis along which a constant changes, and its numbers; None where it changes along several."""
        constant = self.constants.get(name)
        if constant is None or constant.dtype not in ("f4", "f8"):
            return None
        shape = (1,) * (rank - len(constant.shape)) + constant.shape
        wide = [place for place, size in enumerate(shape) if size != 1]
        if len(wide) > 1:
            return None
        return (wide[0] if wide else 0), self._numbers(name)

    def _numbers(self, name: str) -> np.ndarray:
        """A constant's numbers, float64 (draws or 1, channels or 1)."""
        constant = self.constants[name]
        if constant.rows is None:
            return constant.at(0).astype(np.float64).reshape(1, -1)
        rows = [constant.at(draw).reshape(-1) for draw in range(self.program.num_draws)]
        return np.stack(rows).astype(np.float64)

    def _add_map(self, step: Step, found: _Map) -> None:
        (name,) = step.outputs
        self.maps[name] = found
        slope, shift = found.line()
        dtype = np.float64 if step.dtype == "f8" else np.float32
        inputs = (found.source, self._constant(f"{name}.slope", slope, dtype))
        inputs = (*inputs, self._constant(f"{name}.shift", shift, dtype))
        self.steps.append(Step("affine", inputs, (name,), step.dtype, {"axis": found.axis}))

    def _add_threshold(self, step: Step, led: _Map) -> None:
        (name,) = step.outputs
        t, d = led.threshold()
        inputs = (led.source, self._constant(f"{name}.threshold", t, np.float64))
        inputs = (*inputs, self._constant(f"{name}.direction", d, np.float32))
        self.steps.append(Step("threshold", inputs, (name,), step.dtype, {"axis": led.axis}))

    def _before_sign(self, step: Step) -> _Map | None:
        """The map whose sign a step takes."""
        (name,) = step.inputs
        while name not in self.maps and name in self.makers and _keeps_signs(self.makers[name]):
            name = self.makers[name].inputs[0]
        return self.maps.get(name)

    def _constant(self, name: str, numbers: np.ndarray, dtype: type) -> str:
        while name in self.values or name in self.constants:
            name += "'"
        data = numbers[:, 0] if numbers.shape[1] == 1 else numbers
        rows = None if len(data) == 1 else np.arange(len(data), dtype=np.int64)
        with np.errstate(over="ignore"):
            self.constants[name] = Constant(np.ascontiguousarray(data.astype(dtype)), rows)
        return name

    def _without_bias(self, step: Step) -> Step:
        """A binary layer, its bias put into an affine map behind it."""
        binary = step.kind in ("linear", "conv") and step.inputs[1] in self.program.sites
        if not binary or len(step.inputs) < 3 or not step.inputs[2]:
            return step
        x, weight, bias = step.inputs
        if bias not in self.constants:
            return step
        (name,) = step.outputs
        sums = f"{name}.sums"
        while sums in self.values:
            sums += "'"
        rank = len(self.values[name].shape)
        axis = rank - 1 if step.kind == "linear" else 0
        self.steps.append(replace(step, inputs=(x, weight), outputs=(sums,)))
        found = _Map(sums, axis, (_stage(shift=self._numbers(bias)),))
        self._add_map(replace(step, kind="affine", outputs=(name,), attributes={}), found)
        return self.steps.pop()


def _stage_with(kind: str, turned: bool, c: np.ndarray) -> _Stage | None:
    """x kind c, or if turned c kind x; None where that is not affine."""
    if kind == "add":
        return _stage(shift=c)
    if kind == "sub":
        return _stage(slope=-np.ones((1, 1)), shift=c) if turned else _stage(centre=c)
    if kind == "mul":
        return _stage(slope=c)
    return None if turned or not np.all(c) else _stage(slope=1.0 / c)


def _stage(
    slope: np.ndarray | None = None,
    centre: np.ndarray | None = None,
    shift: np.ndarray | None = None,
) -> _Stage:
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    return _Stage(
        one if slope is None else slope,
        zero if centre is None else centre,
        zero if shift is None else shift,
    )


def _is_single(stage: _Stage) -> bool:
    """Whether a stage has one number for all channels."""
    return stage.slope.shape[1] == stage.centre.shape[1] == stage.shift.shape[1] == 1


def _fit(before: _Map, axis: int, stage: _Stage) -> bool:
    """Whether a stage may follow a map: of one axis, or of one number for all channels."""
    return before.axis == axis or _is_single(stage) or all(map(_is_single, before.stages))


def _keeps_signs(step: Step) -> bool:
    """Whether a number is at least 0 after a step just where it was before it."""
    if step.kind == "clamp":
        return step.attributes["low"] < 0.0 <= step.attributes["high"]
    return step.kind in _ODD or (step.kind == "leaky_relu" and step.attributes["slope"] > 0.0)


def _common(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.broadcast_arrays(a, b)
    return first, second
