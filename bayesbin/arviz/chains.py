"""A chain of draws: of a posterior, or of a Pyro MCMC run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.distributions import LowBitCategorical, SignBernoulli
from bayesbin.infer.mcmc import MCMCResult
from bayesbin.posterior import Posterior


class Chain(Protocol):
    """Draws by their index, and what is known of the distribution they come from."""

    @property
    def num_draws(self) -> int: ...

    @property
    def signs(self) -> frozenset[str]:
        """The sites of signs."""
        ...

    @property
    def foreign(self) -> frozenset[str]:
        """The sites that are the guide's own: no model has them."""
        ...

    def draw(self, index: int) -> dict[str, Tensor]:
        """The values of all sites in one draw."""
        ...

    def statistics(self, index: int, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is known of a draw without a model: for ``sample_stats``."""
        ...

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters of the distributions, by ``<site>.<parameter>``."""
        ...

    def digest(self) -> str | None:
        """The digest of the posterior, if there is one."""
        ...


@dataclass(frozen=True)
class PosteriorChain:
    """Independent draws 0, 1, ... of ``seed`` of a posterior."""

    posterior: Posterior[Any]
    num_draws: int
    seed: int

    @property
    def signs(self) -> frozenset[str]:
        return frozenset(self.posterior)

    @property
    def foreign(self) -> frozenset[str]:
        return frozenset(name for names in self.posterior.effects.values() for name in names)

    def draw(self, index: int) -> dict[str, Tensor]:
        return self.posterior.sample(index, seed=self.seed)

    def statistics(self, index: int, values: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.posterior.effects:  # the mapping knows the marginal distributions only
            return {}
        total = 0.0
        for site, distribution in self.posterior.items():
            total += _in_float64(distribution).log_prob(values[site].double()).sum().item()
        for site, distribution in self.posterior.real.items():
            total += (
                distribution.to(torch.float64)
                .distribution()
                .log_prob(values[site].double())
                .sum()
                .item()
            )
        return {"log_q": total}

    def parameters(self) -> dict[str, np.ndarray]:
        natural = dict(_parameter(*item) for item in self.posterior.items())
        loc = {
            f"{site}.loc": distribution.loc for site, distribution in self.posterior.real.items()
        }
        scale = {
            f"{site}.scale": distribution.scale
            for site, distribution in self.posterior.real.items()
        }
        return {name: array_of(value) for name, value in (natural | loc | scale).items()}

    def digest(self) -> str | None:
        return self.posterior.digest


@dataclass(frozen=True)
class SampledChain:
    """The draws of one chain of MCMC: site -> (draw, ...)."""

    samples: Mapping[str, Tensor]
    diverging: frozenset[int] | None

    @property
    def num_draws(self) -> int:
        return len(next(iter(self.samples.values())))

    @property
    def signs(self) -> frozenset[str]:
        return frozenset(
            site for site, values in self.samples.items() if bool((values.abs() == 1).all())
        )

    @property
    def foreign(self) -> frozenset[str]:
        return frozenset()

    def draw(self, index: int) -> dict[str, Tensor]:
        return {site: values[index] for site, values in self.samples.items()}

    def statistics(self, index: int, values: Mapping[str, Tensor]) -> dict[str, Any]:
        return {} if self.diverging is None else {"diverging": index in self.diverging}

    def parameters(self) -> dict[str, np.ndarray]:
        return {}

    def digest(self) -> str | None:
        return None


def chains_of(
    posterior: Posterior[Any] | Sequence[Posterior[Any]] | MCMCResult | MCMC,
    num_samples: int,
    seed: int,
) -> list[Chain]:
    """The chains behind what was given, or an error in a sentence."""
    if isinstance(posterior, (MCMCResult, MCMC)):
        return list(_sampled(posterior))
    posteriors = [posterior] if isinstance(posterior, Posterior) else posterior
    if (
        not isinstance(posteriors, Sequence)
        or not posteriors
        or not all(isinstance(each, Posterior) for each in posteriors)
    ):
        raise ValueError(
            f"Expected a posterior of weights, a list of them, or an MCMC run; got "
            f"{type(posterior).__name__}. A guide's is guide.posterior()."
        )
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    shapes = [_shapes(each) for each in posteriors]
    for number, other in enumerate(shapes):
        if other != shapes[0]:
            raise ValueError(
                f"Restarts have the same sites, of the same shapes; posterior {number} has {other}, "
                f"the first {shapes[0]}."
            )
    return [PosteriorChain(q, num_samples, seed + number) for number, q in enumerate(posteriors)]


def _in_float64(distribution: SignBernoulli | LowBitCategorical) -> Any:
    if isinstance(distribution, LowBitCategorical):
        return LowBitCategorical(distribution.levels, distribution.logits.double())
    return SignBernoulli(natural=distribution.natural.double(), validate_args=False)


def _parameter(site: str, distribution: SignBernoulli | LowBitCategorical) -> tuple[str, Tensor]:
    """What ``constant_data`` tells of a weight: its natural parameter, or of a few levels its mean."""
    if isinstance(distribution, LowBitCategorical):
        return f"{site}.mean", distribution.mean
    return f"{site}.natural", distribution.natural


def array_of(value: Any) -> np.ndarray:
    """A tensor or number as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _shapes(posterior: Posterior[Any]) -> dict[str, tuple[int, ...]]:
    signs = {site: tuple(distribution.batch_shape) for site, distribution in posterior.items()}
    return signs | {
        site: tuple(distribution.loc.shape) for site, distribution in posterior.real.items()
    }


def _sampled(run: MCMCResult | MCMC) -> Iterator[SampledChain]:
    if isinstance(run, MCMCResult):
        signs = {site: values.to(run.log_joint.dtype) for site, values in run.signs.items()}
        samples, divergences = signs | run.real, [d.get("divergences") for d in run.diagnostics]
    else:
        samples = run.get_samples(group_by_chain=True)
        found = run.diagnostics().get("divergences", {})
        divergences = [found.get(f"chain {number}") for number in range(run.num_chains)]
    for number, indices in enumerate(divergences):
        diverging = None if indices is None else frozenset(indices)
        yield SampledChain({site: values[number] for site, values in samples.items()}, diverging)
