"""Draws of a guide with log p and log q, and what their ratios say about the guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.distributions import RelaxedSignBernoulli
from bayesbin.distributions.wrappers import TRANSPARENT
from bayesbin.guides.announcing import LocalParameters
from bayesbin.guides.effects import with_effects
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.checks.pareto import pareto_smoothed
from bayesbin.infer.mcmc.log_joint import called_with, log_prob_of, require_whole_data
from bayesbin.infer.noise import NoiseStream
from bayesbin.infer.plates import subsamples_of
from bayesbin.infer.sites import latent_sites, run_at

CHECK_NOISE = 5  # stream number, apart from those of training, reports and MCMC


class WeightedDraws(NamedTuple):
    """log p(y, w, z) and log q(w, z) of S draws of a guide, in nats, each (S,)."""

    log_p: Tensor
    log_q: Tensor


def log_joint_and_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any = (),
    num_samples: int = 1000,
    seed: int = 0,
) -> WeightedDraws:
    r"""log p(y, w, z) and log q(w, z) at draws of the guide: what importance sampling needs.

    .. math:: \log \frac{p(y, w, z)}{q(w, z)}, \qquad (w, z) \sim q

    A guide with random effects is judged with them: they are sites of the guide and, under their prior,
    of the model, so that both densities are those of the whole draw.

    :param data: what the model is called with, the whole data set: a tuple, list, dict or tensor.
    :param num_samples: S. :param seed: draws are a function of it alone.
    :raises ValueError: for a part of the data, or a guide whose log q at signs has no closed form: one
        of relaxed weights, of points, or with auxiliary sites that the model does not have.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.infer.checks import log_joint_and_guide
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        >>> model = Classifier(BinaryLinear(3, 2), dataset_size=8)
        >>> log_p, log_q = log_joint_and_guide(model, AutoSignBernoulli(model), (x, y), 50)
        >>> log_p.shape, bool((log_q < 0).all())
        (torch.Size([50]), True)

    Source: Yao et al. 2018, "Yes, but did it work?", arXiv 1802.02538.
    """
    with torch.no_grad():
        rows = [
            (log_prob_of(trace), log_prob_of(guide_trace))
            for trace, guide_trace in traces_at_draws(model, guide, data, num_samples, seed)
        ]
    log_p, log_q = (torch.stack(column).double() for column in zip(*rows, strict=True))
    return WeightedDraws(log_p, log_q)


def traces_at_draws(
    model: Callable[..., Any], guide: Callable[..., Any], data: Any, num_samples: int, seed: int
) -> Iterator[tuple[Any, Any]]:
    """The traces of model and guide at S draws of the guide, one after another, without a graph."""
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    args, kwargs = called_with(data)
    whole = with_effects(model, guide)
    stream = NoiseStream(seed, CHECK_NOISE, 0)
    for s in range(num_samples):
        with torch.no_grad(), normalisation_kept(), poutine.block(), pyro.validation_enabled(False):
            with stream.active(), LocalParameters():
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
                guided = latent_sites(guide_trace)
                if s == 0:
                    _require_density(guided)
                values = {name: site["value"] for name, site in guided.items()}
                trace = run_at(whole, values, subsamples_of(guide_trace), args, kwargs)
            if s == 0:
                require_whole_data(trace)
                _require_sites(guided, latent_sites(trace))
        yield trace, guide_trace


def pareto_khat(log_p: Tensor, log_q: Tensor) -> float:
    r"""The shape of the tail of p/q over draws of the guide: whether it reaches where the posterior is.

    .. math:: \frac{p(y, w)}{q(w)} \sim \text{generalized Pareto}(\hat k), \qquad w \sim q

    in the largest weights. Below 0.5 the guide is close, below 0.7 importance weights can mend it, above
    it misses a part of the posterior, as one does that is overconfident. For signs the ratio takes
    finitely many values: -inf where the largest weights are all equal, as with an exact guide. A guide
    so sure that its draws hardly differ hides what it misses: look at its ELBO too.

    :param log_p: log p(y, w) at S draws, at least 25. :param log_q: log q(w) there, both (S,).
    :raises ValueError: for other shapes, or values that are not finite.

    Example::

        >>> import torch
        >>> from bayesbin.infer.checks import pareto_khat
        >>> normal, narrow = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, 0.5)
        >>> generator = torch.Generator().manual_seed(0)
        >>> w = 0.5 * torch.randn(2000, generator=generator)
        >>> pareto_khat(normal.log_prob(w), narrow.log_prob(w)) > 0.5  # its tails are too light
        True

    Source: Yao et al. 2018, arXiv 1802.02538; Vehtari et al. 2024, JMLR 25(72).
    """
    if log_p.shape != log_q.shape or log_p.dim() != 1:
        raise ValueError(
            f"expected log p and log q of one shape (S,), got {tuple(log_p.shape)} and "
            f"{tuple(log_q.shape)}; take them from log_joint_and_guide."
        )
    return pareto_smoothed(log_p - log_q)[1].item()


def _require_density(guided: dict[str, Any]) -> None:
    """Refuse distributions at which log q of the model's weights has no closed form."""
    for name, site in guided.items():
        distribution = site["fn"]
        while isinstance(distribution, TRANSPARENT):
            distribution = distribution.base_dist
        if isinstance(distribution, RelaxedSignBernoulli):
            raise ValueError(
                f"expected a guide that draws signs, got relaxed ones at {name!r}; use "
                "AutoSignBernoulli(model, init=guide.posterior())."
            )
        if isinstance(distribution, dist.Delta):
            raise ValueError(
                f"expected a guide with a density, got a point (Delta) at {name!r}; a point estimate has no "
                "log q to compare with log p."
            )


def _require_sites(guided: dict[str, Any], latents: dict[str, Any]) -> None:
    if foreign := sorted(guided.keys() - latents.keys()):
        raise ValueError(
            f"expected a guide of the model's latent sites, got also {', '.join(foreign)}: with sites that "
            "are only the guide's, log q of the others has no closed form; give the model a distribution "
            "for them."
        )
