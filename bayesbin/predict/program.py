"""A network as a short list of steps that a kernel can run: binary maps, per-channel lines, activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.nn.activations import Sign
from bayesbin.nn.layers import BinaryConv2d, BinaryLinear, Scale
from bayesbin.nn.residual import Residual


@dataclass(frozen=True)
class Weighted:
    """Signs times inputs, without scale or bias: linear, or convolutional where there is a geometry.

    :param site: of the signs; their shape is (units, inputs) or (units, channels, height, width).
    :param stride, padding: (vertical, horizontal); None for a linear layer.
    """

    site: str
    shape: tuple[int, ...]
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None


@dataclass(frozen=True)
class Affine:
    """y = slope x + shift, for each channel of the second dimension or for all alike (shape ()).

    Of a normalisation layer the two depend on the weight state: ``norm`` is the layer's name in the
    network, and slope and shift are those of its running statistics.
    """

    slope: Tensor
    shift: Tensor
    norm: str | None = None


@dataclass(frozen=True)
class Activation:
    """One of "relu", "tanh", "sign", or "hardtanh" between ``low`` and ``high``."""

    kind: str
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Pool:
    """Maximum ("max") or mean ("avg") over windows of images; (vertical, horizontal) each."""

    kind: str
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class Flatten:
    """(B, C, H, W) to (B, C H W)."""


@dataclass(frozen=True)
class Push:
    """Put a copy of the current values on the stack."""


@dataclass(frozen=True)
class Swap:
    """Exchange the current values with those on top of the stack."""


@dataclass(frozen=True)
class Add:
    """Take the values on top off the stack, and add them to the current ones, of the same shape."""


Step = Weighted | Affine | Activation | Pool | Flatten | Push | Swap | Add


def steps_of(net: nn.Module) -> list[Step]:
    """The steps of a network of layers in a row, in evaluation mode.

    body(x) + shortcut(x) of a :class:`bayesbin.nn.Residual` is ``Push``, the body, ``Swap``, the
    shortcut, ``Add``; without a shortcut ``Push``, the body, ``Add``.

    :raises ValueError: for a module that no step stands for, naming it.
    """
    # A layer used twice has one name, the first: that of its site and of its statistics.
    names = {module: name for name, module in net.named_modules()}
    return list(_in_a_row(net, names))


def line_of(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and shift of a normalisation layer at given statistics, in float64."""
    slope = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        slope = slope * norm.weight.detach().double()
    shift = -mean.double() * slope
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return slope, shift


def affine_at(
    net: nn.Module, line: Affine, state: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Slope and shift of a line in one weight state.

    :param state: statistics by state-dict name, as ``Statistics`` holds them; None: the network's own.
    """
    if line.norm is None or state is None:
        return line.slope, line.shift
    norm: Any = net.get_submodule(line.norm) if line.norm else net
    prefix = f"{line.norm}." if line.norm else ""
    return line_of(norm, state[f"{prefix}running_mean"], state[f"{prefix}running_var"])


def _in_a_row(module: nn.Module, names: Mapping[nn.Module, str]) -> Iterator[Step]:
    if isinstance(module, nn.Sequential):
        for child in module:  # children() leaves out a layer's second use
            yield from _in_a_row(child, names)
    elif isinstance(module, Residual):
        yield Push()
        yield from _in_a_row(module.body, names)
        if module.shortcut is not None:
            yield Swap()
            yield from _in_a_row(module.shortcut, names)
        yield Add()
    else:
        yield from _steps(names[module], module)


def _steps(name: str, module: nn.Module) -> list[Step]:
    if isinstance(module, BinaryLinear):
        return _weighted(name, module)
    if isinstance(module, BinaryConv2d):
        return _convolution(name, module)
    if isinstance(module, _BatchNorm):
        if module.running_mean is None or module.running_var is None:
            raise _unsupported(name, module, "it normalises by the batch in evaluation too")
        slope, shift = line_of(module, module.running_mean, module.running_var)
        return [Affine(slope, shift, name)]
    if isinstance(module, Scale):
        slope = module.log_scale.detach().double().exp()
        return [Affine(slope, torch.zeros_like(slope))]
    if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
        return []  # dropout is off in evaluation
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return [Activation("hardtanh", float(module.min_val), float(module.max_val))]
    for kind, known in (("relu", nn.ReLU), ("tanh", nn.Tanh), ("sign", Sign)):
        if type(module) is known:
            return [Activation(kind)]
    if isinstance(module, nn.Flatten):
        if (module.start_dim, module.end_dim) != (1, -1):
            raise _unsupported(name, module, "it flattens other dimensions than all but the first")
        return [Flatten()]
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return [_pool(name, module)]
    raise _unsupported(name, module, "no step stands for it")


def _weighted(name: str, module: Any) -> list[Step]:
    site = f"{name}.weight" if name else "weight"
    shape = tuple(module.weight.shape)
    if type(module).binary_leaves != ("weight",):
        raise _unsupported(name, module, "more of it than its weight is binary")
    # One number, or one for each output.
    slope = torch.as_tensor(module.scale).detach().double().reshape(-1)
    slope = slope[0] if len(slope) == 1 else slope
    shift = torch.zeros((), dtype=torch.float64)
    if module.bias is not None:
        shift = module.bias.detach().double()
    stride = padding = None
    if isinstance(module, BinaryConv2d):
        stride, padding = _pair(module.stride), _padding(name, module)
    return [Weighted(site, shape, stride, padding), Affine(slope, shift)]


def _convolution(name: str, module: BinaryConv2d) -> list[Step]:
    if module.groups != 1 or _pair(module.dilation) != (1, 1) or module.padding_mode != "zeros":
        raise _unsupported(name, module, "it has groups, dilation or padding other than zeros")
    return _weighted(name, module)


def _padding(name: str, module: BinaryConv2d) -> tuple[int, int]:
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        height, width = module.kernel_size
        if height % 2 == 0 or width % 2 == 0:
            raise _unsupported(name, module, "an even kernel has no symmetric padding")
        return height // 2, width // 2
    return _pair(module.padding)


def _pool(name: str, module: Any) -> Pool:
    kind = "max" if isinstance(module, nn.MaxPool2d) else "avg"
    size = _pair(module.kernel_size)
    stride = size if module.stride is None else _pair(module.stride)
    padding = _pair(module.padding)
    plain = not module.ceil_mode and _pair(getattr(module, "dilation", 1)) == (1, 1)
    if kind == "max":
        plain = plain and not module.return_indices
    else:
        plain = plain and module.divisor_override is None
        plain = plain and (module.count_include_pad or padding == (0, 0))
    if not plain:
        raise _unsupported(name, module, "it has options beyond size, stride and padding")
    return Pool(kind, size, stride, padding)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _unsupported(name: str, module: nn.Module, why: str) -> ValueError:
    where = f"The module {name!r}" if name else "The network"
    return ValueError(
        f"{where} is {type(module).__name__}, which packed prediction does not run: {why}. Layers in a row "
        "of BinaryLinear, BinaryConv2d, BatchNorm, Scale, ReLU, Hardtanh, Tanh, Sign, MaxPool2d, AvgPool2d, "
        "Flatten, Dropout and Residual work; for all others use bayesbin.predict.predict."
    )
