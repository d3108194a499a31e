"""Gibbs with gradients: a few weights flip at a time, those that the gradient speaks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.checks import whole_number
from bayesbin.infer.mcmc.sign_kernel import SignKernel


class GibbsWithGradients(SignKernel):
    r"""Flip one weight, chosen with probability softmax(h), and accept the flip or not.

    .. math:: r(i | w) = \frac{e^{h_i}}{\sum_j e^{h_j}}, \qquad
        h_i = -w_i \frac{\partial}{\partial w_i} \log p(y, w)

    With ``num_flips`` = k, a move first draws how many weights to flip, from 1 to k with equal
    probability, and chooses them one after another, each from those left; the reverse move chooses them in
    the opposite order. A move that always flipped an even number would never change the product of all
    signs. Nothing is to be tuned. A kernel for ``pyro.infer.mcmc.MCMC``.

    :param model: a Pyro model whose latent sites are signs; for others see :class:`MixedKernel`.
    :param num_flips: k, the most weights that a move flips; from 1 to the number of weights.
    :raises ValueError: for k out of range; at setup, for a model that :class:`LogJoint` refuses.

    Example::

        >>> import pyro, torch
        >>> from pyro.infer import MCMC
        >>> from bayesbin.distributions import SignBernoulli
        >>> from bayesbin.infer import GibbsWithGradients
        >>> def model():
        ...     w = pyro.sample("w", SignBernoulli(natural=torch.zeros(5)).to_event(1))
        ...     pyro.factor("fit", 0.5 * w.sum().square())
        >>> mcmc = MCMC(GibbsWithGradients(model), 10, warmup_steps=10, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["w"].shape
        torch.Size([10, 5])

    Source: Grathwohl et al. 2021, "Oops I took a gradient", arXiv 2102.04509.
    """

    def __init__(self, model: Callable[..., Any], num_flips: int = 1) -> None:
        super().__init__(model)
        self.num_flips = whole_number("num_flips", num_flips, at_least=1)

    def check(self, size: int) -> None:
        if self.num_flips > size:
            raise ValueError(
                f"expected num_flips of at most the model's {size} weights, got {self.num_flips}; lower it."
            )

    def draw_move(self, slopes: Tensor) -> Tensor:
        # The k largest of slopes with Gumbel noise are k draws without replacement, in order.
        number = 1 if self.num_flips == 1 else 1 + int(torch.randint(self.num_flips, ()))
        gumbel = -torch.log(-torch.log(numerics.uniform_noise(slopes)))
        return (slopes + gumbel.to(slopes)).topk(number).indices

    def log_prob_of_move(self, move: Tensor, slopes: Tensor) -> Tensor:
        """Each number of flips has probability 1/k, each choice softmax probability among those left."""
        chosen = slopes[move]
        taken = torch.zeros_like(slopes, dtype=torch.bool).index_fill_(0, move, True)
        others = slopes.masked_fill(taken, -torch.inf).logsumexp(0)
        # Left at choice c: the others and the chosen from c on.
        later = chosen.flip(0).logcumsumexp(0).flip(0)
        return (chosen - torch.logaddexp(later, others)).sum() - math.log(self.num_flips)

    def flipped(self, move: Tensor, signs: Tensor) -> Tensor:
        return signs.index_copy(0, move, -signs[move])

    def reverse(self, move: Tensor) -> Tensor:
        return move.flip(0)
