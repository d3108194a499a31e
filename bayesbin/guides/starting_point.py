"""Where the natural parameters of a guide start: at random, at pretrained weights, at a posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.distributions import SignBernoulli
from bayesbin.posterior import BinaryPosterior

Init = nn.Module | Mapping[str, Any] | BinaryPosterior | None


def starting_point(init: Init, init_scale: float) -> Callable[[str, Tensor], Tensor]:
    """The function from a binary site's name and prototype to its initial natural parameters."""
    if init is None:
        return lambda name, like: init_scale * torch.randn_like(like)
    if isinstance(init, BinaryPosterior):
        return lambda name, like: _found(init, name, like, "posterior").natural.to(like).clone()
    weights = init.state_dict() if isinstance(init, nn.Module) else init

    def from_weights(name: str, like: Tensor) -> Tensor:
        # The sign of each pretrained weight, with a confidence proportional to its size: the root
        # mean square of the natural parameters is init_scale.
        weight = torch.as_tensor(_found(weights, name, like, "pretrained network")).to(like)
        size = weight.square().mean().sqrt()
        return init_scale * weight.detach() / size.clamp(min=torch.finfo(like.dtype).tiny)

    return from_weights


def _found(source: Mapping[str, Any], name: str, like: Tensor, what: str) -> Any:
    if name not in source:
        raise ValueError(
            f"The {what} given as init has no weight {name!r}; it has {', '.join(source) or 'none'}."
        )
    entry = source[name]
    shape = tuple(entry.natural.shape if isinstance(entry, SignBernoulli) else entry.shape)
    if shape != tuple(like.shape):
        raise ValueError(
            f"The {what} given as init has {name!r} of shape {shape}; the model's is {tuple(like.shape)}."
        )
    return entry
