"""Bias and variance of many gradients, without keeping them: sums over groups, and the jackknife."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROUPS = 20


class Reference:
    """The mean of reference gradients, by groups of every twentieth.

    :param exact: whether a single gradient is the truth itself, without noise.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact, self.count = exact, 0
        self._sums: list[Tensor] = []
        self._squares = 0.0

    def add(self, gradient: Tensor) -> None:
        group = self.count % GROUPS
        if group == len(self._sums):
            self._sums.append(torch.zeros_like(gradient))
        self._sums[group] += gradient
        self._squares += gradient.square().sum().item()
        self.count += 1

    def mean(self) -> Tensor:
        return torch.stack(self._sums).sum(0) / self.count

    def norm(self) -> float:
        return self.mean().norm().item()

    def variance_of_mean(self) -> float:
        """The trace of the covariance of the mean."""
        if self.exact:
            return 0.0
        about = self._squares - self.count * self.mean().square().sum().item()
        return max(0.0, about) / (self.count - 1) / self.count

    def standard_error(self) -> float:
        return math.sqrt(self.variance_of_mean())

    def without_each_group(self) -> list[Tensor]:
        """The mean with one group of gradients left out, for each group."""
        if self.exact:
            return []
        total = torch.stack(self._sums).sum(0)
        sizes = [len(range(k, self.count, GROUPS)) for k in range(GROUPS)]
        return [(total - s) / (self.count - n) for s, n in zip(self._sums, sizes, strict=True)]


class GradientStatistics:
    r"""What is kept of gradients g_i against a reference r: differences d_i = g_i - r, summed by group.

    The squared bias is estimated without the noise of g, by the mean of d_i . d_j over pairs i != j,
    and without that of r by subtracting the variance of r.
    """

    GROUPS = GROUPS

    def __init__(self, reference: Reference) -> None:
        self.reference, self.count = reference, 0
        self.truth = reference.mean()
        self._sums = torch.zeros(GROUPS, len(self.truth), dtype=self.truth.dtype)
        self._squares = torch.zeros(GROUPS, dtype=self.truth.dtype)
        self._cosines = 0.0

    def add(self, gradient: Tensor) -> None:
        difference = gradient - self.truth
        group = self.count % GROUPS
        self._sums[group] += difference
        self._squares[group] += difference.square().sum()
        size = gradient.norm() * self.truth.norm()
        self._cosines += (gradient @ self.truth / size).item() if size > 0 else 0.0
        self.count += 1

    def total_variance(self) -> float:
        """The trace of the covariance of one gradient."""
        total = self._sums.sum(0)
        about = self._squares.sum() - total.square().sum() / self.count
        return max(0.0, about.item()) / (self.count - 1)

    def cosine(self) -> float:
        return self._cosines / self.count

    def bias(self) -> tuple[float, float]:
        """The norm of the bias and its standard error."""
        total, squares = self._sums.sum(0), self._squares.sum()
        square = self._squared_bias(total, squares, self.count)
        square -= self.reference.variance_of_mean()
        sizes = [len(range(k, self.count, GROUPS)) for k in range(GROUPS)]
        without = [
            self._squared_bias(total - s, squares - q, self.count - n)
            for s, q, n in zip(self._sums, self._squares, sizes, strict=True)
        ]
        moved = []
        for mean in self.reference.without_each_group():
            shift = self.truth - mean
            shifted = squares + 2.0 * total @ shift + self.count * shift.square().sum()
            moved.append(self._squared_bias(total + self.count * shift, shifted, self.count))
        error = math.sqrt(_jackknife(without) + _jackknife(moved))
        norm = math.sqrt(max(0.0, square))
        # The square is what is estimated; its error as a distance of norms, to the wider side.
        below, above = math.sqrt(max(0.0, norm**2 - error)), math.sqrt(norm**2 + error)
        return norm, max(norm - below, above - norm)

    @staticmethod
    def _squared_bias(total: Tensor, squares: Tensor, count: int) -> float:
        return ((total.square().sum() - squares) / (count * (count - 1))).item()


def _jackknife(values: list[float]) -> float:
    """The jackknife variance of a statistic from its values with each group left out."""
    if len(values) < 2:
        return 0.0
    middle = sum(values) / len(values)
    return (len(values) - 1) / len(values) * sum((value - middle) ** 2 for value in values)
