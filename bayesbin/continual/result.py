"""The outcome of a sequence of tasks: matrices of scores, and what became of the posterior."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesbin.continual.metrics import (
    average_accuracies,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from bayesbin.continual.reports import TaskReport


@dataclass(frozen=True, eq=False)
class ContinualResult:
    """Scores on every task after every task.

    :param tasks: names of the tasks learned. :param digests: of what made them.
    :param scores: "accuracy", "nll" (nats per datum) and "ece", each (T, T): row i after learning task
        i, column j on task j; NaN where a task not learned yet was not scored.
    :param untrained: the same scores before anything was learned, (T,) each, NaN if not computed.
    :param reports: of the single tasks.
    """

    tasks: tuple[str, ...]
    digests: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    untrained: Mapping[str, np.ndarray]
    reports: tuple[TaskReport, ...] = field(default=())

    @property
    def R(self) -> np.ndarray:
        """The accuracies, (T, T)."""
        return self.scores["accuracy"]

    def metrics(self) -> dict[str, float]:
        """The summary numbers of :mod:`bayesbin.continual.metrics`, by name."""
        R = self.R
        return {
            "average_accuracy": average_accuracy(R),
            "learning_accuracy": learning_accuracy(R),
            "backward_transfer": backward_transfer(R),
            "forward_transfer": forward_transfer(R, self.untrained["accuracy"]),
            "forgetting_final": forgetting(R, "final"),
            "forgetting_max_past": forgetting(R, "max_past"),
            "average_nll": average_accuracy(self.scores["nll"]),
            "average_ece": average_accuracy(self.scores["ece"]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it: NaN and infinity become None."""
        return _for_json(
            {
                "tasks": list(self.tasks),
                "digests": list(self.digests),
                **self.metrics(),
                "average_accuracies": average_accuracies(self.R).tolist(),
                "R": self.R.tolist(),
                "nll": self.scores["nll"].tolist(),
                "ece": self.scores["ece"].tolist(),
                "untrained": {name: row.tolist() for name, row in self.untrained.items()},
                "reports": [report.to_dict() for report in self.reports],
            }
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ContinualResult:
        """What :meth:`to_dict` was made from."""
        names = {"accuracy": "R", "nll": "nll", "ece": "ece"}
        return cls(
            tuple(content["tasks"]),
            tuple(content["digests"]),
            {name: np.array(content[key], dtype=float) for name, key in names.items()},
            {name: np.array(row, dtype=float) for name, row in content["untrained"].items()},
            tuple(TaskReport.from_dict(report) for report in content["reports"]),
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


def _for_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _for_json(part) for key, part in value.items()}
    return [_for_json(part) for part in value] if isinstance(value, list) else value
