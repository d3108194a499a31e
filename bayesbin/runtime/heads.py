"""Heads: what the outputs of a network mean, and how the draws are averaged.

A head is described by a dictionary that JSON can hold: its ``kind``, and what that kind needs besides.
:data:`HEADS` is the one table of kinds. Draws are added one after another in their order, in float64 and
for each datum alone, so that neither the blocks of rows nor the chunks of draws change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bayesbin.core.checks import one_of, real_number, shown
from bayesbin.runtime.predictions import (
    ClassPrediction,
    NormalPrediction,
    OutputsPrediction,
    entropy_of,
    log_softmax,
)
from bayesbin.runtime.program import Program

Prediction = Any  # of a kind's own class
Sums = dict[Any, Any]


def add_draws(total: np.ndarray | None, values: np.ndarray, add: np.ufunc = np.add) -> np.ndarray:
    """``total`` and each of ``values`` (s, ...), added one after another; None: nothing was added yet.

    >>> add_draws(None, np.array([[1.0], [2.0]])).tolist()
    [3.0]
    """
    if total is None:
        return add_draws(values[0].astype(np.float64), values[1:], add)
    if not len(values):
        return total
    if total.size < 128:  # one call; what it gives is what the loop gives
        return add.accumulate(np.concatenate((total[None], values)), axis=0)[-1]
    total = total.copy()
    for each in values:
        add(total, each, out=total)
    return total


class Head:
    """One kind of head: a description, checked against a program; ``start``, ``add`` and ``finish``.

    :param description: what JSON can hold, with the key "kind".
    :raises ValueError: if the description does not fit the kind, or the outputs of the program do not.
    """

    kind: ClassVar[str]
    names: ClassVar[frozenset[str]] = frozenset()  # what the description has beside its kind
    labels: int | None = None  # how many classes there are to name

    def __init__(self, description: Mapping[str, Any], program: Program) -> None:
        if set(description) != self.names | {"kind"}:
            wanted = ", ".join(["kind", *sorted(self.names)])
            raise ValueError(
                f"expected a head of kind {self.kind!r} with exactly {wanted}; got "
                f"{', '.join(sorted(map(str, description)))[:200]}."
            )
        self.num_samples = program.num_draws
        self.shapes = [program.values[name].shape for name in program.outputs]
        self.prepare(description)

    def prepare(self, description: Mapping[str, Any]) -> None:
        """Check the description against ``shapes`` and keep what it says."""

    @property
    def description(self) -> dict[str, Any]:
        """What JSON can hold of this head."""
        return {"kind": self.kind}

    def of_draws(self, draws: Sequence[int]) -> dict[str, Any]:
        """The description of the head of some of the draws."""
        return self.description

    def start(self) -> Sums:
        """Sums over draws, of no draw yet."""
        return {}

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        """Add some draws, in their order: of each output of the program an array (s, B, ...)."""
        raise NotImplementedError

    def finish(self, sums: Sums) -> Prediction:
        """The prediction, once all draws are added."""
        raise NotImplementedError

    def join(self, blocks: Sequence[Prediction]) -> Prediction:
        """The prediction for all rows from those for blocks of rows."""
        if len(blocks) == 1:
            return blocks[0]
        fields = {
            name: _joined([vars(block)[name] for block in blocks])
            for name in type(blocks[0]).__dataclass_fields__
        }
        return type(blocks[0])(**fields)

    def log_probs(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probabilities of each draw, (s, B, ..., C), float64.

        :raises ValueError: for a head that has no classes.
        """
        raise ValueError(
            f"expected a head of classes for log_probs, got one of kind {self.kind!r}; use outputs."
        )

    def _one_output(self) -> tuple[int, ...]:
        if len(self.shapes) != 1:
            raise ValueError(
                f"expected a network with one output for a head of kind {self.kind!r}, got "
                f"{len(self.shapes)}."
            )
        return self.shapes[0]


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    return parts[0]


class ClassesHead(Head):
    """Logits of classes along the last axis of one output, (B, ..., C)."""

    kind = "classes"

    def prepare(self, description: Mapping[str, Any]) -> None:
        shape = self._one_output()
        if not shape or shape[-1] < 1:
            raise ValueError(f"expected logits with an axis of classes, got outputs of {shape}.")
        self.labels = shape[-1]

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        log_probs = self.log_probs(outputs)
        probs = np.exp(log_probs)
        first = sums.setdefault("first", probs[0])
        # From the first draw on, so that draws that agree have a variance of exactly 0.
        apart = probs - first
        for name, values, add in (
            ("log_probs", log_probs, np.logaddexp),
            ("entropies", entropy_of(log_probs), np.add),
            ("apart", apart, np.add),
            ("squares", np.square(apart), np.add),
        ):
            with np.errstate(invalid="ignore"):
                sums[name] = add_draws(sums.get(name), values, add)

    def finish(self, sums: Sums) -> ClassPrediction:
        count = self.num_samples
        return ClassPrediction(
            sums["log_probs"] - math.log(count),
            sums["entropies"] / count,
            np.sqrt(_variance(sums["apart"], sums["squares"], count)),
            count,
        )

    def log_probs(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        return log_softmax(outputs[0])


class OutputsHead(Head):
    """Outputs as they are, of any number and shape."""

    kind = "outputs"

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        for place, values in enumerate(outputs):
            _add_moments(sums.setdefault(place, {}), values)

    def finish(self, sums: Sums) -> OutputsPrediction:
        pairs = [_moments(sums[place], self.num_samples) for place in range(len(self.shapes))]
        means, variances = (tuple(each) for each in zip(*pairs, strict=True))
        if len(pairs) == 1:
            return OutputsPrediction(means[0], variances[0], self.num_samples)
        return OutputsPrediction(means, variances, self.num_samples)


class NormalHead(Head):
    """Means of normal targets in one output, (B,), (B, 1) or (B, T), with the noise of each draw.

    ``noise`` is a standard deviation, or a list of one for each draw; instead of a number, T numbers.
    """

    kind = "normal"
    names = frozenset({"noise"})

    def prepare(self, description: Mapping[str, Any]) -> None:
        shape = self._one_output()
        if len(shape) > 1:
            raise ValueError(f"expected outputs of () or (targets,), got {shape}.")
        self.targets = () if shape in ((), (1,)) else shape
        self.noise = _noise(description["noise"], self.num_samples, self.targets)

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": self.kind, "noise": self.noise.tolist()}

    def of_draws(self, draws: Sequence[int]) -> dict[str, Any]:
        per_draw = len(self.noise) > 1
        return {**self.description, "noise": self.noise[list(draws) if per_draw else [0]].tolist()}

    def add(self, sums: Sums, outputs: Sequence[np.ndarray]) -> None:
        values = outputs[0]
        _add_moments(sums, values.reshape(*values.shape[:2], *self.targets))

    def finish(self, sums: Sums) -> NormalPrediction:
        mean, variance = _moments(sums, self.num_samples)
        noise = add_draws(None, np.square(self.noise)) / len(self.noise)  # () or (T,)
        return NormalPrediction(
            mean, np.broadcast_to(noise, mean.shape).copy(), variance, self.num_samples
        )


def _add_moments(sums: Sums, values: np.ndarray) -> None:
    values = values.astype(np.float64, order="C")
    first = sums.setdefault("first", values[0])
    with np.errstate(invalid="ignore", over="ignore"):
        apart = values - first
        sums["apart"] = add_draws(sums.get("apart"), apart)
        sums["squares"] = add_draws(sums.get("squares"), np.square(apart))


def _moments(sums: Sums, count: int) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", over="ignore"):
        mean = sums["first"] + sums["apart"] / count
    return mean, _variance(sums["apart"], sums["squares"], count)


def _variance(apart: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.maximum(squares / count - np.square(apart / count), 0.0)


def _noise(given: Any, draws: int, targets: tuple[int, ...]) -> np.ndarray:
    """Standard deviations, (1, ...) or (S, ...), with as many numbers as there are targets, or one."""
    try:
        found = np.asarray(given)
        numbers = found.dtype.kind in "fiu"
    except (ValueError, TypeError, OverflowError):
        numbers, found = False, np.zeros(0)
    shape = found.shape
    sound = shape in ((), (1,), (draws,)) or (
        targets and shape in ((1, *targets), (draws, *targets))
    )
    if not numbers or not sound:
        raise ValueError(
            "expected noise to be a standard deviation, or one for each of "
            f"{draws} draws; got {shown(given)}."
        )
    noise = found.astype(np.float64).reshape(1 if shape == () else len(found), *shape[1:])
    for number in (noise.min(), noise.max()):  # NaN is both
        real_number("noise", number, at_least=0.0)
    return noise


HEADS: dict[str, Callable[[Mapping[str, Any], Program], Head]] = {
    each.kind: each for each in (ClassesHead, NormalHead, OutputsHead)
}


def head_of(description: Any, program: Program) -> Head:
    """The head that a description names, checked against a program.

    :raises ValueError: for an unknown kind, or a description that does not fit.
    """
    if not isinstance(description, Mapping) or "kind" not in description:
        raise ValueError(f"expected a head with a kind, got {shown(description)}.")
    kind = one_of("the kind of head", description["kind"], HEADS)
    return HEADS[kind](description, program)
