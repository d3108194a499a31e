"""What each kind of step computes in torch, in one table; conventions are those of torch itself.

Values have two axes before those of a datum, (D or 1, B or 1, ...): draws and data. Everything but a
decision can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.compile import torch_products as products
from bayesbin.compile.torch_products import LEADING, Attributes, aligned, along, images
from bayesbin.core.differentiable import Elementwise, Slopes, applied
from bayesbin.runtime.program import Step
from bayesbin.runtime.reference_elementwise import in_range

TYPES = {"f4": torch.float32, "f8": torch.float64, "i8": torch.int64, "b1": torch.bool}

# Kinds that compute in float64 whatever they make.
DECIDE = {"sign", "threshold", "greater", "greater_equal", "equal"}
# Kinds whose float32 formulas are exact, or rounded as the runtime rounds them. On a CPU all others
# compute in float64 and round once, as the runtime does; elsewhere in the type of their outputs.
_NARROW = {
    *("affine", "relu", "clamp", "add", "sub", "mul", "max_pool", "maximum", "minimum", "abs", "neg"),
    *("where", "avg_pool", "tanh", "leaky_relu", "prelu", "reshape", "permute", "slice", "concat"),
    *("pad", "expand", "flip", "take", "embedding", "cast", "max", "min"),
}  # fmt: skip
# Inputs that stay of the type they are.
_KEPT = {"embedding": 0, "take": 1, "where": 0}


def compute(step: Step, inputs: Sequence[Tensor | None], whole: bool = False) -> tuple[Tensor, ...]:
    """The outputs of a step from its inputs, each (D or 1, B or 1, ...); None is an absent input.

    :param whole: whether the step is a product of signs and signs, the sums of which are whole numbers:
        off the CPU they are rounded to them, since an algorithm that transforms images may miss them.
    """
    out = TYPES[step.dtype]
    present = next(value for value in inputs if value is not None)
    precise = computes_in_float64(present.device)
    inside = out
    if step.kind in DECIDE:
        inside = torch.float64
    elif out == torch.float32 and precise and step.kind not in _NARROW:
        inside = torch.float64
    ready = [_typed(step, place, value, inside) for place, value in enumerate(inputs)]
    if whole and not precise:
        found = _whole(step, ready)
    else:
        found = COMPUTE[step.kind](step.attributes, *ready)
    outputs = found if isinstance(found, tuple) else (found,)
    return tuple(value.to(out) for value in outputs)


def computes_in_float64(device: torch.device) -> bool:
    """Whether float64 is as fast on a device as makes no matter, so that steps compute in it."""
    return device.type == "cpu"


def _typed(step: Step, place: int, value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if value is None or _KEPT.get(step.kind) == place:
        return value
    if step.kind == "attention" and value.dtype == torch.bool:
        return value
    return value.to(dtype)


def _whole(step: Step, inputs: Sequence[Tensor | None]) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    sums = COMPUTE[step.kind](step.attributes, x, weight)
    sums = sums + (sums.round() - sums).detach()
    if bias is None:
        return sums
    return sums + (along(bias, sums, 0) if step.kind == "conv" else aligned(sums, bias)[1])


# Decisions


class _Decision(Elementwise):
    """+1 where d (x - t) >= 0, else -1; the gradient of d (x - t) where that is in [-1, 1]."""

    @staticmethod
    def forward(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
        # Compared, not subtracted: no difference of unlike numbers is rounded to 0.
        plus = torch.where(direction > 0, x >= threshold, x <= threshold) | (direction == 0)
        return torch.where(plus, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def partials(needed: Sequence[bool], x: Tensor, threshold: Tensor, direction: Tensor) -> Slopes:
        passes = (direction * (x - threshold)).abs() <= 1
        return torch.where(passes, direction, 0.0), None, None


_apply_decision = applied(_Decision)


def _decide(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    return _apply_decision(x, threshold, direction)


def _sign(a: Attributes, x: Tensor) -> Tensor:
    return _decide(x, x.new_zeros(()), x.new_ones(()))


def _threshold(a: Attributes, x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    return _decide(x, along(threshold, x, a["axis"]), along(direction, x, a["axis"]))


# Normalisation


def _affine(a: Attributes, x: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    return x * along(slope, x, a["axis"]) + along(shift, x, a["axis"])


def _batch_norm(
    a: Attributes,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    slope = torch.rsqrt(variance + a["eps"]) if weight is None else weight / _root(variance, a)
    centred = x - along(mean, x, a["axis"])
    found = centred * along(slope, x, a["axis"])
    return found if bias is None else found + along(bias, x, a["axis"])


def _root(variance: Tensor, a: Attributes) -> Tensor:
    return torch.sqrt(variance + a["eps"])


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * aligned(x, weight)[1]
    return x if bias is None else x + aligned(x, bias)[1]


def _layer_norm(
    a: Attributes, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return _scaled(F.layer_norm(x, x.shape[x.dim() - a["axes"] :], eps=a["eps"]), weight, bias)


def _rms_norm(a: Attributes, x: Tensor, weight: Tensor | None = None) -> Tensor:
    axes = list(range(x.dim() - a["axes"], x.dim()))
    return _scaled(x * torch.rsqrt(x.square().mean(axes, keepdim=True) + a["eps"]), weight, None)


def _group_norm(
    a: Attributes, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    groups = x.reshape(*x.shape[:LEADING], a["groups"], math.prod(x.shape[LEADING:]) // a["groups"])
    found = F.layer_norm(groups, groups.shape[-1:], eps=a["eps"]).reshape(x.shape)
    found = found if weight is None else found * along(weight, x, 0)
    return found if bias is None else found + along(bias, x, 0)


# One number each


def _clamp(a: Attributes, x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        whole = torch.iinfo(x.dtype)
        return x.clamp(max(int(a["low"]), whole.min), min(int(a["high"]), whole.max))
    return x.clamp(in_range(a["low"]), in_range(a["high"]))


def _prelu(a: Attributes, x: Tensor, slopes: Tensor) -> Tensor:
    return torch.where(x > 0, x, along(slopes, x, a["axis"]) * x)


def _elu(a: Attributes, x: Tensor) -> Tensor:
    return torch.ops.aten.elu(x, a["alpha"], a["scale"], a["input_scale"])


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda a, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda a, x, y: function(*aligned(x, y))


def _where(a: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(*aligned(condition, x, y))


# Over axes


def _axes(a: Attributes) -> list[int]:
    return [LEADING + axis for axis in a["axes"]]


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda a, x: function(x, _axes(a), keepdim=a["keep"])


def _along(function: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    return lambda a, x: function(x, LEADING + a["axis"])


def _prod(a: Attributes, x: Tensor) -> Tensor:
    for axis in sorted(_axes(a), reverse=True):
        x = torch.prod(x, axis, keepdim=a["keep"])
    return x


def _variance(a: Attributes, x: Tensor) -> Tensor:
    return torch.var(x, _axes(a), correction=a["correction"], keepdim=a["keep"])


def _norm(a: Attributes, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, in_range(a["order"]), _axes(a), keepdim=a["keep"])


# Over windows

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
_ADAPTIVE_AVG = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    function: Any = _MAX_POOL[len(a["size"])]
    numbers = a["size"], a["stride"], a["padding"], a["dilation"], a["ceil"]
    return images(lambda flat: function(flat, *numbers), x)


def _avg_pool(a: Attributes, x: Tensor) -> Tensor:
    size, stride, padding = a["size"], a["stride"], a["padding"]
    flat = len(size) == 1  # torch's pool over one axis takes no divisor: one of two with a row of 1
    if flat:
        x, size, stride, padding = x.unsqueeze(-2), (1, *size), (1, *stride), (0, *padding)
    rest = a["ceil"], a["count_padding"], a["divisor"] or None
    function = _AVG_POOL[len(size)]
    found = images(lambda each: function(each, size, stride, padding, *rest), x)
    return found.squeeze(-2) if flat else found


def _adaptive_max(a: Attributes, x: Tensor) -> Tensor:
    function: Any = _ADAPTIVE_MAX[len(a["size"])]
    return images(lambda flat: function(flat, a["size"]), x)


def _adaptive_avg(a: Attributes, x: Tensor) -> Tensor:
    function: Any = _ADAPTIVE_AVG[len(a["size"])]
    return images(lambda flat: function(flat, a["size"]), x)


def _resize(a: Attributes, x: Tensor) -> Tensor:
    if a["mode"] == "nearest":
        return images(lambda flat: F.interpolate(flat, a["size"], mode="nearest"), x)
    mode, corners = _LINEAR_MODES[len(a["size"])], a["align_corners"]
    return images(lambda flat: F.interpolate(flat, a["size"], mode=mode, align_corners=corners), x)


# Places


def _reshape(a: Attributes, x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:LEADING], *a["shape"])


def _permute(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(0, 1, *[LEADING + axis for axis in a["axes"]])


def _slice(a: Attributes, x: Tensor) -> Tensor:
    places = slice(a["start"], a["stop"], a["step"])
    return x[(slice(None),) * (LEADING + a["axis"]) + (places,)]


def _concat(a: Attributes, *values: Tensor) -> Tensor:
    axis = LEADING + a["axis"]
    leading = torch.broadcast_shapes(*[value.shape[:LEADING] for value in values])
    return torch.cat([value.expand(*leading, *value.shape[LEADING:]) for value in values], axis)


def _pad(a: Attributes, x: Tensor) -> Tensor:
    if a["mode"] == "constant":
        widths = [width for pair in reversed(a["widths"]) for width in pair]
        return F.pad(x, widths, value=in_range(a["value"]))
    for axis, (low, high) in enumerate(a["widths"], LEADING):
        if low or high:
            x = x.index_select(axis, _border(a["mode"], x.shape[axis], low, high).to(x.device))
    return x


def _border(mode: str, size: int, low: int, high: int) -> Tensor:
    """The places of an axis that a padded axis repeats."""
    places = torch.arange(-low, size + high)
    if mode == "circular":
        return places % size
    if mode == "replicate":
        return places.clamp(0, size - 1)
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def _expand(a: Attributes, x: Tensor) -> Tensor:
    x = x.reshape(
        *x.shape[:LEADING], *[1] * (len(a["shape"]) + LEADING - x.dim()), *x.shape[LEADING:]
    )
    return x.expand(*x.shape[:LEADING], *a["shape"])


def _flip(a: Attributes, x: Tensor) -> Tensor:
    return x.flip(_axes(a))


COMPUTE: dict[str, Callable[..., Any]] = {
    "linear": products.linear,
    "conv": products.conv,
    "conv_transpose": products.conv_transpose,
    "matmul": products.matmul,
    "attention": products.attention,
    "embedding": products.embedding,
    "lstm": products.lstm,
    "gru": products.gru,
    "rnn": products.rnn,
    "affine": _affine,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "softmax": _along(torch.softmax),
    "log_softmax": _along(torch.log_softmax),
    "cumsum": _along(torch.cumsum),
    "sign": _sign,
    "threshold": _threshold,
    "relu": _unary(torch.relu),
    "clamp": _clamp,
    "tanh": _unary(torch.tanh),
    "leaky_relu": lambda a, x: F.leaky_relu(x, a["slope"]),
    "prelu": _prelu,
    "elu": _elu,
    "gelu": lambda a, x: F.gelu(x, approximate=a["approximate"]),
    "silu": _unary(F.silu),
    "mish": _unary(F.mish),
    "hardsigmoid": _unary(F.hardsigmoid),
    "hardswish": _unary(F.hardswish),
    "sigmoid": _unary(torch.sigmoid),
    "log_sigmoid": _unary(F.logsigmoid),
    "softplus": lambda a, x: F.softplus(x, a["beta"], a["threshold"]),
    "softsign": _unary(F.softsign),
    "hardshrink": lambda a, x: F.hardshrink(x, a["bound"]),
    "softshrink": lambda a, x: F.softshrink(x, a["bound"]),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "reciprocal": _unary(torch.reciprocal),
    "abs": _unary(torch.abs),
    "neg": _unary(torch.neg),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "erf": _unary(torch.erf),
    "floor": _unary(torch.floor),
    "round": _unary(torch.round),
    "logical_not": _unary(torch.logical_not),
    "cast": lambda a, x: x,
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "equal": _binary(torch.eq),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "where": _where,
    "sum": _reduction(torch.sum),
    "mean": _reduction(torch.mean),
    "variance": _variance,
    "max": _reduction(torch.amax),
    "min": _reduction(torch.amin),
    "prod": _prod,
    "norm": _norm,
    "log_sum_exp": _reduction(torch.logsumexp),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_max_pool": _adaptive_max,
    "adaptive_avg_pool": _adaptive_avg,
    "resize": _resize,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "expand": _expand,
    "flip": _flip,
    "take": products.take,
}
