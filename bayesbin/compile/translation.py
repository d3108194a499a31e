"""Translation: the steps of a program as they are written, and the tensors of a network in terms of them."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from bayesbin.compile.layout import (
    BATCH,
    Layout,
    Size,
    Torn,
    broadcast,
    numbered,
    own_parts,
    size_of,
)
from bayesbin.compile.refusal import REMEDY, NotCompiled, line_of
from bayesbin.core.canonical import pack_words
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Constant, Program, Site, Step, StoredSite, Value

DTYPES = {
    torch.float32: "f4",
    torch.float64: "f8",
    torch.int64: "i8",
    torch.int32: "i8",
    torch.int16: "i8",
    torch.int8: "i8",
    torch.uint8: "i8",
    torch.bool: "b1",
}
NUMPY = {"f4": np.float32, "f8": np.float64, "i8": np.int64, "b1": np.bool_}
_NARROW = (torch.uint8, torch.int8, torch.int16)
Factor = float | Tensor


@dataclass(frozen=True, eq=False)
class Fixed:
    """A tensor that is the same for all data and draws: numbers that are known here and now.

    :param name: by which the network's state knows it, if it is in there as it is.
    """

    tensor: Tensor
    name: str = ""

    @property
    def layout(self) -> Layout:
        return Layout.of(list(self.tensor.shape))

    @property
    def dtype(self) -> str:
        return DTYPES[self.tensor.dtype]


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor that a program computes: ``factor`` times a value of the program, seen through a layout.

    :param name: of the value. :param dtype: of the tensor.
    :param factor: a power of two, or of weights any number or a float64 tensor that repeats to theirs.
    :param weights: whether the value is a site, or the weights of one in another order.
    """

    name: str
    layout: Layout
    dtype: str
    factor: Factor = 1.0
    weights: bool = False


@dataclass(frozen=True)
class Refused:
    """What cannot be computed; to use it is an error."""

    problem: str


@dataclass(frozen=True)
class Rows(Refused):
    """The numbers of the rows of a batch, times a step: to look up one place of each, and nothing else."""

    step: int = 1


Held = Fixed | Traced


@dataclass(frozen=True)
class Frame:
    """A tensor some of whose axes are axes of its value; what is made of it may have other sizes there.

    :param keys: a name of each axis of the value. :param sizes: of them. :param places: which of them the
        axes asked for are. :param axes: for each axis of the tensor, the keys that it is made of.
    """

    value: Traced
    keys: list[Any]
    sizes: list[int]
    places: list[int]
    axes: list[list[Any]]

    @property
    def name(self) -> str:
        return self.value.name

    def made(self, name: str, dtype: str, sizes: Sequence[int]) -> Traced:
        """What a step made of the value, with the same axes in other sizes."""
        order = list(zip(self.keys, sizes, strict=True))
        return Traced(name, Layout.made(order, self.axes), dtype)

    def without(self, name: str, dtype: str, keep: bool) -> Traced:
        """What a step made that reduced the axes asked for, to size 1 or to nothing."""
        gone = [self.keys[place] for place in self.places]
        order = [
            (key, size) for key, size in zip(self.keys, self.sizes, strict=True) if key not in gone
        ]
        axes = [[key for key in axis if key not in gone] for axis in self.axes]
        if not keep:
            axes = [axis for axis in self.axes if not any(key in gone for key in axis)]
        return Traced(name, Layout.made(order, axes), dtype)


def plain(value: Any) -> TypeGuard[float]:
    """Whether a factor, or a number, is one number and not a tensor."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(eq=False)
class Translation:
    """Steps as they are written, with the names, shapes and constants that they use.

    :param inputs: name -> shape and type. :param sites: binary weights by name, of any draws.
    :param drawn: weights of a few levels and statistics of each draw, by name.
    :param rows: how many rows the batch has in torch's graph, where it is a number there.
    """

    inputs: dict[str, Value]
    sites: dict[str, Site]
    drawn: Mapping[str, Constant]
    num_draws: int
    rows: int | None = None
    constants: dict[str, Constant] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    node: torch.fx.Node | None = None

    def __post_init__(self) -> None:
        self.sites = dict(self.sites)
        self._made: dict[str, Step] = {}  # by which step each value was made
        self._values: dict[str, Value] = dict(self.inputs)
        for name, site in self.sites.items():
            self._values[name] = Value(tuple(site.shape), "f4", False, True, True)
        for name, constant in self.drawn.items():
            self._values[name] = Value(constant.shape, constant.dtype, False, True)
        self._known: dict[Any, Any] = {}  # what was written before is not written twice
        self._reshaped_from: dict[str, str] = {}

    # Refusals

    def refuse(self, problem: str, remedy: str = "") -> NotCompiled:
        """The error for the operator at hand: ``raise t.refuse("...")``."""
        written = self.node is not None and self.node.op == "call_function"
        operator = str(self.node.target) if self.node is not None and written else ""
        said = f"{operator}: {problem}" if operator else problem
        return NotCompiled(said, operator, line_of(self.node), f"{remedy} {REMEDY}".strip())

    def mixes(self, what: str) -> NotCompiled:
        """The refusal of what would make one datum's answer depend on others in its batch."""
        return self.refuse(
            f"expected every row of the batch to be computed by itself, got {what}",
            "Keep the first axis of inputs, the batch, out of it.",
        )

    # What torch knows of the node at hand

    @property
    def result(self) -> Any:
        assert self.node is not None
        return self.node.meta["val"]

    def shape(self, place: int | None = None) -> tuple[Size, ...]:
        """The shape of the result, or of one of several."""
        found = self.result if place is None else self.result[place]
        try:
            return tuple(size_of(size, self.rows) for size in found.shape)
        except ValueError as error:
            raise self.mixes(str(error)) from None

    def dtype(self, place: int | None = None) -> str:
        found = self.result if place is None else self.result[place]
        if isinstance(found, (list, tuple)):  # several results of one type
            found = found[0]
        return self.dtype_of(found.dtype)

    def dtype_of(self, dtype: torch.dtype) -> str:
        if dtype not in DTYPES:
            raise self.refuse(
                f"expected float32, float64, whole numbers or booleans, got {str(dtype)[6:]}",
                "Compile the network in float32.",
            )
        return DTYPES[dtype]

    def made_by(self, name: str) -> Step | None:
        """The step that a value comes from."""
        return self._made.get(name)

    # Writing

    def add_input(self, name: str, value: Value) -> str:
        """The name of an input of the program."""
        name = self._free_name(name)
        self.inputs[name] = self._values[name] = value
        return name

    def add_site(self, name: str, plus: np.ndarray) -> str:
        """The name of signs that are the same in all draws, from where they are +1."""
        key = ("site", name, plus.shape, plus.tobytes())
        if key not in self._known:
            shape, found = plus.shape, self._free_name(f"{name or 'weight'} signs")
            bits = pack_words(plus.reshape(shape[0], -1))[None]
            self.sites[found] = StoredSite(shape, bits)
            self._values[found] = Value(shape, "f4", False, False, True)
            self._known[key] = found
        return self._known[key]

    def _free_name(self, base: str) -> str:
        name, count = base, 0
        while name in self._values:
            count += 1
            name = f"{base}.{count}"
        return name

    def as_output(self, name: str) -> str:
        """A value that may be an output: not a site, and not one that is an output already."""
        known = self._values[name]
        return (
            self.emit("reshape", (name,), known.dtype, shape=known.shape)
            if name in self.sites
            else name
        )

    def known(self, name: str) -> Value:
        """What is known of a value."""
        return self._values[name]

    def emit(self, kind: str, inputs: Sequence[str], dtype: str, **attributes: Any) -> str:
        """Write a step of one output, unless the same was written before; the name of what comes out."""
        return self.emit_all(kind, inputs, dtype, **attributes)[0]

    def emit_all(
        self, kind: str, inputs: Sequence[str], dtype: str, **attributes: Any
    ) -> tuple[str, ...]:
        """Write a step; the names of its outputs."""
        inputs = tuple(inputs)
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        key = (kind, inputs, dtype, tuple(sorted(attributes.items())))
        if key not in self._known:
            used = [self._values[name] for name in inputs if name]
            try:
                shapes = KINDS[kind].shapes(attributes, [value.shape for value in used])
            except ValueError as error:
                raise self.refuse(str(error).removesuffix(".")) from error
            batched, drawn = any(v.batched for v in used), any(v.drawn for v in used)
            names = tuple(
                self._new_name(kind, Value(shape, dtype, batched, drawn)) for shape in shapes
            )
            step = Step(kind, inputs, names, dtype, attributes)
            self.steps.append(step)
            self._made |= dict.fromkeys(names, step)
            self._known[key] = names
        return self._known[key]

    def _new_name(self, kind: str, value: Value) -> str:
        name = self._free_name(kind if self.node is None else self.node.name)
        self._values[name] = value
        return name

    def constant(self, numbers: Any, dtype: str, name: str = "") -> str:
        """The name of a constant of the program, one and the same for the same numbers."""
        array = np.ascontiguousarray(np.asarray(numbers, dtype=NUMPY[dtype]))
        array = array.reshape(np.shape(numbers))
        digest = hashlib.sha256(array.data if array.size else b"").digest()
        key = ("constant", name, array.dtype.str, array.shape, digest)
        if key not in self._known:
            if not name and array.ndim == 0:
                name = f"number {array[()]}"
            name = self._free_name(name or "constant")
            self.constants[name] = Constant(array[None])
            self._values[name] = Value(array.shape, dtype, False, False)
            self._known[key] = name
        return self._known[key]

    # Values in the order that a step needs

    def arrange(
        self, value: Held, groups: Sequence[Sequence[int]], layout: Layout | None = None
    ) -> str:
        """The name of a value whose axes are groups of the atoms of a tensor, every atom in one of them.

        :param layout: that of the atoms, where it is not the tensor's own. A factor is multiplied in.
        """
        layout = layout or value.layout
        if isinstance(value, Fixed):
            numbers = in_order(value.tensor, layout, groups)
            name = value.name if numbers.shape == tuple(value.tensor.shape) else ""
            return self.constant(numbers, value.dtype, name)
        return self.moved(self.settled(value).name, layout, groups)

    def moved(self, name: str, layout: Layout, groups: Sequence[Sequence[int]]) -> str:
        """A value of the program with its atoms in the groups, and order, given."""
        order = [atom for group in groups for atom in group]
        shape = tuple(layout.size(group) for group in groups)
        if order == sorted(order):
            return self.reshaped(name, shape)
        starts = [k for k, atom in enumerate(order) if not k or atom != order[k - 1] + 1]
        runs = [order[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        memory = sorted(range(len(runs)), key=lambda k: runs[k][0])
        name = self.reshaped(name, tuple(layout.size(runs[k]) for k in memory))
        axes = tuple(memory.index(k) for k in range(len(runs)))
        dtype = self.known(name).dtype
        return self.reshaped(self.emit("permute", (name,), dtype, axes=axes), shape)

    def reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        """A value in another shape, with no step where it has that shape."""
        if self.known(name).shape == shape:
            return name
        source = self._reshaped_from.get(name, name)
        if self.known(source).shape == shape:
            return source
        made = self.emit("reshape", (source,), self.known(source).dtype, shape=shape)
        self._reshaped_from[made] = source
        return made

    def settled(self, value: Traced) -> Traced:
        """The tensor with its factor multiplied in."""
        if plain(value.factor):
            if value.factor == 1.0:
                return value
            name = self.constant(value.factor, value.dtype)
            name = self.emit("mul", (value.name, name), value.dtype)
            return Traced(name, value.layout, value.dtype)
        assert isinstance(value.factor, Tensor)
        bare, factor = replace(value, factor=1.0), Fixed(value.factor)
        names, layout = self.align((bare, factor), value.layout.shape, value.dtype)
        name = self.emit("mul", self._as_dtype(names, value.dtype), value.dtype)
        return Traced(name, layout, value.dtype)

    def _as_dtype(self, names: Sequence[str], dtype: str) -> list[str]:
        """Constants of float64 that were made here in the type that they are used in."""
        found = []
        for name in names:
            constant = self.constants.get(name)
            if constant is not None and constant.dtype == "f8" and dtype == "f4":
                name = self.constant(constant.data[0], dtype)
            found.append(name)
        return found

    def straight(self, value: Held) -> tuple[str, Layout]:
        """A value whose axes are those of the tensor in order, parts of an axis beside a batch apart."""
        groups: list[tuple[int, ...]] = []
        keys: list[list[Any]] = []
        for axis in value.layout.axes:
            keys.append([])
            if BATCH not in axis:
                keys[-1].append(len(groups))
                groups.append(axis)
                continue
            cut = axis.index(BATCH)
            for part in (axis[:cut], (BATCH,), axis[cut + 1 :]):
                if part == (BATCH,):
                    keys[-1].append(BATCH)
                elif part:
                    keys[-1].append(len(groups))
                    groups.append(part)
        name = self.arrange(value, groups)
        order = [(place, value.layout.size(group)) for place, group in enumerate(groups)]
        return name, Layout.made(order, keys)

    def straightened(self, value: Held) -> Traced:
        """The tensor with its numbers in the order of its axes."""
        name, layout = self.straight(value)
        return Traced(name, layout, value.dtype)

    def rearranged(self, value: Held, groups: Sequence[Sequence[int]]) -> Traced:
        """The tensor with its numbers in the order of some groups of its atoms."""
        order = [atom for group in groups for atom in group]
        number = {atom: place for place, atom in enumerate(order)} | {BATCH: BATCH}
        layout = value.layout
        sizes = tuple(layout.sizes[atom] for atom in order)
        moved = Layout(sizes, ()).with_axes([[number[a] for a in axis] for axis in layout.axes])
        return Traced(self.arrange(value, groups), moved, value.dtype)

    def isolated(
        self, value: Held, axes: Sequence[int], what: str, last: bool = False
    ) -> tuple[Traced, list[int]]:
        """A tensor each of whose given axes is an axis of the value, and which one.

        :param what: happens along the axes, for the refusal of the batch's. :param last: whether the axes
            have to be the value's last, in this order.
        """
        found = self.settled(self.traced(value))
        for axis in axes:
            if found.layout.has_batch(axis):
                raise self.mixes(what)
        places = self._places(found, axes, last)
        if places is not None:
            return found, places
        frame = self.framed(found, axes, what, last)
        return frame.value, frame.places

    def _places(self, value: Traced, axes: Sequence[int], last: bool) -> list[int] | None:
        """Which axes of the value the axes of a tensor are, if each is one."""
        layout, shape = value.layout, self.known(value.name).shape
        places: list[int] = []
        for axis in axes:
            atoms = layout.axes[axis]
            if len(atoms) > 1:
                return None
            size, before = layout.size(atoms), math.prod(layout.sizes[: atoms[0]]) if atoms else 0
            place = next(
                (
                    place
                    for place, wide in enumerate(shape)
                    if wide == size
                    and place not in places
                    and (not atoms or math.prod(shape[:place]) == before)
                ),
                None,
            )
            if place is None:
                return None
            places.append(place)
        wanted = list(range(len(shape) - len(axes), len(shape)))
        return None if last and places != wanted else places

    def framed(
        self,
        value: Held,
        axes: Sequence[int],
        what: str,
        last: bool = False,
        straight: bool = False,
    ) -> Frame:
        """A tensor as a value that has each of some axes, and each atom of the others, as an axis.

        Arguments as for :meth:`isolated`. :param straight: whether to go by the order of the tensor's axes,
            and not by that of memory.
        """
        layout = value.layout
        for axis in axes:
            if layout.has_batch(axis):
                raise self.mixes(what)
        order = _in_tensor(layout, axes) if straight else _in_memory(layout, axes, last)
        keys, groups = [key for key, _ in order], [group for _, group in order]
        moved = self.rearranged(value, groups)
        return Frame(
            moved,
            keys,
            [layout.size(group) for group in groups],
            [keys.index(("axis", axis)) for axis in axes],
            [
                [("axis", place)] if place in axes else list(atoms)
                for place, atoms in enumerate(layout.axes)
            ],
        )

    # Several tensors elementwise

    def align(
        self, operands: Sequence[Held | float], shape: Sequence[Size], dtype: str
    ) -> tuple[list[str], Layout]:
        """Names of values that fit one another elementwise, and the layout of what is computed of them.

        :param shape: of the result. :param dtype: of numbers among the operands.
        """
        if sum(size.batch for size in shape) > 1:
            raise self.mixes("pairs of rows")
        if any(isinstance(x, Size) for x in operands):
            raise self.mixes("the number of rows in a computation")
        held = [x for x in operands if isinstance(x, (Fixed, Traced))]
        held = [self.settled(x) if isinstance(x, Traced) else x for x in held]
        try:
            names, layout = self._aligned(held, shape)
        except Torn:
            held = [self.straightened(x) if isinstance(x, Traced) else x for x in held]
            try:
                names, layout = self._aligned(held, shape)
            except Torn:
                raise self.mixes("rows that are merged with other axes in two ways") from None
        found = iter(names)
        return [
            next(found) if isinstance(x, (Fixed, Traced)) else self.constant(x, dtype)
            for x in operands
        ], layout

    def _aligned(self, held: Sequence[Held], shape: Sequence[Size]) -> tuple[list[str], Layout]:
        layouts = [x.layout for x in held]
        parts = broadcast(layouts, len(shape))
        flat = [part for axis in parts for part in axis]
        cut = [each.reshaped(own_parts(each, parts)) for each in layouts]
        # For each part, the atom of each tensor, or none.
        rows = [[_atom(each, k) for each in cut] for k in range(len(flat)) if not flat[k].batch]
        lead = self._lead(held, rows)
        if lead is not None:
            rows.sort(key=lambda row: row[lead] or 0)
        groups = self._merged(rows, None if lead is None else held[lead].name, lead, cut)
        names = [
            self.arrange(x, _atoms_of(groups, place, every=place == lead), each)
            for place, (x, each) in enumerate(zip(held, cut, strict=True))
        ]
        if lead is not None:
            return names, layouts[lead]
        order = [(k, part.count) for k, part in enumerate(flat) if not part.batch]
        return names, Layout.made(order, numbered(parts))

    @staticmethod
    def _lead(held: Sequence[Held], rows: Sequence[Sequence[int | None]]) -> int | None:
        """A tensor that has all the parts, by the order of whose memory the others can go."""
        for place, x in enumerate(held):
            if isinstance(x, Traced) and all(row[place] is not None for row in rows):
                return place
        return None

    def _merged(
        self, rows: list[list[int | None]], name: str | None, lead: int | None, cut: list[Layout]
    ) -> list[list[list[int | None]]]:
        """Parts in as few groups as can be: neighbours that are neighbours in every tensor, or absent."""
        groups: list[list[list[int | None]]] = []
        for row in rows:
            before = groups[-1][-1] if groups else None
            if before is not None and all(
                (a is None) == (b is None) and (a is None or b == a + 1)
                for a, b in zip(before, row, strict=True)
            ):
                groups[-1].append(row)
            else:
                groups.append([row])
        if name is None or lead is None:
            return groups
        return self._as_in(name, rows, lead, cut[lead]) or groups

    def _as_in(
        self, name: str, rows: list[list[int | None]], lead: int, layout: Layout
    ) -> list[list[list[int | None]]] | None:
        """Parts in groups that are the axes of the leading value, if the others can follow it in that."""
        groups: list[list[list[int | None]]] = []
        left = list(rows)
        for size in self.known(name).shape:
            group: list[list[int | None]] = []
            while math.prod(layout.sizes[row[lead]] for row in group) < size:  # type: ignore[index]
                if not left:
                    return None
                group.append(left.pop(0))
            if math.prod(layout.sizes[row[lead]] for row in group) != size:  # type: ignore[index]
                return None
            for a, b in itertools.pairwise(group):
                if any((x is None) != (y is None) for x, y in zip(a, b, strict=True)):
                    return None
            groups.append(group)
        return None if left else groups

    def _check_numbers(self, kind: str) -> None:
        """Refuse arithmetic in narrow whole numbers, which wraps around."""
        found = self.result[0] if isinstance(self.result, (list, tuple)) else self.result
        if getattr(found, "dtype", None) in _NARROW and kind not in ("where", "cast"):
            raise self.refuse(
                f"expected arithmetic in floats or int64, got {str(found.dtype)[6:]}",
                "Convert the tensor first.",
            )

    def elementwise(
        self, kind: str, *operands: Held | float, dtype: str = "", **attributes: Any
    ) -> Traced:
        """A step on several tensors, elementwise; numbers in the type of the result."""
        self._check_numbers(kind)
        dtype = dtype or self.dtype()
        names, layout = self.align(operands, self.shape(), dtype)
        return Traced(self.emit(kind, names, dtype, **attributes), layout, dtype)

    def unary(self, kind: str, value: Held, **attributes: Any) -> Traced:
        """A step on the numbers of one tensor, each by itself."""
        self._check_numbers(kind)
        value = self.settled(self.traced(value))
        dtype = self.dtype()
        return Traced(self.emit(kind, (value.name,), dtype, **attributes), value.layout, dtype)

    def traced(self, value: Held) -> Traced:
        """A known tensor as a constant of the program."""
        if isinstance(value, Traced):
            return value
        name = self.constant(value.tensor.detach().cpu().numpy(), value.dtype, value.name)
        return Traced(name, value.layout, value.dtype)

    def program(self, outputs: Sequence[str], names: Sequence[str] = ()) -> Program:
        """The program of what was written, without what its outputs do not need.

        :param names: for the outputs, where these may have them.
        """
        needed, kept = set(outputs), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                kept.append(step)
                needed.update(step.inputs)
        kept, outputs = self._named(kept, outputs, names)
        constants = self.constants | dict(self.drawn)
        return Program(
            self.inputs,
            {name: each for name, each in constants.items() if name in needed},
            {name: each for name, each in self.sites.items() if name in needed},
            tuple(reversed(kept)),
            tuple(outputs),
            self.num_draws,
        )

    def _named(
        self, steps: list[Step], outputs: Sequence[str], names: Sequence[str]
    ) -> tuple[list[Step], list[str]]:
        """Steps and outputs with other names for the outputs that steps make, each once."""
        if len({*outputs}) < len(outputs):
            return steps, list(outputs)
        new = {
            old: name
            for old, name in zip(outputs, names, strict=bool(names))
            if old in self._made and name and name not in self._values
        }
        renamed = [
            replace(
                step,
                inputs=tuple(new.get(name, name) for name in step.inputs),
                outputs=tuple(new.get(name, name) for name in step.outputs),
            )
            for step in steps
        ]
        return renamed, [new.get(name, name) for name in outputs]


def in_order(tensor: Tensor, layout: Layout, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The numbers of a known tensor with its atoms in the groups, and order, given."""
    own = [atom for axis in layout.axes for atom in axis if atom != BATCH]
    order = [own.index(atom) for group in groups for atom in group]
    numbers = tensor.detach().cpu().numpy().reshape([layout.sizes[atom] for atom in own])
    return numbers.transpose(order).reshape([layout.size(group) for group in groups])


_Keyed = list[tuple[Any, tuple[int, ...]]]  # the axes of a frame: the key of each, and its atoms


def _in_tensor(layout: Layout, axes: Sequence[int]) -> _Keyed:
    """Some axes, and each atom of the others by itself, in the order of the tensor's axes."""
    order: _Keyed = []
    for axis, atoms in enumerate(layout.axes):
        if axis in axes:
            order.append((("axis", axis), atoms))
        else:
            order += [(atom, (atom,)) for atom in atoms if atom != BATCH]
    return order


def _in_memory(layout: Layout, axes: Sequence[int], last: bool) -> _Keyed:
    """The same in the order of memory, or with those axes last: if ``last``, or if one has several atoms."""
    own = {atom for axis in axes for atom in layout.axes[axis]}
    rest: _Keyed = [(atom, (atom,)) for atom in range(len(layout.sizes)) if atom not in own]
    mine: _Keyed = [(("axis", axis), layout.axes[axis]) for axis in axes]
    if last or any(len(atoms) > 1 for _, atoms in mine):
        return [*rest, *mine]
    return sorted([*rest, *mine], key=lambda each: each[1][:1])  # those of size 1 come first


def _atoms_of(
    groups: Sequence[Sequence[Sequence[int | None]]], place: int, every: bool
) -> list[tuple[int, ...]]:
    """The atoms of one tensor in each group; without empty groups in front unless ``every`` one counts."""
    own = [tuple(a for row in group if (a := row[place]) is not None) for group in groups]
    if every:
        return own
    # Axes of size 1 in front are there by themselves.
    return own[next((k for k, group in enumerate(own) if group), len(own)) :]


def _atom(layout: Layout, axis: int) -> int | None:
    atoms = layout.axes[axis]
    return atoms[0] if atoms else None
