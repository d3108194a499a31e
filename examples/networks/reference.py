"""The answer that every backend is held to: the user's network in torch, in float64, draw by draw.

A sign behind a sum is decided in float64: the reference is exact wherever no sum comes closer to a decision
than rounding does. ``decisions`` measures that: of every comparison in the network the smallest distance
that is not exactly zero, relative to the largest. Distances below 1e-9 make the answer of the reference
itself uncertain, below 1e-6 that of a computation in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from prepared import NUM_DRAWS, Prepared, copied, doubled, drawn_in_float64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TIE = 1e-9
_COMPARISONS = ("ge", "gt", "le", "lt", "sign", "heaviside")


@dataclass
class Decisions:
    """How close values come to the thresholds that they are compared with.

    :param nearest: the smallest relative distance that is not exactly 0; infinite without comparisons.
    :param ties: distances that are exactly 0. :param compared: all of them.
    """

    nearest: float = float("inf")
    ties: int = 0
    compared: int = 0

    def add(self, distance: Tensor) -> None:
        """Take in the distances of one comparison."""
        distance = distance.abs()[distance.isfinite()]
        if not distance.numel():
            return
        self.compared += distance.numel()
        self.ties += int((distance == 0).sum())
        if bool((positive := distance[distance > 0]).numel()):
            self.nearest = min(self.nearest, float(positive.min() / distance.max()))


class _Watch(TorchDispatchMode):
    """Records the distances of every comparison of real numbers that runs."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.decisions = decisions

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        first = args[0] if args else None
        if name in _COMPARISONS and isinstance(first, Tensor) and first.is_floating_point():
            other = args[1] if name != "sign" and len(args) > 1 else 0.0
            self.decisions.add(first.detach() - other)
        return func(*args, **(kwargs or {}))


@dataclass
class Reference:
    """Outputs of each draw in float64, (S, B, ...) each, and how safe their decisions are."""

    outputs: list[np.ndarray]
    decisions: Decisions = field(default_factory=Decisions)


def reference(prepared: Prepared, num_draws: int = NUM_DRAWS) -> Reference:
    """Run the user's network in float64 with each draw substituted."""
    decisions, draws = Decisions(), []
    for draw in range(num_draws):
        net, inputs = drawn_in_float64(prepared, draw), doubled(copied(prepared.inputs))
        with default_dtype(torch.float64), torch.no_grad(), _Watch(decisions):
            draws.append(flat(net(*inputs)))
    return Reference(stacked(draws), decisions)


def flat(outputs: Any) -> list[np.ndarray]:
    """The outputs of a network as arrays: tuples and dictionaries in their order."""
    return [leaf.detach().cpu().numpy() for leaf in tree_leaves(outputs)]


def stacked(draws: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """One array (S, B, ...) for each output of S draws."""
    return [np.stack(each) for each in zip(*draws, strict=True)]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within, numbers that a network makes in forward are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Agreement:
    """How far outputs are from the reference.

    :param deviation: largest difference over largest output, the worst of several outputs.
    :param labels: whether the largest number of each datum (of each step, of each pixel) is at the same
        place, wherever the two largest of the reference differ; whole numbers and Booleans are equal.
    """

    deviation: float
    labels: bool


def compare(found: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> Agreement:
    """Compare outputs with those of the reference."""
    shapes = [each.shape for each in found], [each.shape for each in right]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs of shapes {shapes[0]}, where the network has {shapes[1]}")
    deviation, labels = 0.0, True
    for ours, theirs in zip(found, right, strict=True):
        if theirs.dtype.kind != "f":
            labels &= bool(np.array_equal(ours, theirs))
            continue
        if not (np.isfinite(ours) == np.isfinite(theirs)).all():
            return Agreement(float("inf"), False)
        finite = np.isfinite(theirs)
        largest = np.abs(theirs[finite]).max(initial=0.0) or 1.0
        difference = np.abs(ours.astype(np.float64) - theirs)[finite].max(initial=0.0)
        deviation = max(deviation, float(difference / largest))
        labels &= _same_labels(ours, theirs, TIE * largest)
    return Agreement(deviation, labels)


def _same_labels(ours: np.ndarray, theirs: np.ndarray, tie: float) -> bool:
    axis = 2 if theirs.ndim == 5 else -1  # images have their classes before the pixels
    if theirs.ndim < 3 or theirs.shape[axis] < 2:
        return True
    second, first = np.moveaxis(np.partition(theirs, -2, axis), axis, -1)[..., -2:].T
    decided = (first - second).T > tie
    return bool((ours.argmax(axis) == theirs.argmax(axis))[decided].all())
