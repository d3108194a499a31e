"""Which values of a program a decision hangs on: they are computed in float64, the same on every backend."""

from __future__ import annotations

import math
from dataclasses import replace

from bayesbin.runtime.program import Program, Step

# Kinds that decide: a number rounded to the other side of a bound changes their answer.
_DECIDE = {"sign", "threshold", "greater", "greater_equal", "equal", "floor", "round", "hardshrink"}
# Kinds of which whole numbers make whole numbers.
_KEEP_WHOLE = {
    "add", "sub", "mul", "neg", "abs", "relu", "maximum", "minimum", "where", "sum", "max", "min",
    "max_pool", "adaptive_max_pool", "reshape", "permute", "slice", "concat", "expand", "flip",
    "take", "cast",
}  # fmt: skip
LARGEST_WHOLE = 1 << 24  # up to which float32 holds every whole number


def in_float64(program: Program) -> Program:
    """The program with float64 for every value that leads to a decision and is not exact already.

    Exact are inputs, constants, signs and whole numbers, and sums of signs with binary weights. What a
    step computes in float64 is rounded to float32 where a step of float32 uses it.
    """
    whole = _whole_numbers(program)
    wanted: set[str] = set()
    steps: list[Step] = []
    for step in reversed(program.steps):
        if step.kind in _DECIDE:
            wanted |= set(step.inputs)
        if wanted & set(step.outputs) and step.dtype == "f4":
            if not all(name in whole for name in step.outputs):
                step = replace(step, dtype="f8")
                wanted |= set(step.inputs)
        elif wanted & set(step.outputs):
            wanted |= set(step.inputs)  # a decision of float64 may hang on values of float32
        steps.append(step)
    return replace(program, steps=tuple(_with_outputs_rounded(program, steps[::-1])))


def _with_outputs_rounded(program: Program, steps: list[Step]) -> list[Step]:
    """The steps, with outputs of the program that became float64 rounded to the type they had."""
    exact: dict[str, str] = {}
    found: list[Step] = []
    for before, step in zip(program.steps, steps, strict=True):
        step = replace(step, inputs=tuple(exact.get(name, name) for name in step.inputs))
        if step.dtype == before.dtype or not set(step.outputs) & set(program.outputs):
            found.append(step)
            continue
        names = {name: _new_name(f"{name}.exact", program) for name in step.outputs}
        exact |= names
        found.append(replace(step, outputs=tuple(names.values())))
        found += [Step("cast", (other,), (name,), before.dtype) for name, other in names.items()]
    return found


def _new_name(name: str, program: Program) -> str:
    while name in program.values:
        name += "'"
    return name


def _whole_numbers(program: Program) -> dict[str, int]:
    """Names whose values are whole numbers that float32 holds, with a bound on their size."""
    values = program.values
    bounds = {name: 1 for name, value in values.items() if value.signs}
    for step in program.steps:
        bound = _bound_of(step, bounds, program)
        if bound is not None and bound <= LARGEST_WHOLE:
            for name in step.outputs:
                bounds[name] = bound
    return bounds


def _bound_of(step: Step, bounds: dict[str, int], program: Program) -> int | None:
    """A bound on the whole numbers that a step makes, None where they need not be whole."""
    values = program.values
    if not all(name in bounds for name in step.inputs if name):
        return None
    sizes = [bounds[name] for name in step.inputs if name]
    if step.kind in ("linear", "conv") and len(sizes) == 2:
        return sizes[0] * sizes[1] * math.prod(values[step.inputs[1]].shape[1:])
    if step.kind not in _KEEP_WHOLE:
        return None
    if step.kind in ("add", "sub"):
        return sum(sizes)
    if step.kind == "mul":
        return math.prod(sizes)
    if step.kind == "sum":
        return sizes[0] * math.prod(values[step.inputs[0]].shape)
    return max(sizes)


def pruned(program: Program) -> Program:
    """The program without steps, constants and binary weights that no output needs."""
    needed = set(program.outputs)
    steps: list[Step] = []
    for step in reversed(program.steps):
        if needed & set(step.outputs):
            needed |= set(step.inputs)
            steps.append(step)
    return replace(
        program,
        steps=tuple(reversed(steps)),
        constants={name: each for name, each in program.constants.items() if name in needed},
        sites={name: each for name, each in program.sites.items() if name in needed},
    )
