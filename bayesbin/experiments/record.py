"""The record of a run: one file, one format for everything that trains, verified when it is read."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayesbin.core.files import CorruptFileError, contents, one_writer, sha256, write_atomically
from bayesbin.data import Splits

RECORD, POSTERIOR, NETWORK, CHECKPOINTS = (
    "run.json",
    "posterior.safetensors",
    "network.safetensors",
    "checkpoints",
)
FORMAT, VERSION = "bayesbin run", 2
# What trains, by the record's entry "kind".
KINDS = {
    "network": "a run of one network",
    "comparison": "a comparison of recipes",
    "tasks": "a sequence of tasks",
}
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


# The file


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json`` atomically, with a digest. Numbers that are not finite are kept.

    :raises OSError: if it cannot be written; the old one is then what it was.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_record(Path(folder), {"finished": True, "validation": {"nll": math.inf}})
    ...     read_record(folder)["validation"]
    {'nll': inf}
    """
    content = {"format": FORMAT, "version": VERSION, **_to_json(record)}
    content["sha256"] = sha256(_canonical(content))
    write_atomically(
        folder / RECORD, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
    )


def read_record(folder: str | os.PathLike[str], *, finished: bool = True) -> dict[str, Any]:
    """The record in a folder, of any kind of run, without its format, version and digest.

    :param finished: whether the run has to be finished.
    :raises FileNotFoundError: if there is none. :raises CorruptFileError: if it is damaged or foreign.
    :raises ValueError: for a version that this one does not read, and for a run that was interrupted.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a run in {folder}, but there is no {RECORD}; name a folder that `bayesbin train`, "
            "`compare` or `continual` wrote with --out."
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"expected JSON, got other bytes ({error}).") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CorruptFileError(path, f"expected the format {FORMAT!r}, got another; not a run.")
    version, digest = content.pop("version", None), content.pop("sha256", None)
    if version != VERSION:
        came = f"version {version}; read it with the bayesbin that wrote it"
        raise ValueError(f"{path}: expected version {VERSION} of a run, got {came}.")
    if digest != sha256(_canonical({"format": FORMAT, "version": version, **content})):
        raise CorruptFileError(
            path, "its contents do not match their digest; restore it from a copy."
        )
    record = _from_json(content)
    if finished and not record["finished"]:
        raise ValueError(
            f"expected a finished run, got one that was interrupted in {folder}; run the same command "
            "again to continue it."
        )
    return record


def require_kind(folder: Path, record: Mapping[str, Any], kind: str) -> None:
    """Refuse a folder with another kind of run."""
    if record["kind"] != kind:
        raise ValueError(
            f"expected {KINDS[kind]} in {folder}, got {KINDS[record['kind']]}; name another folder."
        )


def read_verified(path: Path, digest: str) -> bytes:
    """The bytes of a file of a run. :raises CorruptFileError: if it is missing or not what it was."""
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptFileError(
            path, "it is missing from the run; restore it from a copy."
        ) from error
    if sha256(payload) != digest:
        raise CorruptFileError(
            path, "it does not match the digest in the run; restore it from a copy."
        )
    return payload


def _to_json(value: Any) -> Any:
    """JSON has no word for NaN and infinity: they become {"float": "nan"}, for example."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if isinstance(value, Mapping):
        return {name: _to_json(part) for name, part in value.items()}
    return [_to_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in _NOT_FINITE:
            return _NOT_FINITE[value["float"]]
        return {name: _from_json(part) for name, part in value.items()}
    return [_from_json(part) for part in value] if isinstance(value, list) else value


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, allow_nan=False).encode()


# Beginning and continuing


@contextmanager
def writing(folder: Path, kind: str) -> Iterator[dict[str, Any] | None]:
    """Hold the folder of a run for this process alone; gives the record in it, None where there is none.

    :raises FolderInUseError: if another process is writing to it.
    :raises ValueError: if it holds something else than a run of this kind.
    """
    existing_record(folder, kind)  # refused without a trace in a folder of other things
    with one_writer(folder):
        yield existing_record(folder, kind)


def existing_record(folder: Path, kind: str) -> dict[str, Any] | None:
    """The record in a folder, finished or not; None for a folder that is new or empty.

    :raises ValueError: if the folder holds something else than a run of this kind.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected {folder} to be a folder, got a file; name another one.")
    if not (folder / RECORD).is_file():
        if found := contents(folder):
            raise ValueError(
                f"expected {folder} to be a new or empty folder, or a run; got {', '.join(found[:5])}"
                f"{' and more' if len(found) > 5 else ''}. Name another one."
            )
        return None
    record = read_record(folder, finished=False)
    require_kind(folder, record, kind)
    return record


def require_same(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings, another network or other data than it was begun with.

    Another machine or other versions are named in a warning: the run goes on, but not necessarily to the
    same bits.

    :raises ValueError: with what differs.
    """
    parts = ("settings", "recipe", "architecture", "data")
    there, here = ({name: dict(record.get(name, {})) for name in parts} for record in (saved, now))
    if there["data"].get("sha256") == here["data"]["sha256"]:  # under whatever name
        for data in (there["data"], here["data"]):
            data.pop("name")
    if different := differences(there, _from_json(json.loads(json.dumps(_to_json(here))))):
        raise ValueError(
            f"expected {folder} to hold this very run, but these differ: {'; '.join(different)}. Use the "
            "same settings and data to continue it, or name another folder."
        )
    if saved.get("environment") and (
        changed := differences(saved["environment"], now["environment"])
    ):
        warnings.warn(
            f"The run in {folder} was begun elsewhere: {'; '.join(changed)}. It is continued, but its last "
            "bits may differ from those of a run without interruption.",
            stacklevel=4,
        )


# Of entries of a record: these say how the others came about, and decide nothing.
_TOLD = {"given", "folder", "source", "note"}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, in words such as "seed 0 there, 1 now".

    >>> differences({"settings": {"seed": 0, "width": 8}}, {"settings": {"seed": 1, "width": 8}})
    ['seed 0 there, 1 now']
    """
    there, here = dict(_leaves(saved)), dict(_leaves(now))
    return [
        f"{name} {_short(there.get(key))} there, {_short(here.get(key))} now"
        for key, name in {key: key[-1] for key in (*there, *here)}.items()
        if there.get(key) != here.get(key)
    ]


def _leaves(record: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        elif name not in _TOLD:
            # "name" and "sha256" say nothing without what they are of.
            own = f"{path[-1]} {name}" if path and name in ("name", "sha256") else name
            yield (*path, own), value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


# What a record says


def data_record(splits: Splits, folder: str | None, **sizes: int) -> dict[str, Any]:
    """The entry "data": name, folder, digests of each part, and sizes."""
    parts = {
        "training x": splits.train.x,
        "training y": splits.train.y,
        "test x": splits.test.x,
        "test y": splits.test.y,
    }
    digests = {name: sha256(part.contiguous().numpy().tobytes()) for name, part in parts.items()}
    return {
        "name": splits.train.name,
        "folder": folder,
        "sha256": sha256("".join(digests.values()).encode()),
        **sizes,
    }
