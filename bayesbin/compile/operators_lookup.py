"""Operators that look numbers up by other numbers: tables, places of the largest, one of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesbin.compile.layout import BATCH, Layout, Size
from bayesbin.compile.operators import operator
from bayesbin.compile.operators_norm import reduced
from bayesbin.compile.operators_shape import dropped, reshape_to, sliced, taken, with_axis
from bayesbin.compile.translation import Fixed, Held, Refused, Rows, Traced, Translation

_LARGEST_PICK = 1 << 22


# Places


@operator("index_select")
def _index_select(t: Translation, self: Held, dim: int, index: Held) -> Traced:
    if not isinstance(index, Fixed):
        raise t.refuse("expected places that are known before the inputs are")
    return taken(t, self, dim % self.layout.rank, index.tensor)


@operator("index")
def _index(t: Translation, self: Held, indices: Sequence[Held | None]) -> Traced:
    used = [k for k, index in enumerate(indices) if index is not None]
    if any(not isinstance(indices[k], Fixed) for k in used):
        return _looked_up(t, self, indices, used)
    tensors = [indices[k].tensor for k in used]  # type: ignore[union-attr]
    if any(index.dtype == torch.bool for index in tensors):
        raise t.refuse("expected whole numbers as places, got booleans")
    if len(used) == 1:
        return taken(t, self, used[0], tensors[0])
    if used != list(range(used[0], used[-1] + 1)):
        raise t.refuse("expected places along axes that follow one another")
    x = t.straightened(t.settled(t.traced(self)))
    shape = x.layout.shape
    sizes = [shape[k].count for k in used]
    if any(shape[k].batch for k in used):
        raise t.mixes("some rows of the batch")
    place: Any = 0
    for index, size in zip(tensors, sizes, strict=True):
        place = place * size + torch.where(index < 0, index + size, index)
    merged = [*shape[: used[0]], Size(math.prod(sizes)), *shape[used[-1] + 1 :]]
    return taken(t, replace(x, layout=x.layout.reshaped(merged)), used[0], place)


def _looked_up(t: Translation, self: Held, indices: Sequence[Any], used: list[int]) -> Traced:
    """Rows of a table, or a place in each row of the batch, by numbers that depend on the inputs."""
    x = t.settled(t.traced(self))
    if used == [0, 1] and isinstance(indices[0], Rows) and indices[0].step == 1:
        return _one_of_each(t, x, indices[1])
    index = indices[used[0]]
    if used != [0] or x.layout.batch_axis is not None or not _whole(index):
        raise t.refuse("expected places that are known before the inputs are")
    shape = x.layout.shape
    width = math.prod(size.count for size in shape[1:])
    flat = reshape_to(t, x, [shape[0], Size(width)])
    found = embedded(t, flat, _wrapped(t, index, shape[0].count))
    return reshape_to(t, found, [*index.layout.shape, *shape[1:]])


def _whole(index: Any) -> bool:
    return isinstance(index, (Fixed, Traced)) and index.dtype == "i8"


def _wrapped(t: Translation, index: Held, size: int) -> Traced:
    """Places counted from the end in place of negative ones."""
    found = t.traced(index)
    zero, whole = t.constant(0, "i8"), t.constant(size, "i8")
    above = t.emit("greater_equal", (found.name, zero), "b1")
    added = t.emit("add", (found.name, whole), "i8")
    return replace(found, name=t.emit("where", (above, found.name, added), "i8"))


def _one_of_each(t: Translation, x: Traced, index: Any) -> Traced:
    """x[rows, index] with one place for each row: the last word of each sentence, say."""
    if not _whole(index) or index.layout.axes != ((BATCH,),) or x.layout.axes[0] != (BATCH,):
        raise t.refuse("expected one place for each row of the batch")
    size = x.layout.shape[1].count
    places = _wrapped(t, index, size)
    for axis in range(1, x.layout.rank):
        places = with_axis(places, axis)
    shape = [x.layout.shape[0], Size(1), *x.layout.shape[2:]]
    return dropped(picked(t, x, places, 1, shape), 1)


def picked(t: Translation, x: Traced, index: Traced, axis: int, shape: Sequence[Size]) -> Traced:
    """x at places along an axis that depend on the inputs: the sum of x where a place is the wanted one.

    :param shape: of the result. :param index: fits it, of the rank of x.
    """
    size = x.layout.shape[axis]
    if any(each.layout.has_batch(axis) for each in (x, index)):
        raise t.mixes("some rows of the batch")
    full = [*shape[: axis + 1], size, *shape[axis + 1 :]]
    if math.prod(each.count for each in full) > _LARGEST_PICK:
        raise t.refuse("expected fewer numbers to pick from")
    places = torch.arange(size.count).reshape(-1, *[1] * (x.layout.rank - axis - 1))
    wanted = with_axis(index, axis + 1)
    names, layout = t.align((wanted, Fixed(places)), [*_broad(wanted, places, axis)], "i8")
    mask = Traced(t.emit("equal", names, "b1"), layout, "b1")
    names, layout = t.align((mask, with_axis(x, axis), 0), full, x.dtype)
    chosen = Traced(t.emit("where", names, x.dtype), layout, x.dtype)
    return reduced(t, "sum", chosen, axis + 1, False, x.dtype)


def _broad(wanted: Traced, places: Tensor, axis: int) -> list[Size]:
    shape = list(wanted.layout.shape)
    shape[axis + 1] = Size(places.shape[0])
    return shape


@operator("gather")
def _gather(t: Translation, self: Held, dim: int, index: Held) -> Traced:
    x, places = t.settled(t.traced(self)), t.traced(index)
    dim %= x.layout.rank
    if places.layout.rank != x.layout.rank:
        raise t.refuse("expected places of the rank of the tensor")
    for axis, (own, wanted) in enumerate(zip(x.layout.shape, places.layout.shape, strict=True)):
        if axis != dim and own.count > wanted.count and not own.batch:
            x = sliced(t, x, axis, 0, wanted.count)
    return picked(t, x, places, dim, places.layout.shape)


@operator("index_put")
def _index_put(
    t: Translation, self: Held, indices: Sequence[Any], values: Held, accumulate: bool = False
) -> Traced:
    mask = indices[0] if len(indices) == 1 else None
    several = accumulate or math.prod(size.count for size in values.layout.shape) != 1
    if not isinstance(mask, (Fixed, Traced)) or mask.dtype != "b1" or several:
        raise t.refuse("expected one number to be put where a mask says", "Use torch.where.")
    masks = mask
    for axis in range(mask.layout.rank, self.layout.rank):
        masks = with_axis(t.traced(masks), axis)
    number = t.traced(values)
    number = replace(number, layout=number.layout.with_axes(()))
    return t.elementwise("where", masks, number, self)


@operator("argmax", "argmin")
def _place_of_extreme(
    t: Translation, self: Held, dim: int | None = None, keepdim: bool = False
) -> Traced:
    kind = "max" if "argmax" in str(t.node and t.node.target) else "min"
    if dim is None:
        raise t.mixes("a place in the whole batch")
    return place_of(t, kind, self, dim, keepdim)


def place_of(t: Translation, kind: str, x: Held, dim: int, keep: bool) -> Traced:
    """Where along an axis the largest or smallest number is, the first of equals."""
    x = t.settled(t.traced(x))
    dim %= max(x.layout.rank, 1)
    best = reduced(t, kind, x, dim, True, x.dtype)
    names, layout = t.align((x, best), x.layout.shape, x.dtype)
    found = Traced(t.emit("equal", names, "b1"), layout, "b1")
    count = x.layout.shape[dim].count
    places = torch.arange(count).reshape(-1, *[1] * (x.layout.rank - dim - 1))
    names, layout = t.align((found, Fixed(places), count - 1), x.layout.shape, "i8")
    first = Traced(t.emit("where", names, "i8"), layout, "i8")
    return reduced(t, "min", first, dim, keep, "i8")


@operator("max", "min")
def _extreme(
    t: Translation,
    self: Held,
    dim: int | None = None,
    keepdim: bool = False,
    other: Held | None = None,
) -> Any:
    kind = "max" if "aten.max" in str(t.node and t.node.target) else "min"
    if other is not None:
        return t.elementwise(f"{kind}imum", self, other)
    if dim is None:
        return reduced(t, kind, self, None, False)
    found = reduced(t, kind, self, dim, keepdim, t.dtype(0))
    return found, place_of(t, kind, self, dim, keepdim)


@operator("one_hot")
def _one_hot(t: Translation, self: Held, num_classes: int = -1) -> Traced:
    if num_classes < 0:
        raise t.refuse("expected the number of classes", "Pass it to torch.nn.functional.one_hot.")
    x = t.traced(self)
    wide = with_axis(x, x.layout.rank)
    names, layout = t.align(
        (wide, Fixed(torch.arange(num_classes))), [*x.layout.shape, Size(num_classes)], "i8"
    )
    found = t.emit("cast", (t.emit("equal", names, "b1"),), "i8")
    return Traced(found, layout, "i8")


# Tables


@operator("embedding")
def _embedding(t: Translation, weight: Held, indices: Held, padding_idx: int = -1) -> Traced:
    return embedded(t, weight, indices)


def embedded(t: Translation, table: Held, indices: Held) -> Traced:
    """The rows of a table at whole numbers; a scale of all of it, or of its columns, comes after them."""
    places = t.traced(indices)
    factor: Any = 1.0
    if isinstance(table, Traced) and table.weights:
        whole = isinstance(table.factor, Tensor)
        if not whole or bool((table.factor == table.factor[:1]).all()):  # type: ignore[union-attr]
            factor, table = table.factor, replace(table, factor=1.0)
    rows, width = table.layout.axes
    name = t.arrange(table, [rows, width])
    name = t.emit("embedding", (places.name, name), t.dtype())
    # The width is the last axis of the value, whatever the order of the axes before it.
    sizes = [*places.layout.sizes, table.layout.size(width)]
    order = list(enumerate(sizes))
    layout = Layout.made(order, [*places.layout.axes, [len(sizes) - 1]])
    found = Traced(name, layout, t.dtype())
    if isinstance(factor, Tensor):
        numbers = Fixed(factor[0].float() if found.dtype == "f4" else factor[0])
        return t.elementwise("mul", found, numbers)
    return t.settled(replace(found, factor=factor))


# Bags of words


@operator("embedding_bag")
def _bag(
    t: Translation,
    weight: Held,
    indices: Held,
    offsets: Any,
    mode: int = 0,
    per_sample_weights: Held | None = None,
    padding_idx: int | None = None,
) -> Any:
    if padding_idx is not None and padding_idx >= 0:
        raise t.refuse("expected bags without padding")
    places = t.traced(indices)
    if not isinstance(offsets, Rows) or places.layout.rank != 1:
        raise t.refuse("expected bags of one size", "Pass words (B, L) to torch's EmbeddingBag.")
    (axis,) = places.layout.axes
    if axis[:1] != (BATCH,) or places.layout.size(axis) != offsets.step:
        raise t.mixes("bags of words from several rows")
    shape = [Size(1, True), Size(offsets.step)]
    words = embedded(t, weight, reshape_to(t, places, shape))
    if per_sample_weights is not None:
        scale = with_axis(reshape_to(t, t.traced(per_sample_weights), shape), 2)
        names, layout = t.align((words, scale), words.layout.shape, words.dtype)
        words = Traced(t.emit("mul", names, words.dtype), layout, words.dtype)
    kind = ("sum", "mean", "max")[mode]
    found = reduced(t, kind, words, 1, False, words.dtype)
    return found, *[Refused("expected the sums of a bag alone")] * 3


@operator("arange", by_shape=True)
def _arange(t: Translation, end: Any, start: Any = 0, step: Any = 1) -> Rows:
    if start != 0 or not isinstance(end, Size) or end.count != step:
        raise t.mixes("the numbers of the rows")
    return Rows("expected every row of the batch by itself, got the numbers of the rows", step)
