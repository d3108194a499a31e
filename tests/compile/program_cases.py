"""Programs of one step, for every kind of step there is: the same cases for all backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, StoredSite, Value

DRAWS, ROWS = 3, 4


@dataclass(frozen=True)
class Case:
    """A step with its operands' shapes.

    :param given: how each operand enters: "x" input, "c" constant of all draws, "d" constant of each draw,
        "s" drawn signs, "t" stored signs, "i" whole numbers below ``most``, "b" booleans (inputs), "j" whole
        numbers as a constant, "m" booleans as a constant, "p" a positive input, "v" a positive
        constant, "z" an input of small integers (many ties), "-" absent.
    """

    kind: str
    shapes: Sequence[tuple[int, ...]]
    given: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "f4"
    outputs: int = 1
    most: int = 3

    @property
    def id(self) -> str:
        numbers = ",".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.kind}-{self.given}-{'x'.join(map(str, self.shapes[0]))}-{numbers}"


def _conv(stride: Any, padding: Any, dilation: Any, groups: int = 1) -> dict[str, Any]:
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def _pool(size: Any, stride: Any, padding: Any, ceil: bool, **more: Any) -> dict[str, Any]:
    return {"size": size, "stride": stride, "padding": padding, "ceil": ceil, **more}


def _products() -> Iterator[Case]:
    for weights in "csdt":
        yield Case("linear", [(5,), (3, 5), (3,)], f"x{weights}c")
        yield Case("linear", [(2, 70), (3, 70), (3,)], f"x{weights}d")
        yield Case("linear", [(5,), (3, 5)], f"x{weights}", dtype="f8")
        two = _conv((2, 1), ((1, 1), (0, 2)), (1, 2))
        yield Case("conv", [(3, 6, 7), (4, 3, 3, 2), (4,)], f"x{weights}c", two)
        yield Case("conv", [(4, 9), (6, 2, 3)], f"x{weights}", _conv((1,), ((4, 4),), (1,), 2))
        yield Case(
            "conv",
            [(4, 5, 5), (4, 1, 3, 3), (4,)],
            f"x{weights}d",
            _conv((1, 1), ((1, 1), (1, 1)), (1, 1), 4),
        )
        yield Case(
            "conv",
            [(2, 3, 4, 3), (3, 2, 2, 2, 1)],
            f"x{weights}",
            _conv((1, 2, 1), ((0, 0), (1, 1), (0, 1)), (1, 1, 1)),
        )
    for weights in "cdt":
        for groups in (1, 2):
            a = {
                "stride": (2, 1),
                "padding": (1, 0),
                "output_padding": (1, 0),
                "dilation": (1, 2),
                "groups": groups,
            }
            yield Case(
                "conv_transpose", [(4, 3, 4), (4, 6 // groups, 3, 2), (6,)], f"x{weights}c", a
            )
        a = {"stride": (2,), "padding": (0,), "output_padding": (0,), "dilation": (1,), "groups": 1}
        yield Case("conv_transpose", [(2, 5), (2, 3, 3)], f"x{weights}", a)
    a = {name: (1, 1, 1) for name in ("stride", "padding", "dilation")} | {
        "output_padding": (0,) * 3,
        "groups": 1,
    }
    yield Case("conv_transpose", [(2, 3, 4, 3), (2, 3, 2, 3, 3)], "xd", a)
    for given in ("xx", "xd", "cx"):
        yield Case("matmul", [(2, 3, 5), (5, 4)], given)
        yield Case("matmul", [(3, 5), (2, 5, 4)], given)
    for causal in (False, True):
        a = {"scale": 0.4, "causal": causal}
        yield Case("attention", [(2, 5, 4), (2, 5, 4), (2, 5, 3)], "xxx", a)
        yield Case("attention", [(5, 4), (6, 4), (6, 3), (5, 6)], "xdxc", a)
        yield Case("attention", [(2, 5, 4), (5, 4), (2, 5, 3), (1, 5)], "xxxb", a)
        yield Case("attention", [(2, 5, 4), (5, 4), (2, 5, 3), (5, 5)], "xxcm", a)
    for table in "csd":
        yield Case("embedding", [(4,), (3, 5)], f"i{table}")
        yield Case("embedding", [(), (3, 2)], f"i{table}", dtype="f8")
    for reverse in (False, True):
        for state in ("x", "c"):
            for weights in ("cc", "sd", "dc-c", "ddcd"):
                w = weights.ljust(4, "-")[: 2 + 2 * (len(weights) > 2)]
                yield Case(
                    "lstm",
                    [(5, 2), (3,), (3,), (12, 2), (12, 3), (12,), (12,)],
                    f"x{state}{state}{w}",
                    {"reverse": reverse},
                    outputs=3,
                )
                yield Case(
                    "gru",
                    [(5, 2), (3,), (9, 2), (9, 3), (9,), (9,)],
                    f"x{state}{w}",
                    {"reverse": reverse},
                    outputs=2,
                )
                for activation in ("tanh", "relu"):
                    yield Case(
                        "rnn",
                        [(5, 2), (3,), (3, 2), (3, 3), (3,), (3,)],
                        f"x{state}{w}",
                        {"reverse": reverse, "activation": activation},
                        outputs=2,
                    )


def _normalisation() -> Iterator[Case]:
    for given in ("xcc", "xdd", "xcd", "xxx"):
        yield Case("affine", [(3,), (3,), (3,)], given, {"axis": 0})
        yield Case("affine", [(3, 4, 2), (3,), ()], given, {"axis": 0})
        yield Case("threshold", [(4, 3), (3,), (3,)], given, {"axis": 1})
    yield Case("threshold", [(3, 2), (3,), (3,)], "zcc", {"axis": 0})
    yield Case("affine", [(), (), ()], "xcd", {"axis": 0})
    for given in ("xcv", "xcvcc", "xdvd", "xcv-d"):
        yield Case("batch_norm", [(4, 3, 2)] + [(3,)] * 4, given, {"axis": 1, "eps": 1e-3})
        yield Case("batch_norm", [(3,)] * 5, given, {"axis": 0, "eps": 1e-5}, dtype="f8")
    for given in ("x", "xc", "xdc", "x-c"):
        yield Case("layer_norm", [(4, 3, 5), (3, 5), (3, 5)], given, {"axes": 2, "eps": 1e-5})
        yield Case("group_norm", [(4, 3, 5), (4,), (4,)], given, {"groups": 2, "eps": 1e-5})
    yield Case("group_norm", [(2,)], "x", {"groups": 2, "eps": 0.1})
    for given in ("x", "xd"):
        yield Case("rms_norm", [(4, 5), (5,)], given, {"axes": 1, "eps": 1e-5})
    for kind in ("softmax", "log_softmax", "cumsum"):
        for axis in (0, 1):
            yield Case(kind, [(4, 5)], "x", {"axis": axis})
            yield Case(kind, [(4, 5)], "x", {"axis": axis}, dtype="f8")


def _elementwise() -> Iterator[Case]:
    numbers: dict[str, list[dict[str, Any]]] = {
        "clamp": [{"low": -0.5, "high": 0.3}, {"low": -1.7e308, "high": 0.3}],
        "leaky_relu": [{"slope": 0.1}],
        "elu": [{"alpha": 0.7, "scale": 1.3, "input_scale": 0.5}],
        "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
        "softplus": [{"beta": 2.0, "threshold": 3.0}],
        "hardshrink": [{"bound": 0.5}],
        "softshrink": [{"bound": 0.5}],
    }
    positive = {"log", "sqrt", "rsqrt"}
    special = {"logical_not", "cast", "prelu"}
    for kind, description in KINDS.items():
        one = description.inputs == (1, 1) and set(description.attributes) <= {
            "low",
            "high",
            "slope",
            "alpha",
            "scale",
            "input_scale",
            "approximate",
            "beta",
            "threshold",
            "bound",
        }
        if one and kind not in special:
            for a in numbers.get(kind, [{}]):
                for dtype in ("f4", "f8"):
                    yield Case(kind, [(2, 9)], "p" if kind in positive else "x", a, dtype)
    for given in ("xc", "xd"):
        yield Case("prelu", [(3, 4), (3,)], given, {"axis": 0})
        yield Case("prelu", [(3, 4), ()], given, {"axis": 0})
    yield Case("sign", [(3, 4)], "z")
    for dtype, given in (("f8", "x"), ("i8", "x"), ("b1", "z"), ("f4", "i"), ("f4", "b")):
        yield Case("cast", [(3, 4)], given, dtype=dtype)
    for kind in ("abs", "neg", "floor", "round", "relu"):
        yield Case(kind, [(3, 4)], "i", dtype="i8")
    yield Case("clamp", [(3, 4)], "i", {"low": 0.5, "high": 1.0}, dtype="i8")
    yield Case("logical_not", [(3, 4)], "b", dtype="b1")
    for given in ("xx", "xd", "cx"):
        for kind in ("add", "sub", "mul", "div", "maximum", "minimum"):
            yield Case(kind, [(3, 4), (2, 1, 4)], given)
            yield Case(kind, [(4,), (3, 1)], given, dtype="f8")
    yield Case("pow", [(3, 4), ()], "pc")
    yield Case("pow", [(4,), (3, 4)], "px")
    for kind in ("add", "sub", "mul", "maximum", "minimum"):
        yield Case(kind, [(3, 4), (4,)], "ij", dtype="i8")
    for kind in ("greater", "greater_equal", "equal"):
        yield Case(kind, [(3, 4), (4,)], "zc", dtype="b1")
        yield Case(kind, [(3, 4), (2, 1, 1)], "zz", dtype="b1")
        yield Case(kind, [(3, 4), (4,)], "ij", dtype="b1")
    for kind in ("logical_and", "logical_or"):
        yield Case(kind, [(3, 4), (4,)], "bm", dtype="b1")
    yield Case("where", [(3, 4), (4,), ()], "bxc")
    yield Case("where", [(4,), (2, 3, 4), (3, 1)], "mxd")
    yield Case("where", [(4,), (3, 4), (1,)], "mbb", dtype="b1")


def _reductions() -> Iterator[Case]:
    for axes, keep in (((0,), False), ((1, 2), True), ((0, 2), False), ((0, 1, 2), False)):
        a = {"axes": axes, "keep": keep}
        for kind in ("sum", "mean", "max", "min", "prod", "log_sum_exp"):
            yield Case(kind, [(3, 4, 2)], "x", a)
            yield Case(kind, [(3, 4, 2)], "x", a, dtype="f8")
        for correction in (0, 1):
            yield Case("variance", [(3, 4, 2)], "x", a | {"correction": correction})
        for order in (0, 1, 2.0, 3.5, 1e300, -1e300):
            yield Case("norm", [(3, 4, 2)], "x", a | {"order": order})
    for kind in ("sum", "max", "min", "prod"):
        yield Case(kind, [(3, 4)], "i", {"axes": (1,), "keep": False}, dtype="i8")


def _windows() -> Iterator[Case]:
    for ceil in (False, True):
        yield Case(
            "max_pool", [(2, 7, 8)], "x", _pool((3, 2), (2, 2), (1, 0), ceil, dilation=(1, 2))
        )
        yield Case("max_pool", [(2, 9)], "z", _pool((4,), (3,), (2,), ceil, dilation=(1,)))
        yield Case(
            "max_pool",
            [(2, 4, 5, 3)],
            "x",
            _pool((2, 2, 2), (2, 1, 1), (1, 0, 0), ceil, dilation=(1, 1, 1)),
        )
        for padding in (False, True):
            for divisor in (0, 3):
                a = {"count_padding": padding, "divisor": divisor}
                yield Case("avg_pool", [(2, 7, 8)], "x", _pool((3, 2), (2, 2), (1, 0), ceil, **a))
                yield Case("avg_pool", [(2, 9)], "x", _pool((4,), (3,), (2,), ceil, **a))
                yield Case(
                    "avg_pool",
                    [(2, 4, 5, 3)],
                    "x",
                    _pool((2, 2, 2), (2, 1, 1), (1, 0, 0), ceil, **a),
                )
    for kind in ("adaptive_max_pool", "adaptive_avg_pool"):
        for shape, size in (
            ((2, 7), (3,)),
            ((2, 7, 5), (3, 5)),
            ((2, 3, 4), (5, 1)),
            ((1, 3, 4, 5), (2, 3, 4)),
        ):
            yield Case(kind, [shape], "x", {"size": size})
    for shape, size in (
        ((2, 5), (8,)),
        ((2, 7, 5), (3, 9)),
        ((1, 3, 4, 5), (5, 3, 5)),
        ((2, 3, 3), (1, 6)),
    ):
        yield Case(
            "resize", [shape], "x", {"size": size, "mode": "nearest", "align_corners": False}
        )
        for corners in (False, True):
            yield Case(
                "resize", [shape], "x", {"size": size, "mode": "linear", "align_corners": corners}
            )


def _places() -> Iterator[Case]:
    for given, dtype in (("x", "f4"), ("i", "i8"), ("b", "b1"), ("d", "f4"), ("s", "f4")):
        yield Case("reshape", [(3, 4)], given, {"shape": (2, 6)}, dtype)
        yield Case("permute", [(3, 4, 2)], given, {"axes": (2, 0, 1)}, dtype)
        yield Case("slice", [(3, 7)], given, {"axis": 1, "start": 1, "stop": 6, "step": 2}, dtype)
        yield Case("expand", [(3, 1)], given, {"shape": (2, 3, 4)}, dtype)
        yield Case("flip", [(3, 4)], given, {"axes": (0, 1)}, dtype)
    yield Case("reshape", [(1, 1)], "x", {"shape": ()})
    yield Case("concat", [(3, 4), (3, 2), (3, 1)], "xdc", {"axis": 1})
    yield Case("concat", [(3, 4)], "x", {"axis": 0})
    for mode in ("constant", "reflect", "replicate", "circular"):
        widths = ((2, 1), (0, 0), (1, 3))
        yield Case("pad", [(3, 2, 5)], "x", {"widths": widths, "mode": mode, "value": 0.5})
        yield Case("pad", [(3, 2, 5)], "i", {"widths": widths, "mode": mode, "value": 1}, "i8")
    cropped = {"widths": ((-1, 2), (-2, -1)), "mode": "constant", "value": -1.5}
    yield Case("pad", [(3, 5)], "x", cropped)
    yield Case("pad", [(3, 5)], "x", cropped | {"value": -1e300})
    yield Case("take", [(3, 4, 2), (5,)], "xj", {"axis": 0})
    yield Case("take", [(3, 4, 2), (2, 2)], "dj", {"axis": 1})
    yield Case("take", [(3, 4), ()], "ij", {"axis": 1}, "i8")


CASES = [
    *_products(),
    *_normalisation(),
    *_elementwise(),
    *_reductions(),
    *_windows(),
    *_places(),
]


def program_of(case: Case, seed: int = 0) -> tuple[Program, list[np.ndarray]]:
    """The program of a case, and inputs for it."""
    generator = np.random.default_rng([seed, *case.id.encode()])
    inputs, constants, sites, arrays, names = {}, {}, {}, [], []
    for place, (how, shape) in enumerate(zip(case.given, case.shapes, strict=False)):
        name = "" if how == "-" else f"v{place}"
        names.append(name)
        if how in "xpzib":
            array = _numbers(generator, how, (ROWS, *shape), case)
            inputs[name] = Value(shape, array.dtype.str[1:])
            arrays.append(array)
        elif how in "cdvjm":
            count = 2 if how == "d" else 1
            array = _numbers(
                generator,
                {"v": "p", "j": "i", "m": "b"}.get(how, "x"),
                (count, *shape),
                case,
            )
            if case.kind == "threshold" and place == 1:
                array = array.round()  # some are met exactly by an input of whole numbers
            if case.kind == "threshold" and place == 2:
                array = np.where(array >= 0, 1.0, -1.0).astype(array.dtype)
            rows = np.array([0, 1, 0]) if how == "d" else None
            constants[name] = Constant(array, rows)
        elif how in "st":
            sites[name] = site_of(generator, shape, how == "s", place)
    if not arrays:  # of which only the number of rows is used
        inputs["rows"] = Value((), "f4")
        arrays.append(np.zeros(ROWS, np.float32))
    outputs = tuple(f"y{place}" for place in range(case.outputs))
    step = Step(case.kind, tuple(names), outputs, case.dtype, case.attributes)
    return Program(inputs, constants, sites, (step,), outputs, DRAWS), arrays


def site_of(
    generator: np.random.Generator, shape: tuple[int, ...], drawn: bool, number: int = 0
) -> DrawnSite | StoredSite:
    """Signs of ``DRAWS`` draws, drawn where they are used or stored for each (the first twice)."""
    units, inputs = shape[0], int(np.prod(shape[1:]))
    if not drawn:
        plus = generator.random((2, units, inputs)) < 0.5
        bits = np.stack([pack_words(one) for one in plus])
        return StoredSite(shape, bits, np.array([0, 1, 0]))
    mode = pack_words(generator.random((units, inputs)) < 0.5)[None]
    flip = generator.integers(0, 2**15 + 1, (1, units, inputs)).astype(np.uint16)
    keys = np.array([key_of(0, draw, str(number)) for draw in range(DRAWS)], dtype=np.uint64)
    return DrawnSite(shape, mode, flip, keys)


def _numbers(
    generator: np.random.Generator, how: str, shape: tuple[int, ...], case: Case
) -> np.ndarray:
    real = np.float64 if case.dtype == "f8" else np.float32
    if how == "i":
        return generator.integers(0, case.most, shape)
    if how == "b":
        return generator.random(shape) < 0.6
    if how == "z":
        return generator.integers(-2, 3, shape).astype(real)
    values = generator.standard_normal(shape)
    return (np.abs(values) + 0.1 if how == "p" else values).astype(real)
