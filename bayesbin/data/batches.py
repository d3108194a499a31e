"""Minibatches of tensors in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bayesbin.data.dataset import Dataset, require_pairs

Transform = Callable[
    [Tensor, torch.Generator], Tensor
]  # of a batch's x, drawing from the generator


class Batches:
    """Minibatches (x, y) of tensors in memory, newly ordered at each pass; the last may be smaller.

    The order is drawn from torch's global generator when a pass begins, and nothing is drawn later:
    a loop that seeds it per epoch gets an order that is a function of (seed, epoch), on any device.
    ``transform(x, generator)`` makes what each batch gives for x, the images newly cropped, say: its
    CPU generator is seeded when a pass begins, so that this is such a function, too. The order is the
    same with it and without. Raises ValueError for a batch size below 1, DataError for empty data or
    lengths that differ.

    >>> from bayesbin.data import two_moons
    >>> batches = Batches(two_moons(), batch_size=64)
    >>> len(batches), batches.dataset_size, [len(x) for x, y in batches]
    (4, 200, [64, 64, 64, 8])
    """

    def __init__(
        self,
        data: Dataset | tuple[Tensor, Tensor],
        batch_size: int,
        shuffle: bool = True,
        transform: Transform | None = None,
    ) -> None:
        self.x, self.y = (data.x, data.y) if isinstance(data, Dataset) else data
        require_pairs(self.x, self.y, "batches")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}; raise it")
        self.batch_size, self.shuffle, self.transform = batch_size, shuffle, transform
        self.dataset_size = len(self.x)  # what scales a minibatch's likelihood to the whole

    def __len__(self) -> int:
        return math.ceil(self.dataset_size / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # No generator function: its body would run, and draw the order, only at the first batch.
        order = (torch.randperm if self.shuffle else torch.arange)(self.dataset_size, device="cpu")
        pieces = order.to(self.x.device).split(self.batch_size)
        batches = ((self.x.index_select(0, i), self.y.index_select(0, i)) for i in pieces)
        transform = self.transform
        if transform is None:
            return batches
        # After the order, which is then that of batches without a transform. One word of 32 bits: CPU
        # generators use no more of a seed.
        word = int(torch.randint(2**32, (), device="cpu"))
        generator = torch.Generator().manual_seed(word)
        return ((transform(x, generator), y) for x, y in batches)
