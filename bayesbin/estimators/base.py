"""What every gradient estimator is: a module that turns an objective over signs into a surrogate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

Values = Mapping[str, Sequence[Tensor]]
Objective = Callable[[Values], Tensor]


@dataclass(frozen=True)
class BatchObjective:
    """An objective that knows the batch it was made from, for baselines that look at the data.

    :param evaluate: the objective. :param args: and :param kwargs: what the model was called with.
    """

    evaluate: Objective
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, values: Values) -> Tensor:
        return self.evaluate(values)


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
