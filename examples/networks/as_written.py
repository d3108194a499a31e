"""What people do to modules: subclasses, hooks, replaced forwards, weights behind other weights."""

from __future__ import annotations

import types

import torch
from catalogue import Built, image, network, vector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from bayesbin.nn import Residual

GROUP = "as written"


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@network(GROUP, "a subclass of Sequential that adds its input")
def skip_sequential() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32),
        Skip(nn.Linear(32, 32), nn.ReLU()),
        Skip(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)),
        nn.Linear(32, 4),
    )
    return net, (vector(),)


class HalfResidual(Residual):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * super().forward(input)


@network(GROUP, "a subclass of the package's Residual that halves the sum")
def skip_residual_subclass() -> Built:
    body = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    return nn.Sequential(nn.Linear(16, 32), HalfResidual(body), nn.Linear(32, 4)), (vector(),)


@network(GROUP, "the package's Residual with a shortcut")
def residual_shortcut() -> Built:
    block = Residual(nn.Sequential(nn.Linear(16, 32), nn.Tanh()), nn.Linear(16, 32, bias=False))
    return nn.Sequential(block, nn.Linear(32, 4)), (vector(),)


@network(GROUP, "a forward hook that changes values")
def forward_hook() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    net[0].register_forward_hook(lambda module, args, output: 2.0 * output - 0.3)
    return net, (vector(),)


@network(GROUP, "a forward pre-hook that changes values")
def forward_pre_hook() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    net[2].register_forward_pre_hook(lambda module, args: (args[0].flip(-1) + 0.1,))
    return net, (vector(),)


@network(GROUP, "net.forward replaced by a function")
def replaced_forward() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self: nn.Sequential, x: Tensor) -> Tensor:
        return self[2](torch.tanh(self[0](x))) - x

    net.forward = types.MethodType(forward, net)
    return net, (vector(),)


@network(GROUP, "net.forward replaced by a lambda that refers to the network by name")
def replaced_forward_closure() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    before = net.forward
    net.forward = lambda input: before(input) + net[2](net[0](input).tanh())
    return net, (vector(),)


@network(GROUP, "a hook that calls another layer of the network by name")
def hook_that_calls_a_layer() -> Built:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    net[1].register_forward_hook(lambda module, args, output: output + net[0](output))
    return net, (vector(),)


class HalfInput(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(0.5 * input) + input.mean(-1, keepdim=True)


@network(GROUP, "a subclass of Linear with a forward of its own")
def linear_subclass() -> Built:
    return nn.Sequential(HalfInput(16, 32), nn.ReLU(), HalfInput(32, 4)), (vector(),)


class StandardisedConv(nn.Conv2d):
    """Weights standardised over their inputs, as with group normalisation."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = w - w.mean(dim=(1, 2, 3), keepdim=True)
        w = w / (w.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(input, w, self.bias, self.stride, self.padding)


@network(GROUP, "convolutions whose weights are standardised in forward")
def weight_standardisation() -> Built:
    net = nn.Sequential(
        StandardisedConv(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        StandardisedConv(8, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )
    return net, (image(size=8),)


@network(GROUP, "weight normalisation by a hook; its directions are binary", where=nn.Linear)
def weight_norm_hook() -> Built:
    return (
        nn.Sequential(_with_hook(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 4)),
        (vector(),),
    )


def _with_hook(layer: nn.Linear) -> nn.Module:
    # The hook is deprecated in favour of the parametrization, and still found in many networks.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


@network(
    GROUP,
    "weight normalisation by a parametrization; its directions are binary",
    where=["0.parametrizations.weight.original1", "2.weight"],
    inputs={"0.parametrizations.weight.original1": 1},
)
def weight_norm_parametrization() -> Built:
    layer = parametrizations.weight_norm(nn.Linear(16, 32))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 4)), (vector(),)


@network(GROUP, "spectral normalisation of a real layer", where="2.weight")
def spectral_norm() -> Built:
    layer = parametrizations.spectral_norm(nn.Linear(16, 32))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 4)), (vector(),)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


@network(
    GROUP,
    "a parametrization of one's own: a symmetric matrix of signs",
    where=["0.parametrizations.weight.original", "2.weight"],
    inputs={"0.parametrizations.weight.original": 1},
)
def symmetric_parametrization() -> Built:
    layer = nn.Linear(16, 16)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 4)), (vector(),)


@network(GROUP, "a pruned layer: half of its signs are masked", where=["0.weight_orig", "2.weight"])
def pruned() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    prune.random_unstructured(net[0], "weight", amount=0.5)
    return net, (vector(),)


@network(GROUP, "a frozen random first layer")
def frozen_first_layer() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    net[0].requires_grad_(False)
    return net, (vector(),)


@network(GROUP, "a layer used twice")
def layer_used_twice() -> Built:
    shared = nn.Linear(16, 16)
    net = nn.Sequential(nn.Linear(16, 16), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(16, 4))
    return net, (vector(),)


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 6)
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encoder(x))
        return F.linear(code, self.encoder.weight.t(), self.bias)


@network(GROUP, "an autoencoder that decodes by the transposed weight")
def tied_autoencoder() -> Built:
    return TiedAutoencoder(), (vector(),)


class Loops(nn.Module):
    """A loop over layers in a dictionary, keyword arguments, branches on settings and shapes."""

    def __init__(self, depth: int = 2, bottleneck: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"layer{i}": nn.Linear(16, 16) for i in range(depth)})
        self.bottleneck = bottleneck
        self.squeeze, self.out = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, *, scale: float = 0.5) -> Tensor:
        for name, layer in self.layers.items():
            x = layer(x).relu() * scale + (x if name != "layer0" else 0)
        if self.bottleneck and x.shape[-1] == 16:
            x = self.squeeze(x)
        return self.out(x)


@network(GROUP, "branches on settings and shapes, and a dictionary of layers")
def branches_on_settings() -> Built:
    return Loops(), (vector(),)


class LengthOfBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 16))
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(len(x), 16)
        return self.second(torch.relu(self.first(x + token)))


@network(GROUP, "len(x), which torch.export takes for a constant", where=nn.Linear)
def length_of_batch() -> Built:
    return LengthOfBatch(), (vector(),)


@network(GROUP, "forward hooks that keep activations and change nothing")
def recording_hook() -> Built:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    kept: dict[str, tuple[int, ...]] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept["shape"] = tuple(output.shape[1:])

    net[1].register_forward_hook(keep)
    return net, (vector(),)
