"""Small programs of one step each: every kind, over attributes and shapes that tell mistakes apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, StoredSite, Value

DRAWS = 3


@dataclass(frozen=True)
class Case:
    """A step and its inputs.

    :param inputs: each a letter and a shape: x data, p positive data, c a constant of each draw, k a
        constant of all draws, s a site of signs, d a site that is drawn, i whole numbers 0 .. 3, j the
        same as a constant, b booleans, m booleans as a constant; None for one that is absent.
    """

    kind: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    scale: float = 2.0
    dtypes: tuple[str, ...] = ("f4", "f8")


def _x(*shapes: Any) -> tuple[Any, ...]:
    return tuple(("x", shape) for shape in shapes)


_CONV = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
_ODD = {"stride": (2, 1), "padding": ((2, 1), (0, 3)), "dilation": (1, 2), "groups": 2}
_UP = {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "dilation": (2, 1)}
_POOL = {"size": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}
_WIDE = {"size": (3, 2), "stride": (2, 3), "padding": (1, 1), "ceil": True}
_LINE = {"size": (3,), "stride": (2,), "padding": (1,)}
_ELU = {"alpha": 0.7, "scale": 1.3, "input_scale": 0.9}


def _simple(kind: str, letter: str = "x", **attributes: Any) -> Case:
    return Case(kind, ((letter, (3, 5)),), attributes)


def _binary(kind: str, dtypes: tuple[str, ...] = ("f4", "f8")) -> list[Case]:
    return [
        Case(kind, _x((3, 5), (3, 5)), dtypes=dtypes),
        Case(kind, _x((2, 3, 5), (5,)), dtypes=dtypes),
        Case(kind, (("x", (5,)), ("c", (2, 3, 1))), dtypes=dtypes),
        Case(kind, (("k", ()), ("x", (3,))), dtypes=dtypes),
    ]


def _reduced(kind: str, **more: Any) -> list[Case]:
    return [
        Case(kind, _x((3, 4, 5)), {"axes": (2,), "keep": False} | more),
        Case(kind, _x((3, 4, 5)), {"axes": (0, 1), "keep": True} | more),
        Case(kind, _x((4, 5)), {"axes": (0, 1), "keep": False} | more),
    ]


def _channels(kind: str, count: int, **more: Any) -> list[Case]:
    return [
        Case(kind, (("x", (4,)), *[("c", (4,))] * count), {"axis": 0} | more),
        Case(kind, (("x", (3, 4, 2)), *[("c", (3,))] * count), {"axis": 0} | more),
        Case(kind, (("x", (3, 4)), *[("k", ())] * count), {"axis": 1} | more),
    ]


CASES: list[Case] = [
    Case("linear", (("x", (70,)), ("s", (6, 70)))),
    Case("linear", (("x", (33,)), ("d", (6, 33)), ("c", (6,)))),
    Case("linear", (("x", (3, 9)), ("c", (4, 9)), ("k", (4,)))),
    Case("linear", (("x", (2, 3, 8)), ("s", (5, 8)))),
    Case("conv", (("x", (3, 6, 7)), ("s", (4, 3, 3, 3))), _CONV),
    Case("conv", (("x", (4, 6, 7)), ("d", (6, 2, 3, 2)), ("c", (6,))), _ODD),
    Case("conv", (("x", (4, 6, 7)), ("c", (6, 2, 3, 2)), ("k", (6,))), _ODD),
    Case(
        "conv",
        (("x", (2, 9)), ("s", (3, 2, 4))),
        {"stride": (2,), "padding": ((3, 2),), "dilation": (2,), "groups": 1},
    ),
    Case(
        "conv",
        (("x", (2, 4, 3, 5)), ("c", (3, 2, 2, 2, 3)), ("c", (3,))),
        {"stride": (1, 2, 1), "padding": ((1, 0),) * 3, "dilation": (1,) * 3, "groups": 1},
    ),
    Case("conv", (("x", (5, 4, 4)), ("s", (5, 1, 3, 3))), _CONV | {"groups": 5}),
    Case("conv_transpose", (("x", (4, 3, 4)), ("c", (4, 3, 2, 3)), ("c", (6,))), _UP | {"groups": 2}),
    Case("conv_transpose", (("x", (4, 3, 4)), ("s", (4, 3, 2, 3))), _UP | {"groups": 1}),
    Case(
        "conv_transpose",
        (("x", (2, 5)), ("k", (2, 3, 4))),
        {"stride": (2,), "padding": (1,), "output_padding": (0,), "dilation": (1,), "groups": 1},
    ),
    Case("matmul", _x((3, 4), (4, 5))),
    Case("matmul", _x((2, 3, 4), (4, 5))),
    Case("matmul", (("c", (3, 4)), ("x", (2, 4, 5)))),
    Case("attention", _x((4, 3), (5, 3), (5, 2)), {"scale": 0.5, "causal": False}),
    Case("attention", _x((2, 4, 3), (2, 4, 3), (2, 4, 3)), {"scale": 0.6, "causal": True}),
    Case("attention", (*_x((2, 4, 3), (5, 3), (5, 2)), ("c", (4, 5))), {"scale": 1.0, "causal": False}),
    Case("attention", (*_x((4, 3), (5, 3), (5, 2)), ("m", (4, 5))), {"scale": 1.0, "causal": False}),
    Case(
        "attention",
        (*_x((2, 4, 3), (2, 5, 3), (5, 2)), ("b", (2, 4, 5))),
        {"scale": 1.0, "causal": True},
    ),
    Case("embedding", (("i", (3,)), ("s", (4, 6)))),
    Case("embedding", (("i", (2, 3)), ("c", (4, 5)))),
    Case(
        "lstm",
        (("x", (4, 3)), ("k", (5,)), ("k", (5,)), ("s", (20, 3)), ("c", (20, 5)), ("c", (20,)), ("k", (20,))),
        {"reverse": False},
        3,
    ),
    Case(
        "lstm",
        (("x", (4, 3)), ("x", (5,)), ("x", (5,)), ("c", (20, 3)), ("d", (20, 5))),
        {"reverse": True},
        3,
    ),
    Case(
        "gru",
        (("x", (4, 3)), ("k", (5,)), ("s", (15, 3)), ("c", (15, 5)), ("c", (15,)), ("k", (15,))),
        {"reverse": True},
        2,
    ),
    Case("gru", (("x", (4, 3)), ("x", (5,)), ("c", (15, 3)), ("c", (15, 5))), {"reverse": False}, 2),
    Case(
        "rnn",
        (("x", (4, 3)), ("k", (5,)), ("s", (5, 3)), ("c", (5, 5)), ("c", (5,)), ("k", (5,))),
        {"reverse": False, "activation": "tanh"},
        2,
    ),
    Case(
        "rnn",
        (("x", (4, 3)), ("x", (5,)), ("c", (5, 3)), ("s", (5, 5))),
        {"reverse": True, "activation": "relu"},
        2,
    ),
    *_channels("affine", 2),
    Case(
        "batch_norm",
        (("x", (3, 4, 2)), ("c", (3,)), ("pc", (3,)), ("c", (3,)), ("k", (3,))),
        {"axis": 0, "eps": 1e-5},
    ),
    Case("batch_norm", (("x", (4,)), ("c", (4,)), ("pc", (4,)), None, ("c", (4,))), {"axis": 0, "eps": 1e-3}),
    Case("batch_norm", (("x", (2, 4)), ("c", (4,)), ("pc", (4,))), {"axis": 1, "eps": 1e-3}),
    Case("layer_norm", (("x", (3, 4)), ("c", (4,)), ("k", (4,))), {"axes": 1, "eps": 1e-5}),
    Case("layer_norm", (("x", (2, 3, 4)), None, ("c", (3, 4))), {"axes": 2, "eps": 1e-3}),
    Case("layer_norm", _x((6,)), {"axes": 1, "eps": 1e-5}),
    Case("rms_norm", (("x", (3, 4)), ("c", (4,))), {"axes": 1, "eps": 1e-5}),
    Case("rms_norm", _x((3, 4)), {"axes": 2, "eps": 1e-3}),
    Case("group_norm", (("x", (4, 3, 2)), ("c", (4,)), ("k", (4,))), {"groups": 2, "eps": 1e-5}),
    Case("group_norm", _x((6,)), {"groups": 3, "eps": 1e-3}),
    *[Case(k, _x((3, 4)), {"axis": a}) for k in ("softmax", "log_softmax", "cumsum") for a in (0, 1)],
    Case("sign", _x((3, 5))),
    *_channels("threshold", 2),
    _simple("relu"),
    _simple("clamp", low=-1.0, high=0.5),
    _simple("clamp", low=-1e300, high=0.5),
    _simple("tanh"),
    Case("tanh", _x((3, 50)), scale=8.0),
    _simple("leaky_relu", slope=0.1),
    *_channels("prelu", 1),
    _simple("elu", **_ELU),
    _simple("gelu", approximate="none"),
    _simple("gelu", approximate="tanh"),
    *[_simple(k) for k in ("silu", "mish", "hardsigmoid", "hardswish", "sigmoid", "log_sigmoid")],
    Case("hardswish", _x((40,)), scale=5.0),
    _simple("softplus", beta=1.5, threshold=2.0),
    _simple("softsign"),
    _simple("hardshrink", bound=0.6),
    _simple("softshrink", bound=0.6),
    *[_simple(k) for k in ("exp", "abs", "neg", "sin", "cos", "erf", "floor", "round")],
    *[_simple(k, "p") for k in ("log", "sqrt", "rsqrt", "reciprocal")],
    _simple("logical_not", "b"),
    Case("cast", _x((3, 5)), dtypes=("f4", "f8", "i8")),
    *[case for kind in ("add", "sub", "mul", "maximum", "minimum") for case in _binary(kind)],
    Case("div", (("x", (2, 3, 5)), ("p", (5,)))),
    Case("pow", (("p", (2, 3)), ("c", (3,)))),
    *[case for kind in ("greater", "greater_equal", "equal") for case in _binary(kind, ("b1",))],
    Case("equal", (("i", (3, 4)), ("i", (4,))), dtypes=("b1",)),
    *[Case(k, (("b", (2, 3)), ("m", (3,))), dtypes=("b1",)) for k in ("logical_and", "logical_or")],
    Case("where", (("b", (3, 1)), ("x", (2, 3, 4)), ("c", (4,)))),
    Case("where", (("m", (2, 3)), ("x", ()), ("x", (3,)))),
    *[case for k in ("sum", "mean", "max", "min", "prod", "log_sum_exp") for case in _reduced(k)],
    *_reduced("variance", correction=1),
    *_reduced("variance", correction=0),
    *[case for order in (1, 2, 3.0, 0, -1e308, 1e308) for case in _reduced("norm", order=order)],
    Case("max_pool", _x((2, 6, 7)), _POOL | {"dilation": (1, 1)}),
    Case("max_pool", _x((2, 6, 7)), _WIDE | {"dilation": (2, 1)}),
    Case("max_pool", _x((2, 9)), _LINE | {"ceil": True, "dilation": (1,)}),
    Case("avg_pool", _x((2, 6, 7)), _POOL | {"count_padding": True, "divisor": 0}),
    *[
        Case("avg_pool", _x((2, 6, 7)), _WIDE | {"count_padding": count, "divisor": divisor})
        for count in (False, True)
        for divisor in (0, 5)
    ],
    Case(
        "avg_pool",
        _x((2, 9)),
        _LINE | {"ceil": False, "count_padding": False, "divisor": 0},
    ),
    *[
        Case(f"adaptive_{kind}_pool", _x((2, 7, 5)), {"size": size})
        for kind in ("max", "avg")
        for size in ((3, 2), (1, 1), (7, 1))
    ],
    *[
        Case("resize", _x((2, 3, 5)), {"size": size, "mode": mode, "align_corners": align})
        for size in ((6, 7), (2, 3), (1, 5))
        for mode, align in (("nearest", False), ("linear", False), ("linear", True))
    ],
    Case("reshape", _x((3, 4)), {"shape": (2, 6)}),
    Case("reshape", _x((3, 4)), {"shape": (12,)}),
    Case("permute", _x((2, 3, 4)), {"axes": (2, 0, 1)}),
    Case("slice", _x((3, 9)), {"axis": 1, "start": 1, "stop": 8, "step": 3}),
    Case("slice", _x((3, 9)), {"axis": 0, "start": 1, "stop": 3, "step": 1}),
    Case("concat", (("x", (3, 2)), ("c", (3, 4)), ("x", (3, 1))), {"axis": 1}),
    Case("concat", _x((2, 3), (1, 3)), {"axis": 0}),
    *[
        Case("pad", _x((3, 5)), {"widths": widths, "mode": mode, "value": 0.5})
        for mode, widths in (
            ("constant", ((1, 2), (0, 3))),
            ("constant", ((-1, 2), (1, -2))),
            ("reflect", ((0, 0), (3, 2))),
            ("replicate", ((2, 0), (1, 7))),
            ("circular", ((1, 1), (2, 5))),
        )
    ],
    Case("pad", _x((3, 5)), {"widths": ((0, 1), (1, 0)), "mode": "constant", "value": -1e300}),
    Case("clamp", (("i", (3, 5)),), {"low": -1e300, "high": 2.0}, dtypes=("i8",)),
    *[Case(k, (("i", (3, 5)),), dtypes=("i8",)) for k in ("relu", "neg", "abs", "sign", "round")],
    *[Case(k, (("i", (3, 5)), ("j", (5,))), dtypes=("i8",)) for k in ("add", "mul", "minimum")],
    *[
        Case(k, (("i", (3, 5)),), {"axes": (1,), "keep": False}, dtypes=("i8",))
        for k in ("sum", "max", "prod")
    ],
    Case("cumsum", (("i", (3, 5)),), {"axis": 1}, dtypes=("i8",)),
    Case(
        "pad",
        (("b", (3, 5)),),
        {"widths": ((1, 0), (0, 2)), "mode": "constant", "value": 1},
        dtypes=("b1",),
    ),
    Case("concat", (("b", (3, 2)), ("m", (3, 4))), {"axis": 1}, dtypes=("b1",)),
    Case("flip", (("i", (3, 5)),), {"axes": (1,)}, dtypes=("i8", "f4")),
    Case("expand", _x((3, 1)), {"shape": (2, 3, 4)}),
    Case("flip", _x((3, 4)), {"axes": (1,)}),
    Case("flip", _x((3, 4)), {"axes": (0, 1)}),
    Case("take", (("x", (5, 3)), ("j", (2, 2))), {"axis": 0}),
    Case("take", (("x", (3, 4)), ("j", (3,))), {"axis": 1}),
]  # fmt: skip


def named_cases() -> list[Any]:
    """(name, case, type of the outputs) for each case and type."""
    found = []
    for place, case in enumerate(CASES):
        dtypes = case.dtypes if case.kind != "logical_not" else ("b1",)
        found += [(f"{case.kind}-{place}-{dtype}", case, dtype) for dtype in dtypes]
    return found


def program_of(case: Case, dtype: str, draws: int = DRAWS, seed: int = 0) -> Program:
    """A case as a program, with an input that puts a batch and a draw into its outputs."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Value] = {}
    constants: dict[str, Constant] = {}
    sites: dict[str, Any] = {}
    names = []
    floats = dtype if dtype in ("f4", "f8") else "f4"
    for place, given in enumerate(case.inputs):
        name = "" if given is None else f"in{place}"
        names.append(name)
        if given is None:
            continue
        letter, shape = given
        if letter in ("x", "p"):
            inputs[name] = Value(shape, floats)
        elif letter in ("i", "b"):
            inputs[name] = Value(shape, {"i": "i8", "b": "b1"}[letter])
        elif letter in ("s", "d"):
            sites[name] = _site(rng, letter, shape, draws)
        else:
            constants[name] = _constant(rng, letter, shape, draws, floats)
    outputs = tuple(f"out{place}" for place in range(case.outputs))
    step = Step(case.kind, tuple(names), outputs, dtype, case.attributes)
    return Program(inputs, constants, sites, (step,), outputs, draws)


def _site(rng: np.random.Generator, letter: str, shape: tuple[int, ...], draws: int) -> Any:
    if letter == "s":
        plus = rng.random((2, *shape)) < 0.5
        rows = np.arange(draws, dtype=np.int64) % 2
        return StoredSite(shape, np.stack([pack_words(each) for each in plus]), rows)
    flat = (1, shape[0], int(np.prod(shape[1:])))
    mode = pack_words(rng.random(flat[1:]) < 0.5)[None]
    flip = rng.integers(0, 1 << 15, flat).astype(np.uint16)
    keys = np.array([key_of(0, draw, "site") for draw in range(draws)], dtype=np.uint64)
    return DrawnSite(shape, mode, flip, keys)


def _constant(
    rng: np.random.Generator, letter: str, shape: tuple[int, ...], draws: int, dtype: str
) -> Constant:
    if letter == "j":
        return Constant(rng.integers(0, 4, (1, *shape)))
    if letter == "m":
        return Constant(rng.random((1, *shape)) < 0.6)
    kind = {"f4": np.float32, "f8": np.float64}[dtype]
    count = 1 if letter == "k" else 2
    data = rng.normal(size=(count, *shape))
    if letter == "pc":
        data = np.abs(data) + 0.1
    rows = None if letter == "k" else np.arange(draws, dtype=np.int64) % 2
    return Constant(data.astype(kind), rows)


def joined(programs: dict[str, Program], draws: int = DRAWS) -> Program:
    """Programs side by side as one, the names of each behind its own."""
    inputs, constants, sites = {}, {}, {}
    steps, outputs = [], []
    for label, program in programs.items():
        for into, given in (
            (inputs, program.inputs),
            (constants, program.constants),
            (sites, program.sites),
        ):
            into |= {f"{label}.{name}": each for name, each in given.items()}
        for step in program.steps:
            names = [
                tuple(f"{label}.{name}" if name else "" for name in names)
                for names in (step.inputs, step.outputs)
            ]
            steps.append(Step(step.kind, *names, step.dtype, step.attributes))
        outputs += [f"{label}.{name}" for name in program.outputs]
    return Program(inputs, constants, sites, tuple(steps), tuple(outputs), draws)


def data_of(case: Case, program: Program, batch: int, seed: int = 1) -> list[np.ndarray]:
    """Inputs of a case, with ties and signed zeros among its numbers."""
    rng = np.random.default_rng(seed)
    letters = {f"in{place}": given[0] for place, given in enumerate(case.inputs) if given}
    found = []
    for name, value in program.inputs.items():
        shape, letter = (batch, *value.shape), letters[name]
        if letter == "i":
            found.append(rng.integers(0, 4, shape))
        elif letter == "b":
            found.append(rng.random(shape) < 0.5)
        else:
            x = rng.normal(size=shape) * case.scale
            x = np.where(rng.random(shape) < 0.2, np.round(x), x)
            if letter == "p":
                x = np.abs(x) + 0.1
            found.append(x.astype({"f4": np.float32, "f8": np.float64}[value.dtype]))
    return found


def kinds_of(cases: Sequence[Case] = CASES) -> set[str]:
    """The kinds that there are cases of."""
    return {case.kind for case in cases}
