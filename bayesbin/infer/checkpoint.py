"""Checkpoints: one file each, written atomically, its digest verified before it is unpickled."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import whole_number
from bayesbin.core.files import CorruptFileError, remove_temporaries, sha256, write_atomically

FORMAT = "bayesbin checkpoint"
SCHEMA = 2

_NAME = re.compile(r"epoch-(\d{6,})(?:-step-(\d{6,}))?\.ckpt")
_REMEDY = "Delete it to continue from an earlier one, or start anew in another folder."


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


def save_checkpoint(
    folder: str | os.PathLike[str], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write ``state`` to a file in ``folder``, then delete all but the newest ``keep`` up to it.

    The file is a line of JSON (format, schema, versions, epoch, step, digests) and the state as
    ``torch.save`` writes it. It is called ``epoch-000005.ckpt`` after five whole epochs, and
    ``epoch-000006-step-000123.ckpt`` within the sixth: names sort by age.

    :param state: nested containers of tensors, numbers and strings; ``state["epoch"]`` counts
        finished epochs, ``state["batch"]`` batches done in the one begun, ``state["step"]`` all
        steps; ``state["configuration"]``, a mapping of strings, says what it belongs to.
    :raises TypeError: for a state that could not be loaded again without running foreign code.
    :raises OSError: if it cannot be written; the files there are then what they were.

    Example::

        >>> state = {"epoch": 5, "batch": 0, "step": 50, "configuration": {"seed": "0"}, "w": [0.5]}
        >>> save_checkpoint("run", state).name  # doctest: +SKIP
        'epoch-000005.ckpt'
    """
    keep = whole_number("keep", keep, at_least=1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder, minutes=15.0)
    path = folder / _file_name(state["epoch"], state["batch"], state["step"])
    write_checkpoint(path, state)
    # Files that sort after this one are damaged ones that were passed over: not ours to count.
    older = [other for other in checkpoints(folder) if _age(other) <= _age(path)]
    for other in older[:-keep]:
        other.unlink(missing_ok=True)
    return path


def write_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` to one file, atomically, under a header with its digest.

    Arguments and errors as :func:`save_checkpoint`.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    if not _is_plain(state):
        _require_loadable(payload)
    header = {
        "format": FORMAT,
        "schema": SCHEMA,
        "epoch": state["epoch"],
        "step": state["step"],
        "torch": torch.__version__,
        "bayesbin": _package_version(),
        "configuration": sha256(_json_line(state["configuration"])),
        "size": len(payload),
    }
    header["sha256"] = _digest(header, payload)
    write_atomically(path, _json_line(header) + payload)


def load_latest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The newest valid checkpoint's state in ``folder``, tensors on the CPU; None if it has none.

    A damaged file is named in a CheckpointWarning, and the one before it is used.

    :raises CorruptFileError: if there are checkpoints and every one is damaged.
    :raises ValueError: for a checkpoint of a schema that this version does not read.

    Example::

        >>> load_latest("a folder that is not there") is None
        True
    """
    damaged: list[CorruptFileError] = []
    for path in reversed(checkpoints(folder)):
        try:
            state = read_checkpoint(path)
        except CorruptFileError as error:
            damaged.append(error)
            continue
        for error in damaged:
            warnings.warn(
                f"Passing over a damaged checkpoint, using {path.name} instead. {error}",
                CheckpointWarning,
                stacklevel=2,
            )
        return state
    if damaged:
        reasons = " ".join(str(error) for error in damaged)
        raise CorruptFileError(
            folder,
            f"expected a valid checkpoint, but every one ({len(damaged)}) is damaged; restore one "
            f"from a copy, or start anew in another folder. {reasons}",
        )
    return None


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in one file, after its size and digest were verified.

    :raises CorruptFileError: if it is damaged or no checkpoint.
    :raises ValueError: for a schema that this version does not read.
    """
    line, newline, payload = Path(path).read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    # The digest is over the header too, so the header must be, byte for byte, what was written.
    if not isinstance(header, dict) or _json_line(header) != line + newline:
        raise CorruptFileError(path, f"expected a header line of JSON, got other bytes. {_REMEDY}")
    if header.get("format") != FORMAT:
        came = header.get("format")
        raise CorruptFileError(path, f"expected format {FORMAT!r}, got {came!r}. {_REMEDY}")
    if len(payload) != header.get("size"):
        raise CorruptFileError(
            path, f"expected {header.get('size')} bytes of state, got {len(payload)}. {_REMEDY}"
        )
    digest = header.pop("sha256", None)
    if (came := _digest(header, payload)) != digest:
        raise CorruptFileError(path, f"expected SHA-256 {digest}, got {came}. {_REMEDY}")
    if header["schema"] != SCHEMA:
        raise ValueError(
            f"{path}: expected checkpoint schema {SCHEMA}, got {header['schema']}, written by "
            f"bayesbin {header['bayesbin']}; resume with that version, or start in another folder."
        )
    return _unpickle(payload)


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The files in ``folder`` that are named as checkpoints, oldest first, not verified."""
    return sorted((p for p in Path(folder).glob("*.ckpt") if _NAME.fullmatch(p.name)), key=_age)


def _digest(header: Mapping[str, Any], payload: bytes) -> str:
    return sha256(_json_line(header) + payload)


def _json_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _unpickle(payload: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _is_plain(value: Any) -> bool:
    """Whether a state is of the very types that always load again; subclasses may need foreign code."""
    kind = type(value)
    if kind in (Tensor, nn.Parameter, type(None), bool, int, float, str, bytes):
        return True
    if kind in (dict, OrderedDict):
        return all(type(key) in (str, int) and _is_plain(value[key]) for key in value)
    return kind in (list, tuple) and all(map(_is_plain, value))


def _require_loadable(payload: bytes) -> None:
    """Found out now, by trying, or else by whoever needs the checkpoint."""
    try:
        _unpickle(payload)
    except Exception as error:
        raise TypeError(
            "expected a checkpoint state of tensors, numbers, strings and containers of these; "
            f"convert what is not (NumPy numbers, say) to one of them. torch says: {error}"
        ) from error


def _file_name(epoch: int, batch: int, step: int) -> str:
    return f"epoch-{epoch + 1:06d}-step-{step:06d}.ckpt" if batch else f"epoch-{epoch:06d}.ckpt"


def _age(path: Path) -> tuple[float, float]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    epoch, step = match.groups()
    return float(epoch), float(step or "inf")


def _package_version() -> str:
    try:
        return importlib.metadata.version("bayesbin")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
