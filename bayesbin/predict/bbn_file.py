"""The container of a ``.bbn`` file: a header and numeric arrays under one digest, and nothing to execute.

    offset  bytes
    0       8      magic, 89 42 42 4E 0D 0A 1A 0A
    8       4      version, 1
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
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from bayesbin.core.files import CorruptFileError, write_atomically

MAGIC, VERSION = b"\x89BBN\r\n\x1a\n", 1
ALIGNMENT = 64
_FIXED = struct.Struct("<8sIIQ32s")
_SIGNED = _FIXED.size - 32  # bytes before the digest
DTYPES = ("|u1", "<u2", "<u8", "<f4")
_ARRAY_KEYS = {"name", "dtype", "shape", "offset"}


@dataclass(frozen=True, eq=False)
class Container:
    """What a file holds: the header without its list of arrays, the arrays, digest and size in bytes."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str
    size: int


def write(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write the file atomically; the same contents are the same bytes.

    :param header: what JSON can hold, without the key "arrays".
    :raises ValueError: for an array of a type that a file does not hold, or a header that is not JSON.
    :raises OSError: if it cannot be written; the old file is then what it was.
    """
    entries: list[dict[str, Any]] = []
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in DTYPES:
            raise ValueError(f"A file holds arrays of {', '.join(DTYPES)}; {name!r} is {dtype}.")
        entries.append({"name": name, "dtype": dtype, "shape": list(array.shape), "offset": 0})
    sizes = [array.nbytes for array in arrays.values()]
    text = b""
    while True:  # an offset with more digits moves all the arrays
        before, end = text, _FIXED.size + len(text)
        for entry, size in zip(entries, sizes, strict=True):
            entry["offset"] = _aligned(end)
            end = entry["offset"] + size
        text = _canonical({**header, "arrays": entries})
        if len(text) == len(before):
            break
    payload = bytearray(end)
    payload[_FIXED.size : _FIXED.size + len(text)] = text
    for entry, array in zip(entries, arrays.values(), strict=True):
        raw = np.ascontiguousarray(array, dtype=entry["dtype"]).tobytes()
        payload[entry["offset"] : entry["offset"] + len(raw)] = raw
    _FIXED.pack_into(payload, 0, MAGIC, VERSION, len(text), end, bytes(32))
    payload[_SIGNED : _FIXED.size] = _digest(payload)
    write_atomically(path, bytes(payload))


def read(path: str | os.PathLike[str]) -> Container:
    """The contents of a file, all of it verified; arrays are read-only views of one buffer.

    :raises CorruptFileError: for a file that is damaged, cut short, of another kind or of a newer
        version. :raises OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        fixed = file.read(_FIXED.size)
        if len(fixed) < _FIXED.size or fixed[:8] != MAGIC:
            raise CorruptFileError(
                path, "expected a bayesbin model, got another file; name a .bbn."
            )
        _, version, length, whole, digest = _FIXED.unpack(fixed)
        if version != VERSION:
            remedy = "update bayesbin to read it" if version > VERSION else "pack it again"
            raise CorruptFileError(path, f"expected version {VERSION}, got {version}; {remedy}.")
        if whole != size or _FIXED.size + length > size:
            came = f"{size}; copy it again"
            raise CorruptFileError(path, f"expected {whole} bytes as it says, got {came}.")
        file.seek(0)
        whole_file = bytearray(size)
        count = file.readinto(whole_file)
    raw = memoryview(whole_file).toreadonly()
    if count != size or digest != _digest(raw):
        raise CorruptFileError(path, "its contents do not match their digest; copy it again.")
    try:
        header = _parsed(bytes(raw[_FIXED.size : _FIXED.size + length]))
        arrays = _arrays(raw, header.pop("arrays", None), _FIXED.size + length)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"its header is not one of a model: {error}") from error
    return Container(header, arrays, digest.hex(), size)


def _arrays(raw: memoryview, entries: Any, end: int) -> dict[str, np.ndarray]:
    """The arrays, each where the one before it ends, and the last where the file does."""
    if not isinstance(entries, list):
        raise ValueError("expected a list of arrays.")
    found: dict[str, np.ndarray] = {}
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != _ARRAY_KEYS:
            raise ValueError(f"expected an array with {', '.join(sorted(_ARRAY_KEYS))}.")
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if not isinstance(name, str) or name in found or dtype not in DTYPES:
            raise ValueError(f"expected arrays of different names and types {', '.join(DTYPES)}.")
        sound = isinstance(shape, list) and 1 <= len(shape) <= 8
        if not sound or any(type(n) is not int or not 1 <= n <= len(raw) for n in shape):
            raise ValueError(f"expected sizes of at least 1 that fit the file for {name!r}.")
        start, count = _aligned(end), math.prod(shape)
        stop = start + count * np.dtype(dtype).itemsize
        if type(entry["offset"]) is not int or entry["offset"] != start or stop > len(raw):
            raise ValueError(f"expected {name!r} at byte {start} and inside the file.")
        if any(raw[end:start]):
            raise ValueError(f"expected zeros before {name!r}.")
        found[name] = np.frombuffer(raw, dtype, count, start).reshape(shape)
        end = stop
    if end != len(raw):
        raise ValueError(f"expected the file to end at byte {end}, got {len(raw)}.")
    return found


def _canonical(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(
            header, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"A header is what JSON can hold; {error}.") from error
    return text.encode()


def _parsed(text: bytes) -> dict[str, Any]:
    header = json.loads(text.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    if not isinstance(header, dict):
        raise ValueError("expected a JSON object.")
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


def _digest(raw: bytearray | memoryview) -> bytes:
    digest = hashlib.sha256(raw[:_SIGNED])
    digest.update(memoryview(raw)[_FIXED.size :])
    return digest.digest()
