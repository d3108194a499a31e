"""What learning a task did: sizes, losses, and how far and how firmly the posterior has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bayesbin.posterior.summary import Summary, SummaryRow


@dataclass(frozen=True)
class TaskReport:
    """What learning one task did.

    :param index: of the task, from 0. :param name: and :param digest: those of the task.
    :param dataset_size: the number of training data, 0 where there were none.
    :param history: a row per epoch, as ``fit`` gives them.
    :param layers: a row per site of signs, after the task: entropy in bits per weight, the fraction of
        weights with |lambda| > 3, and the KL of the site, in bits, to the posterior before the task.
        Empty for a learner without a posterior.
    :param seconds: spent in training, over all resumed runs.

    >>> report = TaskReport(0, "first", "", 10, [], (), 0.5)
    >>> TaskReport.from_dict(report.to_dict()) == report, report.kl_bits
    (True, nan)
    """

    index: int
    name: str
    digest: str
    dataset_size: int
    history: list[dict[str, Any]]
    layers: tuple[SummaryRow, ...]
    seconds: float

    @property
    def entropy_bits(self) -> float:
        """Mean entropy of a weight in bits, in [0, 1]; NaN without a posterior."""
        return Summary(self.layers).total().entropy_bits if self.layers else math.nan

    @property
    def saturated(self) -> float:
        """The fraction of weights with |lambda| > 3; NaN without a posterior."""
        return Summary(self.layers).total().saturated if self.layers else math.nan

    @property
    def kl_bits(self) -> float:
        """KL of the posterior to the one before the task in bits; NaN without a posterior."""
        return Summary(self.layers).total().kl_bits if self.layers else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Everything, in numbers, strings, lists and dictionaries."""
        rows = [{**asdict(row), "shape": list(row.shape)} for row in self.layers]
        return {**vars(self), "layers": rows}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> TaskReport:
        """The report that :meth:`to_dict` was made from, through JSON as well."""
        rows = (
            SummaryRow(**{**_numbers(row), "shape": tuple(row["shape"])}) for row in state["layers"]
        )
        history = [_numbers(row) for row in state["history"]]
        seconds = from_json(state["seconds"])
        return cls(**{**state, "history": history, "layers": tuple(rows), "seconds": seconds})


def for_json(value: Any) -> Any:
    """Return a value as JSON has it: NaN as None, infinities as "inf" and "-inf".

    >>> for_json({"nll": [0.5, math.nan, math.inf]})
    {'nll': [0.5, None, 'inf']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: for_json(part) for key, part in value.items()}
    return [for_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def from_json(value: Any) -> Any:
    """Return numbers that :func:`for_json` wrote, in lists of any depth.

    >>> from_json([0.5, None, "inf"])
    [0.5, nan, inf]
    """
    if isinstance(value, list):
        return [from_json(part) for part in value]
    if value is None:
        return math.nan
    return float(value) if value in ("inf", "-inf") else value


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its numbers back; an entry of a list may be None on its own account."""
    return {
        key: value if isinstance(value, list) else from_json(value) for key, value in row.items()
    }
