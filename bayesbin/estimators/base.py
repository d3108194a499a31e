"""What every gradient estimator is: a module that turns an objective over signs into a surrogate."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Values = Mapping[str, Sequence[Tensor]]
Objective = Callable[[Values], Tensor]


class Term(NamedTuple):
    """A part of an objective, resolved over plates of the model.

    :param values: at S draws, shape (S, *sizes of the plates).
    :param plates: the names of those plates, in the order of the axes.
    :param steps: sequential plates that the term lies in, each with the step. In other steps of the same
        plate there are no signs that the term depends on.
    :param after: the binary sites that the model samples before the term, on which alone it can
        depend; None where that is not known.
    """

    values: Tensor
    plates: tuple[str, ...] = ()
    steps: Mapping[str, int] = {}
    after: frozenset[str] | None = None


class SitePlates(NamedTuple):
    """The plates that a binary site lies in.

    :param axes: plate -> axis of the site's values, counted from the end (negative).
    :param steps: sequential plate -> step of it.
    :param sizes: plate -> number of elements of this call and of the whole plate, in the order of the axes.
    """

    axes: Mapping[str, int] = {}
    steps: Mapping[str, int] = {}
    sizes: Mapping[str, tuple[int, int]] = {}

    @property
    def are_whole(self) -> bool:
        """Whether every call sees all elements of the plates."""
        return all(here == full for here, full in self.sizes.values())


@dataclass(frozen=True)
class BatchObjective:
    """An objective that knows the batch it was made from, and its own terms by plate.

    :param evaluate: the objective, or the list of its terms at S joint draws (:class:`Term`).
    :param args: and :param kwargs: what the model was called with.
    :param plates: binary site -> :class:`SitePlates`, complete after the first evaluation.
    :param subsamples: plate -> indices of its elements in this call, each known once the plate was entered.
    """

    evaluate: Callable[[Values], Tensor | Sequence[Term]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    plates: Mapping[str, SitePlates] = field(default_factory=dict)
    subsamples: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, values: Values) -> Tensor:
        return total_of(self.terms(values))

    def terms(self, values: Values) -> Sequence[Term]:
        """The terms at S joint draws, with live graphs; their total is ``self(values)``."""
        found = self.evaluate(values)
        return [Term(found)] if isinstance(found, Tensor) else found


def total_of(terms: Sequence[Term]) -> Tensor:
    """The objective, (S,), from its terms."""
    sums = [term.values.flatten(1).sum(1) if term.plates else term.values for term in terms]
    return functools.reduce(torch.add, sums)


class Estimator(nn.Module, ABC):
    r"""Estimates E_q[f(w)] and its gradient in the natural parameters, for signs w ~ q_lambda.

    ``estimator(objective, natural)`` returns a scalar *surrogate*: its value estimates the expectation,
    its gradient with respect to each ``natural[site]`` estimates that gradient and flows on to whatever
    produced the natural parameters.

    :param objective: f, evaluated at S joint draws at once: takes ``{site: [S values]}``, each value
        of the site's shape, and returns a tensor (S,) with a live graph. It may be called several
        times (control variates, flipped weights), and draws of all sites belong together: value s of
        one site goes with value s of every other.
    :param natural: ``{site: lambda}``, live tensors; for a site of weights with a few levels, which an
        estimator takes if its ``low_bit`` says so, the ``LowBitCategorical`` itself, with live logits.

    The number of draws and any parameters to learn (control variates, baselines) belong to the
    estimator; the surrogate carries their gradients too, at no change of its value. ``unbiased`` says
    whether the gradient is exact in expectation; if not, the docstring of the class says why.
    """

    unbiased: ClassVar[bool]
    low_bit: ClassVar[bool] = False

    @abstractmethod
    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        """The surrogate, a scalar."""

    def __repr__(self) -> str:  # on one line, unlike a module's, for tables and records
        return f"{type(self).__name__}({self.extra_repr()})"
