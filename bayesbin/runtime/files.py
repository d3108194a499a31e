"""Model files, ``.bbn``: a model as a header and arrays, and back, all of it verified."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.core.canonical import WORD, num_words, unpack_words
from bayesbin.core.checks import one_of
from bayesbin.core.files import CorruptFileError
from bayesbin.runtime import container
from bayesbin.runtime.container import ArrayParts, Container
from bayesbin.runtime.effort import check_effort
from bayesbin.runtime.model import Model
from bayesbin.runtime.program import (
    Constant,
    DrawnSite,
    Program,
    Site,
    Step,
    StoredSite,
    Value,
)

CONTENTS = ("draws", "posterior")
_KEYS = {"contents", "head", "labels", "precision", "preprocessing", "program", "provenance"}
_PROGRAM = {"inputs", "constants", "sites", "steps", "outputs", "num_draws"}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
# Which row of its numbers a draw uses: the first; that of its own number; the one that an array lists.
_ROWS = ("first", "own", "listed")
# Types of constants as the arrays of a file have them; booleans are bytes of 0 and 1.
_TYPES = {"f4": "<f4", "f8": "<f8", "i8": "<i8", "b1": "|u1", "levels": "|u1"}
Arrays = dict[str, np.ndarray | ArrayParts]


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model that was read from a file.

    :param contents: "draws", the signs of each draw, or "posterior", from which they are drawn.
    :param digest: SHA-256 of the contents, as the file has it. :param size: of the file in bytes.
    :param array_bytes: of each array, by name.
    """

    model: Model
    contents: str
    digest: str
    size: int
    array_bytes: Mapping[str, int]


def save(path: str | os.PathLike[str], model: Model, contents: str = "draws") -> Path:
    """Write a model to one file, atomically; the same model is the same bytes.

    Of N binary weights and S draws, ``contents="draws"`` takes N S bits and "posterior" 17 N: the mode and
    the probability of the other sign, from which the same draws are made as they are used. Weights that
    the model has as signs of each draw are always written so.

    :returns: the path.
    :raises ValueError: for a posterior that the model does not have, or provenance that JSON cannot hold.
    :raises OSError: if the file cannot be written; an old one is then what it was.
    """
    container.write(path, *_written(model, contents))
    try:
        check_effort(model, os.path.getsize(path))
    except ValueError as error:
        warnings.warn(f"The file has to be read with trusted=True: {error}", stacklevel=3)
    return Path(path)


def to_bytes(model: Model, contents: str = "draws") -> bytes:
    """The bytes of the file that :func:`save` writes; arguments and errors are its."""
    file = io.BytesIO()
    container.write_to(file, *_written(model, contents))
    return file.getvalue()


def _written(model: Model, contents: str) -> tuple[dict[str, Any], Arrays]:
    """The header and the arrays of a model's file."""
    contents = one_of("contents", contents, CONTENTS)
    sites = model.program.sites.values()
    if contents == "posterior" and sites and all(isinstance(s, StoredSite) for s in sites):
        raise ValueError(
            'expected a model with a posterior for contents="posterior", but it holds the signs of its '
            'draws alone; use contents="draws".'
        )
    arrays: Arrays = {}
    before = model.preprocessing
    header = {
        "contents": contents,
        "head": dict(model.head),
        "labels": None if model.labels is None else list(model.labels),
        "precision": model.precision,
        "program": _program_entry(model.program, "program", contents, arrays),
        "preprocessing": before and _program_entry(before, "preprocessing", contents, arrays),
        "provenance": dict(model.provenance),
    }
    return header, arrays


def read(path: str | os.PathLike[str], trusted: bool = False) -> ModelFile:
    """The model in a file; nothing in the file is executed, and all of it is verified.

    :param trusted: whether it may ask for any time and memory, see :mod:`bayesbin.runtime.effort`.
    :raises CorruptFileError: for a file that is damaged, of another kind or of another version.
    :raises OSError: if it cannot be read.
    """
    return _model_file(container.read(path), path, trusted)


def from_bytes(data: bytes) -> ModelFile:
    """The model in the bytes of a file that is trusted. :raises CorruptFileError: as :func:`read`."""
    name = "bytes of a model"
    return _model_file(container.read_from(io.BytesIO(data), len(data), name), name, True)


def _model_file(found: Container, path: str | os.PathLike[str], trusted: bool) -> ModelFile:
    try:
        header = _fields(found.header, _KEYS, "a model")
        sizes = {name: array.nbytes for name, array in found.arrays.items()}
        arrays = dict(found.arrays)
        before = header["preprocessing"]
        model = Model(
            _program_of(header["program"], "program", arrays),
            _named(header["head"], "a head"),
            None if header["labels"] is None else tuple(_list(header["labels"], "labels")),
            None if before is None else _program_of(before, "preprocessing", arrays),
            _named(header["provenance"], "provenance"),
            _text(header["precision"]),
        )
        if arrays:
            raise ValueError(f"expected no array that nothing uses, got {min(arrays)!r}.")
        if header["contents"] not in CONTENTS:
            raise ValueError(f"expected contents of {CONTENTS}.")
        if not trusted:
            check_effort(model, found.size)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise CorruptFileError(path, f"its header does not fit: {reason}") from error
    except (MemoryError, OverflowError) as error:
        raise CorruptFileError(path, "expected a model that fits the memory.") from error
    return ModelFile(model, header["contents"], found.digest, found.size, sizes)


# From a program to a header and arrays


def _program_entry(program: Program, prefix: str, contents: str, arrays: Arrays) -> dict[str, Any]:
    constants = [
        _constant_entry(name, constant, f"{prefix}/{name}", arrays)
        for name, constant in program.constants.items()
    ]
    sites = [
        _site_entry(name, site, f"{prefix}/{name}", program.num_draws, contents, arrays)
        for name, site in program.sites.items()
    ]
    return {
        "inputs": [
            {"name": name, "shape": list(value.shape), "dtype": value.dtype}
            for name, value in program.inputs.items()
        ],
        "constants": constants,
        "sites": sites,
        "steps": [
            {
                "kind": step.kind,
                "inputs": list(step.inputs),
                "outputs": list(step.outputs),
                "dtype": step.dtype,
                "attributes": {k: _listed(v) for k, v in step.attributes.items()},
            }
            for step in program.steps
        ],
        "outputs": list(program.outputs),
        "num_draws": program.num_draws,
    }


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _rows_entry(rows: np.ndarray | None, name: str, arrays: Arrays) -> str:
    if rows is None:
        return "first"
    if np.array_equal(rows, np.arange(len(rows))):
        return "own"
    arrays[f"{name}.rows"] = rows
    return "listed"


def _constant_entry(name: str, constant: Constant, array: str, arrays: Arrays) -> dict[str, Any]:
    type_ = constant.dtype if constant.levels is None else "levels"
    data = constant.data.view(np.uint8) if type_ == "b1" else constant.data
    _check_numbers(name, data)
    arrays[f"{array}.data"] = data
    levels = constant.levels
    return {
        "name": name,
        "type": type_,
        "levels": None if levels is None else [float(level) for level in levels],
        "rows": _rows_entry(constant.rows, array, arrays),
    }


def _site_entry(
    name: str, site: Site, array: str, draws: int, contents: str, arrays: Arrays
) -> dict[str, Any]:
    entry = {"name": name, "shape": list(site.shape), "drawn": False}
    if isinstance(site, DrawnSite) and contents == "posterior":
        arrays[f"{array}.mode"] = _tight_rows(site.shape, len(site.mode), site.mode.__getitem__)
        arrays[f"{array}.flip"] = site.flip
        arrays[f"{array}.keys"] = site.keys
        return {**entry, "drawn": True, "rows": _rows_entry(site.rows, array, arrays)}
    if isinstance(site, DrawnSite):
        arrays[f"{array}.bits"] = _tight_rows(site.shape, draws, site.words)
        return {**entry, "rows": "own"}
    arrays[f"{array}.bits"] = _tight_rows(site.shape, len(site.bits), site.bits.__getitem__)
    return {**entry, "rows": _rows_entry(site.rows, array, arrays)}


def _tight_rows(
    shape: tuple[int, ...], count: int, words: Callable[[int], np.ndarray]
) -> ArrayParts:
    """Bits of ``count`` networks, made one after another as they are written."""
    parts: Iterator[np.ndarray] = (tight_of(words(row), shape) for row in range(count))
    return ArrayParts("|u1", (count, -(-math.prod(shape) // 8)), parts)


def tight_of(words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bits of packed rows (N, words) without the gaps between rows: bytes, uint8.

    Weight i, in C order, is bit i mod 8 of byte i // 8.

    >>> tight_of(np.array([[5], [6]], dtype=np.uint64), (2, 3)).tolist()
    [53]
    """
    inputs = math.prod(shape[1:])
    if inputs % 8 == 0:
        eights = np.ascontiguousarray(words, dtype="<u8").view(np.uint8)
        return np.ascontiguousarray(eights[:, : inputs // 8]).reshape(-1)
    return np.packbits(unpack_words(words, shape).reshape(-1), bitorder="little")


def words_of(tight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Packed rows (R, N, words), uint64, of weights that are bits of ``tight`` (R, bytes).

    >>> words_of(np.array([[0b110101]], dtype=np.uint8), (2, 3)).tolist()
    [[[5], [6]]]
    """
    units, inputs = shape[0], math.prod(shape[1:])
    rows = np.zeros((len(tight), units, num_words(inputs) * WORD // 8), dtype=np.uint8)
    if inputs % 8 == 0:
        rows[:, :, : inputs // 8] = tight.reshape(len(tight), units, inputs // 8)
    else:
        for row, packed in zip(rows, tight, strict=True):  # one at a time: eight times the room
            bits = np.unpackbits(packed, count=units * inputs, bitorder="little")
            row[:, : -(-inputs // 8)] = np.packbits(
                bits.reshape(units, inputs), axis=1, bitorder="little"
            )
    return rows.view("<u8").astype(np.uint64, copy=False)


# And back. What a header says is of any type until it is checked here; that names, shapes and attributes
# fit one another is what Program checks.


def _program_of(entry: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Program:
    """The program of a header's entry; it takes its arrays out of ``arrays``."""
    entry = _fields(entry, _PROGRAM, "a program")
    draws = entry["num_draws"]
    if type(draws) is not int or not 1 <= draws < 1 << 31:
        raise ValueError("expected a whole number of draws, at least 1.")
    inputs = {}
    for each in _list(entry["inputs"], "inputs"):
        each = _fields(each, {"name", "shape", "dtype"}, "an input")
        shape = _shape(each["shape"])
        _put(inputs, each["name"], Value(shape, _text(each["dtype"])))
    constants: dict[str, Constant] = {}
    for each in _list(entry["constants"], "constants"):
        each = _fields(each, {"name", "type", "levels", "rows"}, "a constant")
        array = f"{prefix}/{_text(each['name'])}"
        _put(constants, each["name"], _constant_of(each, array, draws, arrays))
    sites: dict[str, Site] = {}
    for each in _list(entry["sites"], "sites"):
        each = _fields(each, {"name", "shape", "drawn", "rows"}, "a site")
        array = f"{prefix}/{_text(each['name'])}"
        _put(sites, each["name"], _site_of(each, array, draws, arrays))
    steps = tuple(_step_of(each) for each in _list(entry["steps"], "steps"))
    return Program(inputs, constants, sites, steps, _texts(entry["outputs"]), draws)


def _constant_of(
    entry: dict[str, Any], array: str, draws: int, arrays: dict[str, np.ndarray]
) -> Constant:
    type_ = _text(entry["type"])
    if type_ not in _TYPES or (type_ == "levels") != (entry["levels"] is not None):
        raise ValueError(f"expected constants of {', '.join(_TYPES)}, got {type_[:20]!r}.")
    data = _taken(arrays, f"{array}.data", _TYPES[type_])
    _check_numbers(entry["name"], data)
    levels = None
    if type_ == "levels":
        levels = tuple(_list(entry["levels"], "levels"))
        if any(type(x) is not float or not abs(x) <= _LARGEST_FLOAT for x in levels):
            raise ValueError("expected levels that are numbers of float32.")
    elif type_ == "b1":
        if data.size and int(data.max()) > 1:
            raise ValueError(f"expected booleans of 0 and 1 in {entry['name'][:60]!r}.")
        data = data.view(np.bool_)
    return Constant(data, _rows_of(entry["rows"], array, len(data), draws, arrays), levels)


def _site_of(entry: dict[str, Any], array: str, draws: int, arrays: dict[str, np.ndarray]) -> Site:
    shape = _shape(entry["shape"])
    if not shape or min(shape) < 1:
        raise ValueError(f"expected sizes of weights of at least 1, got {shape}.")
    if entry["drawn"] is False:
        bits = _bits_of(arrays, f"{array}.bits", shape)
        return StoredSite(shape, bits, _rows_of(entry["rows"], array, len(bits), draws, arrays))
    if entry["drawn"] is not True:
        raise ValueError("expected drawn to be true or false.")
    mode = _bits_of(arrays, f"{array}.mode", shape)
    flip, keys = _taken(arrays, f"{array}.flip", "<u2"), _taken(arrays, f"{array}.keys", "<u8")
    return DrawnSite(
        shape, mode, flip, keys, _rows_of(entry["rows"], array, len(mode), draws, arrays)
    )


def _bits_of(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    tight, count = _taken(arrays, name, "|u1"), math.prod(shape)
    if tight.ndim != 2 or tight.shape[1] != -(-count // 8):
        raise ValueError(f"expected {count} bits in each row of {name[:60]!r}, got {tight.shape}.")
    if count % 8 and (tight[:, -1] >> count % 8).any():
        raise ValueError(f"expected zeros after the last weight in {name[:60]!r}.")
    return words_of(tight, shape)


def _rows_of(
    given: Any, array: str, count: int, draws: int, arrays: dict[str, np.ndarray]
) -> np.ndarray | None:
    """Which of ``count`` rows each draw uses; None: the first."""
    if given not in _ROWS:
        raise ValueError(f"expected rows of {', '.join(_ROWS)}.")
    if given == "first":
        return None
    if given == "listed":
        return _taken(arrays, f"{array}.rows", "<i8")
    if count != draws:  # before an array of any length is made
        raise ValueError(f"expected a row of {array[:60]!r} for each of {draws} draws.")
    return np.arange(draws, dtype=np.int64)


def _taken(arrays: dict[str, np.ndarray], name: str, dtype: str) -> np.ndarray:
    array = arrays.pop(name, None)
    if array is None or array.dtype != np.dtype(dtype).newbyteorder("="):
        raise ValueError(f"expected an array {name[:80]!r} of {dtype}.")
    return array


def _step_of(entry: Any) -> Step:
    entry = _fields(entry, {"kind", "inputs", "outputs", "dtype", "attributes"}, "a step")
    attributes = {
        name: _tupled(value) for name, value in _named(entry["attributes"], "attributes").items()
    }
    return Step(
        _text(entry["kind"]),
        _texts(entry["inputs"]),
        _texts(entry["outputs"]),
        _text(entry["dtype"]),
        attributes,
    )


def _tupled(value: Any) -> Any:
    """Lists, and lists in them, as tuples; whatever else there is, the kind of the step refuses."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(each) if isinstance(each, list) else each for each in value)


def _check_numbers(name: str, data: np.ndarray) -> None:
    # Infinities stand in masks and in thresholds that no value reaches.
    if data.dtype.kind == "f" and np.isnan(data).any():
        raise ValueError(f"expected numbers in {name[:60]!r}, got NaN.")


def _put(found: dict[str, Any], name: Any, thing: Any) -> None:
    if _text(name) in found:
        raise ValueError(f"expected different names, got {name[:60]!r} twice.")
    found[name] = thing


def _fields(entry: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != names:
        raise ValueError(f"expected {what} with exactly {', '.join(sorted(names))}.")
    return entry


def _named(entry: Any, what: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected {what} by name.")
    return entry


def _list(entry: Any, what: str) -> list[Any]:
    if not isinstance(entry, list):
        raise ValueError(f"expected a list of {what}.")
    return entry


def _text(entry: Any) -> str:
    if not isinstance(entry, str) or len(entry) > 1000:
        raise ValueError("expected a text of at most 1000 characters.")
    return entry


def _texts(entry: Any) -> tuple[str, ...]:
    return tuple(_text(each) for each in _list(entry, "names"))


def _shape(entry: Any) -> tuple[int, ...]:
    sizes = _list(entry, "sizes")
    if len(sizes) > 8 or any(type(size) is not int or not 0 <= size < 1 << 31 for size in sizes):
        raise ValueError("expected up to 8 sizes.")
    return tuple(sizes)
