"""Networks with several inputs or outputs, shared parts, and sets."""

from __future__ import annotations

import torch
from catalogue import Built, image, network, sequence, tokens, vector
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = "several inputs and outputs"


class ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.vector = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.head = nn.Linear(72 + 8, 4)

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.conv(picture), self.vector(numbers)], dim=1))


@network(GROUP, "an image and a vector")
def image_and_vector() -> Built:
    return ImageAndVector(), (image(size=8), vector(6))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.up, self.ip = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u, i = self.up(self.user(user)), self.ip(self.item(item))
        return (u * i).sum(dim=-1)


@network(GROUP, "two towers over identifiers, and their inner product")
def two_towers() -> Built:
    return TwoTowers(), (torch.randint(20, (5,)), torch.randint(30, (5,)))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(self.body(a), self.body(b), dim=1)


@network(GROUP, "two inputs through the same weights, and their cosine")
def siamese() -> Built:
    return Siamese(), (vector(), vector())


class SiameseConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(72, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(self.head(torch.abs(self.cnn(a) - self.cnn(b))))


@network(GROUP, "two images through the same convolutions, and their difference")
def siamese_convolutions() -> Built:
    return SiameseConvolutions(), (image(1, 8), image(1, 8))


@network(GROUP, "a bilinear form of two inputs")
def bilinear() -> Built:
    return _Bilinear(), (vector(8), vector(6))


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.form, self.head = nn.Bilinear(8, 6, 12), nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.form(a, b)))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.policy, self.value = nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return F.softmax(self.policy(h), dim=-1), self.value(h).squeeze(-1)


@network(GROUP, "a tuple: policy and value")
def policy_and_value() -> Built:
    return TwoHeads(), (vector(),)


class NamedHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.GELU())
        self.heads = nn.ModuleDict({"colour": nn.Linear(32, 3), "shape": nn.Linear(32, 5)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {name: head(h) for name, head in self.heads.items()}


@network(GROUP, "a dictionary of outputs")
def named_heads() -> Built:
    return NamedHeads(), (vector(),)


class Duelling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.value, self.advantage = nn.Linear(32, 1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(dim=1, keepdim=True)


@network(GROUP, "value and centred advantages, added")
def duelling() -> Built:
    return Duelling(), (vector(8),)


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16))
        self.rho = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(dim=1))


@network(GROUP, "sets: the sum over elements")
def deep_sets() -> Built:
    return DeepSets(), (sequence(9, 4),)


class MaskedSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi, self.rho = nn.Linear(4, 16), nn.Linear(32, 2)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        h = self.phi(x).relu()
        mask = present.unsqueeze(-1)
        count = present.sum(1, keepdim=True).to(h.dtype)
        mean = (h * mask).sum(1) / count
        highest = h.masked_fill(~mask, -1e9).max(1).values
        return self.rho(torch.cat([mean, highest], -1))


@network(GROUP, "sets of different sizes, with a mask of Booleans as an input")
def masked_sets() -> Built:
    present = torch.rand(5, 9) < 0.6
    present[:, 0] = True
    return MaskedSets(), (sequence(9, 4), present)


class GraphLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1, keepdim=True).clamp(min=1)
        return torch.bmm(adjacency / degree, self.linear(x))


class GraphNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = GraphLayer(6, 16), GraphLayer(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = F.relu(self.first(x, adjacency))
        h = F.relu(self.second(h, adjacency))
        return self.head(h.mean(dim=1))


@network(GROUP, "graphs with dense adjacency")
def graph_convolution() -> Built:
    return GraphNetwork(), (sequence(7, 6), (torch.rand(5, 7, 7) < 0.4).float())


class VariationalEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        self.decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).split(6, dim=-1)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decoder(z), mean, log_variance.exp()


@network(GROUP, "a variational autoencoder, whose evaluation takes the mean")
def variational_autoencoder() -> Built:
    return VariationalEncoder(), (vector(),)


class Modulated(nn.Module):
    """Channels scaled and shifted by another input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film = nn.Conv2d(3, 8, 3), nn.Linear(5, 16)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return self.head(F.relu((1 + scale) * self.conv(x) + shift).mean(dim=(2, 3)))


@network(GROUP, "channels modulated by a second input")
def modulated_channels() -> Built:
    return Modulated(), (image(size=8), vector(5))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 8, size) for size in (2, 3, 4))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).transpose(1, 2)
        pooled = [F.max_pool1d(F.relu(conv(h)), conv(h).shape[2]).squeeze(2) for conv in self.convs]
        return self.head(torch.cat(pooled, 1))


@network(GROUP, "convolutions of several widths over words")
def text_convolutions() -> Built:
    return Words(), (tokens(),)


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 16, mode="mean"), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


@network(GROUP, "a bag of words by nn.EmbeddingBag")
def embedding_bag() -> Built:
    return BagOfWords(), (tokens(),)


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(18, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, category: Tensor, numbers: Tensor) -> Tensor:
        coded = F.one_hot(category, 10).to(numbers.dtype)
        return self.body(torch.cat([coded, numbers], dim=-1))


@network(GROUP, "categories as one-hot vectors beside numbers")
def one_hot() -> Built:
    return OneHot(), (torch.randint(10, (5,)), vector(8))


class Pixels(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.48, 0.45, 0.41]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.23, 0.22, 0.23]).view(1, 3, 1, 1))
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.float() / 255 - self.mean) / self.std
        return self.head(self.conv(x).relu().flatten(1))


@network(GROUP, "images of bytes, standardised by the network")
def images_of_bytes() -> Built:
    return Pixels(), (torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8),)


class LastReal(nn.Module):
    """The output at the last place that is not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = torch.tanh(self.body(x)).cumsum(dim=1)
        index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, h.size(2))
        return self.head(h.gather(1, index).squeeze(1))


@network(GROUP, "the output at a place that an input names, by gather")
def gather_last() -> Built:
    return LastReal(), (sequence(), torch.randint(1, 13, (5,)))


class Decision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.body(x)
        return scores.argmax(dim=-1), scores.max(dim=-1).values, scores > 0


@network(GROUP, "a label, a score and Booleans as outputs")
def label_outputs() -> Built:
    return Decision(), (vector(),)
