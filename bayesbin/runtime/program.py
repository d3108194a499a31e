"""Program: a network as a graph of typed steps over named values, and its draws.

It is the one description of a network that there is.

A program is made by :mod:`bayesbin.compile` or read from a file, is checked once, whole, when it is
constructed, and is then run by a backend. It holds numbers alone: nothing in it is executed but the kinds
of steps that :mod:`bayesbin.runtime.kinds` lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bayesbin.core.canonical import draw_words, num_words, unpack_words
from bayesbin.runtime.kinds import KINDS, Shape, checked_attributes

# Types of values: float32, float64, whole numbers, and booleans.
DTYPES = ("f4", "f8", "i8", "b1")
LARGEST_VALUE = 1 << 24  # numbers of one datum: 64 MB of float32
LARGEST_WEIGHTS = 1 << 31  # numbers of a constant or a site
LARGEST_SUM = 1 << 26  # of all the values of one datum
LARGEST_WORK = 1 << 38  # multiplications of one datum in one draw
MOST_STEPS = 1 << 14
# Kinds whose outputs are -1 and +1, and those that pass on what they get.
_MAKE_SIGNS = {"sign", "threshold"}
_KEEP_SIGNS = {"reshape", "permute", "slice", "concat", "flip", "take", "expand", "cast"}
_COMPARE = {"greater", "greater_equal", "equal"}
_LOGICAL = {"logical_not", "logical_and", "logical_or"}
_MOVE = _KEEP_SIGNS | {"pad", "where"}  # booleans too
# Inputs from this place on are weights or indices, which have no batch.
_SHARED_INPUTS = {"linear": 1, "conv": 1, "conv_transpose": 1, "embedding": 1, "take": 1}
_SHARED_INPUTS |= {"lstm": 3, "gru": 2, "rnn": 2}
# Kinds that have no whole numbers as outputs: there is no least one for padding, and no 2 to the -1.
_FLOATS = {"max_pool", "pow"}
_TYPED_INPUTS = {"embedding": (0, "i8"), "take": (1, "i8"), "where": (0, "b1")}


@dataclass(frozen=True)
class Value:
    """What is known of a named value before anything is run.

    :param shape: of one datum. :param dtype: one of ``DTYPES``.
    :param batched: whether it has a value for each datum; if not, all data share one.
    :param drawn: whether it differs between draws.
    :param signs: whether all of it is -1 or +1 for certain.
    """

    shape: Shape
    dtype: str
    batched: bool = True
    drawn: bool = False
    signs: bool = False

    @property
    def size(self) -> int:
        """Numbers of one datum."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that all data share: biases, real weights, normalisation, masks.

    :param data: (R, *shape) of float32, float64, int64 or bool; with ``levels`` uint8, their numbers.
    :param rows: which of the R each draw uses, (S,) int64; None: the first, in all draws.
    :param levels: what the numbers stand for, of weights with a few levels; or None.
    """

    data: np.ndarray
    rows: np.ndarray | None = None
    levels: tuple[float, ...] | None = None

    @property
    def shape(self) -> Shape:
        return self.data.shape[1:]

    @property
    def dtype(self) -> str:
        return "f4" if self.levels is not None else self.data.dtype.str[1:]

    def at(self, draw: int) -> np.ndarray:
        """The numbers of one draw."""
        found = self.data[0 if self.rows is None else self.rows[draw]]
        if self.levels is None:
            return found
        return np.asarray(self.levels, dtype=np.float32)[found]


@dataclass(frozen=True, eq=False)
class DrawnSite:
    """Binary weights that are drawn where they are used, as :mod:`bayesbin.core.canonical` says.

    :param shape: of the weights, (units, ...); K is the product of the sizes after the first.
    :param mode: packed signs of the mode, uint64 (R, units, words).
    :param flip: probabilities of the other sign out of 65,536, uint16 (R, units, K), at most 32,768.
    :param keys: of each draw, uint64 (S,). :param rows: as for :class:`Constant`.
    """

    shape: Shape
    mode: np.ndarray
    flip: np.ndarray
    keys: np.ndarray
    rows: np.ndarray | None = None

    def row(self, draw: int) -> int:
        """Which of the R distributions a draw is from."""
        return 0 if self.rows is None else int(self.rows[draw])

    def words(self, draw: int) -> np.ndarray:
        """The packed signs of a draw, (units, words)."""
        row = self.row(draw)
        return draw_words(self.mode[row], self.flip[row], int(self.keys[draw]))


@dataclass(frozen=True, eq=False)
class StoredSite:
    """Binary weights whose signs are there for each draw.

    :param shape: of the weights, (units, ...). :param bits: packed signs, uint64 (R, units, words).
    :param rows: as for :class:`Constant`.
    """

    shape: Shape
    bits: np.ndarray
    rows: np.ndarray | None = None

    def row(self, draw: int) -> int:
        """Which of the R stored networks a draw is."""
        return 0 if self.rows is None else int(self.rows[draw])

    def words(self, draw: int) -> np.ndarray:
        """The packed signs of a draw, (units, words)."""
        return self.bits[self.row(draw)]


Site = DrawnSite | StoredSite


def signs_of(site: Site, draw: int, dtype: Any = np.float32) -> np.ndarray:
    """The signs of one draw of a site, -1 and +1, in its shape."""
    plus = unpack_words(site.words(draw), site.shape)
    return np.where(plus, 1, -1).astype(dtype)


@dataclass(frozen=True)
class Step:
    """One step: a kind, what goes in, what comes out.

    A step converts its inputs to the type of its outputs and computes in it (decisions and comparisons, the
    outputs of which are exact, compute in float64; whole numbers that index stay whole).

    :param kind: a name in :data:`bayesbin.runtime.kinds.KINDS`.
    :param inputs: names of inputs, constants, sites and earlier outputs; "" for one that is absent.
    :param outputs: names of what comes out. :param dtype: of the outputs.
    :param attributes: as the kind has them.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: str = "f4"
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """A network with its draws, checked as a whole.

    :param inputs: name -> shape and type of one datum, in the order in which they are passed.
    :param constants, sites: name -> numbers. Names of inputs, constants, sites and outputs all differ.
    :param steps: in an order in which each follows those it uses.
    :param outputs: names of what the network returns.
    :param num_draws: S, at least 1; a mode is one draw.
    :raises ValueError: in a sentence, for whatever does not fit or is larger than the bounds.
    """

    inputs: Mapping[str, Value]
    constants: Mapping[str, Constant]
    sites: Mapping[str, Site]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    num_draws: int = 1

    def __post_init__(self) -> None:
        if type(self.num_draws) is not int or self.num_draws < 1:
            raise ValueError(f"expected at least one draw, got {self.num_draws}.")
        if not self.outputs or len(self.steps) > MOST_STEPS:
            raise ValueError(f"expected outputs, and at most {MOST_STEPS} steps.")
        for name, constant in self.constants.items():
            _check_constant(name, constant, self.num_draws)
        for name, site in self.sites.items():
            _check_site(name, site, self.num_draws)
        values = self.values
        for name in self.outputs:
            if name not in values or name in self.sites:
                raise ValueError(f"expected the outputs to be values, got {name!r}.")

    @property
    def values(self) -> dict[str, Value]:
        """What is known of every name: inputs, constants, sites, and what the steps make."""
        return self._walked[0]

    @property
    def work(self) -> int:
        """Multiplications for one datum in one draw, about."""
        return self._walked[1]

    @cached_property
    def _walked(self) -> tuple[dict[str, Value], int]:
        found: dict[str, Value] = {}
        for name, value in self.inputs.items():
            _check_sizes(name, value.shape)
            if value.dtype not in DTYPES or not value.batched or value.drawn:
                raise ValueError(f"expected an input of {DTYPES}, got {value}.")
            _add(found, name, value)
        for name, constant in self.constants.items():
            drawn = constant.rows is not None
            _add(found, name, Value(constant.shape, constant.dtype, False, drawn))
        for name, site in self.sites.items():
            drawn = isinstance(site, DrawnSite) or site.rows is not None
            _add(found, name, Value(tuple(site.shape), "f4", False, drawn, True))
        total = work = 0
        for place, step in enumerate(self.steps):
            try:
                outputs, more = _outputs_of(step, found)
                _check_indices(step, self.constants, found)
            except ValueError as error:
                raise ValueError(f"step {place}, {str(step.kind)[:40]!r}: {error}") from error
            for name, value in zip(step.outputs, outputs, strict=True):
                _add(found, name, value)
                total += value.size
            work += more
            if total > LARGEST_SUM or work > LARGEST_WORK:
                raise ValueError(
                    f"expected values of at most {LARGEST_SUM} numbers and {LARGEST_WORK} "
                    f"multiplications for one datum, got {total} and {work} up to step {place}."
                )
        return found, work

    @cached_property
    def peak(self) -> int:
        """How many numbers of one datum are held at once, if each value goes after its last use."""
        values, ends = self.values, {name: max(places) for name, places in self.uses.items()}
        live = sum(self.values[name].size for name in self.inputs)
        peak, kept = live, {*self.outputs, *self.inputs}
        for place, step in enumerate(self.steps):
            live += sum(values[name].size for name in step.outputs)
            peak = max(peak, live)
            for name in {*step.inputs, *step.outputs} - {""} - kept:
                made = name not in self.constants and name not in self.sites
                if made and ends.get(name, place) == place:
                    live -= values[name].size
        return peak

    @property
    def num_weights(self) -> int:
        """The number of binary weights."""
        return sum(math.prod(site.shape) for site in self.sites.values())

    @cached_property
    def uses(self) -> dict[str, list[int]]:
        """The places of the steps that read each name."""
        found: dict[str, list[int]] = {}
        for place, step in enumerate(self.steps):
            for name in step.inputs:
                if name:
                    found.setdefault(name, []).append(place)
        return found

    def select(self, draws: Sequence[int]) -> Program:
        """The program of some of the draws, in the order given."""
        if not draws or any(not 0 <= draw < self.num_draws for draw in draws):
            raise ValueError(f"expected draws of 0..{self.num_draws - 1}, got {list(draws)[:10]}.")
        chosen = np.asarray(draws, dtype=np.int64)
        return Program(
            self.inputs,
            {name: _constant_of(each, chosen) for name, each in self.constants.items()},
            {name: _site_of(each, chosen) for name, each in self.sites.items()},
            self.steps,
            self.outputs,
            len(chosen),
        )


def _add(found: dict[str, Value], name: str, value: Value) -> None:
    if not isinstance(name, str) or not name or name in found:
        raise ValueError(f"expected a new name for each value, got {name!r}.")
    found[name] = value


def _check_sizes(name: str, shape: Any, largest: int = LARGEST_VALUE) -> None:
    sound = isinstance(shape, tuple) and len(shape) <= 8
    if not sound or any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"expected up to 8 sizes of {name!r}, each at least 1, got {shape}.")
    if math.prod(shape) > largest:
        raise ValueError(f"expected at most {largest} numbers in {name!r}, got {shape}.")


def _check_rows(name: str, rows: np.ndarray | None, count: int, draws: int) -> None:
    if count < 1:
        raise ValueError(f"expected at least one row of {name!r}.")
    if rows is None:
        return
    if rows.dtype != np.int64 or rows.shape != (draws,):
        raise ValueError(f"expected a row of {name!r} for each of {draws} draws.")
    if draws and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise ValueError(f"expected rows of {name!r} below {count}.")


def _check_constant(name: str, constant: Constant, draws: int) -> None:
    data = constant.data
    if data.ndim < 1:
        raise ValueError(f"expected rows of {name!r}.")
    _check_sizes(name, data.shape[1:], LARGEST_WEIGHTS)
    _check_rows(name, constant.rows, len(data), draws)
    if constant.levels is None:
        if constant.dtype not in DTYPES:
            raise ValueError(f"expected {name!r} of {DTYPES}, got {data.dtype}.")
    elif data.dtype != np.uint8 or (data.size and int(data.max()) >= len(constant.levels)):
        raise ValueError(f"expected numbers of {len(constant.levels)} levels in {name!r}.")


def _check_site(name: str, site: Site, draws: int) -> None:
    _check_sizes(name, site.shape, LARGEST_WEIGHTS)
    if not site.shape:
        raise ValueError(f"expected sizes of {name!r}, got none.")
    units, inputs = site.shape[0], math.prod(site.shape[1:])
    packed = site.mode if isinstance(site, DrawnSite) else site.bits
    if packed.dtype != np.uint64 or packed.shape[1:] != (units, num_words(inputs)):
        raise ValueError(f"expected packed signs of {name!r}, got {packed.dtype} {packed.shape}.")
    _check_rows(name, site.rows, len(packed), draws)
    if isinstance(site, StoredSite):
        return
    if site.flip.dtype != np.uint16 or site.flip.shape != (len(packed), units, inputs):
        raise ValueError(f"expected probabilities of {name!r}, got {site.flip.shape}.")
    if int(site.flip.max()) > 1 << 15:
        raise ValueError(f"expected probabilities of at most a half in {name!r}.")
    if site.keys.dtype != np.uint64 or site.keys.shape != (draws,):
        raise ValueError(f"expected a key of {name!r} for each of {draws} draws.")


def _outputs_of(step: Step, found: Mapping[str, Value]) -> tuple[list[Value], int]:
    """What is known of a step's outputs, and its work."""
    checked_attributes(step.kind, step.attributes)
    kind = KINDS[step.kind]
    used = _inputs_of(step, found)
    shapes = kind.shapes(step.attributes, [value.shape for value in used])
    if len(shapes) != len(step.outputs):
        raise ValueError(f"expected {len(shapes)} outputs, got {len(step.outputs)}.")
    for name, shape in zip(step.outputs, shapes, strict=True):
        _check_sizes(name, shape)
    _check_types(step, used)
    batched, drawn = any(v.batched for v in used), any(v.drawn for v in used)
    signs = _makes_signs(step, used)
    values = [Value(shape, step.dtype, batched, drawn, signs) for shape in shapes]
    return values, kind.work(step.attributes, [value.shape for value in used], shapes)


def _inputs_of(step: Step, found: Mapping[str, Value]) -> list[Value]:
    fewest, most = KINDS[step.kind].inputs
    if step.dtype not in DTYPES or not fewest <= len(step.inputs) <= most:
        raise ValueError(f"expected {fewest} to {most} inputs and a type of {DTYPES}.")
    for place, name in enumerate(step.inputs):
        if name not in found and (name or place < fewest):
            raise ValueError(f"expected inputs that are known, got {name!r}.")
    return [found[name] for name in step.inputs if name]


def _makes_signs(step: Step, used: Sequence[Value]) -> bool:
    if step.kind == "take":
        return used[0].signs
    if step.kind in _KEEP_SIGNS:
        return all(value.signs for value in used)
    return step.kind in _MAKE_SIGNS


def _check_types(step: Step, used: Sequence[Value]) -> None:
    kind, dtypes = step.kind, [value.dtype for value in used]
    if step.dtype == "i8" and kind in _FLOATS:
        raise ValueError("expected an output of floats; cast it to whole numbers after this step.")
    decides = kind in _COMPARE | _LOGICAL
    if decides != (step.dtype == "b1") and (decides or kind not in _MOVE):
        raise ValueError(f"expected an output of another type than {step.dtype}.")
    place, wanted = _TYPED_INPUTS.get(kind, (0, dtypes[0]))
    if dtypes[place] != wanted:
        raise ValueError(f"expected input {place} to be of {wanted}, got {dtypes[place]}.")
    shared = used[_SHARED_INPUTS.get(kind, len(used)) :]
    if any(value.batched for value in shared):
        raise ValueError("expected weights or indices that all data share.")


def _check_indices(
    step: Step, constants: Mapping[str, Constant], found: Mapping[str, Value]
) -> None:
    """Check constant indices against what they index."""
    if step.kind == "take":
        indices, count = step.inputs[1], found[step.inputs[0]].shape[step.attributes["axis"]]
        if indices not in constants:
            raise ValueError(f"expected indices that are a constant, got {indices!r}.")
    elif step.kind == "embedding" and step.inputs[0] in constants:
        indices, count = step.inputs[0], found[step.inputs[1]].shape[0]
    else:
        return
    data = constants[indices].data
    if not 0 <= int(data.min()) <= int(data.max()) < count:
        raise ValueError(f"expected indices of 0 to {count - 1} in {indices!r}.")


def _constant_of(constant: Constant, draws: np.ndarray) -> Constant:
    if constant.rows is None:
        return constant
    used, rows = np.unique(constant.rows[draws], return_inverse=True)
    return Constant(constant.data[used], rows.astype(np.int64), constant.levels)


def _site_of(site: Site, draws: np.ndarray) -> Site:
    if isinstance(site, StoredSite):
        if site.rows is None:
            return site
        used, rows = np.unique(site.rows[draws], return_inverse=True)
        return StoredSite(site.shape, site.bits[used], rows.astype(np.int64))
    if site.rows is None:
        return DrawnSite(site.shape, site.mode, site.flip, site.keys[draws])
    used, rows = np.unique(site.rows[draws], return_inverse=True)
    mode, flip = site.mode[used], site.flip[used]
    return DrawnSite(site.shape, mode, flip, site.keys[draws], rows.astype(np.int64))
