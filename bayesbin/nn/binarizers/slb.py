"""SLB: a distribution over levels for each weight, searched with growing sharpness."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from bayesbin.distributions.low_bit import LowBitCategorical, checked_levels
from bayesbin.nn.binarizers.base import SIGNS, Binarizer


class SLB(Binarizer):
    r"""Searching for low-bit weights: the expected level while training, the likeliest one afterwards.

    .. math::
        w = \sum_k l_k\, \mathrm{softmax}(T a)_k \text{ in training}, \qquad
        w = l_{\arg\max_k a_k} \text{ in evaluation}

    The latents are the logits a, of shape (\*weight, K). Raise ``sharpness``, T, between epochs
    (``bayesbin.optim.Schedule(binarizer, "sharpness", ...)``): what is trained then approaches what predicts,
    and at infinity is equal to it. Until then batch statistics of the two differ: recompute them for the
    hard weights before evaluation.

    :param levels: the K levels, increasing. :param sharpness: T > 0.
    :raises ValueError: for other levels, or a sharpness that is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import SLB
        >>> binarizer = SLB(levels=(-1, 0, 1), sharpness=10.0)
        >>> logits = binarizer.right_inverse(torch.tensor([1.0, 0.1, -1.4])); logits.shape
        torch.Size([3, 3])
        >>> binarizer.hard(logits).tolist()
        [1.0, 0.0, -1.0]

    Source: Yang et al. 2020, arXiv 2009.08695.
    """

    def __init__(self, levels: Sequence[float] = SIGNS, sharpness: float = 1.0) -> None:
        super().__init__()
        self.levels = checked_levels(levels)
        if not sharpness > 0:
            raise ValueError(f"The sharpness is a positive number; got {sharpness}.")
        self.sharpness = float(sharpness)

    def forward(self, latent: Tensor) -> Tensor:
        if not self.training or self.sharpness == math.inf:
            return self.hard(latent)
        return self.distribution(self.sharpness * latent).mean

    def hard(self, latent: Tensor) -> Tensor:
        """The level of the highest logit; of several, the largest level."""
        return self.distribution(latent.detach()).mode

    def distribution(self, logits: Tensor) -> LowBitCategorical:
        """The distribution over levels with these logits."""
        return LowBitCategorical(self.levels, logits, validate_args=False)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Logits -(w / r - l_k)^2 / 2, r the root mean square of w: highest at the level nearest to w / r."""
        size = weight.detach().square().mean().sqrt().clamp_min(1e-30)
        levels = self.distribution(weight.new_zeros(len(self.levels))).level_values
        return -0.5 * (weight[..., None] / size - levels).square()

    def extra_repr(self) -> str:
        return f"levels={self.levels}, sharpness={self.sharpness:g}"
