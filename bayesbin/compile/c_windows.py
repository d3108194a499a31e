"""Pools over windows of images, and images of another size, in C."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bayesbin.compile.c_writer import TYPES, CCall, converted, strides_of
from bayesbin.compile.windows import linear_places, pool_counts
from bayesbin.runtime.reference_windows import nearest

Emit = Callable[[CCall], None]


def _open_places(c: CCall) -> str:
    """Loops over channels and places of the output; where a place is."""
    out = c.out[0]
    c.source.open(f"for (int32_t ch = 0; ch < {out.shape[0]}; ++ch)")
    for axis, size in enumerate(out.shape[1:]):
        c.source.open(f"for (int32_t o{axis} = 0; o{axis} < {size}; ++o{axis})")
    return " + ".join(f"o{axis} * {own}" for axis, own in enumerate(strides_of(out.shape[1:])))


def _window(c: CCall, dtype: str) -> None:
    """Open loops over the window at a place, and name its number v; what lies outside is passed over."""
    source, sizes, x = c.source, c.shape[1:], c.ref(0)
    spreads = c.step.attributes.get("dilation", (1,) * len(sizes))
    numbers = zip(c["size"], c["stride"], c["padding"], spreads, sizes, strict=True)
    terms = [f"ch * {math.prod(sizes)}"]
    for axis, (wide, hop, pad, spread, size) in enumerate(numbers):
        source.open(f"for (int32_t t{axis} = 0; t{axis} < {wide}; ++t{axis})")
        source.line(f"const int32_t y{axis} = o{axis} * {hop} + t{axis} * {spread} - {pad};")
        source.line(f"if (y{axis} < 0 || y{axis} >= {size}) continue;")
        terms.append(f"y{axis} * {strides_of(sizes)[axis]}")
    value = converted(f"{x.name}[{' + '.join(terms)}]", x.dtype, dtype)
    source.line(f"const {TYPES[dtype]} v = {value};")


def _larger(dtype: str) -> str:
    return "if (v > t || isnan(v)) t = v;" if dtype in ("f4", "f8") else "if (v > t) t = v;"


def _least(dtype: str) -> str:
    return "-INFINITY" if dtype in ("f4", "f8") else "INT64_MIN" if dtype == "i8" else "0"


def _max_pool(c: CCall) -> None:
    c.ref(0)
    area, rank = math.prod(c.out[0].shape[1:]), len(c.shape)
    place = _open_places(c)
    c.source.line(f"{TYPES[c.dtype]} t = {_least(c.dtype)};")
    _window(c, c.dtype)
    c.source.line(_larger(c.dtype))
    c.source.close(rank - 1)
    c.write(f"ch * {area} + {place}", "t", c.dtype)
    c.source.close(rank)


def _avg_pool(c: CCall) -> None:
    c.ref(0)
    out, rank = c.out[0], len(c.shape)
    area = math.prod(out.shape[1:])
    counts = pool_counts(c.shape[1:], out.shape[1:], c.step.attributes)
    same = counts.size and (counts == counts.flat[0]).all()
    table = "" if same else c.source.table(counts.astype(np.int64), "n4", "counts")
    place = _open_places(c)
    c.source.line(f"{TYPES[c.dtype]} t = 0;")
    _window(c, c.dtype)
    c.source.line("t = t + v;")
    c.source.close(rank - 1)
    count = str(int(counts.flat[0])) if same else f"{table}[{place}]"
    c.write(f"ch * {area} + {place}", f"t / ({TYPES[c.dtype]}){count}", c.dtype)
    c.source.close(rank)


def _adaptive(c: CCall, dtype: str, first: str, more: str, last: str) -> None:
    x, sizes, rank = c.ref(0), c.shape[1:], len(c.shape)
    place = _open_places(c)
    c.source.line(f"{TYPES[dtype]} t = {first};")
    terms, counts = [f"ch * {math.prod(sizes)}"], []
    for axis, (size, out) in enumerate(zip(sizes, c["size"], strict=True)):
        start, end = f"o{axis} * {size} / {out}", f"((o{axis} + 1) * {size} + {out - 1}) / {out}"
        c.source.line(f"const int32_t from{axis} = {start}, to{axis} = {end};")
        counts.append(f"(to{axis} - from{axis})")
        terms.append(f"y{axis} * {strides_of(sizes)[axis]}")
    for axis in range(rank - 1):
        c.source.open(f"for (int32_t y{axis} = from{axis}; y{axis} < to{axis}; ++y{axis})")
    value = converted(f"{x.name}[{' + '.join(terms)}]", x.dtype, dtype)
    c.source.line(f"const {TYPES[dtype]} v = {value};")
    c.source.line(more)
    c.source.close(rank - 1)
    area = math.prod(c.out[0].shape[1:])
    c.write(f"ch * {area} + {place}", last.replace("{n}", " * ".join(counts)), dtype)
    c.source.close(rank)


def _adaptive_max_pool(c: CCall) -> None:
    _adaptive(c, c.dtype, _least(c.dtype), _larger(c.dtype), "t")


def _adaptive_avg_pool(c: CCall) -> None:
    _adaptive(c, "f8", "0", "t += v;", "t / ({n})")


def _resize(c: CCall) -> None:
    """One axis after another, in double in between."""
    source, x, shape = c.source, c.ref(0), list(c.shape)
    last = len(c["size"]) - 1
    for axis, wanted in enumerate(c["size"]):
        have = shape[1 + axis]
        before, after = math.prod(shape[: 1 + axis]), math.prod(shape[2 + axis :])
        shape[1 + axis] = wanted
        to = c.out[0] if axis == last else source.buffer("f8", shape, "resized")
        _resized_axis(c, x.name, x.dtype, to.name, to.dtype, (before, have, wanted, after))
        x = to
    source.use(x)


def _resized_axis(
    c: CCall, name: str, dtype: str, to: str, to_dtype: str, sizes: Sequence[int]
) -> None:
    before, have, wanted, after = sizes
    source = c.source
    for letter, size in (("i", before), ("o", wanted), ("l", after)):
        source.open(f"for (int32_t {letter} = 0; {letter} < {size}; ++{letter})")

    def at(place: str) -> str:
        return converted(f"{name}[(i * {have} + {place}) * {after} + l]", dtype, "f8")

    if c["mode"] == "nearest":
        table = source.table(nearest(have, wanted), "n4", "nearest")
        value = at(f"{table}[o]")
    else:
        low, high, share = linear_places(have, wanted, c["align_corners"])
        lows, highs = (source.table(each, "n4", "places") for each in (low, high))
        part = source.table(share, "f8", "share")
        value = f"{at(f'{lows}[o]')} * (1 - {part}[o]) + {at(f'{highs}[o]')} * {part}[o]"
    into = f"{to}[(i * {wanted} + o) * {after} + l]"
    source.line(f"{into} = {converted(f'({value})', 'f8', to_dtype)};")
    source.close(3)


WINDOWS: dict[str, Emit] = {
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_max_pool": _adaptive_max_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "resize": _resize,
}
