"""Networks of every kind of torch module with weights, and of kinds that users write, by name.

Each takes inputs (B, 4, 8) and puts out (B, 3). ``options`` are arguments of ``to_binary_`` other than the
defaults.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Cells(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    def __init__(self, width: int = 8, **options: Any) -> None:
        super().__init__()
        self.width = width
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        other = x[..., : self.width]
        return self.head(self.attention(x, other, other)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self, layers: int, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(x, x).mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Bilinear(8, 8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.both(x[:, 0], x[:, 1]))


class AbsoluteConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


class StandardisedConv(nn.Conv2d):
    """Its map is neither linear in the input nor in the weight."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input + 1.0, weight - weight.mean(), bias)


class PlainSubclass(nn.Linear):
    """A class of its own with torch's forward."""


class DoubledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2.0 * self.weight, self.bias)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(8, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(1) @ self.W)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(8, 8), torch.randn(3, 8)])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.mean(1), self.matrices[0]).tanh(), self.matrices[1])


class Pyro(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), PyroModule[nn.Linear](6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.mean(1)).tanh())


class Tokens(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.table(tokens(x))
        return self.head(found.mean(1) if found.dim() == 3 else found)


class Tied(nn.Module):
    """An embedding that is the output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(tokens(x)).mean(1))[:, :3]


class Remembering(nn.Module):
    """Keeps tensors of a call in every way a module can: attributes, lists, dictionaries, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)
        self.last: Any = None
        self.seen: list[Any] = []
        self.by_name: dict[str, Any] = {"nested": []}
        self.recent: deque[Any] = deque(maxlen=2)
        self.pair = (torch.zeros(1), 0)
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.mean(1))
        self.last, self.pair, self.used = hidden, (hidden, 1), self.first.weight
        self.seen.append(hidden)
        self.by_name["hidden"] = hidden
        self.by_name["nested"].append(hidden)
        self.recent.append(hidden)
        if self.training:
            self.running = 0.9 * self.running + 0.1 * hidden.mean(0)
        return self.second(hidden.tanh())


def tokens(x: Tensor) -> Tensor:
    return (5.0 * x[..., 0].abs()).long().clamp(0, 9)


def image(*layers: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 2)), *layers, nn.Flatten(), nn.Linear(features, 3))


def shared_twice() -> nn.Module:
    shared = nn.Linear(8, 8)
    head = [nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), shared, nn.ReLU(), shared, *head)


def in_the_middle(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), layer, nn.Linear(6, 3))


def pruned() -> nn.Module:
    layer = nn.Linear(8, 6)
    prune.random_unstructured(layer, "weight", amount=0.5)
    return in_the_middle(layer)


def tied_linears() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[4].weight = net[2].weight
    return nn.Sequential(*net, nn.Linear(8, 3))


@dataclass(frozen=True)
class Case:
    """How to build a network, and what ``to_binary_`` is told of it."""

    build: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    pickles: bool = True  # torch itself refuses to pickle its parametrizations


TABLE: dict[str, Case] = {
    "linear, batch norm": Case(lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))),
    "conv1d, reflected": Case(lambda: nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(48, 3))),
    "conv2d, grouped": Case(lambda: image(nn.Conv2d(2, 6, 2, groups=2), features=42)),
    "conv2d, circular": Case(lambda: image(
        nn.Conv2d(2, 6, 2, padding=1, padding_mode="circular", stride=2), features=60)),
    "conv3d": Case(lambda: nn.Sequential(
        nn.Unflatten(2, (2, 2, 2)), nn.Conv3d(4, 6, 2), nn.Flatten(), nn.Linear(6, 3))),
    "conv transpose 1d, grouped": Case(lambda: nn.Sequential(
        nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(102, 3))),
    "conv transpose 2d": Case(lambda: image(nn.ConvTranspose2d(2, 6, 2), features=162)),
    "conv transpose 3d": Case(lambda: nn.Sequential(
        nn.Unflatten(2, (2, 2, 2)), nn.ConvTranspose3d(4, 6, 2), nn.Flatten(), nn.Linear(162, 3))),
    "bilinear": Case(TwoInputs),
    "lstm, two layers": Case(lambda: Recurrent(nn.LSTM(8, 8, 2, batch_first=True))),
    "gru, bidirectional": Case(lambda: Recurrent(nn.GRU(8, 8, batch_first=True, bidirectional=True))),
    "rnn, no bias": Case(lambda: Recurrent(nn.RNN(8, 8, batch_first=True, bias=False))),
    "lstm, input weights alone": Case(
        lambda: Recurrent(nn.LSTM(8, 8, batch_first=True)), {"where": ["rnn.weight_ih_l0"]}),
    "lstm cell": Case(lambda: Cells(nn.LSTMCell(8, 8))),
    "gru cell": Case(lambda: Cells(nn.GRUCell(8, 8))),
    "rnn cell": Case(lambda: Cells(nn.RNNCell(8, 8))),
    "attention": Case(Attention),
    "attention, other keys": Case(lambda: Attention(6, kdim=6, vdim=6)),
    "attention, bias keys": Case(lambda: Attention(add_bias_kv=True, add_zero_attn=True)),
    "transformer encoder": Case(lambda: Encoder(1)),
    "transformer encoder, two layers": Case(lambda: Encoder(2, norm_first=True)),
    "transformer decoder": Case(Decoder),
    "subclass of conv2d": Case(lambda: image(AbsoluteConv(2, 6, 2), features=42)),
    "subclass with its own convolution": Case(
        lambda: image(StandardisedConv(2, 6, 2), features=42)),
    "subclass of linear": Case(lambda: in_the_middle(DoubledLinear(8, 6))),
    "subclass with torch's forward": Case(lambda: in_the_middle(PlainSubclass(8, 6))),
    "weights and biases": Case(
        lambda: in_the_middle(nn.Linear(8, 6)), {"where": lambda name, owner: True}),
    "one module twice": Case(shared_twice),
    "tied linear layers": Case(tied_linears),
    "tied embedding": Case(Tied),
    "embedding, padding": Case(
        lambda: Tokens(nn.Embedding(10, 8, padding_idx=0)), {"where": [nn.Embedding, nn.Linear]}),
    "embedding, largest norm": Case(
        lambda: Tokens(nn.Embedding(10, 8, max_norm=1.0)), {"where": ["table", "head"]}),
    "embedding bag": Case(
        lambda: Tokens(nn.EmbeddingBag(10, 8, mode="sum")), {"where": nn.Module}),
    "bare parameter": Case(Bare, {"where": ["W", "head.weight"], "inputs": {"W": 0}}),
    "parameter list": Case(Listed, {"where": ["matrices"], "inputs": {
        "matrices.0": 1, "matrices.1": 1}}),
    "pyro modules": Case(Pyro),
    "pruned": Case(pruned, {"where": ["1", "2.weight_orig", "3"]}),
    "weight norm": Case(
        lambda: in_the_middle(parametrizations.weight_norm(nn.Linear(8, 6))),
        {"where": ["1", "2.parametrizations.weight.original1", "3"], "scale": 0.25}, pickles=False),
    "spectral norm, by a hook": Case(
        lambda: in_the_middle(nn.utils.spectral_norm(nn.Linear(8, 6))),
        {"where": ["1", "2.weight_orig", "3"]}),
    "a scale per output": Case(
        lambda: in_the_middle(nn.Linear(8, 6)), {"where": "2", "scale": torch.linspace(0.1, 0.7, 6)}),
    "a scale that rounds": Case(lambda: in_the_middle(nn.Linear(8, 6)), {"scale": 0.3}),
    "remembers its calls": Case(Remembering),
}  # fmt: skip
