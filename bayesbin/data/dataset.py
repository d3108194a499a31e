"""A data set in memory, and a training set with the test set that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import real_number, shown, whole_number
from bayesbin.core.preprocessing import Preprocessing


class DataError(ValueError):
    """A data set is not what it should be: what was expected, what came, what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Floats x (N, ...) and y: int64 labels (N,), or floats (N, ...) where num_classes is None.

    Both may be given as tensors, numpy arrays or lists of numbers, and labels as whole numbers of any
    type. Raises ValueError for anything else, and DataError if N is 0, the lengths differ, a number is
    NaN or infinite, or a label is not in 0 .. num_classes - 1.

    >>> len(Dataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]), name="three", num_classes=2))
    3
    """

    x: Tensor
    y: Tensor
    name: str
    num_classes: int | None

    def __post_init__(self) -> None:
        for part in ("x", "y"):
            found = as_tensor(f"{part} of {self.name}", getattr(self, part))
            if part == "y" and self.num_classes is not None and not found.is_floating_point():
                found = found.long()
            object.__setattr__(self, part, found)
        if self.num_classes is not None:
            count = whole_number("num_classes", self.num_classes, at_least=1)
            object.__setattr__(self, "num_classes", count)
        require_pairs(self.x, self.y, self.name)
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

    ``preprocessing`` says how x came from the source's pixels; None: it is as the source has it.

    >>> from bayesbin.data import digits
    >>> splits, validation = digits().hold_out(0.1)  # choose by this set, never by the test set
    >>> len(splits.train), len(validation), len(splits.test)
    (1293, 144, 360)
    """

    train: Dataset
    test: Dataset
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        train, test = ((part.x.shape[1:], part.num_classes) for part in (self.train, self.test))
        if train != test:
            came = f"{test}; take both from one source"
            raise DataError(f"expected a test set of input shape and classes {train}, got {came}")

    def hold_out(self, fraction: float = 0.1, seed: int = 0) -> tuple[Splits, Dataset]:
        """(splits whose training set lacks a ``fraction`` of each class, those examples).

        Raises DataError for a fraction outside (0, 1) or classes too small to be split.
        """
        parts = split(self.train, fraction, seed)
        return Splits(parts.train, self.test, self.preprocessing), parts.test


def require_pairs(x: Tensor, y: Tensor, name: str) -> None:
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        came = f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}; make the first equal"
        raise DataError(f"{name}: expected at least one example, one target for each, got {came}")


def split(dataset: Dataset, fraction: float, seed: int) -> Splits:
    """The rest and a ``fraction`` of the data set, stratified where there are classes."""
    from sklearn.model_selection import train_test_split

    seed = whole_number("seed", seed, at_most=2**32 - 1)
    labels = None if dataset.num_classes is None else dataset.y.numpy()
    try:
        share = real_number("fraction", fraction, above=0.0, below=1.0)
        pieces = train_test_split(
            np.arange(len(dataset)), test_size=share, random_state=seed, stratify=labels
        )
    except ValueError as error:
        wanted = f"{dataset.name}: expected a fraction that leaves each class on both sides"
        came = f"{shown(fraction)} of {len(dataset)} examples ({error})"
        raise DataError(f"{wanted}, got {came}; change it or use more data") from error
    rest, part = (replace(dataset, x=dataset.x[i], y=dataset.y[i]) for i in pieces)
    return Splits(rest, part)


def standardize(splits: Splits, divisor: float) -> Splits:
    """Shift and scale both sets by the training set's one mean and one standard deviation.

    :param divisor: that the pixels have been divided by already.
    """
    std, mean = torch.std_mean(splits.train.x, correction=0)
    if std == 0:
        name = splits.train.name
        raise DataError(f"{name}: expected images, got one brightness in all; check the files")
    sets = (splits.train, splits.test)
    train, test = (replace(part, x=(part.x - mean).div_(std)) for part in sets)
    return Splits(train, test, Preprocessing(divisor, mean.item(), std.item()))
