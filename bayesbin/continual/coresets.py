"""A few data of each task, set aside to answer with and not to learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.data import Dataset

__all__ = ["Coreset", "KCenterCoreset", "RandomCoreset"]


@dataclass(frozen=True)
class Coreset(ABC):
    """Which data of a task are set aside: the posterior that is passed on never sees them.

    For prediction a copy of it is fine-tuned on them, and thrown away: on all tasks' coresets together
    where the head is shared, on the task's own where each has its head.

    :param size: how many of each task. :raises ValueError: below 1, or as many as a task has.

    Source: Nguyen et al. 2018, arXiv 1710.10628.
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole_number("size", self.size, at_least=1))

    def choose(self, x: Tensor, seed: int) -> Tensor:
        """Positions of the data to set aside, (size,)."""
        if len(x) <= self.size:
            raise ValueError(
                f"expected a coreset smaller than the {len(x)} data of the task; got {self.size}."
            )
        return self._choose(x, np.random.Generator(np.random.PCG64(seed)))

    def set_aside(self, data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        """The rest of a data set, in its order, and those set aside."""
        chosen = self.choose(data.x, seed)
        keep = torch.ones(len(data.x), dtype=torch.bool, device=chosen.device)
        keep[chosen] = False
        rest, held = (replace(data, x=data.x[i], y=data.y[i]) for i in (keep, chosen))
        return rest, held

    @abstractmethod
    def _choose(self, x: Tensor, generator: np.random.Generator) -> Tensor: ...


@dataclass(frozen=True)
class RandomCoreset(Coreset):
    """Data drawn at random, without replacement.

    >>> RandomCoreset(2).choose(torch.zeros(5, 3), seed=0).shape
    torch.Size([2])
    """

    def _choose(self, x: Tensor, generator: np.random.Generator) -> Tensor:
        return torch.from_numpy(generator.choice(len(x), self.size, replace=False)).to(x.device)


@dataclass(frozen=True)
class KCenterCoreset(Coreset):
    r"""Data that cover the task: greedily, always the one farthest from those chosen so far.

    .. math:: i_{k+1} = \arg\max_i \min_{j \le k} \|x_i - x_{i_j}\|

    The first is drawn at random; of equally far ones the first is taken.

    >>> x = torch.tensor([[0.0], [0.1], [9.0], [9.1], [20.0]])
    >>> sorted(KCenterCoreset(3).choose(x, seed=0).tolist()) in ([0, 2, 4], [0, 3, 4], [1, 3, 4], [1, 2, 4])
    True

    Source: Gonzalez 1985, Clustering to minimize the maximum intercluster distance.
    """

    def _choose(self, x: Tensor, generator: np.random.Generator) -> Tensor:
        flat = x.flatten(1)
        chosen = [int(generator.integers(len(x)))]
        nearest = torch.full((len(x),), torch.inf, dtype=flat.dtype, device=flat.device)
        for _ in range(self.size - 1):
            # Exact distances: the fast formula by inner products rounds near ones to 0.
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(flat, flat[chosen[-1:]], compute_mode=exact)[:, 0]
            nearest = torch.minimum(nearest, distances)
            nearest[chosen] = -1.0  # copies of a chosen one come last, itself never again
            chosen.append(int(nearest.argmax()))
        return torch.tensor(chosen, device=x.device)
