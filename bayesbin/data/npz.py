"""Arrays of an npz file, read without unpickling anything."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bayesbin.data.dataset import DataError

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
REMEDY = "check that it is the right file, or make it again"
# What zipfile and numpy raise for an archive, a member or a member's header they cannot read.
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


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
