"""The training loop of learners without a posterior: a loss per batch, one optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from bayesbin.data import Batches
from bayesbin.infer.noise import STEP_NOISE, NoiseStream, ordered_batches


def minibatch_training(
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    batches: Batches,
    device: torch.device,
    *,
    epochs: int,
    seed: int,
    progress: bool | None,
) -> list[dict[str, Any]]:
    """Epochs of steps on ``loss(x, y)``; a row per epoch: its number, mean loss and seconds.

    As in ``fit``, noise is a function of (seed, step) and the order of the data of (seed, epoch).

    :raises FloatingPointError: for a loss that is not finite.
    """
    history, step = [], 0
    for epoch in tqdm(
        range(1, epochs + 1), disable=None if progress is None else not progress, desc="epoch"
    ):
        begin, total, count = time.perf_counter(), 0.0, 0
        for x, y in ordered_batches(batches, seed, epoch):
            optimizer.zero_grad(set_to_none=True)
            with NoiseStream(seed, STEP_NOISE, step).active():
                value = loss(x.to(device), y.to(device))
                if not bool(torch.isfinite(value)):
                    raise FloatingPointError(
                        f"expected a finite loss, got {value.item()} in epoch {epoch}; lower the "
                        "learning rate, or look for unscaled values in the data."
                    )
                value.backward()
                optimizer.step()
            total, count, step = total + value.item() * len(x), count + len(x), step + 1
        row = {"epoch": epoch, "loss": total / count, "seconds": time.perf_counter() - begin}
        history.append(row)
    return history
