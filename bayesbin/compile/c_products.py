"""Products in C: with weights that are packed signs or real numbers, of values, and over time."""

from __future__ import annotations

import math
from collections.abc import Callable

from bayesbin.compile.c_writer import (
    TYPES,
    CCall,
    Ref,
    aligned_strides,
    converted,
    number,
    strides_of,
)
from bayesbin.core.canonical import num_words

Emit = Callable[[CCall], None]


def _checked(c: CCall) -> None:
    if c.dtype not in ("f4", "f8"):
        raise ValueError(f"sums of type {c.dtype}")


def _as(c: CCall, place: int, dtype: str) -> Ref:
    """An input as an array of a type, in room of its own if it is of another one."""
    ref = c.ref(place)
    if ref.dtype == dtype:
        return ref
    made = c.source.buffer(dtype, ref.shape, "converted")
    value = converted(f"{ref.name}[i]", ref.dtype, dtype)
    c.source.line(f"for (int32_t i = 0; i < {ref.size}; ++i) {made.name}[i] = {value};")
    return made


def _add_bias(c: CCall, before: int, units: int, after: int) -> None:
    """Add numbers of units to sums (before, units, after), in the type of the sums."""
    if not c.has(2):
        return
    out, loops = c.out[0], (("r", before), ("n", units), ("p", after))
    bias = c.at(2, "n", c.dtype)
    for letter, size in loops:
        c.source.open(f"for (int32_t {letter} = 0; {letter} < {size}; ++{letter})")
    place = f"{out.name}[(r * {units} + n) * {after} + p]"
    c.source.line(f"{place} = {place} + {bias};")
    c.source.close(3)


def _write_sum(c: CCall, index: str, unit: str) -> None:
    """Write a sum t in double, with the bias of a unit, rounded once."""
    bias = f" + {converted(c.at(2, unit, c.dtype), c.dtype, 'f8')}" if c.has(2) else ""
    c.write(index, f"t{bias}", "f8")


def _linear(c: CCall) -> None:
    _checked(c)
    source, out = c.source, c.out[0]
    units, inputs = c.known(1).shape
    rows = math.prod(c.shape[:-1])
    if 1 in c.words:
        x, words = _as(c, 0, c.dtype), source.use(c.words[1])
        sums = source.helper(f"signed_sums_{c.dtype}")
        stride = num_words(inputs)
        source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
        source.line(
            f"{sums}({x.name} + r * {inputs}, {inputs}, {words.name}, {stride}, {units}, "
            f"{out.name} + r * {units}, 1);"
        )
        source.close()
        return _add_bias(c, rows, units, 1)
    for ref in c.refs():
        source.use(ref)
    source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
    source.open(f"for (int32_t n = 0; n < {units}; ++n)")
    source.line("double t = 0;")
    product = f"{c.at(0, f'r * {inputs} + k', 'f8')} * {c.at(1, f'n * {inputs} + k', 'f8')}"
    source.line(f"for (int32_t k = 0; k < {inputs}; ++k) t += {product};")
    _write_sum(c, f"r * {units} + n", "n")
    return source.close(2)


def _gather(c: CCall, x: Ref, column: Ref, channels: int) -> None:
    """Lay out the window at output o0, o1, ... of group g as a column, zeros for the padding."""
    source, window, sizes = c.source, c.known(1).shape[2:], c.shape[1:]
    own = strides_of(sizes)
    numbers = zip(c["stride"], c["padding"], c["dilation"], window, sizes, strict=True)
    source.line("int32_t k = 0;")
    source.open(f"for (int32_t ch = g * {channels}; ch < (g + 1) * {channels}; ++ch)")
    inside, terms = [], [f"ch * {math.prod(sizes)}"]
    for axis, (hop, (low, high), spread, wide, size) in enumerate(numbers):
        source.open(f"for (int32_t t{axis} = 0; t{axis} < {wide}; ++t{axis})")
        source.line(f"const int32_t y{axis} = o{axis} * {hop} + t{axis} * {spread} - {low};")
        if low or high:
            inside.append(f"y{axis} >= 0 && y{axis} < {size}")
        terms.append(f"y{axis} * {own[axis]}")
    value = converted(f"{x.name}[{' + '.join(terms)}]", x.dtype, column.dtype)
    value = f"({' && '.join(inside)}) ? {value} : 0" if inside else value
    source.line(f"{column.name}[k++] = {value};")
    source.close(1 + len(sizes))


def _conv(c: CCall) -> None:
    _checked(c)
    source, out, shape = c.source, c.out[0], c.known(1).shape
    groups, units, inputs = c["groups"], shape[0] // c["groups"], math.prod(shape[1:])
    places, own = out.shape[1:], strides_of(out.shape[1:])
    area, signs = math.prod(places), 1 in c.words
    x = c.ref(0)
    column = source.buffer(c.dtype if signs else "f8", (inputs,), "column")
    words = source.use(c.words[1]) if signs else None
    if not signs:
        c.ref(1)
        if c.has(2):
            c.ref(2)
    source.open(f"for (int32_t g = 0; g < {groups}; ++g)")
    for axis, size in enumerate(places):
        source.open(f"for (int32_t o{axis} = 0; o{axis} < {size}; ++o{axis})")
    source.line(
        "const int32_t p = " + " + ".join(f"o{axis} * {s}" for axis, s in enumerate(own)) + ";"
    )
    _gather(c, x, column, shape[1])
    if words is not None:
        stride, sums = num_words(inputs), source.helper(f"signed_sums_{c.dtype}")
        source.line(
            f"{sums}({column.name}, {inputs}, {words.name} + g * {units * stride}, {stride}, {units}, "
            f"{out.name} + g * {units * area} + p, {area});"
        )
        source.close(1 + len(places))
        return _add_bias(c, 1, shape[0], area)
    source.open(f"for (int32_t n = g * {units}; n < (g + 1) * {units}; ++n)")
    source.line("double t = 0;")
    product = f"{column.name}[l] * {c.at(1, f'n * {inputs} + l', 'f8')}"
    source.line(f"for (int32_t l = 0; l < {inputs}; ++l) t += {product};")
    _write_sum(c, f"n * {area} + p", "n")
    return source.close(2 + len(places))


def _conv_transpose(c: CCall) -> None:
    _checked(c)
    source, out, shape = c.source, c.out[0], c.known(1).shape
    groups, units, window = c["groups"], shape[1], shape[2:]
    per, area, taps = c.shape[0] // groups, math.prod(out.shape[1:]), math.prod(window)
    for place in range(len(c.used)):
        if c.has(place):
            c.ref(place)
    source.open(f"for (int32_t n = 0; n < {out.shape[0]}; ++n)")
    for axis, size in enumerate(out.shape[1:]):
        source.open(f"for (int32_t o{axis} = 0; o{axis} < {size}; ++o{axis})")
    source.line("double t = 0;")
    source.open(f"for (int32_t ch = n / {units} * {per}; ch < (n / {units} + 1) * {per}; ++ch)")
    numbers = zip(c["stride"], c["padding"], c["dilation"], window, c.shape[1:], strict=True)
    for axis, (hop, pad, spread, wide, size) in enumerate(numbers):
        source.open(f"for (int32_t t{axis} = 0; t{axis} < {wide}; ++t{axis})")
        source.line(f"const int32_t y{axis} = o{axis} + {pad} - t{axis} * {spread};")
        source.line(
            f"if (y{axis} < 0 || y{axis} % {hop} != 0 || y{axis} / {hop} >= {size}) continue;"
        )
    at = " + ".join(
        f"y{axis} / {hop} * {own}"
        for axis, (hop, own) in enumerate(zip(c["stride"], strides_of(c.shape[1:]), strict=True))
    )
    tap = " + ".join(f"t{axis} * {own}" for axis, own in enumerate(strides_of(window)))
    x = c.at(0, f"ch * {math.prod(c.shape[1:])} + {at}", "f8")
    weight = c.at(1, f"(ch * {units} + n % {units}) * {taps} + {tap}", "f8")
    source.line(f"t += {x} * {weight};")
    source.close(1 + len(window))
    place = " + ".join(f"o{axis} * {own}" for axis, own in enumerate(strides_of(out.shape[1:])))
    assert groups * units == out.shape[0]
    _write_sum(c, f"n * {area} + {place}", "n")
    source.close(1 + len(window))


def _matmul(c: CCall) -> None:
    source, out = c.source, c.out[0]
    a, b = c.known(0).shape, c.known(1).shape
    rows, inner, columns = a[-2], a[-1], b[-1]
    lead = out.shape[:-2]
    for place in (0, 1):
        c.ref(place)
    operands = [(_matrices(shape, lead), 0) for shape in (a, b, out.shape)]
    depth, (at_a, at_b, at) = source.loops(lead, operands)
    source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
    source.open(f"for (int32_t n = 0; n < {columns}; ++n)")
    dtype = "i8" if c.dtype == "i8" else "f8"
    source.line(f"{TYPES[dtype]} t = 0;")
    left = c.at(0, f"{at_a} + r * {inner} + k", dtype)
    right = c.at(1, f"{at_b} + k * {columns} + n", dtype)
    source.line(f"for (int32_t k = 0; k < {inner}; ++k) t += {left} * {right};")
    c.write(f"{at} + r * {columns} + n", "t", dtype)
    source.close(2 + depth)


def _matrices(shape: tuple[int, ...], lead: tuple[int, ...]) -> list[int]:
    """Strides from matrix to matrix."""
    size = shape[-2] * shape[-1]
    return [stride * size for stride in aligned_strides(shape[:-2], lead)]


def _attention(c: CCall) -> None:
    source, out = c.source, c.out[0]
    shapes = [c.known(place).shape for place in range(3)]
    (queries, width), keys, wide = shapes[0][-2:], shapes[1][-2], shapes[2][-1]
    lead = out.shape[:-2]
    for place in range(len(c.used)):
        if c.has(place):
            c.ref(place)
    scores = source.buffer("f8", (keys,), "scores")
    operands = [(_matrices(shape, lead), 0) for shape in (*shapes, out.shape)]
    mask = c.known(3) if c.has(3) else None
    if mask is not None:
        strides = aligned_strides(mask.shape, (*lead, queries, keys))
        operands.append((strides[:-2], 0))
    depth, places = source.loops(lead, operands)
    source.open(f"for (int32_t r = 0; r < {queries}; ++r)")
    source.line("double m = -INFINITY, t = 0;")
    source.open(f"for (int32_t k = 0; k < {keys}; ++k)")
    source.line("double s = 0;")
    query = c.at(0, f"{places[0]} + r * {width} + d", "f8")
    key = c.at(1, f"{places[1]} + k * {width} + d", "f8")
    source.line(f"for (int32_t d = 0; d < {width}; ++d) s += {query} * {key};")
    source.line(f"s *= {number(c['scale'], 'f8')};")
    if c["causal"]:
        source.line("if (k > r) s = -INFINITY;")
    if mask is not None:
        at = f"{places[4]} + r * {strides[-2]} + k * {strides[-1]}"
        if mask.dtype == "b1":
            source.line(f"if (!{c.at(3, at, 'b1')}) s = -INFINITY;")
        else:
            source.line(f"s += {c.at(3, at, 'f8')};")
    source.line("if (s > m || isnan(s)) m = s;")
    source.line(f"{scores.name}[k] = s;")
    source.close()
    source.line("const int seen = isnan(m) || m > -INFINITY;")
    source.open(f"for (int32_t k = 0; k < {keys}; ++k)")
    source.line(f"{scores.name}[k] = seen ? exp({scores.name}[k] - m) : 0;")
    source.line(f"t += {scores.name}[k];")
    source.close()
    source.open(f"for (int32_t n = 0; n < {wide}; ++n)")
    source.line("double s = 0;")
    value = c.at(2, f"{places[2]} + k * {wide} + n", "f8")
    weight = f"{scores.name}[k] / (seen ? t : 1)"
    source.line(f"for (int32_t k = 0; k < {keys}; ++k) s += {weight} * {value};")
    c.write(f"{places[3]} + r * {wide} + n", "s", "f8")
    source.close(2 + depth)


def _embedding(c: CCall) -> None:
    source, out = c.source, c.out[0]
    count, width = c.known(1).shape
    tokens, table = c.ref(0), c.ref(1)
    source.open(f"for (int32_t j = 0; j < {tokens.size}; ++j)")
    source.line(f"const int64_t k = {c.at(0, 'j', 'i8')};")
    source.line(f"if (k < 0 || k >= {count}) return 1;")
    value = converted(f"{table.name}[(int32_t)k * {width} + i]", table.dtype, out.dtype)
    source.line(f"for (int32_t i = 0; i < {width}; ++i) {out.name}[j * {width} + i] = {value};")
    source.close()


# Recurrent layers


def _lstm_cell(c: CCall, hidden: Ref, cell: Ref, gates: Ref, own: Ref, size: int) -> None:
    source, sigmoid = c.source, c.source.helper("sigmoid")
    a, b = gates.name, own.name
    for letter, place in zip("ifgo", range(4), strict=True):
        at = f"n + {place * size}" if place else "n"
        source.line(f"const double {letter} = {a}[{at}] + {b}[{at}];")
    source.line(f"{cell.name}[n] = {sigmoid}(f) * {cell.name}[n] + {sigmoid}(i) * tanh(g);")
    source.line(f"{hidden.name}[n] = {sigmoid}(o) * tanh({cell.name}[n]);")


def _gru_cell(c: CCall, hidden: Ref, cell: Ref, gates: Ref, own: Ref, size: int) -> None:
    source, sigmoid = c.source, c.source.helper("sigmoid")
    a, b, h = gates.name, own.name, hidden.name
    source.line(f"const double r = {sigmoid}({a}[n] + {b}[n]);")
    source.line(f"const double z = {sigmoid}({a}[n + {size}] + {b}[n + {size}]);")
    source.line(f"const double new = tanh({a}[n + {2 * size}] + r * {b}[n + {2 * size}]);")
    source.line(f"{h}[n] = (1 - z) * new + z * {h}[n];")


def _rnn_cell(c: CCall, hidden: Ref, cell: Ref, gates: Ref, own: Ref, size: int) -> None:
    total = f"{gates.name}[n] + {own.name}[n]"
    c.source.line(f"const double v = {total};")
    bent = "tanh(v)" if c["activation"] == "tanh" else "v < 0 ? 0 : v"
    c.source.line(f"{hidden.name}[n] = {bent};")


def _sums_into(c: CCall, into: Ref, weight: int, bias: int, x: str, inputs: int) -> None:
    """Gates from ``inputs`` numbers x of index k, with weights and a bias, into a buffer."""
    source = c.source
    source.open(f"for (int32_t n = 0; n < {into.size}; ++n)")
    source.line("double t = 0;")
    product = f"{x} * {c.at(weight, f'n * {inputs} + k', 'f8')}"
    source.line(f"for (int32_t k = 0; k < {inputs}; ++k) t += {product};")
    more = f" + {c.at(bias, 'n', 'f8')}" if c.has(bias) else ""
    source.line(f"{into.name}[n] = t{more};")
    source.close()


def _recurrent(
    cell: Callable[[CCall, Ref, Ref, Ref, Ref, int], None], states: int, gates: int
) -> Emit:
    def emit(c: CCall) -> None:
        source, first = c.source, 1 + states
        (times, inputs), size = c.shape, c.known(1).shape[0]
        for place in range(len(c.used)):
            if c.has(place):
                c.ref(place)
        state = [source.buffer("f8", (size,), "state") for _ in range(states)]
        given, own = (source.buffer("f8", (gates * size,), "gates") for _ in range(2))
        for place, ref in enumerate(state):
            value = c.at(1 + place, "n", "f8")
            source.line(f"for (int32_t n = 0; n < {size}; ++n) {ref.name}[n] = {value};")
        source.open(f"for (int32_t s = 0; s < {times}; ++s)")
        source.line(f"const int32_t time = {f'{times - 1} - s' if c['reverse'] else 's'};")
        _sums_into(c, given, first, first + 2, c.at(0, f"time * {inputs} + k", "f8"), inputs)
        _sums_into(c, own, first + 1, first + 3, f"{state[0].name}[k]", size)
        source.open(f"for (int32_t n = 0; n < {size}; ++n)")
        cell(c, state[0], state[-1], given, own, size)
        c.write(f"time * {size} + n", f"{state[0].name}[n]", "f8")
        source.close(2)
        source.open(f"for (int32_t n = 0; n < {size}; ++n)")
        for place, ref in enumerate(state):
            c.write("n", f"{ref.name}[n]", "f8", 1 + place)
        source.close()

    return emit


PRODUCTS: dict[str, Emit] = {
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "matmul": _matmul,
    "attention": _attention,
    "embedding": _embedding,
    "lstm": _recurrent(_lstm_cell, 2, 4),
    "gru": _recurrent(_gru_cell, 1, 3),
    "rnn": _recurrent(_rnn_cell, 1, 1),
}
