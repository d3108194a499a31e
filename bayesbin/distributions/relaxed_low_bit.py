"""The reparameterised stand-in for LowBitCategorical: a Concrete draw between the levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints as torch_constraints

from bayesbin.core import numerics
from bayesbin.core.checks import real_number
from bayesbin.distributions.low_bit import LowBitCategorical, over_levels


class RelaxedLowBit(LowBitCategorical):
    r"""Concrete relaxation of a weight with a few levels: a reparameterised draw between them.

    .. math:: w_r = \sum_k l_k\, \mathrm{softmax}((a + g) / \tau)_k, \qquad
        g_k = -\log(-\log u_k), \quad u_k \sim U(0, 1)

    With the levels (-1, 1) it has the distribution of ``RelaxedSignBernoulli``. As tau tends to 0
    the draw tends to a level, drawn from softmax(a). Mean, variance, entropy and KL are those of the discrete
    distribution; ``log_prob`` knows levels only, the density between them having no closed form.

    :param temperature: tau > 0. :param levels: and :param logits: as of :class:`LowBitCategorical`.
    :raises ValueError: for a temperature that is not positive, or as :class:`LowBitCategorical`.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import RelaxedLowBit
        >>> q = RelaxedLowBit(0.5, (-1, 0, 1), torch.zeros(4, 3))
        >>> bool((q.rsample((100,)).abs() <= 1).all())
        True

    Source: Maddison, Mnih and Teh 2017, arXiv 1611.00712; Jang, Gu and Poole 2017, arXiv 1611.01144.
    """

    has_rsample = True
    has_enumerate_support = False

    def __init__(
        self,
        temperature: float,
        levels: Sequence[float],
        logits: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.temperature = real_number("temperature", temperature, above=0)
        super().__init__(levels, logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedLowBit:
        new: Any = self._get_checked_instance(RelaxedLowBit, _instance)
        new.temperature = self.temperature
        return super().expand(batch_shape, new)  # type: ignore[return-value]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Relaxed weights of shape sample_shape + batch_shape, differentiable in the logits."""
        shape = (*self._extended_shape(sample_shape), len(self.levels))
        logits = self.logits.expand(shape)
        uniform = numerics.uniform_noise(logits)
        gumbel = -torch.log(-torch.log(uniform)).to(logits.dtype)
        shares = over_levels(torch.softmax, (logits + gumbel) / self.temperature)
        return (shares * self.level_values).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def support(self) -> Any:
        """The interval from the lowest to the highest level."""
        return torch_constraints.interval(self.levels[0], self.levels[-1])
