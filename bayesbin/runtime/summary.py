"""What a program is made of, step by step, as a table that prints: sizes, work, backends, time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bayesbin.core.checks import whole_number
from bayesbin.runtime.backends import Runner
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Constant, DrawnSite, Program, Site, Step, Value

_TURNS, _DRAWS = 5, 8  # runs of which the median is taken, and draws of each


@dataclass(frozen=True)
class StepRow:
    """One step.

    :param name: of its weights, if it has binary ones, or else of its output. :param shape: of its output.
    :param weights: binary weights. :param bits: that the model holds for them: all draws, or a posterior.
    :param operations: multiplications and additions for one input and draw.
    :param backend: "native" or "numpy". :param microseconds: for one draw and the batch it was measured
        with; None if it was not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    bits: int
    operations: int
    backend: str
    microseconds: float | None = None


@dataclass(frozen=True)
class ProgramSummary:
    """The steps of a program; ``str`` gives the table. :param batch: inputs that times were measured with."""

    steps: tuple[StepRow, ...]
    num_draws: int
    batch: int | None = None

    @property
    def weights(self) -> int:
        """Binary weights of all steps."""
        return sum(row.weights for row in self.steps)

    @property
    def operations(self) -> int:
        """For one input and draw."""
        return sum(row.operations for row in self.steps)

    def __str__(self) -> str:
        width = max(4, *(len(row.name) for row in self.steps)) if self.steps else 4
        time_of = f"us/draw, {self.batch} inputs" if self.batch else ""
        head = f"{'name':<{width}}  {'kind':<17}  {'output':>16}  {'weights':>12}  {'bits':>13}"
        lines = [f"{head}  {'operations':>14}  backend  {time_of}".rstrip()]
        for row in self.steps:
            spent = "" if row.microseconds is None else f"{row.microseconds:>{len(time_of)},.1f}"
            shape = " x ".join(map(str, row.shape)) or "1"
            lines.append(
                f"{row.name:<{width}}  {row.kind:<17}  {shape:>16}  {row.weights:>12,}  {row.bits:>13,}  "
                f"{row.operations:>14,}  {row.backend:<7}  {spent}".rstrip()
            )
        return "\n".join(lines)


def summarize(runner: Runner, batch: int | None = None) -> ProgramSummary:
    """The steps of a program as a runner runs them.

    :param batch: a number of inputs, of noise, to measure each step with by itself; None: no times.
    :raises ValueError: for a batch of fewer than 1 input.
    """
    if batch is not None:
        batch = whole_number("profile", batch, at_least=1)
    program = runner.program
    backends = dict.fromkeys((step.outputs[0] for step in program.steps), "numpy")
    if runner.native is not None:
        backends |= {row.output: row.backend for row in runner.native.summary()}
    rows = []
    for step in program.steps:
        sites = [name for name in step.inputs if name in program.sites]
        before = [program.values[name].shape for name in step.inputs if name]
        after = [program.values[name].shape for name in step.outputs]
        rows.append(
            StepRow(
                sites[0] if sites else step.outputs[0],
                step.kind,
                after[0],
                sum(math.prod(program.sites[name].shape) for name in sites),
                sum(stored_bits(program.sites[name]) for name in sites),
                KINDS[step.kind].work(step.attributes, before, after),
                backends[step.outputs[0]],
                None if batch is None else _microseconds(runner, step, batch),
            )
        )
    return ProgramSummary(tuple(rows), program.num_draws, batch)


def stored_bits(site: Site) -> int:
    """Bits that a site holds: one per weight for each stored network, 17 for each distribution."""
    weights = math.prod(site.shape)
    if isinstance(site, DrawnSite):
        return 17 * weights * len(site.mode) + 64 * len(site.keys)
    return weights * len(site.bits)


def _microseconds(runner: Runner, step: Step, batch: int) -> float:
    """Of one step and draw, by itself, on noise of its inputs' shapes."""
    program = runner.program
    names = [name for name in dict.fromkeys(step.inputs) if name]
    made = [name for name in names if name not in program.constants and name not in program.sites]
    inputs = {
        name: Value(value.shape, value.dtype)
        for name in made
        if (value := program.values[name]).batched
    }
    constants = {name: program.constants[name] for name in names if name in program.constants}
    for name in made:
        if name not in inputs:  # it was made of constants
            value = program.values[name]
            constants[name] = Constant(_noise(value, 1))
    sites = {name: program.sites[name] for name in names if name in program.sites}
    alone = Program(inputs, constants, sites, (step,), step.outputs, program.num_draws)
    backend = "numpy" if runner.native is None else "native"
    one = Runner(alone, backend, runner.threads, runner.precision)
    rows = [_noise(value, batch) for value in inputs.values()]
    drawn = alone.values[step.outputs[0]].drawn
    draws = range(min(_DRAWS, program.num_draws) if drawn else 1)
    return 1e6 * median_seconds(lambda: one.run(rows, draws)) / len(draws)


def _noise(value: Value, rows: int) -> np.ndarray:
    """Normal numbers; 0 where whole numbers are expected, which may be indices."""
    numbers = np.random.default_rng(0).standard_normal((rows, *value.shape))
    if value.dtype in ("i8", "b1"):
        numbers = np.zeros_like(numbers)
    return numbers.astype(value.dtype if value.dtype != "b1" else bool)


def median_seconds(run: Callable[[], object], turns: int = _TURNS) -> float:
    """The median time of some runs."""
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return sorted(found)[turns // 2]
