"""Networks of the usual shapes, in real weights: ``to_binary_`` makes them binary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from bayesbin.core.checks import whole_number, whole_numbers
from bayesbin.nn.activations import Sign
from bayesbin.nn.layers import Scale

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sign": Sign}
_POOL = 2  # the factor by which a pooling layer shrinks height and width


def mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: str = "relu",
    normalize: bool = True,
    dropout: float = 0.0,
    output_scale: bool = True,
) -> nn.Sequential:
    """A multilayer perceptron: [linear, BatchNorm, activation, dropout] per hidden layer, linear, scale.

    Linear layers before a normalisation have no bias; the last one has. The last module is a learned
    :class:`Scale`, without which a binary network cannot set the size of its logits.

    :param num_inputs: features of one input, (B, num_inputs).
    :param hidden: widths of the hidden layers. :param num_outputs: (B, num_outputs) comes out.
    :param activation: "relu", "tanh" or "sign". :param normalize: whether to normalise by batch.
    :param dropout: probability of dropping an activation while training.
    :param output_scale: whether to end in a learned scale.
    :raises ValueError: for widths below 1, an unknown activation, or a dropout outside [0, 1).

    Example::

        >>> from bayesbin.nn import binary_sites, mlp, to_binary_
        >>> list(binary_sites(to_binary_(mlp(4, [8], 3))))
        ['0.weight', '3.weight']
    """
    none = isinstance(hidden, (list, tuple)) and not hidden
    widths = () if none else whole_numbers("the layer sizes", hidden)
    sizes = list(whole_numbers("the layer sizes", [num_inputs, *widths, num_outputs]))
    check_arguments([], activation, dropout)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers.append(nn.Linear(fan_in, fan_out, bias=not normalize))
        if normalize:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    if output_scale:
        layers.append(Scale())
    return nn.Sequential(*layers)


def conv_net(
    image: tuple[int, int, int],
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (512,),
    num_outputs: int = 10,
    *,
    kernel_size: int = 5,
    padding: int = 0,
    activation: str = "relu",
    dropout: float = 0.0,
    output_scale: bool = True,
) -> nn.Sequential:
    """A convolutional network: [convolution, BatchNorm, MaxPool(2), activation] per stage, then an MLP.

    The default is the 32C5-BN-MP-64C5-BN-MP-512-10 of the literature on binary weights.

    :param image: (channels, height, width) of one input, (B, channels, height, width).
    :param channels: output channels of the stages. :param hidden: widths of the layers that follow.
    :param num_outputs: (B, num_outputs) comes out.
    :param kernel_size: of the convolutions, odd or even. :param padding: zeros added on each side.
    :param activation: "relu", "tanh" or "sign". :param dropout: of the hidden layers, while training.
    :param output_scale: whether to end in a learned scale.
    :raises ValueError: as :func:`mlp`; for a kernel or a pooling that nothing is left of the image for.

    Example::

        >>> from bayesbin.nn import binary_sites, conv_net, to_binary_
        >>> net = to_binary_(conv_net((1, 28, 28)))
        >>> [tuple(site.shape) for site in binary_sites(net).values()]
        [(32, 1, 5, 5), (64, 32, 5, 5), (512, 1024), (10, 512)]

    Source: Shayer, Levi and Fetaya 2018, arXiv 1710.07739; BatchNorm also after the hidden layer.
    """
    if len(image) != 3:
        raise ValueError(f"image is (channels, height, width); got {tuple(image)}.")
    kernel_size = whole_number("kernel_size", kernel_size, at_least=1)
    padding = whole_number("padding", padding)
    channels = [whole_number("each of the channels", size, at_least=1) for size in channels]
    check_arguments([], activation, dropout)
    fan_in, *extent = whole_numbers("the image sizes", image)
    layers: list[nn.Module] = []
    for fan_out in channels:
        convolution = nn.Conv2d(fan_in, fan_out, kernel_size, padding=padding, bias=False)
        norm, pool = nn.BatchNorm2d(fan_out), nn.MaxPool2d(_POOL)
        # Pooling before the monotone activation: the same result, and less to compute.
        layers += [convolution, norm, pool, ACTIVATIONS[activation]()]
        extent = [(size + 2 * padding - kernel_size + 1) // _POOL for size in extent]
        if min(extent) < 1:
            raise ValueError(
                f"Nothing is left of an image {tuple(image)} after {len(channels)} stages with kernels "
                f"of {kernel_size} and padding {padding}; use fewer stages, smaller kernels or padding."
            )
        fan_in = fan_out
    head = mlp(
        fan_in * extent[0] * extent[1], hidden, num_outputs,
        activation=activation, dropout=dropout, output_scale=output_scale,
    )  # fmt: skip
    return nn.Sequential(*layers, nn.Flatten(), *head)


def check_arguments(
    sizes: Sequence[tuple[str, Sequence[int]]], activation: str, dropout: float = 0.0
) -> None:
    """Sizes, an activation and a dropout that a network can have, or an error."""
    for what, numbers in sizes:
        whole_numbers(f"the {what.lower()}", numbers)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1); got {dropout}.")
