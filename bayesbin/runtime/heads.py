"""Heads: what the outputs of a network mean, and how the draws are averaged.

A head is described by a dictionary that JSON can hold: its ``kind``, and what that kind needs besides.
:data:`HEADS` is the one table of kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bayesbin.core.checks import one_of, shown, true_or_false
from bayesbin.runtime.class_heads import ClassesHead, LabelsHead, OrdinalHead
from bayesbin.runtime.head import (
    Head,
    Parameter,
    Sums,
    add_draws,
    add_moments,
    add_to,
    moments,
)
from bayesbin.runtime.predictions import CountPrediction, NormalPrediction, OutputsPrediction
from bayesbin.runtime.program import Program

MOST_LOG_NOISE, MOST_LOG_RATE = 20.0, 40.0  # bounds of what likelihoods exponentiate


class OutputsHead(Head):
    """Outputs as they are, of any number and shape."""

    kind = "outputs"

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        for place, values in enumerate(outputs):
            add_moments(sums.setdefault(place, {}), values)

    def finish(self, sums: Sums) -> OutputsPrediction:
        pairs = [moments(sums[place], self.num_samples) for place in range(len(self.shapes))]
        means, variances = (tuple(each) for each in zip(*pairs, strict=True))
        if len(pairs) == 1:
            return OutputsPrediction(means[0], variances[0], self.num_samples)
        return OutputsPrediction(means, variances, self.num_samples)


class NormalHead(Head):
    """Means of normal targets in one output, (B,), (B, 1) or (B, T), with the noise of each draw.

    ``noise`` is a standard deviation, or a list of one for each draw; instead of a number, T numbers. With
    ``heteroscedastic`` true there is none: outputs are (B, 2 T), and their second half is the logarithm of
    the noise, bounded to -20 .. 20.
    """

    kind = "normal"
    parameters: ClassVar = {"noise": Parameter("a standard deviation", above=0.0)}
    settings: ClassVar = {"heteroscedastic": False}

    @classmethod
    def needed(cls, description: Mapping[str, Any]) -> Mapping[str, Parameter]:
        return {} if _heteroscedastic(description) else cls.parameters

    def prepare(self) -> tuple[int, ...]:
        shape = self.one_output()
        if len(shape) > 1:
            raise ValueError(f"expected outputs of () or (targets,), got {shape}.")
        self.heteroscedastic = _heteroscedastic(self.chosen)
        if self.heteroscedastic:
            if not shape or shape[0] % 2 or not shape[0]:
                raise ValueError(
                    "expected a mean and the logarithm of a noise for each target, (2 targets,), got outputs "
                    f"of {shape}."
                )
            shape = (shape[0] // 2,)
        return () if shape in ((), (1,)) else shape

    def parts(self, outputs: Sequence[Any]) -> tuple[Any, Any]:
        """Means of the draws, (s, B, [T]), and the logarithms of their noise, or None where it is given."""
        values = outputs[0]
        shape = (*values.shape[:2], *self.targets)
        if not self.heteroscedastic:
            return values.reshape(shape), None
        half = values.shape[2] // 2
        return values[:, :, :half].reshape(shape), values[:, :, half:].reshape(shape)

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        means, logs = self.parts(outputs)
        add_moments(sums, means)
        if logs is not None:
            bounded = np.clip(logs.astype(np.float64, order="C"), -MOST_LOG_NOISE, MOST_LOG_NOISE)
            add_to(sums, "noise", np.exp(2.0 * bounded))

    def finish(self, sums: Sums) -> NormalPrediction:
        mean, variance = moments(sums, self.num_samples)
        if self.heteroscedastic:
            noise = sums["noise"] / self.num_samples
        else:
            given = self.numbers["noise"]
            noise = add_draws(None, np.square(given)) / len(given)  # () or (T,)
        return NormalPrediction(
            mean, np.broadcast_to(noise, mean.shape).copy(), variance, self.num_samples
        )


def _heteroscedastic(description: Mapping[str, Any]) -> bool:
    return true_or_false("heteroscedastic", description.get("heteroscedastic", False))


class PoissonHead(Head):
    """Logarithms of the rates of counts in one output, (B, ...) or (B, 1).

    Above 40 a rate grows linearly, by the tangent of exp, as in the likelihood.
    """

    kind = "poisson"

    def prepare(self) -> tuple[int, ...]:
        shape = self.one_output()
        return () if shape == (1,) else shape

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        values, first = outputs[0], sums.get("draws", 0)
        sums["draws"] = first + len(values)
        logs = values.reshape(*values.shape[:2], *self.targets).astype(np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            means = np.exp(np.minimum(logs, MOST_LOG_RATE))
            means *= 1.0 + np.maximum(logs - MOST_LOG_RATE, 0.0)
            add_moments(sums, means)
            add_to(sums, "noise", self.variances(means, first))

    def variances(self, means: np.ndarray, first: int) -> np.ndarray:
        """The variance of a count of each mean, in draws from the ``first`` on."""
        return means

    def finish(self, sums: Sums) -> CountPrediction:
        mean, variance = moments(sums, self.num_samples)
        return CountPrediction(mean, sums["noise"] / self.num_samples, variance, self.num_samples)


class NegativeBinomialHead(PoissonHead):
    r"""Logarithms of the means m of overdispersed counts, with the concentration r of each draw.

    .. math:: \mathrm{Var}[y] = m + m^2 / r

    ``concentration`` is a number, or a list of one for each draw; instead of a number, one for each target.
    """

    kind = "negative_binomial"
    parameters: ClassVar = {"concentration": Parameter("a positive number", above=0.0)}

    def variances(self, means: np.ndarray, first: int) -> np.ndarray:
        given = self.of_rows("concentration", first, len(means))
        aligned = given.reshape(len(given), *[1] * (means.ndim - given.ndim), *given.shape[1:])
        return means + np.square(means) / aligned


HEADS: dict[str, type[Head]] = {
    each.kind: each
    for each in (
        ClassesHead,
        NormalHead,
        LabelsHead,
        PoissonHead,
        NegativeBinomialHead,
        OrdinalHead,
        OutputsHead,
    )
}


def kind_of(description: Any) -> type[Head]:
    """The kind of head that a description names.

    :raises ValueError: for an unknown kind, or none.
    """
    if not isinstance(description, Mapping) or "kind" not in description:
        raise ValueError(f"expected a head with a kind, got {shown(description)}.")
    return HEADS[one_of("the kind of head", description["kind"], HEADS)]


def head_of(description: Any, program: Program) -> Head:
    """The head that a description names, checked against a program.

    :raises ValueError: for an unknown kind, or a description that does not fit.
    """
    return kind_of(description)(description, program)
