"""The JSON record of a run: its format and version, and a digest that is verified when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesbin.core.files import CorruptFileError, sha256, write_atomically


@dataclass(frozen=True)
class RecordFile:
    """A kind of record: its file's name, its format and version, what it is of, and the verb that writes it.

    >>> from tempfile import TemporaryDirectory
    >>> kind = RecordFile("walk.json", "example", 1, "a walk", "example walk")
    >>> with TemporaryDirectory() as folder:
    ...     kind.write(Path(folder), {"steps": 3})
    ...     kind.read(Path(folder))["steps"]
    3
    """

    name: str
    format: str
    version: int
    what: str
    verb: str

    def write(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write it atomically. :raises OSError: if it cannot be written; the old one is then what it was."""
        content = {"format": self.format, "version": self.version, **record}
        content["sha256"] = sha256(_canonical(content))
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_atomically(folder / self.name, text.encode())

    def read(self, folder: Path) -> dict[str, Any]:
        """The record in ``folder``.

        :raises FileNotFoundError: if there is none. :raises CorruptFileError: if it is damaged or foreign.
        :raises ValueError: for a version that this one does not read.
        """
        path = folder / self.name
        if not path.is_file():
            raise FileNotFoundError(
                f"expected {self.what} in {folder}, but there is no {self.name}; name a folder that "
                f"`bayesbin {self.verb} ... --out FOLDER` wrote."
            )
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise CorruptFileError(path, f"expected JSON, got other bytes ({error}).") from error
        if not isinstance(record, dict) or record.get("format") != self.format:
            raise CorruptFileError(
                path, f"expected the format {self.format!r}, got another; not {self.what}."
            )
        if record.get("version") != self.version:
            came = f"version {record.get('version')}; read it with the bayesbin that wrote it"
            raise ValueError(f"{path}: expected version {self.version} of {self.what}, got {came}.")
        if record.pop("sha256", None) != sha256(_canonical(record)):
            raise CorruptFileError(
                path, "its contents do not match their digest; restore it from a copy."
            )
        return record


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()
