"""What is in a model file: layers, draws, bytes, digest and where it came from, as a table that prints."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesbin.predict.kernel_program import Program
from bayesbin.predict.kernel_rates import median_seconds
from bayesbin.predict.shipped_model import ShippedModel, read_model
from bayesbin.predict.shipped_program import add_step


@dataclass(frozen=True)
class LayerRow:
    """One layer of weights.

    :param kind: of its sums: "real", "fast" or "sign". :param bytes: of its weights in the file.
    :param operations: multiplications and additions per input and draw.
    :param microseconds: per draw for the batch it was measured with, bits made ready included; or None.
    """

    site: str
    shape: tuple[int, ...]
    kind: str
    weights: int
    bytes: int
    operations: int
    microseconds: float | None


@dataclass(frozen=True)
class Inspection:
    """What a file holds; ``str`` gives the page, ``to_dict`` what JSON can hold.

    :param bytes: of the file. :param digest: SHA-256 of its contents, as the file has it.
    :param bits_per_weight: bits of the file per weight, and per draw where it holds draws.
    """

    path: str
    bytes: int
    digest: str
    contents: str
    num_samples: int
    seed: int
    precision: str
    weights: int
    bits_per_weight: float
    input: tuple[int, ...]
    outputs: int
    noise_variance: float | None
    labels: tuple[str, ...] | None
    preprocessing: dict[str, float | tuple[float, ...]] | None
    provenance: dict[str, Any]
    steps: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    profiled_inputs: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return vars(self) | {"layers": [vars(row) for row in self.layers]}

    def __str__(self) -> str:
        holds = f"{self.num_samples} draws of seed {self.seed}" if self.num_samples else "the mode"
        if self.contents == "posterior":
            holds = f"a posterior, of which {holds}"
        each = " and draw" if self.contents == "draws" and self.num_samples else ""
        out = f"{self.outputs} classes"
        if self.noise_variance is not None:
            out = f"regression, noise variance {self.noise_variance:.4g}"
        lines = [
            f"{self.path}: {self.bytes:,} bytes, {self.bits_per_weight:.3f} bits per weight{each}",
            f"holds          {holds}; {self.precision}",
            f"inputs         {' x '.join(map(str, self.input))}; outputs: {out}",
            f"steps          {', '.join(self.steps)}",
        ]
        if self.labels:
            lines.append(f"labels         {', '.join(self.labels)}")
        if self.preprocessing:
            constants = {name: _shown(value) for name, value in self.preprocessing.items()}
            raw = "(raw / {divisor} - {mean}) / {std}".format(**constants)
            lines.append(f"preprocessing  {raw}")
        lines += [f"{name:<14} {value}" for name, value in sorted(self.provenance.items())]
        lines += [f"digest         {self.digest}", "", *self._table()]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        width = max(5, *(len(row.site) for row in self.layers))
        spent = f"us/draw, {self.profiled_inputs} inputs" if self.profiled_inputs else ""
        lines = [f"{'site':<{width}}  {'shape':>16}  {'sums':<4}  {'weights':>12}  {'bytes':>12}  "
                 f"{'operations/input':>16}  {spent}".rstrip()]  # fmt: skip
        for row in self.layers:
            shape = " x ".join(map(str, row.shape))
            time = "" if row.microseconds is None else f"{row.microseconds:>{len(spent)},.1f}"
            lines.append(
                f"{row.site:<{width}}  {shape:>16}  {row.kind:<4}  {row.weights:>12,}  {row.bytes:>12,}  "
                f"{row.operations:>16,}  {time}".rstrip()
            )
        return lines


def inspect(
    path: str | os.PathLike[str], profile: int | None = None, threads: int = 1
) -> Inspection:
    """What is in a file.

    :param profile: a number of inputs to measure each layer with, on noise; None: nothing is measured.
    :param threads: to measure with.
    :raises ValueError: for a profile of fewer than 1 input. :raises CorruptFileError: as
        :func:`bayesbin.predict.load`. :raises RuntimeError: to measure where the kernels were not built.

    Example::

        >>> import tempfile, torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import inspect, pack
        >>> posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = inspect(pack(BinaryLinear(4, 3), posterior, f"{folder}/model.bbn"))
        >>> found.num_samples, found.weights, found.layers[0].bytes
        (32, 12, 64)
    """
    if profile is not None and profile < 1:
        raise ValueError(f"A profile is of at least 1 input; got {profile}.")
    model, container = read_model(path)
    rows = []
    for place, step in enumerate(model.steps):
        if step["op"] != "weights":
            continue
        site, shape = step["site"], step["shape"]
        stored = sum(
            model.arrays[name].nbytes
            for name in (f"{site}.{part}" for part in ("bits", "mode", "flip", "keys"))
            if name in model.arrays
        )
        after, weights = model.shapes[place + 1], math.prod(shape)
        operations = 2 * weights * after[1] * after[2]
        spent = None if profile is None else _microseconds(model, place, profile, threads)
        rows.append(LayerRow(site, shape, step["kind"], weights, stored, operations, spent))
    draws = max(model.num_samples, 1) if model.contents == "draws" else 1
    return Inspection(
        path=str(path),
        bytes=container.size,
        digest=container.digest,
        bits_per_weight=8 * container.size / model.num_weights / draws,
        weights=model.num_weights,
        preprocessing=model.preprocessing and model.preprocessing._asdict(),
        steps=tuple(step["op"] for step in model.steps),
        layers=tuple(rows),
        profiled_inputs=profile,
        **{name: getattr(model, name) for name in _COPIED},
    )


_COPIED = (
    "contents", "num_samples", "seed", "precision", "input", "outputs", "noise_variance", "labels",
    "provenance",
)  # fmt: skip


def _microseconds(model: ShippedModel, place: int, batch: int, threads: int) -> float:
    """Of one layer and draw, by itself, on noise of its inputs' shape."""
    shape, draws = model.shapes[place], min(8, max(model.num_samples, 1))
    x = np.random.default_rng(0).standard_normal((batch, math.prod(shape))).astype(np.float32)
    program = Program(shape, draws)
    add_step(program, model, place, 0, draws)
    return 1e6 * median_seconds(lambda: program.run_regression(x, threads=threads)) / draws


def _shown(constant: float | tuple[float, ...]) -> str:
    if isinstance(constant, tuple):
        return f"({', '.join(f'{number:g}' for number in constant)})"
    return f"{constant:g}"
