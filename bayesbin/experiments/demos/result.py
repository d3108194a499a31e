"""What a demonstration measured, on one screen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DemoResult:
    """What a demonstration measured; ``str`` gives one screen of it, ``to_dict`` goes into JSON.

    :param name: of the demonstration. :param scores: method -> score -> value, on fresh test data.
    :param uncertainty: quantity -> region -> its mean there.
    :param units: unit of each score and quantity.
    :param weights: number of binary weights. :param bits_per_weight: mean posterior entropy.
    :param settings: what it was trained with. :param seconds: stage -> wall-clock time.
    :param picture: the file drawn, if any.
    """

    name: str
    scores: dict[str, dict[str, float]]
    uncertainty: dict[str, dict[str, float]]
    units: dict[str, str]
    weights: int
    bits_per_weight: float
    settings: dict[str, Any]
    seconds: dict[str, float]
    picture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dictionaries of strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.weights:,} binary weights, "
            f"{self.bits_per_weight:.2f} bits of entropy per weight",
            "",
            *_table("test data", self.scores, self.units),
            "",
            *_table("mean of draws", self.uncertainty, {}, self.units),
            "",
            ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items()),
        ]
        return "\n".join(lines + ([f"picture: {self.picture}"] if self.picture else []))


def _table(
    corner: str,
    rows: dict[str, dict[str, float]],
    column_units: dict[str, str],
    row_units: dict[str, str] | None = None,
) -> Iterable[str]:
    columns = list(next(iter(rows.values())))
    heads = [f"{name} ({column_units[name]})" if name in column_units else name for name in columns]
    names = [
        f"{name} ({row_units[name]})" if row_units and name in row_units else name for name in rows
    ]
    width = max(map(len, [corner, *names]))
    yield "  ".join([f"{corner:<{width}}", *(f"{head:>17}" for head in heads)])
    for name, row in zip(names, rows.values(), strict=True):
        yield "  ".join([f"{name:<{width}}", *(f"{row[column]:>17.4f}" for column in columns)])
