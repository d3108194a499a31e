"""What each kind of step is in ONNX: one table, from a kind to the nodes that compute it.

Kinds are written so that they run in float64 too, in which some operators (Conv, AveragePool, Erf) have
no kernels in common runtimes: windows are then gathered by their places and multiplied as matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bayesbin.compile.onnx_graph import Graph, OnnxCall
from bayesbin.compile.windows import (
    adaptive_places,
    conv_places,
    linear_places,
    padded_places,
    pool_counts,
    pool_places,
    transposed_places,
)
from bayesbin.runtime.kinds import window_sizes
from bayesbin.runtime.reference_elementwise import in_range
from bayesbin.runtime.reference_windows import nearest

Emit = Callable[[OnnxCall], list[str]]

# Products


def _linear(c: OnnxCall) -> list[str]:
    weight, units = c.plain(1), c.known(1).shape[0]
    bias = [c.plain(2)] if c.has(2) else []
    if len(c.shape) == 1:
        return [c("Gemm", c.x, weight, *bias, transB=1)]
    rows = c.reshape(c.x, [-1, c.shape[-1]])
    return [c.reshape(c("Gemm", rows, weight, *bias, transB=1), [-1, *c.shape[:-1], units])]


def gathered(c: OnnxCall, places: Sequence[np.ndarray], fill: float) -> str:
    """Windows of an image (B, C, ...): (B, C, o1, k1, o2, k2, ...), outputs and places of the window.

    :param places: for each axis (o, k): which value it is; the size of the axis stands for ``fill``.
    """
    x, sizes = c.x, c.shape[1:]
    beyond = [int((place == size).any()) for place, size in zip(places, sizes, strict=True)]
    if any(beyond):
        x = c("Pad", x, c.whole([0] * (4 + len(sizes)) + beyond), c.number(fill))
    for axis, place in enumerate(places):
        x = c("Gather", x, c.whole(place), axis=2 + 2 * axis)
    return x


def _by_windows(c: OnnxCall, places: Sequence[np.ndarray], weight: str, groups: int) -> str:
    """Products of windows and weights (groups, K, units), K in order (channels, window)."""
    channels, axes = c.shape[0], len(places)
    outs, taps = [len(p) for p in places], [p.shape[1] for p in places]
    x = gathered(c, places, 0.0)
    pairs = [size for pair in zip(outs, taps, strict=True) for size in pair]
    x = c.reshape(x, [0, groups, channels // groups, *pairs])
    at, within = [3 + 2 * a for a in range(axes)], [4 + 2 * a for a in range(axes)]
    x = c("Transpose", x, perm=[0, 1, *at, 2, *within])
    x = c.reshape(x, [0, groups, math.prod(outs), channels // groups * math.prod(taps)])
    x = c("Transpose", c("MatMul", x, weight), perm=[0, 1, 3, 2])
    return c.reshape(x, [0, *c.out[0].shape])


def _with_bias(c: OnnxCall, out: str) -> list[str]:
    if not c.has(2):
        return [out]
    return [c("Add", out, c.reshape(c.plain(2), [-1, *[1] * (len(c.shape) - 1)]))]


def _conv(c: OnnxCall) -> list[str]:
    weight, shape, groups = c.plain(1), c.known(1).shape, c["groups"]
    if c.dtype == "f4":
        bias = [c.plain(2)] if c.has(2) else []
        out = c(
            "Conv",
            c.x,
            weight,
            *bias,
            strides=c["stride"],
            dilations=c["dilation"],
            pads=[low for low, _ in c["padding"]] + [high for _, high in c["padding"]],
            group=groups,
        )
        return [out]
    inputs = math.prod(shape[1:])
    weight = c.reshape(weight, [groups, shape[0] // groups, inputs])
    weight = c("Transpose", weight, perm=[0, 2, 1])
    places = conv_places(c.shape[1:], shape[2:], c.step.attributes)
    return _with_bias(c, _by_windows(c, places, weight, groups))


def _conv_transpose(c: OnnxCall) -> list[str]:
    weight, shape, groups = c.plain(1), c.known(1).shape, c["groups"]
    if c.dtype == "f4":
        bias = [c.plain(2)] if c.has(2) else []
        out = c(
            "ConvTranspose",
            c.x,
            weight,
            *bias,
            strides=c["stride"],
            dilations=c["dilation"],
            pads=2 * list(c["padding"]),
            output_padding=c["output_padding"],
            group=groups,
        )
        return [out]
    per, units, taps = shape[0] // groups, shape[1], math.prod(shape[2:])
    weight = c.reshape(weight, [groups, per, units, taps])
    weight = c("Transpose", weight, perm=[0, 1, 3, 2])
    weight = c.reshape(weight, [groups, per * taps, units])
    places = transposed_places(c.shape[1:], c.out[0].shape[1:], shape[2:], c.step.attributes)
    return _with_bias(c, _by_windows(c, places, weight, groups))


def _matmul(c: OnnxCall) -> list[str]:
    rank = max(len(c.known(place).shape) for place in (0, 1))
    return [c("MatMul", c.aligned(0, rank), c.aligned(1, rank))]


def _attention(c: OnnxCall) -> list[str]:
    rank = max(len(c.known(place).shape) for place in range(3))
    query, key, value = (c.aligned(place, rank) for place in range(3))
    axes = [*range(rank - 1), rank, rank - 1]
    # A number for each feature: with one for all, onnxruntime rounds it to float32, see _binary.
    query = c("Mul", query, c.number(np.full(c.known(0).shape[-1], c["scale"])))
    scores = c("MatMul", query, c("Transpose", key, perm=axes))
    if c["causal"]:
        sizes = c.known(0).shape[-2], c.known(1).shape[-2]
        seen = c.graph.constant(np.tril(np.ones(sizes, dtype=bool)))
        scores = c("Where", seen, scores, c.number(-math.inf))
    if c.has(3) and c.known(3).dtype == "b1":
        seen = c.graph.cast(c.aligned(3, rank), "b1")
        scores = c("Where", seen, scores, c.number(-math.inf))
    elif c.has(3):
        scores = c("Add", scores, c.aligned(3, rank))
    weights = c("Softmax", scores, axis=-1)
    if c.has(3):  # a query that sees no key has zeros
        largest = c.reduce("ReduceMax", scores, [-1])
        unseen = c("Equal", largest, c.number(-math.inf))
        weights = c("Where", unseen, c.number(0), weights)
    return [c("MatMul", weights, value)]


def _embedding(c: OnnxCall) -> list[str]:
    return [c("Gather", c.plain(1), c.x, axis=0)]


# Recurrent layers: the products with the inputs in one go, the rest in a Scan over time


def _lstm_cell(c: OnnxCall, g: Graph, gates: str, state: list[str], product: str) -> list[str]:
    hidden = c.known(1).shape[0]
    parts = g.nodes_of("Split", [g.node("Add", gates, product), c.whole([hidden] * 4)], 4, axis=1)
    i, f, o = (g.node("Sigmoid", parts[place]) for place in (0, 1, 3))
    kept = g.node("Mul", f, state[1])
    cell = g.node("Add", kept, g.node("Mul", i, g.node("Tanh", parts[2])))
    return [g.node("Mul", o, g.node("Tanh", cell)), cell]


def _gru_cell(c: OnnxCall, g: Graph, gates: str, state: list[str], product: str) -> list[str]:
    thirds = c.whole([c.known(1).shape[0]] * 3)
    mine = g.nodes_of("Split", [gates, thirds], 3, axis=1)
    theirs = g.nodes_of("Split", [product, thirds], 3, axis=1)
    reset, update = (
        g.node("Sigmoid", g.node("Add", mine[place], theirs[place])) for place in (0, 1)
    )
    new = g.node("Tanh", g.node("Add", mine[2], g.node("Mul", reset, theirs[2])))
    old = g.node("Mul", update, g.node("Sub", state[0], new))
    return [g.node("Add", new, old)]


def _rnn_cell(c: OnnxCall, g: Graph, gates: str, state: list[str], product: str) -> list[str]:
    total = g.node("Add", gates, product)
    if c["activation"] == "tanh":
        return [g.node("Tanh", total)]
    return [g.node("Max", total, c.number(0))]


def _recurrent(
    cell: Callable[[OnnxCall, Graph, str, list[str], str], list[str]], states: int
) -> Emit:
    def emit(c: OnnxCall) -> list[str]:
        first, size = 1 + states, c.known(1).shape[0]
        gates = c("MatMul", c.x, c("Transpose", c.plain(first), perm=[1, 0]))
        if c.has(first + 2):
            gates = c("Add", gates, c.plain(first + 2))
        batch = c("Shape", gates, start=0, end=1)
        shape = c("Concat", batch, c.whole([size]), axis=0)
        starts = [c("Expand", c.names[1 + place], shape) for place in range(states)]
        weight = c("Transpose", c.plain(first + 1), perm=[1, 0])
        bias = c.plain(first + 3) if c.has(first + 3) else ""

        inner = c.graph.inside()
        state = [inner.fresh("state") for _ in range(states)]
        now = inner.fresh("gates")
        product = inner.node("MatMul", state[0], weight)
        if bias:
            product = inner.node("Add", product, bias)
        after = cell(c, inner, now, state, product)
        out = inner.node("Identity", after[0])
        helper = c.graph.shared.onnx.helper
        body = helper.make_graph(
            inner.nodes,
            c.graph.fresh("time"),
            [inner.info(name, c.dtype, [None, None]) for name in (*state, now)],
            [inner.info(name, c.dtype, [None, None]) for name in (*after, out)],
        )
        backwards = int(c["reverse"])
        found = c.graph.nodes_of(
            "Scan",
            [*starts, gates],
            states + 1,
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
            scan_input_directions=[backwards],
            scan_output_directions=[backwards],
        )
        return [found[-1], *found[:-1]]

    return emit


# Normalisation


def _affine(c: OnnxCall) -> list[str]:
    return [c("Add", c("Mul", c.x, c.per_channel(1)), c.per_channel(2))]


def _scaled(c: OnnxCall, x: str, weight: str, bias: str) -> str:
    """``x``, times ``weight`` and plus ``bias`` where they are there."""
    if weight:
        x = c("Mul", x, weight)
    return c("Add", x, bias) if bias else x


def _batch_norm(c: OnnxCall) -> list[str]:
    deviation = c("Sqrt", c("Add", c.per_channel(2), c.number(c["eps"])))
    x = c("Div", c("Sub", c.x, c.per_channel(1)), deviation)
    weight, bias = (c.per_channel(place) if c.has(place) else "" for place in (3, 4))
    return [_scaled(c, x, weight, bias)]


def _standard(c: OnnxCall, x: str, axes: Sequence[int]) -> str:
    """(x - mean) / sqrt(variance + eps)."""
    x = c("Sub", x, c.reduce("ReduceMean", x, axes))
    variance = c.reduce("ReduceMean", c("Mul", x, x), axes)
    return c("Div", x, c("Sqrt", c("Add", variance, c.number(c["eps"]))))


def _layer_norm(c: OnnxCall) -> list[str]:
    count = c["axes"]
    if c.dtype != "f4":  # eps as an attribute would be float32
        weight, bias = (c.plain(place) if c.has(place) else "" for place in (1, 2))
        return [_scaled(c, _standard(c, c.x, range(-count, 0)), weight, bias)]
    weight = c.plain(1) if c.has(1) else c.number(np.ones(c.shape[len(c.shape) - count :]))
    bias = [c.plain(2)] if c.has(2) else []
    return [c("LayerNormalization", c.x, weight, *bias, axis=-count, epsilon=float(c["eps"]))]


def _rms_norm(c: OnnxCall) -> list[str]:
    axes = list(range(-c["axes"], 0))
    square = c.reduce("ReduceMean", c("Mul", c.x, c.x), axes)
    x = c("Div", c.x, c("Sqrt", c("Add", square, c.number(c["eps"]))))
    return [_scaled(c, x, c.plain(1) if c.has(1) else "", "")]


def _group_norm(c: OnnxCall) -> list[str]:
    x = _standard(c, c.reshape(c.x, [0, c["groups"], -1]), [2])
    x = c.reshape(x, [0, *c.shape])
    weight, bias = (c.per_channel(place, 0) if c.has(place) else "" for place in (1, 2))
    return [_scaled(c, x, weight, bias)]


def _along(kind: str) -> Emit:
    return lambda c: [c(kind, c.x, axis=c["axis"] + 1)]


def _cumsum(c: OnnxCall) -> list[str]:
    return [c("CumSum", c.x, c.whole(c["axis"] + 1))]


# Decisions: the inputs are in float64


def _plus_or_minus(c: OnnxCall, decided: str) -> list[str]:
    dtype = {"f4": np.float32, "f8": np.float64, "i8": np.int64}[c.step.dtype]
    plus, minus = (c.graph.constant(np.asarray(n, dtype=dtype)) for n in (1, -1))
    return [c("Where", decided, plus, minus)]


def _sign(c: OnnxCall) -> list[str]:
    return _plus_or_minus(c, c("GreaterOrEqual", c.x, c.number(0)))


def _threshold(c: OnnxCall) -> list[str]:
    at, slope, zero = c.per_channel(1), c.per_channel(2), c.number(0)
    over = c("And", c("GreaterOrEqual", slope, zero), c("GreaterOrEqual", c.x, at))
    under = c("And", c("LessOrEqual", slope, zero), c("LessOrEqual", c.x, at))
    return _plus_or_minus(c, c("Or", over, under))


# One number each


def _unary(kind: str) -> Emit:
    return lambda c: [c(kind, c.x)]


def _whole(kind: str) -> Emit:
    """What leaves whole numbers as they are."""
    return lambda c: [c("Identity" if c.dtype == "i8" else kind, c.x)]


def _relu(c: OnnxCall) -> list[str]:
    return [c("Relu", c.x) if c.dtype != "i8" else c("Max", c.x, c.number(0))]


def _clamp(c: OnnxCall) -> list[str]:
    if c.dtype == "i8":
        most = np.iinfo(np.int64)
        low, high = max(int(c["low"]), most.min), min(int(c["high"]), most.max)
        return [c("Clip", c.x, c.number(low), c.number(high))]
    return [c("Clip", c.x, *(c.number(in_range(c[bound])) for bound in ("low", "high")))]


def _leaky_relu(c: OnnxCall) -> list[str]:
    if c.dtype == "f4":
        return [c("LeakyRelu", c.x, alpha=float(c["slope"]))]
    below = c("Mul", c.x, c.number(c["slope"]))  # an attribute would be float32
    return [c("Where", c("Greater", c.x, c.number(0)), c.x, below)]


def _prelu(c: OnnxCall) -> list[str]:
    return [c("PRelu", c.x, c.per_channel(1))]


def _elu(c: OnnxCall) -> list[str]:
    below = c("Min", c.x, c.number(0))
    below = c("Sub", c("Exp", c("Mul", below, c.number(c["input_scale"]))), c.number(1))
    below = c("Mul", below, c.number(c["alpha"] * c["scale"]))
    above = c("Mul", c.x, c.number(c["scale"]))
    return [c("Where", c("Greater", c.x, c.number(0)), above, below)]


def _erf_of(c: OnnxCall, x: str) -> str:
    if c.dtype == "f4":
        return c("Erf", x)
    # Float64 has no Erf: a Chebyshev series on -6 .. 6, odd terms alone, by Clenshaw's recurrence in
    # s = x / 6; beyond, erf is 1 to the last bit. Its error is below 1e-14.
    series = np.polynomial.chebyshev.chebinterpolate(np.vectorize(lambda s: math.erf(6 * s)), 127)
    s = c("Div", c("Clip", x, c.number(-6), c.number(6)), c.number(6))
    # T_{2k+1}(s) = s V_k(y) with V_0 = 1, V_1 = 2y - 1 and V_{k+1} = 2y V_k - V_{k-1}, y = 2s^2 - 1.
    two_y = c("Sub", c("Mul", c("Mul", s, s), c.number(4)), c.number(2))
    now = before = c.number(0)
    for weight in series[:0:-2]:
        now, before = (
            c("Add", c("Sub", c("Mul", two_y, now), before), c.number(weight)),
            now,
        )
    return c("Mul", s, c("Sub", now, before))


def _gelu(c: OnnxCall) -> list[str]:
    if c["approximate"] == "tanh":
        cubed = c("Mul", c("Mul", c.x, c.x), c.x)
        inner = c("Add", c.x, c("Mul", cubed, c.number(0.044715)))
        bent = c("Tanh", c("Mul", inner, c.number(math.sqrt(2 / math.pi))))
    else:
        bent = _erf_of(c, c("Mul", c.x, c.number(math.sqrt(0.5))))
    return [c("Mul", c("Mul", c.x, c.number(0.5)), c("Add", bent, c.number(1)))]


def _softplus_of(c: OnnxCall, x: str) -> str:
    """log(1 + exp(x)), without overflow."""
    small = c("Exp", c("Neg", c("Abs", x)))
    return c("Add", c("Max", x, c.number(0)), c("Log", c("Add", small, c.number(1))))


def _softplus(c: OnnxCall) -> list[str]:
    bent = c("Mul", c.x, c.number(c["beta"]))
    soft = c("Div", _softplus_of(c, bent), c.number(c["beta"]))
    return [c("Where", c("Greater", bent, c.number(c["threshold"])), c.x, soft)]


def _hard(c: OnnxCall) -> str:
    sixth = c("Div", c("Add", c.x, c.number(3)), c.number(6))
    return c("Clip", sixth, c.number(0), c.number(1))


def _hardshrink(c: OnnxCall) -> list[str]:
    far = c("Greater", c("Abs", c.x), c.number(c["bound"]))
    return [c("Where", far, c.x, c.number(0))]


def _softshrink(c: OnnxCall) -> list[str]:
    low, high = c.number(-c["bound"]), c.number(c["bound"])
    below = c("Where", c("Less", c.x, low), c("Sub", c.x, low), c.number(0))
    return [c("Where", c("Greater", c.x, high), c("Sub", c.x, high), below)]


# Two numbers each


def _binary(kind: str) -> Emit:
    def emit(c: OnnxCall) -> list[str]:
        rank = len(c.out[0].shape)
        names = [c.aligned(place, rank) for place in (0, 1)]
        if c.dtype == "f8" and kind in ("Mul", "Div") and rank:
            # onnxruntime fuses a product of matrices and one number, and rounds the number to float32;
            # it leaves a number for each place of the last axis.
            for place, value in enumerate((c.known(0), c.known(1))):
                if value.size == 1 and not value.batched:
                    shape = [1] * rank + [c.out[0].shape[-1]]
                    names[place] = c("Expand", names[place], c.whole(shape))
        return [c(kind, *names)]

    return emit


def _where(c: OnnxCall) -> list[str]:
    rank = len(c.out[0].shape)
    return [c("Where", *(c.aligned(place, rank) for place in range(3)))]


# Over axes


def _reduced(kind: str) -> Emit:
    def emit(c: OnnxCall) -> list[str]:
        return [c.reduce(kind, c.x, [axis + 1 for axis in c["axes"]], c["keep"])]

    return emit


def _variance(c: OnnxCall) -> list[str]:
    axes = [axis + 1 for axis in c["axes"]]
    away = c("Sub", c.x, c.reduce("ReduceMean", c.x, axes))
    total = c.reduce("ReduceSum", c("Mul", away, away), axes, c["keep"])
    count = math.prod(c.shape[axis] for axis in c["axes"]) - c["correction"]
    return [c("Div", total, c.number(max(count, 0)))]


def _norm(c: OnnxCall) -> list[str]:
    axes, order = [axis + 1 for axis in c["axes"]], float(c["order"])
    if math.isinf(in_range(order)):
        return [c.reduce("ReduceMax" if order > 0 else "ReduceMin", c("Abs", c.x), axes, c["keep"])]
    if order in (1.0, 2.0):
        return [c.reduce(f"ReduceL{int(order)}", c.x, axes, c["keep"])]
    if order == 0.0:
        some = c("Not", c("Equal", c.x, c.number(0)))
        return [c.reduce("ReduceSum", c.graph.cast(some, c.dtype), axes, c["keep"])]
    powers = c("Pow", c("Abs", c.x), c.number(order))
    total = c.reduce("ReduceSum", powers, axes, c["keep"])
    return [c("Pow", total, c.number(1 / order))]


# Over windows


def _least(c: OnnxCall) -> float | int:
    return np.iinfo(np.int64).min if c.dtype == "i8" else -math.inf


def _max_over(c: OnnxCall, places: Sequence[np.ndarray]) -> list[str]:
    taps = [3 + 2 * axis for axis in range(len(places))]
    return [c.reduce("ReduceMax", gathered(c, places, _least(c)), taps, False)]


def _mean_over(c: OnnxCall, places: Sequence[np.ndarray], counts: np.ndarray) -> list[str]:
    taps = [3 + 2 * axis for axis in range(len(places))]
    total = c.reduce("ReduceSum", gathered(c, places, 0.0), taps, False)
    return [c("Div", total, c.number(counts))]


def _is_plain_pool(c: OnnxCall) -> bool:
    """Whether the operators of ONNX have such windows: no window begins or ends beyond the padding."""
    pads = tuple((pad, pad) for pad in c["padding"])
    spread = c.step.attributes.get("dilation", (1,) * len(c["size"]))
    sizes = window_sizes(c.shape[1:], c["size"], c["stride"], pads, spread)
    return c.dtype == "f4" and len(c["size"]) <= 3 and sizes == c.out[0].shape[1:]


def _max_pool(c: OnnxCall) -> list[str]:
    if _is_plain_pool(c):
        out = c(
            "MaxPool",
            c.x,
            kernel_shape=c["size"],
            strides=c["stride"],
            pads=2 * list(c["padding"]),
            dilations=c["dilation"],
        )
        return [out]
    return _max_over(c, pool_places(c.shape[1:], c.out[0].shape[1:], c.step.attributes))


def _avg_pool(c: OnnxCall) -> list[str]:
    if _is_plain_pool(c) and not c["divisor"]:
        out = c(
            "AveragePool",
            c.x,
            kernel_shape=c["size"],
            strides=c["stride"],
            pads=2 * list(c["padding"]),
            count_include_pad=int(c["count_padding"]),
        )
        return [out]
    places = pool_places(c.shape[1:], c.out[0].shape[1:], c.step.attributes)
    counts = pool_counts(c.shape[1:], c.out[0].shape[1:], c.step.attributes)
    return _mean_over(c, places, counts)


def _adaptive_max_pool(c: OnnxCall) -> list[str]:
    return _max_over(c, adaptive_places(c.shape[1:], c["size"]))


def _adaptive_avg_pool(c: OnnxCall) -> list[str]:
    if math.prod(c["size"]) == 1:
        return [c.reduce("ReduceMean", c.x, range(2, 1 + len(c.shape)))]
    places = adaptive_places(c.shape[1:], c["size"])
    counts = np.ones(())
    for place, size in zip(places, c.shape[1:], strict=True):
        counts = np.multiply.outer(counts, (place < size).sum(1))
    return _mean_over(c, places, counts)


def _resize(c: OnnxCall) -> list[str]:
    x = c.x
    for axis, (old, new) in enumerate(zip(c.shape[1:], c["size"], strict=True), 2):
        if c["mode"] == "nearest":
            x = c("Gather", x, c.whole(nearest(old, new)), axis=axis)
            continue
        low, high, share = linear_places(old, new, c["align_corners"])
        share = share.reshape(-1, *[1] * (len(c.shape) - axis))
        first = c("Mul", c("Gather", x, c.whole(low), axis=axis), c.number(1 - share))
        second = c("Mul", c("Gather", x, c.whole(high), axis=axis), c.number(share))
        x = c("Add", first, second)
    return [x]


# Places


def _reshape(c: OnnxCall) -> list[str]:
    return [c.reshape(c.x, [0, *c["shape"]])]


def _permute(c: OnnxCall) -> list[str]:
    return [c("Transpose", c.x, perm=[0, *(axis + 1 for axis in c["axes"])])]


def _slice(c: OnnxCall) -> list[str]:
    numbers = (c[name] for name in ("start", "stop"))
    return [c("Slice", c.x, *(c.whole([n]) for n in (*numbers, c["axis"] + 1, c["step"])))]


def _concat(c: OnnxCall) -> list[str]:
    names = list(c.names)
    batched = [place for place, value in enumerate(c.used) if value is not None and value.batched]
    if batched and len(batched) < len(names):
        batch = c("Shape", names[batched[0]], start=0, end=1)
        for place in set(range(len(names))) - set(batched):
            shape = c("Concat", batch, c.whole(c.known(place).shape), axis=0)
            names[place] = c("Expand", names[place], shape)
    return [c("Concat", *names, axis=c["axis"] + 1)]


def _pad(c: OnnxCall) -> list[str]:
    widths, x = c["widths"], c.x
    if c["mode"] != "constant":
        for axis, (size, pair) in enumerate(zip(c.shape, widths, strict=True), 1):
            if pair != (0, 0):
                x = c("Gather", x, c.whole(padded_places(size, pair, c["mode"])), axis=axis)
        return [x]
    for axis, (size, (low, high)) in enumerate(zip(c.shape, widths, strict=True), 1):
        if min(low, high) < 0:
            ends = max(-low, 0), size - max(-high, 0), axis
            x = c("Slice", x, *(c.whole([n]) for n in ends))
    pads = [0, *(max(low, 0) for low, _ in widths), 0, *(max(high, 0) for _, high in widths)]
    return [c("Pad", x, c.whole(pads), c.number(in_range(c["value"])))]


def _expand(c: OnnxCall) -> list[str]:
    return [c("Expand", c.aligned(0, len(c["shape"])), c.whole([1, *c["shape"]]))]


def _flip(c: OnnxCall) -> list[str]:
    count = len(c["axes"])
    if not count:
        return [c("Identity", c.x)]
    starts, ends, steps = [-1] * count, [np.iinfo(np.int64).min] * count, [-1] * count
    axes = [axis + 1 for axis in c["axes"]]
    return [c("Slice", c.x, *map(c.whole, (starts, ends, axes, steps)))]


def _take(c: OnnxCall) -> list[str]:
    return [c("Gather", c.x, c.plain(1), axis=c["axis"] + 1)]


EMIT: dict[str, Emit] = {
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "matmul": _matmul,
    "attention": _attention,
    "embedding": _embedding,
    "lstm": _recurrent(_lstm_cell, 2),
    "gru": _recurrent(_gru_cell, 1),
    "rnn": _recurrent(_rnn_cell, 1),
    "affine": _affine,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "softmax": _along("Softmax"),
    "log_softmax": _along("LogSoftmax"),
    "cumsum": _cumsum,
    "sign": _sign,
    "threshold": _threshold,
    "relu": _relu,
    "clamp": _clamp,
    "tanh": _unary("Tanh"),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": lambda c: [c("Mul", c.x, c("Sigmoid", c.x))],
    "mish": lambda c: [c("Mul", c.x, c("Tanh", _softplus_of(c, c.x)))],
    "hardsigmoid": lambda c: [_hard(c)],
    "hardswish": lambda c: [c("Mul", c.x, _hard(c))],
    "sigmoid": _unary("Sigmoid"),
    "log_sigmoid": lambda c: [c("Neg", _softplus_of(c, c("Neg", c.x)))],
    "softplus": _softplus,
    "softsign": lambda c: [c("Div", c.x, c("Add", c("Abs", c.x), c.number(1)))],
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "exp": _unary("Exp"),
    "log": _unary("Log"),
    "sqrt": _unary("Sqrt"),
    "rsqrt": lambda c: [c("Reciprocal", c("Sqrt", c.x))],
    "reciprocal": _unary("Reciprocal"),
    "abs": _unary("Abs"),
    "neg": _unary("Neg"),
    "sin": _unary("Sin"),
    "cos": _unary("Cos"),
    "erf": lambda c: [_erf_of(c, c.x)],
    "floor": _whole("Floor"),
    "round": _whole("Round"),
    "logical_not": _unary("Not"),
    "cast": _unary("Identity"),  # its input is cast as the input of any other step
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "pow": _binary("Pow"),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "greater": _binary("Greater"),
    "greater_equal": _binary("GreaterOrEqual"),
    "equal": _binary("Equal"),
    "logical_and": _binary("And"),
    "logical_or": _binary("Or"),
    "where": _where,
    "sum": _reduced("ReduceSum"),
    "mean": _reduced("ReduceMean"),
    "variance": _variance,
    "max": _reduced("ReduceMax"),
    "min": _reduced("ReduceMin"),
    "prod": _reduced("ReduceProd"),
    "norm": _norm,
    "log_sum_exp": _reduced("ReduceLogSumExp"),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_max_pool": _adaptive_max_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "resize": _resize,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "expand": _expand,
    "flip": _flip,
    "take": _take,
}
