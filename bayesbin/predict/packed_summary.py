"""Bits, bytes, operations and time of each packed layer, as a table that prints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesbin.predict.kernel_program import Program
from bayesbin.predict.kernel_rates import median_seconds, microseconds_of
from bayesbin.predict.program import Weighted

if TYPE_CHECKING:
    from bayesbin.predict.packed_layers import PackedNetwork


@dataclass(frozen=True)
class PackedRow:
    """One layer.

    :param kind: of its sums: "real", "fast" or "sign". :param bits: of one draw, one per weight.
    :param bytes: that the posterior keeps in memory to draw from.
    :param operations: multiplications and additions per input and draw; None without an input shape.
    :param expected: microseconds per draw for the batch, bits drawn included, from this machine's rates
        of drawing and adding (:func:`bayesbin.predict.kernel_rates.rates`), on one thread; or None.
    :param measured: the same, measured with the layer by itself on the threads in use; or None.
    """

    site: str
    shape: tuple[int, ...]
    kind: str
    bits: int
    bytes: int
    operations: int | None
    expected: float | None
    measured: float | None


@dataclass(frozen=True)
class PackedSummary:
    """The rows of a packed network's summary; ``str`` gives the table."""

    rows: tuple[PackedRow, ...]
    num_inputs: int | None

    def __str__(self) -> str:
        width = max(5, *(len(row.site) for row in self.rows))
        batch = "" if self.num_inputs is None else f" of {self.num_inputs} inputs"
        lines = [
            f"{'':<{width}}  {'':<4}  {'weights':>12}  {'KiB to':>10}  {'operations':>12}  "
            f"us per draw{batch}",
            f"{'site':<{width}}  {'kind':<4}  {'= bits':>12}  {'draw from':>10}  {'per input':>12}  "
            f"{'expected':>10}  {'measured':>10}",
        ]
        for row in (*self.rows, self.total()):
            lines.append(
                f"{row.site:<{width}}  {row.kind:<4}  {row.bits:>12,}  {row.bytes / 1024:>10,.1f}  "
                f"{_cell(row.operations):>12}  {_cell(row.expected):>10}  {_cell(row.measured):>10}"
            )
        return "\n".join(lines)

    def total(self) -> PackedRow:
        """All layers as one row."""
        columns = ("bits", "bytes", "operations", "expected", "measured")
        sums: dict[str, Any] = {
            name: _sum([getattr(row, name) for row in self.rows]) for name in columns
        }
        return PackedRow("total", (), "", **sums)


def summarise(
    network: PackedNetwork,
    inputs: tuple[np.ndarray, tuple[int, int, int]] | None,
    threads: int,
    profile: bool,
) -> PackedSummary:
    """The summary of a network.

    :param inputs: rows and the shape of one, for operations and times, or None.
    :param profile: whether every layer is run by itself, on noise of its inputs' shape.
    :raises ValueError: for a profile without inputs.
    """
    if profile and inputs is None:
        raise ValueError("A profile is measured with inputs; pass x as well.")
    rows = []
    shapes = [] if inputs is None else network.shapes(inputs[1])
    for place, (step, kind) in enumerate(zip(network.operations, network.kinds, strict=True)):
        if not isinstance(step, Weighted):
            continue
        bits = math.prod(step.shape)
        layer = network.layers.get(step.site)
        kept = -(-bits // 8) if layer is None else layer.mode.nbytes + layer.thresholds.nbytes
        operations = expected = measured = None
        if inputs is not None:
            before, after = shapes[place], shapes[place + 1]
            sums = bits * after[1] * after[2]
            operations = 2 * sums
            drawn = 0 if layer is None else bits
            expected = microseconds_of(kind, drawn, sums, len(inputs[0]))
            if profile:
                measured = _measure(network, place, before, len(inputs[0]), threads)
        rows.append(
            PackedRow(step.site, step.shape, kind, bits, kept, operations, expected, measured)
        )
    return PackedSummary(tuple(rows), None if inputs is None else len(inputs[0]))


def _measure(
    network: PackedNetwork, place: int, shape: tuple[int, int, int], batch: int, threads: int
) -> float:
    x = np.random.default_rng(0).standard_normal((batch, math.prod(shape))).astype(np.float32)
    program = Program(shape, min(8, len(network.draws)))
    network.add(program, place, 0, program.draws)
    return 1e6 * median_seconds(lambda: program.run_regression(x, threads=threads)) / program.draws


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
