"""The noise behind a drawn sign: the law of z = lambda + delta given w = sign(z)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def conditional_noise(natural: Tensor, signs: Tensor, uniform: Tensor) -> Tensor:
    r"""z given its sign: z = (w/2) softplus(logit v + softplus(2 w lambda)), v uniform on (0, 1).

    With z = lambda + logit(u)/2, w = sign(z): u given w is uniform between the threshold sigmoid(-2
    lambda) and the end of (0, 1) on the side of w. Solved for z and written in softplus, nothing
    cancels and nothing overflows at any lambda.
    """
    logit = torch.log(uniform) - torch.log1p(-uniform)
    wide = natural.detach().to(uniform.dtype)
    signs = signs.to(uniform.dtype)
    return 0.5 * signs * softplus(logit + softplus(2.0 * signs * wide))


def coupling_gap(natural: Tensor, noise: Tensor) -> Tensor:
    r"""1 - dz/d lambda of :func:`conditional_noise` at fixed v and w, from z itself.

    .. math::
        \frac{dz}{d\lambda} = \sigma(2 w \lambda)\,(1 - e^{-2 |z|}), \qquad
        1 - \frac{dz}{d\lambda} = \sigma(-2 w \lambda) + \sigma(2 w \lambda)\, e^{-2 |z|}

    The second form is what control variates need, and keeps its digits where lambda is saturated.
    """
    wide = 2.0 * natural.detach().to(noise.dtype)
    aligned = wide * torch.copysign(torch.ones_like(noise), noise)
    return torch.sigmoid(-aligned) + torch.sigmoid(aligned) * torch.exp(-2.0 * noise.abs())
