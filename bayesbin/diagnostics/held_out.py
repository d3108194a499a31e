"""Data that had no part in a choice: kept apart, and what networks are worth on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over held-out examples and its percentile bootstrap interval, low .. high."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class HeldOut:
    """Accuracy, and negative log-likelihood per example in nats, or differences of them."""

    accuracy: Estimate
    nll: Estimate


def _rows(x: Tensor, dtype: torch.dtype) -> list[bytes]:
    """The bytes of each input, (N, ...); + 0 makes -0.0 and 0.0 the same."""
    flat = (x.detach().to("cpu", dtype) + 0).reshape(len(x), -1).contiguous()
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]


def refuse_leaks(x: Tensor, x_held: Tensor) -> None:
    """Raise ValueError if an input to score on is also one to choose by."""
    dtype = torch.promote_types(x.dtype, x_held.dtype)
    if x.is_floating_point() and x_held.is_floating_point():
        # The narrower of the two: there a number and its rounded copy are equal.
        dtype = min(x.dtype, x_held.dtype, key=lambda kind: kind.itemsize)
    seen = set(_rows(x, dtype))
    if leaks := sum(row in seen for row in _rows(x_held, dtype)):
        raise ValueError(
            f"expected held-out inputs that are not among the selection inputs, got {leaks} of "
            f"{len(x_held)} that are; remove them from one of the two."
        )


def halves(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to choose by and to score on: every second input of each class, shuffled."""
    copies: dict[bytes, list[int]] = {}
    for position, row in enumerate(_rows(x, x.dtype)):
        copies.setdefault(row, []).append(position)
    groups = list(copies.values())
    if len(groups) < 2:
        came = f"{len(groups)} in {len(x)}"
        raise ValueError(
            f"expected at least 2 different inputs to split, got {came}; add data or pass held_out."
        )
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    labels = y.cpu()[[group[0] for group in groups]]
    order = order[labels[order].argsort(stable=True)].tolist()
    first, second = (
        torch.tensor(sorted(i for number in half for i in groups[number]), device=x.device)
        for half in (order[0::2], order[1::2])
    )
    return first, second


def per_example(log_probs: Tensor, y: Tensor) -> Tensor:
    """1 where the label has the largest probability, else 0, and -log p(label): (2, N)."""
    if int(y.min()) < 0 or int(y.max()) >= log_probs.shape[1]:
        raise ValueError(
            f"expected labels in 0 .. {log_probs.shape[1] - 1}, the network's classes, got "
            f"{int(y.min())} .. {int(y.max())}; renumber them."
        )
    if not bool(log_probs.isfinite().all()):
        raise ValueError(
            "expected finite outputs from every network, got NaN or infinity; check the inputs and "
            "the normalisation statistics."
        )
    correct = (log_probs.argmax(-1) == y).to(log_probs.dtype)
    return torch.stack([correct, -log_probs.gather(1, y[:, None])[:, 0]])


def bootstrap(table: Tensor, seed: int, num_bootstrap: int, interval: float) -> list[HeldOut]:
    """Means of (K, 2, N) over N with intervals; every row is resampled by the same positions."""
    table = table.cpu()
    size = table.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            table[..., torch.randint(size, (size,), generator=generator)].mean(-1)
            for _ in range(num_bootstrap)
        ]
    )
    tails = torch.tensor([(1.0 - interval) / 2.0, (1.0 + interval) / 2.0], dtype=means.dtype)
    numbers = torch.cat([table.mean(-1)[None], means.quantile(tails, dim=0)])
    return [HeldOut(*(Estimate(*n) for n in row.T.tolist())) for row in numbers.unbind(1)]
