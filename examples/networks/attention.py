"""Attention: torch's modules, and attention as people write it."""

from __future__ import annotations

import math
from typing import Any

import torch
from catalogue import Built, image, network, sequence, tokens
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = "attention"


class SelfAttention(nn.Module):
    """torch's MultiheadAttention over sequences whose first axis is the batch."""

    def __init__(
        self, batch_first: bool = True, need_weights: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, **options)
        self.head = nn.Linear(16, 3)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        y, _ = self.attention(x, x, x, need_weights=self.need_weights)
        if not self.attention.batch_first:
            y = y.transpose(0, 1)
        return self.head(y.mean(dim=1))


@network(GROUP, "nn.MultiheadAttention, batch first")
def multihead_attention() -> Built:
    return SelfAttention(), (sequence(),)


@network(GROUP, "nn.MultiheadAttention with the batch on the second axis")
def multihead_attention_time_first() -> Built:
    return SelfAttention(batch_first=False), (sequence(),)


@network(GROUP, "nn.MultiheadAttention that returns its weights, with extra keys and no bias")
def multihead_attention_weights() -> Built:
    net = SelfAttention(need_weights=True, bias=False, add_zero_attn=True)
    return net, (sequence(),)


@network(GROUP, "nn.MultiheadAttention with learned extra keys and values")
def multihead_attention_bias_kv() -> Built:
    return SelfAttention(add_bias_kv=True), (sequence(),)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, kdim=8, vdim=6, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.head(self.attention(x, keys, values)[0].amax(1))


@network(GROUP, "attention from one sequence to another of other widths")
def cross_attention() -> Built:
    return CrossAttention(), (sequence(4), sequence(7, 8), sequence(7, 6))


class Encoder(nn.Module):
    def __init__(self, layers: int, mask: bool = False, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        norm = nn.LayerNorm(16) if options.get("norm_first") else None
        self.encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)
        self.mask: Tensor | None
        self.register_buffer(
            "mask", nn.Transformer.generate_square_subsequent_mask(12) if mask else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x, mask=self.mask, is_causal=self.mask is not None).mean(1))


@network(GROUP, "nn.TransformerEncoderLayer by itself")
def encoder_layer() -> Built:
    net = nn.Sequential(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(192, 3)
    )
    return net, (sequence(),)


@network(GROUP, "two encoder layers, normalised after each sum")
def encoder_post_norm() -> Built:
    return Encoder(2), (sequence(),)


@network(GROUP, "two encoder layers, normalised first, with GELU")
def encoder_pre_norm() -> Built:
    return Encoder(2, norm_first=True, activation="gelu"), (sequence(),)


@network(GROUP, "an encoder with a causal mask")
def encoder_causal() -> Built:
    return Encoder(1, mask=True), (sequence(),)


@network(GROUP, "an encoder of float64")
def encoder_float64() -> Built:
    return Encoder(1, norm_first=True).double(), (sequence().double(),)


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        h = self.encoder(self.embedding(x), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(h.dtype)
        return self.head((h * kept).sum(1) / kept.sum(1).clamp(min=1.0))


@network(GROUP, "tokens of which 0 is padding: masked keys, a masked mean")
def encoder_padding_mask() -> Built:
    x = tokens()
    x[:, 9:] = 0
    x[:, 0] = x[:, 0].clamp_min(1)
    return PaddedEncoder(), (x,)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.queries = nn.Parameter(torch.randn(1, 4, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, memory: Tensor) -> Tensor:
        queries = self.queries.expand(memory.size(0), -1, -1)
        return self.head(self.decoder(queries, memory))


@network(GROUP, "a decoder with learned queries", where=nn.Linear)
def decoder_queries() -> Built:
    return Decoder(), (sequence(),)


class FullTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = self.transformer.generate_square_subsequent_mask(target.size(1))
        return self.head(self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True))


@network(GROUP, "nn.Transformer, encoder and decoder, with a mask made in forward")
def transformer_full() -> Built:
    return FullTransformer(), (sequence(6), sequence(5))


class ByHand(nn.Module):
    """Attention by products of matrices, as in most tutorials."""

    triangle: Tensor

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.width = 2, 8
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.causal = causal
        self.register_buffer("triangle", torch.tril(torch.ones(12, 12)).view(1, 1, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            layer(x).view(b, t, self.heads, self.width).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.width)
        if self.causal:
            scores = scores.masked_fill(self.triangle[:, :, :t, :t] == 0, float("-inf"))
        y = torch.matmul(F.softmax(scores, dim=-1), v)
        y = y.transpose(1, 2).contiguous().view(b, t, c)
        return self.head(x + self.out(y))[:, -1]


@network(GROUP, "attention by matmul and softmax")
def attention_by_hand() -> Built:
    return ByHand(), (sequence(),)


@network(GROUP, "attention by matmul, with a triangle of ones as mask")
def attention_masked_by_hand() -> Built:
    return ByHand(causal=True), (sequence(),)


class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
        weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(8**-0.5).softmax(-1)
        y = torch.einsum("bhij,bhjd->bhid", weights, v)
        return self.out(y.permute(0, 2, 1, 3).reshape(b, t, 16)).sum(dim=1)


@network(GROUP, "attention by einsum, from one layer for queries, keys and values")
def attention_einsum() -> Built:
    return EinsumAttention(), (sequence(),)


class Block(nn.Module):
    """A block of a language model: causal attention and a perceptron, each with a skip."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.heads = heads

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int = 20, width: int = 16, tied: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(0, x.size(1), dtype=torch.long, device=x.device)
        h = self.wte(x) + self.wpe(positions)
        for block in self.blocks:
            h = block(h)
        return self.lm_head(self.ln_f(h))


@network(GROUP, "a small language model with causal attention and learned positions")
def language_model() -> Built:
    return LanguageModel(), (tokens(),)


@network(GROUP, "a language model whose embedding is tied to its output")
def language_model_tied() -> Built:
    return LanguageModel(tied=True), (tokens(),)


class Rotary(nn.Module):
    rates: Tensor

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.pairs = heads, width // heads // 2
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 4)
        self.register_buffer("rates", 100.0 ** (-torch.arange(self.pairs) / self.pairs))

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.size(-2)).float()[:, None] * self.rates
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., : self.pairs], x[..., self.pairs :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).transpose(1, 3).unbind(2)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


@network(GROUP, "rotary positions")
def rotary_positions() -> Built:
    return Rotary(), (sequence(),)


class RelativePositions(nn.Module):
    """Attention with a table of biases over distances, as in T5 and Swin."""

    index: Tensor

    def __init__(self, steps: int = 12) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * steps - 1, 2))
        place = torch.arange(steps)
        self.register_buffer("index", place[:, None] - place[None, :] + steps - 1)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.25)
        return self.out(y.transpose(1, 2).flatten(2)).logsumexp(dim=1)


@network(GROUP, "a learned bias for each distance", where=nn.Linear)
def relative_positions() -> Built:
    return RelativePositions(), (sequence(),)


class LinearDistance(nn.Module):
    """Attention with scores that fall off linearly with distance."""

    slopes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor([0.5, 0.25]).view(2, 1, 1))
        self.q, self.kv, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        place = torch.arange(t)
        bias = -self.slopes * (place[None, :] - place[:, None]).abs()
        q = self.q(x).view(b, t, 2, 8).permute(0, 2, 1, 3)
        k, v = self.kv(x).chunk(2, dim=-1)
        scores = q @ k.unsqueeze(1).transpose(2, 3) * 8**-0.5 + bias  # one key for all heads
        y = scores.softmax(dim=-1) @ v.unsqueeze(1)
        return self.out(y.permute(0, 2, 1, 3).reshape(b, t, 16))


@network(GROUP, "linear biases by distance, one key and value for all heads")
def linear_biases() -> Built:
    return LinearDistance(), (sequence(),)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 4).transpose(1, 2)
        k = self.k(x).view(b, t, 2, 4).transpose(1, 2).repeat_interleave(2, dim=1)
        v = self.v(x).view(b, t, 2, 1, 4).expand(b, t, 2, 2, 4).reshape(b, t, 4, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, 16))


@network(GROUP, "heads in groups that share keys and values")
def grouped_queries() -> Built:
    return Grouped(), (sequence(),)


class LinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.bmm(k.transpose(1, 2), v)
        total = torch.einsum("btd,bd->bt", q, k.sum(dim=1)).unsqueeze(-1)
        return self.out(torch.bmm(q, context) / (total + 1e-6))


@network(GROUP, "attention without softmax, linear in the number of steps")
def linear_attention() -> Built:
    return LinearAttention(), (sequence(),)


class AdditiveAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.score, self.out = nn.Linear(16, 1, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query = self.query(x[:, -1:, :])
        weights = torch.softmax(self.score(torch.tanh(query + self.key(x))).squeeze(2), dim=1)
        context = torch.bmm(weights.unsqueeze(1), x).squeeze(1)
        return self.out(context), weights


@network(GROUP, "additive attention, which returns its weights too")
def additive_attention() -> Built:
    return AdditiveAttention(), (sequence(),)


class Sinusoidal(nn.Module):
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(1, 40, 16)
        place, rate = torch.arange(40)[:, None], torch.exp(torch.arange(0, 16, 2) * -0.5)
        table[0, :, 0::2], table[0, :, 1::2] = torch.sin(place * rate), torch.cos(place * rate)
        self.register_buffer("table", table)
        self.embedding = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.decoder = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) * math.sqrt(16)
        h = self.encoder(h + self.table[:, : h.size(1)])
        return self.decoder(h[:, 0])


@network(GROUP, "tokens with fixed sinusoidal positions")
def sinusoidal_positions() -> Built:
    return Sinusoidal(), (tokens(),)


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, width).normal_(std=0.02))
        layer = nn.TransformerEncoderLayer(
            width, 2, 32, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.conv_proj(x).reshape(n, 16, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.encoder(x)[:, 0])


@network(
    GROUP,
    "a vision transformer with a class token",
    where=[nn.Linear, nn.MultiheadAttention, nn.Conv2d],
)
def vision_transformer() -> Built:
    return VisionTransformer(), (image(),)


class Windows(nn.Module):
    """Attention in shifted windows."""

    def __init__(self, width: int = 16, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.proj, self.head = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        m = self.window
        y = torch.roll(self.norm(x), shifts=(-2, -2), dims=(1, 2))
        y = y.view(b, h // m, m, w // m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, m * m, c)
        q, k, v = self.qkv(y).reshape(-1, m * m, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, m * m, c)
        y = y.view(b, h // m, w // m, m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + self.proj(torch.roll(y, shifts=(2, 2), dims=(1, 2)))
        return self.head(x.mean(dim=(1, 2)))


@network(GROUP, "attention in shifted windows, which join the batch for a while")
def shifted_windows() -> Built:
    return Windows(), (torch.randn(5, 8, 8, 16),)


class Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 16))
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)
        self.inner = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        h = latents + self.cross(latents, x, x, need_weights=False)[0]
        return self.head(self.inner(h).mean(1))


@network(
    GROUP, "latent vectors that attend to the inputs", where=[nn.Linear, nn.MultiheadAttention]
)
def perceiver() -> Built:
    return Perceiver(), (sequence(),)


class SetTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inducing = nn.Parameter(torch.randn(1, 3, 16))
        self.up = nn.MultiheadAttention(16, 2, batch_first=True)
        self.down = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        inducing = self.inducing.expand(x.size(0), 3, 16)
        h = self.up(inducing, x, x)[0]
        return self.head(self.norm(x + self.down(x, h, h)[0]).sum(dim=-2))


@network(GROUP, "sets that attend to inducing points", where=[nn.Linear, nn.MultiheadAttention])
def set_transformer() -> Built:
    return SetTransformer(), (sequence(),)


class Mixer(nn.Module):
    def __init__(self, patches: int = 16, width: int = 16) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_places = nn.Sequential(nn.Linear(patches, 24), nn.GELU(), nn.Linear(24, patches))
        self.over_channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_places(self.norm_1(x).mT).mT
        return x + self.over_channels(self.norm_2(x))


class MixerNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.body = nn.Sequential(Mixer(), Mixer(), nn.LayerNorm(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.body(x).mean(dim=1))


@network(GROUP, "an MLP-Mixer")
def mlp_mixer() -> Built:
    return MixerNetwork(), (image(),)


class SpatialGate(nn.Module):
    def __init__(self, steps: int = 12, width: int = 16) -> None:
        super().__init__()
        self.norm, self.spatial = nn.LayerNorm(width), nn.Conv1d(steps, steps, 1)
        self.inner, self.outer = nn.Linear(16, 2 * width), nn.Linear(width, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.inner(x)).chunk(2, dim=-1)
        x = x + self.outer(u * self.spatial(self.norm(v)))
        return self.head(x.select(1, 0))


@network(GROUP, "gates over the steps of a sequence, as in gMLP")
def spatial_gating() -> Built:
    return SpatialGate(), (sequence(),)
