"""Networks with posteriors, small and of every kind, for the tests of model files."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayesbin import BinaryPosterior
from bayesbin.distributions import Support
from bayesbin.nn import (
    Residual,
    Scale,
    Sign,
    Statistics,
    binary_sites,
    conv_net,
    mlp,
    recalibrate,
    to_binary_,
)
from bayesbin.posterior import RealPosterior

DRAWS, SEED = 9, 3  # more draws than are added up at once where weights are correlated


def convolutional() -> nn.Module:
    layers = [
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.Hardtanh(-0.5, 2.0),
        nn.AvgPool2d(2, stride=1, padding=1), nn.Conv2d(5, 4, 3, padding="same"), nn.Tanh(),
        nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(4 * 5 * 5, 3), Scale(0.7),
    ]  # fmt: skip
    return nn.Sequential(*layers)


def residual() -> nn.Module:
    block = nn.Sequential(Sign(), nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6))
    shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 6, 1))
    inner = Residual(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()))
    layers = [
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), Residual(block, shortcut), nn.Flatten(),
        nn.Linear(6 * 3 * 3, 8), inner, nn.Linear(8, 3), Scale(0.2),
    ]  # fmt: skip
    return nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: mlp(37, [70, 33], 3), (37,)),
    "whole bytes": (lambda: mlp(24, [64, 40], 3), (24,)),
    "tanh": (lambda: mlp(9, [16], 3, activation="tanh", normalize=False), (9,)),
    "sign": (lambda: mlp(37, [70, 65], 3, activation="sign"), (37,)),
    "convolutional": (convolutional, (2, 10, 10)),
    "conv, signs": (
        lambda: conv_net((1, 14, 14), (4, 5), (6,), 3, kernel_size=3, activation="sign"),
        (1, 14, 14),
    ),
    "residual": (residual, (1, 6, 6)),
}


def example(name: str) -> tuple[nn.Module, BinaryPosterior, Tensor]:
    """A binary network whose normalisation has something to do, a posterior, and some inputs."""
    build, shape = NETWORKS[name]
    net = to_binary_(build()).float().eval()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.3, 1.5)
            module.weight.data[0] = -0.7
    return net, posterior_of(net), torch.randn(11, *shape).float()


def posterior_of(net: nn.Module) -> BinaryPosterior:
    return BinaryPosterior(
        {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )


def correlated(posterior: BinaryPosterior) -> BinaryPosterior:
    """The same, with an effect on each unit of the first site."""
    site, *_ = posterior
    units = posterior[site].natural.shape[0]
    shape = (units, *(1,) * (posterior[site].natural.dim() - 1))
    effect = RealPosterior(torch.zeros(shape), torch.full(shape, 1.5), Support("real"))
    signs = {name: distribution.natural for name, distribution in posterior.items()}
    return BinaryPosterior(signs, {"effect": effect}, {site: ["effect"]})


def statistics_of(net: nn.Module, posterior: BinaryPosterior, x: Tensor) -> Statistics:
    return recalibrate(net, posterior, torch.cat([x, 2.0 * x + 0.1]), DRAWS, SEED)
