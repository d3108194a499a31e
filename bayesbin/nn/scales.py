"""Sizes of binary weights: how a module uses a weight, its fan-in, and the scale that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from bayesbin.core.checks import is_number, real_number, shown
from bayesbin.distributions import SignBernoulli

LayerPrior = Tensor | float | SignBernoulli
LayerScale = Tensor | float | str
Axes = int | Sequence[int]

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Use:
    """How a module uses a weight.

    :param fan_in: how many inputs a unit sums over, on average.
    :param inputs: the axes of the weight that are summed over; the others are those of the outputs.
    :param groups: of a transposed convolution, whose outputs are groups times those of axis 1.
    """

    fan_in: float
    inputs: tuple[int, ...]
    groups: int = 1


def known_use(module: nn.Module, leaf: str, shape: torch.Size) -> Use | None:
    """How one of torch's modules (or a subclass) uses one of its weights; None for anything else."""
    if leaf.startswith("weight"):
        # Pruning and weight normalisation keep the tensor behind a weight under another name.
        behind = leaf.removesuffix("_orig").removesuffix("_v")
        use = _use_of_weight(module, behind, shape)
        if use is not None:
            return use
    if isinstance(module, nn.MultiheadAttention) and leaf.endswith("proj_weight"):
        return Use(shape[1], (1,))
    return Use(1.0, ()) if _is_elementwise(module, leaf) else None


def _use_of_weight(module: Any, leaf: str, shape: torch.Size) -> Use | None:
    recurrent = isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    if recurrent and leaf.startswith(("weight_ih", "weight_hh", "weight_hr")):
        return Use(shape[1], (1,))
    if leaf != "weight":
        return None
    if isinstance(module, nn.Linear):
        return Use(shape[1], (1,))
    if isinstance(
        module, _ConvTransposeNd
    ):  # a position receives one kernel element of each stride
        inputs = shape[0] / module.groups * math.prod(shape[2:]) / math.prod(module.stride)
        return Use(inputs, (0, *range(2, len(shape))), module.groups)
    if isinstance(module, (_ConvNd, nn.Bilinear)):
        return Use(math.prod(shape[1:]), tuple(range(1, len(shape))))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):  # looked up, not summed
        return Use(1.0, (0,))
    return None


def _is_elementwise(module: nn.Module, leaf: str) -> bool:
    """Whether a parameter of a module of torch's is added to, or multiplies, its own output."""
    if isinstance(module, (ParametrizationList, *_CONTAINERS)):
        return False
    if isinstance(module, _NORMALISATIONS) and leaf in ("weight", "bias"):
        return True
    kinds = [k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules.")]
    if kinds == [nn.Module]:
        return False
    return leaf.startswith("bias") or type(module).__module__.startswith("torch.nn.modules.")


def power_of_two(fan_in: float) -> float:
    """The power of two nearest to 1 / sqrt(fan_in) in ratio; the larger of two that are equally near.

    >>> [power_of_two(n) for n in (1, 2, 3, 4, 128, 784)]
    [1.0, 1.0, 0.5, 0.5, 0.125, 0.03125]
    """
    return 2.0 ** -math.ceil((math.log2(fan_in) - 1.0) / 2.0)


def use_of(
    module: nn.Module, leaf: str, name: str, shape: torch.Size, inputs: Axes | None = None
) -> Use:
    """How a weight is used, as known or as given, or an error that names the choices."""
    if inputs is not None:
        axes = _checked_axes(inputs, name, shape)
        return Use(math.prod(shape[axis] for axis in axes), axes)
    use = known_use(module, leaf, shape)
    if use is not None:
        return use
    if len(shape) > 1 and len(set(shape)) == 1:
        return Use(shape[0], (0,))  # along whichever axis
    if not shape:
        return Use(1.0, ())
    raise ValueError(_which_axis(module, name, shape))


def _which_axis(module: nn.Module, name: str, shape: torch.Size) -> str:
    kind = type(module).__name__
    begin = (
        f"expected inputs= to say which axis of {name!r}, of shape {tuple(shape)}, is summed over: it is a "
        f"parameter of {kind} itself, whose use is not known, and the scale follows from it. "
    )
    if len(shape) == 1:
        choices = (
            f"inputs={{{name!r}: 0}} if it is summed over, as x @ w does (fan-in {shape[0]}), or "
            f"inputs={{{name!r}: ()}} if it multiplies element by element (fan-in 1)"
        )
    elif len(shape) == 2:
        choices = (
            f"inputs={{{name!r}: 0}} for x @ W (fan-in {shape[0]}), or inputs={{{name!r}: 1}} for "
            f"F.linear(x, W) or W @ x (fan-in {shape[1]})"
        )
    else:
        each = ", ".join(f"{axis} (fan-in {size})" for axis, size in enumerate(shape))
        choices = f"inputs={{{name!r}: axis}} with an axis among {each}, or a tuple of several"
    return f"{begin}Pass {choices}; or give the scale as a number."


def _checked_axes(inputs: Any, name: str, shape: torch.Size) -> tuple[int, ...]:
    axes = [inputs] if is_number(inputs) else inputs
    valid = isinstance(axes, (list, tuple, range)) and all(
        is_number(axis) and int(axis) == axis and -len(shape) <= axis < len(shape) for axis in axes
    )
    if not valid:
        raise ValueError(
            f"expected inputs={{{name!r}: ...}} to be an axis, or a tuple of axes, of its shape "
            f"{tuple(shape)}; got {shown(inputs)}."
        )
    return tuple(sorted({int(axis) % len(shape) for axis in axes}))


def checked_scale(
    scale: Any, name: str, module: nn.Module, leaf: str, inputs: Axes | None = None
) -> float | Tensor:
    """The number, or the tensor that broadcasts to the weight, behind ``scale``, or an error."""
    weight = module._parameters[leaf]
    assert weight is not None
    return scale_for_all(scale, name, [(module, leaf)], weight, inputs)


def scale_for_all(
    scale: Any,
    name: str,
    members: Sequence[tuple[nn.Module, str]],
    weight: Tensor,
    inputs: Axes | None = None,
) -> float | Tensor:
    """One scale for a weight that the given modules share."""
    if isinstance(scale, str) and scale == "fan-in":
        uses = [use_of(module, leaf, name, weight.shape, inputs) for module, leaf in members]
        # Of several users the one with most inputs: its outputs have unit variance, others' less.
        found: float | Tensor = power_of_two(max(use.fan_in for use in uses) or 1.0)
    elif isinstance(scale, Tensor) and scale.requires_grad:
        raise ValueError(
            f"expected the scale of {name!r} to be fixed; got a tensor that requires a gradient. Pass "
            "scale.detach(), and put a bayesbin.nn.Scale behind the layer to learn one."
        )
    elif is_number(scale):
        found = _positive(scale, name)
    elif not isinstance(scale, (str, bool, Mapping)) and scale is not None:
        found = _per_output(scale, name, members, weight, inputs)
    else:
        raise ValueError(_expected(name, scale))
    return _without_padding(found, members, weight)


def _expected(name: str, scale: Any) -> str:
    return (
        f'expected the scale of {name!r} to be "fan-in", a positive number, or a tensor of one for each '
        f"output; got {shown(scale)}."
    )


def _positive(scale: Any, name: str) -> float:
    try:
        return real_number("scale", scale, above=0.0)
    except ValueError:
        raise ValueError(_expected(name, scale)) from None


def _per_output(
    scale: Any,
    name: str,
    members: Sequence[tuple[nn.Module, str]],
    weight: Tensor,
    inputs: Axes | None,
) -> Tensor:
    try:
        given = torch.as_tensor(scale).detach().to(weight, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(_expected(name, scale)) from None
    if not bool((given > 0).all() & given.isfinite().all()):
        raise ValueError(
            f"expected the scale of {name!r} to be positive and finite in {weight.dtype}; got a tensor with "
            "other numbers."
        )
    shape = weight.shape
    whole = given.dim() == len(shape) and all(
        size in (1, full) for size, full in zip(given.shape, shape, strict=True)
    )
    if whole and len(shape) > 1:
        return given
    forms = [
        _along_outputs(given, use_of(*member, name, shape, inputs), shape) for member in members
    ]
    if any(form is None for form in forms):
        use = use_of(*members[0], name, shape, inputs)
        raise ValueError(
            f"expected the scale of {name!r}, of shape {tuple(shape)}, to be a number or a tensor of "
            f"shape {_output_shape(use, shape)}, one for each output; got shape {tuple(given.shape)}."
        )
    if any(not torch.equal(*torch.broadcast_tensors(form, forms[0])) for form in forms):
        raise ValueError(
            f"expected one number as the scale of {name!r}, which is tied between modules whose outputs lie "
            "along different axes; got a tensor."
        )
    assert forms[0] is not None
    return forms[0]


def _output_shape(use: Use, shape: torch.Size) -> tuple[int, ...]:
    if use.groups > 1:
        return (use.groups * shape[1],)
    return tuple(size for axis, size in enumerate(shape) if axis not in use.inputs)


def _along_outputs(given: Tensor, use: Use, shape: torch.Size) -> Tensor | None:
    """A scale per output, shaped to broadcast to the weight; None if it is not one."""
    if tuple(given.shape) != _output_shape(use, shape):
        return None
    ones = (1,) * (len(shape) - 2)
    if use.groups > 1:
        groups = given.reshape(use.groups, 1, -1).expand(-1, shape[0] // use.groups, -1)
        return groups.reshape(shape[0], shape[1], *ones).contiguous()
    return given.reshape([1 if a in use.inputs else size for a, size in enumerate(shape)])


def _without_padding(
    scale: float | Tensor, members: Sequence[tuple[nn.Module, str]], weight: Tensor
) -> float | Tensor:
    """The scale with 0 for the rows of an embedding that stand for padding."""
    rows = [
        module.padding_idx
        for module, _ in members
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None
    ]
    if not rows:
        return scale
    each = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
    each = each.broadcast_to(len(weight), *(each.shape[1:] or (1,))).clone()
    each[rows] = 0.0
    return each


def checked_prior(prior: LayerPrior, weight: Tensor) -> Tensor:
    """A prior's natural parameter as a tensor that broadcasts to the weight, or an error."""
    if isinstance(prior, SignBernoulli):
        prior = prior.natural
    elif isinstance(prior, torch.distributions.Distribution):
        raise ValueError(
            f"The prior of binary weights is a natural parameter or a SignBernoulli, elementwise; got "
            f"{type(prior).__name__}. A distribution of the prior itself is the model's hyperprior=."
        )
    natural = torch.as_tensor(prior, dtype=weight.dtype, device=weight.device).detach().clone()
    if natural.dim() and natural.shape != weight.shape:
        raise ValueError(
            f"The prior of a weight of shape {tuple(weight.shape)} is one natural parameter or a "
            f"tensor of that shape; got shape {tuple(natural.shape)}."
        )
    if not bool(torch.isfinite(natural).all()):
        raise ValueError(
            "The prior's natural parameter is finite, its P(w = +1) strictly between 0 and 1; got NaN "
            "or infinity. A weight that must not move has the natural parameter +-40."
        )
    return natural
