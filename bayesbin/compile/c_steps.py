"""What each kind of step is in C: one table, from a kind to loops over one datum.

Formulas are those of :mod:`bayesbin.runtime.reference`: "own" ones are computed in the type of the output,
each operation rounded; "wide" ones in double and rounded once; decisions compare in double.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bayesbin.compile.c_products import PRODUCTS
from bayesbin.compile.c_windows import WINDOWS
from bayesbin.compile.c_writer import (
    TYPES,
    CCall,
    aligned_strides,
    channel_strides,
    converted,
    number,
    strides_of,
)
from bayesbin.compile.windows import padded_places
from bayesbin.runtime.reference_elementwise import in_range

Emit = Callable[[CCall], None]
Formula = Callable[[CCall, str], str]  # of a, b and c, in a type

# One number from one, two or three


def _computed_in(c: CCall, mode: str) -> str:
    """The type that a formula is computed in."""
    if mode == "own":
        return c.dtype
    return "f8"


def _each(mode: str, formula: Formula | str, strides: str = "aligned") -> Emit:
    """A formula of the numbers in the same place.

    :param strides: how inputs after the first are placed: "aligned" or "channels".
    """

    def emit(c: CCall) -> None:
        out, dtype = c.out[0], _computed_in(c, mode)
        count = len(c.used)
        operands = [(strides_of(out.shape), 0)]
        for place in range(count):
            shape = c.known(place).shape
            if strides == "channels" and place:
                operands.append((channel_strides(shape, len(out.shape), c["axis"]), 0))
            else:
                operands.append((aligned_strides(shape, out.shape), 0))
        refs = [c.ref(place) for place in range(count)]
        depth, places = c.source.loops(out.shape, operands)
        text = formula if isinstance(formula, str) else formula(c, dtype)
        c.source.open()
        for letter, place, (ref, index) in zip(
            "abc", range(count), zip(refs, places[1:], strict=True), strict=False
        ):
            kind = "b1" if c.step.kind == "where" and place == 0 else dtype
            value = converted(f"{ref.name}[{index}]", ref.dtype, kind)
            c.source.line(f"const {TYPES[kind]} {letter} = {value};")
        c.write(places[0], text, "n4" if mode == "decide" else dtype)
        c.source.close(1 + depth)

    return emit


def _by_type(real: str, whole: str) -> Formula:
    return lambda c, dtype: real if dtype in ("f4", "f8") else whole


def _function(name: str, whole: str = "a") -> Formula:
    """A function of <math.h> in the type of the numbers."""

    def formula(c: CCall, dtype: str) -> str:
        if dtype not in ("f4", "f8"):
            return whole
        return f"{name}{'f' if dtype == 'f4' else ''}(a)"

    return formula


def _clamp(c: CCall, dtype: str) -> str:
    low, high = c["low"], c["high"]
    if dtype == "i8":
        whole = np.iinfo(np.int64)
        low, high = max(int(low), whole.min), min(int(high), whole.max)
    else:
        low, high = in_range(low), in_range(high)
    least, most = number(low, dtype), number(high, dtype)
    return f"a < {least} ? {least} : a > {most} ? {most} : a"


def _leaky_relu(c: CCall, dtype: str) -> str:
    return f"a > 0 ? a : a * {number(c['slope'], dtype)}"


def _tanh(c: CCall, dtype: str) -> str:
    return f"{c.source.helper('tanh_f4')}(a)" if dtype == "f4" else "tanh(a)"


def _elu(c: CCall, dtype: str) -> str:
    alpha, scale, inner = (number(c[n], "f8") for n in ("alpha", "scale", "input_scale"))
    return f"{scale} * (a > 0 ? a : {alpha} * expm1(a * {inner}))"


def _gelu(c: CCall, dtype: str) -> str:
    if c["approximate"] == "tanh":
        root = number(float(np.sqrt(2 / np.pi)), "f8")
        return f"0.5 * a * (1 + tanh({root} * (a + 0.044715 * (a * a * a))))"
    return f"0.5 * a * (1 + erf(a * {number(float(np.sqrt(0.5)), 'f8')}))"


def _sigmoid(c: CCall, dtype: str) -> str:
    return f"{c.source.helper('sigmoid')}(a)"


def _mish(c: CCall, dtype: str) -> str:
    return f"a * tanh({c.source.helper('softplus')}(a, 1, 20))"


def _softplus(c: CCall, dtype: str) -> str:
    beta, threshold = number(c["beta"], "f8"), number(c["threshold"], "f8")
    return f"{c.source.helper('softplus')}(a, {beta}, {threshold})"


def _power(c: CCall, dtype: str) -> str:
    return f"{c.source.helper('power')}(a, b)"


def _hardshrink(c: CCall, dtype: str) -> str:
    return f"fabs(a) <= {number(c['bound'], 'f8')} ? 0 : a"


def _softshrink(c: CCall, dtype: str) -> str:
    bound = number(c["bound"], "f8")
    return f"fabs(a) <= {bound} ? 0 : a - copysign({bound}, a)"


_HARD = "(a + 3 < 0 ? 0 : a + 3 > 6 ? 6 : a + 3)"
_THRESHOLD = "(c > 0 ? a >= b : c < 0 ? a <= b : !isnan(a)) ? 1 : -1"
_LARGER = _by_type("(a >= b || isnan(a)) ? a : b", "a >= b ? a : b")
_SMALLER = _by_type("(a <= b || isnan(a)) ? a : b", "a <= b ? a : b")

EACH: dict[str, Emit] = {
    "affine": _each("own", "a * b + c", "channels"),
    "sign": _each("decide", "a >= 0 ? 1 : -1"),
    "threshold": _each("decide", _THRESHOLD, "channels"),
    "relu": _each("own", "a < 0 ? 0 : a"),
    "clamp": _each("own", _clamp),
    "tanh": _each("own", _tanh),
    "leaky_relu": _each("own", _leaky_relu),
    "prelu": _each("own", "a > 0 ? a : a * b", "channels"),
    "elu": _each("wide", _elu),
    "gelu": _each("wide", _gelu),
    "silu": _each("wide", "a / (1 + exp(-a))"),
    "mish": _each("wide", _mish),
    "hardsigmoid": _each("wide", f"{_HARD} / 6"),
    "hardswish": _each("wide", f"a * {_HARD} / 6"),
    "sigmoid": _each("wide", _sigmoid),
    "log_sigmoid": _each("wide", "(a < 0 ? a : 0 * a) - log1p(exp(-fabs(a)))"),
    "softplus": _each("wide", _softplus),
    "softsign": _each("wide", "a / (1 + fabs(a))"),
    "hardshrink": _each("wide", _hardshrink),
    "softshrink": _each("wide", _softshrink),
    "exp": _each("wide", "exp(a)"),
    "log": _each("wide", "log(a)"),
    "sqrt": _each("wide", "sqrt(a)"),
    "rsqrt": _each("wide", "1 / sqrt(a)"),
    "reciprocal": _each("wide", "1 / a"),
    "abs": _each("own", _function("fabs", "a < 0 ? -a : a")),
    "neg": _each("own", "-a"),
    "sin": _each("wide", "sin(a)"),
    "cos": _each("wide", "cos(a)"),
    "erf": _each("wide", "erf(a)"),
    "floor": _each("own", _function("floor")),
    "round": _each("own", _function("rint")),
    "logical_not": _each("decide", "a == 0"),
    "cast": _each("own", "a"),
    "add": _each("own", "a + b"),
    "sub": _each("own", "a - b"),
    "mul": _each("own", "a * b"),
    "div": _each("wide", "a / b"),
    "pow": _each("wide", _power),
    "maximum": _each("own", _LARGER),
    "minimum": _each("own", _SMALLER),
    "greater": _each("decide", "a > b"),
    "greater_equal": _each("decide", "a >= b"),
    "equal": _each("decide", "a == b"),
    "logical_and": _each("decide", "a != 0 && b != 0"),
    "logical_or": _each("decide", "a != 0 || b != 0"),
    "where": _each("own", "a ? b : c"),
}


# Over axes


def _over(c: CCall, axes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The axes that stay and those that are reduced."""
    rank = len(c.shape)
    return [a for a in range(rank) if a not in axes], sorted(axes)


class _Lines:
    """Loops over what stays, with loops over what is reduced inside them."""

    def __init__(self, c: CCall, axes: Sequence[int]) -> None:
        self.c, shape = c, c.shape
        self.x = c.ref(0)
        stays, goes = _over(c, axes)
        self.goes = [shape[a] for a in goes]
        own = strides_of(shape)
        self.inner = [own[a] for a in goes]
        self.count = math.prod(self.goes)
        kept = [shape[a] for a in stays]
        # What is written for each line lies in C order; what is written for each number, as x does.
        operands = [([own[a] for a in stays], 0), (strides_of(kept), 0)]
        self.depth, (self.base, self.line) = c.source.loops(kept, operands)
        if not self.depth:
            c.source.open()
            self.depth = 1

    def each(self, body: Sequence[str], dtype: str = "f8") -> None:
        """For each number v of a line, at place p of x and j of the line, in order."""
        source = self.c.source
        operands = [(self.inner, 0), (strides_of(self.goes), 0)]
        depth, (at, within) = source.loops(self.goes, operands, "j")
        text = " ".join(body)
        place = self.base if at == "0" else at if self.base == "0" else f"{self.base} + {at}"
        source.open()
        if " p" in text or "[p]" in text:
            source.line(f"const int32_t p = {place};")
            place = "p"
        if "[j]" in text or "(j)" in text:
            source.line(f"const int32_t j = {within};")
        value = converted(f"{self.x.name}[{place}]", self.x.dtype, dtype)
        source.line(f"const {TYPES[dtype]} v = {value};")
        for line in body:
            source.line(line)
        source.close(1 + depth)

    def finish(self) -> None:
        self.c.source.close(self.depth)


def _reduced(first: str, more: str, last: str = "t", mode: str = "wide") -> Emit:
    """A total t over all numbers v of a line, and what becomes of it; n stands for their count."""

    def emit(c: CCall) -> None:
        dtype = "i8" if c.dtype == "i8" else "f8" if mode == "wide" else c.dtype
        lines = _Lines(c, c["axes"])
        c.source.line(f"{TYPES[dtype]} t = {first};")
        lines.each([more], dtype)
        c.write(lines.line, last.replace("{n}", str(lines.count)), dtype)
        lines.finish()

    return emit


def _picked(compare: str) -> Emit:
    """The largest or the smallest: the first of equals, NaN where there is one."""

    def emit(c: CCall) -> None:
        dtype = c.dtype
        lines = _Lines(c, c["axes"])
        first = c.at(0, lines.base, dtype)
        c.source.line(f"{TYPES[dtype]} t = {first};")
        nan = " || isnan(t)" if dtype in ("f4", "f8") else ""
        lines.each([f"t = (t {compare} v{nan}) ? t : v;"], dtype)
        c.write(lines.line, "t", dtype)
        lines.finish()

    return emit


def _variance(c: CCall) -> None:
    lines = _Lines(c, c["axes"])
    c.source.line("double m = 0, t = 0;")
    lines.each(["m += v;"])
    c.source.line(f"m /= {lines.count};")
    lines.each(["t += (v - m) * (v - m);"])
    c.write(lines.line, f"t / {number(max(0, lines.count - c['correction']), 'f8')}", "f8")
    lines.finish()


def _norm(c: CCall) -> None:
    order = float(c["order"])
    if math.isinf(in_range(order)):
        better = "fabs(v) > t" if order > 0 else "fabs(v) < t"
        first = "-1" if order > 0 else "INFINITY"
        return _reduced(first, f"t = isnan(t) ? t : ({better} || isnan(v)) ? fabs(v) : t;")(c)
    if order == 0:
        return _reduced("0", "t += v != 0;")(c)
    if order == 1:
        return _reduced("0", "t += fabs(v);")(c)
    if order == 2:
        return _reduced("0", "t += v * v;", "sqrt(t)")(c)
    power, root = number(order, "f8"), number(1 / order, "f8")
    return _reduced("0", f"t += pow(fabs(v), {power});", f"pow(t, {root})")(c)


def _largest(lines: _Lines) -> None:
    lines.c.source.line("double m = -INFINITY, t = 0;")
    lines.each(["m = (v > m || isnan(v)) ? v : m;"])


def _log_sum_exp(c: CCall) -> None:
    lines = _Lines(c, c["axes"])
    _largest(lines)
    c.source.line("m = isfinite(m) ? m : 0;")
    lines.each(["t += exp(v - m);"])
    c.write(lines.line, "log(t) + m", "f8")
    lines.finish()


def _softmax(log: bool) -> Emit:
    def emit(c: CCall) -> None:
        lines = _Lines(c, [c["axis"]])
        out = c.out[0]
        _largest(lines)
        lines.each(["t += exp(v - m);"])
        found = "v - m - log(t)" if log else "exp(v - m) / t"
        lines.each([f"{out.name}[p] = ({TYPES[out.dtype]})({found});"])
        lines.finish()

    return emit


def _cumsum(c: CCall) -> None:
    dtype, out = "i8" if c.dtype == "i8" else "f8", c.out[0]
    lines = _Lines(c, [c["axis"]])
    c.source.line(f"{TYPES[dtype]} t = 0;")
    lines.each(["t += v;", f"{out.name}[p] = ({TYPES[out.dtype]})t;"], dtype)
    lines.finish()


# Normalisation


def _batch_norm(c: CCall) -> None:
    out, rank = c.out[0], len(c.shape)
    places = [place for place in range(1, 5) if c.has(place)]
    operands = [(strides_of(c.shape), 0)]
    operands += [(channel_strides(c.known(p).shape, rank, c["axis"]), 0) for p in places]
    refs = {place: c.ref(place) for place in places}
    x = c.ref(0)
    depth, found = c.source.loops(c.shape, operands)
    at = {
        place: converted(f"{refs[place].name}[{index}]", refs[place].dtype, "f8")
        for place, index in zip(places, found[1:], strict=True)
    }
    value = converted(f"{x.name}[{found[0]}]", x.dtype, "f8")
    text = f"({value} - {at[1]}) / sqrt({at[2]} + {number(c['eps'], 'f8')})"
    text = f"{text} * {at[3]}" if 3 in at else text
    text = f"{text} + {at[4]}" if 4 in at else text
    c.write(found[0], text, "f8")
    assert out.shape == c.shape
    c.source.close(depth)


def _standardised(c: CCall, lines: _Lines, index: str, centred: bool = True) -> None:
    """Standardise a line, and scale and shift it by inputs 1 and 2 at ``index``."""
    out, count = c.out[0], lines.count
    c.source.line("double m = 0, t = 0;")
    if centred:
        lines.each(["m += v;"])
        c.source.line(f"m /= {count};")
    lines.each(["t += (v - m) * (v - m);"])
    c.source.line(f"t = sqrt(t / {count} + {number(c['eps'], 'f8')});")
    text = "(v - m) / t"
    text = f"{text} * {c.at(1, index, 'f8')}" if c.has(1) else text
    text = f"{text} + {c.at(2, index, 'f8')}" if c.has(2) else text
    lines.each([f"{out.name}[p] = ({TYPES[out.dtype]})({text});"])
    lines.finish()


def _layer_norm(c: CCall) -> None:
    for place in range(1, len(c.used)):  # before any loop is opened
        if c.has(place):
            c.ref(place)
    rank = len(c.shape)
    lines = _Lines(c, range(rank - c["axes"], rank))
    _standardised(c, lines, "j", centred=c.step.kind == "layer_norm")


def _group_norm(c: CCall) -> None:
    for place in range(1, len(c.used)):
        if c.has(place):
            c.ref(place)
    shape, groups = c.shape, c["groups"]
    pixels = max(1, math.prod(shape[1:]))
    # As (groups, numbers of a group), which is how they lie.
    value = c.known(0)
    c.used[0] = type(value)(
        (groups, math.prod(shape) // groups), value.dtype, value.batched, value.drawn
    )
    lines = _Lines(c, [1])
    _standardised(c, lines, f"p / {pixels}")


# Places


def _copied(c: CCall, sizes: Sequence[int], to: tuple, place: int, where: tuple) -> None:
    """Copy a part of an input into a part of the output."""
    ref, out = c.ref(place), c.out[0]
    depth, (into, at) = c.source.loops(sizes, [to, where])
    value = converted(f"{ref.name}[{at}]", ref.dtype, out.dtype)
    c.source.line(f"{out.name}[{into}] = {value};")
    c.source.close(depth)


def _permute(c: CCall) -> None:
    own, out = strides_of(c.shape), c.out[0].shape
    _copied(c, out, (strides_of(out), 0), 0, ([own[axis] for axis in c["axes"]], 0))


def _slice(c: CCall) -> None:
    own, out, axis = strides_of(c.shape), c.out[0].shape, c["axis"]
    start = own[axis] * c["start"]
    own[axis] *= c["step"]
    _copied(c, out, (strides_of(out), 0), 0, (own, start))


def _flip(c: CCall) -> None:
    own, start = strides_of(c.shape), 0
    for axis in c["axes"]:
        start += own[axis] * (c.shape[axis] - 1)
        own[axis] = -own[axis]
    _copied(c, c.shape, (strides_of(c.shape), 0), 0, (own, start))


def _expand(c: CCall) -> None:
    out = c.out[0].shape
    _copied(c, out, (strides_of(out), 0), 0, (aligned_strides(c.shape, out), 0))


def _reshape(c: CCall) -> None:
    _copied(c, c.shape, (strides_of(c.shape), 0), 0, (strides_of(c.shape), 0))


def _concat(c: CCall) -> None:
    own, start, axis = strides_of(c.out[0].shape), 0, c["axis"]
    for place in range(len(c.used)):
        shape = c.known(place).shape
        _copied(c, shape, (own, start), place, (strides_of(shape), 0))
        start += own[axis] * shape[axis]


def _pad(c: CCall) -> None:
    out, own = c.out[0], strides_of(c.shape)
    to = strides_of(out.shape)
    if c["mode"] == "constant":
        c.source.open(f"for (int32_t i = 0; i < {out.size}; ++i)")
        value = number(bool(c["value"]) if out.dtype == "b1" else in_range(c["value"]), out.dtype)
        c.source.line(f"{out.name}[i] = {value};")
        c.source.close()
        pairs = list(zip(c.shape, c["widths"], strict=True))
        sizes = [size - max(-low, 0) - max(-high, 0) for size, (low, high) in pairs]
        into = sum(s * max(low, 0) for s, (_, (low, _)) in zip(to, pairs, strict=True))
        at = sum(s * max(-low, 0) for s, (_, (low, _)) in zip(own, pairs, strict=True))
        return _copied(c, sizes, (to, into), 0, (own, at))
    x, terms = c.ref(0), []
    for axis, (size, pair) in enumerate(zip(c.shape, c["widths"], strict=True)):
        i = f"i{axis}"
        c.source.open(f"for (int32_t {i} = 0; {i} < {out.shape[axis]}; ++{i})")
        if pair != (0, 0):
            places = padded_places(size, pair, c["mode"])
            i = f"{c.source.table(places, 'n4', 'places')}[{i}]"
        terms.append(f"{own[axis]} * {i}")
    into = " + ".join(f"{stride} * i{axis}" for axis, stride in enumerate(to)) or "0"
    value = converted(f"{x.name}[{' + '.join(terms) or '0'}]", x.dtype, out.dtype)
    c.source.line(f"{out.name}[{into}] = {value};")
    return c.source.close(len(c.shape))


def _take(c: CCall) -> None:
    x, places, axis = c.ref(0), c.ref(1), c["axis"]
    before, size = math.prod(c.shape[:axis]), c.shape[axis]
    after, many, out = math.prod(c.shape[axis + 1 :]), places.size, c.out[0]
    c.source.open(f"for (int32_t j = 0; j < {many}; ++j)")
    c.source.line(f"const int64_t k = {c.at(1, 'j', 'i8')};")
    c.source.line(f"if (k < 0 || k >= {size}) return 1;")
    c.source.open(f"for (int32_t i = 0; i < {before}; ++i)")
    c.source.open(f"for (int32_t l = 0; l < {after}; ++l)")
    value = converted(f"{x.name}[(i * {size} + (int32_t)k) * {after} + l]", x.dtype, out.dtype)
    c.source.line(f"{out.name}[(i * {many} + j) * {after} + l] = {value};")
    c.source.close(3)


AXES: dict[str, Emit] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
    "cumsum": _cumsum,
    "sum": _reduced("0", "t += v;"),
    "mean": _reduced("0", "t += v;", "t / (double){n}"),
    "prod": _reduced("1", "t *= v;"),
    "variance": _variance,
    "max": _picked(">="),
    "min": _picked("<="),
    "norm": _norm,
    "log_sum_exp": _log_sum_exp,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "expand": _expand,
    "flip": _flip,
    "take": _take,
}

EMIT: dict[str, Emit] = {**PRODUCTS, **EACH, **AXES, **WINDOWS}
