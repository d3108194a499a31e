"""Running a model at given values of its latent sites, and reading off its log-likelihood and KL."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from bayesbin.core import fused, numerics
from bayesbin.distributions import RelaxedSignBernoulli, SignBernoulli
from bayesbin.distributions.wrappers import TRANSPARENT, sign_distribution, weight_distribution
from bayesbin.estimators import Estimator
from bayesbin.guides.announcing import LocalParameters
from bayesbin.infer.dependence import DependenceOnSigns
from bayesbin.infer.plates import check_plates, checked_indices, checked_value


class PlaceholderDraws(Messenger):
    """Spares a guide the drawing of signs that the estimator draws itself.

    ``following`` finds out which of its distributions depend on a binary draw, while it is entered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.following = DependenceOnSigns()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        self.following.at_site(msg)
        distribution = None if msg["done"] else sign_distribution(msg["fn"])
        if distribution is not None and not msg["fn"].has_rsample:
            msg["value"] = torch.ones(
                (), dtype=distribution.natural.dtype, device=distribution.natural.device
            ).expand(msg["fn"].shape())
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if weight_distribution(msg["fn"]) is not None and not msg["fn"].has_rsample:
            self.following.follow(msg["value"])


class FixedValues(Messenger):
    """Sets the value of every latent site; a site without one is an error that names it.

    ``poutine.condition`` would mark the sites as observed and ``poutine.substitute`` ignores values.
    Subsample indices drawn by the first run are replayed in the later ones of the same step.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        subsamples: dict[str, Tensor],
        following: DependenceOnSigns | None = None,
    ) -> None:
        super().__init__()
        self.values = values
        self.subsamples = subsamples
        self.guided = frozenset(subsamples)
        self.following = following

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"]:
            return
        name = msg["name"]
        if self.following is not None and not site_is_subsample(msg):
            self.following.at_site(msg)
        if site_is_subsample(msg):
            if name in self.subsamples:
                msg["value"], msg["done"] = checked_indices(msg, self.subsamples[name]), True
        elif name in self.values:
            msg["value"] = checked_value(msg, self.values[name], self.subsamples, self.guided)
            msg["done"] = True
        else:
            raise ValueError(
                f"The model samples {name!r}, which the guide does not know. Build the guide from this "
                "model, add the site to it, or observe it. (Enumerated sites need TraceEnum_ELBO.)"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.subsamples[msg["name"]] = msg["value"]
        elif self.following is not None and not msg["is_observed"]:
            self.following.after_site(msg["name"], msg["value"])


def run_at(
    model: Callable[..., Any],
    values: Mapping[str, Tensor],
    subsamples: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    following: DependenceOnSigns | None = None,
) -> Any:
    """The trace of the model at the given values of its latent sites.

    :param following: what finds out which latents depend on binary draws, if that is asked for.
    """
    with LocalParameters(), FixedValues(values, subsamples, following):
        return poutine.trace(model).get_trace(*args, **kwargs)


def latent_sites(trace: Any) -> dict[str, Any]:
    """The unobserved sample sites of a trace, without subsample indices."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def estimator_entry(distribution: Any) -> Any:
    """What an estimator is given for a site: natural parameters, or a distribution on a few levels."""
    found = weight_distribution(distribution)
    if isinstance(found, SignBernoulli):
        return found.natural.expand(distribution.shape())
    return None if found is None else found.expand(distribution.shape())


def any_value(entry: Any) -> Tensor:
    """A value of the site, whichever."""
    return torch.ones_like(entry) if isinstance(entry, Tensor) else entry.mode


def check_levels(estimator: Estimator, natural: Mapping[str, Any]) -> None:
    """Refuse weights with a few levels to an estimator of signs."""
    levels = [name for name, entry in natural.items() if not isinstance(entry, Tensor)]
    if levels and not estimator.low_bit:
        raise ValueError(
            f"{type(estimator).__name__} takes weights that are signs; {levels[0]!r} has other levels. Use "
            "LocalReparameterization, Concrete, ScoreFunction, ExpectedWeight or Enumerate."
        )


def observed_log_probs(trace: Any) -> Iterator[tuple[Any, Tensor]]:
    """The observed sites, each with its log probability in nats, scaled and masked, by batch shape."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site):
            fn = in_float32(site["fn"])
            value = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
            yield site, scaled(value, site)


def kl_of_site(guide_site: Any, model_site: Any) -> Tensor:
    """KL(q||p) of one latent site: closed-form where it is known, else log q - log p at the draw."""
    q, p = in_float32(guide_site["fn"]), in_float32(model_site["fn"])
    signs_q, signs_p = _discrete_distribution(q), _discrete_distribution(p)
    if signs_q is not None and signs_p is not None and q.shape() == p.shape():
        scale = torch.as_tensor(model_site["scale"])
        masks = [*_distribution_masks(q), *_distribution_masks(p)]
        if not masks and model_site["mask"] is None and scale.dim() == 0:
            natural = signs_q.natural.expand(q.shape())
            return fused.kl_sum(natural, signs_p.natural) * model_site["scale"]
    return kl_by_batch(guide_site, model_site).sum()


def kl_by_batch(guide_site: Any, model_site: Any) -> Tensor:
    """The same, scaled and masked, by the batch shape of the model's site, or in one sum where the two sites
    have other batch shapes."""
    q, p = in_float32(guide_site["fn"]), in_float32(model_site["fn"])
    signs_q, signs_p = _discrete_distribution(q), _discrete_distribution(p)
    if signs_q is not None:
        if signs_p is None:
            raise ValueError(
                f"The guide has a SignBernoulli at {guide_site['name']!r}, the model a "
                f"{type(p).__name__}; give the model a SignBernoulli prior there."
            )
        if q.shape() != p.shape():
            raise ValueError(
                f"At {guide_site['name']!r} the guide has shape {tuple(q.shape())} and the model "
                f"{tuple(p.shape())}; build the guide from this model."
            )
        natural = signs_q.natural.expand(q.shape())
        value = numerics.kl_divergence(*torch.broadcast_tensors(natural, signs_p.natural))
        for mask in (*_distribution_masks(q), *_distribution_masks(p)):
            value = torch.where(mask, value, 0.0)
        by_event: Any = sum_rightmost(value, p.event_dim)
        return scaled(by_event, model_site)
    try:
        closed_form: Any = kl_divergence(q, p)
        return scaled(closed_form, model_site)
    except NotImplementedError:
        value = guide_site["value"]
        log_q, log_p = scaled(q.log_prob(value), guide_site), scaled(p.log_prob(value), model_site)
        return log_q - log_p if log_q.shape == log_p.shape else log_q.sum() - log_p.sum()


def kl_of_sites(
    guided: Mapping[str, Any], latents: Mapping[str, Any], dependent: frozenset[str]
) -> Tensor:
    """The KL of all sites that do not depend on binary draws, auxiliary guide sites included."""
    check_plates(guided, latents)
    total: Any = 0.0  # a number, so that the dtype is that of the terms
    for name, site in guided.items():
        if name in dependent:
            continue
        if name in latents:
            total = total + kl_of_site(site, latents[name])
        elif site["infer"].get("is_auxiliary"):
            total = total + scaled_sum(site["fn"].log_prob(site["value"]), site)
        else:
            raise ValueError(
                f"The guide samples {name!r}, which is not a latent site of the model (its latent sites: "
                f"{', '.join(latents) or 'none'})."
            )
    return torch.as_tensor(total)


def scaled_sum(log_prob: Tensor, site: Any) -> Tensor:
    """The sum of a site's log probabilities, scaled and masked as Pyro's handlers ask."""
    return scaled(log_prob, site).sum()


def scaled(log_prob: Tensor, site: Any) -> Tensor:
    """A site's log probabilities, scaled and masked as Pyro's handlers ask."""
    return scale_and_mask(log_prob, site["scale"], site["mask"])


@contextmanager
def in_full_precision() -> Iterator[None]:
    """Switch autocast off: what is added up over a data set does not fit into the digits of bfloat16."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def in_float32(part: Any, above: tuple[int, ...] = ()) -> Any:
    """A distribution with its parameters of 16 bits, if it has any, converted to float32; else itself.

    :param above: what it is a part of, by ``id``: a transform and its inverse hold each other.
    """
    if isinstance(part, Tensor):
        return part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
    if isinstance(part, (list, tuple)):
        parts = [in_float32(each, above) for each in part]
        return part if all(a is b for a, b in zip(part, parts, strict=True)) else type(part)(parts)
    kinds = (torch.distributions.Distribution, torch.distributions.Transform)
    if not isinstance(part, kinds) or id(part) in above:
        return part
    wide = {name: in_float32(value, (*above, id(part))) for name, value in vars(part).items()}
    if all(wide[name] is value for name, value in vars(part).items()):
        return part
    part = copy.copy(part)
    vars(part).update(wide)
    return part


def _discrete_distribution(distribution: Any) -> SignBernoulli | None:
    """The distribution of the signs behind a distribution, drawn as they are or relaxed; None for
    any other distribution."""
    inner = distribution
    while isinstance(inner, TRANSPARENT):
        inner = inner.base_dist
    return inner.signs if isinstance(inner, RelaxedSignBernoulli) else sign_distribution(inner)


def _distribution_masks(distribution: Any) -> Iterator[Tensor]:
    """The masks inside a distribution of signs, shaped to broadcast against its elements."""
    while isinstance(distribution, TRANSPARENT):
        if isinstance(distribution, MaskedDistribution):
            mask = torch.as_tensor(distribution._mask)
            yield mask.reshape(mask.shape + (1,) * distribution.event_dim)
        distribution = distribution.base_dist
