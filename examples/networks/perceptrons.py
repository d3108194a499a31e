"""Perceptrons and other networks over vectors."""

from __future__ import annotations

import math

import torch
from catalogue import Built, network, tokens, vector
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin.nn import Scale, mlp

GROUP = "perceptrons"


@network(GROUP, "three linear layers with ReLU")
def mlp_relu() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    return net, (vector(),)


@network(GROUP, "batch normalisation before ReLU")
def mlp_batch_norm() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32, bias=False),
        nn.BatchNorm1d(32, affine=False),
        nn.ReLU(inplace=True),
        nn.Linear(32, 4),
    )
    return net, (vector(),)


@network(GROUP, "dropout and tanh")
def mlp_dropout() -> Built:
    net = nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(16, 32),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(32, 4),
    )
    return net, (vector(),)


@network(GROUP, "log-softmax at the end")
def mlp_log_softmax() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4), nn.LogSoftmax(dim=1))
    return net, (vector(),)


@network(GROUP, "softmax at the end")
def mlp_softmax() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4), nn.Softmax(dim=-1))
    return net, (vector(),)


@network(GROUP, "images flattened by the network, as for MNIST")
def mlp_of_images() -> Built:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return net, (torch.randn(5, 1, 8, 8),)


@network(GROUP, "the package's own perceptron, with its output scale")
def mlp_of_the_package() -> Built:
    return mlp(16, [32, 32], 4), (vector(),)


@network(GROUP, "a point estimate: each weight is decided", posterior="point")
def mlp_point_estimate() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4), Scale(0.5))
    return net, (vector(),)


@network(GROUP, "random effects correlate the weights of a unit", posterior="effects")
def mlp_random_effects() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return net, (vector(),)


@network(GROUP, "weights of three levels", posterior="low-bit")
def mlp_ternary() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return net, (vector(),)


@network(GROUP, "real weights in the first and the last layer", where=["2.weight", "4.weight"])
def mlp_real_ends() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    return net, (vector(),)


@network(GROUP, "a scale of its own for each unit", scale=lambda name, w: w.detach().abs().mean(1))
def mlp_scale_per_unit() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return net, (vector(),)


class ResidualPerceptron(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(3)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@network(GROUP, "skip connections around normalised layers")
def mlp_residual() -> Built:
    return ResidualPerceptron(), (vector(),)


class Highway(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.transform = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for transform, gate in zip(self.transform, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(transform(x)) + (1 - t) * x
        return self.out(x)


@network(GROUP, "highway layers")
def highway() -> Built:
    return Highway(), (vector(),)


@network(GROUP, "gated linear units")
def gated_linear_units() -> Built:
    net = nn.Sequential(nn.Linear(16, 64), nn.GLU(), nn.Linear(32, 32), nn.GLU(), nn.Linear(16, 4))
    return net, (vector(),)


class GatedGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 64, bias=False), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.inner(x).chunk(2, dim=-1)
        return self.outer(value * F.gelu(gate))


@network(GROUP, "a gate of GELU over the halves of a layer")
def gated_gelu() -> Built:
    return GatedGelu(), (vector(),)


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 96), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).view(x.size(0), 32, 3).max(dim=2).values
        return self.second(x)


@network(GROUP, "maxout units")
def maxout() -> Built:
    return Maxout(), (vector(),)


@network(GROUP, "no biases at all")
def mlp_no_bias() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 4, bias=False),
    )
    return net, (vector(),)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1)


@network(GROUP, "one number for each input, without an axis for it")
def regression_squeezed() -> Built:
    return Regression(), (vector(8),)


class MeanAndVariance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.SiLU())
        self.mean, self.variance = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), F.softplus(self.variance(h)) + 1e-3


@network(GROUP, "a tuple of mean and variance")
def regression_mean_and_variance() -> Built:
    return MeanAndVariance(), (vector(8),)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x = torch.tanh(self.fc2(x))
        return F.log_softmax(self.fc3(x), dim=1)


@network(GROUP, "written with torch.nn.functional")
def mlp_functional() -> Built:
    return Functional(), (vector(),)


class OwnMatrices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 32))
        self.b1 = nn.Parameter(torch.zeros(32))
        self.w2 = nn.Parameter(torch.randn(4, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x @ self.w1 + self.b1)
        return F.linear(x, self.w2)


@network(
    GROUP,
    "matrices of the module's own, x @ W and F.linear",
    where=["w1", "w2"],
    inputs={"w1": 0, "w2": 1},
)
def own_matrices() -> Built:
    return OwnMatrices(), (vector(),)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 4, 8))
        self.w2 = nn.Parameter(torch.randn(4, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bi,ihd->bhd", x, self.w1).relu()
        return torch.einsum("bhd,hdo->bo", x, self.w2)


@network(GROUP, "tensors of weights in einsum", where=["w1", "w2"], inputs={"w1": 0, "w2": (0, 1)})
def einsum_heads() -> Built:
    return Einsum(), (vector(),)


class FourierFeatures(nn.Module):
    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 16))
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x @ self.frequencies
        return self.body(torch.cat([angle.sin(), angle.cos()], dim=-1))


@network(GROUP, "sines and cosines of fixed random projections")
def fourier_features() -> Built:
    return FourierFeatures(), (torch.rand(5, 2),)


class Standardised(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(16))
        self.register_buffer("std", torch.rand(16) + 0.5)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(((x - self.mean) / self.std).clamp(-3.0, 3.0))


@network(GROUP, "inputs standardised by buffers, and clamped")
def standardised_inputs() -> Built:
    return Standardised(), (vector(),)


class SquaresAndRoots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x**2, (x.abs() + 1e-3).sqrt()], dim=1)
        h = self.first(x)
        h = h / (1 + h.abs())
        return self.second(h) / math.sqrt(2)


@network(GROUP, "powers, roots and quotients")
def squares_and_roots() -> Built:
    return SquaresAndRoots(), (vector(),)


class FactorisationMachine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factors = nn.Linear(16, 1), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        square_of_sum = self.factors(x).pow(2)
        sum_of_squares = F.linear(x.pow(2), self.factors.weight.pow(2))
        return self.linear(x) + 0.5 * (square_of_sum - sum_of_squares).sum(1, keepdim=True)


@network(GROUP, "pairwise products through factors, whose weights are squared")
def factorisation_machine() -> Built:
    return FactorisationMachine(), (vector(),)


class DeepAndCross(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.out = nn.Linear(width + 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for layer in self.cross:
            crossed = x * layer(crossed) + crossed
        return self.out(torch.cat((crossed, self.deep(x)), 1))


@network(GROUP, "cross layers beside a deep part")
def deep_and_cross() -> Built:
    return DeepAndCross(), (vector(),)


class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (weights.unsqueeze(-1) * outputs).sum(dim=1)


@network(GROUP, "experts weighed by a softmax")
def mixture_of_experts() -> Built:
    return MixtureOfExperts(), (vector(),)


class Additive(nn.Module):
    """A small network for each feature, all in one grouped convolution."""

    def __init__(self, features: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv1d(features, features * hidden, 1, groups=features)
        self.second = nn.Conv1d(features * hidden, features, 1, groups=features)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.second(self.first(x[..., None]).relu())
        return parts.sum(dim=(1, 2)) + self.bias


@network(GROUP, "an additive model: one network for each feature")
def neural_additive_model() -> Built:
    return Additive(), (vector(6),)


class RadialBasis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(24, 4))
        self.log_width = nn.Parameter(torch.zeros(24))
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.unsqueeze(1) - self.centres).square().sum(-1)
        return self.out(torch.exp(-distance * self.log_width.exp()))


@network(GROUP, "radial basis functions with real centres", where="out.weight")
def radial_basis() -> Built:
    return RadialBasis(), (vector(4),)


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.prototypes = nn.Parameter(torch.randn(4, 8))
        self.temperature = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.body(x), dim=-1)
        return self.temperature * x @ F.normalize(self.prototypes, dim=-1).t()


@network(GROUP, "cosines to learned prototypes", where=nn.Linear)
def cosine_classifier() -> Built:
    return Cosine(), (vector(),)


class RankOneEnsemble(nn.Module):
    """Members that share weights and differ by factors of inputs and outputs."""

    def __init__(self, members: int = 4) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(16, 32, bias=False), nn.Linear(32, 3)
        self.r, self.s = (
            nn.Parameter(torch.randn(members, 16)),
            nn.Parameter(torch.randn(members, 32)),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x[:, None, :] * self.r) * self.s
        return self.head(h.relu()).log_softmax(-1).mean(1)


@network(GROUP, "members with rank-one factors, averaged", where=nn.Linear)
def rank_one_ensemble() -> Built:
    return RankOneEnsemble(), (vector(),)


class Ordinal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        self.gaps = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        thresholds = F.softplus(self.gaps).cumsum(0)
        return torch.sigmoid(thresholds - self.body(x))


@network(GROUP, "ordered thresholds by a cumulated sum")
def ordinal_head() -> Built:
    return Ordinal(), (vector(),)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.where(h > 0.5, h, 0.1 * h)
        h = torch.where(torch.isnan(h), torch.zeros_like(h), h)
        return self.second(torch.maximum(h, -h) - torch.minimum(h, torch.tensor(0.25)))


@network(GROUP, "choices between values with torch.where, maximum and minimum")
def where_and_maximum() -> Built:
    return Gated(), (vector(),)


class FeatureTokens(nn.Module):
    def __init__(self, features: int = 6, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, width))
        self.bias = nn.Parameter(torch.randn(features, width))
        self.mix = nn.Linear(features, features)
        self.head = nn.Linear(features * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = x.unsqueeze(-1) * self.weight + self.bias
        t = t + self.mix(t.transpose(1, 2)).transpose(1, 2).relu()
        return self.head(t.flatten(1))


@network(GROUP, "each feature a vector of its own, then mixed", where=nn.Linear)
def feature_tokens() -> Built:
    return FeatureTokens(), (vector(6),)


class WideAndDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(20, 4) for _ in range(3))
        self.deep = nn.Sequential(nn.Linear(12 + 8, 32), nn.ReLU(), nn.Linear(32, 1))
        self.wide = nn.Linear(8, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        looked_up = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        deep = self.deep(torch.cat([numbers, *looked_up], dim=1))
        return torch.sigmoid(deep + self.wide(numbers))


@network(GROUP, "numbers and categories: wide and deep parts")
def wide_and_deep() -> Built:
    return WideAndDeep(), (vector(8), tokens(3))


class Snake(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(32))
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sign(x) * torch.log1p(x.abs())
        h = self.first(x)
        h = h + torch.sin(self.a * h) ** 2 / (self.a + 1e-6)
        return self.second(h)


@network(GROUP, "a periodic activation of one's own, on logarithms of the inputs")
def snake() -> Built:
    return Snake(), (vector(4),)
