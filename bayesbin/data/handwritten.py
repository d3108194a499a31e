"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from bayesbin.data.dataset import Dataset, Splits, split, standardize


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
    return standardize(split(whole, test_fraction, seed), divisor=1.0)
