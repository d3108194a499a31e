"""One-step programs for every kind of step, with what torch computes for them.

``CASES`` is for the tests of every backend: ``case.program(dtype)`` is a program of one step,
``case.arrays(rows)`` its inputs, and ``case.expected(arrays)`` torch's outputs in float64.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesbin.core.canonical import pack_words, unpack_words
from bayesbin.runtime.program import Constant, Program, Step, StoredSite, Value

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Input:
    """An input of a step: for each datum ("data"), shared ("constant"), binary weights ("site") or absent.

    :param values: "normal", "positive", "flags", or the number of tokens.
    """

    shape: Shape
    values: str | int = "normal"
    place: str = "data"

    @property
    def dtype(self) -> str:
        return {"flags": "b1"}.get(str(self.values), "i8" if isinstance(self.values, int) else "f4")

    def draw(self, rng: np.random.Generator, rows: int | None = None) -> np.ndarray:
        """Numbers of ``rows`` data, or of none; float32 numbers among them are of few and many digits."""
        shape = self.shape if rows is None else (rows, *self.shape)
        if isinstance(self.values, int):
            return rng.integers(0, self.values, shape)
        if self.values == "flags":
            return rng.random(shape) < 0.7
        numbers = rng.standard_normal(shape).astype(np.float32)
        some = rng.random(shape) < 0.1
        numbers = np.where(some, np.round(numbers), numbers).astype(np.float32)  # 0 and ties too
        return np.abs(numbers) + np.float32(0.1) if self.values == "positive" else numbers


def data(*shape: int, values: str | int = "normal") -> Input:
    return Input(shape, values)


def constant(*shape: int, values: str | int = "normal") -> Input:
    return Input(shape, values, "constant")


def site(*shape: int) -> Input:
    return Input(shape, "normal", "site")


ABSENT = Input((), "normal", "absent")


@dataclass(frozen=True, eq=False)
class Case:
    """A step and what torch makes of its inputs: tensors with a batch, but constants and sites without."""

    kind: str
    inputs: tuple[Input, ...]
    attributes: dict[str, Any]
    torch: Callable[..., Any]
    dtype: str | None = None  # of the outputs, where it is given by the kind
    outputs: int = 1

    @property
    def name(self) -> str:
        words = [f"{key}={value}" for key, value in self.attributes.items()]
        shapes = ["x".join(map(str, each.shape)) or "-" for each in self.inputs]
        return f"{self.kind} {' '.join(shapes)} {' '.join(words)}".replace(" ", "_")

    def _random(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.name.encode()))

    def program(self, dtype: str = "f4") -> Program:
        """The step as a program; outputs are of ``dtype`` unless the kind has its own."""
        rng, names = self._random(), []
        inputs, constants, sites = {}, {}, {}
        for place, each in enumerate(self.inputs):
            name = "" if each.place == "absent" else f"input_{place}"
            names.append(name)
            if each.place == "data":
                inputs[name] = Value(each.shape, each.dtype)
            elif each.place == "constant":
                constants[name] = Constant(each.draw(rng)[None])
            elif each.place == "site":
                words = pack_words(rng.random(each.shape) < 0.5)
                sites[name] = StoredSite(each.shape, words[None])
        outputs = tuple(f"output_{place}" for place in range(self.outputs))
        step = Step(self.kind, tuple(names), outputs, self.dtype or dtype, self.attributes)
        return Program(inputs, constants, sites, (step,), outputs)

    def arrays(self, rows: int) -> list[np.ndarray]:
        rng = np.random.default_rng(zlib.crc32(f"{rows} {self.name}".encode()))
        return [each.draw(rng, rows) for each in self.inputs if each.place == "data"]

    def expected(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What torch computes in float64, an array (B, *shape) for each output."""
        program, given, places = self.program(), list(arrays), []
        for name in program.steps[0].inputs:
            if not name:
                places.append(None)
            elif name in program.constants:
                places.append(_tensor(program.constants[name].data[0]))
            elif name in program.sites:
                stored = program.sites[name]
                plus = unpack_words(stored.words(0), stored.shape)
                places.append(torch.from_numpy(np.where(plus, 1.0, -1.0)))
            else:
                places.append(_tensor(given.pop(0)))
        found = self.torch(*places)
        found = found if isinstance(found, tuple) else (found,)
        return [np.asarray(each) for each in found]


def _tensor(array: np.ndarray) -> Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array.astype(np.float64) if array.dtype.kind == "f" else array)


# Cases


def _linear() -> list[Case]:
    found = []
    for units, inputs in ((3, 5), (1, 1), (7, 32), (70, 131)):
        for weights in (site, constant):
            for bias in ([], [constant(units)]):
                given = (data(inputs), weights(units, inputs), *bias)
                found.append(Case("linear", given, {}, F.linear))
    found.append(Case("linear", (data(2, 3, 40), site(6, 40)), {}, F.linear))
    found.append(Case("linear", (data(4, 9), constant(2, 9), constant(2)), {}, F.linear))
    return found


_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _conv() -> list[Case]:
    # image, weights, stride, padding, dilation, groups
    rows = [
        ((3, 8, 9), (5, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        ((4, 9, 7), (6, 2, 3, 2), (2, 3), ((0, 2), (3, 1)), (2, 1), 2),
        ((6, 5, 5), (6, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
        ((8, 4, 4), (80, 8, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
        ((2, 6, 6), (3, 2, 1, 1), (1, 1), ((2, 2), (3, 3)), (1, 1), 1),  # windows of padding alone
        ((3, 20), (4, 3, 5), (3,), ((2, 4),), (2,), 1),
        ((2, 5, 4, 6), (4, 1, 2, 3, 2), (2, 1, 2), ((1, 0), (1, 1), (0, 1)), (1, 1, 2), 2),
        ((33, 6, 6), (50, 33, 3, 3), (1, 2), ((1, 1), (1, 1)), (1, 1), 1),
    ]
    found = []
    for place, (image, weights, stride, padding, dilation, groups) in enumerate(rows):
        attributes = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
        axes = len(stride)

        def convolve(x, w, b=None, *, _a=attributes, _axes=axes):
            x = F.pad(x, [n for pair in reversed(_a["padding"]) for n in pair])
            return _CONVS[_axes](x, w, b, _a["stride"], 0, _a["dilation"], _a["groups"])

        for kind in (site, constant):
            bias = [constant(weights[0])] if place % 2 else []
            found.append(Case("conv", (data(*image), kind(*weights), *bias), attributes, convolve))
    return found


def _conv_transpose() -> list[Case]:
    # image, weights, stride, padding, output padding, dilation, groups
    rows = [
        ((3, 4, 5), (3, 2, 3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
        ((4, 5, 3), (4, 3, 2, 4), (1, 3), (0, 2), (0, 2), (2, 1), 2),
        ((2, 7), (2, 4, 3), (2,), (0,), (0,), (3,), 1),
        ((2, 3, 2, 3), (2, 1, 2, 2, 3), (2, 1, 2), (1, 0, 1), (1, 0, 0), (1, 2, 1), 2),
    ]
    found = []
    for place, (image, weights, stride, padding, more, dilation, groups) in enumerate(rows):
        attributes = dict(
            stride=stride, padding=padding, output_padding=more, dilation=dilation, groups=groups
        )
        axes = len(stride)

        def spread(x, w, b=None, *, _a=attributes, _axes=axes):
            numbers = [_a[n] for n in ("stride", "padding", "output_padding")]
            return _TRANSPOSED[_axes](x, w, b, *numbers, _a["groups"], _a["dilation"])

        for kind in (site, constant):
            bias = [constant(weights[1] * groups)] if place % 2 else []
            found.append(
                Case("conv_transpose", (data(*image), kind(*weights), *bias), attributes, spread)
            )
    return found


def _products() -> list[Case]:
    def matmul(a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(*_aligned(a, b))

    found = [
        Case("matmul", (data(3, 4), data(4, 5)), {}, matmul),
        Case("matmul", (data(1, 4), data(4, 1)), {}, matmul),
        Case("matmul", (data(2, 1, 3, 4), data(6, 4, 2)), {}, matmul),
        Case("matmul", (data(5, 7), constant(7, 3)), {}, lambda a, b: a @ b),
        Case("matmul", (constant(5, 7), data(7, 3)), {}, lambda a, b: a @ b),
        Case("embedding", (data(6, values=9), constant(9, 4)), {}, F.embedding),
        Case("embedding", (data(values=9), site(9, 4)), {}, F.embedding),
        Case("embedding", (data(2, 3, values=5), constant(5, 1)), {}, F.embedding),
    ]
    shapes = [(data(5, 4), data(5, 4), data(5, 4)), (data(2, 3, 4), data(2, 6, 4), data(2, 6, 5))]
    for (q, k, v), scale, causal in itertools.product(shapes, (0.5, 1.0), (False, True)):
        attributes = dict(scale=scale, causal=causal)

        def attend(q, k, v, mask=None, *, _a=attributes):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=_a["scale"], is_causal=_a["causal"]
            )

        found.append(Case("attention", (q, k, v), attributes, attend))
        if not causal:
            mask = (q.shape[-2], k.shape[-2])
            for given in (data(*q.shape[:-2], *mask, values="flags"), constant(*mask)):
                found.append(Case("attention", (q, k, v, given), attributes, attend))
    unseen = data(5, 5, values="flags")
    none = dict(scale=1.0, causal=False)
    found.append(
        Case(
            "attention",
            (*shapes[0], unseen),
            none,
            lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=1.0),
        )
    )
    return found


def _aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """With axes of 1 after the batch, as programs align shapes at the last axis."""
    most = max(a.dim(), b.dim())
    return tuple(x.reshape(len(x), *[1] * (most - x.dim()), *x.shape[1:]) for x in (a, b))  # pyright: ignore


def _recurrent() -> list[Case]:
    found = []
    layers = {
        "lstm": (torch.nn.LSTM, 4, 2),
        "gru": (torch.nn.GRU, 3, 1),
        "rnn": (torch.nn.RNN, 1, 1),
    }
    for kind, (layer, gates, states) in layers.items():
        for reverse, bias, weights in itertools.product((False, True), (2, 0), (constant, site)):
            size, wide, steps = 3, 4, 5
            activations = ("tanh", "relu") if kind == "rnn" and weights is constant else ("tanh",)
            for activation in activations:
                more = dict(activation=activation) if kind == "rnn" else {}
                attributes = dict(reverse=reverse, **more)
                state = [constant(size) if weights is site else data(size)] * states
                given = (
                    data(steps, wide), *state, weights(gates * size, wide),
                    weights(gates * size, size), *[constant(gates * size)] * bias,
                )  # fmt: skip

                def recur(x, *rest, _layer=layer, _a=attributes, _states=states):
                    state, numbers = rest[:_states], rest[_states:]
                    a = {"nonlinearity": _a["activation"]} if "activation" in _a else {}
                    net = _layer(
                        x.shape[-1],
                        state[0].shape[-1],
                        bias=len(numbers) > 2,
                        batch_first=True,
                        **a,
                    ).double()
                    with torch.no_grad():
                        for parameter, number in zip(net.parameters(), numbers, strict=True):
                            parameter.copy_(number)
                        first = [each.expand(len(x), -1)[None].contiguous() for each in state]
                        x = x.flip(1) if _a["reverse"] else x
                        out, last = net(x, first[0] if _states == 1 else tuple(first))
                    out = out.flip(1) if _a["reverse"] else out
                    last = last if _states == 2 else (last,)
                    return (out, *[each[0] for each in last])

                found.append(Case(kind, given, attributes, recur, outputs=1 + states))
    return found


def _along(numbers: Tensor, x: Tensor, axis: int) -> Tensor:
    if numbers.dim() == 0:
        return numbers
    return numbers.reshape([-1 if a == axis + 1 else 1 for a in range(x.dim())])


def _normalisation() -> list[Case]:
    found = []
    for axis, shape, size in (
        (0, (4,), (4,)),
        (0, (3, 5, 2), (3,)),
        (1, (3, 5), (5,)),
        (0, (3, 2), ()),
    ):
        a = dict(axis=axis)
        numbers = [constant(*size), constant(*size)]
        found.append(
            Case(
                "affine", (data(*shape), *numbers), a,
                lambda x, s, t, _axis=axis: x * _along(s, x, _axis) + _along(t, x, _axis),
            )
        )  # fmt: skip
        found.append(
            Case(
                "prelu", (data(*shape), numbers[0]), a,
                lambda x, s, _axis=axis: torch.where(x > 0, x, x * _along(s, x, _axis)),
            )
        )  # fmt: skip
        found.append(
            Case(
                "threshold", (data(*shape), *numbers), a,
                lambda x, t, d, _axis=axis: torch.where(
                    _along(d, x, _axis) * (x - _along(t, x, _axis)) >= 0, 1.0, -1.0
                ),
            )
        )  # fmt: skip
        if axis == 0 and size:
            variance = constant(*size, values="positive")
            for more in ([], [constant(*size)], [constant(*size), constant(*size)]):
                found.append(
                    Case(
                        "batch_norm", (data(*shape), numbers[0], variance, *more), a | dict(eps=1e-3),
                        lambda x, m, v, w=None, b=None: F.batch_norm(x, m, v, w, b, eps=1e-3),
                    )
                )  # fmt: skip
    for shape, count in (((7,), 1), ((3, 4), 1), ((3, 4), 2), ((2, 3, 4), 2)):
        last = shape[len(shape) - count :]
        for more in ([], [constant(*last)], [constant(*last), constant(*last)]):
            found.append(
                Case(
                    "layer_norm", (data(*shape), *more), dict(axes=count, eps=1e-5),
                    lambda x, w=None, b=None, _last=last: F.layer_norm(x, _last, w, b, 1e-5),
                )
            )  # fmt: skip
            if len(more) < 2:
                found.append(
                    Case(
                        "rms_norm", (data(*shape), *more), dict(axes=count, eps=1e-4),
                        lambda x, w=None, _last=last: F.rms_norm(x, _last, w, 1e-4),
                    )
                )  # fmt: skip
    for shape, groups in (((6,), 3), ((6, 4), 2), ((4, 3, 5), 4), ((4, 3, 5), 1)):
        numbers = [constant(shape[0]), constant(shape[0])]
        for more in ([], numbers):
            found.append(
                Case(
                    "group_norm", (data(*shape), *more), dict(groups=groups, eps=1e-5),
                    lambda x, w=None, b=None, _groups=groups: F.group_norm(x, _groups, w, b, 1e-5),
                )
            )  # fmt: skip
    for shape, axis in (((5,), 0), ((3, 4, 2), 0), ((3, 4, 2), 1), ((3, 4, 2), 2)):
        a = dict(axis=axis)
        for kind, function in (
            ("softmax", torch.softmax), ("log_softmax", torch.log_softmax), ("cumsum", torch.cumsum),
        ):  # fmt: skip
            found.append(
                Case(
                    kind,
                    (data(*shape),),
                    a,
                    lambda x, _f=function, _axis=axis: _f(x, dim=_axis + 1),
                )
            )
    return found


def _elu(alpha: float, scale: float, input_scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.ops.aten.elu(x, alpha, scale, input_scale)


def _one_number() -> list[Case]:
    rows: list[tuple[str, dict[str, Any], Callable[..., Any], str]] = [
        ("sign", {}, lambda x: torch.where(x >= 0, 1.0, -1.0), "normal"),
        ("relu", {}, torch.relu, "normal"),
        ("clamp", dict(low=-1.0, high=1.0), lambda x: x.clamp(-1, 1), "normal"),
        ("clamp", dict(low=0.25, high=1e308), lambda x: x.clamp(min=0.25), "normal"),
        ("clamp", dict(low=-1e308, high=0), lambda x: x.clamp(max=0), "normal"),
        ("tanh", {}, torch.tanh, "normal"),
        ("leaky_relu", dict(slope=0.01), lambda x: F.leaky_relu(x, 0.01), "normal"),
        ("elu", dict(alpha=1.5, scale=1.0, input_scale=1.0), _elu(1.5, 1.0, 1.0), "normal"),
        ("elu", dict(alpha=1.67, scale=1.05, input_scale=0.5), _elu(1.67, 1.05, 0.5), "normal"),
        ("gelu", dict(approximate="none"), F.gelu, "normal"),
        ("gelu", dict(approximate="tanh"), lambda x: F.gelu(x, approximate="tanh"), "normal"),
        ("softplus", dict(beta=1.0, threshold=20.0), F.softplus, "normal"),
        ("softplus", dict(beta=2.5, threshold=1.0), lambda x: F.softplus(x, 2.5, 1.0), "normal"),
        ("hardshrink", dict(bound=0.5), F.hardshrink, "normal"),
        ("softshrink", dict(bound=0.3), lambda x: F.softshrink(x, 0.3), "normal"),
        ("rsqrt", {}, torch.rsqrt, "positive"),
        ("log", {}, torch.log, "positive"),
        ("sqrt", {}, torch.sqrt, "positive"),
        ("reciprocal", {}, torch.reciprocal, "positive"),
    ]
    for kind in ("exp", "abs", "neg", "sin", "cos", "erf", "floor", "round", "sigmoid"):
        rows.append((kind, {}, getattr(torch, kind), "normal"))
    for kind in ("silu", "mish", "hardsigmoid", "hardswish", "softsign"):
        rows.append((kind, {}, getattr(F, kind), "normal"))
    rows.append(("log_sigmoid", {}, F.logsigmoid, "normal"))
    found = [
        Case(kind, (data(*shape, values=values),), attributes, function)
        for kind, attributes, function, values in rows
        for shape in ((3, 50), ())
    ]
    found.append(Case("logical_not", (data(9, values="flags"),), {}, torch.logical_not, "b1"))
    found.append(Case("cast", (data(9),), {}, lambda x: x.long(), "i8"))
    found.append(Case("cast", (data(9),), {}, lambda x: x.bool(), "b1"))
    found.append(Case("cast", (data(9, values=7),), {}, lambda x: x.double()))
    found.append(Case("cast", (data(9, values="flags"),), {}, lambda x: x.double()))
    return found


def _several_numbers() -> list[Case]:
    shapes = [
        (data(3, 4), data(3, 4)),
        (data(2, 3, 4), data(3, 1)),
        (data(4), constant(5, 4)),
        (data(3, 4), constant()),
        (data(), constant(2)),
        (constant(4), data(3, 1)),
    ]
    found = []

    def case(kind: str, given: tuple[Input, ...], function: Any, dtype: str | None = None) -> None:
        def computed(*arrays: Tensor, _given: Sequence[Input] = given) -> Tensor:
            most = max(len(each.shape) for each in _given)
            tensors = []
            for each, x in zip(_given, arrays, strict=True):
                rows = len(x) if each.place == "data" else 1
                tensors.append(x.reshape(rows, *[1] * (most - len(each.shape)), *each.shape))
            return function(*tensors)

        found.append(Case(kind, given, {}, computed, dtype))

    for given in shapes:
        for kind in ("add", "sub", "mul", "div", "maximum", "minimum"):
            case(kind, given, getattr(torch, kind))
        case("greater", given, torch.gt, "b1")
        case("greater_equal", given, torch.ge, "b1")
        case("equal", given, torch.eq, "b1")
        positive = tuple(
            Input(each.shape, "positive" if place == 0 else "normal", each.place)
            for place, each in enumerate(given)
        )
        case("pow", positive, torch.pow)
        flags = tuple(Input(each.shape, "flags", each.place) for each in given)
        case("logical_and", flags, torch.logical_and, "b1")
        case("logical_or", flags, torch.logical_or, "b1")
        case("where", (flags[0], *given), torch.where)
    whole = (data(3, 4, values=9), constant(4, values=7))
    for kind in ("add", "sub", "mul", "maximum"):
        case(kind, whole, getattr(torch, kind), "i8")
    case("equal", whole, torch.eq, "b1")
    return found


def _reductions() -> list[Case]:
    found = []
    for shape, axes in (((7,), (0,)), ((3, 4, 5), (1,)), ((3, 4, 5), (2, 0)), ((2, 300), (1,))):
        for keep in (False, True):
            dims = tuple(axis + 1 for axis in axes)
            kwargs = dict(dim=dims, keepdim=keep)

            def case(
                kind: str, function: Any, _shape=shape, _axes=axes, _keep=keep, **more: Any
            ) -> None:
                attributes = dict(axes=_axes, keep=_keep, **more)
                found.append(Case(kind, (data(*_shape),), attributes, function))

            case("sum", lambda x, _k=kwargs: torch.sum(x, **_k))
            case("mean", lambda x, _k=kwargs: torch.mean(x, **_k))
            case("max", lambda x, _k=kwargs: torch.amax(x, **_k))
            case("min", lambda x, _k=kwargs: torch.amin(x, **_k))
            case("log_sum_exp", lambda x, _k=kwargs: torch.logsumexp(x, **_k))
            for correction in (0, 1):
                case(
                    "variance",
                    lambda x, _k=kwargs, _c=correction: torch.var(x, correction=_c, **_k),
                    correction=correction,
                )
            for order in (2, 1, 3.5, 0, 1e308, -1e308):
                exact = math.copysign(math.inf, order) if abs(order) > 1e300 else order
                case(
                    "norm",
                    lambda x, _k=kwargs, _o=exact: torch.linalg.vector_norm(x, _o, **_k),
                    order=order,
                )
            if len(axes) == 1 and shape != (2, 300):
                case("prod", lambda x, _d=dims, _keep=keep: torch.prod(x, _d[0], _keep))
    found.append(
        Case("sum", (data(3, 4, values=9),), dict(axes=(0,), keep=False), lambda x: x.sum(1), "i8")
    )
    return found


_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pools() -> list[Case]:
    # image, size, stride, padding, dilation
    rows = [
        ((2, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1)),
        ((3, 7, 9), (3, 2), (2, 3), (1, 1), (1, 2)),
        ((2, 10, 10), (3, 3), (3, 3), (1, 0), (2, 1)),
        ((2, 6, 5), (3, 4), (1, 1), (1, 2), (1, 1)),
        ((2, 4, 4), (1, 1), (3, 3), (0, 0), (1, 1)),
        ((3, 11), (4,), (3,), (2,), (1,)),
        ((2, 5, 6, 7), (2, 3, 2), (2, 2, 3), (1, 1, 0), (1, 1, 1)),
    ]
    found = []
    for (image, size, stride, padding, dilation), ceil in itertools.product(rows, (False, True)):
        a = dict(size=size, stride=stride, padding=padding, ceil=ceil)
        numbers = (size, stride, padding)
        axes = len(size)
        found.append(
            Case(
                "max_pool", (data(*image),), a | dict(dilation=dilation),
                lambda x, _n=numbers, _d=dilation, _c=ceil, _axes=axes: _MAX_POOLS[_axes](
                    x, *_n, dilation=_d, ceil_mode=_c
                ),
            )
        )  # fmt: skip
        for count, divisor in ((True, 0), (False, 0), (True, 5)):
            if divisor and axes == 1:
                continue
            more = dict(count_include_pad=count, ceil_mode=ceil)
            if divisor:
                more["divisor_override"] = divisor
            found.append(
                Case(
                    "avg_pool", (data(*image),), a | dict(count_padding=count, divisor=divisor),
                    lambda x, _n=numbers, _m=more, _axes=axes: _AVG_POOLS[_axes](x, *_n, **_m),
                )
            )  # fmt: skip
    adaptive = {
        1: (F.adaptive_max_pool1d, F.adaptive_avg_pool1d),
        2: (F.adaptive_max_pool2d, F.adaptive_avg_pool2d),
        3: (F.adaptive_max_pool3d, F.adaptive_avg_pool3d),
    }
    for image, size in (
        ((2, 7), (3,)), ((2, 4), (9,)), ((3, 7, 5), (1, 1)), ((3, 7, 5), (3, 4)), ((2, 4, 5, 6), (2, 3, 6)),
    ):  # fmt: skip
        for kind, function in zip(
            ("adaptive_max_pool", "adaptive_avg_pool"), adaptive[len(size)], strict=True
        ):
            found.append(
                Case(
                    kind,
                    (data(*image),),
                    dict(size=size),
                    lambda x, _f=function, _s=size: _f(x, _s),
                )
            )
    between = {1: "linear", 2: "bilinear", 3: "trilinear"}
    for image, size in (
        ((2, 5), (8,)), ((2, 9), (4,)), ((3, 4, 6), (7, 3)), ((3, 4, 6), (1, 12)), ((2, 3, 4, 2), (5, 2, 7)),
        ((1, 129), (207,)),
    ):  # fmt: skip
        a = dict(size=size)
        found.append(
            Case(
                "resize", (data(*image),), a | dict(mode="nearest", align_corners=False),
                # torch finds the nearest in float32 for float32 images.
                lambda x, _s=size: F.interpolate(x.float(), _s, mode="nearest").double(),
            )
        )  # fmt: skip
        for align in (False, True):
            found.append(
                Case(
                    "resize", (data(*image),), a | dict(mode="linear", align_corners=align),
                    lambda x, _s=size, _align=align: F.interpolate(
                        x, _s, mode=between[len(_s)], align_corners=_align
                    ),
                )
            )  # fmt: skip
    return found


def _places() -> list[Case]:
    x = data(3, 4, 5)
    found = [
        Case("reshape", (x,), dict(shape=(12, 5)), lambda x: x.reshape(-1, 12, 5)),
        Case("reshape", (data(),), dict(shape=(1, 1)), lambda x: x.reshape(-1, 1, 1)),
        Case("permute", (x,), dict(axes=(2, 0, 1)), lambda x: x.permute(0, 3, 1, 2)),
        Case("slice", (x,), dict(axis=1, start=1, stop=4, step=2), lambda x: x[:, :, 1:4:2]),
        Case("slice", (x,), dict(axis=2, start=2, stop=3, step=1), lambda x: x[..., 2:3]),
        Case("concat", (x, data(3, 2, 5)), dict(axis=1), lambda a, b: torch.cat((a, b), 2)),
        Case(
            "concat", (data(4), constant(3), data(2)), dict(axis=0),
            lambda a, b, c: torch.cat((a, b.expand(len(a), -1), c), 1),
        ),
        Case("expand", (data(3, 1),), dict(shape=(2, 3, 4)), lambda x: x[:, None].expand(-1, 2, 3, 4)),
        Case("expand", (data(),), dict(shape=(2,)), lambda x: x[:, None].expand(-1, 2)),
        Case("flip", (x,), dict(axes=(0, 2)), lambda x: x.flip(1, 3)),
        Case("take", (x, constant(2, 2, values=4)), dict(axis=1), lambda x, i: x[:, :, i]),
        Case("take", (x, constant(values=3)), dict(axis=0), lambda x, i: x[:, i]),
    ]  # fmt: skip
    pads = [
        ("constant", ((0, 0), (1, 2), (3, 0)), 1.5),
        ("constant", ((1, 1), (-1, 2), (0, -3)), -1e308),
        ("reflect", ((0, 0), (3, 1), (0, 4)), 0.0),
        ("replicate", ((0, 0), (3, 1), (0, 7)), 0.0),
        ("circular", ((0, 0), (4, 1), (2, 0)), 0.0),
    ]
    for mode, widths, value in pads:
        flat = [n for pair in reversed(widths) for n in pair]
        exact = -math.inf if value < -1e300 else value
        kwargs = dict(value=exact) if mode == "constant" else {}
        flat = flat if mode == "constant" else flat[:4]
        found.append(
            Case(
                "pad", (x,), dict(widths=widths, mode=mode, value=value),
                lambda x, _f=flat, _m=mode, _k=kwargs: F.pad(x, _f, mode=_m, **_k),
            )
        )  # fmt: skip
    return found


CASES = [
    *_linear(),
    *_conv(),
    *_conv_transpose(),
    *_products(),
    *_recurrent(),
    *_normalisation(),
    *_one_number(),
    *_several_numbers(),
    *_reductions(),
    *_pools(),
    *_places(),
]
