"""The outcome of a sequence of tasks: matrices of scores, and what became of the posterior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesbin.continual.answers import SCORES
from bayesbin.continual.metrics import (
    average_accuracies,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from bayesbin.continual.reports import TaskReport, for_json, from_json


@dataclass(frozen=True, eq=False)
class ContinualResult:
    """Scores on every task after every task.

    :param tasks: names of the tasks learned. :param digests: of what made them.
    :param scores: each (T, T): row i after learning task i, column j on task j; NaN where a task not
        learned yet was not scored. Of classification "accuracy", "nll" (nats per datum) and "ece"; of
        regression "rmse" (in the unit of the targets) and "nll".
    :param untrained: the same scores before anything was learned, (T,) each, NaN if not computed.
    :param reports: of the single tasks.
    :param labels: the labels of each task, as the user has them; None for a task of regression.

    >>> R = np.array([[0.9, np.nan], [0.7, 0.8]])
    >>> result = ContinualResult(("a", "b"), ("", ""), {"accuracy": R}, {})
    >>> result.score, result.metrics()["average_accuracy"]
    ('accuracy', 0.75)
    """

    tasks: tuple[str, ...]
    digests: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    untrained: Mapping[str, np.ndarray]
    reports: tuple[TaskReport, ...] = field(default=())
    labels: tuple[tuple[Any, ...] | None, ...] = field(default=())

    @property
    def score(self) -> str:
        """The main score, that metrics are of: "accuracy" or "rmse"."""
        return next(iter(self.scores))

    @property
    def R(self) -> np.ndarray:
        """The main scores, (T, T)."""
        return self.scores[self.score]

    def metrics(self) -> dict[str, float]:
        """The summary numbers of :mod:`bayesbin.continual.metrics`, by name."""
        averages = {
            f"average_{name}": average_accuracy(matrix)
            for name, matrix in self.scores.items()
            if name != self.score
        }
        return {
            f"average_{self.score}": average_accuracy(self),
            f"learning_{self.score}": learning_accuracy(self),
            "backward_transfer": backward_transfer(self),
            "forward_transfer": forward_transfer(self),
            "forgetting_final": forgetting(self, "final"),
            "forgetting_max_past": forgetting(self, "max_past"),
            **averages,
        }

    def __str__(self) -> str:
        """The main scores as a table: a row after each task, with the average over the tasks seen."""
        percent = self.score == "accuracy"
        factor, digits = (100.0, 1) if percent else (1.0, 3)
        width = max(map(len, self.tasks))
        lines = [
            f"{self.score}{' in per cent' if percent else ''}, after each task",
            "  ".join([f"{'':<{width}}", "average", *(f"{j + 1:>6}" for j in range(len(self.R)))]),
        ]
        averages = average_accuracies(self)
        for i, (name, mean) in enumerate(zip(self.tasks, averages, strict=True)):
            cells = [f"{factor * value:>6.{digits}f}" for value in self.R[i, : i + 1]]
            lines.append("  ".join([f"{name:<{width}}", f"{factor * mean:>7.{digits}f}", *cells]))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it: NaN becomes None, and infinity "inf" or "-inf"."""
        others = {n: m.tolist() for n, m in self.scores.items() if n != self.score}
        return for_json(
            {
                "tasks": list(self.tasks),
                "digests": list(self.digests),
                "labels": [None if each is None else list(each) for each in self.labels],
                "score": self.score,
                **self.metrics(),
                "average_accuracies": average_accuracies(self).tolist(),
                "R": self.R.tolist(),
                **others,
                "untrained": {name: row.tolist() for name, row in self.untrained.items()},
                "reports": [report.to_dict() for report in self.reports],
            }
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ContinualResult:
        """The result that :meth:`to_dict` was made from, with its NaN and infinities."""
        main = content.get("score", "accuracy")
        kind = "regression" if main == "rmse" else "classification"
        names = {main: "R", **{name: name for name in SCORES[kind] if name in content}}
        labels = content.get("labels", ())
        return cls(
            tuple(content["tasks"]),
            tuple(content["digests"]),
            {name: _array(content[key]) for name, key in names.items()},
            {name: _array(row) for name, row in content["untrained"].items()},
            tuple(TaskReport.from_dict(report) for report in content["reports"]),
            tuple(None if each is None else tuple(each) for each in labels),
        )

    def to_dataset(self) -> Any:
        """An ``xarray.Dataset`` with dimensions (trained_on, evaluated_on), and (trained_on, site).

        Scores, and of each layer's posterior ``entropy_bits``, ``saturated`` and ``kl_bits``.
        """
        import xarray

        square = ("trained_on", "evaluated_on")
        data: dict[str, Any] = {name: (square, matrix) for name, matrix in self.scores.items()}
        data |= {f"untrained_{n}": ("evaluated_on", row) for n, row in self.untrained.items()}
        tasks = list(self.tasks)
        coordinates: dict[str, Any] = {"trained_on": tasks, "evaluated_on": tasks}
        sites = list(dict.fromkeys(row.site for report in self.reports for row in report.layers))
        if sites:
            coordinates["site"] = sites
            for name in ("entropy_bits", "saturated", "kl_bits"):
                data[name] = (("trained_on", "site"), self._by_site(name, sites))
        attributes = {"digests": list(self.digests), "ece_bins": 15}
        return xarray.Dataset(data, coordinates, attributes)

    def _by_site(self, name: str, sites: list[str]) -> np.ndarray:
        table = np.full((len(self.reports), len(sites)), np.nan)
        for i, report in enumerate(self.reports):
            for row in report.layers:
                table[i, sites.index(row.site)] = getattr(row, name)
        return table


def _array(values: Any) -> np.ndarray:
    return np.array(from_json(values), dtype=float)
