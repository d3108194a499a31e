"""What every gradient estimator is: a module that turns an objective over signs into a surrogate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

Values = Mapping[str, Sequence[Tensor]]
Objective = Callable[[Values], Tensor]


class Estimator(nn.Module, ABC):
    r"""Estimates E_q[f(w)] and its gradient in the natural parameters, for signs w ~ q_lambda.

    ``estimator(objective, natural)`` returns a scalar *surrogate*: its value estimates the expectation,
    its gradient with respect to each ``natural[site]`` estimates that gradient and flows on to whatever
    produced the natural parameters.

    :param objective: f, evaluated at S joint draws at once: takes ``{site: [S values]}``, each value
        of the site's shape, and returns a tensor (S,) with a live graph. It may be called several
        times (control variates, antithetic pairs), and draws of all sites belong together: value s of
        one site goes with value s of every other.
    :param natural: ``{site: lambda}``, live tensors.

    The number of draws and any parameters to learn (control variates, baselines) belong to the
    estimator. ``unbiased`` says whether the gradient is exact in expectation; if not, the docstring
    of the class says why.
    """

    unbiased: ClassVar[bool]

    @abstractmethod
    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        """The surrogate, a scalar."""


def checked_num_samples(num_samples: int) -> int:
    """The number of draws, or an error."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples is a whole number of at least 1; got {num_samples!r}.")
    return num_samples
