"""Draws that are functions of (seed, index, site) alone."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def generator_of(seed: int, index: int, site: str) -> np.random.Generator:
    """The random numbers of draw ``index`` of ``seed`` at one site."""
    # The site enters by name, so that its draws do not depend on which other sites there are.
    key = int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "little")
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(index, key))
    return np.random.Generator(np.random.Philox(sequence))


def draw_signs(natural: Tensor, generator: np.random.Generator) -> Tensor:
    """Signs of the given natural parameters."""
    uniform = torch.from_numpy(
        generator.random(tuple(natural.shape), dtype=np.float32).reshape(tuple(natural.shape))
    )
    # Half a step above 0, so that a weight that all but never differs from its sign does not.
    uniform = uniform.clamp_(min=2.0**-25)
    threshold = torch.sigmoid(-2.0 * natural)
    return torch.where(uniform.to(natural.device) >= threshold, 1.0, -1.0).to(natural.dtype)


def draw_noise(like: Tensor, generator: np.random.Generator) -> Tensor:
    """Standard normal numbers of the shape and type of ``like``."""
    return torch.as_tensor(generator.standard_normal(tuple(like.shape))).to(like)
