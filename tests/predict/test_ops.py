"""The torch operators: what they compute, and what torch has to know of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bayesbin.predict import kernels, ops

BOTH = [
    "torch",
    pytest.param(
        "kernels",
        marks=pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not())),
    ),
]


@pytest.fixture(params=BOTH)
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_module", None)
    return request.param


def signs(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape).float() * 2 - 1


@pytest.mark.parametrize("inputs", [1, 63, 64, 65, 130])
def test_linear(backend, inputs):
    x, w = torch.randn(7, inputs).float(), signs(5, inputs)
    words = ops.pack_signs(w)
    torch.testing.assert_close(ops.packed_linear(x, words), F.linear(x, w), rtol=1e-5, atol=1e-5)
    close = ops.packed_linear(x, words, fast=True)
    torch.testing.assert_close(close, F.linear(x, w), rtol=1e-3, atol=1e-2)
    turned = ops.packed_linear(x.t().contiguous().t(), words)  # strides do not matter
    torch.testing.assert_close(turned, ops.packed_linear(x, words), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride, padding", [((1, 1), (0, 0)), ((2, 1), (1, 2))])
def test_conv2d(backend, stride, padding):
    x, w = torch.randn(3, 4, 9, 8).float(), signs(6, 4, 3, 2)
    found = ops.packed_conv2d(x, ops.pack_signs(w), (3, 2), stride, padding)
    expected = F.conv2d(x, w, stride=stride, padding=padding)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_torch_finds_nothing_wrong_with_them(backend):
    x, words = torch.randn(4, 70).float(), ops.pack_signs(signs(3, 70))
    image, kernel = torch.randn(2, 3, 6, 5).float(), ops.pack_signs(signs(4, 3, 3, 3))
    for operator, arguments in (
        (torch.ops.bayesbin.packed_linear.default, (x, words)),
        (torch.ops.bayesbin.packed_linear.default, (x[:0], words, True)),
        (torch.ops.bayesbin.packed_conv2d.default, (image, kernel, [3, 3], [1, 2], [1, 0])),
    ):
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


class Packed(torch.nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", ops.pack_signs(signs(4, 2, 3, 3)))
        self.register_buffer("words", ops.pack_signs(signs(3, 48)))

    def forward(self, x):
        x = torch.ops.bayesbin.packed_conv2d(x, self.kernel, [3, 3], [2, 1], [1, 1])
        return torch.ops.bayesbin.packed_linear(torch.relu(x).flatten(1), self.words)


def test_a_module_of_them_is_compiled_as_one_graph(backend):
    module, x = Packed(), torch.randn(4, 2, 6, 4).float()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, x[:2], torch.cat([x, x])):
        assert torch.equal(compiled(batch), module(batch))


def test_a_module_of_them_is_exported_for_any_batch(backend):
    module, x = Packed(), torch.randn(4, 2, 6, 4).float()
    shapes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes).module()
    for batch in (x, x[:2], torch.cat([x, x])):
        assert torch.equal(exported(batch), module(batch))


def test_what_does_not_fit_is_refused(backend):
    x, words = torch.randn(4, 70).float(), ops.pack_signs(signs(3, 70))
    for wrong in (x.double(), x[0], x[:, :60]):
        with pytest.raises(ValueError, match="Expected"):
            ops.packed_linear(wrong, words)
    with pytest.raises(ValueError, match="packed signs"):
        ops.packed_linear(x, words.int())
