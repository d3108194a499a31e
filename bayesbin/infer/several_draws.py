"""A model at several draws of its weights: together where ``torch.vmap`` can, one by one where not."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.plate_terms import TermKey, joined

Modes = tuple[Any, ...]  # of a bound method its function; training or not, layer by layer
Result = Tensor | Mapping[TermKey, Tensor]  # a number, or sums of terms
Evaluate = Callable[[dict[str, Tensor]], Any]

# Beyond these a batched product is no faster than several, and only takes more memory: weights in a
# stack of draws, and draws, each of which has activations of its own.
LARGEST_STACK, MOST_DRAWS = 1 << 21, 64


class SeveralDraws:
    """Evaluates a function of one draw at many, and remembers for which models that works at once.

    The first draw always runs by itself, with Pyro's validation, whose branches on values ``vmap``
    cannot follow; its trace also provides what is the same for every draw. The others then run
    together, without validation. Models that ``vmap`` refuses (normalisation that updates running
    statistics, branches on values, custom autograd functions) run draw by draw: found out in a trial,
    once per model and modes of its layers, that leaves generators and running statistics as they were.
    What is remembered decides how fast a call is, never what it returns: where a model has changed and
    ``vmap`` now refuses it, the call runs draw by draw, from the same noise.
    """

    def __init__(self) -> None:
        self._possible: weakref.WeakKeyDictionary[Any, dict[Modes, bool]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(
        self, model: Any, evaluate: Evaluate, values: Mapping[str, Sequence[Tensor]]
    ) -> Any:
        """``evaluate`` at each of the S draws: numbers (S,), or a dictionary of tensors (S, ...)."""
        count = len(next(iter(values.values())))
        draws = [{name: sequence[s] for name, sequence in values.items()} for s in range(count)]
        first = evaluate(draws[0])
        rest = draws[1:]
        size = sum(value.numel() for value in draws[0].values())
        at_once = min(len(rest), MOST_DRAWS, LARGEST_STACK // max(1, size))
        if at_once >= 2 and self._can_vectorize(model, evaluate, rest):
            try:
                with _undone_on_error():
                    return _after(first, _together(evaluate, rest, at_once))
            except Exception:  # whatever it was, the loop will show it if it is the model's own
                known, modes = self._known(model)
                known[modes] = False
        results = [first, *(evaluate(draw) for draw in rest)]
        return torch.stack(results) if isinstance(first, Tensor) else joined(results)

    def _known(self, model: Any) -> tuple[dict[Modes, bool], Modes]:
        owner = getattr(model, "__self__", model)  # a bound method is a new object each time
        layers = owner.modules() if isinstance(owner, nn.Module) else ()
        modes = (getattr(model, "__func__", None), *(layer.training for layer in layers))
        try:
            return self._possible.setdefault(owner, {}), modes
        except TypeError:  # it has no hash or takes no weak reference: nothing is remembered
            return {}, modes

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
                    _together(evaluate, draws[:2], 2)
                    known[modes] = True
                except Exception:  # whatever it was, the loop will show it if it is the model's own
                    known[modes] = False
        return known[modes]


def _together(evaluate: Evaluate, draws: list[dict[str, Tensor]], at_once: int) -> Any:
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    with pyro.validation_enabled(False):
        return torch.vmap(evaluate, randomness="different", chunk_size=at_once)(stacked)


def _after(first: Any, rest: Any) -> Any:
    """The results of all draws, from those of the first and of the others together."""
    if isinstance(first, Tensor):
        return torch.cat([first[None], rest])
    if first.keys() != rest.keys():
        raise RuntimeError("The terms of the draws differ.")
    return {key: torch.cat([value[None], rest[key]]) for key, value in first.items()}


@contextmanager
def _undone_on_error() -> Iterator[None]:
    """Leave the generator and running statistics as they were, if an error ends the block."""
    state = torch.get_rng_state()
    with normalisation_kept(on_error=True):
        try:
            yield
        except Exception:
            torch.set_rng_state(state)
            raise
