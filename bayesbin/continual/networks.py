"""Networks for sequences of tasks: nothing real-valued to forget by, and a head per task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from bayesbin.core.checks import one_of, real_number, whole_number, whole_numbers
from bayesbin.core.names import ACTIVATIONS, NORMALIZATIONS
from bayesbin.nn import Scale, Sign, binary_sites, to_binary_
from bayesbin.nn.convert import Prior

_ACTIVATIONS: dict[str, type[nn.Module]] = dict(
    zip(ACTIVATIONS, (nn.ReLU, nn.Tanh, Sign), strict=True)
)


class MultiHead(nn.Module):
    """One body for all tasks and a head for each: ``heads[head](body(x))`` for the head selected.

    Only the selected head is used, trained, and counted in the KL: all others stay as they are, bit for
    bit. Real-valued heads are learned by maximum likelihood, binary ones have a posterior.

    :param body: maps x (B, ...) to features (B, F). :param heads: each maps them to logits (B, C).
    :raises ValueError: without a head; by :meth:`select`, for one that is not there.

    >>> import torch
    >>> net = MultiHead(nn.Linear(4, 3), [nn.Linear(3, 2), nn.Linear(3, 5)])
    >>> net.select(1)(torch.ones(6, 4)).shape
    torch.Size([6, 5])

    Source: Nguyen et al. 2018, arXiv 1710.10628, with heads by maximum likelihood as its authors'
    later experiments have them.
    """

    def __init__(self, body: nn.Module, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleList(heads)
        if not len(self.heads):
            raise ValueError("expected at least one head, got none.")
        self.head = 0

    def select(self, head: int) -> MultiHead:
        """Use another head from now on; returns the network."""
        if not 0 <= head < len(self.heads):
            raise ValueError(
                f"expected a head in 0 .. {len(self.heads) - 1}, got {head}; build the network with "
                "a head for each task."
            )
        self.head = head
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.head](self.body(x))

    def idle_sites(self) -> frozenset[str]:
        """The binary sites of the heads that are not selected, by their names in this network."""
        return frozenset(
            name
            for name in binary_sites(self)
            if name.startswith("heads.") and not name.startswith(f"heads.{self.head}.")
        )


def continual_network(
    num_inputs: int,
    hidden: Sequence[int] = (100, 100),
    num_outputs: int = 10,
    *,
    heads: int | None = None,
    binary_heads: bool = False,
    binary: bool = True,
    normalization: str = "layer",
    activation: str = "relu",
    output_scale: float = 3.0,
    learn_scale: bool = False,
    prior: Prior = 0.0,
) -> nn.Module:
    r"""A binary multilayer perceptron without biases: all that it learns has a posterior to remember.

    [binary linear, normalisation without scale and shift, activation] per hidden layer, then a binary
    linear layer whose outputs are ``output_scale`` / sqrt(fan-in) times a sum of signed activations.
    Real-valued parameters, which no prior protects, are those of real-valued heads and the learned scale.

    :param num_inputs: features of one input, (B, num_inputs); :param hidden: widths of the hidden
        layers; :param num_outputs: of the network, or of each head.
    :param heads: number of heads of a :class:`MultiHead` network; None: one output layer for all tasks.
    :param binary_heads: whether heads are binary; by default they are real, with a bias.
    :param binary: False leaves all weights real, for baselines of the same shape.
    :param normalization: "layer" for layer normalisation, any other of NORMALIZATIONS for batch
        normalisation. :param activation: "relu", "tanh" or "sign".
    :param output_scale: of a binary output layer. :param learn_scale: whether to learn it, from there.
    :param prior: of the binary weights, as of ``to_binary_``.
    :raises ValueError: for names that are not known, no hidden layer, or sizes that are not positive.

    >>> from bayesbin.nn import binary_sites
    >>> [tuple(site.shape) for site in binary_sites(continual_network(784)).values()]
    [(100, 784), (100, 100), (10, 100)]
    >>> sum(p.numel() for p in continual_network(784).parameters())
    0

    Source: Meng, Bachmann and Khan 2020, arXiv 2002.10778 (784-100-100-10, without biases).
    """
    num_inputs = whole_number("num_inputs", num_inputs, at_least=1)
    num_outputs = whole_number("num_outputs", num_outputs, at_least=1)
    hidden = whole_numbers("hidden", hidden)
    one_of("normalization", normalization, NORMALIZATIONS)
    one_of("activation", activation, ACTIVATIONS)
    output_scale = real_number("output_scale", output_scale, above=0.0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([num_inputs, *hidden]):
        norm = (
            nn.LayerNorm(fan_out, elementwise_affine=False)
            if normalization == "layer"
            else nn.BatchNorm1d(fan_out, affine=False)
        )
        layers += [nn.Linear(fan_in, fan_out, bias=False), norm, _ACTIVATIONS[activation]()]
    body = nn.Sequential(*layers)
    if binary:
        to_binary_(body, prior=prior)

    def output() -> list[nn.Module]:
        linear = nn.Linear(hidden[-1], num_outputs, bias=not binary)
        if not binary:
            return [linear]
        scale = output_scale / math.sqrt(hidden[-1])
        if not learn_scale:
            return [to_binary_(linear, scale=scale, prior=prior)]
        return [to_binary_(linear, prior=prior), Scale(output_scale)]

    if heads is None:
        return nn.Sequential(*body, *output())
    if not binary_heads:
        return MultiHead(body, [nn.Linear(hidden[-1], num_outputs) for _ in range(heads)])
    return MultiHead(body, [nn.Sequential(*output()) for _ in range(heads)])
