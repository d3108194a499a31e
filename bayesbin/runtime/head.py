"""What every kind of head shares: its description, numbers that differ between draws, sums over draws.

Draws are added one after another in their order, in float64 and for each datum alone, so that neither the
blocks of rows nor the chunks of draws change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bayesbin.core.checks import real_number, shown
from bayesbin.runtime.program import Program

Prediction = Any  # of a kind's own class
Sums = dict[Any, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a head that may differ between draws.

    :param meaning: what it is, in words. :param above: what its numbers exceed; None: any finite number.
    :param ascending: whether it is a list of ascending numbers; otherwise it is a number, or one for each
        target.
    """

    meaning: str
    above: float | None = None
    ascending: bool = False

    def read(self, name: str, given: Any, draws: int, targets: tuple[int, ...]) -> np.ndarray:
        """The numbers in float64, (1, ...) for all draws or (S, ...).

        :param targets: the shape of the targets of a datum.
        :raises ValueError: for other shapes, NaN, infinity, or numbers out of range.
        """
        try:
            found = np.asarray(given)
            numbers = found.dtype.kind in "fiu" and found.size > 0
        except (ValueError, TypeError, OverflowError):
            numbers, found = False, np.zeros(0)
        shape = self._shape(found.shape, draws, targets)
        if not numbers or shape is None:
            raise ValueError(
                f"expected {name} to be {self.meaning}, or one for each of {draws} draws; got {shown(given)}."
            )
        found = found.astype(np.float64).reshape(shape)
        for number in (found.min(), found.max()):  # NaN is both
            real_number(name, number, above=self.above)
        # Equal ones are no error: a draw may be rounded to them.
        if self.ascending and (np.diff(found, axis=-1) < 0.0).any():
            raise ValueError(f"expected {name} to ascend; got {shown(found.tolist())}.")
        return found

    def _shape(
        self, shape: tuple[int, ...], draws: int, targets: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """The shape that numbers of a shape have with an axis of draws; None: they do not fit."""
        if self.ascending:
            found = shape if len(shape) == 2 else (1, *shape)
            return found if len(found) == 2 and found[0] in (1, draws) else None
        if shape in ((), (1,), (draws,)):
            return shape or (1,)
        if shape in ((1, 1), (draws, 1)):  # one number for all targets
            return shape[:1]
        return shape if targets and shape in ((1, *targets), (draws, *targets)) else None


class Head:
    """One kind of head: a description, checked against a program; ``start``, ``add`` and ``finish``.

    :param description: what JSON can hold: "kind", parameters, and settings that are not the default.
    :raises ValueError: if the description does not fit the kind, or the outputs of the program do not.
    """

    kind: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    settings: ClassVar[Mapping[str, Any]] = {}  # the same for all draws: name -> default
    has_classes: ClassVar[bool] = False  # of which one is the case
    labels: int | None = None  # how many classes there are to name

    def __init__(self, description: Mapping[str, Any], program: Program) -> None:
        needed = self.parameters_of(description)
        self.num_samples = program.num_draws
        self.shapes = [program.values[name].shape for name in program.outputs]
        self.chosen = {n: description.get(n, default) for n, default in self.settings.items()}
        self.targets = self.prepare()
        self.numbers = {
            name: each.read(name, description[name], self.num_samples, self.targets)
            for name, each in needed.items()
        }
        self.check()

    @classmethod
    def parameters_of(cls, description: Mapping[str, Any]) -> Mapping[str, Parameter]:
        """The parameters that a description of this kind has.

        :raises ValueError: for one that lacks a parameter, or has something else.
        """
        needed = cls.needed(description)
        if not {"kind", *needed} <= set(description) <= {"kind", *needed, *cls.settings}:
            wanted = ", ".join(["kind", *sorted(needed)])
            more = f" (and {', '.join(cls.settings)} if wanted)" if cls.settings else ""
            raise ValueError(
                f"expected a head of kind {cls.kind!r} with exactly {wanted}{more}; got "
                f"{', '.join(sorted(map(str, description)))[:200]}."
            )
        return needed

    @classmethod
    def needed(cls, description: Mapping[str, Any]) -> Mapping[str, Parameter]:
        """The parameters that a description needs, by its settings."""
        return cls.parameters

    def prepare(self) -> tuple[int, ...]:
        """Check ``shapes`` and the settings in ``chosen``; the shape of the targets of a datum."""
        return ()

    def check(self) -> None:
        """Check what is left, once the numbers of the parameters are read."""

    @property
    def description(self) -> dict[str, Any]:
        """What JSON can hold of this head."""
        return self._described({name: each.tolist() for name, each in self.numbers.items()})

    def of_draws(self, draws: Sequence[int]) -> dict[str, Any]:
        """The description of the head of some of the draws."""
        rows = {n: each[list(draws) if len(each) > 1 else [0]] for n, each in self.numbers.items()}
        return self._described({name: each.tolist() for name, each in rows.items()})

    def _described(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        other = {n: value for n, value in self.chosen.items() if value != self.settings[n]}
        return {"kind": self.kind, **other, **numbers}

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

    def require_classes(self) -> None:
        """Refuse a head without classes where log-probabilities are asked for.

        :raises ValueError: for such a head.
        """
        if not self.has_classes:
            raise ValueError(
                f"expected a head of classes for log_probs, got one of kind {self.kind!r}; use outputs."
            )

    def log_probs(self, outputs: Sequence[np.ndarray], first: int = 0) -> np.ndarray:
        """Log-probabilities of each draw, (s, B, ..., C), float64; classes come last.

        :param first: the number of the first of the draws.
        :raises ValueError: for a head that has no classes.
        """
        self.require_classes()
        raise NotImplementedError

    def of_rows(self, name: str, first: int, count: int) -> np.ndarray:
        """The numbers of a parameter in some draws, (1, ...) or (count, ...)."""
        numbers = self.numbers[name]
        return numbers if len(numbers) == 1 else numbers[first : first + count]

    def one_output(self) -> tuple[int, ...]:
        """The shape of the only output. :raises ValueError: for a network with several."""
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


# Sums over draws


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


def add_to(sums: Sums, name: str, values: np.ndarray, add: np.ufunc = np.add) -> None:
    """Add some draws to one of the sums."""
    with np.errstate(invalid="ignore", over="ignore"):
        sums[name] = add_draws(sums.get(name), values, add)


def add_moments(sums: Sums, values: np.ndarray) -> None:
    """Add values of some draws, (s, B, ...), to the sums that :func:`moments` needs.

    Differences to the first draw are added, so that draws that agree have a variance of exactly 0.
    """
    values = values.astype(np.float64, order="C")
    first = sums.setdefault("first", values[0])
    with np.errstate(invalid="ignore", over="ignore"):
        apart = values - first
        add_to(sums, "apart", apart)
        add_to(sums, "squares", np.square(apart))


def moments(sums: Sums, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over ``count`` draws."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = sums["first"] + sums["apart"] / count
        variance = sums["squares"] / count - np.square(sums["apart"] / count)
        return mean, np.maximum(variance, 0.0)
