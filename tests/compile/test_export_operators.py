"""Every operator of the table, in networks that return what each of several operators gives."""

from __future__ import annotations

import pytest
import torch
from export_cases import Outputs, compared, kinds, refusal
from torch import nn
from torch.nn import functional as F

from bayesbin.compile.operators import TABLE
from bayesbin.nn import to_binary_


def outputs(*functions):
    """A network of a binary layer (B, 6) -> (B, 8) and functions of what it gives."""
    net = Outputs(nn.Linear(6, 8), functions)
    return to_binary_(net, where=nn.Linear)


def sequences(*functions):
    """The same for (B, 5, 6) -> (B, 5, 8)."""
    return outputs(*functions)


def images(*functions, channels=4):
    """The same for a convolution (B, 2, 7, 6) -> (B, channels, 7, 6)."""
    return to_binary_(Outputs(nn.Conv2d(2, channels, 3, padding=1), functions), where=nn.Conv2d)


VECTORS = {
    "one number": (
        *(torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.abs, torch.sin, torch.cos, torch.erf),
        *(torch.floor, torch.round, torch.ceil, torch.trunc, torch.square, torch.neg, torch.sign),
        *(torch.expm1, torch.exp2, torch.erfc, torch.tan, torch.sinh, torch.cosh, torch.reciprocal),
        *(F.silu, F.mish, F.hardsigmoid, F.hardswish, F.logsigmoid, F.softsign, F.relu6, F.selu),
        *(F.hardshrink, F.softshrink, F.celu, F.elu, F.gelu, F.softplus, F.leaky_relu, F.tanhshrink),
    ),
    "positive numbers": tuple(
        lambda h, f=f: f(h.abs() + 0.1)
        for f in (torch.log, torch.sqrt, torch.rsqrt, torch.log1p, torch.log2, torch.log10)
    ),
    "numbers with settings": (
        lambda h: F.gelu(h, approximate="tanh"),
        lambda h: F.elu(h, 0.7),
        lambda h: F.celu(h, 1.3),
        lambda h: F.leaky_relu(h, 0.3),
        lambda h: F.hardtanh(h, -0.8, 0.9),
        lambda h: F.softplus(h, 2.0, 1.0),
        lambda h: F.threshold(h, 0.1, -0.2),
        lambda h: F.rrelu(h, 0.1, 0.3),
        lambda h: h.clamp(-0.5, 0.4),
        lambda h: h.clamp(min=-0.5),
        lambda h: h.clamp_max(0.2),
        lambda h, net: h.clamp(min=net.vector),
        lambda h, net: F.prelu(h, net.vector),
        lambda h, net: F.prelu(h, net.vector[:1]),
        lambda h: F.dropout(h, 0.5, training=False),
        lambda h: F.glu(h),
    ),
    "two numbers": (
        lambda h, net: h + net.vector,
        lambda h, net: net.vector - h,
        lambda h, net: h * net.vector,
        lambda h, net: h / net.vector,
        lambda h, net: torch.add(h, net.vector, alpha=0.3),
        lambda h: 1 - h,
        lambda h: h / 3,
        lambda h: 2 / (1 + h.abs()),
        lambda h: h // 0.3,
        lambda h: h % 0.7,
        lambda h: torch.div(h, 0.3, rounding_mode="floor"),
        lambda h: h**2,
        lambda h: h.abs() ** 0.5,
        lambda h: h.abs() ** 1.7,
        lambda h: 2.0**h,
        lambda h, net: torch.maximum(h, net.vector),
        lambda h, net: torch.minimum(h, net.vector),
        lambda h, net: torch.lerp(h, net.vector, 0.3),
        lambda h, net: torch.addcmul(h, h, net.vector, value=0.5),
        lambda h, net: torch.addcdiv(h, h, net.vector, value=0.5),
        lambda h: torch.nan_to_num(torch.log(h.clamp(min=0.0))),
    ),
    "decisions": (
        lambda h, net: (h > net.vector).to(h.dtype),
        lambda h: (h >= 0.1) & (h < 0.9),
        lambda h: (h <= 0) | (h > 1),
        lambda h: (h > 0) ^ (h > 0.5),
        lambda h: ~(h > 0),
        lambda h: (h.round() == 0) | (h.round() != 1),
        lambda h: torch.where(h > 0.2, h, -1.0),
        lambda h, net: torch.where(net.vector > 0, h, 2 * h),
        lambda h: h.masked_fill(h < 0, 7.0),
        lambda h: torch.isnan(h) | torch.isinf(h),
        lambda h: (h > 0).any(1),
        lambda h: (h > 0).all(-1, keepdim=True),
        lambda h: (h > 0).long() + 3,
        lambda h: h.argmax(1),
        lambda h: h.argmin(-1, keepdim=True),
    ),
    "sums": (
        lambda h: h.sum(1),
        lambda h: h.mean(-1, keepdim=True),
        lambda h: h.prod(1),
        lambda h: h.amax(1),
        lambda h: h.amin(1, keepdim=True),
        lambda h: h.max(1)[0],
        lambda h: h.min(1)[1],
        lambda h: h.std(1),
        lambda h: h.var(1, correction=0),
        lambda h: h.norm(dim=1),
        lambda h: h.norm(p=1, dim=1, keepdim=True),
        lambda h: torch.linalg.vector_norm(h, float("inf"), dim=1),
        lambda h: F.normalize(h, dim=1),
        lambda h: h.logsumexp(1),
        lambda h: h.cumsum(1),
        lambda h: h.softmax(1),
        lambda h: F.log_softmax(h, -1),
        lambda h: F.softmin(h, -1),
        lambda h, net: F.cosine_similarity(h, net.vector[None], dim=1),
    ),
    "products": (
        lambda h, net: h @ net.matrix,
        lambda h, net: F.linear(h, net.matrix, net.vector),
        lambda h, net: F.linear(h, net.layer.weight.t()),
        lambda h, net: torch.addmm(net.vector, h, net.matrix),
        lambda h, net: torch.einsum("bi,ij->bj", h, net.matrix),
        lambda h, net: torch.einsum("...i,ji->...j", h, net.matrix),
        lambda h, net: torch.einsum("bi,bj->bij", h, h),
        lambda h: torch.einsum("bi->b", h),
        lambda h, net: torch.einsum("bi,bj,ij->b", h, h, net.matrix),
        lambda h, net: net.matrix @ h.unsqueeze(-1),
        lambda h: torch.bmm(h.unsqueeze(2), h.unsqueeze(1)),
        lambda h, net: F.bilinear(h[:, :4], h[:, 5:], net.cube),
        lambda h, net: h @ net.vector,
    ),
    "written in others": (
        lambda h, net: torch.outer(h[:, 0], net.vector),
        lambda h, net: torch.cdist(h, net.matrix),
        lambda h: h.fmod(0.3),
        lambda h, net: h.hypot(net.vector),
        lambda h: h.diff(dim=1),
        lambda h, net: torch.logaddexp(h, net.vector),
        lambda h: torch.var_mean(h, 1)[0],
        lambda h: torch.std_mean(h, 1, correction=0)[1],
        lambda h, net: F.pairwise_distance(h, net.vector),
        lambda h, net: torch.tensordot(h.view(-1, 2, 4), net.matrix.view(2, 4, 8), dims=2),
        lambda h: torch.kron(h, h.new_ones(1, 2)),
        lambda h: torch.isin(h.round(), torch.tensor([0.0, 1.0])),
        lambda h: torch.vmap(torch.tanh)(h),
        lambda h, net: net.vector[0].item() * h,
        lambda h: h[:, :1].squeeze(),
        lambda h: torch.no_grad()(torch.tanh)(h),
    ),
    "views": (
        lambda h: h.view(-1, 2, 4).transpose(1, 2),
        lambda h: h.reshape(h.shape[0], 4, 2).permute(0, 2, 1).reshape(h.shape[0], 8),
        lambda h: h.unflatten(1, (2, 4)).flatten(1),
        lambda h: h[:, 1:7:2],
        lambda h: h[:, -1],
        lambda h: h[:, None, :].squeeze(1),
        lambda h: h.narrow(1, 2, 3),
        lambda h: torch.cat(h.chunk(3, 1)[::-1], 1),
        lambda h: torch.stack(h.split([3, 3, 2], 1)[:2], 1),
        lambda h: torch.stack(h.unbind(1), -1),
        lambda h: h.flip(1),
        lambda h: h.roll(3, 1),
        lambda h: h.repeat(1, 2),
        lambda h: h.repeat_interleave(2, 1),
        lambda h: h.unsqueeze(1).expand(-1, 3, -1).reshape(-1, 24),
        lambda h: F.pad(h, (1, 2), value=0.5),
        lambda h: h.unfold(1, 3, 2),
        lambda h: h.view(-1, 2, 2, 2).movedim(1, 3),
        lambda h: h[:, [3, 1, 1]],
        lambda h: h.index_select(1, torch.tensor([2, 0])),
        lambda h: h.view(-1, 2, 4)[:, [0, 1], [3, 2]],
        lambda h: h.view(-1, 2, 4).tril(),
        lambda h: F.channel_shuffle(h.view(-1, 8, 1, 1), 2),
    ),
    "of the batch's size": (
        lambda h: torch.zeros_like(h) + h,
        lambda h: torch.cat([torch.ones(h.shape[0], 1, dtype=h.dtype), h], 1),
        lambda h, net: torch.stack([net.vector.expand(h.shape[0], -1), h], 1),
        lambda h, net: torch.cat([net.vector.repeat(h.shape[0], 1), h], 1),
        lambda h: h.new_full((h.shape[0], 8), 0.3) * h,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_operators_on_vectors(name):
    compared(outputs(*VECTORS[name]), 0.7 * torch.randn(5, 6))


SEQUENCES = {
    "in place": (
        lambda h: h.clone().mul_(2.0).add_(1.0),
        lambda h: _assigned(h, (slice(None), 0), 0.3),
        lambda h: _assigned(h, (slice(None), slice(1, 3), 2), 0.3),
        lambda h: _assigned(h, h > 0.4, 0.0),
        lambda h: F.relu(h, inplace=True) + 1,
    ),
    "products": (
        lambda h: h @ h.transpose(1, 2),
        lambda h, net: h @ net.matrix,
        lambda h: torch.einsum("bti,bsi->bts", h, h),
        lambda h: torch.einsum("bti,bi->bt", h, h[:, 0]),
        lambda h, net: torch.einsum("bti,ij->tbj", h, net.matrix).transpose(0, 1),
        lambda h: F.linear(h.transpose(0, 1), h.new_ones(3, 8)).transpose(0, 1),
        lambda h: F.scaled_dot_product_attention(h, h, h),
        lambda h: F.scaled_dot_product_attention(h, h, h, is_causal=True, scale=0.2),
        lambda h: F.scaled_dot_product_attention(h, h, h, attn_mask=torch.ones(5, 5).bool().tril()),
        lambda h: F.scaled_dot_product_attention(
            *(h.view(-1, 5, n, 2).transpose(1, 2) for n in (4, 4, 4))
        ),
        lambda h: F.scaled_dot_product_attention(
            h.view(-1, 5, 4, 2).transpose(1, 2),
            *[h[..., :4].reshape(-1, 5, 2, 2).transpose(1, 2)] * 2,
            enable_gqa=True,
        ),
    ),
    "merged with the batch": (
        lambda h: torch.tanh(h.reshape(-1, 8)).view(-1, 5, 8),
        lambda h, net: F.linear(h.flatten(0, 1), net.matrix).view(-1, 5, 8),
        lambda h: F.layer_norm(h.transpose(0, 1).reshape(5, -1, 4), (4,)).view(5, -1, 8).transpose(0, 1),
        lambda h: h.reshape(-1, 8).softmax(1).view(h.shape),
        lambda h: F.conv1d(h.reshape(-1, 2, 4), h.new_ones(3, 2, 2)).view(-1, 5, 9),
        lambda h: F.max_pool1d(h.reshape(-1, 2, 4), 2).reshape(-1, 5, 4),
        lambda h: F.group_norm(h.reshape(-1, 4, 2), 2).view(-1, 5, 8),
        lambda h: h.permute(1, 0, 2).reshape(-1, 8).view(5, -1, 8).permute(1, 0, 2),
        lambda h: (h.transpose(0, 1) + h.new_ones(5, 1, 8)).transpose(0, 1),
        lambda h: (h.flatten(0, 1)[:, None, :] * h.new_ones(2, 1)).view(-1, 5, 16),
    ),
    "lookups": (
        lambda h: h.gather(1, h.argmax(1, keepdim=True)),
        lambda h: h[torch.arange(h.shape[0]), h[:, :, 0].argmax(1)],
        lambda h, net: F.embedding(h.argmax(2), net.matrix),
        lambda h, net: net.matrix[h.argmax(2)],
        lambda h: F.one_hot(h.argmax(2), 8),
    ),
    "normalisation": (
        lambda h, net: F.layer_norm(h, (8,), net.vector, net.vector),
        lambda h: F.layer_norm(h, (5, 8)),
        lambda h, net: F.layer_norm(h, (8,), None, net.vector),
        lambda h, net: F.rms_norm(h, (8,), net.vector, 1e-4),
        lambda h: F.rms_norm(h, (8,)),
        lambda h, net: F.instance_norm(h, weight=net.vector[:5], bias=net.vector[3:]),
        lambda h, net: F.group_norm(h, 5, net.vector[:5], net.vector[3:]),
        lambda h, net: F.batch_norm(h, net.vector[:5].detach(), net.vector[3:].detach() ** 2),
        lambda h: F.local_response_norm(h, 3),
    ),
}  # fmt: skip


def _assigned(h, place, value):
    h = h.clone()
    h[place] = value
    return h


@pytest.mark.parametrize("name", SEQUENCES)
def test_operators_on_sequences(name):
    compared(sequences(*SEQUENCES[name]), 0.7 * torch.randn(3, 5, 6))


IMAGES = {
    "pools": (
        lambda h: F.max_pool2d(h, 2),
        lambda h: F.max_pool2d(h, 3, 2, 1, ceil_mode=True),
        lambda h: F.max_pool2d(h, 2, 1, dilation=2),
        lambda h: F.avg_pool2d(h, 3, 2, 1),
        lambda h: F.avg_pool2d(h, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        lambda h: F.avg_pool2d(h, 2, divisor_override=3),
        lambda h: F.adaptive_avg_pool2d(h, (3, 2)),
        lambda h: F.adaptive_max_pool2d(h, 2),
        lambda h: F.lp_pool2d(h, 2, 2),
        lambda h: h.mean((2, 3)),
    ),
    "resolution": (
        lambda h: F.interpolate(h, scale_factor=2),
        lambda h: F.interpolate(h, size=(5, 9)),
        lambda h: F.interpolate(h, scale_factor=1.3),
        lambda h: F.interpolate(h, scale_factor=2, mode="bilinear"),
        lambda h: F.interpolate(h, size=(5, 9), mode="bilinear", align_corners=True),
        lambda h: F.interpolate(h, scale_factor=1.3, mode="bilinear"),
        lambda h: F.pixel_shuffle(h, 2),
        lambda h: F.pixel_unshuffle(h[:, :, :6], 2),
    ),
    "padding": (
        lambda h: F.pad(h, (1, 2, 0, 1)),
        lambda h: F.pad(h, (1, 2, 2, 1), mode="reflect"),
        lambda h: F.pad(h, (1, 2, 2, 1), mode="replicate"),
        lambda h: F.pad(h, (1, 2, 2, 1), mode="circular"),
        lambda h: F.pad(h, (-1, 0, 0, -2)),
        lambda h: F.unfold(h, 3, padding=1, stride=2),
        lambda h: F.fold(h.flatten(2)[:, :, :12], (4, 5), 2),
        lambda h: F.fold(h[:, :, :2].flatten(2), (5, 7), 2, stride=2, padding=1, dilation=(1, 2)),
    ),
    "convolutions": (
        lambda h: F.conv2d(h, h.new_ones(4, 2, 3, 3), padding="same", groups=2),
        lambda h: F.conv2d(h, h.new_ones(4, 4, 2, 2), padding="same"),
        lambda h, net: F.conv_transpose2d(h, net.cube.reshape(4, 1, 2, 3), stride=2, output_padding=1),
        lambda h, net: F.conv_transpose2d(h, net.cube.reshape(4, 1, 2, 3), groups=2, dilation=2),
        lambda h: F.conv3d(h[:, :, None], h.new_ones(2, 4, 1, 2, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_operators_on_images(name):
    compared(images(*IMAGES[name]), 0.7 * torch.randn(2, 2, 7, 6))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv1d(4, 6, 3, padding=2, groups=2), (4, 7)),
        (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2, padding_mode="circular"), (4, 9, 8)),
        (lambda: nn.Conv3d(2, 3, 2), (2, 4, 3, 5)),
        (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2), (4, 5)),
        (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 5, 4)),
        (lambda: nn.Bilinear(4, 4, 3), None),
        (lambda: nn.Embedding(9, 4), "words"),
        (lambda: nn.EmbeddingBag(9, 4), "words"),
        (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True), (6, 4)),
        (lambda: nn.GRU(4, 5, batch_first=True), (6, 4)),
        (lambda: nn.RNN(4, 5, batch_first=True, nonlinearity="relu", bias=False), (6, 4)),
        (lambda: nn.LSTM(4, 5, proj_size=3, batch_first=True), (6, 4)),
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), "attention"),
    ],
)
def test_layers_whose_weights_are_all_binary(layer, shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer()

        def forward(self, x):
            if shape is None:
                return self.layer(x, x)
            if shape == "attention":
                return self.layer(x, x, x, need_weights=False)[0]
            found = self.layer(x)
            return found[0] if isinstance(found, tuple) else found

    net = Net()
    names = [name for name, each in net.named_parameters() if each.dim() > 1]
    to_binary_(net, where=names, scale=0.3)
    if shape == "words":
        x = torch.randint(9, (3, 5))
    else:
        x = torch.randn(3, *{None: (4,), "attention": (5, 8)}.get(shape, shape))
    program = compared(net, x)
    assert set(program.sites) == {
        f"layer.{name}" for name, _ in layer().named_parameters() if _.dim() > 1
    }


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda h: torch.where(h >= 0, 1.0, -1.0), "sign"),
        (lambda h: torch.where(h < 0, -1.0, 1.0), "sign"),
        (lambda h: (h >= 0).to(h.dtype) * 2 - 1, "sign"),
        (lambda h: 1 - 2 * (h < 0).to(h.dtype), None),
        (lambda h: torch.where(h > 0, 1.0, -1.0), "threshold"),
        (lambda h: torch.where(h > 0, -torch.ones_like(h), torch.ones_like(h)), "threshold"),
    ],
)
def test_signs_in_other_words_are_signs(write, kind):
    program = compared(outputs(lambda h: write(torch.round(2 * h))), torch.randn(4, 6))
    if kind:
        assert kind in kinds(program) and "greater" not in kinds(program)
        assert program.values[program.outputs[0]].signs


def test_every_function_of_the_table_is_for_an_operator_of_torch():
    for name in TABLE:
        space, _, own = name.rpartition("::")
        assert hasattr(getattr(torch.ops, space or "aten"), own), name


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda h: F.dropout(h, 0.5, training=True), "training=self.training"),
        (lambda h: h + torch.rand_like(h), "random"),
        (lambda h: h.topk(2)[0], "topk"),
        (lambda h: h.half(), "float16"),
        (lambda h: h.to(torch.uint8) + 1, "uint8"),
        (lambda h: h[h > 0], ""),
        (lambda h: h if h.sum() > 0 else -h, "torch.where"),
    ],
)
def test_what_has_no_step_is_refused(write, said):
    assert said in refusal(Outputs(nn.Linear(6, 8), [write]), torch.randn(4, 6))
