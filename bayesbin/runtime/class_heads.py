"""Heads of probabilities: one class of several, ordered classes, and labels of which each may be the case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from bayesbin.core.checks import whole_number
from bayesbin.runtime.head import Head, Parameter, Sums, add_moments, add_to, moments
from bayesbin.runtime.predictions import (
    ClassPrediction,
    LabelsPrediction,
    entropy_of,
    log_sigmoid,
    log_softmax,
)


class _OneOfClasses(Head):
    """Averages of log-probabilities along the last axis."""

    has_classes = True

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        first = sums.get("draws", 0)
        log_probs = self.log_probs(outputs, first)
        sums["draws"] = first + len(log_probs)
        add_to(sums, "log_probs", log_probs, np.logaddexp)
        add_to(sums, "entropies", entropy_of(log_probs))
        add_moments(sums, np.exp(log_probs))

    def finish(self, sums: Sums) -> ClassPrediction:
        count = self.num_samples
        return ClassPrediction(
            sums["log_probs"] - math.log(count),
            sums["entropies"] / count,
            np.sqrt(moments(sums, count)[1]),
            count,
        )


class ClassesHead(_OneOfClasses):
    """Logits of classes along one axis of one output: (B, ..., C), or (B, C, ...) with ``class_dim`` 1.

    ``class_dim`` counts the batch, as in torch. In predictions and log-probabilities classes come last,
    wherever they are in the outputs.
    """

    kind = "classes"
    settings: ClassVar = {"class_dim": -1}

    def prepare(self) -> tuple[int, ...]:
        shape = self.one_output()
        if not shape or 0 in shape:
            raise ValueError(f"expected logits with an axis of classes, got outputs of {shape}.")
        given = whole_number("class_dim", self.chosen["class_dim"], -len(shape), len(shape))
        if given == 0:
            raise ValueError("expected class_dim to be an axis after that of the batch, got 0.")
        self.axis = given if given > 0 else len(shape) + 1 + given  # of an array (B, ...)
        self.chosen["class_dim"] = -1 if self.axis == len(shape) else self.axis
        self.labels = shape[self.axis - 1]
        return (*shape[: self.axis - 1], *shape[self.axis :])

    def log_probs(self, outputs: Sequence[np.ndarray], first: int = 0) -> np.ndarray:
        return log_softmax(np.moveaxis(outputs[0], self.axis + 1, -1))


class OrdinalHead(_OneOfClasses):
    r"""Scores of ordered classes, (B, ...) or (B, 1), between the cut points of each draw.

    .. math:: P(y \le k) = \sigma(c_k - f), \qquad k = 0 \ldots K - 2

    ``cutpoints`` are K - 1 ascending numbers, or such numbers for each draw.
    """

    kind = "ordinal"
    parameters: ClassVar = {"cutpoints": Parameter("ascending cut points", ascending=True)}

    def prepare(self) -> tuple[int, ...]:
        shape = self.one_output()
        return () if shape == (1,) else shape

    def check(self) -> None:
        self.labels = self.numbers["cutpoints"].shape[1] + 1

    def log_probs(self, outputs: Sequence[np.ndarray], first: int = 0) -> np.ndarray:
        scores = _numbers(outputs[0], self.targets)
        cuts = self.of_rows("cutpoints", first, len(scores))  # (1 or s, K - 1)
        cuts = cuts.reshape(len(cuts), *[1] * (scores.ndim - 1), -1)
        apart = cuts - scores[..., None]
        found = np.empty((*scores.shape, cuts.shape[-1] + 1))
        found[..., 0] = log_sigmoid(apart[..., 0])
        found[..., -1] = log_sigmoid(-apart[..., -1])
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
        with np.errstate(divide="ignore"):  # of equal cut points, between which nothing is
            between = np.log(-np.expm1(cuts[..., :-1] - cuts[..., 1:]))
        found[..., 1:-1] = log_sigmoid(apart[..., 1:]) + log_sigmoid(-apart[..., :-1]) + between
        return found


class LabelsHead(Head):
    """Logits of independent labels, (B, L) or (B, L, ...), that hold or do not; (B,) or (B, 1) of one."""

    kind = "labels"

    def prepare(self) -> tuple[int, ...]:
        shape = self.one_output()
        self.labels = shape[0] if shape else 1
        return () if shape == (1,) else shape

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        logits = _numbers(outputs[0], self.targets)
        present, absent = log_sigmoid(logits), log_sigmoid(-logits)
        add_to(sums, "present", present, np.logaddexp)
        add_to(sums, "absent", absent, np.logaddexp)
        add_to(sums, "entropies", entropy_of(np.stack([present, absent], axis=-1)))
        add_moments(sums, np.exp(present))

    def finish(self, sums: Sums) -> LabelsPrediction:
        count = self.num_samples
        return LabelsPrediction(
            sums["present"] - math.log(count),
            sums["absent"] - math.log(count),
            sums["entropies"] / count,
            np.sqrt(moments(sums, count)[1]),
            count,
        )


def _numbers(values: np.ndarray, targets: tuple[int, ...]) -> np.ndarray:
    """Outputs of some draws, (s, B, ...), as float64 in the shape of the targets."""
    return values.reshape(*values.shape[:2], *targets).astype(np.float64, order="C")
