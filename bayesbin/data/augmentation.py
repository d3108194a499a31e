"""New views of the images of a batch: shifted by a few pixels, mirrored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.data.dataset import DataError


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
        if not isinstance(self.padding, int) or isinstance(self.padding, bool) or self.padding < 0:
            raise ValueError(
                f"expected a padding that is a whole number of at least 0, got {self.padding!r}; "
                "4 is usual."
            )

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
