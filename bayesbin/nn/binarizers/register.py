"""Give the weights of any torch network latents behind them, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from bayesbin.nn.binarizers.base import Binarizer
from bayesbin.nn.effective import make_latent, walk_binary
from bayesbin.nn.scales import Axes, LayerScale, scale_for_all
from bayesbin.nn.selection import Where, chosen

Network = TypeVar("Network", bound=nn.Module)


def binarize_(
    module: Network,
    binarizer: Binarizer,
    where: Where = None,
    *,
    scale: LayerScale = "fan-in",
    inputs: Mapping[str, Axes] | None = None,
) -> Network:
    """Put a binarizer before the chosen weights of a plain torch network, in place; returns the network.

    For training without Pyro. ``latents(net)`` says which weights they are and holds what is trained: each
    stays a parameter under its weight's name. Read as ``layer.weight``, the weight is the one that the layer
    uses, scale times binarizer(latent), as in a network of :func:`to_binary_`; latents start from the real
    weights (``binarizer.right_inverse``). Biases, normalisation and everything not chosen stay as they are.

    :param binarizer: one for all weights. :param where, scale, inputs: as of :func:`to_binary_`.
    :raises ValueError: if nothing is chosen, or a scale does not fit.

    Example::

        >>> import torch
        >>> from bayesbin.nn import binarize_, latents
        >>> from bayesbin.nn.binarizers import SignSTE
        >>> from bayesbin.optim import clip_after_step
        >>> binarizer = SignSTE()
        >>> net = binarize_(torch.nn.Linear(4, 2), binarizer)
        >>> net.weight.abs().unique().tolist()
        [0.5]
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = clip_after_step(optimizer, latents(net).values(), binarizer.latent_bound)
        >>> net(torch.ones(3, 4)).sum().backward(); optimizer.step()
    """
    if not isinstance(binarizer, Binarizer):
        raise ValueError(f"binarizer is one of bayesbin.nn.binarizers; got {binarizer!r}.")
    found = chosen(module, where, caller="binarize_")
    axes = inputs or {}
    sizes = [
        scale_for_all(scale, each.name, each.members, each.parameter, axes.get(each.name))
        for each in found
    ]
    for each, size in zip(found, sizes, strict=True):
        # The same parameter, for optimizers that have it: of another shape where there are several levels.
        each.parameter.data = binarizer.right_inverse(each.parameter).detach()
        for owner, leaf in each.members:
            make_latent(owner, leaf, binarizer, size)
    return module


def latents(module: nn.Module) -> dict[str, nn.Parameter]:
    """The latent of each weight that ``binarize_`` chose, by the weight's dotted name."""
    found: dict[str, nn.Parameter] = {}
    for name, owner, leaf in walk_binary(module):
        latent = owner._parameters.get(leaf)
        if latent is not None and not any(latent is other for other in found.values()):
            found[name] = latent
    return found
