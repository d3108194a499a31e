"""Published methods in plain torch, as their papers write them: what the recipes are compared with.

A twin has the network 784-...-10 of the recipes, the same settings, and nothing of this package. What feeds
a layer is multiplied by the power of two nearest to one over the root of its fan-in, as there.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sign(v: Tensor) -> Tensor:
    return torch.where(v >= 0, 1.0, -1.0)


class Twin:
    """Straight-through signs of latents under Adam; the others change a line or two of it."""

    lr, draws = 1e-2, False

    def __init__(
        self, shapes: list[tuple[int, int]], size: int, epochs: int, init_scale: float = 0.1
    ) -> None:
        self.size, self.epochs, self.now, self.init_scale = size, epochs, 0, init_scale
        self.latents: list[list[Any]] = [
            [nn.Parameter(v) for v in self.start(shape)] for shape in shapes
        ]
        self.optimizer = self.make([p for layer in self.latents for p in layer])

    def start(self, shape: tuple[int, int]) -> list[Tensor]:
        return [self.init_scale * torch.randn(shape)]

    def make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr)

    def weights(self, layer: list[Any]) -> Tensor:
        return sign(layer[0].detach()) + layer[0] - layer[0].detach()

    def linear(self, x: Tensor, layer: list[Any]) -> Tensor:
        return F.linear(x, self.weights(layer))

    def hard(self, layer: list[Any]) -> Tensor:
        return sign(layer[0].detach())

    def draw(self, layer: list[Any]) -> Tensor:
        return self.hard(layer)

    def step(self) -> None:
        self.optimizer.step()

    def end_epoch(self) -> None:
        self.now += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.5 * self.lr * (1 + math.cos(math.pi * self.now / self.epochs))


class BinaryConnect(Twin):
    def step(self) -> None:
        super().step()
        for (v,) in self.latents:
            v.data.clamp_(-1, 1)


class StochasticBinaryConnect(BinaryConnect):
    lr = 0.1

    def weights(self, layer: list[Any]) -> Tensor:
        v = layer[0]
        return sign(v.detach() + 1 - 2 * torch.rand_like(v)) + v - v.detach()


class TernaryConnect(BinaryConnect):
    def start(self, shape: tuple[int, int]) -> list[Tensor]:
        return [torch.randn(shape) / 3**0.5]

    def weights(self, layer: list[Any]) -> Tensor:
        v = layer[0]
        drawn = (torch.rand_like(v) < v.detach().abs()) * torch.sign(v.detach())
        return drawn + v - v.detach()

    def hard(self, layer: list[Any]) -> Tensor:
        return layer[0].detach().round()


class ReCU(Twin):
    lr = 0.1

    def make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=5e-4)

    def weights(self, layer: list[Any]) -> Tensor:
        v = layer[0] - layer[0].mean(1, keepdim=True)
        v = v / (v.var(1, keepdim=True) + 1e-5).sqrt() * (2.0 * math.sqrt(2.0))
        rise, e = 0.14 / (math.e - 1), math.e
        tau = rise * math.exp(self.now / self.epochs) + (e * 0.85 - 0.99) / (e - 1)
        bound = -v.detach().abs().mean().item() * math.log(2 - 2 * tau)
        v = v.clamp(-bound, bound)
        return sign(v.detach()) + v - v.detach()

    def hard(self, layer: list[Any]) -> Tensor:
        return sign(self.weights(layer).detach())


class SLB(Twin):
    def start(self, shape: tuple[int, int]) -> list[Tensor]:
        v = torch.randn(shape)[..., None]
        return [-0.5 * (v - torch.tensor([-1.0, 1.0])) ** 2]

    def weights(self, layer: list[Any]) -> Tensor:
        part = min(max((self.now / self.epochs - 0.2) / 0.7, 0.0), 1.0)
        return torch.softmax(100.0**part * layer[0], -1) @ torch.tensor([-1.0, 1.0])

    def hard(self, layer: list[Any]) -> Tensor:
        return sign(layer[0].detach()[..., 1] - layer[0].detach()[..., 0])


class Bop(Twin):
    """The optimizer is there for its gradients alone; the rule is in ``step``."""

    def start(self, shape: tuple[int, int]) -> list[Tensor]:
        self.averages = [*getattr(self, "averages", []), torch.zeros(shape)]
        self.squares = [*getattr(self, "squares", []), torch.zeros(shape)]
        return [sign(torch.randn(shape))]

    def weights(self, layer: list[Any]) -> Tensor:
        return layer[0]

    def step(self) -> None:
        gamma = 1e-4 * 0.1 ** (self.now / self.epochs)
        for (w,), m in zip(self.latents, self.averages, strict=True):
            m.mul_(1 - gamma).add_(gamma * w.grad)
            w.data[w * m > 1e-6 / w.shape[1] ** 0.5] *= -1


class SecondOrderBop(Bop):
    def step(self) -> None:
        gamma, sigma, threshold = 1e-2, 1e-2, 0.3 - 0.2 * self.now / self.epochs
        for (w,), m, v in zip(self.latents, self.averages, self.squares, strict=True):
            m.mul_(1 - gamma).add_(gamma * w.grad)
            v.add_(sigma * (w.grad**2 - v))
            w.data[w * m / (v.sqrt() + 1e-10) > threshold] *= -1


class LRNet(Twin):
    lr, draws = 0.1, True

    def linear(self, x: Tensor, layer: list[Any]) -> Tensor:
        mean = torch.tanh(layer[0])
        variance = F.linear(x**2, 1 - mean**2) + 1e-12
        return F.linear(x, mean) + variance.sqrt() * torch.randn(len(x), len(mean))

    def draw(self, layer: list[Any]) -> Tensor:
        noise = torch.rand_like(layer[0])
        return sign(torch.sigmoid(2 * layer[0].detach()) - noise)


class BayesBiNN(LRNet):
    tau, kl_weight = 0.5, 0.02

    def linear(self, x: Tensor, layer: list[Any]) -> Tensor:
        u = torch.rand_like(layer[0]).clamp(1e-7, 1 - 1e-7)
        relaxed = torch.tanh((layer[0] + 0.5 * torch.log(u / (1 - u))) / self.tau)
        return F.linear(x, relaxed)

    def step(self) -> None:
        """Natural gradient, in units of its running root mean square, with momentum."""
        lr, t = self.optimizer.param_groups[0]["lr"], getattr(self, "t", 0) + 1
        self.t = t
        for (v,) in self.latents:
            state = self.optimizer.state[v]
            g = self.size * v.grad * torch.cosh(v.data) ** 2 + self.kl_weight * v.data
            state["s"] = 0.99 * state.get("s", 0.0) + 0.01 * float((g**2).mean())
            g = g / (state["s"] / (1 - 0.99**t)) ** 0.5
            state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
            v.data -= lr * state["m"] / (1 - 0.9**t)
            v.data.clamp_(-40.0, 40.0)  # where cosh overflows, a gradient of 0 becomes NaN


class SnapQuant(LRNet):
    def start(self, shape: tuple[int, int]) -> list[Tensor]:
        return [self.init_scale / 3**0.5 * torch.randn(s) for s in ((1, 1), (shape[0], 1), shape)]

    def weights(self, layer: list[Any]) -> Tensor:
        total = layer[0] + layer[1] + layer[2]
        w = self.draw(layer)
        reward = (1 - w * torch.tanh(total.detach())) * (total - total.detach())
        return w + reward

    def linear(self, x: Tensor, layer: list[Any]) -> Tensor:
        return F.linear(x, self.weights(layer))

    def hard(self, layer: list[Any]) -> Tensor:
        return sign((layer[0] + layer[1] + layer[2]).detach())

    def draw(self, layer: list[Any]) -> Tensor:
        return super().draw([layer[0] + layer[1] + layer[2]])


TWINS: dict[str, type[Twin]] = {
    "bayesbinn": BayesBiNN,
    "lr-net": LRNet,
    "snapquant": SnapQuant,
    "ste": Twin,
    "binaryconnect": BinaryConnect,
    "binaryconnect-stochastic": StochasticBinaryConnect,
    "ternaryconnect": TernaryConnect,
    "bop": Bop,
    "bop2": SecondOrderBop,
    "recu": ReCU,
    "slb": SLB,
}


class TwinNetwork(nn.Module):
    """[linear, BatchNorm or a bias, ReLU] per hidden layer, linear, learned scale."""

    def __init__(self, sizes: list[int], normalize: bool) -> None:
        super().__init__()
        self.fan_ins = sizes[:-1]
        between = [nn.BatchNorm1d(n) if normalize else Bias(n) for n in sizes[1:-1]]
        self.between = nn.ModuleList(between)
        self.last, self.log_scale = Bias(sizes[-1]), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, linears: list[Any]) -> Tensor:
        for k, (linear, fan_in) in enumerate(zip(linears, self.fan_ins, strict=True)):
            x = linear(x * 2.0 ** -math.ceil((math.log2(fan_in) - 1.0) / 2.0))
            x = self.between[k](x).relu() if k < len(self.between) else self.last(x)
        return x * self.log_scale.exp()


class Bias(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def train_twin(
    name: str,
    x: Tensor,
    y: Tensor,
    sizes: list[int],
    normalize: bool,
    epochs: int,
    seed: int,
    init_scale: float = 0.1,
) -> tuple[TwinNetwork, Twin, list[float]]:
    """The network, the twin, and the mean training loss of each epoch."""
    torch.manual_seed(seed)
    net = TwinNetwork(sizes, normalize)
    shapes = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    twin = TWINS[name](shapes, len(x), epochs, init_scale)
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x)).split(100):
            linears = [lambda h, layer=layer: twin.linear(h, layer) for layer in twin.latents]
            loss = F.cross_entropy(net(x[batch], linears), y[batch])
            twin.optimizer.zero_grad()
            adam.zero_grad()
            loss.backward()
            twin.step()
            adam.step()
            total += loss.item() * len(batch) / len(x)
        losses.append(total)
        twin.end_epoch()
        cosine.step()
    return net, twin, losses


@torch.no_grad()
def twin_log_probs(
    net: TwinNetwork, twin: Twin, x: Tensor, calibration: Tensor, draws: int
) -> Tensor:
    """Log of the probabilities averaged over draws, each with its own normalisation statistics; (N, C)."""
    total = []
    for _ in range(draws if twin.draws else 1):
        signs = [twin.draw(layer) for layer in twin.latents]
        linears = [lambda h, w=w: F.linear(h, w) for w in signs]
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
                module.momentum = None  # the statistics of all batches since, here of one
        net.train()(calibration, linears)
        total.append(torch.log_softmax(net.eval()(x, linears).double(), -1))
    return torch.logsumexp(torch.stack(total), 0) - math.log(len(total))
