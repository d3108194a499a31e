"""What an element of a binary site is weighed by: the terms of the objective that it can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesbin.estimators.base import BatchObjective, Objective, SitePlates, Term, Values, total_of

_NONE = SitePlates()


@dataclass(frozen=True)
class EvaluatedTerms:
    r"""An objective at S joint draws, in total and as each element of a binary site sees it.

    .. math:: f = \sum_t \sum_i f_{t,i}, \qquad
        f^{(j)} = \sum_{t,i\,:\ i \text{ agrees with } j \text{ in every plate that both lie in}} f_{t,i}

    The elements of a plate are independent given what lies outside it: that is what ``pyro.plate``
    declares, and what this relies on. A term of datum i therefore does not change with the local signs
    of datum j, and weighing these by it would only add noise. Terms that share no plate with a site count
    whole, and those that the model computes before it samples the site do not count, because they cannot
    depend on it.

    :param terms: the parts, with live graphs. :param plates: the plates of the binary sites; where no
        site lies in one, every site sees the total.

    Source: Ranganath, Gerrish and Blei 2014, arXiv 1401.0118, section 3.1 (Rao-Blackwellisation).
    """

    terms: Sequence[Term]
    plates: Mapping[str, SitePlates]

    @property
    def total(self) -> Tensor:
        """The objective, (S,)."""
        return total_of(self.terms)

    @property
    def is_split(self) -> bool:
        """Whether some site lies in a plate."""
        return any(own.axes or own.steps for own in self.plates.values())

    def of_site(self, name: str, dims: int) -> Tensor:
        """What the elements of a site are weighed by, with a live graph.

        :param dims: the number of dimensions of the site's values.
        :return: (S,) if it is the same for all; else (S, *sizes), which broadcasts to the site's shape.
        """
        if not self.is_split:
            return self.total
        axes = self.plates.get(name, _NONE).axes
        total: Tensor | None = None
        for term in self._terms_of(name):
            outside = [1 + i for i, plate in enumerate(term.plates) if plate not in axes]
            values = term.values.sum(outside) if outside else term.values
            inside = [axes[plate] for plate in term.plates if plate in axes]
            order = sorted(range(len(inside)), key=inside.__getitem__)
            sizes = [1] * dims if axes else []
            for i in order:
                sizes[inside[i]] = values.shape[1 + i]
            values = values.permute(0, *(1 + i for i in order)).reshape(len(values), *sizes)
            total = values if total is None else total + values
        if total is None:
            return torch.zeros_like(self.terms[0].values.flatten(1)[:, 0])
        return total

    def resolved_plates(self, name: str) -> frozenset[str]:
        """The plates of a site whose elements can be told apart in every term that depends on the site."""
        axes = self.plates.get(name, _NONE).axes
        terms = self._terms_of(name)
        return frozenset(plate for plate in axes if all(plate in term.plates for term in terms))

    def _terms_of(self, name: str) -> list[Term]:
        """The terms that may depend on a site."""
        steps = self.plates.get(name, _NONE).steps
        return [
            term
            for term in self.terms
            if (term.after is None or name in term.after)
            and all(term.steps.get(plate, step) == step for plate, step in steps.items())
        ]


def evaluate(objective: Objective, values: Values) -> EvaluatedTerms:
    """The objective at S joint draws; one term, if it is a plain function."""
    if isinstance(objective, BatchObjective):
        return EvaluatedTerms(objective.terms(values), objective.plates)
    return EvaluatedTerms([Term(objective(values))], {})
