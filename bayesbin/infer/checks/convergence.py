"""Whether several chains, or several restarts of a guide, agree: R-hat and effective sample sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.posterior import BinaryPosterior

_LEAST_DRAWS = 4  # of which ArviZ makes two half chains
_TAILS = (0.05, 0.95)  # the default of ArviZ 0.23; from 1.0 on arrays come without one


@dataclass(frozen=True, eq=False)
class Convergence:
    """R-hat and effective sample sizes of functions of the draws, each of the functions' shape.

    :param rhat: rank-normalised split R-hat; below 1.01 the chains agree. NaN for a function that is
        constant over all draws, and everywhere if there is one chain.
    :param ess_bulk: effective sample size, for means. :param ess_tail: for quantiles of 5 and 95 %.
    """

    rhat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor

    @property
    def worst_rhat(self) -> float:
        """The largest R-hat of a function that varies; NaN if none does."""
        return _largest(self.rhat)

    @property
    def least_ess(self) -> float:
        """The smallest effective sample size, in bulk or tail, of a function that varies."""
        return -_largest(-torch.minimum(self.ess_bulk, self.ess_tail))

    def __str__(self) -> str:
        return f"R-hat up to {self.worst_rhat:.3f}, effective draws from {self.least_ess:.0f}"


def convergence(values: Tensor) -> Convergence:
    r"""R-hat and effective sample sizes, by ArviZ, of functions of the draws of several chains.

    .. math:: \hat R = \sqrt{\frac{\text{variance of all draws}}{\text{variance within chains}}}

    of ranks, with each chain split in two. Take functions that mean the same in every chain: outputs of
    the network, the log joint. Weights do not: hidden units may be permuted and their signs turned.

    :param values: (C, S) or (C, S, ...): chains, draws, functions.
    :raises ValueError: for another shape, fewer than 4 draws, or values that are not finite.

    Example::

        >>> import torch
        >>> from bayesbin.infer.checks import convergence
        >>> generator = torch.Generator().manual_seed(0)
        >>> chains = torch.randn(4, 500, 3, generator=generator)
        >>> chains[0, :, 2] += 2.0  # one chain is elsewhere
        >>> [bool(r < 1.01) for r in convergence(chains).rhat]
        [True, True, False]

    Source: Vehtari et al. 2021, "Rank-normalization, folding, and localization", arXiv 1903.08008.
    """
    if values.dim() < 2 or values.shape[1] < _LEAST_DRAWS:
        raise ValueError(
            f"expected values (chains, draws, ...) of at least {_LEAST_DRAWS} draws, got "
            f"{tuple(values.shape)}; stack the chains first."
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("expected finite values, got NaN or infinity; look for a diverged chain.")
    import arviz as az  # takes long to load

    chains, draws, *shape = values.shape
    columns = values.detach().double().cpu().reshape(chains, draws, -1).numpy()
    table = np.full((3, columns.shape[2]), math.nan)
    for i in range(columns.shape[2]):
        column = columns[:, :, i]
        if np.ptp(column) == 0.0:
            continue
        # Chains that never move, each at a value of its own: R-hat is infinite, a division by 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            table[0, i] = az.rhat(column) if chains > 1 else math.nan
            table[1, i] = az.ess(column, method="bulk")
            table[2, i] = az.ess(column, method="tail", prob=_TAILS)
    rhat, bulk, tail = torch.from_numpy(table).reshape(3, *shape)
    return Convergence(rhat, bulk, tail)


@dataclass(frozen=True, eq=False)
class Restarts:
    """Posteriors of several restarts, and how far functions of their draws agree.

    :param posteriors: one for each restart. :param values: of the function, (K, S, ...).
    """

    posteriors: tuple[BinaryPosterior, ...]
    values: Tensor
    convergence: Convergence

    def __str__(self) -> str:
        return f"{len(self.posteriors)} restarts: {self.convergence}"


def restarts_as_chains(
    posterior_of: Callable[[int], BinaryPosterior],
    function: Callable[[Mapping[str, Tensor]], Tensor],
    num_restarts: int = 4,
    num_samples: int = 100,
    seed: int = 0,
) -> Restarts:
    """Fit a guide several times and ask whether the fits say the same: restarts in the place of chains.

    Draws of one restart are independent, so R-hat is about the restarts alone: far above 1, each found
    an optimum of its own, and their spread is uncertainty that none of them knows of. The function is to
    be one of the network's output, whose value does not depend on how hidden units are numbered.

    :param posterior_of: ``posterior_of(seed)`` fits a guide from that seed, and returns its posterior.
    :param function: of a draw, a dictionary of all sites; a tensor of any shape.
    :param num_restarts: K, at least 2. :param num_samples: S draws of each, at least 4.
    :param seed: restarts have the seeds seed, seed + 1, ...
    :raises ValueError: for a count out of range, or results that are no posteriors.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.infer.checks import restarts_as_chains
        >>> x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> def posterior_of(seed):  # in place of a fit; every odd seed finds another optimum
        ...     return BinaryPosterior({"w": torch.full((3,), (-1.0) ** seed)})
        >>> restarts = restarts_as_chains(posterior_of, lambda draw: x @ draw["w"])
        >>> restarts.convergence.worst_rhat > 1.1
        True

    Source: Vehtari in arviz-devs/arviz#498; Fort, Hu and Lakshminarayanan 2019, arXiv 1912.02757.
    """
    num_restarts = whole_number("num_restarts", num_restarts, at_least=2)
    num_samples = whole_number("num_samples", num_samples, at_least=_LEAST_DRAWS)
    posteriors = []
    for restart in range(num_restarts):
        posterior = posterior_of(seed + restart)
        if not isinstance(posterior, BinaryPosterior):
            raise ValueError(
                f"expected posterior_of to return a BinaryPosterior, got {type(posterior).__name__}; return "
                "guide.posterior()."
            )
        posteriors.append(posterior)
    with torch.no_grad():
        rows = [
            torch.stack([function(posterior.sample(s, seed=seed)) for s in range(num_samples)])
            for posterior in posteriors
        ]
    values = torch.stack(rows)
    return Restarts(tuple(posteriors), values, convergence(values))


def _largest(values: Tensor) -> float:
    known = values[~values.isnan()]
    return known.max().item() if known.numel() else math.nan
