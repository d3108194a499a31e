"""Networks with binary activations: what the literature on binary networks builds."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Built, image, network, vector
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin.nn import Residual, Scale, Sign, conv_net, resnet20, vgg_small

GROUP = "binary activations"


@network(GROUP, "signs of signs of the inputs: every sum is a whole number")
def sign_perceptron() -> Built:
    net = nn.Sequential(
        Sign(),
        nn.Linear(100, 64, bias=False),
        Sign(),
        nn.Linear(64, 64, bias=False),
        Sign(),
        nn.Linear(64, 3, bias=False),
        Scale(),
    )
    return net, (vector(100),)


@network(GROUP, "a real first layer, then signs", where=["2.weight", "4.weight"])
def sign_after_real_layer() -> Built:
    net = nn.Sequential(nn.Linear(16, 64), Sign(), nn.Linear(64, 64), Sign(), nn.Linear(64, 4))
    return net, (vector(),)


@network(GROUP, "batch normalisation before each sign")
def sign_batch_norm() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 64, bias=False),
        nn.BatchNorm1d(64),
        Sign(),
        nn.Linear(64, 64, bias=False),
        nn.BatchNorm1d(64),
        Sign(),
        nn.Linear(64, 4, bias=False),
        nn.BatchNorm1d(4, affine=False),
        Scale(),
    )
    return net, (vector(),)


@network(GROUP, "signs between convolutions with padding and max pooling")
def sign_convolutions() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        Sign(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(16),
        Sign(),
        nn.Conv2d(16, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        Sign(),
        nn.Flatten(),
        nn.Linear(16 * 9, 10),
    )
    return net, (image(),)


@network(GROUP, "signs between grouped, dilated and depthwise convolutions")
def sign_grouped_convolutions() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        Sign(),
        nn.Conv2d(16, 16, 3, groups=4, padding=2, dilation=2),
        Sign(),
        nn.Conv2d(16, 16, 3, groups=16, padding=1, bias=False),
        Sign(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    return net, (image(size=8),)


class Binarised(nn.Sequential):
    """Normalisation, sign, convolution and activation: the order of XNOR-Net."""

    def __init__(self, inputs: int, outputs: int, **options: Any) -> None:
        super().__init__(
            nn.BatchNorm2d(inputs, eps=1e-4),
            Sign(),
            nn.Conv2d(inputs, outputs, 3, bias=True, **options),
            nn.ReLU(),
        )


@network(
    GROUP,
    "XNOR-Net: normalise, sign, convolve with a scale per filter",
    where=["3.2.weight", "5.2.weight"],
    scale=lambda name, w: w.detach().abs().mean((1, 2, 3)),
)
def xnor_net() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Binarised(8, 16, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        Binarised(16, 16),
        nn.AvgPool2d(6),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return net, (image(),)


class ScaledInput(nn.Module):
    """A binary convolution whose output is scaled by the mean size of its inputs, XNOR-Net's K."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.sign = Sign()

    def forward(self, x: Tensor) -> Tensor:
        size = F.avg_pool2d(x.abs().mean(dim=1, keepdim=True), 3, stride=1, padding=1)
        return self.conv(self.sign(x)) * size


@network(GROUP, "XNOR-Net's scales by the size of the inputs")
def xnor_net_input_scales() -> Built:
    net = nn.Sequential(
        ScaledInput(3, 8), nn.BatchNorm2d(8), ScaledInput(8, 8), nn.Flatten(), nn.Linear(512, 4)
    )
    return net, (image(size=8),)


class BiRealBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.binary_activation = Sign("polynomial")
        self.binary_conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(2, stride=stride),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.bn1(self.binary_conv(self.binary_activation(x)))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return out


@network(GROUP, "Bi-Real net", where=lambda name, owner: "binary_conv" in name)
def bireal_net() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        BiRealBlock(8, 8),
        BiRealBlock(8, 16, stride=2),
        BiRealBlock(16, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return net, (image(),)


class LearnableBias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.expand_as(x)


class ReActBlock(nn.Module):
    """Signs and slopes with learned shifts."""

    def __init__(self, inputs: int, stride: int = 1) -> None:
        super().__init__()
        self.move1, self.move2 = LearnableBias(inputs), LearnableBias(inputs)
        self.binary_3x3 = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.move3, self.prelu, self.move4 = (
            LearnableBias(inputs),
            nn.PReLU(inputs),
            LearnableBias(inputs),
        )
        self.binary_1, self.binary_2 = (nn.Conv2d(inputs, inputs, 1, bias=False) for _ in range(2))
        self.bn2, self.bn3 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(inputs)
        self.pool = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()
        self.sign = Sign("polynomial")

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.binary_3x3(self.sign(self.move1(x)))) + self.pool(x)
        out = self.move4(self.prelu(self.move3(out)))
        signs = self.sign(self.move2(out))
        first = self.bn2(self.binary_1(signs)) + out
        second = self.bn3(self.binary_2(signs)) + out
        return torch.cat([first, second], dim=1)


@network(GROUP, "ReActNet", where=lambda name, owner: "binary_" in name and name.endswith("weight"))
def react_net() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        ReActBlock(8),
        ReActBlock(16, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return net, (image(size=8),)


class OwnSign(nn.Module):
    """A sign as many write it, with torch.sign behind a trick for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        soft = torch.clamp(x, -1, 1)
        hard = torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))
        return (hard - soft).detach() + soft


@network(GROUP, "a sign of one's own by detach, between convolutions")
def own_sign_detach() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        OwnSign(),
        nn.Conv2d(8, 8, 3),
        OwnSign(),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    return net, (image(size=8),)


class TorchSign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


@network(GROUP, "torch.sign, which keeps exact zeros, after sums of signs")
def torch_sign_keeps_zeros() -> Built:
    net = nn.Sequential(
        TorchSign(),
        nn.Linear(32, 64, bias=False),
        TorchSign(),
        nn.Linear(64, 64, bias=False),
        TorchSign(),
        nn.Linear(64, 4),
    )
    return net, (vector(32),)


@network(GROUP, "the binary network of 2016: Hardtanh behind batch normalisation, then a sign")
def courbariaux_2016() -> Built:
    layers: list[nn.Module] = []
    for size in (64, 48, 48):
        layers += [nn.Linear(size, 48), nn.BatchNorm1d(48), nn.Hardtanh(), Sign()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(48, 10)), (torch.randn(5, 1, 8, 8),)


@network(GROUP, "skips around signs, in the package's Residual")
def residual_signs() -> Built:
    def body() -> nn.Sequential:
        return nn.Sequential(Sign(), nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32))

    net = nn.Sequential(nn.Linear(16, 32), Residual(body()), Residual(body()), nn.Linear(32, 4))
    return net, (vector(),)


@network(GROUP, "signs and a convolution over signals")
def sign_signals() -> Built:
    net = nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        Sign(),
        nn.Conv1d(16, 16, 3, bias=False),
        nn.MaxPool1d(2),
        Sign(),
        nn.Flatten(),
        nn.Linear(16 * 11, 4),
    )
    return net, (torch.randn(5, 4, 24),)


class SignAttention(nn.Module):
    """Attention between signs of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.sign, self.out = Sign(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.sign(self.q(x)), self.sign(self.k(x))
        weights = (q @ k.transpose(-2, -1) / 4.0).softmax(-1)
        return self.out((weights @ self.sign(self.v(x))).mean(1))


@network(GROUP, "attention between signs")
def sign_attention() -> Built:
    return SignAttention(), (torch.randn(5, 8, 16),)


@network(GROUP, "weights of four levels behind signs", posterior="low-bit")
def sign_low_bit() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), Sign(), nn.Linear(32, 4, bias=False))
    return net, (vector(),)


@network(GROUP, "a point estimate with binary activations", posterior="point")
def sign_point_estimate() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 64, bias=False), nn.BatchNorm1d(64), Sign(), nn.Linear(64, 4, bias=False)
    )
    return net, (vector(),)


@network(GROUP, "the package's convolutional network")
def package_conv_net() -> Built:
    return conv_net((1, 12, 12), (4, 8), (16,), 4, kernel_size=3, padding=1), (image(1, 12),)


@network(GROUP, "the package's VGG-small with signs")
def package_vgg_small() -> Built:
    return vgg_small((3, 16, 16), 10, width=4, activation="sign"), (image(),)


@network(GROUP, "the package's ResNet-20")
def package_resnet20() -> Built:
    return resnet20((3, 16, 16), 10, width=4), (image(),)


@network(GROUP, "signs in float64")
def sign_float64() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64),
        Sign(),
        nn.Linear(64, 32, bias=False),
        Sign(),
        nn.Linear(32, 4),
    )
    return net.double(), (vector().double(),)
