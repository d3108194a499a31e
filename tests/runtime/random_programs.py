"""Random networks as programs: images and vectors through steps of many kinds, with detours and joins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Constant, DrawnSite, Program, Site, Step, StoredSite, Value

ELEMENTWISE: list[tuple[str, dict[str, Any]]] = [
    ("relu", {}),
    ("clamp", {"low": -1.0, "high": 1.5}),
    ("leaky_relu", {"slope": 0.2}),
    ("abs", {}),
    ("neg", {}),
    ("tanh", {}),
]
IN_NUMPY: list[tuple[str, dict[str, Any]]] = [("gelu", {"approximate": "none"}), ("silu", {})]


class RandomProgram:
    """Builds one program; every method adds steps and returns the name of what comes out."""

    def __init__(self, seed: int, draws: int = 3) -> None:
        self.rng, self.draws = np.random.default_rng(seed), draws
        self.inputs: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        self.sites: dict[str, Site] = {}
        self.steps: list[Step] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.count = 0

    def name(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def input(self, shape: tuple[int, ...], dtype: str = "f4") -> str:
        name = self.name("x")
        self.inputs[name] = Value(shape, dtype)
        self.shapes[name], self.dtypes[name] = shape, dtype
        return name

    def constant(
        self,
        shape: tuple[int, ...],
        scale: float = 1.0,
        of: str = "normal",
        drawn: bool | None = None,
    ) -> str:
        drawn = bool(self.rng.integers(2)) if drawn is None else drawn
        rows = self.rng.integers(0, 2, self.draws) if drawn else None
        data = self.rng.standard_normal((2 if drawn else 1, *shape)) * scale
        if of == "signs":
            data = np.where(data >= 0, 1.0, -1.0)
        if of == "whole":
            data = np.rint(data)
        name = self.name("c")
        dtype = np.float64 if of != "normal" else np.float32
        self.constants[name] = Constant(data.astype(dtype), rows)
        self.shapes[name], self.dtypes[name] = shape, np.dtype(dtype).str[1:]
        return name

    def site(self, shape: tuple[int, ...]) -> str:
        name, inputs = self.name("w"), math.prod(shape[1:])
        if self.rng.integers(2):
            bits = np.stack([pack_words(self.rng.random(shape) < 0.5) for _ in range(2)])
            self.sites[name] = StoredSite(shape, bits, self.rng.integers(0, 2, self.draws))
        else:
            mode = pack_words(self.rng.random(shape) < 0.5)[None]
            flip = self.rng.integers(0, 32769, (1, shape[0], inputs)).astype(np.uint16)
            keys = np.array([key_of(1, draw, name) for draw in range(self.draws)], np.uint64)
            self.sites[name] = DrawnSite(shape, mode, flip, keys)
        self.shapes[name] = shape
        return name

    def step(self, kind: str, inputs: tuple[str, ...], dtype: str = "f4", **attributes: Any) -> str:
        name = self.name("v")
        shapes = [self.shapes[each] for each in inputs]
        self.steps.append(Step(kind, inputs, (name,), dtype, attributes))
        self.shapes[name] = KINDS[kind].shapes(attributes, shapes)[0]
        self.dtypes[name] = dtype
        return name

    def linear(self, x: str, units: int, dtype: str = "f4", bias: bool = False) -> str:
        weight = self.site((units, self.shapes[x][-1]))
        return self.step("linear", (x, weight, *[self.constant((units,))] * bias), dtype)

    def conv(
        self, x: str, units: int, dtype: str = "f4", real: bool = False, bias: bool = False
    ) -> str:
        channels, *sizes = self.shapes[x]
        groups = int(self.rng.choice([each for each in (1, 2) if channels % each == 0]))
        units -= units % groups
        kernel = tuple(min(size, int(self.rng.integers(1, 4))) for size in sizes)
        padding = tuple(
            (int(self.rng.integers(wide)), int(self.rng.integers(wide))) for wide in kernel
        )
        shape = (units, channels // groups, *kernel)
        weight = self.constant(shape, 0.3) if real else self.site(shape)
        stride = tuple(int(self.rng.integers(1, 3)) for _ in sizes)
        dilation = tuple(
            1 + int(self.rng.integers(2) and size > 3 * wide)
            for size, wide in zip(sizes, kernel, strict=True)
        )
        return self.step(
            "conv", (x, weight, *[self.constant((units,))] * bias), dtype,
            stride=stride, padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip

    def affine(self, x: str, axis: int, dtype: str = "f4") -> str:
        channels = (self.shapes[x][axis],)
        return self.step(
            "affine", (x, self.constant(channels), self.constant(channels)), dtype, axis=axis
        )

    def decision(self, x: str, axis: int, scale: float = 1.0) -> str:
        """A threshold at a whole number, where sums often are, or the sign."""
        if self.rng.integers(3) == 0:
            return self.step("sign", (x,))
        channels = (self.shapes[x][axis],)
        of = ("whole", "normal")[int(self.rng.integers(2))]
        t, d = self.constant(channels, scale, of), self.constant(channels, of="signs")
        return self.step("threshold", (x, t, d), axis=axis)

    def pool(self, x: str, kind: str, dtype: str = "f4") -> str:
        """Windows of 2, or where an image has a single line, of 1."""
        sizes = tuple(min(2, size) for size in self.shapes[x][1:])
        more: dict[str, Any] = {"dilation": (1,) * len(sizes)}
        if kind == "avg_pool":
            more = {"count_padding": bool(self.rng.integers(2)), "divisor": 0}
        return self.step(
            kind, (x,), dtype, size=sizes, stride=(2,) * len(sizes),
            padding=tuple(size // 2 for size in sizes), ceil=bool(self.rng.integers(2)), **more,
        )  # fmt: skip

    def elementwise(
        self, x: str, kinds: list[tuple[str, dict[str, Any]]], dtype: str = "f4"
    ) -> str:
        kind, attributes = kinds[int(self.rng.integers(len(kinds)))]
        return self.step(kind, (x,), dtype, **attributes)

    def program(self, *outputs: str) -> Program:
        return Program(
            self.inputs, self.constants, self.sites, tuple(self.steps), outputs, self.draws
        )


def _images(p: RandomProgram, x: str, depth: int, signs: bool, in_numpy: bool) -> str:
    """Blocks of a convolution, a normalisation, an activation and now and then a detour or a pool."""
    rng = p.rng
    for block in range(depth):
        before = x
        real = bool(rng.integers(4) == 0)
        wide = "f8" if signs else "f4"
        x = p.conv(
            x, int(rng.choice([2, 4, 6, 17])), wide, real, bias=not signs and bool(rng.integers(2))
        )
        if signs:
            x = p.affine(x, 0, "f8") if rng.integers(3) == 0 else x
            x = p.pool(x, "max_pool", "f8") if rng.integers(3) == 0 else x
            x = p.decision(x, 0, 3.0)
        else:
            x = p.elementwise(p.affine(x, 0), ELEMENTWISE)
        if in_numpy and block == depth // 2:
            x = p.elementwise(x, IN_NUMPY)
        if min(p.shapes[x][1:]) >= 3 and rng.integers(3) == 0:
            x = p.pool(x, ("max_pool", "avg_pool")[int(rng.integers(2))])
            if signs:
                x = p.step("sign", (x,))
        if p.shapes[x] == p.shapes[before]:
            x = p.step("add", (x, before))
        elif p.shapes[x][1:] == p.shapes[before][1:]:
            x = p.step("concat", (x, before), axis=0)
    return x


def random_program(seed: int) -> Program:
    """A network with binary and real layers, of one or two inputs and outputs."""
    p = RandomProgram(seed)
    rng = p.rng
    signs, in_numpy = bool(seed % 2), seed % 5 == 0
    if seed % 3 == 0:  # tokens
        x = p.input((4, 9))
        x = p.elementwise(p.linear(x, 12, bias=True), ELEMENTWISE)
        x = p.step("add", (x, p.constant((4, 12))))
        if in_numpy:
            x = p.step("softmax", (x,), axis=1)
        x = p.step("permute", (x,), axes=(1, 0))
        x = p.step("mean", (x,), axes=(1,), keep=False)
    else:
        sizes = (7, 6) if seed % 3 == 1 else (19,)
        x = p.affine(p.input((2, *sizes)), 0, "f8" if signs else "f4")
        x = _images(p, x, int(rng.integers(1, 4)), signs, in_numpy)
        features = p.step("reshape", (x,), shape=(math.prod(p.shapes[x]),))
        pooled = p.step("mean", (x,), axes=tuple(range(1, len(p.shapes[x]))), keep=False)
        other = p.input((5,))
        x = p.step("concat", (features, pooled, other), axis=0)
    if signs:
        x = p.decision(p.linear(x, 150, "f8"), 0, 5.0)
        x = p.decision(p.linear(x, 33, "f8"), 0, 5.0)
    hidden = p.elementwise(p.linear(x, 140), ELEMENTWISE)
    return p.program(p.linear(hidden, 5, bias=True), hidden)


def data_for(program: Program, rows: int, seed: int = 0) -> list[np.ndarray]:
    """Inputs with many zeros and whole numbers, so that sums meet their thresholds."""
    rng = np.random.default_rng(seed)
    found = []
    for value in program.inputs.values():
        x = rng.standard_normal((rows, *value.shape))
        x = np.where(rng.random(x.shape) < 0.3, np.rint(x), x)
        found.append(x.astype(value.dtype))
    return found
