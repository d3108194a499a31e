"""Binary layers against the same maps of torch with scaled signs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesbin.nn import BinaryConv1d, BinaryConv2d, BinaryLinear, Scale, binary_sites

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def assert_signs(weight):
    assert bool((weight.abs() == 1).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 3, 4), (0, 4)])
def test_linear(dtype, bias, shape):
    for scale in (0.3, 0.25):
        layer = BinaryLinear(4, 3, bias, scale=scale, dtype=dtype)
        x = torch.randn(shape, dtype=dtype)
        signs = binary_sites(layer)["weight"].signs
        assert_signs(signs)
        assert torch.equal(layer.weight, scale * signs)
        assert layer(x).dtype == dtype
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_linear_of_a_non_contiguous_input():
    layer = BinaryLinear(4, 3)
    x = torch.randn(4, 6).t()
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"groups": 2, "bias": False},
        {"padding": 1, "padding_mode": "circular"},
        {"dilation": 2},
    ],
)
@pytest.mark.parametrize(("Binary", "real"), [(BinaryConv1d, nn.Conv1d), (BinaryConv2d, nn.Conv2d)])
def test_convolutions(Binary, real, options, dtype):
    layer = Binary(4, 6, 3, scale=0.2, dtype=dtype, **options)
    twin = real(4, 6, 3, dtype=dtype, **options)
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    x = torch.randn(2, 4, *[9] * (layer.weight.dim() - 2), dtype=dtype)
    assert_signs(layer.weight / 0.2)
    torch.testing.assert_close(layer(x), twin(x))


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (BinaryLinear(50, 3), 50),
        (BinaryConv1d(4, 6, 3), 12),
        (BinaryConv2d(4, 6, (3, 5)), 60),
        (BinaryConv2d(4, 6, 3, groups=2), 18),
    ],
)
def test_fan_in_scale(layer, fan_in):
    assert layer.scale == 2.0 ** round(-0.5 * math.log2(fan_in))
    assert f"scale={layer.scale:.4g}" in repr(layer)


def test_weights_are_buffers_that_no_optimizer_sees():
    layer = BinaryLinear(4, 3)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert set(layer.state_dict()) == {"weight", "weight_prior", "bias"}
    twin = BinaryLinear(4, 3)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer.to(torch.float32).weight.dtype == torch.float32


@pytest.mark.parametrize("prior", [0.5, torch.tensor(-1.0), torch.linspace(-1, 1, 12).view(3, 4)])
def test_prior(prior):
    layer = BinaryLinear(4, 3, prior=prior)
    site = binary_sites(layer)["weight"]
    assert torch.equal(site.prior.expand(3, 4), torch.as_tensor(prior).expand(3, 4))
    assert site.shape == (3, 4) and torch.equal(site.scale * site.signs, layer.weight)
    if isinstance(prior, torch.Tensor):
        prior.add_(1.0)
        assert not torch.equal(layer.prior, prior)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": torch.zeros(4, 3)}, r"shape \(3, 4\) is one natural parameter or a tensor"),
        ({"prior": torch.zeros(4)}, r"got shape \(4,\)"),
        ({"prior": math.inf}, "natural parameter is finite"),
        ({"prior": math.nan}, "natural parameter is finite"),
        ({"scale": 0.0}, "a positive number, or a tensor of one for each output; got 0.0"),
        ({"scale": -1.0}, "a positive number, or a tensor of one for each output; got -1.0"),
        ({"scale": math.nan}, "a positive number, or a tensor of one for each output; got nan"),
        (
            {"scale": "fan_out"},
            "a positive number, or a tensor of one for each output; got 'fan_out'",
        ),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        BinaryLinear(4, 3, **options)


def test_scale_is_learned_and_stays_positive():
    scale = Scale(2.0)
    x = torch.tensor([1.0, -3.0])
    torch.testing.assert_close(scale(x), 2.0 * x)
    (slope,) = torch.autograd.grad(scale(x).sum(), scale.log_scale)
    torch.testing.assert_close(slope.item(), 2.0 * x.sum().item())
    with pytest.raises(ValueError, match="initial scale is a positive number"):
        Scale(0.0)
