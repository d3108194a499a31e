"""Keeping latent weights within bounds, as a step of its own that one can see."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], bound: float = 1.0) -> None:
    """Clip parameters to [-bound, bound], in place.

    >>> import torch
    >>> latent = torch.tensor([0.5, -3.0]); clip_([latent]); latent.tolist()
    [0.5, -1.0]
    """
    for parameter in parameters:
        parameter.clamp_(-bound, bound)


def clip_after_step(
    optimizer: Optimizer, parameters: Iterable[Tensor], bound: float | None = 1.0
) -> Any:
    """Clip parameters to [-bound, bound] after every step of an optimizer; returns the hook's handle.

    BinaryConnect, TernaryConnect and the straight-through sign keep their latents in [-1, 1]: beyond it a
    latent says nothing more about its sign, and would only take longer to come back.

    :param parameters: ``guide.latents()``, or ``latents(net).values()``.
    :param bound: ``binarizer.latent_bound``; None does nothing.
    :raises ValueError: if there are no parameters, or the bound is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.optim import clip_after_step
        >>> latent = torch.nn.Parameter(torch.tensor([0.9]))
        >>> optimizer = torch.optim.SGD([latent], lr=1.0)
        >>> handle = clip_after_step(optimizer, [latent])
        >>> (-latent).sum().backward(); optimizer.step(); latent.item()
        1.0
        >>> handle.remove()

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363, section 2.4.
    """
    kept = list(parameters)
    if not kept:
        raise ValueError(
            "clip_after_step got no parameters; pass guide.latents() or latents(net).values()."
        )
    bound = math.inf if bound is None else bound
    if not bound > 0:
        raise ValueError(f"bound is a positive number, or None; got {bound}.")
    return optimizer.register_step_post_hook(lambda *_: clip_(kept, bound))
