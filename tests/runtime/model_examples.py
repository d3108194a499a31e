"""Small programs with draws of every sort, for the tests of predictors and files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.runtime.program import (
    Constant,
    DrawnSite,
    Program,
    Site,
    Step,
    StoredSite,
    Value,
    signs_of,
)

DRAWS = 5


def drawn_site(
    rng: np.random.Generator, shape: tuple[int, ...], draws: int, rows: Sequence[int] | None = None
) -> DrawnSite:
    """A site with random probabilities: one distribution for all draws, or that of its row for each."""
    count = 1 if rows is None else max(rows) + 1
    inputs = int(np.prod(shape[1:]))
    mode = np.stack([pack_words(rng.random(shape) < 0.5) for _ in range(count)])
    flip = rng.integers(0, 32769, (count, shape[0], inputs)).astype(np.uint16)
    keys = np.array([key_of(3, draw, str(shape)) for draw in range(draws)], dtype=np.uint64)
    return DrawnSite(shape, mode, flip, keys, None if rows is None else np.array(rows))


def stored_site(
    rng: np.random.Generator, shape: tuple[int, ...], rows: Sequence[int] | None
) -> StoredSite:
    """A site with random signs: for all draws, or those of its row for each."""
    count = 1 if rows is None else max(rows) + 1
    bits = np.stack([pack_words(rng.random(shape) < 0.5) for _ in range(count)])
    return StoredSite(shape, bits, None if rows is None else np.array(rows))


def constant(numbers: object, dtype: str = "f4", rows: Sequence[int] | None = None) -> Constant:
    """Numbers that all draws share, or, where ``rows`` is given, rows of them."""
    data = np.asarray(numbers, dtype=np.dtype(dtype))
    return Constant(data[None] if rows is None else data, None if rows is None else np.array(rows))


def perceptron(draws: int = DRAWS, outputs: int = 3, site: str = "drawn", seed: int = 0) -> Program:
    """x (11,): binary (9, 11), affine per draw, relu, binary (outputs, 9), bias.

    :param site: "drawn", "listed" (two distributions), "stored" or "shared".
    """
    rng = np.random.default_rng(seed)
    some = [draw % 2 for draw in range(draws)]
    make = {
        "drawn": lambda shape: drawn_site(rng, shape, draws),
        "listed": lambda shape: drawn_site(rng, shape, draws, some),
        "stored": lambda shape: stored_site(rng, shape, range(draws)),
        "shared": lambda shape: stored_site(rng, shape, None),
    }[site]
    sites: dict[str, Site] = {"0.weight": make((9, 11)), "2.weight": make((outputs, 9))}
    constants = {
        "slope": constant(rng.uniform(0.1, 0.5, (draws, 9)), rows=range(draws)),
        "shift": constant(rng.standard_normal((2, 9)), rows=some),
        "bias": constant(rng.standard_normal(outputs)),
    }
    steps = (
        Step("linear", ("x", "0.weight"), ("a",)),
        Step("affine", ("a", "slope", "shift"), ("b",), attributes={"axis": 0}),
        Step("relu", ("b",), ("c",)),
        Step("linear", ("c", "2.weight", "bias"), ("y",)),
    )
    return Program({"x": Value((11,), "f4")}, constants, sites, steps, ("y",), draws)


def perceptron_outputs(program: Program, x: np.ndarray) -> np.ndarray:
    """What :func:`perceptron` returns by the formula, in float64: (S, B, outputs)."""
    found = []
    for draw in range(program.num_draws):
        first = signs_of(program.sites["0.weight"], draw, np.float64)
        second = signs_of(program.sites["2.weight"], draw, np.float64)
        slope, shift, bias = (
            program.constants[name].at(draw).astype(np.float64)
            for name in ("slope", "shift", "bias")
        )
        found.append(np.maximum(x @ first.T * slope + shift, 0.0) @ second.T + bias)
    return np.stack(found)


def convolution(draws: int = DRAWS) -> Program:
    """x (2, 5, 6): binary (4, 2, 3, 3) with padding, sign, binary (3, 80) at a stride, logits."""
    rng = np.random.default_rng(1)
    sites: dict[str, Site] = {
        "conv": drawn_site(rng, (4, 2, 3, 3), draws),
        "last": drawn_site(rng, (3, 36), draws),
    }
    window = {"stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    steps = (
        Step("conv", ("x", "conv"), ("a",), attributes=window),
        Step("sign", ("a",), ("b",)),
        Step("reshape", ("b",), ("c",), attributes={"shape": (36,)}),
        Step("linear", ("c", "last"), ("y",)),
    )
    return Program({"x": Value((2, 5, 6), "f4")}, {}, sites, steps, ("y",), draws)


def varied(draws: int = DRAWS) -> Program:
    """x (2, 6, 6) and whole numbers t (4,): steps, constants and sites of most sorts, as small as can be."""
    rng = np.random.default_rng(2)
    some = [draw % 2 for draw in range(draws)]
    levels = Constant(rng.integers(0, 3, (1, 5, 4)).astype(np.uint8), None, (-0.5, 0.0, 0.5))
    constants = {
        "table": levels,
        "mask": Constant(rng.random((1, 3)) < 0.5),
        "order": constant([2, 0, 1], "i8"),
        "slope": constant(rng.uniform(0.1, 0.5, (2, 3)), rows=some),
        "shift": constant(rng.standard_normal((draws, 3)), "f8", rows=range(draws)),
        "real": constant(rng.standard_normal((3, 16))),
        "none": constant(0.0),
        "state": constant(np.zeros(3)),
        "gates": constant(rng.standard_normal((9, 4))),
        "own": constant(rng.standard_normal((9, 3))),
    }
    sites: dict[str, Site] = {
        "conv": drawn_site(rng, (3, 1, 2, 2), draws),
        "listed": drawn_site(rng, (3, 27), draws, some),
        "last": stored_site(rng, (3, 9), range(draws)),
    }
    window = {"stride": (1, 1), "padding": ((0, 1), (1, 0)), "dilation": (1, 1), "groups": 1}
    pool = {"size": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False, "dilation": (1, 1)}
    steps = (
        Step("slice", ("x",), ("one",), attributes={"axis": 0, "start": 0, "stop": 1, "step": 1}),
        Step("conv", ("one", "conv"), ("a",), attributes=window),
        Step("max_pool", ("a",), ("pooled",), attributes=pool),
        Step("affine", ("pooled", "slope", "shift"), ("b",), "f8", {"axis": 0}),
        Step("sign", ("b",), ("c",)),
        Step("reshape", ("c",), ("flat",), attributes={"shape": (27,)}),
        Step("linear", ("flat", "listed"), ("d",)),
        Step("embedding", ("t", "table"), ("words",)),
        Step("gru", ("words", "state", "gates", "own"), ("e", "f"), attributes={"reverse": False}),
        Step("reshape", ("words",), ("row",), attributes={"shape": (16,)}),
        Step("linear", ("row", "real"), ("g",)),
        Step("where", ("mask", "d", "none"), ("h",)),
        Step("clamp", ("h",), ("i",), attributes={"low": -1.7976931348623157e308, "high": 9}),
        Step("concat", ("i", "f", "g"), ("j",), attributes={"axis": 0}),
        Step("linear", ("j", "last"), ("k",)),
        Step("take", ("k", "order"), ("y",), attributes={"axis": 0}),
    )
    inputs = {"x": Value((2, 6, 6), "f4"), "t": Value((4,), "i8")}
    return Program(inputs, constants, sites, steps, ("y",), draws)


def raw_inputs() -> Program:
    """Preprocessing of :func:`varied`: pixels, of which each channel is scaled by its own numbers."""
    constants = {"std": constant([[[2.0]], [[4.0]]])}
    inputs = {"pixels": Value((2, 6, 6), "f4"), "tokens": Value((4,), "i8")}
    steps = (Step("div", ("pixels", "std"), ("x",)),)
    return Program(inputs, constants, {}, steps, ("x", "tokens"))
