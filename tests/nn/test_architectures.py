"""Networks of the usual shapes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from bayesbin.estimators import LocalReparameterization
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli, PolicyNetwork
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import (
    Classifier,
    Residual,
    Sign,
    binarize_,
    binary_sites,
    conv_net,
    latents,
    resnet20,
    to_binary_,
    vgg_small,
)
from bayesbin.nn.binarizers import SignSTE


def test_the_network_of_the_literature():
    net = conv_net((1, 28, 28))
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == [
        "Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU",
        "Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "Scale",
    ]  # fmt: skip
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    shapes = [tuple(site.shape) for site in binary_sites(to_binary_(net)).values()]
    assert shapes == [(32, 1, 5, 5), (64, 32, 5, 5), (512, 1024), (10, 512)]


@pytest.mark.parametrize(
    "image, options, features",
    [
        ((1, 28, 28), {"padding": 2}, 64 * 7 * 7),
        ((3, 32, 20), {"channels": (8,), "kernel_size": 3}, 8 * 15 * 9),
        ((2, 9, 9), {"channels": (4, 4), "kernel_size": 2}, 4 * 1 * 1),
        ((1, 8, 8), {"channels": (), "hidden": ()}, 64),
    ],
    ids=str,
)
def test_extents_are_those_of_the_image(image, options, features):
    net = conv_net(image, num_outputs=3, dropout=0.1, activation="tanh", **options)
    first = next(layer for layer in net if isinstance(layer, nn.Linear))
    assert first.in_features == features
    assert net(torch.randn(4, *image)).shape == (4, 3)


@pytest.mark.parametrize(
    "image, options, message",
    [
        ((28, 28), {}, r"image is \(channels, height, width\)"),
        ((1, 10, 10), {}, "Nothing is left of an image"),
        ((1, 28, 0), {}, "each of the image sizes to be a whole number"),
        ((1, 28, 28), {"channels": (8, 0)}, "each of the channels to be a whole number"),
        ((1, 28, 28), {"kernel_size": 0}, "kernel_size to be a whole number"),
        ((1, 28, 28), {"padding": -1}, "padding to be a whole number of at least 0"),
        ((1, 28, 28), {"activation": "gelu"}, "activation is one of relu, tanh, sign"),
        ((1, 28, 28), {"dropout": 1.0}, "dropout is a probability"),
        ((1, 28, 28), {"hidden": (0,)}, "each of the layer sizes"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(image, options, message):
    with pytest.raises(ValueError, match=message):
        conv_net(image, **options)


@pytest.mark.parametrize(
    "make",
    [
        AutoSignBernoulli,
        AutoNestedSignBernoulli,
        lambda model: AutoNestedSignBernoulli(model, kind="random-effects"),
        lambda model: AutoNestedSignBernoulli(
            model, ("layer", "filter", "kernel"), combine=PolicyNetwork(2, 3)
        ),
    ],
    ids=["mean-field", "nested", "random-effects", "policy"],
)
def test_it_trains_with_every_guide(make):
    torch.manual_seed(0)
    net = to_binary_(conv_net((1, 8, 8), (4, 6), (12,), 3, kernel_size=3, padding=1))
    model = Classifier(net, dataset_size=60)
    guide = make(model)
    x = torch.randn(60, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long()
    elbo = TraceBinary_ELBO(LocalReparameterization(), kl_weight=0.01)(model, guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = elbo(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


# Networks for colour images


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_parameters_are_as_many_as_published(activation):
    """4.6 M and 0.27 M; of the latter 269 722 with shortcuts that have none, and two projections."""
    vgg = vgg_small(activation=activation, output_scale=False)
    convolutions = 9 * sum(a * b for a, b in pairwise([3, 128, 128, 256, 256, 512, 512]))
    norms = 2 * 2 * (128 + 256 + 512)
    assert num_parameters(vgg) == convolutions + norms + 512 * 4 * 4 * 10 + 10 == 4_660_106
    resnet = resnet20(activation=activation, output_scale=False)
    projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert num_parameters(resnet) == 269_722 + projections
    assert num_parameters(vgg_small()) == 4_660_106 + 1


@pytest.mark.parametrize("build", [vgg_small, resnet20])
@pytest.mark.parametrize("in_shape", [(3, 32, 32), (1, 28, 20), (2, 9, 15)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_colour_networks_take_images_of_any_size(build, in_shape, activation):
    net = build(in_shape, 7, width=2, activation=activation)
    assert net(torch.randn(3, *in_shape)).shape == (3, 7)
    assert any(isinstance(layer, Sign) for layer in net.modules()) == (activation == "sign")


def test_the_layers_of_vgg_small():
    kinds = [type(layer).__name__ for layer in vgg_small(width=2)]
    pair = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*pair, *pair, *pair, "Flatten", "Linear", "Scale"]
    assert [site.shape[0] for site in binary_sites(to_binary_(vgg_small(width=2))).values()] == [
        2, 2, 4, 4, 8, 8, 10
    ]  # fmt: skip


def test_the_blocks_of_resnet20():
    """Of 20 layers in a row; around two convolutions each, and where there are signs around each."""
    relu, sign = resnet20(width=2), resnet20(width=2, activation="sign")
    for net, blocks in ((relu, 9), (sign, 18)):
        found = [layer for layer in net if isinstance(layer, Residual)]
        assert len(found) == blocks
        assert sum(block.shortcut is not None for block in found) == 2
        weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert sum(m.weight.shape[-1] != 1 for m in weighted) == 20
    block = relu[3]
    assert isinstance(block, Residual) and isinstance(block.body, nn.Sequential)
    x = torch.randn(4, 2, 8, 8)
    first, norm, _, second, other = block.body
    torch.testing.assert_close(block(x), other(second(norm(first(x)).relu())) + x)
    assert isinstance(relu[4], nn.ReLU)
    halving = next(layer for layer in relu if isinstance(layer, Residual) and layer.shortcut)
    assert isinstance(halving.shortcut, nn.Sequential)
    _, projection, norm = halving.shortcut
    for size in (8, 7):
        x2 = torch.randn(4, 2, size, size)
        strided = nn.functional.conv2d(x2, projection.weight, stride=2)
        torch.testing.assert_close(halving.shortcut(x2), norm(strided))
    # The sum reaches the next block as it is.
    assert isinstance(sign[2], Residual) and isinstance(sign[3], Residual)
    torch.testing.assert_close(sign[2](x) - x, sign[2].body(x))


@pytest.mark.parametrize("build, ends", [(vgg_small, 7), (resnet20, 22)])
@pytest.mark.parametrize("convert", [to_binary_, lambda net: binarize_(net, SignSTE())])
def test_real_ends_stay_real(build, ends, convert):
    def real(net: nn.Module) -> list[str]:
        sites = set(binary_sites(net)) | set(latents(net))
        layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(layers) == ends
        return [name for name in layers if f"{name}.weight" not in sites]

    assert real(convert(build(width=2))) == []
    net = convert(build(width=2, real_ends=True))
    assert real(net) == ["0", str(len(net) - 2)]
    for end in (net[0], net[-2]):
        assert isinstance(end.weight, nn.Parameter) and end.weight.abs().unique().numel() > 2


@pytest.mark.parametrize(
    "build, options, message",
    [
        (vgg_small, {"in_shape": (3, 7, 32)}, "Nothing is left of an image"),
        (vgg_small, {"in_shape": (3072,)}, r"in_shape is \(channels, height, width\)"),
        (resnet20, {"in_shape": (32, 32)}, r"in_shape is \(channels, height, width\)"),
        (resnet20, {"in_shape": (3, 0, 32)}, "each of the image sizes to be a whole number"),
        (vgg_small, {"num_outputs": 0}, "each of the outputs to be a whole number"),
        (resnet20, {"width": 1.5}, "each of the channels to be a whole number"),
        (resnet20, {"activation": "gelu"}, "activation is one of relu, tanh, sign"),
    ],
    ids=lambda value: getattr(
        value, "__name__", str(value)
    ),  # no addresses: they differ by process
)
def test_colour_networks_refuse_what_does_not_fit(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
