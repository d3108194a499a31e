"""Where data files are: the folder the user names, and the files in it."""

from __future__ import annotations

import os
from pathlib import Path

from bayesbin.data.dataset import DataError

DATA_VARIABLE = "BAYESBIN_DATA"


def data_folder(argument: str | Path | None = None) -> Path:
    """The folder named by ``argument`` (``--data``), or else by the environment's BAYESBIN_DATA.

    Raises DataError if neither names one or there is no such folder.
    """
    named = argument or os.environ.get(DATA_VARIABLE)
    if not named or not Path(named).expanduser().is_dir():
        came = f"{named}, where there is none" if named else "none"
        remedy = f"name it with --data FOLDER or the environment variable {DATA_VARIABLE}"
        raise DataError(f"expected a folder with the data files, got {came}; {remedy}")
    return Path(named).expanduser().resolve()


def file_in(folder: Path, *names: str) -> Path:
    """The first of the files ``names`` that is in the folder. Raises DataError if none is."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "no files"
    raise DataError(f"expected {' or '.join(names)} in {folder}, got {found}; add it there")
