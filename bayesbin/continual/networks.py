"""Networks for sequences of tasks: nothing real-valued to forget by, and heads that grow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import one_of, real_number, whole_number, whole_numbers
from bayesbin.core.names import ACTIVATIONS, NORMALIZATIONS
from bayesbin.core.turns import in_turn
from bayesbin.nn import Scale, Sign, binary_sites, to_binary_
from bayesbin.nn.convert import Prior

MakeHead = Callable[[int], nn.Module]
_ACTIVATIONS: dict[str, type[nn.Module]] = dict(
    zip(ACTIVATIONS, (nn.ReLU, nn.Tanh, Sign), strict=True)
)


class _Heads(nn.Module):
    """A body and the heads on it, to which more can be added."""

    def __init__(
        self, body: nn.Module, heads: Iterable[nn.Module], make_head: MakeHead | None
    ) -> None:
        super().__init__()
        if make_head is not None and not callable(make_head):
            raise ValueError(
                f"expected make_head to be a function from a number of outputs to a module; got "
                f"{make_head!r}."
            )
        self.body, self.heads = body, nn.ModuleList(heads)
        self.make_head = make_head
        self.grown: tuple[int, ...] = ()  # outputs of the heads added since
        # In a tuple, so that it is no part of the network: a first head as it was before training.
        self._pattern: tuple[nn.Module, ...] = (
            (copy.deepcopy(self.heads[0]),) if len(self.heads) else ()
        )

    def grow_(self, num_outputs: int, seed: int) -> None:
        """Add a head of ``num_outputs``, whose initial state is a function of ``seed`` alone.

        ``make_head(num_outputs)`` makes it; without that function it is like the first head was before
        training, with weights drawn anew. The head takes the type and device of the rest.
        """
        num_outputs = whole_number("num_outputs", num_outputs, at_least=1)
        tensors = (*self.parameters(), *self.buffers())
        like = next((t for t in tensors if t.is_floating_point()), torch.empty(()))
        with in_turn(), torch.random.fork_rng(devices=[]):
            before = torch.get_default_dtype()
            torch.manual_seed(seed)
            torch.set_default_dtype(like.dtype)
            try:
                if self.make_head is None:
                    head = _drawn_anew(copy.deepcopy(self._pattern[0]))
                else:
                    head = self.make_head(num_outputs)
            finally:
                torch.set_default_dtype(before)
        if not isinstance(head, nn.Module):
            raise ValueError(f"expected make_head to return a torch module; got {head!r}.")
        self.heads.append(head.to(device=like.device).train(self.training))
        self.grown = (*self.grown, num_outputs)


class MultiHead(_Heads):
    """One body for all tasks and a head for each: ``heads[head](body(x))`` for the head selected.

    Only the selected head is used, trained, and counted in the KL: all others stay as they are, bit for
    bit. Real-valued heads are learned by maximum likelihood, binary ones have a posterior. A learner adds
    the next head when the first task for it comes.

    :param body: maps x (B, ...) to features (B, F). :param heads: each maps them to outputs (B, C).
    :param make_head: makes a new head from its number of outputs, such as ``lambda n: nn.Linear(100, n)``;
        None: new heads are like the first one.
    :raises ValueError: with neither a head nor ``make_head``; by :meth:`select`, for a head that is not
        there.

    >>> import torch
    >>> net = MultiHead(nn.Linear(4, 3), [nn.Linear(3, 2), nn.Linear(3, 5)])
    >>> net.select(1)(torch.ones(6, 4)).shape
    torch.Size([6, 5])
    >>> net.grow_(num_outputs=2, seed=0)
    >>> len(net.heads)
    3

    Source: Nguyen et al. 2018, arXiv 1710.10628, with heads by maximum likelihood as its authors'
    later experiments have them.
    """

    def __init__(
        self,
        body: nn.Module,
        heads: Iterable[nn.Module] = (),
        *,
        make_head: MakeHead | None = None,
    ) -> None:
        super().__init__(body, heads, make_head)
        if not len(self.heads) and make_head is None:
            raise ValueError("expected at least one head, or make_head to make them; got neither.")
        self.head = 0

    def select(self, head: int) -> MultiHead:
        """Use another head from now on; returns the network."""
        head = whole_number("head", head)
        if head >= len(self.heads):
            raise ValueError(
                f"expected a head in 0 .. {len(self.heads) - 1}, got {head}; a learner adds the next head "
                "when it learns the first task for it."
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


class GrowingHead(_Heads):
    """One head for all tasks that gets new outputs for new classes, for class-incremental learning.

    Outputs are added in blocks: ``concatenate(heads[i](body(x)))``. A learner adds a block with as many
    outputs as a task has labels that no earlier task had; the weights of the others go on from where they
    are, with their posterior as prior.

    :param body: maps x (B, ...) to features (B, F).
    :param make_head: makes a block from its number of outputs. :param num_outputs: of the first block.
    :raises ValueError: for less than one output.

    >>> import torch
    >>> net = GrowingHead(nn.Linear(4, 3), lambda n: nn.Linear(3, n), num_outputs=2)
    >>> net.grow_(1, seed=0)
    >>> net(torch.ones(6, 4)).shape, net.num_outputs
    (torch.Size([6, 3]), 3)
    """

    def __init__(self, body: nn.Module, make_head: MakeHead, num_outputs: int) -> None:
        first = whole_number("num_outputs", num_outputs, at_least=1)
        super().__init__(body, [make_head(first)], make_head)
        self._first = first

    @property
    def num_outputs(self) -> int:
        """The number of outputs of all blocks."""
        return self._first + sum(self.grown)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        return torch.cat([head(features) for head in self.heads], -1)


def _drawn_anew(head: nn.Module) -> nn.Module:
    """Draw the weights of a copy anew: as torch does, and random signs."""
    sites = binary_sites(head)
    binary = {name.rpartition(".")[0] for name in sites}
    for path, module in head.named_modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if callable(reset) and path not in binary:
            reset()
    with torch.no_grad():
        for site in sites.values():
            site.signs.copy_(torch.where(torch.rand_like(site.signs) < 0.5, -1.0, 1.0))
    return head


def _output_layer(
    fan_in: int,
    binary: bool,
    output_scale: float,
    learn_scale: bool,
    prior: Prior,
    num_outputs: int,
) -> nn.Module:
    """An output layer: real with a bias, or binary without."""
    if not binary:
        return nn.Linear(fan_in, num_outputs)
    linear = nn.Linear(fan_in, num_outputs, bias=False)
    if learn_scale:
        return nn.Sequential(to_binary_(linear, prior=prior), Scale(output_scale))
    return nn.Sequential(to_binary_(linear, scale=output_scale / math.sqrt(fan_in), prior=prior))


def continual_network(
    num_inputs: int,
    hidden: Sequence[int] = (100, 100),
    num_outputs: int = 10,
    *,
    heads: int | None = None,
    binary_heads: bool = False,
    growing: bool = False,
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
        layers; :param num_outputs: of the network, or of each of the first heads.
    :param heads: number of heads of a :class:`MultiHead` network at first, to which a learner adds more;
        None: one output layer for all tasks.
    :param binary_heads: whether heads are binary; by default they are real, with a bias.
    :param growing: whether the one output layer, which is binary, gets outputs for new classes
        (:class:`GrowingHead`).
    :param normalization: "layer" for layer normalisation, any other of ``core.names.NORMALIZATIONS`` for
        batch normalisation. :param activation: "relu", "tanh" or "sign".
    :param output_scale: of a binary output layer. :param learn_scale: whether to learn it, from there.
    :param prior: of the binary weights, as of ``to_binary_``.
    :raises ValueError: for names that are not known, no hidden layer, sizes that are not positive, or
        both ``heads`` and ``growing``.

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
    output_scale = real_number("output_scale", output_scale, above=0.0)
    if heads is not None and growing:
        raise ValueError(
            "expected heads by task or one that grows; got both heads= and growing=True."
        )
    body = _body([num_inputs, *hidden], normalization, activation)
    to_binary_(body, prior=prior)
    shared = heads is None
    make = partial(
        _output_layer, hidden[-1], shared or binary_heads, output_scale, learn_scale, prior
    )
    if growing:
        return GrowingHead(body, make, num_outputs)
    if heads is not None:
        count = whole_number("heads", heads, at_least=1)
        return MultiHead(body, [make(num_outputs) for _ in range(count)], make_head=make)
    output = make(num_outputs)
    assert isinstance(output, nn.Sequential)
    return nn.Sequential(*body, *output)


def _body(sizes: Sequence[int], normalization: str, activation: str) -> nn.Sequential:
    one_of("normalization", normalization, NORMALIZATIONS)
    kind = _ACTIVATIONS[one_of("activation", activation, ACTIVATIONS)]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        norm = (
            nn.LayerNorm(fan_out, elementwise_affine=False)
            if normalization == "layer"
            else nn.BatchNorm1d(fan_out, affine=False)
        )
        layers += [nn.Linear(fan_in, fan_out, bias=False), norm, kind()]
    return nn.Sequential(*layers)
