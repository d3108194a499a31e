"""Every data set by its name."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

from bayesbin.core.checks import one_of
from bayesbin.core.names import DATASETS
from bayesbin.data.built_in import digits, two_moons
from bayesbin.data.dataset import DataError, Splits, split
from bayesbin.data.files import data_folder
from bayesbin.data.images import cifar_folder, idx_folder, usps_folder

# CRC-32 of the training labels: these two have the same file names, only the content tells which.
_LABEL_CHECKSUMS = {0xBA07E8EF: "mnist", 0x2ED6E46A: "fashion-mnist"}


def load(
    name: str, folder: str | Path | None = None, seed: int = 0, *, flatten: bool = True
) -> Splits:
    """The data set called ``name``, one of ``bayesbin.core.names.DATASETS``: x (N, features), y (N,).

    "two-moons" (200 + 200 points) and "digits" come from ``seed`` alone; "mnist", "fashion-mnist"
    are idx files, "usps" an npz file, "cifar" binary batches or an npz file, in ``folder`` (see
    :func:`data_folder`) or its subfolder of that name, "idx" any idx files in ``folder``. With
    ``flatten=False`` images from files stay images: (N, rows, columns), and of "cifar" (N, 3, rows,
    columns). Raises ValueError for another name, DataError as :func:`idx_folder`, :func:`usps_folder`
    and :func:`cifar_folder`, and if MNIST is asked for and Fashion-MNIST found, or the reverse.

    >>> load("two-moons", "usps").train.x.shape
    torch.Size([200, 2])
    """
    one_of("name", name, DATASETS)
    if name == "two-moons":
        return split(two_moons(400, seed=seed), 0.5, seed)
    if name == "digits":
        return digits(seed)
    root = data_folder(folder)
    if name == "idx":
        return idx_folder(root, flatten=flatten)
    folder = root / name if (root / name).is_dir() else root
    if name == "usps":
        return usps_folder(folder, flatten=flatten)
    if name == "cifar":
        return cifar_folder(folder, flatten=flatten)
    splits = idx_folder(folder, flatten=flatten, num_classes=10)
    checksum = zlib.crc32(bytes(splits.train.y.tolist()))
    if (other := _LABEL_CHECKSUMS.get(checksum, name)) != name:
        raise DataError(f"expected {name} in {root}, got {other}; name the folder of {name}")
    train, test = (replace(part, name=name) for part in (splits.train, splits.test))
    return replace(splits, train=train, test=test)
