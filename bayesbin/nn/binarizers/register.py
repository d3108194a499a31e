"""Give the weights of any torch network latents behind them, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayesbin.nn.binarizers.base import Binarizer
from bayesbin.nn.convert import chosen_parameters, linear_and_convolution_weights
from bayesbin.nn.layers import resolve_scale

Network = TypeVar("Network", bound=nn.Module)


def binarize_(
    module: Network,
    binarizer: Binarizer,
    where: Callable[[str, nn.Module], bool] = linear_and_convolution_weights,
    *,
    scale: float | str = "fan-in",
) -> Network:
    """Register a binarizer on the chosen weights of a plain torch network, in place; returns the network.

    For training without Pyro. ``latents(net)`` says which weights they are and holds what is trained. The
    weight that a layer then uses is scale times binarizer(latent), as in a network of :func:`to_binary_`;
    with the real weights as latents to start from (``binarizer.right_inverse``). Biases, normalisation and
    everything not chosen stay as they are.

    :param binarizer: one for all weights. :param where: as of :func:`to_binary_`.
    :param scale: "fan-in" (1 / sqrt(inputs of a unit)) or a positive number.
    :raises ValueError: if nothing is chosen, weights are tied, or the scale is not positive.

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
    chosen = chosen_parameters(module, where, caller="binarize_")
    sizes = [resolve_scale(scale, owner.get_parameter(leaf)) for _, owner, leaf in chosen]
    for (_, owner, leaf), size in zip(chosen, sizes, strict=True):
        parametrize.register_parametrization(owner, leaf, binarizer)
        parametrize.register_parametrization(owner, leaf, FixedScale(size))
    return module


def latents(module: nn.Module) -> dict[str, nn.Parameter]:
    """The latent of each weight that ``binarize_`` chose, by the weight's dotted name."""
    found = {}
    for path, owner in module.named_modules():
        if parametrize.is_parametrized(owner):
            chains: Any = owner.parametrizations
            for leaf, chain in chains.items():
                if isinstance(chain[0], Binarizer):
                    found[f"{path}.{leaf}" if path else leaf] = chain.original
    return found


class FixedScale(nn.Module):
    """The torch parametrization that multiplies binarized weights by a number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight  # a latent is a real weight as it was, whatever the size of the signs

    def extra_repr(self) -> str:
        return f"scale={self.scale:.4g}"
