"""Images from files: idx files (MNIST), an npz file (USPS), CIFAR's binary batches or an npz file."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.preprocessing import Preprocessing
from bayesbin.data.dataset import DataError, Dataset, Splits, standardize
from bayesbin.data.files import REMEDY, data_folder, file_in, read_npz

USPS_FILE = "usps.npz"
# That file holds brightness times this: whole numbers, where [0, 1] would be rounded.
USPS_WHITE = 2000
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue row by row
_WHITE = 255.0

_Pairs = tuple[np.ndarray, np.ndarray]


def idx_folder(
    folder: str | Path,
    *,
    normalize: bool = True,
    flatten: bool = True,
    num_classes: int | None = None,
) -> Splits:
    """The images and labels of the four idx files of MNIST's layout, each gzipped (.gz) or not.

    x is (N, rows * columns), with ``flatten=False`` (N, rows, columns): brightness in [0, 1], if
    ``normalize`` shifted and scaled by its mean and standard deviation over all training pixels.
    ``num_classes`` None: the largest training label + 1. Raises DataError, naming the file, if one
    is missing, damaged, truncated, too long or of another kind, or images and labels differ in
    number. Source: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    root = data_folder(Path(folder))
    sets = []
    for part in ("train", "t10k"):
        images = _read_idx(root, f"{part}-images-idx3-ubyte", num_dims=3)
        labels = _read_idx(root, f"{part}-labels-idx1-ubyte", num_dims=1).long()
        if len(images) != len(labels):
            came = f"{len(images)} images and {len(labels)} labels; take both from one source"
            raise DataError(f"expected one label per image in {root}/{part}-*, got {came}")
        num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
        x = images.to(torch.float32).div_(_WHITE)
        sets.append(Dataset(x.flatten(1) if flatten else x, labels, root.name, num_classes))
    return standardize(Splits(*sets), _WHITE) if normalize else Splits(*sets)


def _read_idx(folder: Path, stem: str, num_dims: int) -> Tensor:
    """The bytes of an idx file: 0 0 8 num_dims, a big-endian uint32 per dimension, the content."""
    path = file_in(folder, f"{stem}.gz", stem)
    remedy = "check that it is the right file, or download it again"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"expected {path} to be a whole file, got {error}; {remedy}") from error
    header, magic = 4 + 4 * num_dims, bytes([0, 0, 8, num_dims])
    if len(content) < header or content[:4] != magic:
        came = f"{len(content)} bytes that begin with 0x{content[:4].hex()}"
        wanted = f"the magic number 0x{magic.hex()} in a header of {header} bytes"
        raise DataError(f"expected {path} to begin with {wanted}, got {came}; {remedy}")
    sizes = np.frombuffer(content[4:header], dtype=">u4").tolist()
    if 0 in sizes or len(content) != header + math.prod(sizes):
        wanted = f"{header} bytes of header and {' x '.join(map(str, sizes))} (not 0) of content"
        raise DataError(f"expected {path} to hold {wanted}, got {len(content)} in all; {remedy}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(sizes)


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
    path = file_in(data_folder(Path(folder)), USPS_FILE)
    arrays = read_npz(path)
    sets = []
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        _require_array(path, f"x_{part}", images, np.uint16, ((16, 16), (256,)))
        _require_array(path, f"y_{part}", labels, np.uint8, ((),))
        for what, values, largest in (("x", images, USPS_WHITE), ("y", labels, 9)):
            if (came := int(values.max())) > largest:
                wanted = f"{what}_{part} in 0 .. {largest}"
                raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
        if len(images) != len(labels):
            wanted = f"one of y_{part} for each of x_{part}"
            came = f"{len(labels)} for {len(images)}"
            raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")
        x = torch.from_numpy(images.astype(np.float32)).div_(USPS_WHITE).reshape(-1, 16, 16)
        y = torch.from_numpy(labels.astype(np.int64))
        sets.append(Dataset(x.flatten(1) if flatten else x, y, "usps", num_classes=10))
    return standardize(Splits(*sets), USPS_WHITE) if normalize else Splits(*sets)


def _require_array(
    path: Path, key: str, array: np.ndarray, kind: type, shapes: tuple[tuple[int, ...], ...]
) -> None:
    if array.dtype != kind or array.ndim == 0 or not len(array) or array.shape[1:] not in shapes:
        layouts = " or ".join("(" + ", ".join(["N", *map(str, shape)]) + ")" for shape in shapes)
        wanted = f"{key} of type {np.dtype(kind)} and shape {layouts}, N at least 1"
        came = f"{array.dtype} {array.shape}"
        raise DataError(f"expected {path} to hold {wanted}, got {came}; {REMEDY}")


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
