"""Safetensors files with a header and a digest over both: of posteriors, and of ensembles."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from bayesbin.core.files import CorruptFileError, atomic_file

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Format(NamedTuple):
    """The kind of a file: what it calls itself, and what a message calls it."""

    name: str
    version: int
    words: str


POSTERIOR = Format("bayesbin posterior", 1, "a posterior")


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    kind: Format = POSTERIOR,
) -> None:
    """Write the file tensor after tensor, atomically: a failed save leaves the old one.

    :param header: what JSON can hold. :raises OSError: if it cannot be written.
    """
    content = _content(header, kind)
    metadata = {"bayesbin": content, "sha256": _digest(tensors, content)}
    with atomic_file(path) as opened:
        for part in _parts(tensors, metadata):
            opened.write(part)


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file, the same in every process.

    The library writes the metadata in the order of a hash map, which differs from process to process;
    here they are sorted.

    >>> raw = to_bytes({"w": torch.zeros(2)}, {"b": "1", "a": "2"})
    >>> json.loads(raw[8:-8])["__metadata__"]
    {'a': '2', 'b': '1'}
    """
    return b"".join(bytes(part) for part in _parts(tensors, metadata))


def _parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    """A safetensors file piece by piece: one tensor at a time is in memory twice, at most."""
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    # Wide types first, so that each tensor lies at a multiple of its type's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(
                f"expected {name!r} of a type that a file can hold; got {tensor.dtype}."
            )
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield _data(tensors[name])


def _data(tensor: Tensor) -> memoryview:
    """The numbers of a tensor, as they lie in memory."""
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def digest(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], kind: Format = POSTERIOR
) -> str:
    """The digest of the file that :func:`write` would write."""
    return _digest(tensors, _content(header, kind))


def read(
    path: str | os.PathLike[str], kind: Format = POSTERIOR
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file. :raises CorruptFileError: if damaged or foreign."""
    raw = Path(path).read_bytes()
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
        header = json.loads(metadata["bayesbin"])
        tensors = safetensors.torch.load(raw)
    except Exception as error:
        raise CorruptFileError(
            path, f"it is not {kind.words} saved by bayesbin, or is cut short ({error})"
        ) from error
    if not isinstance(header, dict):
        raise CorruptFileError(path, f"it is not {kind.words} saved by bayesbin")
    if header.get("format") != kind.name or header.get("version") != kind.version:
        raise CorruptFileError(
            path,
            f"it has format {str(header.get('format'))[:40]!r} version {str(header.get('version'))[:20]}, "
            f"not {kind.name!r} version {kind.version}",
        )
    if metadata.get("sha256") != _digest(tensors, metadata["bayesbin"]):
        raise CorruptFileError(path, "its contents do not match their digest")
    return tensors, header


def _content(header: Mapping[str, Any], kind: Format) -> str:
    return json.dumps({"format": kind.name, "version": kind.version, **header}, sort_keys=True)


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_data(tensor))
    return digest.hexdigest()
