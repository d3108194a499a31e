"""Layers over images, signals and volumes: every kind of convolution, pooling and normalisation."""

from __future__ import annotations

import torch
from catalogue import Built, image, network
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = "convolutions"


def signal(channels: int = 4, length: int = 24) -> Tensor:
    return torch.randn(5, channels, length)


def pooled(*layers: nn.Module, channels: int = 8, size: int = 12) -> Built:
    """Layers over an image, averaged over all places, and a linear classifier."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
    return nn.Sequential(*layers, *head), (image(size=size),)


@network(GROUP, "grouped convolutions")
def conv_grouped() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4), nn.ReLU(), channels=16
    )


@network(GROUP, "depthwise separable convolutions")
def conv_depthwise() -> Built:
    return pooled(
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(16, 8, 1),
        nn.ReLU(),
    )


@network(GROUP, "dilated convolutions, of another rate on each axis")
def conv_dilated() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3, dilation=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, dilation=(1, 3), padding=(0, 2)),
        nn.ReLU(),
    )


@network(GROUP, "strides and kernels that differ between axes")
def conv_strided() -> Built:
    return pooled(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, stride=2, bias=False),
        nn.ReLU(),
    )


@network(GROUP, "padding by reflection")
def conv_reflect() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, padding_mode="reflect"),
    )


@network(GROUP, "padding by the edge and around the torus")
def conv_replicate_circular() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="replicate"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=(2, 1), padding_mode="circular"),
    )


@network(GROUP, "padding larger than the kernel")
def conv_wide_padding() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 1, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=5, stride=2), nn.ReLU()
    )


@network(GROUP, 'padding="same" with even kernels, and "valid"')
def conv_same() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 4, padding="same"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, padding="valid"),
    )


@network(GROUP, "padding modules: zeros on one side, reflection, constants")
def padding_modules() -> Built:
    return pooled(
        nn.ZeroPad2d((0, 1, 2, 0)),
        nn.Conv2d(3, 8, 3),
        nn.ReflectionPad2d(1),
        nn.Conv2d(8, 8, 3),
        nn.ConstantPad2d((1, 1, 0, 1), 0.5),
        nn.ReplicationPad2d((1, 0, 1, 0)),
        nn.Conv2d(8, 8, 3),
    )


@network(GROUP, "a convolution over signals")
def conv_1d() -> Built:
    net = nn.Sequential(
        nn.Conv1d(4, 8, 5, stride=2, padding=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, dilation=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return net, (signal(),)


@network(GROUP, "a convolution over volumes")
def conv_3d() -> Built:
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 8, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return net, (torch.randn(5, 1, 8, 8, 8),)


@network(GROUP, "transposed convolutions over signals")
def conv_transposed_1d() -> Built:
    net = nn.Sequential(
        nn.ConvTranspose1d(4, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose1d(8, 2, 3, stride=3, output_padding=1, dilation=2),
    )
    return net, (signal(length=6),)


@network(GROUP, "transposed convolutions over images, with groups and output padding")
def conv_transposed_2d() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 8 * 9),
        nn.ReLU(),
        nn.Unflatten(1, (8, 3, 3)),
        nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1, bias=False),
        nn.Tanh(),
    )
    return net, (torch.randn(5, 16),)


@network(GROUP, "a transposed convolution over volumes")
def conv_transposed_3d() -> Built:
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.ConvTranspose3d(4, 1, 3, stride=2))
    return net, (torch.randn(5, 2, 5, 5, 5),)


@network(GROUP, "max pooling with ceil_mode, padding and dilation")
def max_pools() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(2, stride=1, dilation=2),
        nn.MaxPool2d((2, 1)),
        size=13,
    )


@network(GROUP, "average pooling with ceil_mode, with and without the padding counted")
def average_pools() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(8, 8, 1),
        nn.AvgPool2d(2, stride=1, divisor_override=3),
        nn.AvgPool2d(2, ceil_mode=True),
        size=13,
    )


@network(GROUP, "adaptive pools to sizes that do not divide")
def adaptive_pools() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d((7, 5)),
        nn.Conv2d(8, 8, 2),
        nn.AdaptiveAvgPool2d((4, None)),
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    return net, (image(size=12),)


@network(GROUP, "power-average pooling")
def power_average_pool() -> Built:
    return pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LPPool2d(2, 2))


class GlobalPools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        highest, mean = x.amax(dim=(2, 3)), x.mean([2, 3])
        spread = x.flatten(2).std(dim=-1)
        return self.head(torch.cat([highest, mean, spread], dim=1))


@network(GROUP, "maximum, mean and standard deviation over all places")
def global_pools() -> Built:
    return GlobalPools(), (image(size=10),)


@network(GROUP, "group normalisation")
def group_norm() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(1, 8)
    )


@network(GROUP, "instance normalisation, with parameters, without, and with running statistics")
def instance_norm() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.ReLU(),
    )


@network(GROUP, "batch normalisation with and without parameters, before and after the activation")
def batch_norms() -> Built:
    return pooled(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.BatchNorm2d(8, affine=False, eps=1e-3),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )


@network(GROUP, "layer normalisation over whole images")
def layer_norm_images() -> Built:
    return pooled(
        nn.Conv2d(3, 8, 3),
        nn.LayerNorm([8, 10, 10]),
        nn.ReLU(),
        nn.LayerNorm(10, elementwise_affine=False),
    )


@network(GROUP, "root-mean-square normalisation")
def rms_norm() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32),
        nn.RMSNorm(32),
        nn.SiLU(),
        nn.Linear(32, 32),
        nn.RMSNorm(32, eps=1e-3),
        nn.Linear(32, 4),
    )
    return net, (torch.randn(5, 16),)


class CausalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.conv = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.pad(x, (self.padding, 0)))) + self.skip(x)


@network(GROUP, "a temporal network with causal padding")
def temporal_convolutions() -> Built:
    net = nn.Sequential(CausalBlock(4, 8, 1), CausalBlock(8, 8, 2), CausalBlock(8, 8, 4))
    return nn.Sequential(net, nn.Conv1d(8, 2, 1)), (signal(),)


class Gate(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.filter = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)
        self.dilation = dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f, g = self.filter(F.pad(x, (self.dilation, 0))).split(x.size(1), dim=1)
        z = self.out(torch.tanh(f) * torch.sigmoid(g))
        return x + z, z


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 8, 1)
        self.gates = nn.ModuleList(Gate(8, 2**i) for i in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), 0
        for gate in self.gates:
            x, skip = gate(x)
            skips = skips + skip
        return self.head(skips)


@network(GROUP, "gated dilated convolutions with summed skips, as in WaveNet")
def wavenet() -> Built:
    return WaveNet(), (signal(1),)


@network(GROUP, "sub-pixel upsampling and its inverse")
def pixel_shuffle() -> Built:
    net = nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 9, 3, padding=1),
        nn.PixelShuffle(3),
    )
    return net, (image(1, 8),)


class CoordConv(nn.Module):
    grid: Tensor

    def __init__(self, size: int = 10) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, size)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij")))
        self.conv, self.head = nn.Conv2d(5, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid.unsqueeze(0).expand(x.shape[0], -1, -1, -1)
        x = self.conv(torch.cat([x, grid], 1)).relu()
        return self.head(x.sum((-2, -1)) / 64.0)


@network(GROUP, "coordinates beside the channels")
def coordinate_channels() -> Built:
    return CoordConv(), (image(size=10),)


class Folding(nn.Module):
    """A convolution written as a product with patches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(27, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, kernel_size=3, stride=2, padding=1)
        return self.head(self.linear(patches.transpose(1, 2)).relu().mean(1))


@network(GROUP, "patches by unfold, and a linear layer over them")
def unfold_patches() -> Built:
    return Folding(), (image(size=8),)
