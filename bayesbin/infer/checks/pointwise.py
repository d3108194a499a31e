"""The log-likelihood of each datum at a draw: what leave-one-out and ArviZ's diagnostics are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayesbin.distributions.wrappers import TRANSPARENT
from bayesbin.nn.likelihoods.base import WeightedTargets


class Pointwise(NamedTuple):
    """The data of an observed site, each of which has one element of its log-probability.

    :param log_prob: log p(y_n | w, z) in nats, not scaled or weighted.
    :param contribution: what a datum adds to the model's log joint: scaled and weighted.
    :param kept: which data count; those that are masked, or have a scale of 0, do not.
    """

    log_prob: Tensor
    contribution: Tensor
    kept: Tensor


def observed_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """The observed sites of a trace by name, without those that choose a subsample."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site):
            yield name, site


def pointwise_of(site: Any) -> Pointwise:
    """The log-likelihoods of an observed site, in float64.

    A datum of a likelihood of :mod:`bayesbin.nn` is a row of the batch, the sum over its targets that count,
    as ``likelihood.log_prob`` gives it. Of any other model it is an element of the site's log-probability.
    """
    fn, value = site["fn"], site["value"]
    weighted = fn.log_prob(value, *site["args"], **site["kwargs"]).double()
    plain = without_weights(fn)
    log_prob = weighted if plain is fn else plain.log_prob(value).double()
    scale = torch.as_tensor(site["scale"], dtype=torch.float64, device=weighted.device)
    kept = (scale != 0).expand(weighted.shape)
    for mask in (mask_of(fn), site["mask"]):
        if mask is not None:
            kept = kept & torch.as_tensor(mask, device=kept.device).expand(kept.shape)
    return Pointwise(log_prob, weighted * scale, kept)


def without_weights(distribution: Any) -> Any:
    """A distribution without the weights of targets in it; the distribution itself where there are none."""
    if isinstance(distribution, WeightedTargets):
        return distribution.base_dist
    if not isinstance(distribution, torch.distributions.Independent):
        return distribution
    base = without_weights(distribution.base_dist)
    if base is distribution.base_dist:
        return distribution
    return base.to_event(distribution.reinterpreted_batch_ndims)


def mask_of(distribution: Any) -> Tensor | None:
    """Which elements of a distribution's log-probability are not masked; None: all of them.

    An element that is a sum over several counts if any of them does.

    >>> import pyro.distributions as dist
    >>> mask = torch.tensor([[True, False], [False, False]])
    >>> mask_of(dist.Normal(torch.zeros(2, 2), 1.0).mask(mask).to_event(1)).tolist()
    [True, False]
    """
    found = mask_by_target(distribution)
    if found is None:
        return None
    rows = len(distribution.batch_shape)
    return found.flatten(rows).any(-1) if found.dim() > rows else found


def mask_by_target(distribution: Any) -> Tensor | None:
    """Which elements are not masked, those that are summed as one event counted by themselves; None: all."""
    if not isinstance(distribution, (*TRANSPARENT, WeightedTargets)):
        return None
    found = mask_by_target(distribution.base_dist)
    if isinstance(distribution, torch.distributions.Independent):
        return found
    shape = distribution.batch_shape
    if isinstance(distribution, MaskedDistribution):
        own = torch.as_tensor(distribution._mask).expand(shape)
        if found is None:
            return own
        return found & own.reshape(own.shape + (1,) * (found.dim() - own.dim()))
    return None if found is None else found.expand(shape + found.shape[len(shape) :])
