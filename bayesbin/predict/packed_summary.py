"""Bits, bytes, operations and time of each packed layer, as a table that prints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bayesbin.predict.kernel_program import Program
from bayesbin.predict.program import Weighted

if TYPE_CHECKING:
    from bayesbin.predict.packed_layers import PackedNetwork


@dataclass(frozen=True)
class PackedRow:
    """One layer.

    :param kind: of its sums: "real", "fast" or "sign". :param bits: of one draw, one per weight.
    :param bytes: that the posterior keeps in memory to draw from.
    :param operations: multiplications and additions per input and draw; None without an input shape.
    :param microseconds: per draw for the batch it was measured with, bits drawn included; or None.
    """

    site: str
    shape: tuple[int, ...]
    kind: str
    bits: int
    bytes: int
    operations: int | None
    microseconds: float | None


@dataclass(frozen=True)
class PackedSummary:
    """The rows of a packed network's summary; ``str`` gives the table."""

    rows: tuple[PackedRow, ...]
    num_inputs: int | None

    def __str__(self) -> str:
        width = max(4, *(len(row.site) for row in self.rows))
        measured = f"us/draw, {self.num_inputs} inputs" if self.num_inputs else "us/draw"
        lines = [
            f"{'site':<{width}}  {'kind':<4}  {'weights = bits':>14}  {'KiB to draw from':>16}  "
            f"{'operations/input':>16}  {measured:>22}"
        ]
        for row in self.rows:
            operations = "-" if row.operations is None else f"{row.operations:,}"
            spent = "-" if row.microseconds is None else f"{row.microseconds:,.0f}"
            lines.append(
                f"{row.site:<{width}}  {row.kind:<4}  {row.bits:>14,}  {row.bytes / 1024:>16,.1f}  "
                f"{operations:>16}  {spent:>22}"
            )
        return "\n".join(lines)


def summarise(
    network: PackedNetwork, inputs: tuple[np.ndarray, tuple[int, int, int]] | None, threads: int
) -> PackedSummary:
    """The summary of a network; with inputs, every layer is run by itself on noise of its input's shape."""
    rows = []
    shapes = [] if inputs is None else network.shapes(inputs[1])
    for place, (step, kind) in enumerate(zip(network.operations, network.kinds, strict=True)):
        if not isinstance(step, Weighted):
            continue
        bits = math.prod(step.shape)
        layer = network.layers.get(step.site)
        kept = -(-bits // 8) if layer is None else layer.mode.nbytes + layer.thresholds.nbytes
        operations = microseconds = None
        if inputs is not None:
            before, after = shapes[place], shapes[place + 1]
            operations = 2 * bits * after[1] * after[2]
            x = np.random.default_rng(0).standard_normal((len(inputs[0]), math.prod(before)))
            program = Program(before, min(4, len(network.draws)))
            network.add(program, place, 0, program.draws)
            run = x.astype(np.float32)
            seconds = _median(lambda p=program, x=run: p.run_regression(x, threads=threads))
            microseconds = 1e6 * seconds / program.draws
        rows.append(PackedRow(step.site, step.shape, kind, bits, kept, operations, microseconds))
    return PackedSummary(tuple(rows), None if inputs is None else len(inputs[0]))


def _median(run: Callable[[], object], turns: int = 5) -> float:
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[turns // 2]
