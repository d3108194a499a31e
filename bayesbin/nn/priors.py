"""Priors that are learned: a hyperparameter per layer of binary weights, with a distribution of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayesbin.distributions import Support
from bayesbin.nn.effective import BinarySite


def hyperparameter_name(site: str) -> str:
    """The Pyro site of the hyperparameter behind the prior of a site of signs."""
    return f"{site}.prior"


def checked_hyperpriors(hyperprior: Any, sites: Mapping[str, BinarySite]) -> dict[str, Any]:
    """The distribution of each site's hyperparameter, or an error that names what does not fit.

    :param hyperprior: None, one distribution for all sites, or a mapping from site names to distributions.
    """
    if hyperprior is None:
        return {}
    given = hyperprior if isinstance(hyperprior, Mapping) else dict.fromkeys(sites, hyperprior)
    if unknown := [name for name in given if name not in sites]:
        raise ValueError(
            f"The hyperprior names {', '.join(map(repr, unknown))}, where the network has no binary "
            f"weights; it has {', '.join(sites)}."
        )
    for name, distribution in given.items():
        _check(distribution, sites[name])
    return dict(given)


def sample_natural(site: BinarySite, distribution: Any) -> Tensor:
    """The natural parameter of a site's prior: given (distribution None), or from a drawn hyperparameter."""
    if distribution is None:
        return site.prior
    value = pyro.sample(hyperparameter_name(site.name), on_device(distribution, site.prior.device))
    if _is_probability(distribution, site.name):
        # As far from 0 as floating-point numbers below 1 can be from 1: beyond that p is 0 or 1 as far
        # as anyone can tell, and the slope 1 / (p (1 - p)) would leave the range of the dtype.
        eps = torch.finfo(value.dtype).eps
        return (0.5 * torch.logit(value.clamp(eps, 1.0 - eps))).to(site.prior.dtype)
    return site.prior + value.to(site.prior.dtype)


def on_device(distribution: Any, device: torch.device) -> Any:
    """A distribution with its parameters on a device; distributions, unlike modules, do not move
    with a model."""
    changes = {}
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor) and value.device != device:
            changes[name] = value.to(device)
        elif isinstance(value, torch.distributions.Distribution):
            moved = on_device(value, device)
            if moved is not value:
                changes[name] = moved
    if not changes:
        return distribution
    new = copy.copy(distribution)
    vars(new).update(changes)
    return new


def _is_probability(distribution: Any, name: str) -> bool:
    return Support.of(distribution.support, name).kind != "real"


def _check(given: Any, site: BinarySite) -> None:
    if not isinstance(given, dist.Distribution):
        raise ValueError(
            f"The hyperprior of {site.name!r} is a Pyro distribution, such as "
            f"pyro.distributions.Beta(2.0, 2.0); got {type(given).__module__}.{type(given).__name__}."
        )
    distribution: Any = given
    came = type(distribution).__name__
    if distribution.batch_shape or distribution.event_shape:
        raise ValueError(
            f"The hyperprior of {site.name!r} is the distribution of one number, for all weights of the "
            f"layer; got a {came} of batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}. Other distributions for other layers are a mapping from "
            "their names."
        )
    wanted = (
        f"The hyperprior of {site.name!r} is continuous, on the real line (a shift of the natural "
        "parameter) or inside [0, 1] (P(w = +1))"
    )
    if distribution.support.is_discrete:
        raise ValueError(f"{wanted}; got the discrete {came}.")
    try:
        support = Support.of(distribution.support, site.name)
    except ValueError:
        raise ValueError(f"{wanted}; got a {came} on {distribution.support}.") from None
    low, high = support.bounds if support.kind == "interval" else (0.0, 1.0)
    if support.kind not in ("real", "unit_interval", "interval") or low < 0 or high > 1:
        raise ValueError(f"{wanted}; got a {came} on {distribution.support}.")
    if support.kind != "real" and bool(site.prior.any()):
        raise ValueError(
            f"The layer of {site.name!r} has a prior of its own, which a distribution of P(w = +1) would "
            "replace; leave the layer's at 0, or give a distribution on the real line, which shifts it."
        )
