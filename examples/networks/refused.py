"""Networks that cannot become a program: they must be refused by name and predicted in torch."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Built, network, sequence, tokens, vector
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = "refused"


class Body(nn.Module):
    """Two linear layers, for something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)


class BranchOnValue(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.sum() > 0:
            h = torch.relu(h)
        return self.second(h)


@network(GROUP, "a branch on a sum of values", expected="refused")
def branch_on_value() -> Built:
    return BranchOnValue(), (vector(),)


class CentredOverBatch(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.relu(h - h.mean(0)))


@network(GROUP, "values centred over the batch", expected="refused")
def centred_over_batch() -> Built:
    return CentredOverBatch(), (vector(),)


@network(GROUP, "batch normalisation that keeps no statistics", expected="refused")
def batch_norm_without_statistics() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32),
        nn.BatchNorm1d(32, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    return net, (vector(),)


class SoftmaxOverBatch(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).softmax(dim=0)


@network(GROUP, "softmax over the batch by mistake", expected="refused")
def softmax_over_batch() -> Built:
    return SoftmaxOverBatch(), (vector(),)


class SumOverBatch(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.relu(self.first(x)))
        return h / (1 + h.abs().max())


@network(GROUP, "outputs scaled by the largest of the batch", expected="refused")
def scaled_by_batch() -> Built:
    return SumOverBatch(), (vector(),)


class BatchSize(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) / x.shape[0]


@network(GROUP, "outputs divided by the size of the batch", expected="refused")
def divided_by_batch_size() -> Built:
    return BatchSize(), (vector(),)


class LengthOfBatch(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) / len(x)


@network(GROUP, "outputs divided by len(x), which torch takes for a constant", expected="refused")
def divided_by_length() -> Built:
    return LengthOfBatch(), (vector(),)


class Neighbours(Body):
    def forward(self, x: Tensor) -> Tensor:
        similarity = (x @ x.t()).softmax(-1)
        return self.second(torch.relu(self.first(similarity @ x)))


@network(GROUP, "attention between the data of a batch", expected="refused")
def attention_over_batch() -> Built:
    return Neighbours(), (vector(),)


class Shifted(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.roll(x, 1, dims=0))))


@network(GROUP, "data moved along the batch", expected="refused")
def rolled_batch() -> Built:
    return Shifted(), (vector(),)


@network(GROUP, "an LSTM over the first axis, which is the batch", expected="refused")
def time_on_the_first_axis() -> Built:
    return _TimeFirst(), (torch.randn(5, 12, 16),)


class _TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Noisy(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.relu(h + 0.1 * torch.randn_like(h)))


@network(GROUP, "random numbers in forward", expected="refused")
def noise_in_forward() -> Built:
    return Noisy(), (vector(),)


class AlwaysDropout(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.dropout(torch.relu(self.first(x)), 0.5, training=True))


@network(GROUP, "dropout that stays on in evaluation", expected="refused")
def dropout_always() -> Built:
    return AlwaysDropout(), (vector(),)


class PositiveOnly(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.relu(self.first(x)))
        return h[h > 0]


@network(GROUP, "a shape that depends on values", expected="refused")
def shape_by_values() -> Built:
    return PositiveOnly(), (vector(),)


class TopTwo(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        values, places = h.topk(4, dim=-1)
        return self.second(torch.zeros_like(h).scatter(-1, places, values.softmax(-1)))


@network(GROUP, "the largest units alone, by topk", expected="refused")
def top_k() -> Built:
    return TopTwo(), (vector(),)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).sort(dim=1).values.mean(1))


@network(GROUP, "elements in sorted order", expected="refused")
def sorted_elements() -> Built:
    return Sorted(), (sequence(9, 4),)


class LoopOverValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tensor([[max(float(v), 0.0) for v in row] for row in x], dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class PythonLoop(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(LoopOverValues.apply(self.first(x)))


@network(GROUP, "an autograd function with a loop over values in Python", expected="refused")
def loop_over_values() -> Built:
    return PythonLoop(), (vector(),)


class ThroughNumpy(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).detach().numpy()
        return self.second(torch.from_numpy(h.clip(0.0, 1.0)))


@network(GROUP, "a step in numpy", expected="refused")
def through_numpy() -> Built:
    return ThroughNumpy(), (vector(),)


class Halting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            x = torch.tanh(self.cell(x))
            if float(x.abs().mean()) < 0.1:
                break
        return self.head(x)


@network(GROUP, "a loop that ends by a value", expected="refused")
def halting_loop() -> Built:
    return Halting(), (vector(),)


class Counting(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(torch.relu(self.first(x)) / self.calls)


@network(GROUP, "a buffer that each call changes", expected="refused")
def stateful_buffer() -> Built:
    return Counting(), (vector(),)


class UnannouncedMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x), mask=self.mask))


@network(GROUP, "nn.TransformerEncoder that looks whether its mask is causal", expected="refused")
def unannounced_causal_mask() -> Built:
    return UnannouncedMask(), (tokens(),)
