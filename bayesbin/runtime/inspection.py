"""What is in a model file: steps, draws, bytes, digest and where it came from, as a page that prints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from bayesbin.core.checks import whole_number
from bayesbin.runtime import files
from bayesbin.runtime.backends import Runner, chosen_backend
from bayesbin.runtime.program import Program, StoredSite
from bayesbin.runtime.summary import ProgramSummary, summarize


@dataclass(frozen=True)
class Inspection:
    """What a file holds; ``str`` gives the page, ``to_dict`` what JSON can hold.

    :param bytes: of the file. :param digest: SHA-256 of its contents, as the file has it.
    :param contents: "draws", the signs of each draw, or "posterior", from which they are drawn.
    :param inputs, outputs: name -> shape of one datum.
    :param bits_per_weight: bits of the file per binary weight, and per draw where it holds draws.
    :param preprocessing: the kinds of its steps, or None. :param summary: of the network's steps.
    """

    path: str
    bytes: int
    digest: str
    contents: str
    num_samples: int
    precision: str
    weights: int
    bits_per_weight: float | None
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    head: dict[str, Any]
    labels: tuple[str, ...] | None
    preprocessing: tuple[str, ...] | None
    provenance: dict[str, Any]
    summary: ProgramSummary

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the steps as a list of dictionaries."""
        steps = [vars(row) for row in self.summary.steps]
        found = {name: value for name, value in vars(self).items() if name != "summary"}
        return found | {"steps": steps, "profiled_inputs": self.summary.batch}

    def __str__(self) -> str:
        each = " and draw" if self.contents == "draws" and self.num_samples > 1 else ""
        bits = (
            "" if self.bits_per_weight is None else f", {self.bits_per_weight:.3f} bits per weight"
        )
        draws = "1 draw" if self.num_samples == 1 else f"{self.num_samples} draws"
        holds = f"a posterior, of which {draws}" if self.contents == "posterior" else draws
        lines = [
            f"{self.path}: {self.bytes:,} bytes{bits}{each if bits else ''}",
            f"holds          {holds}; {self.weights:,} binary weights; {self.precision}",
            f"inputs         {_shapes(self.inputs)}",
            f"outputs        {_shapes(self.outputs)}; {_head(self.head)}",
        ]
        if self.labels:
            lines.append(f"labels         {', '.join(self.labels)}")
        if self.preprocessing is not None:
            lines.append(f"preprocessing  {', '.join(self.preprocessing) or 'none'}")
        lines += [f"{name:<14} {value}" for name, value in sorted(self.provenance.items())]
        lines += [f"digest         {self.digest}", "", str(self.summary)]
        return "\n".join(lines)


def inspect(
    path: str | os.PathLike[str], profile: int | None = None, threads: int = 1
) -> Inspection:
    """What is in a file, of which nothing is predicted.

    :param profile: a number of inputs to measure each step with, on noise; None: nothing is measured.
    :param threads: to measure with.
    :raises ValueError: for a profile of fewer than 1 input. :raises CorruptFileError: as
        :func:`bayesbin.runtime.predictor.load`, and for a file that asks for much if it is to be measured.
    """
    threads = whole_number("threads", threads, at_least=1)
    found = files.read(path, trusted=profile is None)
    model, program = found.model, found.model.program
    runner = Runner(program, chosen_backend("auto"), threads, model.precision)
    return Inspection(
        path=str(path),
        bytes=found.size,
        digest=found.digest,
        contents=found.contents,
        num_samples=program.num_draws,
        precision=model.precision,
        weights=program.num_weights,
        bits_per_weight=_bits_per_weight(program, found.size),
        inputs={name: value.shape for name, value in program.inputs.items()},
        outputs={name: program.values[name].shape for name in program.outputs},
        head=dict(model.head),
        labels=model.labels,
        preprocessing=model.preprocessing and tuple(s.kind for s in model.preprocessing.steps),
        provenance=dict(model.provenance),
        summary=summarize(runner, profile),
    )


def _bits_per_weight(program: Program, size: int) -> float | None:
    """None where there are no binary weights."""
    if not program.num_weights:
        return None
    stored = all(isinstance(site, StoredSite) for site in program.sites.values())
    return 8.0 * size / program.num_weights / (program.num_draws if stored else 1)


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(
        f"{name} {' x '.join(map(str, shape)) or '1'}" for name, shape in shapes.items()
    )


def _head(head: dict[str, Any]) -> str:
    rest = [f"{name} {_short(value)}" for name, value in head.items() if name != "kind"]
    return ", ".join([f"head {head['kind']}", *rest])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
