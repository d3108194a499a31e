"""Products of a program in torch: linear maps, convolutions, attention, tables of rows and recurrences.

Values have two axes before those of a datum, (D or 1, B or 1, ...): draws and data. Weights have no batch:
(D or 1, 1, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Attributes = Mapping[str, Any]
LEADING = 2  # axes before those of a datum

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def aligned(*values: Tensor) -> list[Tensor]:
    """The values with axes of size 1 after the batch, so that all have as many axes as the longest."""
    rank = max(value.dim() for value in values)
    return [
        value.reshape(*value.shape[:LEADING], *[1] * (rank - value.dim()), *value.shape[LEADING:])
        for value in values
    ]


def along(channels: Tensor, x: Tensor, axis: int) -> Tensor:
    """One number, or one per channel, in the shape that repeats along an axis of x."""
    if channels.dim() == LEADING:
        return aligned(x, channels)[1]
    sizes = [1] * (x.dim() - LEADING)
    sizes[axis] = -1
    return channels.reshape(*channels.shape[:LEADING], *sizes)


def images(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of images (N, channels, ...) of all draws and data at once."""
    return function(x.flatten(0, 1)).unflatten(0, x.shape[:LEADING])


def linear(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times the transpose of the weights (N, K), plus a bias (N,)."""
    weights = weight[:, 0]
    draws, units = weights.shape[:2]
    rows = x.flatten(1, -2)
    if draws == 1:
        found = F.linear(rows, weights[0])
    elif len(rows) == 1:  # all draws of the same inputs are one product
        found = F.linear(rows[0], weights.flatten(0, 1)).unflatten(1, (draws, units))
        found = found.transpose(0, 1)
    else:
        found = torch.bmm(rows, weights.transpose(1, 2))
    found = found.reshape(len(found), *x.shape[1:-1], units)
    return found if bias is None else found + aligned(found, bias)[1]


def conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of images (C, ...) with weights (N, C / groups, ...), plus a bias (N,)."""
    padding = [low for low, _ in a["padding"]]
    if any(low != high for low, high in a["padding"]):
        widths = [width for pair in reversed(a["padding"]) for width in pair]
        x, padding = F.pad(x, widths), [0] * len(padding)
    function = _CONV[len(padding)]

    def one(x: Tensor, weight: Tensor, groups: int) -> Tensor:
        return function(x, weight, None, a["stride"], padding, a["dilation"], groups)

    return _convolved(one, x, weight, bias, a["groups"], joins=True)


def conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution of images (C, ...) with weights (C, N / groups, ...), plus a bias (N,)."""
    function = _TRANSPOSED[len(a["stride"])]

    def one(x: Tensor, weight: Tensor, groups: int) -> Tensor:
        numbers = a["stride"], a["padding"], a["output_padding"], groups, a["dilation"]
        return function(x, weight, None, *numbers)

    return _convolved(one, x, weight, bias, a["groups"], joins=False)


def _convolved(
    one: Callable[[Tensor, Tensor, int], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    joins: bool,
) -> Tensor:
    """A convolution of every draw, as few calls as its shapes allow.

    :param joins: whether the units are the first axis of the weights.
    """
    weights = weight[:, 0]
    draws, units = weights.shape[:2]
    if draws == 1:
        found = images(lambda flat: one(flat, weights[0], groups), x)
    elif len(x) == 1 and groups == 1 and joins:
        found = one(x[0], weights.flatten(0, 1), 1).unflatten(1, (draws, units)).transpose(0, 1)
    else:
        each = [x[draw if len(x) > 1 else 0] for draw in range(draws)]
        found = torch.stack([one(x, w, groups) for x, w in zip(each, weights, strict=True)])
    return found if bias is None else found + along(bias, found, 0)


def matmul(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    """Matrix products over the last two axes."""
    return torch.matmul(*aligned(x, y))


def attention(
    a: Attributes, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T + mask) v; a query that sees no key gets 0."""
    query, key, value = aligned(query, key, value)
    scores = torch.matmul(query, key.transpose(-1, -2)) * a["scale"]
    seen = None
    if a["causal"]:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = aligned(scores, mask)[1]
        seen = mask if seen is None else seen & mask
    elif mask is not None:
        scores = scores + aligned(scores, mask)[1]
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    # Where all scores are -inf their softmax is NaN, also in the gradient, so they are replaced before.
    weights = torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    return torch.matmul(weights, value)


def embedding(a: Attributes, tokens: Tensor, table: Tensor) -> Tensor:
    """The rows of a table (V, width) that the tokens name.

    :raises ValueError: for a token that the table does not have.
    """
    draws, size = table.shape[0], table.shape[2]
    if tokens.numel() and not bool(((tokens >= 0) & (tokens < size)).all()):
        raise ValueError(
            f"expected tokens of 0..{size - 1}, got some of {int(tokens.min())}..{int(tokens.max())}."
        )
    if draws > 1:
        first = size * torch.arange(draws, device=tokens.device)
        tokens = tokens + first.reshape(-1, *[1] * (tokens.dim() - 1))
    return F.embedding(tokens, table.flatten(0, 2))


def take(a: Attributes, x: Tensor, places: Tensor) -> Tensor:
    """The places of an axis, in the order and shape given."""
    axis = LEADING + a["axis"]
    if len(places) == 1:
        found = x.index_select(axis, places.flatten())
        return found.reshape(*x.shape[:axis], *places.shape[LEADING:], *x.shape[axis + 1 :])
    parts = [take(a, x[d : d + 1] if len(x) > 1 else x, p[None]) for d, p in enumerate(places)]
    return torch.cat(parts)


# Recurrences


def lstm(a: Attributes, x: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor | None) -> Any:
    """Outputs (T, H), the last state (H,) and the last cell (H,); gates: input, forget, cell, output."""

    def step(inputs: Tensor, recurrent: Tensor, state: list[Tensor]) -> list[Tensor]:
        i, f, g, o = (inputs + recurrent).chunk(4, -1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(cell), cell]

    return _recurrence(a, x, [hidden, cell], weights, step)


def gru(a: Attributes, x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Any:
    """Outputs (T, H) and the last state (H,); gates: reset, update, new."""

    def step(inputs: Tensor, recurrent: Tensor, state: list[Tensor]) -> list[Tensor]:
        r, z, n = inputs.chunk(3, -1)
        r_h, z_h, n_h = recurrent.chunk(3, -1)
        new = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        update = torch.sigmoid(z + z_h)
        return [(1 - update) * new + update * state[0]]

    return _recurrence(a, x, [hidden], weights, step)


def rnn(a: Attributes, x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Any:
    """Outputs (T, H) and the last state (H,)."""
    activation = {"tanh": torch.tanh, "relu": torch.relu}[a["activation"]]

    def step(inputs: Tensor, recurrent: Tensor, state: list[Tensor]) -> list[Tensor]:
        return [activation(inputs + recurrent)]

    return _recurrence(a, x, [hidden], weights, step)


def _recurrence(
    a: Attributes,
    x: Tensor,
    state: list[Tensor],
    weights: Sequence[Tensor | None],
    step: Callable[[Tensor, Tensor, list[Tensor]], list[Tensor]],
) -> tuple[Tensor, ...]:
    """Run a recurrence over the first axis of a datum, from the end where ``reverse`` says so."""
    inputs_weight, recurrent_weight, inputs_bias, recurrent_bias = (*weights, None, None)[:4]
    assert inputs_weight is not None and recurrent_weight is not None
    gates = linear({}, x, inputs_weight, inputs_bias)
    times = range(x.shape[LEADING])
    found: list[Tensor] = []
    for time in reversed(times) if a["reverse"] else times:
        recurrent = linear({}, state[0], recurrent_weight, recurrent_bias)
        state = step(gates[:, :, time], recurrent, state)
        found.append(state[0])
    outputs = torch.stack(found[::-1] if a["reverse"] else found, LEADING)
    return outputs, *state
