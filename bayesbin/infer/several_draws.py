"""A model at several draws of its weights: together where ``torch.vmap`` can, one by one where not."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from bayesbin.guides.prototype import normalisation_kept

Modes = tuple[bool, ...]  # training or not, layer by layer
Evaluate = Callable[[dict[str, Tensor]], Tensor]

# Beyond these a batched product is no faster than several, and only takes more memory: weights in a
# stack of draws, and draws, each of which has activations of its own.
LARGEST_STACK, MOST_DRAWS = 1 << 21, 64


class SeveralDraws:
    """Evaluates a function of one draw at many, and remembers for which models that works at once.

    The first draw always runs by itself, with Pyro's validation, whose branches on values ``vmap``
    cannot follow; its trace also provides what is the same for every draw. The others then run
    together, without validation. Models that ``vmap`` refuses (normalisation that updates running
    statistics, branches on values, custom autograd functions) run draw by draw: found out once per
    model and modes of its layers, in a trial that leaves generators and running statistics as they were.
    """

    def __init__(self) -> None:
        self._possible: weakref.WeakKeyDictionary[Any, dict[Modes, bool]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(
        self, model: Any, evaluate: Evaluate, values: Mapping[str, Sequence[Tensor]]
    ) -> Tensor:
        """``evaluate`` at each of the S draws, shape (S,)."""
        count = len(next(iter(values.values())))
        draws = [{name: sequence[s] for name, sequence in values.items()} for s in range(count)]
        first = evaluate(draws[0])
        rest = draws[1:]
        size = sum(value.numel() for value in draws[0].values())
        at_once = min(len(rest), MOST_DRAWS, LARGEST_STACK // max(1, size))
        if at_once >= 2 and self._can_vectorize(model, evaluate, rest):
            try:
                return torch.cat([first[None], _together(evaluate, rest, at_once)])
            except RuntimeError:
                # A function may use a module whose mode has changed since the trial, unseen from here.
                known, modes = self._known(model)
                known[modes] = False
        return torch.stack([first, *(evaluate(draw) for draw in rest)])

    def _known(self, model: Any) -> tuple[dict[Modes, bool], Modes]:
        layers = model.modules() if isinstance(model, nn.Module) else ()
        modes = tuple(layer.training for layer in layers)
        return self._possible.setdefault(getattr(model, "__func__", model), {}), modes

    def _can_vectorize(
        self, model: Any, evaluate: Evaluate, draws: list[dict[str, Tensor]]
    ) -> bool:
        if any(type(value) not in (Tensor, nn.Parameter) for value in draws[0].values()):
            return False  # values that stand for something else, such as a weight's moments
        known, modes = self._known(model)
        if modes not in known:
            with (
                torch.no_grad(),
                torch.random.fork_rng(),
                normalisation_kept(),
                warnings.catch_warnings(),
            ):
                # An operation that vmap itself would run as a loop is better run as ours.
                warnings.filterwarnings("error", message=".*performance drop")
                try:
                    known[modes] = bool(_together(evaluate, draws[:2], 2).shape == (2,))
                except Exception:  # whatever it was, the loop will show it if it is the model's own
                    known[modes] = False
        return known[modes]


def _together(evaluate: Evaluate, draws: list[dict[str, Tensor]], at_once: int) -> Tensor:
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    with pyro.validation_enabled(False):
        return torch.vmap(evaluate, randomness="different", chunk_size=at_once)(stacked)
