"""USPS, handwritten digits of American envelopes, from one npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bayesbin.data.dataset import DataError, Dataset, Splits, standardize
from bayesbin.data.folders import data_folder, file_in
from bayesbin.data.npz import REMEDY, read_npz

FILE = "usps.npz"
WHITE = 2000  # the file holds brightness times this: whole numbers, where [0, 1] would be rounded


def usps_folder(folder: str | Path, *, normalize: bool = True, flatten: bool = True) -> Splits:
    """The handwritten digits of 16 x 16 pixels in a folder's ``usps.npz``: y in 0 .. 9.

    The file holds x_train, x_test: uint16 (N, 16, 16) or (N, 256), brightness in [0, 1] times 2000,
    and y_train, y_test: uint8 (N,). x is (N, 256), with ``flatten=False`` (N, 16, 16): brightness in
    [0, 1], if ``normalize`` shifted and scaled by its mean and standard deviation over all training
    pixels. Raises DataError, naming the file, if it is missing, damaged, lacks an array or holds one
    of another type, shape or range, or images and labels differ in number. Source: J. J. Hull, A
    database for handwritten text recognition research, IEEE PAMI 16, 1994.

    >>> from tempfile import TemporaryDirectory
    >>> x, y = np.full((2, 16, 16), 500, np.uint16), np.array([3, 8], np.uint8)
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/usps.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    ...     splits = usps_folder(folder, normalize=False)
    >>> splits.train.x.shape, splits.train.x[0, 0].item()
    (torch.Size([2, 256]), 0.25)
    """
    path = file_in(data_folder(Path(folder)), FILE)
    arrays = read_npz(path)
    sets = []
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        _require(path, f"x_{part}", images, np.uint16, ((16, 16), (256,)))
        _require(path, f"y_{part}", labels, np.uint8, ((),))
        for what, values, largest in (("x", images, WHITE), ("y", labels, 9)):
            if (came := int(values.max())) > largest:
                wanted = f"{what}_{part} in 0 .. {largest}"
                raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
        if len(images) != len(labels):
            wanted = f"one of y_{part} for each of x_{part}"
            came = f"{len(labels)} for {len(images)}"
            raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
        x = torch.from_numpy(images.astype(np.float32)).div_(WHITE).reshape(-1, 16, 16)
        y = torch.from_numpy(labels.astype(np.int64))
        sets.append(Dataset(x.flatten(1) if flatten else x, y, "usps", num_classes=10))
    return standardize(Splits(*sets), WHITE) if normalize else Splits(*sets)


def _require(
    path: Path, key: str, array: np.ndarray, kind: type, shapes: tuple[tuple[int, ...], ...]
) -> None:
    if array.dtype != kind or array.ndim == 0 or not len(array) or array.shape[1:] not in shapes:
        layouts = " or ".join("(" + ", ".join(["N", *map(str, shape)]) + ")" for shape in shapes)
        wanted = f"{key} of type {np.dtype(kind)} and shape {layouts}, N at least 1"
        came = f"{array.dtype} {array.shape}"
        raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
