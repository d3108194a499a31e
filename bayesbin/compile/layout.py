"""Layout: how the axes of a tensor in torch lie in a value of a program, and where its batch went.

A value of a program has its batch first and nowhere else. A tensor of a network may have it in any axis, or
merged with others: ``nn.MultiheadAttention`` computes on (steps, batch * heads, width). A layout says how
each axis of the tensor is made of atoms. One of them is the batch; the others are the value's own, in the
order of memory. Views then change the layout alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BATCH = -1


class Size(NamedTuple):
    """The size of an axis: a number, times that of the batch if ``batch``."""

    count: int
    batch: bool = False


class Torn(ValueError):
    """A view that does not follow the atoms of a layout."""


def size_of(value: Any, rows: int | None = None) -> Size:
    """The size that torch knows an axis by: a number, or a multiple of the batch's symbol.

    :param rows: how many rows the batch has, where torch knows it by that number and not by a symbol.
    :raises ValueError: for anything else, as a batch plus one.
    """
    if isinstance(value, int):
        if rows and value and value % rows == 0:
            if value % rows**2 == 0:
                raise ValueError("a size of a batch times a batch")
            return Size(value // rows, True)
        return Size(value)
    expression = value.node.expr
    symbols = expression.free_symbols
    if not symbols:
        return Size(int(expression))
    if len(symbols) == 1:
        (symbol,) = symbols
        count = expression.subs(symbol, 1)
        if count.is_Integer and expression == count * symbol:
            return Size(int(count), True)
    raise ValueError(f"a size of {expression}")


@dataclass(frozen=True)
class Layout:
    """Of which atoms each axis of a tensor is made.

    :param sizes: of the atoms of a value, in the order of memory, all above 1.
    :param axes: for each axis of the tensor its atoms, the slowest first; ``BATCH`` is the batch.
    """

    sizes: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: Sequence[Size | int]) -> Layout:
        """That of a value whose axes are those of a tensor, in order, the batch left out."""
        shape = [size if isinstance(size, Size) else Size(size) for size in shape]
        order = [(place, size.count) for place, size in enumerate(shape)]
        return cls.made(order, [(*[BATCH] * size.batch, k) for k, size in enumerate(shape)])

    @classmethod
    def made(
        cls, order: Sequence[tuple[Hashable, int]], axes: Sequence[Sequence[Hashable]]
    ) -> Layout:
        """A layout from the axes of a value, (key, size) each, and of which each axis of a tensor is made.

        Keys that are not among the value's axes, other than ``BATCH``, have size 1.
        """
        kept = [(key, size) for key, size in order if size != 1]
        number = {key: place for place, (key, _) in enumerate(kept)} | {BATCH: BATCH}
        found = tuple(tuple(number[key] for key in axis if key in number) for axis in axes)
        return cls(tuple(size for _, size in kept), found)._coalesced()

    @property
    def shape(self) -> tuple[Size, ...]:
        """The size of each axis of the tensor."""
        return tuple(
            Size(math.prod(self.sizes[a] for a in axis if a != BATCH), BATCH in axis)
            for axis in self.axes
        )

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def batch_axis(self) -> int | None:
        """The axis that the batch is, or is a part of."""
        return next((place for place, axis in enumerate(self.axes) if BATCH in axis), None)

    def has_batch(self, axis: int) -> bool:
        return BATCH in self.axes[axis]

    def size(self, atoms: Sequence[int]) -> int:
        """Numbers of some atoms together, the batch left out."""
        return math.prod(self.sizes[atom] for atom in atoms if atom != BATCH)

    def permuted(self, order: Sequence[int]) -> Layout:
        return Layout(self.sizes, tuple(self.axes[axis] for axis in order))

    def with_axes(self, axes: Sequence[Sequence[int]]) -> Layout:
        """The same atoms in other axes."""
        return Layout(self.sizes, tuple(map(tuple, axes)))._coalesced()

    def reshaped(self, shape: Sequence[Size]) -> Layout:
        """The layout after a view.

        :raises Torn: if an axis would be part of two atoms that do not follow one another in memory, or
            a row of the tensor part of two data.
        """
        queue = self._runs()
        pieces: list[list[int]] = [[] for _ in self.sizes]  # sizes of the parts of each atom
        axes: list[list[tuple[int, int]]] = []
        for count, batch in shape:
            axis: list[tuple[int, int]] = []
            while count > 1 or batch:
                if not queue:
                    raise Torn
                atom, size = queue.pop(0)
                if atom == BATCH:
                    if not batch:
                        raise Torn
                    batch = False
                    axis.append((BATCH, 0))
                    continue
                part = math.gcd(count, size)
                if part == 1 or part not in (count, size):
                    raise Torn
                axis.append((atom, len(pieces[atom])))
                pieces[atom].append(part)
                count //= part
                if size > part:
                    queue.insert(0, (atom, size // part))
            axes.append(axis)
        if queue:
            raise Torn
        return self._with_pieces(pieces, axes)

    def _runs(self) -> list[tuple[int, int]]:
        """Atoms in the tensor's order, those that follow one another in memory as one: (first, size)."""
        runs: list[tuple[int, int]] = []
        last = None
        for atom in (atom for axis in self.axes for atom in axis):
            if atom != BATCH and last is not None and atom == last + 1:
                first, size = runs[-1]
                runs[-1] = (first, size * self.sizes[atom])
            else:
                runs.append((atom, 1 if atom == BATCH else self.sizes[atom]))
            last = None if atom == BATCH else atom
        return runs

    @staticmethod
    def _with_pieces(pieces: list[list[int]], axes: list[list[tuple[int, int]]]) -> Layout:
        order = [
            ((atom, place), size)
            for atom, parts in enumerate(pieces)
            for place, size in enumerate(parts)
        ]
        return Layout.made(
            order, [[BATCH if key[0] == BATCH else key for key in axis] for axis in axes]
        )

    def _coalesced(self) -> Layout:
        """Atoms that follow one another in memory and in an axis as one."""
        joined = {
            second
            for axis in self.axes
            for first, second in itertools.pairwise(axis)
            if first != BATCH and second == first + 1
        }
        if not joined:
            return self
        number: dict[int, int] = {BATCH: BATCH}
        sizes: list[int] = []
        for atom, size in enumerate(self.sizes):
            if atom in joined:
                sizes[-1] *= size
            else:
                sizes.append(size)
            number[atom] = len(sizes) - 1
        axes = [tuple(number[atom] for atom in axis if atom not in joined) for axis in self.axes]
        return Layout(tuple(sizes), tuple(axes))


def exploded(layouts: Sequence[Layout], axes: Sequence[Sequence[int | None]]) -> list[list[Size]]:
    """Axes that several layouts share, cut so that each part is one atom in all of them.

    :param axes: for each shared axis, which axis of each layout it is; None where a layout lacks it. An axis
        of size 1 beside a larger one counts as lacking.
    :returns: the sizes of the parts of each shared axis; a batch is a part of its own.
    :raises Torn: if they do not fit.
    """
    return [_parts([layout for layout in _sides(layouts, places)]) for places in axes]


def broadcast(layouts: Sequence[Layout], rank: int, behind: int = 0) -> list[list[Size]]:
    """The axes of layouts that repeat to ``rank`` axes, cut as by :func:`exploded`.

    :param behind: how many axes at the end are left out.
    """
    places = [
        [None if axis < rank - each.rank else axis - rank + each.rank for each in layouts]
        for axis in range(rank - behind)
    ]
    return exploded(layouts, places)


def own_parts(layout: Layout, parts: Sequence[Sequence[Size]], behind: int = 0) -> list[Size]:
    """The parts of shared axes as a layout has them: those of an axis that it lacks are of size 1."""
    missing = len(parts) + behind - layout.rank
    own: list[Size] = []
    for axis, cuts in enumerate(parts):
        lacks = axis < missing or not layout.axes[axis - missing]
        own += [Size(1) for _ in cuts] if lacks else list(cuts)
    return own


def numbered(parts: Sequence[Sequence[Size]]) -> list[list[int]]:
    """For each axis the numbers of its parts, counted over all axes; ``BATCH`` for that of the batch."""
    numbers = itertools.count()
    return [
        [BATCH if part.batch else k for part, k in zip(axis, numbers, strict=False)]
        for axis in parts
    ]


def _sides(layouts: Sequence[Layout], places: Sequence[int | None]) -> list[list[Size]]:
    sides = []
    for layout, place in zip(layouts, places, strict=True):
        if place is not None and layout.axes[place]:
            atoms = layout.axes[place]
            sides.append([Size(1, True) if a == BATCH else Size(layout.sizes[a]) for a in atoms])
    return sides


def _parts(sides: list[list[Size]]) -> list[Size]:
    """The common refinement of lists of sizes with equal products."""
    if not sides:
        return []
    queues = [list(side) for side in sides]
    parts: list[Size] = []
    while any(queues):
        if not all(queues) or len({queue[0].batch for queue in queues}) > 1:
            raise Torn
        if queues[0][0].batch:
            parts.append(Size(1, True))
            for queue in queues:
                queue.pop(0)
            continue
        least = min(queue[0].count for queue in queues)
        parts.append(Size(least))
        for queue in queues:
            rest, remainder = divmod(queue[0].count, least)
            if remainder:
                raise Torn
            queue[:1] = [Size(rest)] if rest > 1 else []
    return parts
