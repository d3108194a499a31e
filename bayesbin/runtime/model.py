"""A model: a program, the meaning of its outputs, and what goes before it; what one file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesbin.core.checks import one_of, shown
from bayesbin.runtime.head import Head
from bayesbin.runtime.heads import head_of
from bayesbin.runtime.program import Program

PRECISIONS = ("exact", "fast")


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that prediction needs, checked as a whole.

    :param head: a description, see :mod:`bayesbin.runtime.heads`. :param labels: a name for each class.
    :param preprocessing: a program of one draw from raw inputs to those of ``program``.
    :param provenance: whatever JSON can hold, by name. :param precision: "exact" or "fast", see
        :func:`bayesbin.runtime.reference.run`.
    :raises ValueError: in a sentence, for parts that do not fit one another.
    """

    program: Program
    head: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    preprocessing: Program | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "exact"

    def __post_init__(self) -> None:
        values = self.program.values
        one_of("precision", self.precision, PRECISIONS)
        if not self.program.inputs or any(
            not values[name].batched for name in self.program.outputs
        ):
            raise ValueError("expected a network whose outputs depend on its inputs.")
        # The head is made once and kept; the description stays what JSON can hold.
        object.__setattr__(self, "_head", head_of(self.head, self.program))
        object.__setattr__(self, "head", self.averaging.description)
        object.__setattr__(self, "labels", _labels(self.labels, self.averaging.labels))
        if self.preprocessing is not None:
            _check_preprocessing(self.preprocessing, self.program)
        if not isinstance(self.provenance, Mapping):
            raise ValueError(f"expected provenance by name, got {shown(self.provenance)}.")

    @property
    def averaging(self) -> Head:
        """The head that averages over draws."""
        return vars(self)["_head"]

    def select(self, draws: Sequence[int]) -> Model:
        """The model of some of the draws, in the order given.

        :raises ValueError: for draws that there are not, or none.
        """
        return Model(
            self.program.select(draws),
            self.averaging.of_draws(draws),
            self.labels,
            self.preprocessing,
            self.provenance,
            self.precision,
        )


def _labels(given: Any, classes: int | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if classes is None:
        raise ValueError("expected labels for a head of classes or labels alone; leave them out.")
    named = isinstance(given, Sequence) and not isinstance(given, str)
    if not named or any(not isinstance(label, str) for label in given):
        raise ValueError(f"expected labels that are text, got {shown(given)}.")
    if len(given) != classes:
        raise ValueError(f"expected a label for each of {classes} classes, got {len(given)}.")
    return tuple(given)


def _check_preprocessing(preprocessing: Program, program: Program) -> None:
    if not isinstance(preprocessing, Program) or preprocessing.num_draws != 1:
        raise ValueError("expected preprocessing to be a program of one draw, or None.")
    made = [preprocessing.values[name] for name in preprocessing.outputs]
    wanted = list(program.inputs.values())
    if any(not value.batched for value in made) or not preprocessing.inputs:
        raise ValueError("expected preprocessing whose outputs depend on its inputs.")
    if [(v.shape, v.dtype) for v in made] != [(v.shape, v.dtype) for v in wanted]:
        raise ValueError(
            f"expected preprocessing to make inputs of {[v.shape for v in wanted]}, got "
            f"{[v.shape for v in made]}."
        )
