"""Which of Pyro's own losses train a guide over weights; those that do not are refused by name.

A loss that needs reparameterised draws finds no gradient for signs and says nothing, and one that takes the
density of relaxed signs for a probability bounds nothing. The guide is what knows how it draws.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)

_COMPILED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)
_NO_SCORES = (RenyiELBO, TraceTMC_ELBO, TraceTailAdaptive_ELBO)
_LOSSES = (
    *_COMPILED, *_NO_SCORES, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO,
    TraceMeanField_ELBO,
)  # fmt: skip


def _entries() -> frozenset[CodeType]:
    """The code of the methods by which a loss is called."""
    names = ("loss", "loss_and_grads", "differentiable_loss")
    methods = [vars(kind)[name] for kind in _LOSSES for name in names if name in vars(kind)]
    return frozenset(getattr(method, "__wrapped__", method).__code__ for method in methods)


_ENTRIES = _entries()


def calling_loss() -> ELBO | None:
    """The loss of Pyro's that is running, which a guide is not told; None for any other caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _ENTRIES:
            found = frame.f_locals.get("self")
            return found if isinstance(found, ELBO) else None
        frame = frame.f_back
    return None


def require_fit(guide: Any, draws: str) -> None:
    """Refuse a loss that does not train the guide that it is calling.

    :param draws: how the guide draws weights: "hard", signs or levels with scores for a gradient; "relaxed";
        or "point", the same ones each time.
    :raises NotImplementedError: with what the loss lacks, and what to use.
    """
    loss = calling_loss()
    if loss is None:
        return
    name, kind = type(loss).__name__, type(guide).__name__
    reason = ""
    if isinstance(loss, _COMPILED):
        reason = (
            "torch.jit, which it compiles by, is deprecated and would keep the draws of one call"
        )
    elif draws == "hard" and isinstance(loss, _NO_SCORES):
        reason = "it has no gradient for draws that are not reparameterised"
    elif draws == "relaxed" and not isinstance(loss, TraceMeanField_ELBO):
        reason = "it takes the density of relaxed draws for a probability, and bounds nothing"
    elif draws == "point" and isinstance(loss, ReweightedWakeSleep):
        reason = "it needs a density, which a point has not"
    if reason:
        other = "TraceMeanField_ELBO" if draws == "relaxed" else "Trace_ELBO, TraceGraph_ELBO"
        raise NotImplementedError(
            f"{name} does not train {kind}: {reason}. Use bayesbin.infer.TraceBinary_ELBO or {other}."
        )
