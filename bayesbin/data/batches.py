"""Minibatches of tensors in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bayesbin.data.dataset import Dataset, require_pairs


class Batches:
    """Minibatches (x, y) of tensors in memory, newly ordered at each pass; the last may be smaller.

    The order is drawn from torch's global generator when a pass begins, and nothing is drawn later:
    a loop that seeds it per epoch gets an order that is a function of (seed, epoch), on any device.
    Raises ValueError for a batch size below 1, DataError for empty data or lengths that differ.

    >>> from bayesbin.data import two_moons
    >>> batches = Batches(two_moons(), batch_size=64)
    >>> len(batches), batches.dataset_size, [len(x) for x, y in batches]
    (4, 200, [64, 64, 64, 8])
    """

    def __init__(
        self, data: Dataset | tuple[Tensor, Tensor], batch_size: int, shuffle: bool = True
    ) -> None:
        self.x, self.y = (data.x, data.y) if isinstance(data, Dataset) else data
        require_pairs(self.x, self.y, "batches")
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
