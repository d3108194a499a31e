"""How many weights change their sign, or their level, in a step of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from bayesbin.core.files import write_atomically

EVERY = 10  # steps; one of these is compared with the step before it


class FlipCounter:
    """The fraction of a guide's likeliest weights that a step changes, a mean for each epoch.

    It looks at one step in ten. The first optimizer is the one that moves the weights. The callback
    ``counter.finish_epoch`` is for ``fit``; with a path, the rates survive an interruption.
    """

    def __init__(self, guide: Any, optimizer: Optimizer, path: Path | None = None) -> None:
        self.guide, self.path = guide, path
        self.rates: list[float] = []
        if path is not None and path.is_file():
            self.rates = json.loads(path.read_text())
        self._step = self._flips = self._weights = 0
        self._before: list[Tensor] = []
        optimizer.register_step_pre_hook(lambda *_: self._remember())
        optimizer.register_step_post_hook(lambda *_: self._compare())

    def finish_epoch(self, report: Any) -> None:
        """Keep the rate of the epoch that has ended."""
        rate = self._flips / max(1, self._weights)
        self.rates[report.epoch - 1 :] = [rate]
        self._flips = self._weights = 0
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.rates).encode())

    def _remember(self) -> None:
        if self._step % EVERY == 0:
            self._before = likeliest(self.guide)

    def _compare(self) -> None:
        if self._step % EVERY == 0:
            pairs = zip(self._before, likeliest(self.guide), strict=True)
            self._flips += sum(int((old != new).sum()) for old, new in pairs)
            self._weights += sum(old.numel() for old in self._before)
            self._before = []
        self._step += 1


def likeliest(guide: Any) -> list[Tensor]:
    """The likeliest sign or level of each weight, site by site."""
    return [distribution.mode for distribution in guide.posterior().values()]
