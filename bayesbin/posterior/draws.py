"""What the draws of a posterior are made from: thresholds of signs, and noise of real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.canonical import FLIPS, half_words


@dataclass(frozen=True)
class Thresholds:
    """What the signs of a site are drawn by.

    :param mode: whether the mode is +1. :param flip: t, uint16 in 0 .. 2^15; both of the site's shape.
    """

    mode: np.ndarray
    flip: np.ndarray

    @classmethod
    def of(cls, natural: Tensor) -> Thresholds:
        """Those of the given natural parameters."""
        lam = natural.detach().cpu().double()
        other = torch.sigmoid(
            -2.0 * lam.abs()
        )  # never above a half: t fits, and 0 is never to flip
        return cls((lam >= 0).numpy(), (FLIPS * other).round().numpy().astype(np.uint16))

    def draw(self, key: int) -> np.ndarray:
        """Whether each sign is +1 in the draw of a key."""
        return np.asarray(self.mode ^ (half_words(key, self.mode.shape) < self.flip))


def signs_of(plus: np.ndarray, like: Tensor) -> Tensor:
    """-1 and +1 in the type and on the device of ``like``."""
    return torch.from_numpy(plus).to(like.device, like.dtype).mul_(2.0).sub_(1.0)


def draw_noise(like: Tensor, key: int) -> Tensor:
    """Standard normal numbers of the shape and type of ``like``."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.as_tensor(generator.standard_normal(tuple(like.shape))).to(like)
