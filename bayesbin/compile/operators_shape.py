"""Operators that move numbers: views, slices, joins, repeats, lookups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesbin.compile.layout import BATCH, Layout, Size, Torn
from bayesbin.compile.operators import operator
from bayesbin.compile.operators_elementwise import filled
from bayesbin.compile.translation import Fixed, Held, Traced, Translation

View = Callable[[Tensor], Tensor]


def _viewed(x: Traced, layout: Layout, view: View) -> Traced:
    """A view of a tensor, and the same of its factor."""
    factor = x.factor
    if isinstance(factor, Tensor):
        factor = view(factor.expand([size.count for size in x.layout.shape]))
    return replace(x, layout=layout, factor=factor)


# Views


@operator(
    *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as"),
    *("_reshape_alias", "ravel"),
    by_shape=True,
)
def _reshape(t: Translation, self: Traced) -> Traced:
    return reshape_to(t, self, t.shape())


def reshape_to(t: Translation, x: Traced, shape: Sequence[Size]) -> Traced:
    """A view of a tensor in another shape."""
    sizes = [size.count for size in shape]
    try:
        layout = x.layout.reshaped(shape)
    except Torn:
        x = t.straightened(t.settled(x))
        try:
            layout = x.layout.reshaped(shape)
        except Torn:
            raise t.mixes("a view that tears the rows of the batch apart") from None
    return _viewed(x, layout, lambda factor: factor.reshape(sizes))


@operator("permute")
def _permute(t: Translation, self: Traced, dims: Sequence[int]) -> Traced:
    order = [axis % self.layout.rank for axis in dims]
    return _viewed(self, self.layout.permuted(order), lambda factor: factor.permute(order))


@operator("transpose", "swapaxes", "swapdims")
def _transpose(
    t: Translation,
    self: Traced,
    dim0: int = 0,
    dim1: int = 0,
    axis0: int | None = None,
    axis1: int | None = None,
) -> Traced:
    first, second = (dim0, dim1) if axis0 is None else (axis0, axis1)
    order = list(range(self.layout.rank))
    if not order:
        return self
    order[first], order[second] = order[second], order[first]  # type: ignore[index]
    return _permute(t, self, order)


@operator("t", "mT", "adjoint", "numpy_T", "matrix_H")
def _flip_axes(t: Translation, self: Traced) -> Traced:
    return self if self.layout.rank < 2 else _transpose(t, self, -2, -1)


@operator("movedim", "moveaxis")
def _movedim(t: Translation, self: Traced, source: Any, destination: Any) -> Traced:
    like = torch.empty([2 + axis for axis in range(self.layout.rank)], device="meta")
    order = [size - 2 for size in torch.movedim(like, source, destination).shape]
    return _permute(t, self, order)


@operator("unsqueeze", "squeeze", by_shape=True)
def _squeeze(t: Translation, self: Traced) -> Traced:
    sizes, shape = [size.count for size in t.shape()], t.shape()
    if math.prod(sizes) != math.prod(size.count for size in self.layout.shape):
        raise t.refuse("expected a view of all numbers")
    return _viewed(self, self.layout.reshaped(shape), lambda factor: factor.reshape(sizes))


@operator(
    *("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "lift_fresh", "lift"),
    *("_conj", "resolve_conj", "resolve_neg", "positive", "view_copy"),
)
def _same(t: Translation, self: Held) -> Held:
    return self


# Slices


def sliced(t: Translation, x: Held, axis: int, start: int, stop: int, step: int = 1) -> Traced:
    """x[..., start:stop:step, ...] along one axis."""
    x = t.traced(x)
    axis %= x.layout.rank
    size = x.layout.shape[axis]
    if (start, stop, step) == (0, size.count, 1) and not size.batch:
        return x
    bare = replace(x, factor=1.0)
    frame = t.framed(bare, [axis], "some rows of the batch")
    (place,) = frame.places
    attributes = {"axis": place, "start": start, "stop": stop, "step": step}
    name = t.emit("slice", (frame.name,), t.known(frame.name).dtype, **attributes)
    found = frame.made(name, x.dtype, t.known(name).shape)
    factor = x.factor
    if isinstance(factor, Tensor):
        whole = factor.expand([each.count for each in x.layout.shape])
        factor = whole[(slice(None),) * axis + (slice(start, stop, step),)]
    return replace(found, factor=factor, weights=x.weights)


@operator("slice", "narrow")
def _slice(
    t: Translation,
    self: Traced,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
    length: Any = None,
) -> Traced:
    dim %= self.layout.rank
    size = self.layout.shape[dim]
    if length is not None:
        end = start + length
    if size.batch:
        if size == t.shape()[dim] and step == 1 and start in (0, None):
            return self
        raise t.mixes("some rows of the batch")
    if any(isinstance(x, Size) for x in (start, end)):
        raise t.mixes("a slice as long as the batch")
    first, stop, _ = slice(start, end, step).indices(size.count)
    return sliced(t, self, dim, first, max(first, stop), step)


@operator("select")
def _select(t: Translation, self: Traced, dim: int, index: int) -> Traced:
    dim %= self.layout.rank
    size = self.layout.shape[dim]
    if size.batch:
        raise t.mixes("one row of the batch")
    index %= size.count
    return dropped(sliced(t, self, dim, index, index + 1), dim)


def dropped(x: Traced, axis: int) -> Traced:
    """A tensor without an axis of size 1."""
    axes = [each for place, each in enumerate(x.layout.axes) if place != axis]
    return _viewed(x, x.layout.with_axes(axes), lambda factor: factor.squeeze(axis))


@operator("unbind")
def _unbind(t: Translation, self: Traced, dim: int = 0) -> tuple[Traced, ...]:
    return tuple(_select(t, self, dim, k) for k in range(len(t.result)))


@operator(
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
    by_shape=True,
)
def _split(t: Translation, self: Traced, dim: int = 0) -> tuple[Traced, ...]:
    dim %= self.layout.rank
    if self.layout.has_batch(dim):
        raise t.mixes("parts of the batch")
    found, start = [], 0
    for place in range(len(t.result)):
        stop = start + t.shape(place)[dim].count
        found.append(sliced(t, self, dim, start, stop))
        start = stop
    return tuple(found)


# Joins and repeats


@operator("cat", "concat", "concatenate")
def _cat(t: Translation, tensors: Sequence[Held], dim: int = 0) -> Traced:
    return joined(
        t, [x for x in tensors if x.layout.rank != 1 or x.layout.shape[0] != (0, False)], dim
    )


def joined(t: Translation, tensors: Sequence[Held], dim: int) -> Traced:
    """Tensors one after another along an axis."""
    rank = tensors[0].layout.rank
    dim %= rank
    held = [t.settled(t.traced(x)) for x in tensors]
    if any(x.layout.has_batch(dim) for x in held):
        raise t.mixes("other rows beside those of the batch")
    held = [t.straightened(x) for x in held]
    if len({tuple(_pattern(x.layout, dim)) for x in held}) > 1:
        raise t.mixes("tensors with rows that are merged with other axes in two ways")
    frames = [t.framed(x, [dim], "other rows", straight=True) for x in held]
    lead = frames[0]
    (place,) = lead.places
    name = t.emit("concat", [frame.name for frame in frames], t.dtype(), axis=place)
    return lead.made(name, t.dtype(), t.known(name).shape)


def _pattern(layout: Layout, without: int) -> list[tuple[int, ...]]:
    """How each axis but one is made of atoms and the batch, by their sizes."""
    return [
        tuple(BATCH if atom == BATCH else layout.sizes[atom] for atom in axis)
        for place, axis in enumerate(layout.axes)
        if place != without
    ]


@operator("stack")
def _stack(t: Translation, tensors: Sequence[Held], dim: int = 0) -> Traced:
    dim %= tensors[0].layout.rank + 1
    held = [t.settled(t.traced(x)) for x in tensors]
    return joined(t, [with_axis(x, dim) for x in held], dim)


def with_axis(x: Traced, axis: int) -> Traced:
    """A tensor with one more axis, of size 1."""
    axes = list(x.layout.axes)
    axes.insert(axis, ())
    return replace(x, layout=x.layout.with_axes(axes))


@operator("expand", "expand_as", "broadcast_to", by_shape=True)
def expand(t: Translation, self: Held) -> Traced:
    x, shape = t.traced(self), t.shape()
    if sum(size.batch for size in shape) > 1:
        raise t.mixes("pairs of rows")
    missing = len(shape) - x.layout.rank
    axes: list[Any] = [()] * missing + list(x.layout.axes)
    before = [Size(1)] * missing + list(x.layout.shape)
    grown = [k for k, (a, b) in enumerate(zip(before, shape, strict=True)) if a.count != b.count]
    if not grown:
        axes = [
            (BATCH, *axis) if size.batch and BATCH not in axis else axis
            for axis, size in zip(axes, shape, strict=True)
        ]
        x = x if plain_factor(x) else t.settled(x)
        return replace(x, layout=x.layout.with_axes(axes))
    moved = replace(t.settled(x), layout=x.layout.with_axes(axes))
    frame = t.framed(moved, grown, "more rows")
    sizes = list(frame.sizes)
    for axis, place in zip(grown, frame.places, strict=True):
        sizes[place] = shape[axis].count
    name = t.emit("expand", (frame.name,), x.dtype, shape=tuple(sizes))
    found = frame.made(name, x.dtype, sizes)
    axes = [
        (BATCH, *axis) if size.batch and BATCH not in axis else axis
        for axis, size in zip(found.layout.axes, shape, strict=True)
    ]
    return replace(found, layout=found.layout.with_axes(axes))


def plain_factor(x: Traced) -> bool:
    return not isinstance(x.factor, Tensor)


@operator("repeat", "tile")
def _repeat(
    t: Translation, self: Held, repeats: Sequence[Any] = (), dims: Sequence[Any] = ()
) -> Traced:
    times = [x if isinstance(x, Size) else Size(x) for x in (repeats or dims)]
    x = t.settled(t.traced(self))
    missing = max(len(times) - x.layout.rank, 0)
    times = [Size(1)] * (x.layout.rank - len(times)) + times
    x = replace(x, layout=x.layout.with_axes([()] * missing + list(x.layout.axes)))
    for axis, many in enumerate(times):
        if many.batch:
            if many.count > 1 or x.layout.axes[axis]:
                raise t.mixes("copies of rows")
            axes = list(x.layout.axes)
            axes[axis] = (BATCH,)
            x = replace(x, layout=x.layout.with_axes(axes))
        elif many.count > 1:
            if x.layout.has_batch(axis):
                raise t.mixes("copies of rows")
            x = joined(t, [x] * many.count, axis)
    return x


@operator("repeat_interleave")
def _repeat_interleave(t: Translation, self: Held, repeats: Any, dim: int | None = None) -> Traced:
    if not isinstance(repeats, int) or dim is None:
        raise t.refuse("expected one number of repeats and an axis")
    x = t.traced(self)
    dim %= x.layout.rank
    places = [place for place in range(x.layout.shape[dim].count) for _ in range(repeats)]
    return taken(t, x, dim, places)


@operator("flip")
def _flip(t: Translation, self: Held, dims: Sequence[int]) -> Traced:
    axes = [axis % self.layout.rank for axis in dims]
    x, places = t.isolated(self, axes, "rows in another order")
    name = t.emit("flip", (x.name,), x.dtype, axes=tuple(places))
    return Traced(name, x.layout, x.dtype)


@operator("roll")
def _roll(t: Translation, self: Held, shifts: Sequence[int], dims: Sequence[int] = ()) -> Traced:
    x = t.traced(self)
    if not dims:
        raise t.refuse("expected the axes to roll along", "Pass dims= to torch.roll.")
    for shift, axis in zip(shifts, dims, strict=True):
        axis %= x.layout.rank
        size = x.layout.shape[axis]
        if size.batch:
            raise t.mixes("rows in another order")
        cut = -shift % size.count
        if cut:
            x = joined(t, [sliced(t, x, axis, cut, size.count), sliced(t, x, axis, 0, cut)], axis)
    return x


# At some places


def taken(t: Translation, x: Held, axis: int, places: Any) -> Traced:
    """x at some places along an axis; places are whole numbers, and their axes take that of x."""
    indices = torch.as_tensor(places, dtype=torch.int64)
    frame = t.framed(t.settled(t.traced(x)), [axis], "some rows of the batch")
    (place,) = frame.places
    size = frame.sizes[place]
    indices = torch.where(indices < 0, indices + size, indices)
    flat = t.constant(indices.flatten().numpy(), "i8")
    name = t.emit("take", (frame.name, flat), frame.value.dtype, axis=place)
    found = frame.made(name, frame.value.dtype, t.known(name).shape)
    if indices.dim() == 1:
        return found
    shape = list(found.layout.shape)
    shape[axis : axis + 1] = [Size(each) for each in indices.shape]
    return replace(found, layout=found.layout.reshaped(shape))


# Others


@operator("glu")
def _glu(t: Translation, self: Held, dim: int = -1) -> Traced:
    dim %= self.layout.rank
    half = self.layout.shape[dim].count // 2
    if self.layout.has_batch(dim):
        raise t.mixes("gates among rows")
    gate = t.settled(sliced(t, self, dim, half, 2 * half))
    name = t.emit("sigmoid", (gate.name,), t.dtype())
    return t.elementwise("mul", sliced(t, self, dim, 0, half), replace(gate, name=name))


@operator("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(
    t: Translation, self: Traced, upscale_factor: int = 0, downscale_factor: int = 0
) -> Traced:
    *front, channels, high, wide = self.layout.shape
    if any(size.batch for size in (channels, high, wide)):
        raise t.mixes("rows as channels or places of an image")
    n, k = len(front), upscale_factor or downscale_factor
    if upscale_factor:
        inner = [Size(channels.count // k**2), Size(k), Size(k), high, wide]
        order = [0, 3, 1, 4, 2]
    else:
        inner = [channels, Size(high.count // k), Size(k), Size(wide.count // k), Size(k)]
        order = [0, 2, 4, 1, 3]
    x = t.straightened(t.settled(self))
    layout = x.layout.reshaped([*front, *inner]).permuted(
        [*range(n), *[n + place for place in order]]
    )
    moved = t.straightened(replace(x, layout=layout))
    return replace(moved, layout=moved.layout.reshaped(t.shape()))


@operator("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(t: Translation, self: Traced, groups: int) -> Traced:
    x = t.straightened(t.settled(self))
    front, channels, *rest = x.layout.shape
    shape = [front, Size(groups), Size(channels.count // groups), *rest]
    layout = x.layout.reshaped(shape).permuted([0, 2, 1, *range(3, len(shape))])
    moved = t.straightened(replace(x, layout=layout))
    return replace(moved, layout=moved.layout.reshaped(t.shape()))


@operator("im2col")
def _im2col(
    t: Translation,
    self: Traced,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Traced:
    """Patches of images (B, C, H, W) as columns (B, C kh kw, places)."""
    sizes = [size.count for size in self.layout.shape[-2:]]
    padded = padding_of(t, self, [(each, each) for each in padding], "constant", 0.0)
    grid = []
    for size, wide, pad, hop, spread in zip(
        sizes, kernel_size, padding, stride, dilation, strict=True
    ):
        places = (size + 2 * pad - spread * (wide - 1) - 1) // hop + 1
        grid.append(torch.arange(wide)[:, None] * spread + torch.arange(places)[None, :] * hop)
    rank = padded.layout.rank
    found = taken(t, padded, rank - 2, grid[0])  # (B, C, kh, H', W)
    found = taken(t, found, rank, grid[1])  # (B, C, kh, H', kw, W')
    order = [*range(rank - 1), rank, rank - 1, rank + 1]
    found = t.straightened(replace(found, layout=found.layout.permuted(order)))
    return replace(found, layout=found.layout.reshaped(t.shape()))


@operator("unfold")
def _unfold(t: Translation, self: Held, dimension: int, size: int, step: int) -> Traced:
    axis = dimension % self.layout.rank
    count = (self.layout.shape[axis].count - size) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)[None, :]
    found = taken(t, self, axis, places)
    order = [place for place in range(found.layout.rank) if place != axis + 1]
    return replace(found, layout=found.layout.permuted([*order, axis + 1]))


_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


@operator("pad", "constant_pad_nd")
def _pad(
    t: Translation,
    self: Held,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Traced:
    if any(isinstance(each, Size) for each in pad):
        raise t.mixes("a width as large as the batch")
    widths = [(pad[k], pad[k + 1]) for k in range(0, len(pad), 2)][::-1]
    return padding_of(t, self, widths, _MODES[mode], float(value or 0.0))


@operator(*(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)))
def _pad_nd(t: Translation, self: Held, padding: Sequence[int]) -> Traced:
    mode = "reflect" if "reflection" in str(t.node and t.node.target) else "replicate"
    return _pad(t, self, padding, mode)


def padding_of(
    t: Translation, x: Held, widths: Sequence[tuple[int, int]], mode: str, value: float
) -> Traced:
    """x with numbers around it along its last axes."""
    first = x.layout.rank - len(widths)
    axes = [first + k for k, width in enumerate(widths) if width != (0, 0)]
    if not axes:
        return t.traced(x)
    frame = t.framed(t.settled(t.traced(x)), axes, "rows around those of the batch")
    every = [(0, 0)] * len(frame.sizes)
    for axis, place in zip(axes, frame.places, strict=True):
        every[place] = widths[axis - first]
    name = t.emit(
        "pad", (frame.name,), frame.value.dtype, widths=tuple(every), mode=mode, value=value
    )
    return frame.made(name, frame.value.dtype, t.known(name).shape)


@operator("slice_scatter", "select_scatter")
def _scatter(
    t: Translation,
    self: Held,
    src: Held,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
    index: int | None = None,
) -> Traced:
    """A tensor some part of which is another's."""
    dim %= self.layout.rank
    size = self.layout.shape[dim]
    inner = t.settled(t.traced(src))
    if index is not None:
        start, end = index % max(size.count, 1), index % max(size.count, 1) + 1
        inner = with_axis(inner, dim)
    if size.batch:
        if index is None and start in (0, None) and (end is None or end > 1 << 60) and step == 1:
            return inner
        raise t.mixes("some rows of the batch")
    first, stop, _ = slice(start, end, step).indices(size.count)
    if step != 1:
        raise t.refuse("expected neighbours to be changed")
    parts: list[Held] = []
    if first:
        parts.append(sliced(t, self, dim, 0, first))
    parts.append(inner)
    if stop < size.count:
        parts.append(sliced(t, self, dim, stop, size.count))
    return joined(t, parts, dim) if len(parts) > 1 else inner


@operator("tril", "triu")
def _triangle(t: Translation, self: Held, diagonal: int = 0) -> Traced:
    rows, columns = self.layout.shape[-2:]
    if rows.batch or columns.batch:
        raise t.mixes("triangles of rows")
    ones = torch.ones(rows.count, columns.count, dtype=torch.bool)
    upper = "triu" in str(t.node and t.node.target)
    mask = ones.triu(diagonal) if upper else ones.tril(diagonal)
    return t.elementwise("where", Fixed(mask), self, 0)


# Tensors of the batch's size that do not depend on it


@operator("zeros", "zeros_like", "new_zeros", by_shape=True)
def _zeros(t: Translation) -> Traced:
    return filled(t, 0)


@operator("ones", "ones_like", "new_ones", by_shape=True)
def _ones(t: Translation) -> Traced:
    return filled(t, 1)


@operator("full", "full_like", "new_full", by_shape=True)
def _full(t: Translation, fill_value: Any) -> Traced:
    if isinstance(fill_value, Size):
        raise t.mixes("the number of rows in a computation")
    return filled(t, fill_value)


@operator("empty", "empty_like", "new_empty", by_shape=True)
def _empty(t: Translation) -> Traced:
    return filled(t, 0)
