"""C source of a program while it is written: arrays, buffers, loops, and the step that is being written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesbin.runtime.program import Step, Value

# u8 are packed signs, u1 levels, u2 thresholds of draws and n4 places: they are no values of a program.
TYPES = {
    "f4": "float",
    "f8": "double",
    "i8": "int64_t",
    "b1": "unsigned char",
    "u8": "uint64_t",
    "u1": "unsigned char",
    "u2": "uint16_t",
    "n4": "int32_t",
}
FOREVER = 1 << 30
Strides = Sequence[int]
Operand = tuple[Strides, int]  # strides along the axes of the loops, and where it begins


def strides_of(shape: Sequence[int]) -> list[int]:
    """Strides, in numbers, of an array in C order."""
    found, size = [], 1
    for each in reversed(shape):
        found.append(size)
        size *= each
    return found[::-1]


def number(value: float, dtype: str) -> str:
    """A number as C has it, to the bit."""
    if dtype in ("f4", "f8"):
        with np.errstate(over="ignore"):
            exact = {"f4": np.float32, "f8": np.float64}[dtype](value)
        if np.isnan(exact):
            return "NAN"
        if np.isinf(exact):
            return "INFINITY" if exact > 0 else "(-INFINITY)"
        text = np.format_float_scientific(exact, trim="0")
        text = repr(float(exact)) if 1e-4 <= abs(exact) < 1e16 and dtype == "f8" else text
        text += "f" if dtype == "f4" else ""
    else:
        value = int(value)
        text = f"INT64_C({value})" if dtype == "i8" else str(value)
        if value == np.iinfo(np.int64).min:
            text = "INT64_MIN"
    return f"({text})" if text.startswith("-") or value < 0 else text


def converted(expression: str, have: str, want: str) -> str:
    """An expression as another type, as numpy converts it."""
    if have == want:
        return expression
    return f"({expression} != 0)" if want == "b1" else f"({TYPES[want]}){expression}"


@dataclass(eq=False)
class Buffer:
    """Numbers in the workspace, needed from one step to another."""

    name: str
    dtype: str
    size: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Ref:
    """An array of C: its name, its type and shape, and the buffer it is in, or how its name is declared."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer | None = None
    declaration: str = ""

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape))


@dataclass(eq=False)
class CSection:
    """One function of C: its lines, and what it has to declare."""

    lines: list[str] = field(default_factory=list)
    buffers: dict[Buffer, None] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)  # name -> declaration
    indent: int = 1


class Source:
    """All that a file of C is made of."""

    def __init__(self) -> None:
        self.tables: list[str] = []
        self.helpers: dict[str, None] = {}
        self.buffers: list[Buffer] = []
        self.now = 0
        self.drawn_from = FOREVER  # the time at which the loop over draws begins
        self.section = CSection()
        self._names: set[str] = set()
        self._known: dict[Any, str] = {}

    # Lines

    def line(self, text: str) -> None:
        """Add a line at the current depth."""
        self.section.lines.append("    " * self.section.indent + text)

    def open(self, text: str = "") -> None:
        """Begin a block."""
        self.line(f"{text} {{".strip())
        self.section.indent += 1

    def close(self, count: int = 1) -> None:
        """End blocks."""
        for _ in range(count):
            self.section.indent -= 1
            self.line("}")

    def helper(self, name: str) -> str:
        """Use a function of :mod:`bayesbin.compile.c_text`."""
        self.helpers[name] = None
        return name

    # Names and arrays

    def fresh(self, text: str) -> str:
        """An identifier like ``text`` that is new."""
        stem = re.sub(r"\W+", "_", text, flags=re.ASCII)[:40] or "value"
        found, count = stem, 1
        while found in self._names:
            count += 1
            found = f"{stem}_{count}"
        self._names.add(found)
        return found

    def table(self, array: np.ndarray, dtype: str, label: str) -> str:
        """Numbers that are written into the file; equal ones are there once."""
        flat = np.ascontiguousarray(array).reshape(-1)
        key = (dtype, flat.dtype.str, flat.tobytes())
        if key not in self._known:
            name = self.fresh(f"table_{label}")
            self._known[key] = name
            rows = _rows_of_text(flat, dtype)
            self.tables.append(
                f"static const {TYPES[dtype]} {name}[{max(1, flat.size)}] = {{\n{rows}\n}};"
            )
        return self._known[key]

    def buffer(self, dtype: str, shape: Sequence[int], label: str) -> Ref:
        """New room in the workspace, from now on."""
        shape = tuple(shape)
        name = self.fresh(f"v_{label}")
        size = max(1, int(np.prod(shape)))
        made = Buffer(name, dtype, size, self.now, self.now)
        self.buffers.append(made)
        self.section.buffers[made] = None
        return Ref(name, dtype, shape, made)

    def use(self, ref: Ref) -> Ref:
        """Say that an array is read now: what is read for each draw stays for all draws."""
        if ref.buffer is not None:
            across = ref.buffer.first < self.drawn_from <= self.now
            ref.buffer.last = max(ref.buffer.last, FOREVER if across else self.now)
            self.section.buffers[ref.buffer] = None
        if ref.declaration:
            self.section.declared[ref.name] = ref.declaration
        return ref

    # Loops

    def loops(
        self, sizes: Sequence[int], operands: Sequence[Operand], letter: str = "i"
    ) -> tuple[int, list[str]]:
        """Open loops over ``sizes``; how many, and where each operand is inside them."""
        merged = _merged(list(sizes), [list(strides) for strides, _ in operands])
        for depth, (size, _) in enumerate(merged):
            i = f"{letter}{depth}"
            self.open(f"for (int32_t {i} = 0; {i} < {size}; ++{i})")
        places = []
        for place, (_, start) in enumerate(operands):
            terms = [
                f"{letter}{depth}" if strides[place] == 1 else f"{letter}{depth} * {strides[place]}"
                for depth, (_, strides) in enumerate(merged)
                if strides[place]
            ]
            places.append(" + ".join([*terms, str(start)] if start or not terms else terms))
        return len(merged), places

    def assign(self) -> dict[str, int]:
        """Give each buffer its place, those that are needed at once apart; sizes by type."""
        sizes: dict[str, int] = {}
        placed: list[Buffer] = []
        for buffer in sorted(self.buffers, key=lambda b: (-b.size, b.first)):
            clash = sorted(
                (other.offset, other.offset + other.size)
                for other in placed
                if other.dtype == buffer.dtype
                and other.first <= buffer.last
                and buffer.first <= other.last
            )
            offset = 0
            for low, high in clash:
                if offset + buffer.size <= low:
                    break
                offset = max(offset, high)
            buffer.offset = offset
            sizes[buffer.dtype] = max(sizes.get(buffer.dtype, 0), offset + buffer.size)
            placed.append(buffer)
        return sizes


def _rows_of_text(flat: np.ndarray, dtype: str) -> str:
    if not flat.size:
        return "    0"
    if dtype == "u8":
        texts = [f"UINT64_C(0x{int(each):x})" for each in flat]
    elif dtype in ("f4", "f8", "i8"):
        texts = [number(each, dtype) for each in flat.tolist()]
    else:
        texts = [str(int(each)) for each in flat.tolist()]
    lines, line = [], ""
    for text in texts:
        if len(line) + len(text) > 105:
            lines.append(line)
            line = ""
        line += text + ", "
    return "\n".join(f"    {each.rstrip()}" for each in [*lines, line])


def _merged(sizes: list[int], strides: list[list[int]]) -> list[tuple[int, list[int]]]:
    """Axes with the strides of all operands along them; axes that lie together as one."""
    found: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(sizes):
        if size == 1:
            continue
        mine = [each[axis] for each in strides]
        if found and all(a == b * size for a, b in zip(found[-1][1], mine, strict=True)):
            found[-1] = (found[-1][0] * size, mine)
        else:
            found.append((size, mine))
    return found


@dataclass(eq=False)
class CCall:
    """One step that is being written.

    :param given: its inputs, None for one that is absent; a site is given where ``sites`` says so.
    :param used: what is known of them. :param out: what it makes.
    :param words: the packed signs of an input that is a site, as an array of words.
    """

    source: Source
    step: Step
    given: list[Ref | None]
    used: list[Value | None]
    out: list[Ref]
    words: dict[int, Ref]
    materialise: Callable[[int], Ref]

    def __getitem__(self, attribute: str) -> Any:
        return self.step.attributes[attribute]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input."""
        value = self.used[0]
        assert value is not None
        return value.shape

    @property
    def dtype(self) -> str:
        """The type of the outputs."""
        return self.step.dtype

    def has(self, place: int) -> bool:
        """Whether an input is there."""
        return place < len(self.used) and self.used[place] is not None

    def known(self, place: int) -> Value:
        """What is known of an input that is there."""
        value = self.used[place]
        assert value is not None
        return value

    def ref(self, place: int) -> Ref:
        """An input as an array of numbers."""
        found = self.given[place]
        if found is None:
            found = self.given[place] = self.materialise(place)
        return self.source.use(found)

    def at(self, place: int, index: str, dtype: str) -> str:
        """One number of an input, as a type."""
        ref = self.ref(place)
        return converted(f"{ref.name}[{index}]", ref.dtype, dtype)

    def refs(self) -> Iterable[Ref]:
        """All inputs that are there, as arrays."""
        return [self.ref(place) for place in range(len(self.used)) if self.has(place)]

    def write(self, index: str, expression: str, have: str, place: int = 0) -> None:
        """Write one number of an output."""
        out = self.out[place]
        self.source.line(f"{out.name}[{index}] = {converted(f'({expression})', have, out.dtype)};")


def aligned_strides(shape: Sequence[int], out: Sequence[int]) -> list[int]:
    """Strides of a value along the axes of another that it is repeated to."""
    own = strides_of(shape)
    missing = len(out) - len(shape)
    return [0] * missing + [
        0 if size == 1 else stride for size, stride in zip(shape, own, strict=True)
    ]


def channel_strides(shape: Sequence[int], rank: int, axis: int) -> list[int]:
    """Strides of a number for each channel, or of one for all, along the axes of a value."""
    return [int(bool(shape) and place == axis) for place in range(rank)]
