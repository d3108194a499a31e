"""Operators that multiply by weights, or tensors by each other: linear maps, convolutions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesbin.compile.contraction import affine, contract, fixed_signs
from bayesbin.compile.layout import BATCH, Layout, Size, Torn, broadcast, numbered, own_parts
from bayesbin.compile.operators import operator
from bayesbin.compile.operators_elementwise import _add
from bayesbin.compile.operators_shape import reshape_to, taken
from bayesbin.compile.translation import Fixed, Held, Traced, Translation, plain

# Linear maps and matrices


@operator("linear")
def _linear(t: Translation, input: Held, weight: Held, bias: Held | None = None) -> Traced:
    many = [("many", k) for k in range(input.layout.rank - 1)]
    units = ["units"] if weight.layout.rank == 2 else []
    return contract(
        t, input, weight, ([*many, "inputs"], [*units, "inputs"]), [*many, *units], bias
    )


@operator("matmul", "bmm", "mm", "mv", "dot", "vdot")
def _matmul(
    t: Translation,
    self: Held,
    other: Held | None = None,
    mat2: Held | None = None,
    vec: Held | None = None,
    tensor: Held | None = None,
) -> Traced:
    b = next(x for x in (other, mat2, vec, tensor) if x is not None)
    return matrix_product(t, self, b)


def matrix_product(t: Translation, a: Held, b: Held) -> Traced:
    """``a @ b`` as torch has it, with vectors and repeated axes in front."""
    first, second = a.layout.rank, b.layout.rank
    left = [*["rows"][: first - 1], "sum"]
    right = ["sum", *["columns"][: second - 1]]
    many = max(first, second, 2) - 2
    numbers = [("many", k) for k in range(many)]
    left = [*numbers[many - max(first - 2, 0) :], *left]
    right = [*numbers[many - max(second - 2, 0) :], *right]
    out = [*numbers, *(["rows"] if first > 1 else []), *(["columns"] if second > 1 else [])]
    return contract(t, a, b, (left, right), out)


@operator("addmm", "baddbmm", "addmv", "addbmm")
def _addmm(
    t: Translation,
    self: Held,
    mat1: Held | None = None,
    mat2: Held | None = None,
    mat: Held | None = None,
    vec: Held | None = None,
    batch1: Held | None = None,
    batch2: Held | None = None,
    beta: float = 1,
    alpha: float = 1,
) -> Traced:
    if beta != 1 or alpha != 1:
        raise t.refuse(f"expected alpha and beta of 1, got {alpha} and {beta}")
    a = next(x for x in (mat1, mat, batch1) if x is not None)
    b = next(x for x in (mat2, vec, batch2) if x is not None)
    return _add(t, self, matrix_product(t, a, b))


@operator("einsum")
def _einsum(t: Translation, equation: str, tensors: Sequence[Held], path: Any = None) -> Traced:
    labels, out = _labels(equation.replace(" ", ""), [x.layout.rank for x in tensors])
    left, own = t.traced(tensors[0]), labels[0]
    if len(tensors) == 1:
        return _einsum_one(t, left, own, out)
    for place in range(1, len(tensors)):
        later = {label for each in labels[place + 1 :] for label in each} | set(out)
        both = dict.fromkeys([*own, *labels[place]])
        kept = out if place == len(tensors) - 1 else [x for x in both if x in later]
        left = contract(t, left, tensors[place], (own, labels[place]), kept)
        own = kept
    return left


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The labels of each tensor's axes and of the result's; "..." stands for numbered ones."""
    inputs, arrow, out = equation.partition("->")
    parts = inputs.split(",")
    named = [len(part.replace("...", "")) for part in parts]
    many = max(
        [r - n for r, n, part in zip(ranks, named, parts, strict=True) if "..." in part],
        default=0,
    )
    every = [f"...{k}" for k in range(many)]

    def spelled(part: str, rank: int) -> list[str]:
        before, dots, after = part.partition("...")
        count = rank - len(before) - len(after)
        return [*before, *(every[many - count :] if dots and count else []), *after]

    labels = [spelled(part, rank) for part, rank in zip(parts, ranks, strict=True)]
    if arrow:
        return labels, spelled(out, len(out.replace("...", "")) + many)
    flat = [label for own in labels for label in own]
    return labels, [*every, *sorted(x for x in set(flat) if flat.count(x) == 1 and x not in every)]


def _einsum_one(t: Translation, x: Held, own: list[str], out: list[str]) -> Traced:
    if len(set(own)) != len(own):
        raise t.refuse("expected a sum without diagonals")
    found: Held = x
    gone = [axis for axis, label in enumerate(own) if label not in out]
    if gone:
        frame = t.framed(t.settled(t.traced(x)), gone, "a sum over rows")
        name = t.emit("sum", (frame.name,), t.dtype(), axes=tuple(frame.places), keep=False)
        found = frame.without(name, t.dtype(), keep=False)
    left = [label for label in own if label in out]
    found = t.traced(found)
    return replace(found, layout=found.layout.permuted([left.index(label) for label in out]))


@operator("bilinear")
def _bilinear(
    t: Translation, input1: Held, input2: Held, weight: Held, bias: Held | None = None
) -> Traced:
    many = [("many", k) for k in range(input1.layout.rank - 1)]
    first = contract(t, input1, weight, ([*many, "i"], ["units", "i", "j"]), [*many, "units", "j"])
    found = contract(t, first, input2, ([*many, "units", "j"], [*many, "j"]), [*many, "units"])
    return found if bias is None else _add(t, found, bias)


# Convolutions


@operator("conv1d", "conv2d", "conv3d")
def _convolution(
    t: Translation,
    input: Held,
    weight: Held,
    bias: Held | None,
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
    groups: int,
) -> Traced:
    rank = weight.layout.rank - 2
    window = [size.count for size in weight.layout.shape[2:]]
    stride, dilation = _each(stride, rank), _each(dilation, rank)
    attributes: dict[str, Any] = {
        "stride": stride,
        "padding": _padding(padding, window, dilation, rank),
        "dilation": dilation,
        "groups": groups,
    }
    return _convolve(t, "conv", input, weight, bias, attributes, units=0)


def _each(numbers: Any, rank: int) -> tuple[int, ...]:
    """One number for each axis, where torch takes one for all."""
    numbers = tuple(numbers) if isinstance(numbers, (list, tuple)) else (numbers,)
    return numbers * rank if len(numbers) == 1 else numbers


def _padding(
    padding: Any, window: Sequence[int], dilation: Sequence[int], rank: int
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * rank
    if padding == "same":
        total = [spread * (wide - 1) for wide, spread in zip(window, dilation, strict=True)]
        return tuple((each // 2, each - each // 2) for each in total)
    return tuple((each, each) for each in _each(padding, rank))


@operator("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(
    t: Translation,
    input: Held,
    weight: Held,
    bias: Held | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Traced:
    rank = weight.layout.rank - 2
    attributes: dict[str, Any] = {
        "stride": _each(stride, rank),
        "padding": _each(padding, rank),
        "output_padding": _each(output_padding, rank),
        "dilation": _each(dilation, rank),
        "groups": groups,
    }
    return _convolve(t, "conv_transpose", input, weight, bias, attributes, units=1)


# What an axis more, that a window of 1 moves along, has for each attribute.
_NEUTRAL = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


@operator("col2im")
def _col2im(
    t: Translation,
    self: Held,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Traced:
    """Columns (B, C kh kw, places) put back as patches of images, and summed where they overlap."""
    places = [
        (size + 2 * pad - spread * (wide - 1) - 1) // hop + 1
        for size, wide, spread, pad, hop in zip(
            output_size, kernel_size, dilation, padding, stride, strict=True
        )
    ]
    *front, columns, _ = self.layout.shape
    wide = math.prod(kernel_size)
    channels = columns.count // wide
    patch = torch.eye(wide, dtype=t.result.dtype).reshape(1, wide, 1, *kernel_size)
    one = torch.eye(channels, dtype=t.result.dtype).reshape(channels, 1, channels, 1, 1)
    weight = Fixed((one * patch).reshape(channels * wide, channels, *kernel_size))
    x = reshape_to(t, t.traced(self), [*front, columns, *map(Size, places)])
    rest = [
        size - ((count - 1) * hop - 2 * pad + spread * (k - 1) + 1)
        for size, count, hop, pad, spread, k in zip(
            output_size, places, stride, padding, dilation, kernel_size, strict=True
        )
    ]
    return _transposed(t, x, weight, None, stride, padding, rest, 1, dilation)


def _convolve(
    t: Translation,
    kind: str,
    input: Held,
    weight: Held,
    bias: Held | None,
    attributes: dict[str, Any],
    units: int,
) -> Traced:
    """A convolution of the images of each datum; several of them lie along an axis more."""
    spatial = weight.layout.rank - 2
    images = Images(t, input, spatial)
    groups = [*weight.layout.axes[:2], *weight.layout.axes[2:]]
    if images.many > 1:
        groups.insert(2, ())
        if spatial == 3:
            raise t.mixes("volumes of which each row of the batch has several")
        for name, neutral in _NEUTRAL.items():
            if name in attributes:
                one: Any = (0, 0) if kind == "conv" and name == "padding" else neutral
                attributes[name] = (one, *attributes[name])
    weights, slope = _window_weights(t, weight, groups, units, attributes["groups"])
    value = images.value
    if slope is not None and isinstance(value, Traced) and plain(value.factor):
        slope, value = slope * value.factor, replace(value, factor=1.0)
    name = images.arranged(value)
    slope = 1.0 if slope is None else slope
    shift = "" if bias is None else t.straight(bias)[0]
    if bool((np.asarray(slope) == 1.0).all()):
        name = t.emit(kind, (name, weights, shift), t.dtype(), **attributes)
    else:
        name = t.emit(kind, (name, weights), t.dtype(), **attributes)
        name = affine(t, name, 0, slope, shift)
    return images.made(name)


def _window_weights(
    t: Translation, weight: Held, groups: list[tuple[int, ...]], units: int, many: int
) -> tuple[str, Any]:
    """Weights of windows, and what to multiply sums by; None if factors may not wait for that."""
    if isinstance(weight, Fixed) and units == 0:
        if (found := fixed_signs(t, weight, weight.layout, groups)) is not None:
            return found.name, found.slope
    if isinstance(weight, Fixed) or not weight.weights:
        return t.arrange(weight, groups), None
    if plain(weight.factor):
        return t.moved(weight.name, weight.layout, groups), weight.factor
    shape = [size.count for size in weight.layout.shape]
    assert isinstance(weight.factor, Tensor)
    numbers = np.moveaxis(weight.factor.expand(shape).numpy(), units, 0)
    numbers = numbers.reshape(shape[units], -1)
    if bool((numbers == numbers[:, :1]).all()):
        slope = numbers[:, 0] if units == 0 else np.tile(numbers[:, 0], many)
        return t.moved(weight.name, weight.layout, groups), slope
    return t.arrange(weight, groups), None


class Images:
    """A tensor (rows, channels, ...) of images as a value (channels, ...) of each datum.

    Where a row of the batch has several images, as the frames of a film have, they are ``many`` and lie
    along an axis between the channels and the images' own. Without channels, rows and images (..., H, W).
    """

    def __init__(self, t: Translation, input: Held, spatial: int, rows: bool = True) -> None:
        self.t, self.input = t, input
        layout = input.layout
        if layout.rank not in (spatial + 1, spatial + 2):
            raise t.refuse(f"expected images of {spatial} axes, got a tensor of {layout.rank}")
        self.rows = layout.axes[0] if layout.rank == spatial + 2 else ()
        first = layout.rank - spatial - 1
        if layout.batch_axis is not None and layout.batch_axis >= first:
            raise t.mixes("rows as channels or places of an image")
        self.value: Held = input
        many = [atom for atom in self.rows if atom != BATCH]
        self.many = layout.size(many)
        self.groups = [layout.axes[first], *layout.axes[first + 1 :]]
        if self.many > 1:
            self.groups.insert(1, tuple(many))
        self.first = first

    def arranged(self, value: Held) -> str:
        """The name of the value, its factor multiplied in."""
        return self.t.arrange(value, self.groups)

    def made(self, name: str, dtype: str = "") -> Traced:
        """The tensor of which a step made the images."""
        sizes = self.t.known(name).shape
        keys: list[Any] = [("axis", k) for k in range(len(sizes))]
        axes: list[list[Any]] = [[key] for key in keys]
        if self.many > 1:
            axes.pop(1)
        rows: list[Any] = []
        if self.first:
            several = [keys[1]] if self.many > 1 else []
            cut = self.rows.index(BATCH) if BATCH in self.rows else None
            if cut is None:
                rows = several
            elif cut == 0:
                rows = [BATCH, *several]
            else:
                rows = [*several, BATCH]
                if cut != len(self.rows) - 1:
                    raise self.t.mixes("rows in the middle of an axis")
            axes.insert(0, rows)
        order = list(zip(keys, sizes, strict=True))
        return Traced(name, Layout.made(order, axes), dtype or self.t.dtype())


# Attention


@operator("scaled_dot_product_attention")
def _attention(
    t: Translation,
    query: Held,
    key: Held,
    value: Held,
    attn_mask: Held | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool = False,
) -> Traced:
    if dropout_p:
        raise t.refuse(
            "expected a function of the inputs alone, got dropout while predicting",
            "Pass dropout_p=self.dropout if self.training else 0.0.",
        )
    if enable_gqa:
        many = query.layout.shape[-3].count
        key, value = (_repeated_heads(t, x, many) for x in (key, value))
    width = query.layout.shape[-1].count
    attributes = {"scale": float(scale or 1.0 / math.sqrt(width)), "causal": bool(is_causal)}
    held: list[Held] = [query, key, value] + ([] if attn_mask is None else [attn_mask])
    try:
        names, order, axes = _stacked(t, held)
    except Torn:
        held = [t.straightened(x) if isinstance(x, Traced) else x for x in held]
        try:
            names, order, axes = _stacked(t, held)
        except Torn:
            raise t.mixes("rows that are merged with other axes in two ways") from None
    name = t.emit("attention", names, t.dtype(), **attributes)
    shape = t.known(name).shape
    order = list(zip(order, shape, strict=True))
    return Traced(name, Layout.made(order, axes), t.dtype())


def _repeated_heads(t: Translation, x: Held, many: int) -> Traced:
    """Keys or values with as many heads as queries, each for a group of them."""
    axis = x.layout.rank - 3
    heads = x.layout.shape[axis].count
    return taken(t, x, axis, [place * heads // many for place in range(many)])


def _stacked(t: Translation, held: Sequence[Held]) -> tuple[list[str], list[Any], list[list[Any]]]:
    """Tensors (..., steps, width) with the axes in front in one order, and what comes out."""
    layouts = [x.layout for x in held]
    front = max(each.rank for each in layouts) - 2
    parts = broadcast(layouts, front + 2, behind=2)
    flat = [part for axis in parts for part in axis]
    batched = [k for k, part in enumerate(flat) if part.batch]
    if len(batched) > 1:
        raise t.mixes("pairs of rows")
    kept = [k for k in range(len(flat)) if k not in batched]
    names = []
    for x in held:
        own = own_parts(x.layout, parts, behind=2)
        layout = x.layout.reshaped([*own, *x.layout.shape[-2:]])
        if any(layout.has_batch(axis) for axis in (layout.rank - 1, layout.rank - 2)):
            raise t.mixes("attention between rows")
        groups = [layout.axes[k] for k in kept]
        names.append(t.arrange(x, [*groups, layout.axes[-2], layout.axes[-1]], layout))
    return names, [*kept, "steps", "width"], [*numbered(parts), ["steps"], ["width"]]
