"""Sets drawn from a distribution that is known: two moons, and a curve with a gap."""

from __future__ import annotations

import math

import numpy as np
import torch

from bayesbin.data.dataset import Dataset


def two_moons(num_points: int = 200, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1 with Gaussian ``noise``: x (N, 2), y in {0, 1}.

    Centred and scaled by the moments of the distribution, not of the sample: draws of another size or seed
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
