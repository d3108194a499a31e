"""Elementwise formulas over millions of weights, in one pass over the memory.

A chain of elementwise torch operations is bound by memory traffic, not arithmetic. ``one_pass`` runs a
formula in blocks whose temporaries stay in the cache; with the environment variable BAYESBIN_COMPILE=1
and a C++ compiler at hand, large tensors go through ``torch.compile`` instead, which makes one loop of
it (and takes some seconds the first time).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 18  # weights per block; smaller tensors are one block
COMPILE = os.environ.get("BAYESBIN_COMPILE") == "1"


def one_pass(formula: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Run an elementwise formula block by block, or compiled.

    ``formula`` takes tensors of one shape first (tensors without dimensions and numbers are passed on as
    they are) and returns a tuple: a result without dimensions is a sum over the weights, any other is
    elementwise. It runs without autograd, and must not change its arguments.
    """

    @functools.wraps(formula)
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        first: Tensor = arguments[0]
        shape, size = first.shape, first.numel()
        flat = [
            a.reshape(-1) if isinstance(a, Tensor) and a.shape == shape and shape else a
            for a in arguments
        ]
        if COMPILE and size >= BLOCK:
            results = _compiled(formula)(*flat)
        elif size <= BLOCK or not shape:
            results = formula(*flat)
        else:
            results = _in_blocks(formula, flat, size)
        return tuple(r.reshape(shape) if r.numel() == size and r.dim() else r for r in results)

    return run


@functools.cache
def _compiled(formula: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(formula, dynamic=True)


def _in_blocks(
    formula: Callable[..., tuple[Tensor, ...]], flat: list[Any], size: int
) -> tuple[Tensor, ...]:
    results: list[Tensor] = []
    for start in range(0, size, BLOCK):
        window = slice(start, start + BLOCK)
        parts = formula(*(a[window] if isinstance(a, Tensor) and a.dim() else a for a in flat))
        if not results:
            results = [part.new_empty(size) if part.dim() else part.clone() for part in parts]
        for result, part in zip(results, parts, strict=True):
            if part.dim():
                result[window] = part
            elif start:
                result += part
    return tuple(results)
