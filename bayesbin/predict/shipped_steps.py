"""The steps of a model file: what each may say, the shapes they lead through, the arrays they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]
Shape = tuple[int, int, int]  # channels, height, width
Step = dict[str, Any]
CONTENTS = ("draws", "posterior")
KINDS = ("real", "fast", "sign")
_LARGEST = 1 << 28  # values of one input on their way: a gigabyte
_FIELDS: dict[str, set[str]] = {
    "weights": {"site", "shape", "stride", "padding", "kind"},
    "hardtanh": {"low", "high"},
    "max_pool": {"size", "stride", "padding"},
    "avg_pool": {"size", "stride", "padding"},
    **{name: set() for name in ("line", "relu", "tanh", "sign", "flatten", "push", "swap", "add")},
}


@dataclass(frozen=True)
class ShippedSite:
    """The weights of a site; their shape is (units, inputs) or (units, channels, height, width)."""

    name: str
    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of one bit per weight."""
        return -(-self.weights // 8)


def is_whole(value: Any, least: int, most: int = 2**31 - 1) -> bool:
    """Whether a value of JSON is a whole number in a range."""
    return type(value) is int and least <= value <= most


def walk(
    given: Any, shape: Any, contents: str, num_samples: int
) -> tuple[
    tuple[Step, ...],
    tuple[Shape, ...],
    tuple[ShippedSite, ...],
    dict[str, tuple[str, tuple[int, ...]]],
]:
    """Check steps one after another.

    :param given: the header's steps. :param shape: of one input.
    :returns: the steps with pairs and shapes as tuples; the shapes before, between and after them; the
        sites; type and shape of each array they need.
    :raises ValueError: where they do not fit.
    """
    if not isinstance(given, list) or not isinstance(shape, list):
        raise ValueError("expected lists of steps and of sizes of an input.")
    if len(shape) not in (1, 3) or not all(is_whole(size, 1) for size in shape):
        raise ValueError(
            f"expected inputs of (features) or (channels, height, width), got {shape}."
        )
    shapes: list[Shape] = [(shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])]
    stack: list[Shape] = []
    sites: dict[str, ShippedSite] = {}
    steps: list[Step] = []
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
    for place, entry in enumerate(given):
        step = _step(entry)
        if step["op"] == "weights":
            site = ShippedSite(step["site"], step["shape"])
            if sites.setdefault(site.name, site) != site:
                raise ValueError(f"expected one shape of {site.name!r}.")
            arrays |= _arrays_of(site, contents, num_samples)
        elif step["op"] == "line":
            lines = ("<f4", (max(num_samples, 1), shapes[-1][0]))
            arrays |= {f"line {place}.slope": lines, f"line {place}.shift": lines}
        shapes.append(_after(step, shapes[-1], stack))
        if math.prod(shapes[-1]) > _LARGEST:
            raise ValueError(f"expected at most {_LARGEST} values between steps; got {shapes[-1]}.")
        steps.append(step)
    if stack or not sites:
        raise ValueError("expected weights, and as many additions as values put aside.")
    return tuple(steps), tuple(shapes), tuple(sites.values()), arrays


def _step(entry: Any) -> Step:
    if not isinstance(entry, dict) or not isinstance(op := entry.get("op"), str):
        raise ValueError("expected a step with an op.")
    if op not in _FIELDS or set(entry) != _FIELDS[op] | {"op"}:
        raise ValueError(f"expected a known step with its fields, got {str(op)[:40]!r}.")
    step = dict(entry)
    if op == "weights":
        sizes = step["shape"]
        if not isinstance(sizes, list) or len(sizes) not in (2, 4):
            raise ValueError("expected weights of two or four sizes.")
        if not all(is_whole(size, 1) for size in sizes):
            raise ValueError(f"expected sizes of weights of at least 1, got {sizes}.")
        step["shape"] = tuple(sizes)
        if not isinstance(step["site"], str) or step["kind"] not in KINDS:
            raise ValueError(f"expected weights with a site, and sums of {', '.join(KINDS)}.")
        if len(sizes) == 2 and (step["stride"], step["padding"]) != (None, None):
            raise ValueError("expected a linear layer without stride and padding.")
    elif op == "hardtanh":
        low, high = step["low"], step["high"]
        if any(type(n) not in (int, float) for n in (low, high)) or not -1e38 < low <= high < 1e38:
            raise ValueError("expected two bounds of hardtanh, the lower one first.")
    for name, least in (("size", 1), ("stride", 1), ("padding", 0)):
        if name in step and step[name] is not None:
            pair = step[name]
            if not isinstance(pair, list) or [is_whole(n, least) for n in pair] != [True, True]:
                raise ValueError(f"expected two numbers of at least {least} as a {name}.")
            step[name] = tuple(pair)
    return step


def _arrays_of(
    site: ShippedSite, contents: str, num_samples: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    if contents == "draws":
        return {f"{site.name}.bits": ("|u1", (max(num_samples, 1), site.num_bytes))}
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{site.name}.mode": ("|u1", (site.num_bytes,)),
        f"{site.name}.flip": ("<u2", (site.shape[0], math.prod(site.shape[1:]))),
    }
    if num_samples:
        found[f"{site.name}.keys"] = ("<u8", (num_samples,))
    return found


def _after(step: Step, shape: Shape, stack: list[Shape]) -> Shape:
    """The shape that comes out of a step."""
    op = step["op"]
    if op == "weights":
        if step["shape"][1] != shape[0]:
            raise ValueError(f"expected weights for {shape[0]} channels, got {step['shape']}.")
        if len(step["shape"]) == 2:
            if shape[1:] != (1, 1):
                raise ValueError("expected images to be flattened before a linear layer.")
            return step["shape"][0], 1, 1
        return step["shape"][0], *_pixels(shape, step["shape"][2:], step, 1)
    if op in ("max_pool", "avg_pool"):
        return shape[0], *_pixels(shape, step["size"], step, 2)
    if op == "flatten":
        return math.prod(shape), 1, 1
    if op == "push":
        stack.append(shape)
    elif op in ("swap", "add"):
        if not stack:
            raise ValueError(f"expected values put aside before the step {op!r}.")
        other = stack.pop()
        if op == "swap":
            stack.append(shape)
            return other
        if other != shape:
            raise ValueError(f"expected values of one shape to add, got {shape} and {other}.")
    return shape


def _pixels(shape: Shape, window: Sequence[int], step: Step, share: int) -> Pair:
    """Height and width after a window; its padding is at most a ``share``-th of its size."""
    stride, padding = step["stride"], step["padding"]
    if stride is None or padding is None:
        raise ValueError("expected a stride and a padding of a window.")
    found = []
    for size, wide, hop, zeros in zip(shape[1:], window, stride, padding, strict=True):
        if share * zeros > wide or size + 2 * zeros < wide:
            raise ValueError(f"expected a window that fits images {shape}, got {step}.")
        found.append((size + 2 * zeros - wide) // hop + 1)
    return found[0], found[1]
