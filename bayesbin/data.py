"""Small data sets, held in memory: generated, scikit-learn's digits, idx files in a folder."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA_VARIABLE = "BAYESBIN_DATA"
NAMES = ("digits", "fashion-mnist", "idx", "mnist", "two-moons")
# CRC-32 of the training labels: these two have the same file names, only the content tells which.
_LABEL_CHECKSUMS = {0xBA07E8EF: "mnist", 0x2ED6E46A: "fashion-mnist"}


class DataError(ValueError):
    """A data set is not what it should be: what was expected, what came, what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Floats x (N, ...) and y: int64 labels (N,), or floats (N, ...) where num_classes is None.

    Raises DataError if N is 0, the lengths differ, a number is NaN or infinite, or a label is not
    in 0 .. num_classes - 1.

    >>> len(Dataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]), name="three", num_classes=2))
    3
    """

    x: Tensor
    y: Tensor
    name: str
    num_classes: int | None

    def __post_init__(self) -> None:
        _require_pairs(self.x, self.y, self.name)
        for values in (self.x, self.y) if self.num_classes is None else (self.x,):
            bad = int((~values.isfinite()).sum())
            if bad or not values.is_floating_point():
                came = f"{values.dtype}, {bad} of them NaN or infinite; clean them or use .float()"
                raise DataError(f"{self.name}: expected finite floating-point numbers, got {came}")
        if (classes := self.num_classes) is not None:
            low, high, kind = self.y.min().item(), self.y.max().item(), (self.y.dtype, self.y.ndim)
            if kind != (torch.int64, 1) or low < 0 or high >= classes:
                wanted = f"int64 labels of shape (N,) in 0 .. {classes - 1}"
                came = (
                    f"{kind[0]} {tuple(self.y.shape)} in {low} .. {high}; use .long() or renumber"
                )
                raise DataError(f"{self.name}: expected {wanted}, got {came}")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Splits:
    """A training and a test set of one kind; DataError if their input shapes or classes differ.

    >>> splits, validation = digits().hold_out(0.1)  # choose by this set, never by the test set
    >>> len(splits.train), len(validation), len(splits.test)
    (1293, 144, 360)
    """

    train: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        train, test = ((part.x.shape[1:], part.num_classes) for part in (self.train, self.test))
        if train != test:
            came = f"{test}; take both from one source"
            raise DataError(f"expected a test set of input shape and classes {train}, got {came}")

    def hold_out(self, fraction: float = 0.1, seed: int = 0) -> tuple[Splits, Dataset]:
        """(splits whose training set lacks a ``fraction`` of each class, those examples).

        Raises DataError for a fraction outside (0, 1) or classes too small to be split.
        """
        parts = _split(self.train, fraction, seed)
        return Splits(parts.train, self.test), parts.test


def two_moons(num_points: int = 200, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1 with Gaussian ``noise``: x (N, 2), y in {0, 1}.

    Centred and scaled by the moments of the law, not of the sample: draws of another size or seed
    share their coordinates. Raises ValueError for no points, or a noise that is negative or not
    finite. Source: ``make_moons`` of scikit-learn.

    >>> two_moons(seed=1).x.shape
    torch.Size([200, 2])
    """
    from sklearn.datasets import make_moons  # a second to import, and idx files do not need it

    points, labels = map(np.asarray, make_moons(num_points, noise=noise, random_state=seed))
    # (cos t, sin t) and (1 - cos t, 1/2 - sin t), half of the points each, t uniform on [0, pi].
    variance = np.array([3 / 4, 9 / 16 - 1 / math.pi]) + noise**2
    x = torch.from_numpy((points - [1 / 2, 1 / 4]) / np.sqrt(variance)).float()
    return Dataset(x, torch.from_numpy(labels).long(), "two-moons", num_classes=2)


def regression_1d(num_points: int = 100, noise: float = 0.1, seed: int = 0) -> Dataset:
    """y = sin(2 x) + x / 4 + noise * e, e ~ N(0, 1): x (N, 1), y (N,).

    x is uniform on [-2, -0.5] and [0.75, 2]: a predictive band should widen in the gap between.
    Raises DataError for no points or a noise that is not finite. Source: this formula.

    >>> regression_1d().x.shape, regression_1d().y.shape
    (torch.Size([100, 1]), torch.Size([100]))
    """
    generator = torch.Generator().manual_seed(seed)
    position = 2.75 * torch.rand(num_points, generator=generator, dtype=torch.float64)
    x = torch.where(position < 1.5, position - 2.0, position - 0.75)
    y = torch.sin(2.0 * x) + x / 4.0 + noise * torch.empty_like(x).normal_(generator=generator)
    return Dataset(x.float().unsqueeze(-1), y.float(), "regression", num_classes=None)


def digits(seed: int = 0, test_fraction: float = 0.2) -> Splits:
    """1 797 handwritten digits of 8 x 8 pixels, split by class: x (N, 64), y in 0 .. 9.

    Brightness is shifted and scaled by its mean and standard deviation over all training pixels.
    Raises DataError for a fraction outside (0, 1). Source: E. Alpaydin and C. Kaynak, Optical
    Recognition of Handwritten Digits, UCI, 1998, as shipped with scikit-learn.

    >>> len(digits(seed=1).test)
    360
    """
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    whole = Dataset(x.float(), y.long(), "digits", num_classes=10)
    return _standardize(_split(whole, test_fraction, seed))


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
        x = images.to(torch.float32).div_(255.0)
        sets.append(Dataset(x.flatten(1) if flatten else x, labels, root.name, num_classes))
    return _standardize(Splits(*sets)) if normalize else Splits(*sets)


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


def load(name: str, folder: str | Path | None = None, seed: int = 0) -> Splits:
    """The data set called ``name``, one of NAMES: x (N, features), y (N,).

    "two-moons" (200 + 200 points) and "digits" come from ``seed`` alone; "mnist", "fashion-mnist"
    are idx files in ``folder`` (see :func:`data_folder`) or its subfolder of that name, "idx" any
    in ``folder``. Raises ValueError for another name, DataError as :func:`idx_folder`, and if
    MNIST is asked for and Fashion-MNIST found, or the reverse.

    >>> load("two-moons").train.x.shape
    torch.Size([200, 2])
    """
    if name not in NAMES:
        raise ValueError(f"expected a data set name, got {name!r}; use one of {', '.join(NAMES)}")
    if name == "two-moons":
        return _split(two_moons(400, seed=seed), 0.5, seed)
    if name == "digits":
        return digits(seed)
    root = data_folder(folder)
    if name == "idx":
        return idx_folder(root)
    splits = idx_folder(root / name if (root / name).is_dir() else root, num_classes=10)
    checksum = zlib.crc32(bytes(splits.train.y.tolist()))
    if (other := _LABEL_CHECKSUMS.get(checksum, name)) != name:
        raise DataError(f"expected {name} in {root}, got {other}; name the folder of {name}")
    return Splits(replace(splits.train, name=name), replace(splits.test, name=name))


class Batches:
    """Minibatches (x, y) of tensors in memory, newly ordered at each pass; the last may be smaller.

    The order is drawn from torch's global generator when a pass begins, and nothing is drawn later:
    a loop that seeds it per epoch gets an order that is a function of (seed, epoch), on any device.
    Raises ValueError for a batch size below 1, DataError for empty data or lengths that differ.

    >>> batches = Batches(two_moons(), batch_size=64)
    >>> len(batches), batches.dataset_size, [len(x) for x, y in batches]
    (4, 200, [64, 64, 64, 8])
    """

    def __init__(
        self, data: Dataset | tuple[Tensor, Tensor], batch_size: int, shuffle: bool = True
    ) -> None:
        self.x, self.y = (data.x, data.y) if isinstance(data, Dataset) else data
        _require_pairs(self.x, self.y, "batches")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}; raise it")
        self.batch_size, self.shuffle = batch_size, shuffle
        self.dataset_size = len(self.x)  # what scales a minibatch's likelihood to the whole

    def __len__(self) -> int:
        return math.ceil(self.dataset_size / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # No generator function: its body would run, and draw the order, only at the first batch.
        order = (torch.randperm if self.shuffle else torch.arange)(self.dataset_size, device="cpu")
        pieces = order.to(self.x.device).split(self.batch_size)
        return ((self.x.index_select(0, i), self.y.index_select(0, i)) for i in pieces)


def _require_pairs(x: Tensor, y: Tensor, name: str) -> None:
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        came = f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}; make the first equal"
        raise DataError(f"{name}: expected at least one example, one target for each, got {came}")


def _split(dataset: Dataset, fraction: float, seed: int) -> Splits:
    """The rest and a ``fraction`` of the data set, stratified where there are classes."""
    from sklearn.model_selection import train_test_split

    labels = None if dataset.num_classes is None else dataset.y.numpy()
    try:
        pieces = train_test_split(
            np.arange(len(dataset)), test_size=float(fraction), random_state=seed, stratify=labels
        )
    except ValueError as error:
        wanted = f"{dataset.name}: expected a fraction that leaves each class on both sides"
        came = f"{fraction} of {len(dataset)} examples ({error})"
        raise DataError(f"{wanted}, got {came}; change it or use more data") from error
    return Splits(*(replace(dataset, x=dataset.x[i], y=dataset.y[i]) for i in pieces))


def _standardize(splits: Splits) -> Splits:
    """Shift and scale both sets by the training set's one mean and one standard deviation."""
    std, mean = torch.std_mean(splits.train.x, correction=0)
    if std == 0:
        name = splits.train.name
        raise DataError(f"{name}: expected images, got one brightness in all; check the files")
    sets = (splits.train, splits.test)
    return Splits(*(replace(part, x=(part.x - mean).div_(std)) for part in sets))


def _read_idx(folder: Path, stem: str, num_dims: int) -> Tensor:
    """The bytes of an idx file: 0 0 8 num_dims, a big-endian uint32 per dimension, the content."""
    path = next((p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file()), None)
    if path is None:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "no files"
        raise DataError(f"expected {stem}.gz or {stem} in {folder}, got {found}; add it there")
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
