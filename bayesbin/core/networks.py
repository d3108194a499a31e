"""The one place where drawn weights enter a torch network: by value, for one call or in a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def state_key(net: nn.Module, site: str) -> str:
    """The name under which ``net`` holds the signs of ``site``, a dotted parameter name.

    A layer of ours holds them under the site's own name; in any other module they are the original
    tensor of a torch parametrization that scales them.
    """
    path, _, leaf = site.rpartition(".")
    try:
        module = net.get_submodule(path)
    except AttributeError:
        module = None
    if module is not None:
        if leaf in module._buffers or leaf in module._parameters:
            return site
        if nn.utils.parametrize.is_parametrized(module, leaf):
            return ".".join(part for part in (path, "parametrizations", leaf, "original") if part)
    raise KeyError(
        f"The network has no weight named {site!r}. A posterior is used with the network it was "
        "trained on, converted by to_binary_ in the same way."
    )


def call(
    net: nn.Module, values: Mapping[str, Tensor], x: Any, state: Mapping[str, Tensor] | None = None
) -> Any:
    """``net(x)`` with the signs of each site replaced for this one call.

    :param values: site name -> signs (relaxed signs and moments of weights are welcome too).
    :param state: further buffers to replace, by state-dict name: normalisation statistics.
    """
    substitutes = {state_key(net, site): value for site, value in values.items()}
    substitutes.update(state or {})
    return functional_call(net, substitutes, (x,))


def write_(
    net: nn.Module, values: Mapping[str, Tensor], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Write signs (and buffers) into ``net``, which the caller owns; returns it."""
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    with torch.no_grad():
        for site, value in values.items():
            weight = tensors[state_key(net, site)]
            if weight.shape != value.shape:  # copy_ would broadcast
                raise ValueError(
                    f"The network's weight {site!r} has shape {tuple(weight.shape)}, the posterior's "
                    f"{tuple(value.shape)}. A posterior is used with the network it was trained on."
                )
            weight.copy_(value)
        for key, value in (state or {}).items():
            tensors[key].copy_(value)
    return net


def copy_with(
    net: nn.Module, values: Mapping[str, Tensor], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy of ``net`` in evaluation mode whose weights are the given signs."""
    return write_(copy.deepcopy(net), values, state).eval()
