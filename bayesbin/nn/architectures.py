"""Networks of the usual shapes, in real weights: ``to_binary_`` makes them binary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from bayesbin.nn.layers import Scale

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: str = "relu",
    normalize: bool = True,
    dropout: float = 0.0,
    output_scale: bool = True,
) -> nn.Sequential:
    """A multilayer perceptron: [linear, BatchNorm, activation, dropout] per hidden layer, linear, scale.

    Linear layers before a normalisation have no bias; the last one has. The last module is a learned
    :class:`Scale`, without which a binary network cannot set the size of its logits.

    :param num_inputs: features of one input, (B, num_inputs).
    :param hidden: widths of the hidden layers. :param num_outputs: (B, num_outputs) comes out.
    :param activation: "relu" or "tanh". :param normalize: whether to normalise by batch.
    :param dropout: probability of dropping an activation while training.
    :param output_scale: whether to end in a learned scale.
    :raises ValueError: for widths below 1, an unknown activation, or a dropout outside [0, 1).

    Example::

        >>> from bayesbin.nn import binary_sites, mlp, to_binary_
        >>> list(binary_sites(to_binary_(mlp(4, [8], 3))))
        ['0.weight', '3.weight']
    """
    sizes = [num_inputs, *hidden, num_outputs]
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"Layer sizes are whole numbers of at least 1; got {sizes}.")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(_ACTIVATIONS)}; got {activation!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1); got {dropout}.")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers.append(nn.Linear(fan_in, fan_out, bias=not normalize))
        if normalize:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(_ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(sizes[-2], num_outputs))
    if output_scale:
        layers.append(Scale())
    return nn.Sequential(*layers)
