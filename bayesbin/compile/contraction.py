"""Products of two tensors, summed over the axes that they share: linear maps, matrix products, einsum.

Each axis of the tensors has a label; equal labels are one index. The product is written as a linear map where
one side is weights, without a batch, and as a product of matrices for each datum where both depend on it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from bayesbin.compile.layout import BATCH, Layout, Size, Torn, exploded
from bayesbin.compile.translation import Fixed, Held, Traced, Translation, in_order, plain

Label = Hashable
Part = tuple[Label, int]  # a label, and which part of it


@dataclass
class _Side:
    """One factor: the tensor, its layout cut into parts, and the atom of each part that is not the batch."""

    value: Held
    layout: Layout
    atoms: dict[Part, int]
    batch: Part | None


def contract(
    t: Translation,
    a: Held,
    b: Held,
    labels: tuple[Sequence[Label], Sequence[Label]],
    out: Sequence[Label],
    bias: Held | None = None,
) -> Traced:
    """The sum over all labels that are not in ``out``, of the products of a and b.

    :param labels: of the axes of a and of b. :param bias: of the one label of b that a does not have.
    """
    parts, sides = _cut(t, a, b, labels)
    counts = {(label, k): size.count for label in parts for k, size in enumerate(parts[label])}
    axes = [[(label, k) for k in range(len(parts[label]))] for label in out]
    flat = [part for axis in axes for part in axis]
    batch = _batch_of(t, sides, flat)
    kept = [part for part in flat if part != batch]
    name, order = _product(t, sides[0], sides[1], kept, bias)
    named = [[BATCH if part == batch else part for part in axis] for axis in axes]
    return Traced(name, Layout.made([(p, counts[p]) for p in order], named), t.dtype())


def _batch_of(t: Translation, sides: Sequence[_Side], out: Sequence[Part]) -> Part | None:
    """The part that is the batch, one and the same on both sides and in what comes out."""
    found = {side.batch for side in sides if side.batch is not None}
    if len(found) > 1:
        raise t.mixes("products of rows with each other")
    if not found <= set(out):
        raise t.mixes("a sum over rows")
    return found.pop() if found else None


def _product(
    t: Translation, left: _Side, right: _Side, kept: Sequence[Part], bias: Held | None
) -> tuple[str, list[Part]]:
    """The steps of a product, and the order of the parts in what comes out."""
    shared = [p for p in left.atoms if p in right.atoms and p in kept]
    if not shared and not _batched(t, right):
        return _linear(t, left, right, kept, bias)
    if not shared and not _batched(t, left) and bias is None:
        return _linear(t, right, left, kept, bias)
    assert bias is None
    return _matrices(t, left, right, shared, kept)


def _batched(t: Translation, side: _Side) -> bool:
    return isinstance(side.value, Traced) and (
        t.known(side.value.name).batched or side.batch is not None
    )


def _cut(
    t: Translation, a: Held, b: Held, labels: tuple[Sequence[Label], Sequence[Label]]
) -> tuple[dict[Label, list[Size]], list[_Side]]:
    """Labels cut into parts that are atoms on both sides."""
    for own in labels:
        if len(set(own)) != len(own):
            raise t.refuse("expected a product without diagonals")
    try:
        return _try_cut(a, b, labels)
    except Torn:
        pass
    a, b = (t.straightened(x) if isinstance(x, Traced) else x for x in (a, b))
    try:
        return _try_cut(a, b, labels)
    except Torn:
        raise t.mixes("rows that are merged with other axes in two ways") from None


def _try_cut(
    a: Held, b: Held, labels: tuple[Sequence[Label], Sequence[Label]]
) -> tuple[dict[Label, list[Size]], list[_Side]]:
    every = list(dict.fromkeys([*labels[0], *labels[1]]))
    layouts = [a.layout, b.layout]
    places = [[own.index(label) if label in own else None for own in labels] for label in every]
    parts = dict(zip(every, exploded(layouts, places), strict=True))
    sides = []
    for value, own in zip((a, b), labels, strict=True):
        flat: list[tuple[Part, Size]] = []
        for axis, label in enumerate(own):
            there = bool(value.layout.axes[axis])
            flat += [
                ((label, k), size if there else Size(1)) for k, size in enumerate(parts[label])
            ]
        layout = value.layout.reshaped([size for _, size in flat])
        atoms = {
            part: layout.axes[k][0]
            for k, (part, size) in enumerate(flat)
            if size.count != 1 and not size.batch
        }
        batch = next((part for part, size in flat if size.batch), None)
        sides.append(_Side(value, layout, atoms, batch))
    return parts, sides


def _free(side: _Side, other: _Side, kept: Sequence[Part]) -> list[Part]:
    """Parts of one side alone that stay, in the order of memory."""
    return sorted(
        (p for p in side.atoms if p in kept and p not in other.atoms), key=lambda p: side.atoms[p]
    )


def _summed(side: _Side) -> list[Part]:
    return sorted(side.atoms, key=lambda p: side.atoms[p])


# A side of weights


def _linear(
    t: Translation,
    x: _Side,
    w: _Side,
    kept: Sequence[Part],
    bias: Held | None,
) -> tuple[str, list[Part]]:
    """x times weights that all data share, and the order of the parts in what comes out."""
    free, units = _free(x, w, kept), _free(w, x, kept)
    summed = [p for p in _summed(w) if p not in units]
    _no_lone_sums(t, x, w, kept)
    outputs = [tuple(w.atoms[p] for p in units), tuple(w.atoms[p] for p in summed)]
    weights = Weights.of(t, w.value, w.layout, outputs)
    slope: Any = weights.slope
    value = x.value
    if weights.scaled and isinstance(value, Traced) and plain(value.factor):
        slope, value = slope * value.factor, replace(value, factor=1.0)
    groups = [*[(x.atoms[p],) for p in free], tuple(x.atoms[p] for p in summed)]
    name = t.arrange(value, _like_value(t, value, x.layout, groups), x.layout)
    if weights.inputs is not None:
        name = t.emit("mul", (name, t.constant(weights.inputs, t.dtype())), t.dtype())
    # The bias has the axes of the units in the order of the tensor that is made.
    shift = _bias(t, bias, w, units)
    if bool((np.asarray(slope) == 1.0).all()):
        name = t.emit("linear", (name, weights.name, shift), t.dtype())
    else:
        name = t.emit("linear", (name, weights.name), t.dtype())
        name = affine(t, name, len(t.known(name).shape) - 1, slope, shift)
    return name, [*free, *units]


def _like_value(
    t: Translation, value: Held, layout: Layout, groups: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Groups of x: with axes of size 1 as the value has them, where that saves a reshape."""
    if not isinstance(value, Traced):
        return groups
    shape = t.known(value.name).shape
    without = [size for size in shape[:-1] if size != 1]
    order = [atom for group in groups for atom in group]
    if order != sorted(order) or not shape or shape[-1] != layout.size(groups[-1]):
        return groups
    if without != [layout.size(group) for group in groups[:-1]]:
        return groups
    rest = iter(groups[:-1])
    return [*[() if size == 1 else next(rest) for size in shape[:-1]], groups[-1]]


def _bias(t: Translation, bias: Held | None, w: _Side, units: Sequence[Part]) -> str:
    if bias is None:
        return ""
    labels = {part[0] for part in units}
    if len(labels) > 1:
        raise t.refuse("expected a bias of one axis")
    order = sorted(units, key=lambda part: part[1])
    if list(units) != order:
        raise t.refuse("expected units in order")
    size = tuple(bias.layout.size(axis) for axis in bias.layout.axes)
    name, _ = t.straight(bias)
    count = int(np.prod([w.layout.sizes[w.atoms[p]] for p in units], dtype=int))
    if size == (1,) and count > 1:
        raise t.refuse(f"expected a bias of {count} units, got {size}")
    return t.reshaped(name, (count,))


def _no_lone_sums(t: Translation, x: _Side, w: _Side, kept: Sequence[Part]) -> None:
    lone = [p for p in x.atoms if p not in w.atoms and p not in kept]
    lone += [p for p in w.atoms if p not in x.atoms and p not in kept]
    if lone:
        raise t.refuse("expected sums over axes that both tensors have")


@dataclass(frozen=True)
class Weights:
    """Weights as a product uses them: a value, and a slope for the sums.

    :param slope: a number, or one for each unit; what the sums are multiplied by.
    :param inputs: numbers for each input that it is multiplied by first, or None.
    :param scaled: whether sums are of signs or levels, so that exact factors may come after them.
    """

    name: str
    slope: Any = 1.0
    inputs: np.ndarray | None = None
    scaled: bool = False

    @classmethod
    def of(
        cls,
        t: Translation,
        value: Held,
        layout: Layout,
        groups: list[tuple[int, ...]],
        rows: int = 1,
    ) -> Weights:
        """Those of a tensor whose first group of atoms is the units (the first ``rows`` groups)."""
        if isinstance(value, Fixed):
            found = fixed_signs(t, value, layout, groups)
            return found or cls(t.arrange(value, groups, layout))
        if not value.weights:
            return cls(t.arrange(value, groups, layout))
        bare = t.moved(value.name, layout, groups)
        if plain(value.factor):
            return cls(bare, value.factor, scaled=True)
        shape = [size.count for size in value.layout.shape]
        assert isinstance(value.factor, Tensor)
        numbers = in_order(value.factor.expand(shape), layout, groups)
        by_unit = numbers.reshape(int(np.prod(numbers.shape[:rows], dtype=int)), -1)
        if bool((by_unit == by_unit[:, :1]).all()):
            return cls(bare, by_unit[:, 0], scaled=True)
        exact = bool((np.abs(np.frexp(by_unit[0])[0]) == 0.5).all())
        if exact and numbers.ndim == 2 and bool((by_unit == by_unit[:1]).all()):
            return cls(bare, 1.0, by_unit[0], scaled=True)
        return cls(t.arrange(value, groups, layout))


def fixed_signs(
    t: Translation, value: Fixed, layout: Layout, groups: list[tuple[int, ...]]
) -> Weights | None:
    """Known weights that are one number times signs in each unit, as a site; or None."""
    numbers = in_order(value.tensor, layout, groups)
    if numbers.dtype.kind != "f" or not numbers.size:
        return None
    sizes = np.abs(numbers.reshape(len(numbers), -1))
    if sizes.shape[1] < 2 or not bool((sizes == sizes[:, :1]).all()):
        return None
    if not bool(np.isfinite(sizes).all()) or not bool(sizes.all()):
        return None
    return Weights(t.add_site(value.name, numbers > 0), sizes[:, 0], scaled=True)


def affine(t: Translation, name: str, axis: int, slope: Any, shift: str) -> str:
    """slope x + shift along an axis of a value: after sums of signs."""
    dtype = t.dtype()
    slopes = np.asarray(slope, dtype=np.float64)
    if slopes.ndim and bool((slopes == slopes[0]).all()):
        slopes = slopes[0]
    inputs = (name, t.constant(slopes, dtype), shift or t.constant(0.0, dtype))
    return t.emit("affine", inputs, dtype, axis=axis)


# Both sides of each datum


def _matrices(
    t: Translation,
    a: _Side,
    b: _Side,
    shared: Sequence[Part],
    kept: Sequence[Part],
) -> tuple[str, list[Part]]:
    """Products of matrices, those of each datum, one for each place in the shared parts."""
    _no_lone_sums(t, a, b, kept)
    rows, columns = _free(a, b, kept), _free(b, a, kept)
    summed = [p for p in _summed(a) if p not in rows and p not in shared]
    shared = sorted(shared, key=lambda p: a.atoms[p])

    def group(side: _Side, *groups: Sequence[Part]) -> list[tuple[int, ...]]:
        return [tuple(side.atoms[p] for p in parts) for parts in groups]

    many = [[p] for p in shared]
    left = t.arrange(a.value, group(a, *many, rows, summed), a.layout)
    right = t.arrange(b.value, group(b, *many, summed, columns), b.layout)
    return t.emit("matmul", (left, right), t.dtype()), [*shared, *rows, *columns]
