"""Inputs of another kind, put through what the run's own inputs were put through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesbin import data
from bayesbin.core.preprocessing import Preprocessing


class OtherInputs(NamedTuple):
    """Inputs (M, features) as the network takes them, and the name they go by."""

    name: str
    x: Tensor


def other_inputs(path: str | os.PathLike[str], splits: data.Splits) -> OtherInputs:
    """Read inputs for a network that was trained on ``splits``.

    :param path: a folder with images that :func:`bayesbin.data.load` reads, of which the test images are
        taken; or a .npy file with a row for each input, in which whole numbers are raw pixels and
        floats are taken as they are.
    :raises FileNotFoundError: if there is nothing at ``path``.
    :raises DataError: for something else there, inputs of another size, NaN or infinity.
    """
    path = Path(path)
    if path.is_dir():
        # Brightness, as pixels are counted up to 255 in one source and up to 2000 in another.
        x = _preprocessed(_brightness(_images(path)), splits.preprocessing, 1.0)
    elif path.is_file():
        rows = _rows(path)
        x = torch.from_numpy(rows.reshape(len(rows), -1).astype(np.float64))
        if rows.dtype.kind in "iub" and (known := splits.preprocessing) is not None:
            x = _preprocessed(x, known, known.divisor)
    else:
        raise FileNotFoundError(
            f"expected a folder of images or a .npy file, but there is no {path}; check its name."
        )
    wanted = splits.train.x.shape[1]
    if len(x) == 0 or x.shape[1] != wanted:
        came = f"{len(x)} of {x.shape[1]} numbers in {path}"
        raise data.DataError(
            f"expected other inputs of {wanted} numbers each, as the network takes them, got {came}; "
            "bring them to that size."
        )
    if not bool(x.isfinite().all()):
        raise data.DataError(f"expected finite numbers in {path}, got NaN or infinity; clean them.")
    return OtherInputs(path.resolve().stem, x.to(splits.train.x.dtype))


def _images(folder: Path) -> data.Splits:
    if any(folder.glob("*-idx[13]-ubyte*")):
        return data.load("idx", folder)  # and if it is damaged, says so
    for name in ("usps", "cifar"):
        try:
            return data.load(name, folder)
        except data.DataError:
            continue
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "no files"
    raise data.DataError(
        f"expected idx files, or those of usps or cifar, in {folder}, got {found}; name a folder with "
        "such files, or a .npy file of inputs."
    )


def _rows(path: Path) -> np.ndarray:
    """The array in a file; nothing in it is unpickled."""
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise data.DataError(
            f"expected an array of numbers in {path}, got another file ({error})."
        ) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise data.DataError(f"expected one array in {path}, got an archive; save it as .npy.")
    if found.dtype.kind not in "fiub" or found.ndim < 2:
        came = f"{found.dtype} of shape {found.shape}"
        raise data.DataError(f"expected numbers (M, features) in {path}, got {came}; reshape them.")
    return found


def _brightness(images: data.Splits) -> Tensor:
    """The test images as they were before they were shifted and scaled: 0 is black, 1 is white."""
    x, done = images.test.x.double(), images.preprocessing
    return x if done is None else x * _per_column(done.std, x) + _per_column(done.mean, x)


def _preprocessed(raw: Tensor, preprocessing: Preprocessing | None, divisor: float) -> Tensor:
    if preprocessing is None:
        return raw
    mean, std = (_per_column(c, raw) for c in (preprocessing.mean, preprocessing.std))
    if mean.numel() not in (1, raw.shape[1]):
        return raw  # of another size, which is refused above
    return (raw / divisor - mean) / std


def _per_column(constant: float | tuple[float, ...], x: Tensor) -> Tensor:
    """One number per channel becomes one per column: images in rows have channel after channel."""
    values = torch.as_tensor(constant, dtype=torch.float64)
    return values.repeat_interleave(x.shape[1] // len(values)) if values.dim() else values
