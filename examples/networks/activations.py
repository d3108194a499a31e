"""Activations between linear layers, those of torch and those people write."""

from __future__ import annotations

import torch
from catalogue import Built, image, network, vector
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = "activations"


def between(*activations: nn.Module) -> Built:
    """Linear layers with the given activations between them."""
    layers: list[nn.Module] = [nn.Linear(16, 24)]
    for activation in activations:
        layers += [activation, nn.Linear(24, 24)]
    return nn.Sequential(*layers, nn.Linear(24, 4)), (vector(),)


@network(GROUP, "GELU, exact and by tanh")
def gelu() -> Built:
    return between(nn.GELU(), nn.GELU(approximate="tanh"))


@network(GROUP, "SiLU and Mish")
def silu_mish() -> Built:
    return between(nn.SiLU(), nn.Mish())


@network(GROUP, "leaky ReLU with two slopes")
def leaky_relu() -> Built:
    return between(nn.LeakyReLU(), nn.LeakyReLU(0.3))


@network(GROUP, "PReLU with one slope and with a slope for each unit")
def prelu() -> Built:
    return between(nn.PReLU(), nn.PReLU(24))


@network(GROUP, "PReLU with a slope for each channel of an image")
def prelu_channels() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    return net, (image(size=8),)


@network(GROUP, "ELU, CELU and SELU")
def elu_celu_selu() -> Built:
    return between(nn.ELU(0.7), nn.CELU(1.3), nn.SELU())


@network(GROUP, "SELU with alpha dropout, a self-normalising network")
def self_normalising() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32),
        nn.SELU(),
        nn.AlphaDropout(0.1),
        nn.Linear(32, 32),
        nn.SELU(),
        nn.Linear(32, 4),
    )
    return net, (vector(),)


@network(GROUP, "Hardtanh with bounds, and ReLU6")
def hardtanh_relu6() -> Built:
    return between(nn.Hardtanh(-0.8, 0.9), nn.ReLU6(), nn.Hardtanh())


@network(GROUP, "Hardswish and Hardsigmoid")
def hardswish_hardsigmoid() -> Built:
    return between(nn.Hardswish(), nn.Hardsigmoid())


@network(GROUP, "sigmoid, tanh and log-sigmoid")
def sigmoid_tanh() -> Built:
    return between(nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid())


@network(GROUP, "Softplus with beta and threshold, and Softsign")
def softplus_softsign() -> Built:
    return between(nn.Softplus(), nn.Softplus(beta=2.0, threshold=1.0), nn.Softsign())


@network(GROUP, "shrinkage and thresholds")
def shrinkage() -> Built:
    return between(nn.Softshrink(0.2), nn.Hardshrink(0.1), nn.Tanhshrink(), nn.Threshold(0.1, -0.2))


@network(GROUP, "randomised leaky ReLU, fixed in evaluation")
def rrelu() -> Built:
    return between(nn.RReLU(0.1, 0.3))


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).clamp(min=-0.5)
        x = torch.clamp(self.second(x), 0, 1)
        x = F.relu(x).square()
        return self.third(x.clamp_max(0.9) - torch.exp(-x.abs()))


@network(GROUP, "clamps on one side and on both, squared ReLU, exponentials")
def clamps() -> Built:
    return Clamped(), (vector(),)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.relu_()
        h += 0.5
        h *= 2.0
        h[:, :4] = 0.0
        return self.second(h)


@network(GROUP, "values changed in place, a slice among them")
def in_place() -> Built:
    return InPlace(), (vector(),)


@network(GROUP, "local response normalisation")
def local_response() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.LocalResponseNorm(3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    return net, (image(size=8),)
