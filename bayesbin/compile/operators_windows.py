"""Operators on windows and sizes of images: pools and changes of resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bayesbin.compile.operators import operator
from bayesbin.compile.operators_products import Images, _each
from bayesbin.compile.operators_shape import taken
from bayesbin.compile.translation import Fixed, Held, Refused, Traced, Translation


def _pooled(t: Translation, kind: str, x: Held, rank: int, attributes: dict[str, Any]) -> Traced:
    """A pool over the images of each datum; several of them lie along an axis more."""
    images = Images(t, x, rank)
    name = images.arranged(x)
    if images.many > 1:
        neutral = {"size": 1, "stride": 1, "padding": 0, "dilation": 1}
        for key, value in neutral.items():
            if key in attributes:
                attributes[key] = (value, *attributes[key])
    return images.made(t.emit(kind, (name,), t.dtype(), **attributes))


def _window(
    rank: int, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool
) -> dict[str, Any]:
    size = _each(kernel_size, rank)
    return {
        "size": size,
        "stride": _each(stride, rank) if stride else size,
        "padding": _each(padding, rank),
        "ceil": bool(ceil_mode),
    }


def _max_pool(rank: int) -> None:
    @operator(f"max_pool{rank}d")
    def max_pool(
        t: Translation,
        self: Held,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: bool,
    ) -> Traced:
        attributes = _window(rank, kernel_size, stride, padding, ceil_mode)
        attributes["dilation"] = _each(dilation, rank)
        return _pooled(t, "max_pool", self, rank, attributes)

    @operator(f"max_pool{rank}d_with_indices")
    def with_places(t: Translation, **arguments: Any) -> Any:
        raise t.refuse("there is no step for the place of a largest number")

    @operator(f"adaptive_max_pool{rank}d")
    def adaptive(t: Translation, self: Held, output_size: Any) -> Any:
        found = _adaptive(t, "adaptive_max_pool", self, rank, output_size)
        return found, Refused("there is no step for the place of a largest number")


def _avg_pool(rank: int) -> None:
    @operator(f"avg_pool{rank}d")
    def avg_pool(
        t: Translation,
        self: Held,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None = None,
    ) -> Traced:
        attributes = _window(rank, kernel_size, stride, padding, ceil_mode)
        attributes["count_padding"] = bool(count_include_pad)
        attributes["divisor"] = int(divisor_override or 0)
        return _pooled(t, "avg_pool", self, rank, attributes)

    names = (f"adaptive_avg_pool{rank}d", f"_adaptive_avg_pool{rank}d")

    @operator(*names[: 1 if rank == 1 else 2])
    def adaptive(t: Translation, self: Held, output_size: Any) -> Traced:
        return _adaptive(t, "adaptive_avg_pool", self, rank, output_size)


def _adaptive(t: Translation, kind: str, x: Held, rank: int, size: Any) -> Traced:
    images = Images(t, x, rank)
    sizes = _each(size, rank)
    if images.many > 1:
        sizes = (images.many, *sizes)
    name = images.arranged(x)
    dtype = t.dtype(0 if isinstance(t.result, (tuple, list)) else None)
    return images.made(t.emit(kind, (name,), dtype, size=tuple(sizes)), dtype)


for _rank in (1, 2, 3):
    _max_pool(_rank)
    _avg_pool(_rank)


# Resolution


def _resized(
    t: Translation, x: Held, rank: int, mode: str, align_corners: bool, factors: Any
) -> Traced:
    before = [size.count for size in x.layout.shape[-rank:]]
    after = [size.count for size in t.shape()[-rank:]]
    if factors and not align_corners:
        ratios = zip(before, after, factors, strict=True)
        if any(old * factor != new for old, new, factor in ratios):
            return _by_factors(t, x, after, mode, factors)
    images = Images(t, x, rank)
    sizes = (images.many, *after) if images.many > 1 else tuple(after)
    name = images.arranged(x)
    attributes = {"size": sizes, "mode": mode, "align_corners": bool(align_corners)}
    return images.made(t.emit("resize", (name,), t.dtype(), **attributes))


def _by_factors(
    t: Translation, x: Held, after: Sequence[int], mode: str, factors: Sequence[float]
) -> Traced:
    """Places and weights by factors that do not take sizes to whole numbers, one axis after another."""
    found = t.traced(x)
    first = found.layout.rank - len(after)
    for axis, (new, factor) in enumerate(zip(after, factors, strict=True), first):
        size = found.layout.shape[axis].count
        if found.layout.has_batch(axis):
            raise t.mixes("rows as places of an image")
        # torch takes the nearest by float32, whatever the type of the image.
        dtype = torch.float32 if mode == "nearest" else t.result.dtype
        grid, scale = torch.arange(new, dtype=dtype), torch.tensor(1.0 / factor, dtype=dtype)
        if mode == "nearest":
            places = (grid * scale).floor().long().clamp(max=size - 1)
            found = taken(t, found, axis, places)
        else:
            places = ((grid + 0.5) * scale - 0.5).clamp(min=0.0)
            found = _between(t, found, axis, places, size)
    return found


def _between(t: Translation, x: Traced, axis: int, places: torch.Tensor, size: int) -> Traced:
    """Straight lines between neighbours along an axis."""
    low = places.floor().long().clamp(max=size - 1)
    below, above = taken(t, x, axis, low), taken(t, x, axis, (low + 1).clamp(max=size - 1))
    shape = [-1] + [1] * (x.layout.rank - axis - 1)
    part = Fixed((places - low).reshape(shape))
    whole = below.layout.shape
    found = below
    for kind, a, b in (("sub", above, below), ("mul", None, part), ("add", below, None)):
        names, layout = t.align(
            (found if a is None else a, found if b is None else b), whole, t.dtype()
        )
        found = Traced(t.emit(kind, names, t.dtype()), layout, t.dtype())
    return found


def _nearest(rank: int) -> None:
    @operator(f"upsample_nearest{rank}d")
    def nearest(
        t: Translation,
        input: Held | None = None,
        self: Held | None = None,
        output_size: Any = None,
        scale_factors: Sequence[float] | None = None,
        scales: Any = None,
        scales_d: Any = None,
        scales_h: Any = None,
        scales_w: Any = None,
    ) -> Traced:
        x = input if input is not None else self
        assert x is not None
        return _resized(t, x, rank, "nearest", False, scale_factors)


def _linear(name: str, rank: int) -> None:
    @operator(name)
    def linear(
        t: Translation,
        align_corners: bool,
        input: Held | None = None,
        self: Held | None = None,
        output_size: Any = None,
        scale_factors: Sequence[float] | None = None,
    ) -> Traced:
        x = input if input is not None else self
        assert x is not None
        return _resized(t, x, rank, "linear", align_corners, scale_factors)


for _rank in (1, 2, 3):
    _nearest(_rank)
_linear("upsample_linear1d", 1)
_linear("upsample_bilinear2d", 2)
_linear("upsample_trilinear3d", 3)
