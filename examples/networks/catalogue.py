"""The catalogue: a name, a group, a line of description and a function for each network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 5
Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Network:
    """A network as somebody would write it, with inputs for it.

    :param name: for tables and files. :param group: the section of the table it stands in.
    :param line: what is particular about it. :param build: gives the real-valued network and inputs.
    :param expected: "runs", or "refused": predicted in torch alone, with a sentence that says why.
    :param posterior: "binary", "point" (all weights decided), "effects" (random effects shared by units)
        or "low-bit" (weights of three or four levels).
    :param conversion: arguments of ``to_binary_`` other than the defaults.
    """

    name: str
    group: str
    line: str
    build: Callable[[], Built]
    expected: str = "runs"
    posterior: str = "binary"
    conversion: dict[str, Any] = field(default_factory=dict)


NETWORKS: dict[str, Network] = {}


def network(
    group: str,
    line: str,
    *,
    expected: str = "runs",
    posterior: str = "binary",
    **conversion: Any,
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Decorator: put a function that builds a network, and inputs, into the catalogue under its name."""

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        name = build.__name__.replace("_", "-")
        if name in NETWORKS:
            raise ValueError(f"There are two networks named {name}.")
        NETWORKS[name] = Network(name, group, line, build, expected, posterior, conversion)
        return build

    return register


def vector(size: int = 16) -> Tensor:
    """A batch of vectors."""
    return torch.randn(BATCH, size)


def image(channels: int = 3, size: int = 16) -> Tensor:
    """A batch of square images."""
    return torch.randn(BATCH, channels, size, size)


def sequence(steps: int = 12, width: int = 16) -> Tensor:
    """A batch of sequences of vectors."""
    return torch.randn(BATCH, steps, width)


def tokens(steps: int = 12, vocabulary: int = 20) -> Tensor:
    """A batch of sequences of whole numbers."""
    return torch.randint(vocabulary, (BATCH, steps))
