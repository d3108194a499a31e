"""The numbers of a network apart from its code: parameters, buffers and scales, by name and by value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.core.checks import shown
from bayesbin.core.copies import copy_network
from bayesbin.nn import binary_sites
from bayesbin.nn.effective import walk_binary

Network = TypeVar("Network", bound=nn.Module)


def own_copy(net: Network) -> Network:
    """A copy of a network, or of a model around one, on the CPU, in evaluation mode, that nobody else holds.

    Batch normalisation that keeps no running statistics would make a prediction depend on the other rows of
    its batch. In the copy it has such statistics, which have to be computed before it predicts.
    """
    copied = copy_network(net).to("cpu").eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for module in copied.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            like = next(_floating(copied), torch.zeros(()))
            module.track_running_stats = True
            module.running_mean = torch.full((module.num_features,), torch.nan, dtype=like.dtype)
            module.running_var = torch.ones(module.num_features, dtype=like.dtype)
    return copied


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without the signs of the binary sites: a posterior holds those.

    Buffers that a state dict leaves out are here.
    """
    signs = {id(site.signs) for site in binary_sites(net).values()}
    named = (*net.named_parameters(), *net.named_buffers())
    return {name: tensor.detach() for name, tensor in named if id(tensor) not in signs}


def scales_of(net: nn.Module) -> dict[str, float]:
    """The scales of binary weights that are numbers; those that are tensors are buffers."""
    found = {}
    for name, module, leaf in walk_binary(net):
        scale = module.__dict__.get(f"{leaf}_scale")
        if isinstance(scale, float):
            found[name] = scale
    return found


def write_state_(
    net: nn.Module, tensors: Mapping[str, Tensor], scales: Mapping[str, float]
) -> None:
    """Put the numbers of another network of the same architecture into a network that the caller owns.

    :raises ValueError: for a parameter, buffer or scale that one of the two lacks, or of another shape or
        type.
    """
    own, own_scales = tensors_of(net), scales_of(net)
    require_same(
        "The network has other parameters and buffers than the ensemble was made of: ",
        {name: described(tensor) for name, tensor in own.items()},
        {name: described(tensor) for name, tensor in tensors.items()},
    )
    require_same(
        "The network has other binary weights with a number as scale than the ensemble was made of: ",
        dict.fromkeys(own_scales, "a number"),
        dict.fromkeys(scales, "a number"),
    )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    for name, module, leaf in walk_binary(net):
        if name in scales:
            module.__dict__[f"{leaf}_scale"] = scales[name]


def require_same(sentence: str, here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Refuse two descriptions that differ, by the first name that does.

    :raises ValueError: in a sentence that begins as given.
    """
    for name in sorted({*there, *here}):
        expected, came = there.get(name, "nothing"), here.get(name, "nothing")
        if expected != came:
            raise ValueError(f"{sentence}expected {name!r} to be {expected}; got {came}.")


def described(tensor: Tensor) -> str:
    """Shape and type of a tensor, in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def network_digest(net: nn.Module) -> str:
    """SHA-256 over names, types, shapes and numbers of :func:`tensors_of`, and the scales of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(net).items()):
        digest.update(f"{name}|{described(tensor)}|".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, scale in sorted(scales_of(net).items()):
        digest.update(f"{name}|{scale.hex()}|".encode())
    for name, site in binary_sites(net).items():
        digest.update(f"{name}|{tuple(site.shape)}|".encode())
    return digest.hexdigest()


def require_sites(net: nn.Module, shapes: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Refuse a posterior whose sites are not the network's binary weights.

    :param shapes: site -> shape of its weights in the posterior. :param kind: of the posterior, in words.
    :raises ValueError: for the first site that is missing, one too many, or of another shape.
    """
    sites = binary_sites(net)
    advice = "A posterior is used with the network it was trained on, converted in the same way."
    if not sites:
        raise ValueError(
            "The network has no binary weights; convert it with bayesbin.nn.to_binary_(net), in the same way "
            "as before training."
        )
    for name in sites:
        if name not in shapes:
            raise ValueError(
                f"The posterior has no site {name!r}, which is a binary weight of the network; it has "
                f"{_listed(shapes)}. {advice}"
            )
    for name, shape in shapes.items():
        if name not in sites:
            raise ValueError(
                f"The {kind} posterior has a site {name!r}, but the network has no binary weight of that "
                f"name; it has {_listed(sites)}. {advice}"
            )
        if tuple(sites[name].shape) != tuple(shape):
            raise ValueError(
                f"The network's binary weight {name!r} has shape {tuple(sites[name].shape)}, the posterior's "
                f"{tuple(shape)}. {advice}"
            )


def _listed(names: Mapping[str, object]) -> str:
    return shown(", ".join(names)) if names else "none"


def _floating(net: nn.Module):
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            yield tensor
