"""The scopes that binary weights are nested in, and the share of each in a tensor over the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

SCOPES = ("layer", "filter", "kernel", "weight")


def scope_shapes(
    shape: tuple[int, ...], sharing: Sequence[str] = SCOPES
) -> dict[str, tuple[int, ...]]:
    """Scope -> shape of one number per member, from the coarsest; all broadcast to ``shape``.

    A filter is what feeds one output unit (the first dimension), a kernel what leads from one input
    channel to it (the first two). Scopes that the shape does not have, or that would be another one
    over again, are left out.
    """
    ones = tuple(1 for _ in shape)
    of_scope = {
        "layer": ones,
        "filter": shape[:1] + ones[1:] if len(shape) > 1 else None,
        "kernel": shape[:2] + ones[2:] if len(shape) > 2 else None,
        "weight": shape,
    }
    found: dict[str, tuple[int, ...]] = {}
    for scope in SCOPES:
        wanted = of_scope[scope]
        if scope in sharing and wanted is not None and wanted not in found.values():
            found[scope] = wanted
    return found


def scope_effects(values: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensor as a sum over scopes: the mean, what filters deviate from it, and so on.

    Orthogonal to one another, and, with the weight scope among them, all of it.
    """
    effects: dict[str, Tensor] = {}
    rest = values
    for scope, shape in shapes.items():
        effects[scope] = rest.sum_to_size(shape) / (rest.numel() // max(1, math.prod(shape)))
        rest = rest - effects[scope]
    return effects


def scope_shares(values: Tensor) -> dict[str, float]:
    """Scope -> its share of the sum of squares of a tensor over weights; they add up to 1.

    An analysis of variance in which the mean, the layer's own effect, is counted too.
    """
    values = values.double()
    total = values.square().sum().item()
    effects = scope_effects(values, scope_shapes(tuple(values.shape)))
    return {
        scope: effect.square().sum().item() * (values.numel() / max(1, effect.numel())) / total
        if total > 0
        else 0.0
        for scope, effect in effects.items()
    }
