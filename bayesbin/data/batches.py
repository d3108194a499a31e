"""Minibatches of tensors in memory, and new views of their images: shifted by a few pixels, mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import true_or_false, whole_number
from bayesbin.data.dataset import DataError, Dataset, require_pairs

Transform = Callable[
    [Tensor, torch.Generator], Tensor
]  # of a batch's x, drawing from the generator


class Batches:
    """Minibatches (x, y) of tensors in memory, newly ordered at each pass; the last may be smaller.

    The order is drawn from torch's global generator when a pass begins, and nothing is drawn later:
    a loop that seeds it per epoch gets an order that is a function of (seed, epoch), on any device.
    ``transform(x, generator)`` makes what each batch gives for x, the images newly cropped, say: its
    CPU generator is seeded when a pass begins, so that this is such a function, too. The order is the
    same with it and without.

    :param data: a :class:`Dataset`, torch's TensorDataset of two tensors, or a pair (x, y) of tensors,
        numpy arrays or lists of numbers. For a network of several inputs x is a tuple of them, or a mapping
        from their names, and so are the batches.
    :param drop_last: leave out the last batch where it is smaller than the others.
    :raises ValueError: for a batch size below 1, or data of another kind. DataError for empty data,
        lengths that differ, or ``drop_last`` with fewer data than a batch takes.

    >>> from bayesbin.data import two_moons
    >>> batches = Batches(two_moons(), batch_size=64)
    >>> len(batches), batches.dataset_size, [len(x) for x, y in batches]
    (4, 200, [64, 64, 64, 8])
    >>> len(Batches(two_moons(), batch_size=64, drop_last=True))
    3
    """

    def __init__(
        self,
        data: Dataset | TensorDataset | tuple[Any, Any],
        batch_size: int,
        shuffle: bool = True,
        transform: Transform | None = None,
        *,
        drop_last: bool = False,
    ) -> None:
        x, y = _pair(data)
        self.x, self.y = _inputs(x), as_tensor("y", y)
        for column in _columns(self.x):
            require_pairs(column, self.y, "batches")
        self.batch_size = whole_number("batch_size", batch_size, at_least=1)
        self.shuffle = true_or_false("shuffle", shuffle)
        self.drop_last = true_or_false("drop_last", drop_last)
        if transform is not None and not callable(transform):
            raise ValueError(f"expected transform to be a function; got {transform!r}.")
        self.transform = transform
        self.dataset_size = len(self.y)  # what scales a minibatch's likelihood to the whole
        self._joins_single = False
        if drop_last and self.dataset_size < self.batch_size:
            came = f"{self.dataset_size} with drop_last=True; lower the batch size"
            raise DataError(f"batches: expected at least {self.batch_size} examples, got {came}")

    def without_single(self) -> Batches:
        """The same batches, except that a last one of one example is joined to the batch before.

        For networks that normalise by the batch: one example has no variance.
        """
        found = copy(self)
        found._joins_single = True
        return found

    def sizes(self) -> list[int]:
        """The number of examples in each batch.

        >>> Batches((range(7), range(7)), batch_size=3).without_single().sizes()
        [3, 4]
        """
        count, rest = divmod(self.dataset_size, self.batch_size)
        sizes = [self.batch_size] * count + ([rest] if rest and not self.drop_last else [])
        if self._joins_single and len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [sizes[-2] + 1]
        return sizes

    def __len__(self) -> int:
        return len(self.sizes())

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        # No generator function: its body would run, and draw the order, only at the first batch.
        order = (torch.randperm if self.shuffle else torch.arange)(self.dataset_size, device="cpu")
        sizes = self.sizes()
        pieces = order.to(self.y.device)[: sum(sizes)].split(sizes)
        batches = ((_rows(self.x, i), self.y.index_select(0, i)) for i in pieces)
        transform = self.transform
        if transform is None:
            return batches
        # After the order, which is then that of batches without a transform. One word of 32 bits: CPU
        # generators use no more of a seed.
        word = int(torch.randint(2**32, (), device="cpu"))
        generator = torch.Generator().manual_seed(word)
        return ((transform(x, generator), y) for x, y in batches)


def _inputs(x: Any) -> Any:
    """One tensor, or a tuple or mapping of them."""
    if isinstance(x, Mapping):
        return {name: as_tensor(str(name), each) for name, each in x.items()}
    if isinstance(x, tuple) and x and all(getattr(each, "ndim", 0) for each in x):
        return tuple(as_tensor(f"input {k}", each) for k, each in enumerate(x))
    return as_tensor("x", x)


def _columns(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x.values() if isinstance(x, Mapping) else x)


def _rows(x: Any, rows: Tensor) -> Any:
    if isinstance(x, Mapping):
        return {name: _rows(each, rows) for name, each in x.items()}
    if isinstance(x, tuple):
        return tuple(_rows(each, rows) for each in x)
    return x.index_select(0, rows.to(x.device))


def _pair(data: Any) -> tuple[Any, Any]:
    """x and y of what :class:`Batches` takes."""
    if isinstance(data, Dataset):
        return data.x, data.y
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return data[0], data[1]
    came = f"{len(data)} parts" if isinstance(data, (tuple, list)) else type(data).__name__
    remedy = "torch.utils.data.DataLoader makes batches of any other data set"
    raise ValueError(f"expected a Dataset or a pair (x, y); got {came}: {remedy}.")


@dataclass(frozen=True)
class RandomCropFlip:
    """Each image shifted by up to ``padding`` pixels each way, and mirrored left to right half the time.

    A crop of the image's own size from the image with ``padding`` zeros on each side, all offsets equally
    likely. Of standardized images zeros are the mean brightness. A transform of :class:`Batches`.

    :param padding: pixels, at least 0. :param flip: whether to mirror.

    Raises ValueError for another padding, DataError for inputs that are not (B, ..., rows, columns): load
    images with ``flatten=False``.

    >>> from bayesbin.data import Batches
    >>> data = torch.rand(6, 3, 8, 8), torch.arange(6)
    >>> [tuple(x.shape) for x, y in Batches(data, 4, transform=RandomCropFlip(padding=2))]
    [(4, 3, 8, 8), (2, 3, 8, 8)]

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", whole_number("padding", self.padding))
        object.__setattr__(self, "flip", true_or_false("flip", self.flip))

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch (B, ..., rows, columns) of the same shape; ``generator`` is one of the CPU."""
        if x.ndim < 3:
            came = f"shape {tuple(x.shape)}; load them with flatten=False"
            raise DataError(f"expected a batch of images (B, ..., rows, columns), got {came}")
        count, height, width = len(x), *x.shape[-2:]
        offsets = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        mirrored = (
            torch.rand(count, 1, generator=generator) < 0.5
        )  # drawn without flips, too: crops stay
        rows = offsets[0] + torch.arange(height)
        columns = offsets[1] + torch.arange(width)
        if self.flip:
            columns = torch.where(mirrored, columns.flip(-1), columns)
        rows, columns = rows.to(x.device), columns.to(x.device)
        padded = F.pad(x.reshape(count, -1, height, width), [self.padding] * 4)
        image = torch.arange(count, device=x.device)[:, None, None]
        # Indexed dimensions with a slice between them come first: (B, rows, columns, channels).
        crops = padded[image, :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2).contiguous().view(x.shape)
