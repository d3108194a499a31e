"""Networks for small colour images, in real weights: VGG-small and ResNet-20."""

from __future__ import annotations

from torch import nn

from bayesbin.nn.architectures import ACTIVATIONS, check_arguments
from bayesbin.nn.layers import Scale
from bayesbin.nn.residual import Residual

_STAGES = 3  # of each network; widths double, height and width of the images halve
_BLOCKS = 3  # of a stage of ResNet-20


class RealConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weight ``to_binary_`` and ``binarize_`` leave real by default."""

    stays_real = "an end of the network that was asked to stay real (real_ends)"


class RealLinear(nn.Linear):
    """``nn.Linear`` whose weight ``to_binary_`` and ``binarize_`` leave real by default."""

    stays_real = "an end of the network that was asked to stay real (real_ends)"


def vgg_small(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    num_outputs: int = 10,
    width: int = 128,
    activation: str = "relu",
    *,
    real_ends: bool = False,
    output_scale: bool = True,
) -> nn.Sequential:
    """VGG-small: three stages of two 3 x 3 convolutions, the second with MaxPool(2), then one linear layer.

    Each convolution is followed by BatchNorm and the activation, pooling comes before both. At width 128
    there are 4.66 million parameters.

    :param in_shape: (channels, height, width) of one input, (B, channels, height, width).
    :param num_outputs: (B, num_outputs) comes out. :param width: channels of the first stage; the second
        has twice, the third four times as many.
    :param activation: "relu", "tanh" or "sign".
    :param real_ends: whether ``to_binary_`` leaves the first and the last layer real, as published figures
        have it (with binary activations, too). Packed prediction takes networks without real ends only.
    :param output_scale: whether to end in a learned :class:`Scale`.
    :raises ValueError: for sizes below 1, images of which pooling leaves nothing, an unknown activation.

    Example::

        >>> from bayesbin.nn import binary_sites, to_binary_, vgg_small
        >>> sum(parameter.numel() for parameter in vgg_small().parameters())
        4660107
        >>> len(binary_sites(to_binary_(vgg_small(width=4))))
        7
        >>> len(binary_sites(to_binary_(vgg_small(width=4, real_ends=True))))
        5

    Source: Zhang, Yang, Ye and Hua 2018, arXiv 1807.10029 (LQ-Nets), after Simonyan and Zisserman 2015,
    arXiv 1409.1556.
    """
    _check(in_shape, num_outputs, width, activation)
    height, width_left = (size // 2**_STAGES for size in in_shape[1:])
    if min(height, width_left) < 1:
        raise ValueError(
            f"Nothing is left of an image {tuple(in_shape)} that is halved {_STAGES} times; use images of "
            f"at least {2**_STAGES} x {2**_STAGES}."
        )
    fan_in, layers = in_shape[0], []
    for stage in range(_STAGES):
        fan_out = width * 2**stage
        for pool in (False, True):
            layers.append(_convolution(fan_in, fan_out, real=real_ends and not layers))
            if pool:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(fan_out), ACTIVATIONS[activation]()]
            fan_in = fan_out
    layers += [
        nn.Flatten(),
        *_head(fan_in * height * width_left, num_outputs, real_ends, output_scale),
    ]
    return nn.Sequential(*layers)


def resnet20(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    num_outputs: int = 10,
    width: int = 16,
    activation: str = "relu",
    *,
    real_ends: bool = False,
    output_scale: bool = True,
) -> nn.Sequential:
    r"""ResNet-20: a 3 x 3 convolution, three stages of three residual blocks, mean pooling, a linear layer.

    A block is, with f the activation and C a 3 x 3 convolution followed by BatchNorm,

    .. math:: y = f(C_2 f(C_1 x) + \mathrm{shortcut}(x))

    and where the activation is "sign", which would leave of the sum its sign alone, a connection around
    each convolution:

    .. math:: h = C_1 \mathrm{sign}(x) + \mathrm{shortcut}(x), \qquad y = C_2 \mathrm{sign}(h) + h

    The shortcut is x itself, and where the second and the third stage begin a 1 x 1 convolution of
    every other pixel with BatchNorm, binary as the others: the form that packed prediction runs. At
    width 16 there are 0.27 million parameters.

    :param in_shape: (channels, height, width) of one input, (B, channels, height, width).
    :param num_outputs: (B, num_outputs) comes out. :param width: channels of the first stage; the second
        has twice, the third four times as many.
    :param activation: "relu", "tanh" or "sign".
    :param real_ends: whether ``to_binary_`` leaves the first and the last layer real, as published figures
        have it (with binary activations, too). Packed prediction takes networks without real ends only.
    :param output_scale: whether to end in a learned :class:`Scale`.
    :raises ValueError: for sizes below 1 or an unknown activation.

    Example::

        >>> from bayesbin.nn import binary_sites, resnet20, to_binary_
        >>> sum(parameter.numel() for parameter in resnet20().parameters())
        272475
        >>> len(binary_sites(to_binary_(resnet20(width=2))))  # 19 and two shortcuts, and the last
        22

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2, with their projections (B) as
    shortcuts; for signs: Liu et al. 2018, arXiv 1808.00278 (Bi-Real net).
    """
    _check(in_shape, num_outputs, width, activation)
    fan_in, height, width_left = width, *in_shape[1:]
    layers = [_convolution(in_shape[0], width, real=real_ends), nn.BatchNorm2d(width)]
    if activation != "sign":  # the first block begins with one
        layers.append(ACTIVATIONS[activation]())
    for stage in range(_STAGES):
        fan_out = width * 2**stage
        for block in range(_BLOCKS):
            halved = stage > 0 and block == 0
            layers += _block(fan_in, fan_out, 2 if halved else 1, activation)
            if halved:
                height, width_left = (height + 1) // 2, (width_left + 1) // 2
            fan_in = fan_out
    layers += [nn.AvgPool2d((height, width_left)), nn.Flatten()]
    return nn.Sequential(*layers, *_head(fan_in, num_outputs, real_ends, output_scale))


def _block(fan_in: int, fan_out: int, stride: int, activation: str) -> list[nn.Module]:
    first = [_convolution(fan_in, fan_out, stride), nn.BatchNorm2d(fan_out)]
    second = [_convolution(fan_out, fan_out), nn.BatchNorm2d(fan_out)]
    shortcut = None
    if stride > 1:
        # A 1 x 1 convolution with this stride, but in two layers: oneDNN's own writes past its buffer in
        # the backward pass of a few channels in the channels-last layout (its issue 6035).
        subsampled = nn.MaxPool2d(kernel_size=1, stride=stride)
        projection = nn.Conv2d(fan_in, fan_out, kernel_size=1, bias=False)
        shortcut = nn.Sequential(subsampled, projection, nn.BatchNorm2d(fan_out))
    make = ACTIVATIONS[activation]
    if activation == "sign":
        return [
            Residual(nn.Sequential(make(), *first), shortcut),
            Residual(nn.Sequential(make(), *second)),
        ]
    return [Residual(nn.Sequential(*first, make(), *second), shortcut), make()]


def _convolution(fan_in: int, fan_out: int, stride: int = 1, real: bool = False) -> nn.Conv2d:
    kind = RealConv2d if real else nn.Conv2d
    return kind(fan_in, fan_out, kernel_size=3, stride=stride, padding=1, bias=False)


def _head(fan_in: int, num_outputs: int, real: bool, scale: bool) -> list[nn.Module]:
    last = (RealLinear if real else nn.Linear)(fan_in, num_outputs)
    return [last, Scale()] if scale else [last]


def _check(in_shape: tuple[int, int, int], num_outputs: int, width: int, activation: str) -> None:
    if len(in_shape) != 3:
        raise ValueError(f"in_shape is (channels, height, width); got {tuple(in_shape)}.")
    sizes = [("Image sizes", in_shape), ("Outputs", [num_outputs]), ("Channels", [width])]
    check_arguments(sizes, activation)
