"""The safetensors file of a posterior: tensors, a header, and a digest over both."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bayesbin.core.files import CorruptFileError, write_atomically

FORMAT, VERSION = "bayesbin posterior", 1


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write the file atomically: a failed save leaves the old one."""
    content = _content(header)
    metadata = {"bayesbin": content, "sha256": _digest(tensors, content)}
    write_atomically(path, to_bytes(tensors, metadata))


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file, the same in every process.

    The library writes the metadata in the order of a hash map, which differs from process to process;
    here they are sorted.

    >>> raw = to_bytes({"w": torch.zeros(2)}, {"b": "1", "a": "2"})
    >>> json.loads(raw[8:-8])["__metadata__"]
    {'a': '2', 'b': '1'}
    """
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    raw = safetensors.torch.save(whole, dict(metadata) if metadata else None)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """The digest of the file that :func:`write` would write."""
    return _digest(tensors, _content(header))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file. :raises CorruptFileError: if damaged or foreign."""
    raw = Path(path).read_bytes()
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
        header = json.loads(metadata["bayesbin"])
        tensors = safetensors.torch.load(raw)
    except Exception as error:
        raise CorruptFileError(
            path, f"it is not a posterior saved by bayesbin, or is cut short ({error})"
        ) from error
    if not isinstance(header, dict):
        raise CorruptFileError(path, "it is not a posterior saved by bayesbin")
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise CorruptFileError(
            path, f"it has format {header.get('format')!r} version {header.get('version')!r}"
        )
    if metadata.get("sha256") != _digest(tensors, metadata["bayesbin"]):
        raise CorruptFileError(path, "its contents do not match their digest")
    return tensors, header


def _content(header: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "version": VERSION, **header}, sort_keys=True)


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
