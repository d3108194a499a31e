"""Networks for images as their papers, or torchvision, write them, only smaller."""

from __future__ import annotations

import torch
from catalogue import Built, image, network
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = "vision"


@network(GROUP, "LeNet-5")
def lenet() -> Built:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )
    return net, (image(1),)


class TutorialNet(nn.Module):
    """The network of torch's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(12 * 2 * 2, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


@network(GROUP, "the network of torch's tutorial")
def tutorial_net() -> Built:
    return TutorialNet(), (image(),)


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for size in (8, 8, "M", 16, 16, "M"):
            if isinstance(size, str):
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                conv = nn.Conv2d(channels, size, kernel_size=3, padding=1)
                layers += [conv, nn.BatchNorm2d(size), nn.ReLU(inplace=True)]
                channels = size
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(64, 32), nn.ReLU(True), nn.Dropout(p=0.5), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


@network(GROUP, "VGG with batch normalisation, as torchvision writes it")
def vgg() -> Built:
    return VGG(), (image(),)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block: type, layers: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages = [
            self._make_layer(block, width * 2**i, count, stride=1 if i == 0 else 2)
            for i, count in enumerate(layers)
        ]
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.inplanes, 10)

    def _make_layer(self, block: type, planes: int, count: int, stride: int) -> nn.Sequential:
        downsample = None
        if stride != 1 or self.inplanes != planes * block.expansion:
            downsample = nn.Sequential(
                nn.Conv2d(self.inplanes, planes * block.expansion, 1, stride=stride, bias=False),
                nn.BatchNorm2d(planes * block.expansion),
            )
        blocks = [block(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes * block.expansion
        blocks += [block(self.inplanes, planes) for _ in range(count - 1)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layers(x))
        return self.fc(torch.flatten(x, 1))


@network(GROUP, "ResNet-18, as torchvision writes it")
def resnet18() -> Built:
    return ResNet(BasicBlock, (2, 2, 2, 2), width=4), (image(size=32),)


@network(GROUP, "a ResNet of bottlenecks, as torchvision writes it")
def resnet_bottleneck() -> Built:
    return ResNet(Bottleneck, (1, 1), width=4), (image(),)


@network(GROUP, "ResNeXt: grouped bottlenecks")
def resnext() -> Built:
    return ResNet(grouped(2), (1, 1), width=4), (image(),)


def grouped(groups: int) -> type:
    """A bottleneck with groups."""
    return type(
        "Grouped",
        (Bottleneck,),
        {"__init__": lambda self, *args: Bottleneck.__init__(self, *args, groups=groups)},
    )


class PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(0.3)
        self.equal = inputs == outputs
        self.shortcut = None if self.equal else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.equal:
            x = F.relu(self.bn1(x))
            out = x
        else:
            out = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(out)))))
        return torch.add(x if self.shortcut is None else self.shortcut(x), out)


@network(GROUP, "a wide ResNet, normalised before each convolution")
def wide_resnet() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False),
        PreActivation(8, 8, 1),
        PreActivation(8, 16, 2),
        PreActivation(16, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return net, (image(),)


class Dense(nn.Module):
    def __init__(self, inputs: int, growth: int = 4) -> None:
        super().__init__()
        self.norm, self.conv = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(F.relu(self.norm(torch.cat(features, 1))))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(Dense(8 + 4 * i) for i in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = F.relu(self.transition(torch.cat(features, 1)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


@network(GROUP, "a DenseNet, which concatenates all that came before")
def densenet() -> Built:
    return DenseNet(), (image(size=8),)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1 = nn.Conv2d(inputs, 4, 1)
        self.branch2 = nn.Sequential(
            nn.Conv2d(inputs, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            nn.Conv2d(inputs, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 5, padding=2)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), nn.Conv2d(inputs, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return F.relu(torch.cat(outputs, 1))


@network(GROUP, "branches of an Inception module")
def inception() -> Built:
    net = nn.Sequential(
        Inception(3), Inception(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    return net, (image(size=8),)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


@network(GROUP, "SqueezeNet")
def squeezenet() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        Fire(8, 4, 8),
        Fire(16, 4, 8),
        nn.Dropout(0.5),
        nn.Conv2d(16, 10, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(1),
    )
    return net, (image(),)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, scale: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), scale()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(scale)) * x


class InvertedResidual(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        expand: int,
        activation: type[nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
        ]
        layers += [gate] if gate is not None else []
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            InvertedResidual(8, 8, 1, 2),
            InvertedResidual(8, 12, 2, 3),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)
        return self.classifier(x)


@network(GROUP, "MobileNetV2: inverted residuals")
def mobilenet_v2() -> Built:
    return MobileNetV2(), (image(),)


@network(GROUP, "MobileNetV3: Hardswish, squeeze and excitation by Hardsigmoid")
def mobilenet_v3() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8, eps=0.001, momentum=0.01),
        nn.Hardswish(),
        InvertedResidual(8, 8, 1, 2, nn.Hardswish, SqueezeExcite(16, 4, nn.Hardsigmoid)),
        InvertedResidual(8, 12, 2, 2, nn.ReLU, SqueezeExcite(16, 4, nn.Hardsigmoid)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16),
        nn.Hardswish(inplace=True),
        nn.Linear(16, 10),
    )
    return net, (image(),)


@network(GROUP, "EfficientNet: SiLU, squeeze and excitation by a sigmoid")
def efficientnet() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(inplace=True),
        InvertedResidual(8, 8, 1, 2, nn.SiLU, SqueezeExcite(16, 2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    return net, (image(),)


class LinearGate(nn.Module):
    """Squeeze and excitation with linear layers and views."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, 4), nn.ReLU(inplace=True), nn.Linear(4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


@network(GROUP, "squeeze and excitation with linear layers")
def squeeze_and_excitation() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        LinearGate(8),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    return net, (image(size=8),)


class AttentionGates(nn.Module):
    """Gates over channels and over places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, highest = F.avg_pool2d(x, x.shape[2:]), F.max_pool2d(x, (x.size(2), x.size(3)))
        gate = torch.sigmoid(self.mlp(mean) + self.mlp(highest)).unsqueeze(2).unsqueeze(3)
        x = x * gate
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


@network(GROUP, "gates over channels and places, as in CBAM")
def channel_and_place_gates() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        AttentionGates(8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    return net, (image(size=8),)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.units = nn.Sequential(ShuffleUnit(12), ShuffleUnit(12))
        self.shuffle, self.fc = nn.ChannelShuffle(3), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.shuffle(self.units(self.conv1(x))).mean([2, 3]))


@network(GROUP, "ShuffleNet: channels split and shuffled")
def shufflenet() -> Built:
    return ShuffleNet(), (image(),)


class Ghost(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = (outputs + 1) // 2
        self.outputs = outputs
        self.primary = nn.Conv2d(inputs, half, 1)
        self.cheap = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x).relu()
        return torch.cat([x1, self.cheap(x1)], dim=1)[:, : self.outputs, :, :]


@network(GROUP, "GhostNet: cheap copies of channels, cut to size")
def ghostnet() -> Built:
    net = nn.Sequential(Ghost(3, 7), nn.ReLU(), Ghost(7, 9), nn.Flatten(), nn.Linear(9 * 64, 4))
    return net, (image(size=8),)


class RepVGG(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(channels)
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.rbr_1x1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))


@network(GROUP, "RepVGG: three normalised branches summed")
def repvgg() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        RepVGG(8),
        RepVGG(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    return net, (image(),)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = (
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
        )
        self.gamma = nn.Parameter(0.5 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        return residual + x.permute(0, 3, 1, 2)


@network(GROUP, "ConvNeXt")
def convnext() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        LayerNorm2d(8),
        ConvNeXtBlock(8),
        ConvNeXtBlock(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(8, 10),
    )
    return net, (image(),)


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for size in (inputs, outputs):
            layers += [
                nn.Conv2d(size, outputs, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    def __init__(self, up: str) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = DoubleConv(3, 4), DoubleConv(4, 8), DoubleConv(8, 8)
        self.up = up
        if up == "transposed":
            self.up1, self.up2 = (
                nn.ConvTranspose2d(8, 8, 2, stride=2),
                nn.ConvTranspose2d(4, 4, 2, stride=2),
            )
        else:
            self.up1 = nn.Upsample(scale_factor=2, mode=up)
            self.up2 = nn.Sequential(self.up1, nn.Conv2d(4, 4, 1))
        self.conv1, self.conv2 = DoubleConv(16, 4), DoubleConv(8, 4)
        self.outc = nn.Conv2d(4, 2, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        y = self.up1(x3)
        # Pads what the pooling cut off, as for images of odd sizes.
        dy, dx = x2.size(2) - y.size(2), x2.size(3) - y.size(3)
        y = F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        y = self.conv1(torch.cat([x2, y], dim=1))
        return self.outc(self.conv2(torch.cat([x1, self.up2(y)], dim=1)))


@network(GROUP, "a U-Net with transposed convolutions, and padding where pooling cut a row off")
def unet_transposed() -> Built:
    return UNet("transposed"), (torch.randn(5, 3, 14, 12),)


@network(GROUP, "a U-Net with nearest upsampling")
def unet_nearest() -> Built:
    return UNet("nearest"), (torch.randn(5, 3, 12, 12),)


class Interpolated(nn.Module):
    """Segmentation at a quarter of the size, interpolated to the size of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        out = F.interpolate(
            self.head(features), size=x.shape[-2:], mode="bilinear", align_corners=False
        )
        coarse = F.interpolate(features, scale_factor=1.5, mode="bilinear", align_corners=True)
        return {"out": out, "aux": coarse[:, 0]}


@network(GROUP, "segmentation by bilinear interpolation, two named outputs")
def segmentation_bilinear() -> Built:
    return Interpolated(), (image(size=12),)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Conv2d(4, 6, 3, 2, 1),
            nn.Conv2d(6, 8, 3, 2, 1),
        )
        self.laterals = nn.ModuleList(nn.Conv2d(size, 4, 1) for size in (4, 6, 8))
        self.smooth = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        c3 = F.relu(self.c3(c2))
        p3 = self.laterals[2](c3)
        p2 = self.laterals[1](c2) + F.interpolate(p3, scale_factor=2.0, mode="nearest")
        p1 = self.laterals[0](c1) + F.interpolate(p2, size=c1.shape[-2:], mode="nearest")
        return tuple(self.smooth(p) for p in (p1, p2, p3))


@network(GROUP, "a feature pyramid: three outputs of three sizes")
def feature_pyramid() -> Built:
    return Pyramid(), (image(),)


class NonLocal(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        self.out = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        theta = self.theta(x).view(b, c // 2, -1).permute(0, 2, 1)
        phi = self.phi(x).view(b, c // 2, -1)
        g = self.g(x).view(b, c // 2, -1).permute(0, 2, 1)
        y = torch.matmul(F.softmax(torch.matmul(theta, phi), dim=-1), g)
        return self.out(y.permute(0, 2, 1).contiguous().view(b, c // 2, h, w)) + x


@network(GROUP, "a non-local block: places of an image attend to each other")
def non_local() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        NonLocal(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return net, (image(size=8),)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 6),
        )
        self.decoder = nn.Sequential(
            nn.Linear(6, 128),
            nn.ReLU(),
            nn.Unflatten(1, (8, 4, 4)),
            nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@network(GROUP, "a convolutional autoencoder")
def autoencoder() -> Built:
    return Autoencoder(), (torch.rand(5, 1, 16, 16),)


class Capsules(nn.Module):
    """Capsules with one round of routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.weight = nn.Parameter(torch.randn(18, 3, 4, 6))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = (x**2).sum(-1, keepdim=True)
        return square / (1.0 + square) * x / torch.sqrt(square + 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(self.conv(x).flatten(1).view(x.size(0), 18, 4))
        votes = torch.einsum("bip,icpq->bicq", u, self.weight)
        v = self.squash(votes.mean(1))
        agreement = (votes * v.unsqueeze(1)).sum(-1).softmax(dim=2)
        return torch.norm(self.squash((agreement.unsqueeze(-1) * votes).sum(1)), dim=-1)


@network(
    GROUP,
    "capsules with routing",
    where=["conv.weight", "weight"],
    inputs={"weight": 2},
)
def capsules() -> Built:
    return Capsules(), (torch.randn(5, 1, 7, 7),)


class Points(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv1d(3, 16, 1),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 24, 1),
            nn.BatchNorm1d(24),
        )
        self.head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, points: Tensor) -> Tensor:
        x = self.local(points.transpose(2, 1))
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 24)
        return F.log_softmax(self.head(x), dim=1)


@network(GROUP, "clouds of points: shared layers and a maximum, as in PointNet")
def point_cloud() -> Built:
    return Points(), (torch.randn(5, 20, 3),)


@network(GROUP, "convolutions in place of pools and linear layers")
def all_convolutions() -> Built:
    net = nn.Sequential(
        nn.Dropout2d(0.2),
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LogSoftmax(-1),
    )
    return net, (image(),)


@network(GROUP, "a convolutional network of float64")
def conv_float64() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    return net.double(), (image(size=8).double(),)
