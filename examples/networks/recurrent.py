"""Recurrent networks: torch's modules, cells in loops, tokens."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Built, network, sequence, tokens
from torch import Tensor, nn

GROUP = "recurrent"


class Last(nn.Module):
    """A recurrent module and a linear layer on its last output."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(16, 12, batch_first=True, **options)
        width = options.get("proj_size", 0) or 12
        self.head = nn.Linear(width * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.head(outputs[:, -1, :])


@network(GROUP, "LSTM, its last output")
def lstm() -> Built:
    return Last(nn.LSTM), (sequence(),)


@network(GROUP, "GRU")
def gru() -> Built:
    return Last(nn.GRU), (sequence(),)


@network(GROUP, "a plain recurrent network with tanh")
def rnn_tanh() -> Built:
    return Last(nn.RNN), (sequence(),)


@network(GROUP, "a plain recurrent network with ReLU and no biases")
def rnn_relu() -> Built:
    return Last(nn.RNN, nonlinearity="relu", bias=False), (sequence(),)


@network(GROUP, "two layers of LSTM with dropout")
def lstm_two_layers() -> Built:
    return Last(nn.LSTM, num_layers=2, dropout=0.3), (sequence(),)


@network(GROUP, "a bidirectional LSTM")
def lstm_bidirectional() -> Built:
    return Last(nn.LSTM, bidirectional=True), (sequence(),)


@network(GROUP, "two bidirectional layers of GRU")
def gru_bidirectional_two_layers() -> Built:
    return Last(nn.GRU, num_layers=2, bidirectional=True), (sequence(6),)


@network(GROUP, "an LSTM with projections")
def lstm_projected() -> Built:
    return Last(nn.LSTM, proj_size=6), (sequence(),)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, (h, c) = self.rnn(x.permute(1, 0, 2))
        return self.head(h[-1] + c.squeeze(0)) + self.head(outputs).mean(dim=0)


@network(GROUP, "an LSTM with the time on the first axis, its last states")
def lstm_time_first() -> Built:
    return TimeFirst(), (sequence(),)


class HiddenStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(16, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(2, x.size(0), 12)
        _, hidden = self.rnn(x, start)
        return self.head(torch.cat((hidden[-2], hidden[-1]), dim=1))


@network(GROUP, "both last states of a bidirectional GRU, from zeros made in forward")
def gru_hidden_states() -> Built:
    return HiddenStates(), (sequence(),)


class LearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 12))
        self.rnn, self.head = nn.RNN(16, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(-1, x.size(0), -1).contiguous()
        return self.head(self.rnn(x, start)[0])


@network(GROUP, "a learned first state, an output for each step", where=[nn.RNN, nn.Linear])
def rnn_learned_start() -> Built:
    return LearnedStart(), (sequence(),)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(x))
        return torch.log_softmax(self.head(hidden[-1]), dim=-1)


@network(GROUP, "words through an embedding and an LSTM")
def lstm_words() -> Built:
    return Words(), (tokens(),)


@network(GROUP, "words whose embedding is binary, too", where=["embedding", "lstm", "head"])
def lstm_binary_embedding() -> Built:
    return Words(), (tokens(),)


class LSTMSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 12)
        c = torch.zeros_like(h)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


@network(GROUP, "LSTMCell in a loop")
def lstm_cell() -> Built:
    return LSTMSteps(), (sequence(6),)


class GRUSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(self.head(state))
        return torch.stack(outputs, dim=1)


@network(GROUP, "GRUCell in a loop, an output for each step")
def gru_cell() -> Built:
    return GRUSteps(), (sequence(5),)


class RNNSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(16, 12, nonlinearity="relu"), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 12, dtype=x.dtype)
        for t in reversed(range(x.size(1))):
            h = self.cell(x[:, t], h)
        return self.head(h)


@network(GROUP, "RNNCell in a loop that runs backwards")
def rnn_cell() -> Built:
    return RNNSteps(), (sequence(5),)


class OwnGate(nn.Module):
    """A minimal gated unit, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h, self.h2h = nn.Linear(16, 24), nn.Linear(12, 12, bias=False)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        forget, candidate = self.x2h(x).chunk(2, -1)
        h = torch.zeros(x.size(0), 12).to(x)
        for f, c in zip(forget.unbind(1), candidate.unbind(1), strict=True):
            gate = torch.sigmoid(f + self.h2h(h))
            h = torch.lerp(h, torch.tanh(self.norm(c)), gate)
        return self.head(h)


@network(GROUP, "a gated unit of one's own, with layer normalisation")
def gated_unit() -> Built:
    return OwnGate(), (sequence(6),)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 8), nn.Embedding(15, 8)
        self.encoder = nn.GRU(8, 12, batch_first=True)
        self.decoder = nn.GRU(8, 12, batch_first=True)
        self.out = nn.Linear(12, 15)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.source(source))
        return self.out(self.decoder(self.target(target), state)[0])


@network(GROUP, "an encoder and a decoder over two kinds of tokens")
def sequence_to_sequence() -> Built:
    return Translator(), (tokens(7), tokens(5, 15))


class ConvolutionsThenGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(16, 12, 3, padding=1)
        self.gru = nn.GRU(12, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.gru(h)[0].max(dim=1)[0])


@network(GROUP, "a convolution, a GRU and the maximum over time")
def conv_gru() -> Built:
    return ConvolutionsThenGRU(), (sequence(),)


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8)
        )
        self.rnn, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        frames = self.frame(x.flatten(0, 1)).view(b, t, -1)
        return self.head(self.rnn(frames)[0][:, -1])


@network(GROUP, "videos: frames join the batch, then an LSTM over time")
def conv_lstm_frames() -> Built:
    return Frames(), (torch.randn(5, 4, 1, 8, 8),)


class LinearRecurrence(nn.Module):
    """A diagonal state space, x' = a x + u, in closed form by a product with powers of a."""

    lag: Tensor
    past: Tensor

    def __init__(self, steps: int = 10) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(12))
        self.inner, self.outer = nn.Linear(16, 12), nn.Linear(12, 2)
        place = torch.arange(steps)
        self.register_buffer("lag", (place[:, None] - place[None, :]).clamp(min=0).float())
        self.register_buffer("past", (place[:, None] >= place[None, :]).float())

    def forward(self, x: Tensor) -> Tensor:
        powers = torch.exp(-self.decay[:, None, None] * self.lag) * self.past
        return self.outer(torch.einsum("dts,bsd->btd", powers, self.inner(x)))


@network(GROUP, "a diagonal linear recurrence as one product", where=nn.Linear)
def linear_recurrence() -> Built:
    return LinearRecurrence(), (sequence(10),)
