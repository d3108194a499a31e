"""What normalises activations at test, which in a sequence of tasks quietly decides the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.core.checks import one_of
from bayesbin.core.names import NORMALIZATIONS
from bayesbin.nn import Statistics, recalibrate
from bayesbin.posterior import BinaryPosterior

CALIBRATION_DATA = 2000


class Normalization:
    """Where a network's normalisation statistics come from when it predicts.

    :param kind: "layer": each input by itself (layer normalisation, or none): nothing is kept, and no
        task has to be known. For batch normalisation, whose running statistics would mix tasks and
        draws: "per-task": those of each draw on the first 2000 training inputs of the task, computed
        when it is learned and kept; which task an input is from has to be known at test, and a task
        not learned yet gets those of the last one. "recalibrated": those of each draw on the last
        learned task's training inputs, used for every task. "batch": those of each draw on the very
        inputs to predict, so that one prediction depends on the others (transductive: such numbers
        are not comparable with those of predictions one by one).
    :raises ValueError: for another kind, or one that does not fit the network's layers.

    >>> Normalization("layer", nn.LayerNorm(3)).kind
    'layer'

    Source: Laborieux et al. 2021, arXiv 2003.03533 (batch normalisation per task).
    """

    def __init__(self, kind: str, net: nn.Module) -> None:
        kind = one_of("normalization", kind, NORMALIZATIONS)
        by_batch = any(isinstance(module, _BatchNorm) for module in net.modules())
        if by_batch != (kind != "layer"):
            has, remedy = (
                ("batch normalisation", "per-task, recalibrated or batch")
                if by_batch
                else ("none", '"layer"')
            )
            raise ValueError(
                f"expected a normalization that fits the network's batch normalisation, of which it has "
                f"{has if by_batch else 'none'}; got {kind!r}, use {remedy}."
            )
        self.kind = kind
        self._kept: dict[str, Statistics] = {}
        self._last: str | None = None

    @property
    def keeps(self) -> bool:
        """Whether statistics are computed when a task has been learned."""
        return self.kind in ("per-task", "recalibrated")

    def learned(
        self,
        name: str,
        net: nn.Module,
        posterior: BinaryPosterior,
        x: Tensor,
        num_samples: int,
        seed: int,
    ) -> None:
        """Take note of a task that has been learned, from its training inputs."""
        if self.keeps:
            statistics = recalibrate(net, posterior, x[:CALIBRATION_DATA], num_samples, seed)
            if self.kind == "recalibrated":
                self._kept.clear()
            self._kept[name] = statistics
            self._last = name

    def statistics(
        self,
        name: str,
        net: nn.Module,
        posterior: BinaryPosterior,
        x: Tensor,
        num_samples: int,
        seed: int,
    ) -> Statistics | None:
        """The statistics to predict x of a task with, None where nothing is kept."""
        if self.kind == "layer":
            return None
        if self.kind == "batch" or self._last is None:
            return recalibrate(net, posterior, x, num_samples, seed)
        return self._kept.get(name, self._kept[self._last])

    def state_dict(self) -> dict[str, Any]:
        """What is kept, in containers of tensors."""
        kept = {
            name: {"mode": dict(s.mode), "draws": [dict(draw) for draw in s.draws], "seed": s.seed}
            for name, s in self._kept.items()
        }
        return {"kept": kept, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._kept = {
            name: Statistics(s["mode"], tuple(s["draws"]), s["seed"])
            for name, s in state["kept"].items()
        }
        self._last = state["last"]
