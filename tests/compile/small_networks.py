"""A small network of many kinds, with a different network in each draw."""

from __future__ import annotations

import numpy as np
from kind_cases import DRAWS

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, StoredSite, Value


def layers(draws: int = DRAWS, seed: int = 0) -> Program:
    """Linear, decision, convolution by drawn signs, decision, linear: all kinds of weights."""
    rng = np.random.default_rng(seed)
    rows = np.arange(draws, dtype=np.int64)
    bits = np.stack([pack_words(rng.random((12, 20)) < 0.5) for _ in range(draws)])
    shape = (4, 2, 3)
    mode = pack_words(rng.random((4, 6)) < 0.5)[None]
    flip = rng.integers(0, 1 << 15, (1, 4, 6)).astype(np.uint16)
    keys = np.array([key_of(0, draw, "conv") for draw in range(draws)], dtype=np.uint64)
    steps = (
        Step("mul", ("x", "scale"), ("scaled",)),
        Step("linear", ("scaled", "first"), ("sums",), "f8"),
        Step("threshold", ("sums", "at", "slope"), ("signs",), "f4", {"axis": 0}),
        Step("reshape", ("signs",), ("image",), "f4", {"shape": (2, 6)}),
        Step("conv", ("image", "conv", "bias"), ("more",), "f8",
             {"stride": (1,), "padding": ((1, 1),), "dilation": (1,), "groups": 1}),
        Step("sign", ("more",), ("bits",)),
        Step("reshape", ("bits",), ("flat",), "f4", {"shape": (24,)}),
        Step("linear", ("flat", "last"), ("logits",)),
    )  # fmt: skip
    constants = {
        "scale": Constant(rng.normal(size=(1, 20)).astype(np.float32)),
        "at": Constant(rng.normal(size=(draws, 12)), rows),
        "slope": Constant(rng.choice([-1.0, 1.0], size=(draws, 12)), rows),
        "bias": Constant(np.full((1, 4), 0.5)),
        "last": Constant(
            rng.integers(0, 3, (draws, 5, 24)).astype(np.uint8), rows, (-0.5, 0.0, 0.5)
        ),
    }
    sites = {
        "first": StoredSite((12, 20), bits, rows),
        "conv": DrawnSite(shape, mode, flip, keys),
    }
    return Program({"x": Value((20,), "f4")}, constants, sites, steps, ("logits",), draws)
