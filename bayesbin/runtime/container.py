"""The container of a ``.bbn`` file: a header and numeric arrays under one digest, and nothing to execute.

    offset  bytes
    0       8      magic, 89 42 42 4E 0D 0A 1A 0A
    8       4      version, 2
    12      4      length H of the header
    16      8      length of the file
    24      32     SHA-256 of bytes 0 .. 23 and of all from 56 on
    56      H      header, JSON in UTF-8
                   the arrays in the header's order, each at a multiple of 64; zeros between

All numbers are little-endian. ``docs/reference/format.md`` has the header of a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np

from bayesbin.core.files import CorruptFileError, atomic_file

MAGIC, VERSION = b"\x89BBN\r\n\x1a\n", 2
ALIGNMENT = 64
DTYPES = ("|u1", "<u2", "<u8", "<i8", "<f4", "<f8")
LONGEST_HEADER = 1 << 25
_FIXED = struct.Struct("<8sIIQ32s")
_SIGNED = _FIXED.size - 32  # bytes before the digest
_ARRAY_KEYS = {"name", "dtype", "shape", "offset"}
_CHUNK = 1 << 20
_OLDER = {1: "it was packed by bayesbin 0.1, which this version does not read; pack it again"}


@dataclass(frozen=True, eq=False)
class ArrayParts:
    """An array that is made while it is written, so that memory never holds the whole of it.

    :param dtype: one of ``DTYPES``. :param shape: of the array. :param parts: its consecutive pieces.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: Iterator[np.ndarray]


@dataclass(frozen=True, eq=False)
class Container:
    """What a file holds: the header without its list of arrays, the arrays, digest and size in bytes."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str
    size: int


def write(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray | ArrayParts],
) -> None:
    """Write the file atomically, array after array; the same contents are the same bytes.

    Arguments and errors as :func:`write_to`.

    :raises OSError: if it cannot be written; the old file is then what it was.
    """
    with atomic_file(path) as file:
        write_to(file, header, arrays)


def write_to(
    file: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray | ArrayParts]
) -> None:
    """Write to a file that was opened for writing and is empty.

    :param header: what JSON can hold, without the key "arrays".
    :raises ValueError: for an array of a type that a file does not hold, or a header that is not JSON.
    """
    entries: list[dict[str, Any]] = []
    for name, array in arrays.items():
        dtype = array.dtype if isinstance(array, ArrayParts) else _little(array.dtype)
        if dtype not in DTYPES:
            raise ValueError(
                f"expected arrays of {', '.join(DTYPES)} in a file, got {name!r} of {dtype}."
            )
        entries.append({"name": name, "dtype": dtype, "shape": list(array.shape), "offset": 0})
    text, end = _placed(header, entries)
    if len(text) > LONGEST_HEADER:
        raise ValueError(
            f"expected a header of at most {LONGEST_HEADER:,} bytes, got {len(text):,}; shorten its "
            "labels or provenance."
        )
    fixed = _FIXED.pack(MAGIC, VERSION, len(text), end, bytes(32))
    digest = hashlib.sha256(fixed[:_SIGNED])
    file.write(fixed)
    place = _put(file, digest, text, _FIXED.size)
    for entry, array in zip(entries, arrays.values(), strict=True):
        place = _put(file, digest, bytes(entry["offset"] - place), place)
        for part in array.parts if isinstance(array, ArrayParts) else (array,):
            part = np.ascontiguousarray(part, dtype=entry["dtype"])
            place = _put(file, digest, part.reshape(-1).view(np.uint8), place)
        if place != entry["offset"] + _bytes_of(entry):
            raise ValueError(f"expected {_bytes_of(entry)} bytes of {entry['name']!r}.")
    file.seek(_SIGNED)
    file.write(digest.digest())


def _put(file: BinaryIO, digest: Any, raw: Any, place: int) -> int:
    """Write bytes that the digest covers; the place after them."""
    file.write(raw)
    digest.update(raw)
    return place + len(raw)


def _placed(header: Mapping[str, Any], entries: list[dict[str, Any]]) -> tuple[bytes, int]:
    """The header's text with the offsets of all arrays, and where the last one ends."""
    text = b""
    while True:  # an offset with more digits moves all the arrays
        before, end = text, _FIXED.size + len(text)
        for entry in entries:
            entry["offset"] = _aligned(end)
            end = entry["offset"] + _bytes_of(entry)
        text = _canonical({**header, "arrays": entries})
        if len(text) == len(before):
            return text, end


def _bytes_of(entry: Mapping[str, Any]) -> int:
    return math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize


def _little(dtype: np.dtype) -> str:
    return dtype.newbyteorder("<").str


def read(path: str | os.PathLike[str]) -> Container:
    """The contents of a file, all of it verified; the arrays are read-only, in this machine's byte order.

    :raises CorruptFileError: for a file that is damaged, cut short, of another kind or version, or
        larger than the memory. :raises OSError: if it cannot be read.
    """
    if not stat.S_ISREG((there := os.stat(path)).st_mode) and not stat.S_ISDIR(there.st_mode):
        raise CorruptFileError(path, "expected a file, got a pipe or a device; name a .bbn.")
    with open(path, "rb") as file:
        return read_from(file, os.fstat(file.fileno()).st_size, path)


def read_from(file: BinaryIO, size: int, path: str | os.PathLike[str]) -> Container:
    """The contents of an open file of ``size`` bytes; errors as :func:`read`, which call it ``path``."""
    length, digest = _opened(path, file, size)
    try:
        header = _parsed(file.read(length))
        entries = _entries(header.pop("arrays", None), _FIXED.size + length, size)
        return Container(header, _arrays(file, entries), digest, size)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"its header is not one of a model: {error}") from error
    except (MemoryError, OverflowError) as error:
        raise CorruptFileError(path, "expected arrays that fit the memory.") from error


def _opened(path: str | os.PathLike[str], file: BinaryIO, size: int) -> tuple[int, str]:
    """Check all that can be without the header; its length, and the digest in hexadecimal."""
    fixed = file.read(_FIXED.size)
    if len(fixed) < _FIXED.size or fixed[:8] != MAGIC:
        raise CorruptFileError(path, "expected a bayesbin model, got another file; name a .bbn.")
    _, version, length, whole, digest = _FIXED.unpack(fixed)
    if version != VERSION:
        remedy = _OLDER.get(version, "update bayesbin to read it")
        raise CorruptFileError(path, f"expected version {VERSION}, got {version}; {remedy}.")
    if whole != size or _FIXED.size + length > size:
        raise CorruptFileError(
            path, f"expected {whole} bytes as it says, got {size}; copy it again."
        )
    found = hashlib.sha256(fixed[:_SIGNED])
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    if found.digest() != digest:
        raise CorruptFileError(path, "its contents do not match their digest; copy it again.")
    if length > LONGEST_HEADER:
        raise CorruptFileError(path, f"expected a header of at most {LONGEST_HEADER} bytes.")
    file.seek(_FIXED.size)
    return length, digest.hex()


def _entries(entries: Any, end: int, size: int) -> list[dict[str, Any]]:
    """The list of arrays: each where the one before it ends, and the last where the file does."""
    if not isinstance(entries, list):
        raise ValueError("expected a list of arrays.")
    names = set()
    for entry in entries:
        name = _check_entry(entry, size)
        start = _aligned(end)
        end = start + _bytes_of(entry)
        if name in names or type(entry["offset"]) is not int or entry["offset"] != start:
            raise ValueError(f"expected {name[:60]!r} once, at byte {start}.")
        if end > size:
            raise ValueError(f"expected {name[:60]!r} inside the file.")
        names.add(name)
    if end != size:
        raise ValueError(f"expected the file to end at byte {end}, got {size}.")
    return entries


def _check_entry(entry: Any, size: int) -> str:
    """Check what a header says of an array, but for its place; its name."""
    if not isinstance(entry, dict) or set(entry) != _ARRAY_KEYS:
        raise ValueError(f"expected an array with {', '.join(sorted(_ARRAY_KEYS))}.")
    name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
    if not isinstance(name, str) or dtype not in DTYPES:
        raise ValueError(f"expected arrays with a name and a type of {', '.join(DTYPES)}.")
    sound = isinstance(shape, list) and 1 <= len(shape) <= 10
    if not sound or any(type(n) is not int or not 0 <= n <= size for n in shape):
        raise ValueError(f"expected sizes that fit the file for {name[:60]!r}.")
    return name


def _arrays(file: BinaryIO, entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for entry in entries:
        if any(file.read(entry["offset"] - file.tell())):
            raise ValueError(f"expected zeros before {entry['name'][:60]!r}.")
        array = np.empty(entry["shape"], dtype=entry["dtype"])
        if array.size and file.readinto(memoryview(array).cast("B")) != array.nbytes:  # type: ignore[attr-defined]
            raise ValueError("expected a file that does not change while it is read.")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        found[entry["name"]] = array
    return found


def _canonical(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(
            header, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected a header that JSON can hold: {error}.") from error


def _parsed(text: bytes) -> dict[str, Any]:
    header = json.loads(text.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    if not isinstance(header, dict):
        raise ValueError("expected a JSON object.")
    json.dumps(header, ensure_ascii=False).encode()  # no half characters, which nobody could print
    return header


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice.")
    return found


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
