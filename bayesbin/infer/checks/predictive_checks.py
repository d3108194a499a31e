"""Data that a posterior would have produced, held against the data there were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.checks.importance import CHECK_NOISE
from bayesbin.infer.checks.pointwise import observed_sites
from bayesbin.infer.mcmc.log_joint import called_with
from bayesbin.infer.noise import NoiseStream
from bayesbin.infer.sites import run_at


def replicate(
    model: Callable[..., Any],
    draws: Iterable[Mapping[str, Tensor]],
    data: Any = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""New values of a model's observed sites at each draw of its latent ones.

    .. math:: y^{(s)} \sim p(y | w_s, z_s)

    with the inputs of ``data``. A site whose distribution looks at another observed site sees the data there.

    :param draws: dictionaries of all latent sites: ``(posterior.sample(s) for s in range(S))``, or the
        ``draws()`` of an :class:`MCMCResult`.
    :param data: what the model is called with: a tuple, list, dict or tensor.
    :returns: observed site -> values (S, ...).
    :raises ValueError: for no draws, or a model without observed data.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.infer.checks import replicate
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        >>> model = Classifier(BinaryLinear(3, 2), dataset_size=8)
        >>> posterior = BinaryPosterior({"weight": torch.zeros(2, 3)})
        >>> replicate(model, (posterior.sample(s) for s in range(20)), (x, y))["y"].shape
        torch.Size([20, 8])

    Source: Gelman, Meng and Stern 1996, "Posterior predictive assessment of model fitness".
    """
    args, kwargs = called_with(data)
    stream = NoiseStream(seed, CHECK_NOISE, 3)
    found: dict[str, list[Tensor]] = {}
    for draw in draws:
        with torch.no_grad(), normalisation_kept(), poutine.block(), pyro.validation_enabled(False):
            with stream.active():
                trace = run_at(model, draw, {}, args, kwargs)
                for name, site in observed_sites(trace):
                    found.setdefault(name, []).append(site["fn"].sample())
    if not found:
        raise ValueError(
            "expected draws, and a model with observed data, got none; pass the targets in data too."
        )
    return {name: torch.stack(values) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """A statistic of the data among that of replicated data.

    :param observed: T(y). :param replicated: T of each replication, (S,).
    :param p_value: P(T(y_rep) > T(y)), plus half of P(T(y_rep) = T(y)); near 0 or 1 the model does not
        produce such data. It is not uniform under the model, but drawn towards 1/2.
    """

    observed: float
    replicated: Tensor
    p_value: float

    def __str__(self) -> str:
        low, high = torch.quantile(self.replicated, self.replicated.new_tensor([0.025, 0.975]))
        return (
            f"observed {self.observed:.4g}, replicated {low:.4g} to {high:.4g} (95 %), "
            f"p = {self.p_value:.3f}"
        )


def posterior_predictive_check(
    statistic: Callable[[Tensor], Tensor], y: Tensor, replicated: Tensor, mask: Any = None
) -> PredictiveCheck:
    """How a statistic of the data compares with that of data the posterior would have produced.

    :param statistic: of data of y's shape, a number; one that the model was not fitted to tells most.
    :param y: the observed data, (N, ...). :param replicated: (S, N, ...), from :func:`replicate`.
    :param mask: which data count, truth values in the shape of y; the statistic is then of those, in one
        dimension. None: all of them.
    :raises ValueError: for shapes that do not fit, or a statistic that is no number, or not finite.

    Example::

        >>> import torch
        >>> from bayesbin.infer.checks import posterior_predictive_check
        >>> y = torch.tensor([1.0, 2.0, 9.0])
        >>> check = posterior_predictive_check(torch.max, y, torch.tensor([[1.0, 2, 3], [0, 9, 1]]))
        >>> check.p_value  # one below, one equal
        0.25

    Source: Gelman et al. 2013, Bayesian Data Analysis, section 6.3.
    """
    if replicated.shape[1:] != y.shape or len(replicated) == 0:
        raise ValueError(
            f"expected replications (S, {', '.join(map(str, y.shape))}), got {tuple(replicated.shape)}; "
            "take them from replicate."
        )
    if mask is not None:
        kept = as_tensor("a mask", mask).to(y.device)
        if kept.shape != y.shape or kept.dtype is not torch.bool or not bool(kept.any()):
            raise ValueError(
                f"expected a mask of truth values of shape {tuple(y.shape)}, some of them true; got "
                f"{kept.dtype} of shape {tuple(kept.shape)}."
            )
        y, replicated = y[kept], replicated[:, kept]
    observed = torch.as_tensor(statistic(y)).double()
    values = [torch.as_tensor(statistic(row)).double() for row in replicated]
    if observed.dim() > 0 or not all(bool(torch.isfinite(v).all()) for v in (observed, *values)):
        raise ValueError(
            f"expected a statistic that is one finite number, got {observed.tolist()} of the data; reduce it "
            "over the data."
        )
    found = torch.stack(values)
    above, equal = (found > observed).double().mean(), (found == observed).double().mean()
    return PredictiveCheck(observed.item(), found, (above + 0.5 * equal).item())
