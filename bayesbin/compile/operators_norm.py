"""Normalisations, softmax, and what is summed up along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bayesbin.compile.operators import operator
from bayesbin.compile.operators_elementwise import chain, compare
from bayesbin.compile.operators_products import Images
from bayesbin.compile.translation import Held, Refused, Traced, Translation

# Normalisation


@operator("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(
    t: Translation,
    input: Held,
    weight: Held | None,
    bias: Held | None,
    running_mean: Held | None,
    running_var: Held | None,
    training: bool = False,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:
        raise t.mixes("batch normalisation by the batch itself")
    x, (axis,) = t.isolated(input, [1], "normalisation along rows")
    channels = x.layout.shape[1].count
    names = [_vector(t, each, channels) for each in (running_mean, running_var, weight, bias)]
    several = isinstance(t.result, (tuple, list))
    dtype = t.dtype(0 if several else None)
    name = t.emit("batch_norm", (x.name, *names), dtype, axis=axis, eps=float(eps))
    found = Traced(name, x.layout, dtype)
    if several:
        gone = Refused("expected the statistics of a batch not to be used")
        return (found, *[gone] * (len(t.result) - 1))
    return found


def _vector(t: Translation, x: Held | None, channels: int) -> str:
    if x is None:
        return ""
    return t.reshaped(t.straight(x)[0], (channels,))


@operator("instance_norm")
def _instance_norm(
    t: Translation,
    input: Held,
    weight: Held | None,
    bias: Held | None,
    running_mean: Held | None,
    running_var: Held | None,
    use_input_stats: bool,
    eps: float,
) -> Traced:
    if not use_input_stats:
        return batch_norm(t, input, weight, bias, running_mean, running_var, eps=eps)
    return _group_norm(t, input, input.layout.shape[1].count, weight, bias, eps)


@operator("group_norm")
def _group_norm(
    t: Translation,
    input: Held,
    num_groups: int,
    weight: Held | None = None,
    bias: Held | None = None,
    eps: float = 1e-5,
) -> Traced:
    spatial = input.layout.rank - 2
    if input.layout.has_batch(1) or any(map(input.layout.has_batch, range(2, 2 + spatial))):
        raise t.mixes("normalisation along rows")
    channels = input.layout.shape[1].count
    names = [_vector(t, each, channels) for each in (weight, bias)]
    images = Images(t, input, spatial)
    name = images.arranged(input)
    if images.many > 1:
        return images.made(_group_norm_of_many(t, name, num_groups, names, eps))
    if names == ["", ""]:
        names = []
    elif not names[0]:
        names[0] = t.constant([1.0] * channels, t.dtype())
    name = t.emit("group_norm", (name, *names), t.dtype(), groups=num_groups, eps=float(eps))
    return images.made(name)


def _group_norm_of_many(
    t: Translation, name: str, groups: int, names: Sequence[str], eps: float
) -> str:
    """Of a value (C, many, ...): each of the many images by itself."""
    dtype, shape = t.dtype(), t.known(name).shape
    channels, many, *rest = shape
    order = (1, 0, *range(2, len(shape)))
    name = t.emit("permute", (name,), dtype, axes=order)
    name = t.reshaped(name, (many, groups, channels // groups * math.prod(rest)))
    name = t.emit("layer_norm", (name,), dtype, axes=1, eps=float(eps))
    name = t.reshaped(name, (many, channels, *rest))
    name = t.emit("permute", (name,), dtype, axes=order)
    if any(names):
        slope = names[0] or t.constant(1.0, dtype)
        shift = names[1] or t.constant(0.0, dtype)
        name = t.emit("affine", (name, slope, shift), dtype, axis=0)
    return name


@operator("layer_norm", "native_layer_norm")
def _layer_norm(
    t: Translation,
    input: Held,
    normalized_shape: Sequence[int],
    weight: Held | None = None,
    bias: Held | None = None,
    eps: float = 1e-5,
) -> Any:
    if isinstance(t.result, (tuple, list)):
        raise t.refuse("expected torch.nn.functional.layer_norm")
    names = [t.straight(each)[0] if each is not None else "" for each in (weight, bias)]
    count = len(normalized_shape)
    if names[1] and not names[0]:
        ones = [1.0] * math.prod(normalized_shape)
        names[0] = t.reshaped(t.constant(ones, t.dtype()), tuple(normalized_shape))
    return _last_axes(t, "layer_norm", input, count, names, eps)


@operator("rms_norm")
def _rms_norm(
    t: Translation,
    input: Held,
    normalized_shape: Sequence[int],
    weight: Held | None = None,
    eps: float | None = None,
) -> Traced:
    names = [] if weight is None else [t.straight(weight)[0]]
    if eps is None:
        eps = 2.0**-52 if input.dtype == "f8" else 2.0**-23
    return _last_axes(t, "rms_norm", input, len(normalized_shape), names, eps)


def _last_axes(
    t: Translation, kind: str, x: Held, count: int, names: Sequence[str], eps: float
) -> Traced:
    axes = list(range(x.layout.rank - count, x.layout.rank))
    found, _ = t.isolated(x, axes, "normalisation along rows", last=True)
    name = t.emit(kind, (found.name, *names), t.dtype(), axes=count, eps=float(eps))
    return Traced(name, found.layout, t.dtype())


# Along one axis


def _along(kind: str, *names: str) -> None:
    @operator(*names, by_shape=True)
    def along(t: Translation, self: Held, dim: int) -> Traced:
        if self.layout.rank == 0:
            raise t.refuse("expected an axis")
        x, (axis,) = t.isolated(self, [dim % self.layout.rank], f"{kind} along rows")
        if x.dtype != t.dtype():
            x = replace(x, name=t.emit("cast", (x.name,), t.dtype()))
        return Traced(t.emit(kind, (x.name,), t.dtype(), axis=axis), x.layout, t.dtype())


_along("softmax", "softmax", "_softmax")
_along("log_softmax", "log_softmax", "_log_softmax")
_along("cumsum", "cumsum")


# Reductions


def reduced(
    t: Translation,
    kind: str,
    x: Held,
    dims: Any,
    keep: bool,
    dtype: str = "",
    **attributes: Any,
) -> Traced:
    """What a step makes of all numbers along some axes, or along all."""
    rank = x.layout.rank
    dims = [dims] if isinstance(dims, int) else dims
    axes = [axis % rank for axis in dims] if dims else list(range(rank))
    frame = t.framed(t.settled(t.traced(x)), axes, f"the {kind.replace('_', ' ')} of rows")
    dtype = dtype or t.dtype()
    attributes |= {"axes": tuple(frame.places), "keep": False}
    name = t.emit(kind, (frame.name,), dtype, **attributes) if axes else frame.name
    return frame.without(name, dtype, keep)


def _reduction(kind: str, *names: str) -> None:
    @operator(*names, by_shape=True)
    def reduction(t: Translation, self: Held, dim: Any = None, keepdim: bool = False) -> Traced:
        return reduced(t, kind, self, dim, keepdim)


_reduction("sum", "sum")
_reduction("mean", "mean")
_reduction("prod", "prod")
_reduction("max", "amax")
_reduction("min", "amin")
_reduction("log_sum_exp", "logsumexp")


@operator("any", "all")
def _any(t: Translation, self: Held, dim: Any = None, keepdim: bool = False) -> Traced:
    x = t.settled(t.traced(self))
    if x.dtype != "b1":
        raise t.refuse("expected booleans, got numbers", "Compare them with 0 first.")
    x = Traced(t.emit("cast", (x.name,), "f4"), x.layout, "f4")
    kind = "max" if "any" in str(t.node and t.node.target) else "min"
    found = reduced(t, kind, x, dim, keepdim, "f4")
    return compare(t, "greater", found, 0.5)


@operator("var", "std")
def _spread(
    t: Translation,
    self: Held,
    dim: Any = None,
    keepdim: bool = False,
    unbiased: bool = True,
    correction: Any = None,
) -> Traced:
    less = int(unbiased) if correction is None else int(correction)
    found = reduced(t, "variance", self, dim, keepdim, correction=less)
    if ".std" not in str(t.node and t.node.target):
        return found
    return replace(found, name=t.emit("sqrt", (found.name,), t.dtype()))


@operator("var_mean", "std_mean")
def _spread_and_mean(
    t: Translation,
    self: Held,
    dim: Any = None,
    keepdim: bool = False,
    unbiased: bool = True,
    correction: Any = None,
) -> tuple[Traced, Traced]:
    return (
        _spread(t, self, dim, keepdim, unbiased, correction),
        reduced(t, "mean", self, dim, keepdim),
    )


@operator("linalg_vector_norm", "norm", "frobenius_norm")
def _norm(
    t: Translation,
    self: Held,
    ord: Any = 2,
    p: Any = None,
    dim: Any = None,
    keepdim: bool = False,
) -> Traced:
    order = float(ord if p is None else p)
    if math.isinf(order):
        sizes = chain(t, self, t.dtype(), ("abs",))
        return reduced(t, "max" if order > 0 else "min", sizes, dim, keepdim)
    return reduced(t, "norm", self, dim, keepdim, order=order)


@operator("_weight_norm")
def _weight_norm(t: Translation, v: Held, g: Held, dim: int = 0) -> Traced:
    """g v / |v|, norms over all axes but one."""
    axes = [axis for axis in range(v.layout.rank) if axis != dim % v.layout.rank]
    if dim == -1:
        axes = list(range(v.layout.rank))
    length = reduced(t, "norm", v, axes, True, order=2.0)
    names, layout = t.align((g, length), length.layout.shape, t.dtype())
    ratio = Traced(t.emit("div", names, t.dtype()), layout, t.dtype())
    return t.elementwise("mul", v, ratio)


@operator("cosine_similarity")
def _cosine(t: Translation, x1: Held, x2: Held, dim: int = 1, eps: float = 1e-8) -> Traced:
    a, b = t.settled(t.traced(x1)), t.settled(t.traced(x2))
    first = max((a, b), key=lambda x: x.layout.rank)
    names, layout = t.align((a, b), first.layout.shape, t.dtype())
    products = Traced(t.emit("mul", names, t.dtype()), layout, t.dtype())
    total = reduced(t, "sum", products, dim, False)
    lengths = []
    for x in (a, b):
        length = reduced(t, "norm", x, dim, False, order=2.0)
        bound = t.constant(eps, t.dtype())
        lengths.append(replace(length, name=t.emit("maximum", (length.name, bound), t.dtype())))
    return t.elementwise("div", total, t.elementwise("mul", *lengths))
