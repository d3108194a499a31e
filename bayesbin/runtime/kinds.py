"""The kinds of steps that a program is made of: inputs, attributes, shapes and work of each.

Shapes are those of one datum: the batch is the first axis of every value, is never named, and no step can
mix its rows. What a kind computes is said here in a line; :mod:`bayesbin.runtime.reference` says it in numpy.

A number among the attributes that is beyond the range of float32 stands for infinity: a bound that is none,
the order of a norm, what padding holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]
Attributes = Mapping[str, Any]
ShapeRule = Callable[[Attributes, Sequence[Shape]], list[Shape]]

# What an attribute may be; "pairs" are (before, after) for each axis.
_LARGEST_INT = 2**31 - 1


def _is_int(value: Any) -> bool:
    return type(value) is int and -_LARGEST_INT <= value <= _LARGEST_INT


def _is_ints(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 16 and all(map(_is_int, value))


def _is_pairs(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= 16
        and all(_is_ints(pair) and len(pair) == 2 for pair in value)
    )


_TYPES: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "ints": _is_ints,
    "pairs": _is_pairs,
    "number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "bool": lambda value: type(value) is bool,
}


@dataclass(frozen=True)
class Kind:
    """What a step of one kind may be.

    :param inputs: fewest and most inputs; those past the fewest may be absent, named "".
    :param attributes: name -> type ("int", "ints", "pairs", "number", "bool"), or the words allowed.
    :param shapes: the shapes of the outputs, from attributes and the shapes of the inputs.
    :param work: multiplications and additions for one datum, from attributes, shapes in and shapes out.
    """

    inputs: tuple[int, int]
    attributes: Mapping[str, str | tuple[str, ...]]
    shapes: ShapeRule
    work: Callable[[Attributes, Sequence[Shape], Sequence[Shape]], int] = field(
        default=lambda attributes, before, after: sum(map(math.prod, (*before, *after)))
    )


def checked_attributes(name: str, given: Attributes) -> None:
    """Whether a step has the attributes of its kind, all of their types.

    :raises ValueError: for an unknown kind, missing or foreign attributes, or one of another type.
    """
    if name not in KINDS:
        raise ValueError(f"expected a known kind of step, got {str(name)[:40]!r}.")
    wanted = KINDS[name].attributes
    if set(given) != set(wanted):
        raise ValueError(
            f"expected the attributes {', '.join(sorted(wanted)) or 'none'} of {name!r}, got "
            f"{', '.join(sorted(map(str, given))) or 'none'}."
        )
    for attribute, type_ in wanted.items():
        value = given[attribute]
        sound = value in type_ if isinstance(type_, tuple) else _TYPES[type_](value)
        if not sound:
            raise ValueError(
                f"expected {attribute} of {name!r} to be {type_}, got {str(value)[:60]!r}."
            )


# Rules for shapes


def _same(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    return [shapes[0]]


def broadcast(*shapes: Shape) -> Shape:
    """The shape of values that are aligned at their last axes, sizes of 1 being repeated.

    :raises ValueError: if they do not fit.
    """
    rank = max(map(len, shapes))
    out = [1] * rank
    for shape in shapes:
        for place, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                if out[place] not in (1, size):
                    raise ValueError(f"expected shapes that fit one another, got {shapes}.")
                out[place] = size
    return tuple(out)


def _elementwise(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    return [broadcast(*shapes)]


def _axis(axis: int, shape: Shape) -> int:
    if not 0 <= axis < len(shape):
        raise ValueError(f"expected an axis of {shape}, got {axis}.")
    return axis


def _axes(axes: Sequence[int], shape: Shape) -> tuple[int, ...]:
    if len(set(axes)) != len(axes):
        raise ValueError(f"expected different axes, got {axes}.")
    return tuple(_axis(axis, shape) for axis in axes)


def _per_channel(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    """x and some numbers, each one for all or one for each channel."""
    shape = shapes[0]
    if shape or attributes["axis"]:
        channels = shape[_axis(attributes["axis"], shape)]
    else:
        channels = 1
    for other in shapes[1:]:
        if other not in ((), (channels,)):
            raise ValueError(f"expected a number for each of {channels} channels, got {other}.")
    return [shape]


def _linear(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x, weight = shapes[:2]
    if len(weight) != 2 or not x or x[-1] != weight[1]:
        raise ValueError(f"expected weights (units, {x[-1] if x else 0}), got {weight}.")
    if len(shapes) > 2 and shapes[2] != weight[:1]:
        raise ValueError(f"expected a bias of {weight[:1]}, got {shapes[2]}.")
    return [(*x[:-1], weight[0])]


def window_sizes(
    sizes: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    ceil: bool = False,
) -> tuple[int, ...]:
    """How many places a window has along each axis, as torch counts them.

    :raises ValueError: for numbers out of range, or a window that does not fit.
    """
    if not len(sizes) == len(window) == len(stride) == len(padding) == len(dilation):
        raise ValueError(f"expected numbers for {len(sizes)} axes of a window.")
    found = []
    for size, wide, hop, (low, high), spread in zip(
        sizes, window, stride, padding, dilation, strict=True
    ):
        if min(wide, hop, spread) < 1 or min(low, high) < 0:
            raise ValueError("expected sizes, strides and dilations of at least 1, padding of 0.")
        room = size + low + high - (spread * (wide - 1) + 1)
        if room < 0:
            raise ValueError(f"expected a window that fits {tuple(sizes)}, got {tuple(window)}.")
        count = room // hop + 1
        if ceil and room % hop and count * hop < size + low:
            count += 1  # the last window begins inside the image or its padding before it
        found.append(count)
    return tuple(found)


def _groups(attributes: Attributes, channels: int, units: int) -> int:
    groups = attributes["groups"]
    if groups < 1 or channels % groups or units % groups:
        raise ValueError(f"expected groups that divide {channels} and {units}, got {groups}.")
    return groups


def _convolution(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x, weight = shapes[:2]
    if len(weight) not in (3, 4, 5) or len(x) != len(weight) - 1:
        raise ValueError(f"expected images of {len(weight) - 2} axes, got {x} and {weight}.")
    groups = _groups(attributes, x[0], weight[0])
    if weight[1] * groups != x[0]:
        raise ValueError(f"expected weights for {x[0] // groups} channels, got {weight[1]}.")
    if len(shapes) > 2 and shapes[2] != weight[:1]:
        raise ValueError(f"expected a bias of {weight[:1]}, got {shapes[2]}.")
    places = window_sizes(
        x[1:], weight[2:], attributes["stride"], attributes["padding"], attributes["dilation"]
    )
    return [(weight[0], *places)]


def _transposed(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x, weight = shapes[:2]
    if len(weight) not in (3, 4, 5) or len(x) != len(weight) - 1 or weight[0] != x[0]:
        raise ValueError(f"expected weights for images {x}, got {weight}.")
    units = weight[1] * _groups(attributes, x[0], x[0])
    if len(shapes) > 2 and shapes[2] != (units,):
        raise ValueError(f"expected a bias of {(units,)}, got {shapes[2]}.")
    names = ("stride", "padding", "output_padding", "dilation")
    numbers = [attributes[name] for name in names]
    if any(len(each) != len(x) - 1 for each in numbers):
        raise ValueError(f"expected numbers for {len(x) - 1} axes.")
    places = []
    for size, wide, hop, pad, more, spread in zip(x[1:], weight[2:], *numbers, strict=True):
        if min(hop, spread) < 1 or min(pad, more) < 0 or more >= max(hop, spread):
            raise ValueError("expected a stride above the padding of outputs, none negative.")
        places.append((size - 1) * hop - 2 * pad + spread * (wide - 1) + more + 1)
    if min(places) < 1:
        raise ValueError(f"expected outputs of at least 1, got {places}.")
    return [(units, *places)]


def _pool(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x = shapes[0]
    if len(x) < 2:
        raise ValueError(f"expected images to pool, got {x}.")
    size, padding = attributes["size"], tuple((each, each) for each in attributes["padding"])
    dilation = attributes.get("dilation", (1,) * (len(x) - 1))
    if any(2 * pad > wide for (pad, _), wide in zip(padding, size, strict=False)):
        raise ValueError("expected a padding of at most half the size of a pool.")
    places = window_sizes(x[1:], size, attributes["stride"], padding, dilation, attributes["ceil"])
    return [(x[0], *places)]


def _adaptive(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x, size = shapes[0], attributes["size"]
    if len(x) != len(size) + 1 or min(size, default=0) < 1:
        raise ValueError(f"expected a size of at least 1 for each axis of {x[1:]}, got {size}.")
    return [(x[0], *size)]


def _resized(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    return _adaptive(attributes, shapes)


def _reduced(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    axes = _axes(attributes["axes"], shapes[0])
    if not axes:
        raise ValueError("expected at least one axis to reduce.")
    keep = attributes["keep"]
    return [
        tuple(
            1 if place in axes else size
            for place, size in enumerate(shapes[0])
            if keep or place not in axes
        )
    ]


def _along(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    _axis(attributes["axis"], shapes[0])
    return [shapes[0]]


def _last_axes(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    """x, and a weight and a bias of its last axes."""
    x, count = shapes[0], attributes["axes"]
    if not 1 <= count <= len(x):
        raise ValueError(f"expected between 1 and {len(x)} axes, got {count}.")
    for other in shapes[1:]:
        if other != x[len(x) - count :]:
            raise ValueError(f"expected numbers of shape {x[len(x) - count :]}, got {other}.")
    return [x]


def _grouped(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x = shapes[0]
    if not x or attributes["groups"] < 1 or x[0] % attributes["groups"]:
        raise ValueError(f"expected groups that divide the channels of {x}.")
    if any(other != x[:1] for other in shapes[1:]):
        raise ValueError(f"expected numbers of shape {x[:1]}, got {shapes[1:]}.")
    return [x]


def _reshaped(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    shape = attributes["shape"]
    if min(shape, default=1) < 0 or math.prod(shape) != math.prod(shapes[0]):
        raise ValueError(f"expected a shape of {math.prod(shapes[0])} values, got {shape}.")
    return [shape]


def _permuted(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    axes = _axes(attributes["axes"], shapes[0])
    if len(axes) != len(shapes[0]):
        raise ValueError(f"expected an order of all axes of {shapes[0]}, got {axes}.")
    return [tuple(shapes[0][axis] for axis in axes)]


def _sliced(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    axis = _axis(attributes["axis"], shapes[0])
    start, stop, step = (attributes[name] for name in ("start", "stop", "step"))
    if not 0 <= start <= stop <= shapes[0][axis] or step < 1:
        raise ValueError(f"expected a slice of {shapes[0][axis]}, got {start}:{stop}:{step}.")
    size = -(-(stop - start) // step)
    return [(*shapes[0][:axis], size, *shapes[0][axis + 1 :])]


def _concatenated(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    axis, first = attributes["axis"], shapes[0]
    _axis(axis, first)
    for other in shapes:
        if len(other) != len(first) or (
            other[:axis] + other[axis + 1 :] != first[:axis] + first[axis + 1 :]
        ):
            raise ValueError(f"expected shapes that differ along axis {axis} alone, got {shapes}.")
    return [(*first[:axis], sum(other[axis] for other in shapes), *first[axis + 1 :])]


def _padded(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    widths, mode = attributes["widths"], attributes["mode"]
    if len(widths) != len(shapes[0]):
        raise ValueError(f"expected widths for each axis of {shapes[0]}, got {widths}.")
    out = []
    for size, (low, high) in zip(shapes[0], widths, strict=True):
        if mode == "constant":
            sound = size + low + high >= 0 and size + min(low, 0) + min(high, 0) >= 0
        else:
            most = {"reflect": size - 1, "circular": size}.get(mode, 2**31)
            sound = 0 <= low <= most and 0 <= high <= most and (size > 0 or low == high == 0)
        if not sound:
            raise ValueError(f"expected widths that fit {shapes[0]}, got {widths}.")
        out.append(size + low + high)
    return [tuple(out)]


def _expanded(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    shape = attributes["shape"]
    if min(shape, default=1) < 0 or broadcast(shapes[0], shape) != shape:
        raise ValueError(f"expected a shape to repeat {shapes[0]} to, got {shape}.")
    return [shape]


def _flipped(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    _axes(attributes["axes"], shapes[0])
    return [shapes[0]]


def _matmul(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    a, b = shapes
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"expected matrices that fit, got {a} and {b}.")
    return [(*broadcast(a[:-2], b[:-2]), a[-2], b[-1])]


def _attention(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    query, key, value = shapes[:3]
    if min(map(len, (query, key, value))) < 2 or query[-1] != key[-1] or key[-2] != value[-2]:
        raise ValueError(f"expected queries, keys and values that fit, got {shapes[:3]}.")
    many = broadcast(query[:-2], key[:-2], value[:-2])
    if len(shapes) > 3 and broadcast((*many, query[-2], key[-2]), shapes[3]) != (
        *many,
        query[-2],
        key[-2],
    ):
        raise ValueError(f"expected a mask of {(*many, query[-2], key[-2])}, got {shapes[3]}.")
    return [(*many, query[-2], value[-1])]


def _embedding(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    tokens, table = shapes
    if len(table) != 2 or not table[0]:
        raise ValueError(f"expected a table (tokens, width), got {table}.")
    return [(*tokens, table[1])]


def _taken(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
    x, places = shapes
    axis = _axis(attributes["axis"], x)
    return [(*x[:axis], *places, *x[axis + 1 :])]


def _recurrent(gates: int) -> ShapeRule:
    """x (T, I), h (H,), [c (H,)], weights (gates H, I) and (gates H, H), and two biases (gates H,)."""
    state = 2 if gates == 4 else 1

    def rule(attributes: Attributes, shapes: Sequence[Shape]) -> list[Shape]:
        x, hidden, rest = shapes[0], shapes[1], shapes[1 + state :]
        if len(x) != 2 or len(hidden) != 1 or shapes[state] != hidden:
            raise ValueError(f"expected a sequence (T, I) and a state (H,), got {shapes[:2]}.")
        size = gates * hidden[0]
        if tuple(rest[:2]) != ((size, x[1]), (size, hidden[0])):
            raise ValueError(f"expected weights of {size} units, got {rest[:2]}.")
        if any(bias != (size,) for bias in rest[2:]):
            raise ValueError(f"expected biases of {(size,)}, got {rest[2:]}.")
        return [(x[0], hidden[0]), *[hidden] * state]

    return rule


# Work


def _products(attributes: Attributes, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    """Of linear maps and convolutions: each output has the inputs of one unit."""
    return math.prod(after[0]) * math.prod(before[1][1:])


def _transposed_work(
    attributes: Attributes, before: Sequence[Shape], after: Sequence[Shape]
) -> int:
    return math.prod(before[0]) * math.prod(before[1][1:])


def _window_work(attributes: Attributes, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    return math.prod(after[0]) * math.prod(attributes["size"])


def _matmul_work(attributes: Attributes, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    return math.prod(after[0]) * before[0][-1]


def _attention_work(attributes: Attributes, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    return 2 * math.prod(after[0]) * before[1][-2] + math.prod(after[0]) * before[0][-1]


def _recurrent_work(attributes: Attributes, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    return before[0][0] * sum(math.prod(shape) for shape in before[1:])


_WINDOW: dict[str, str | tuple[str, ...]] = {
    "size": "ints",
    "stride": "ints",
    "padding": "ints",
    "ceil": "bool",
}
_CONV: dict[str, str | tuple[str, ...]] = {
    "stride": "ints",
    "padding": "pairs",
    "dilation": "ints",
    "groups": "int",
}
_REDUCE: dict[str, str | tuple[str, ...]] = {"axes": "ints", "keep": "bool"}


def _unary(**attributes: str | tuple[str, ...]) -> Kind:
    return Kind((1, 1), attributes, _same)


def _binary() -> Kind:
    return Kind((2, 2), {}, _elementwise)


KINDS: dict[str, Kind] = {
    # Products with weights: x, weights (a site, a constant or a value without a batch), a bias
    "linear": Kind((2, 3), {}, _linear, _products),
    "conv": Kind((2, 3), _CONV, _convolution, _products),
    "conv_transpose": Kind(
        (2, 3),
        {name: "ints" for name in ("stride", "padding", "output_padding", "dilation")}
        | {"groups": "int"},
        _transposed,
        _transposed_work,
    ),
    "matmul": Kind((2, 2), {}, _matmul, _matmul_work),
    # softmax(scale q k^T + mask) v; a mask of booleans says which keys are seen
    "attention": Kind((3, 4), {"scale": "number", "causal": "bool"}, _attention, _attention_work),
    "embedding": Kind((2, 2), {}, _embedding),  # rows of a table, by whole numbers
    "lstm": Kind((5, 7), {"reverse": "bool"}, _recurrent(4), _recurrent_work),
    "gru": Kind((4, 6), {"reverse": "bool"}, _recurrent(3), _recurrent_work),
    "rnn": Kind(
        (4, 6), {"reverse": "bool", "activation": ("tanh", "relu")}, _recurrent(1), _recurrent_work
    ),
    # Normalisation
    "affine": Kind((3, 3), {"axis": "int"}, _per_channel),  # x, slope, shift: slope x + shift
    # x, mean, variance, weight, bias: weight (x - mean) / sqrt(variance + eps) + bias
    "batch_norm": Kind((3, 5), {"axis": "int", "eps": "number"}, _per_channel),
    "layer_norm": Kind((1, 3), {"axes": "int", "eps": "number"}, _last_axes),  # the last axes
    "rms_norm": Kind((1, 2), {"axes": "int", "eps": "number"}, _last_axes),
    "group_norm": Kind((1, 3), {"groups": "int", "eps": "number"}, _grouped),
    "softmax": Kind((1, 1), {"axis": "int"}, _along),
    "log_softmax": Kind((1, 1), {"axis": "int"}, _along),
    "cumsum": Kind((1, 1), {"axis": "int"}, _along),
    # Decisions, always in float64: +1 where x >= 0; x, t, d: +1 where d (x - t) >= 0; else -1
    "sign": _unary(),
    "threshold": Kind((3, 3), {"axis": "int"}, _per_channel),
    # One number each
    "relu": _unary(),
    "clamp": _unary(low="number", high="number"),
    "tanh": _unary(),
    "leaky_relu": _unary(slope="number"),
    "prelu": Kind((2, 2), {"axis": "int"}, _per_channel),  # x, slopes
    "elu": _unary(alpha="number", scale="number", input_scale="number"),
    "gelu": _unary(approximate=("none", "tanh")),
    "silu": _unary(),
    "mish": _unary(),
    "hardsigmoid": _unary(),
    "hardswish": _unary(),
    "sigmoid": _unary(),
    "log_sigmoid": _unary(),
    "softplus": _unary(beta="number", threshold="number"),
    "softsign": _unary(),
    "hardshrink": _unary(bound="number"),
    "softshrink": _unary(bound="number"),
    "exp": _unary(),
    "log": _unary(),
    "sqrt": _unary(),
    "rsqrt": _unary(),
    "reciprocal": _unary(),
    "abs": _unary(),
    "neg": _unary(),
    "sin": _unary(),
    "cos": _unary(),
    "erf": _unary(),
    "floor": _unary(),
    "round": _unary(),
    "logical_not": _unary(),
    "cast": _unary(),  # to the type of the output
    # Two numbers each
    "add": _binary(),
    "sub": _binary(),
    "mul": _binary(),
    "div": _binary(),
    "pow": _binary(),
    "maximum": _binary(),
    "minimum": _binary(),
    "greater": _binary(),
    "greater_equal": _binary(),
    "equal": _binary(),
    "logical_and": _binary(),
    "logical_or": _binary(),
    "where": Kind((3, 3), {}, _elementwise),  # condition, then, else
    # Over axes
    "sum": Kind((1, 1), _REDUCE, _reduced),
    "mean": Kind((1, 1), _REDUCE, _reduced),
    "variance": Kind((1, 1), _REDUCE | {"correction": "int"}, _reduced),
    "max": Kind((1, 1), _REDUCE, _reduced),
    "min": Kind((1, 1), _REDUCE, _reduced),
    "prod": Kind((1, 1), _REDUCE, _reduced),
    "norm": Kind((1, 1), _REDUCE | {"order": "number"}, _reduced),  # order 0: how many are not 0
    "log_sum_exp": Kind((1, 1), _REDUCE, _reduced),
    # Over windows of images (channels, ...)
    "max_pool": Kind((1, 1), _WINDOW | {"dilation": "ints"}, _pool, _window_work),
    # divisor 0: the number of values, those of the padding among them where count_padding says so
    "avg_pool": Kind(
        (1, 1), _WINDOW | {"count_padding": "bool", "divisor": "int"}, _pool, _window_work
    ),
    "adaptive_max_pool": Kind((1, 1), {"size": "ints"}, _adaptive),
    "adaptive_avg_pool": Kind((1, 1), {"size": "ints"}, _adaptive),
    # nearest: as torch finds it, at floor(i (in / out)) computed in float32
    "resize": Kind(
        (1, 1),
        {"size": "ints", "mode": ("nearest", "linear"), "align_corners": "bool"},
        _resized,
    ),
    # Places
    "reshape": Kind((1, 1), {"shape": "ints"}, _reshaped),
    "permute": Kind((1, 1), {"axes": "ints"}, _permuted),
    "slice": Kind((1, 1), {a: "int" for a in ("axis", "start", "stop", "step")}, _sliced),
    "concat": Kind((1, 256), {"axis": "int"}, _concatenated),
    "pad": Kind(
        (1, 1),
        {
            "widths": "pairs",
            "mode": ("constant", "reflect", "replicate", "circular"),
            "value": "number",
        },
        _padded,
    ),
    "expand": Kind((1, 1), {"shape": "ints"}, _expanded),
    "flip": Kind((1, 1), {"axes": "ints"}, _flipped),
    "take": Kind((2, 2), {"axis": "int"}, _taken),  # by whole numbers, a constant
}
