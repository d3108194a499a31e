"""What normalises activations at test, which in a sequence of tasks quietly decides the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.core.checks import one_of
from bayesbin.core.names import NORMALIZATIONS
from bayesbin.ensemble import Ensemble, Statistics

CALIBRATION_DATA = 2000


class Normalization:
    """Where a network's normalisation statistics come from when it predicts.

    :param kind: "layer": each input by itself (layer normalisation, or none): nothing is kept, and no
        task has to be known. For batch normalisation, whose running statistics would mix tasks and
        draws: "per-task": those of each draw on the first 2000 training inputs of the task, computed
        when it is learned and kept; which task an input is from has to be known at test, and a task
        not learned yet gets those of the last one. "calibrated": those of each draw on the last
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
                ("batch normalisation", "per-task, calibrated or batch")
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
        return self.kind in ("per-task", "calibrated")

    def learned(self, name: str, ensemble: Ensemble, x: Tensor) -> None:
        """Take note of a task that has been learned, from its training inputs."""
        if self.keeps:
            if self.kind == "calibrated":
                self._kept.clear()
            statistics = ensemble.calibrate(x[:CALIBRATION_DATA]).statistics
            assert statistics is not None
            self._kept[name] = statistics
            self._last = name

    def settled(self, name: str, ensemble: Ensemble, x: Tensor) -> Ensemble:
        """The ensemble with the statistics to predict x of a task with."""
        if self.kind == "layer":
            return ensemble
        if self.kind == "batch" or self._last is None:
            return ensemble.calibrate(x)
        kept = self._kept.get(name, self._kept[self._last])
        # The posterior has gone on since a task's statistics were computed: that is what is kept.
        return ensemble.with_statistics(kept, foreign=True)

    def state_dict(self) -> dict[str, Any]:
        """What is kept, in containers of tensors."""
        kept = {
            name: {"origin": s.origin, "values": [[draw, dict(v)] for draw, v in s.values.items()]}
            for name, s in self._kept.items()
        }
        return {"kept": kept, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._kept = {
            name: Statistics({draw: values for draw, values in s["values"]}, s["origin"])
            for name, s in state["kept"].items()
        }
        self._last = state["last"]
