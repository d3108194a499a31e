"""A network of the catalogue made ready: converted, with plausible real numbers, and with a posterior."""

from __future__ import annotations

import copy
import importlib
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from catalogue import NETWORKS, Network
from torch import Tensor, nn

from bayesbin.core.networks import recompute
from bayesbin.distributions import LowBitCategorical, Support
from bayesbin.nn import binary_sites, to_binary_
from bayesbin.posterior import BinaryPosterior, LowBitPosterior, RealPosterior

NUM_DRAWS, SEED = 3, 0
FILES = (
    "perceptrons",
    "activations",
    "as_written",
    "convolutions",
    "vision",
    "attention",
    "recurrent",
    "binary",
    "several",
    "refused",
)
LEVELS = ((-1.0, 0.0, 1.0), (-1.5, -0.5, 0.5, 1.5))
_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class Prepared:
    """A converted network in evaluation mode, a posterior over its weights, and inputs."""

    network: Network
    net: nn.Module
    posterior: BinaryPosterior | LowBitPosterior
    inputs: tuple[Tensor, ...]


def catalogue() -> dict[str, Network]:
    """All networks by name, in the order of the files."""
    for name in FILES:
        importlib.import_module(name)
    return NETWORKS


def prepare(network: Network) -> Prepared:
    """Build a network, always with the same numbers, and convert it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(network.name.encode()))
            net, inputs = network.build()
            with warnings.catch_warnings():
                # It says which embeddings stay real; here they are meant to.
                warnings.simplefilter("ignore", UserWarning)
                to_binary_(net, **network.conversion)
            vary_(net)
            settle_(net, inputs)
            return Prepared(network, net.eval(), make_posterior(net, network.posterior), inputs)
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def vary_(net: nn.Module) -> None:
    """Move biases, slopes and everything that starts constant, so that no part of a network is idle.

    A quarter of the slopes of normalisations become negative: a sign behind them then turns around.
    """
    norms = {
        id(m.weight)
        for m in net.modules()
        if isinstance(m, _NORMALISATIONS) and m.weight is not None
    }
    for parameter in net.parameters():
        if not parameter.is_floating_point():
            continue
        if id(parameter) in norms:
            signs = 1.0 - 2.0 * (torch.rand_like(parameter) < 0.25)
            parameter.copy_((0.5 + torch.rand_like(parameter)) * signs)
        elif parameter.dim() <= 1 or bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(0.2 * torch.randn_like(parameter))


@torch.no_grad()
def settle_(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give running statistics the values of one batch, as after training."""
    tracking = [
        m
        for m in net.modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats
    ]
    if not tracking:
        return
    momenta = [m.momentum for m in tracking]
    for m in tracking:
        m.momentum = 1.0
    net.train()(*inputs)
    for m, momentum in zip(tracking, momenta, strict=True):
        m.momentum = momentum


def make_posterior(net: nn.Module, kind: str = "binary") -> Any:
    """A posterior over the binary weights of a converted network, with random natural parameters.

    :param kind: "binary", "point", "effects" or "low-bit".
    """
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    sites = binary_sites(net)
    if kind == "low-bit":
        levels = [LEVELS[i % len(LEVELS)] for i in range(len(sites))]
        return LowBitPosterior(
            {
                name: LowBitCategorical(each, noise(*site.shape, len(each)))
                for (name, site), each in zip(sites.items(), levels, strict=True)
            }
        )
    natural = {name: noise(*site.shape) for name, site in sites.items()}
    if kind == "point":
        return BinaryPosterior({name: 40.0 * lam.sign() for name, lam in natural.items()})
    if kind == "effects":
        effects = {name: f"{name}.unit" for name in natural}
        real = {
            effects[name]: RealPosterior(
                noise(len(lam), 1), torch.full((len(lam), 1), 0.7), Support("real")
            )
            for name, lam in natural.items()
        }
        return BinaryPosterior(natural, real, {name: [each] for name, each in effects.items()})
    return BinaryPosterior(natural)


def drawn_in_float64(prepared: Prepared, draw: int) -> nn.Module:
    """The user's network with one draw of its weights, in float64: built anew, and not a copy."""
    net = prepare(prepared.network).net
    with torch.no_grad():
        for name, signs in prepared.posterior.signs(draw, seed=SEED).items():
            binary_sites(net)[name].signs.copy_(signs)
    for module in net.modules():
        recompute(module)
    return net.double()


def doubled(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs in float64, but whole numbers."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def copied(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs that a network may write into."""
    return copy.deepcopy(inputs)
