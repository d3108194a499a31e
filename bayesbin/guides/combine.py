"""How the parameters of layer, filter, kernel and weight become natural parameters, other than by a sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bayesbin.core.checks import whole_number
from bayesbin.core.nesting import scope_effects

Read = Callable[[str, str], Tensor]


class Combine(nn.Module, ABC):
    """A composition of scopes to natural parameters, for ``AutoNestedSignBernoulli(combine=...)``.

    Its own parameters train with the guide's ``real_parameters()``, and so do those of the scopes: the
    natural gradient of additive offsets is not for them.
    """

    @staticmethod
    def of(given: Combine | Callable[[dict[str, Tensor]], Tensor] | None) -> Combine | None:
        """A Combine as it is, a function as one; None stands for the sum."""
        if given is None or isinstance(given, Combine):
            return given
        if not callable(given):
            raise ValueError(
                f"combine is a Combine or a function of offsets by scope; got {given!r}."
            )
        return CombineFunction(given)

    @abstractmethod
    def start(
        self, name: str, start: Tensor, shapes: Mapping[str, tuple[int, ...]], *, random: bool
    ) -> dict[str, Tensor]:
        """The initial parameters of a site's scopes.

        :param start: initial natural parameters. :param shapes: scope -> shape that broadcasts to the site.
        :param random: whether ``start`` was drawn, so that only its size counts.
        """

    @abstractmethod
    def natural(
        self, name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...], read: Read
    ) -> Tensor:
        """The natural parameters of a site from those of its scopes.

        :param read: ``read("combine", key)`` is the module's own parameter ``key``, announced to Pyro.
        """


class CombineFunction(Combine):
    """A function from a dictionary of offsets by scope to natural parameters, as a Combine."""

    def __init__(self, function: Callable[[dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.function = function

    def start(
        self, name: str, start: Tensor, shapes: Mapping[str, tuple[int, ...]], *, random: bool
    ) -> dict[str, Tensor]:
        _require_random(name, random)
        if "weight" in shapes:
            return {scope: effect.clone() for scope, effect in scope_effects(start, shapes).items()}
        size = start.square().mean().sqrt()
        return {scope: size * torch.randn(s).to(start) for scope, s in shapes.items()}

    def natural(
        self, name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...], read: Read
    ) -> Tensor:
        found = self.function(dict(parts))
        try:
            return found.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"combine returned shape {tuple(found.shape)} for the site {name!r}, which does not "
                f"broadcast to its shape {shape}."
            ) from error


class PolicyNetwork(Combine):
    r"""A small network that maps a shared state and the embeddings of scopes to natural parameters.

    .. math:: \lambda_{l,o,i,k} = v^T \tanh\big(s + W (e_l + e_{l,o} + e_{l,o,i} + p_{l,i} + p_{l,k})\big)
        + d_{l,o,i,k}

    s, W and v are shared by all layers; p are embeddings of the position of a weight, its input channel
    and its place in the kernel, so that weights differ without a parameter each. A weight scope, if
    there is one, adds d.

    :param embedding_dim: size of an embedding. :param hidden: units of the network.
    :raises ValueError: for sizes below 1.

    Example::

        >>> from bayesbin.guides import AutoNestedSignBernoulli, PolicyNetwork
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> model = Classifier(BinaryLinear(100, 50), dataset_size=100)
        >>> guide = AutoNestedSignBernoulli(model, ("layer", "filter"), combine=PolicyNetwork(4))
        >>> sum(p.numel() for p in guide.parameters())  # of 5000 natural parameters
        796

    Source: after the abstract of SnapQuant, ICLR 2019 submission B1ePui0ctQ.
    """

    def __init__(self, embedding_dim: int = 8, hidden: int = 32) -> None:
        super().__init__()
        embedding_dim = whole_number("embedding_dim", embedding_dim, at_least=1)
        hidden = whole_number("hidden", hidden, at_least=1)
        self.embedding_dim = embedding_dim
        self.state = nn.Parameter(torch.zeros(hidden))
        # Of a sum of about four embeddings of unit variance, units of about unit variance.
        self.first = nn.Parameter(torch.randn(hidden, embedding_dim) / (2.0 * embedding_dim**0.5))
        self.last = nn.Parameter(torch.zeros(hidden))
        self.positions = nn.ParameterDict()

    def start(
        self, name: str, start: Tensor, shapes: Mapping[str, tuple[int, ...]], *, random: bool
    ) -> dict[str, Tensor]:
        _require_random(name, random)
        self.to(start)
        hidden = len(self.last)
        if not self.positions:  # lambda starts about as wide as asked for
            size = start.square().mean().sqrt().item()
            with torch.no_grad():
                self.last.normal_(0.0, size * (2.0 / hidden) ** 0.5)
        of_input = (1, *start.shape[1:2], *(1 for _ in start.shape[2:]))
        of_place = (1, *(1 for _ in start.shape[1:2]), *start.shape[2:])
        for what, shape in (("input", of_input), ("place", of_place)):
            if any(n > 1 for n in shape):
                embedding = torch.randn(*shape, self.embedding_dim).to(start)
                self.positions[_key(name, what)] = nn.Parameter(embedding)
        return {
            scope: torch.zeros(shape).to(start)
            if scope == "weight"
            else torch.randn(*shape, self.embedding_dim).to(start)
            for scope, shape in shapes.items()
        }

    def natural(
        self, name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...], read: Read
    ) -> Tensor:
        first = read("combine", "first")
        summed = read("combine", "state")
        embeddings = [part for scope, part in parts.items() if scope != "weight"]
        for what in ("input", "place"):
            if (key := _key(name, what)) in self.positions:
                embeddings.append(read("combine", f"positions.{key}"))
        for embedding in embeddings:  # projected before they are broadcast: only the sum is large
            summed = summed + nn.functional.linear(embedding, first)
        total = torch.tanh(summed) @ read("combine", "last")
        if "weight" in parts:
            total = total + parts["weight"]
        return total.expand(shape)


def _key(name: str, what: str) -> str:
    return f"{name.replace('.', '/')}/{what}"  # a ParameterDict's key has no dot


def _require_random(name: str, random: bool) -> None:
    if not random:
        raise ValueError(
            f"init cannot be carried over to {name!r} through combine, which has no inverse; leave "
            "init or combine out."
        )
