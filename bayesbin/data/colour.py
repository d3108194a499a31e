"""Colour images in CIFAR's layouts: five binary batches and a test batch, or one npz file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bayesbin.core.preprocessing import Preprocessing
from bayesbin.data.dataset import DataError, Dataset, Splits
from bayesbin.data.folders import data_folder, file_in
from bayesbin.data.npz import REMEDY, read_npz

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue row by row
_WHITE = 255.0

_Pairs = tuple[np.ndarray, np.ndarray]


def cifar_folder(
    folder: str | Path,
    *,
    normalize: bool = True,
    flatten: bool = True,
    num_classes: int | None = None,
) -> Splits:
    """The colour images of a folder in one of CIFAR-10's layouts; where there are both, the first.

    Binary: ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` of records of 3073 bytes,
    the label and the pixels (3, 32, 32). Or the only npz file there: x_train, x_test: uint8 (N, rows,
    columns, 3) or (N, 3, rows, columns), y_train, y_test: integers (N,) or (N, 1).

    x is (N, 3 * rows * columns), with ``flatten=False`` (N, 3, rows, columns): brightness in [0, 1], if
    ``normalize`` each channel shifted and scaled by its mean and standard deviation over all training
    pixels. ``num_classes`` None: the largest training label + 1. Raises DataError, naming the file, if one
    is missing, damaged, truncated or of another kind, or images and labels differ in number. Source:
    A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    >>> from tempfile import TemporaryDirectory
    >>> x, y = np.zeros((2, 32, 32, 3), np.uint8), np.array([[3], [8]])
    >>> x[0] = 255
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/cifar.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    ...     splits = cifar_folder(folder, flatten=False)
    >>> splits.train.x.shape, splits.train.x[:, 2, 0, 0].tolist(), splits.train.y.tolist()
    (torch.Size([2, 3, 32, 32]), [1.0, -1.0], [3, 8])
    """
    root = data_folder(Path(folder))
    binary = any((root / name).is_file() for name in (*TRAIN_FILES, TEST_FILE))
    train, test = _read_binary(root) if binary else _read_arrays(_npz_in(root))
    classes = int(train[1].max()) + 1 if num_classes is None else num_classes
    sets = []
    for pixels, labels in (train, test):
        x = torch.from_numpy(pixels.astype(np.float32)).div_(_WHITE)
        sets.append(Dataset(x, torch.from_numpy(labels.astype(np.int64)), root.name, classes))
    splits = Splits(*sets)
    if normalize:
        splits = standardize_channels(splits, _WHITE)
    if flatten:
        rows, test_rows = (replace(p, x=p.x.flatten(1)) for p in (splits.train, splits.test))
        splits = replace(splits, train=rows, test=test_rows)
    return splits


def standardize_channels(splits: Splits, divisor: float) -> Splits:
    """Shift and scale each channel of images (N, C, H, W), in place, by its training mean and deviation.

    :param divisor: that the pixels have been divided by already.
    """
    std, mean = torch.std_mean(splits.train.x, dim=(0, 2, 3), correction=0, keepdim=True)
    if blank := int((std == 0).sum()):
        came = f"one brightness in all of {blank} of {std.numel()} channels; check the files"
        raise DataError(f"{splits.train.name}: expected colour images, got {came}")
    for part in (splits.train, splits.test):  # in place: a set of images is hundreds of megabytes
        part.x.sub_(mean).div_(std)
    means, stds = (tuple(constants.flatten().tolist()) for constants in (mean, std))
    return replace(splits, preprocessing=Preprocessing(divisor, means, stds))


def _read_binary(folder: Path) -> tuple[_Pairs, _Pairs]:
    return _read_records(folder, TRAIN_FILES), _read_records(folder, (TEST_FILE,))


def _read_records(folder: Path, names: Sequence[str]) -> _Pairs:
    """Pixels (N, 3, 32, 32) and labels (N,) of the files, one after another."""
    parts = []
    for path in [file_in(folder, name) for name in names]:
        try:
            content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except OSError as error:
            raise DataError(f"expected {path} to be a readable file, got {error}") from error
        if len(content) == 0 or len(content) % _RECORD:
            wanted = f"whole records of {_RECORD} bytes, a label and 3 x 32 x 32 pixels"
            came = f"{len(content)} bytes, {len(content) % _RECORD} after the last"
            raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
        parts.append(content.reshape(-1, _RECORD))
    pixels = np.concatenate([part[:, 1:] for part in parts]).reshape(-1, *_IMAGE)
    return pixels, np.concatenate([part[:, 0] for part in parts])


def _npz_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.npz"))
    if len(found) > 1:
        came = f"{', '.join(path.name for path in found)}; name a folder with the right one alone"
        raise DataError(f"expected one npz file in {folder}, got {came}")
    return found[0] if found else file_in(folder, TRAIN_FILES[0], "cifar.npz")


def _read_arrays(path: Path) -> tuple[_Pairs, _Pairs]:
    arrays = read_npz(path)
    sets = []
    for part in ("train", "test"):
        images = _channels_first(path, f"x_{part}", arrays[f"x_{part}"])
        labels = _one_per_image(path, f"y_{part}", arrays[f"y_{part}"])
        if len(images) != len(labels):
            wanted = f"one of y_{part} for each of x_{part}"
            came = f"{len(labels)} for {len(images)}"
            raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
        sets.append((images, labels))
    return sets[0], sets[1]


def _channels_first(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    last, first = (images.ndim == 4 and images.shape[axis] == 3 for axis in (-1, 1))
    # Three columns, or rows, of three channels could be either; no image is so small.
    if images.dtype != np.uint8 or last == first or not images.size:
        wanted = f"{key} of type uint8 and shape (N, rows, columns, 3) or (N, 3, rows, columns)"
        came = f"{images.dtype} {images.shape}"
        raise DataError(f"expected {path} to hold {wanted}, N at least 1, got {came}; {REMEDY}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if last else images)


def _one_per_image(path: Path, key: str, labels: np.ndarray) -> np.ndarray:
    shape = labels.shape[:1] if labels.shape[1:] == (1,) else labels.shape
    if labels.dtype.kind not in "iu" or len(shape) != 1 or not labels.size:
        wanted = f"{key} of whole numbers and shape (N) or (N, 1), N at least 1"
        came = f"{labels.dtype} {labels.shape}"
        raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
    return labels.reshape(shape)
