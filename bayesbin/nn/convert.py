"""Turn the weights of any torch network into binary weights, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import parametrize

from bayesbin.nn.layers import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeight,
    LayerPrior,
    ScaledSigns,
    binary_sites,
    checked_prior,
    resolve_scale,
)

Network = TypeVar("Network", bound=nn.Module)
Predicate = Callable[[str, nn.Module], bool]
Prior = LayerPrior | Mapping[str, Any] | Callable[[str, Tensor], LayerPrior]

_LAYERS: dict[type, type] = {
    nn.Linear: BinaryLinear,
    nn.Conv1d: BinaryConv1d,
    nn.Conv2d: BinaryConv2d,
}


def linear_and_convolution_weights(name: str, module: nn.Module) -> bool:
    """The default choice of ``to_binary_``: weights of Linear, Conv1d and Conv2d, not their biases."""
    return type(module) in _LAYERS and name.rpartition(".")[2] == "weight"


def to_binary_(
    module: Network,
    where: Predicate = linear_and_convolution_weights,
    *,
    prior: Prior = 0.0,
    scale: float | str = "fan-in",
) -> Network:
    """Replace the chosen weights of a network by signs, in place, and return the network.

    A chosen weight of ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` becomes that of the binary layer of
    the same shape; one of any other module becomes a torch parametrization, scale times signs. Signs
    are those of the real weights. Biases, normalisation and everything not chosen stay as they are.

    :param where: ``where(name, owner) -> bool`` for the dotted parameter name and the module that owns
        the parameter.
    :param prior: natural parameter of the prior, half the log-odds of +1, or the prior itself:
        ``SignBernoulli(probs=0.3)`` for P(w = +1) = 0.3. One number, tensor or distribution for all
        weights, a mapping from site name to one (a ``BinaryPosterior`` is such), or ``prior(name, weight)``.
    :param scale: "fan-in" (1 / sqrt(inputs of a unit)) or a positive number.
    :raises ValueError: if nothing is chosen, a parameter is reached twice (tied weights, or a weight
        that is already binary), or a prior does not fit.

    Example::

        >>> import torch
        >>> from bayesbin.nn import binary_sites, to_binary_
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> list(binary_sites(to_binary_(net, where=lambda name, owner: name == "0.weight")))
        ['0.weight']
        >>> from bayesbin.distributions import SignBernoulli
        >>> few = to_binary_(torch.nn.Linear(2, 8), prior=SignBernoulli(probs=0.1))
        >>> round(binary_sites(few)["weight"].prior.item(), 4)
        -1.0986
    """
    chosen = chosen_parameters(module, where)
    site_prior = _prior_lookup(prior, [name for name, _, _ in chosen])
    weights = {name: owner.get_parameter(leaf) for name, owner, leaf in chosen}
    # Whatever does not fit is found before anything is replaced: an error leaves the network whole.
    priors = {name: checked_prior(site_prior(name, w), w) for name, w in weights.items()}
    for weight in weights.values():
        resolve_scale(scale, weight)
    for name, owner, leaf in chosen:
        if type(owner) in _LAYERS and leaf == "weight":
            # Same shape, same parameters otherwise: the layer becomes its binary counterpart, so the
            # conversion is in place wherever the layer is referenced from, the root included.
            binary: Any = owner
            binary.__class__ = _LAYERS[type(owner)]
            binary._make_binary(scale, priors[name])
        else:
            rule = ScaledSigns(weights[name].detach(), scale, priors[name])
            parametrize.register_parametrization(owner, leaf, rule)
            # The signs are a buffer, as those of the layers are: no optimizer ever claims them.
            chains: Any = owner.parametrizations
            chain = chains[leaf]
            signs = chain._parameters.pop("original")
            chain.register_buffer("original", signs.detach())
    return module


def chosen_parameters(
    module: nn.Module, where: Predicate, caller: str = "to_binary_"
) -> list[tuple[str, nn.Module, str]]:
    """Dotted name, owner and own name of the parameters that ``where`` accepts, or an error."""
    already = binary_sites(module)
    claimed: dict[int, str] = {}
    chosen = []
    for path, owner in module.named_modules():
        if isinstance(owner, (ScaledSigns, parametrize.ParametrizationList)):
            continue
        prefix = f"{path}." if path else ""
        if isinstance(owner, BinaryWeight) and where(f"{prefix}weight", owner):
            raise ValueError(
                f"{prefix}weight is binary already; {caller} converts a network once. "
                "Exclude it in `where`."
            )
        for leaf, parameter in owner._parameters.items():
            name = f"{prefix}{leaf}"
            if parameter is None or not where(name, owner):
                continue
            if id(parameter) in claimed:
                raise ValueError(
                    f"{name} and {claimed[id(parameter)]} are one tied parameter, which cannot be "
                    "two sites. Choose one of them in `where`, or untie them first."
                )
            claimed[id(parameter)] = name
            chosen.append((name, owner, leaf))
    if not chosen:
        known = ", ".join(name for name, _ in module.named_parameters()) or "none"
        hint = f"; already binary: {', '.join(already)}" if already else ""
        raise ValueError(
            f"{caller} found no parameter to convert: `where` accepted none of this network's "
            f"parameters ({known}{hint})."
        )
    return chosen


def _prior_lookup(prior: Prior, names: list[str]) -> Callable[[str, Tensor], LayerPrior]:
    if isinstance(prior, Mapping):
        if missing := [name for name in names if name not in prior]:
            raise ValueError(f"The prior has no entry for {', '.join(missing)}.")
        return lambda name, weight: prior[name]
    if callable(prior) and not isinstance(
        prior, Distribution
    ):  # Pyro's distributions can be called, too
        return prior
    return lambda name, weight: prior
