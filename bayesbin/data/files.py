"""Data files: the folder that the user names, the files in it, and the arrays of an npz file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bayesbin.core.checks import user_path
from bayesbin.data.dataset import DataError

DATA_VARIABLE = "BAYESBIN_DATA"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
REMEDY = "check that it is the right file, or make it again"
# What zipfile and numpy raise for an archive, a member or a member's header they cannot read.
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def data_folder(argument: str | Path | None = None) -> Path:
    """The folder named by ``argument`` (``--data``), or else by the environment's BAYESBIN_DATA.

    Raises DataError if neither names one or there is no such folder.
    """
    named = argument or os.environ.get(DATA_VARIABLE)
    folder = user_path("a folder with the data files", named) if named else None
    if folder is None or not folder.is_dir():
        came = f"{named}, where there is none" if named else "none"
        remedy = f"name it with --data FOLDER or the environment variable {DATA_VARIABLE}"
        raise DataError(f"expected a folder with the data files, got {came}; {remedy}")
    return folder.resolve()


def file_in(folder: Path, *names: str) -> Path:
    """The first of the files ``names`` that is in the folder. Raises DataError if none is."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "no files"
    raise DataError(f"expected {' or '.join(names)} in {folder}, got {found}; add it there")


def read_npz(path: Path, names: Sequence[str] = ARRAYS) -> dict[str, np.ndarray]:
    """The arrays called ``names``. Raises DataError for a file that is damaged or lacks one of them."""
    whole = f"expected {path} to be a whole npz file"
    if not zipfile.is_zipfile(path):
        raise DataError(f"{whole}, got {path.stat().st_size} bytes of something else; {REMEDY}")
    try:
        # Opened here: numpy leaves a file open whose archive it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            there = list(archive)
            arrays = {name: np.asarray(archive[name]) for name in names if name in there}
    except _DAMAGE as error:
        came = str(error) or type(error).__name__
        raise DataError(f"{whole}, got {came}; {REMEDY}") from error
    if missing := [name for name in names if name not in arrays]:
        came = f"{', '.join(there) or 'nothing'} and no {' and no '.join(missing)}"
        raise DataError(f"expected {path} to hold {', '.join(names)}, got {came}; {REMEDY}")
    return arrays
