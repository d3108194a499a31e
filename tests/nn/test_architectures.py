"""Networks of the usual shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesbin.estimators import LocalReparameterization
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli, PolicyNetwork
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, binary_sites, conv_net, to_binary_


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
        ((1, 28, 0), {}, "Image sizes are whole numbers"),
        ((1, 28, 28), {"channels": (8, 0)}, "Channels are whole numbers"),
        ((1, 28, 28), {"kernel_size": 0}, "Kernel sizes"),
        ((1, 28, 28), {"padding": -1}, "padding is a whole number of at least 0"),
        ((1, 28, 28), {"activation": "gelu"}, "activation is one of relu, tanh, sign"),
        ((1, 28, 28), {"dropout": 1.0}, "dropout is a probability"),
        ((1, 28, 28), {"hidden": (0,)}, "Layer sizes"),
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
