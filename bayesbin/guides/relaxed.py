"""The relaxed guide: Concrete draws of the weights, for stock Pyro losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from bayesbin.distributions import RelaxedSignBernoulli
from bayesbin.guides.base import SignGuide


class AutoRelaxedSignBernoulli(SignGuide):
    r"""Mean-field posterior whose draws are relaxed signs, reparameterised.

    .. math:: w_r = \tanh((\lambda + \delta) / \tau)

    For stock ``TraceMeanField_ELBO``, which needs ``rsample``: the KL is the closed form of the discrete
    distributions, the likelihood is averaged over relaxed weights, so the gradient is biased for the discrete
    posterior. ``posterior()`` is the discrete one. Everything else as :class:`AutoSignBernoulli`.

    :param temperature: tau > 0.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoRelaxedSignBernoulli
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> guide = AutoRelaxedSignBernoulli(Classifier(BinaryLinear(4, 3), dataset_size=100))
        >>> bool((guide()["weight"].abs() <= 1).all())
        True

    Source: Maddison, Mnih and Teh 2017, arXiv 1611.00712.
    """

    draws: ClassVar[str] = "relaxed"

    def __init__(
        self, model: Callable[..., Any], *, temperature: float = 0.5, **options: Any
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"The temperature is positive and finite; got {temperature}.")
        super().__init__(model, **options)
        self.temperature = float(temperature)

    def sign_distribution(self, natural: Tensor) -> RelaxedSignBernoulli:
        return RelaxedSignBernoulli(self.temperature, natural, validate_args=False)
