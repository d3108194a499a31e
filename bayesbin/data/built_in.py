"""Data sets that need no files: two moons and a curve, drawn from known distributions, and digits."""

from __future__ import annotations

import math

import numpy as np
import torch

from bayesbin.core.checks import real_number, whole_number
from bayesbin.data.dataset import Dataset, Splits, split, standardize


def two_moons(num_points: int = 200, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1 with Gaussian ``noise``: x (N, 2), y in {0, 1}.

    Centred and scaled by the moments of the distribution, not of the sample: draws of another size or seed
    share their coordinates. Raises ValueError for no points, or a noise that is negative or not
    finite. Source: ``make_moons`` of scikit-learn.

    >>> two_moons(seed=1).x.shape
    torch.Size([200, 2])
    """
    from sklearn.datasets import make_moons  # a second to import, and idx files do not need it

    num_points = whole_number("num_points", num_points, at_least=1)
    noise = real_number("noise", noise, at_least=0.0)
    seed = whole_number("seed", seed, at_most=2**32 - 1)
    points, labels = map(np.asarray, make_moons(num_points, noise=noise, random_state=seed))
    # (cos t, sin t) and (1 - cos t, 1/2 - sin t), half of the points each, t uniform on [0, pi].
    variance = np.array([3 / 4, 9 / 16 - 1 / math.pi]) + noise**2
    x = torch.from_numpy((points - [1 / 2, 1 / 4]) / np.sqrt(variance)).float()
    return Dataset(x, torch.from_numpy(labels).long(), "two-moons", num_classes=2)


def regression_1d(num_points: int = 100, noise: float = 0.1, seed: int = 0) -> Dataset:
    """y = sin(2 x) + x / 4 + noise * e, e ~ N(0, 1): x (N, 1), y (N,).

    x is uniform on [-2, -0.5] and [0.75, 2]: a predictive band should widen in the gap between.
    Raises ValueError for no points, or a noise that is negative or not finite. Source: this formula.

    >>> regression_1d().x.shape, regression_1d().y.shape
    (torch.Size([100, 1]), torch.Size([100]))
    """
    num_points = whole_number("num_points", num_points, at_least=1)
    noise = real_number("noise", noise, at_least=0.0)
    generator = torch.Generator().manual_seed(whole_number("seed", seed))
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
    return standardize(split(whole, test_fraction, seed), divisor=1.0)
