"""Regression tables with given splits: the folders that benchmarks of Bayesian networks pass around."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bayesbin.data.dataset import DataError, Dataset, Splits
from bayesbin.data.files import data_folder, file_in


def uci_folder(folder: str | Path, split: int = 0) -> Splits:
    """One of the given splits of a regression table: x (N, features), y (N,), in their own units.

    The folder holds ``data.txt``, a row of numbers per example, ``index_features.txt`` and
    ``index_target.txt``, its columns, and for every split ``index_train_0.txt`` and
    ``index_test_0.txt``, its rows, all counted from 0. Raises DataError, naming the file, if one is
    missing or holds no numbers, for rows or columns that are not there, and for a row that is in both
    sets or twice in one. Sources: the UCI repository; splits of Hernandez-Lobato and Adams 2015, arXiv
    1502.05336, in the layout of Gal and Ghahramani 2016, arXiv 1506.02142.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name, text in {"data": "1 2 5\\n3 4 6", "index_features": "0\\n1", "index_target": "2",
    ...                        "index_train_0": "1", "index_test_0": "0"}.items():
    ...         _ = Path(folder, f"{name}.txt").write_text(text)
    ...     splits = uci_folder(folder)
    >>> splits.train.x.tolist(), splits.test.y.tolist()
    ([[3.0, 4.0]], [5.0])
    """
    folder = data_folder(Path(folder))
    path = file_in(folder, "data.txt")
    table = _numbers(path, 2)
    features = _positions(file_in(folder, "index_features.txt"), table.shape[1], "columns")
    target = _positions(file_in(folder, "index_target.txt"), table.shape[1], "columns")
    if len(target) != 1 or target[0] in features:
        came = f"{target.tolist()}, features {features.tolist()}"
        raise DataError(f"expected one target column in {folder} that is no feature, got {came}")
    sets, rows = [], []
    for part in ("train", "test"):
        chosen = _positions(file_in(folder, f"index_{part}_{split}.txt"), len(table), "rows")
        x, y = (torch.from_numpy(table[chosen][:, c]).float() for c in (features, target))
        sets.append(Dataset(x, y[:, 0], folder.name, num_classes=None))
        rows.append(chosen)
    if shared := np.intersect1d(*rows).size:
        raise DataError(
            f"expected the sets of split {split} in {folder} to have no row in common, got {shared}; "
            "fetch the folder anew."
        )
    return Splits(*sets)


def _numbers(path: Path, num_dims: Literal[1, 2]) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file: said below
            found = np.loadtxt(path, ndmin=num_dims)
    except ValueError as error:
        raise DataError(f"expected {path} to hold rows of numbers, got: {error}") from error
    if found.size == 0 or found.ndim != num_dims:
        raise DataError(f"expected {path} to hold rows of numbers, got shape {found.shape}")
    return found


def _positions(path: Path, size: int, what: str) -> np.ndarray:
    found = _numbers(path, 1)
    whole = found.astype(int)
    if (
        (whole != found).any()
        or whole.min() < 0
        or whole.max() >= size
        or len(set(whole)) < len(whole)
    ):
        came = f"{found.min():g} .. {found.max():g}"
        raise DataError(f"expected {path} to hold different {what} in 0 .. {size - 1}, got {came}")
    return whole
