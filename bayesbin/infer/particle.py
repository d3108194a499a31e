"""One particle of the ELBO: a run of the guide, and the model as a function of the draws of its signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from bayesbin.estimators import BatchObjective, Estimator
from bayesbin.estimators.base import SitePlates, Term
from bayesbin.guides.announcing import LocalParameters
from bayesbin.guides.effects import with_effects
from bayesbin.infer.dependence import DependenceOnSigns
from bayesbin.infer.plate_terms import TermKey, TermSums, terms_of
from bayesbin.infer.plates import subsamples_of
from bayesbin.infer.several_draws import SeveralDraws
from bayesbin.infer.sites import (
    PlaceholderDraws,
    any_value,
    check_levels,
    estimator_entry,
    in_full_precision,
    kl_by_batch,
    kl_of_site,
    kl_of_sites,
    latent_sites,
    observed_log_probs,
    run_at,
)


class Particle:
    """The guide's distributions at one draw of its real-valued sites, and the model given that draw.

    What is found out about the model, above all which priors depend on binary sites, is found out in the
    first of the runs that a step makes anyway, and holds for this step alone.

    :raises ValueError: for a guide whose distributions depend on the draw of a binary site, or that has
        a distribution without a gradient.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        kl_weight: float,
        several_draws: SeveralDraws,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.model, self.kl_weight, self.several_draws = model, kl_weight, several_draws
        self.args, self.kwargs = args, kwargs
        with PlaceholderDraws() as placeholders, placeholders.following, LocalParameters():
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        _check_independent(placeholders.following.dependent)
        self.guided = latent_sites(trace)
        self.natural = {
            name: entry
            for name, site in self.guided.items()
            if not site["fn"].has_rsample and (entry := estimator_entry(site["fn"])) is not None
        }
        _check_pathwise(self.guided, self.natural)
        self.fixed = {n: site["value"] for n, site in self.guided.items() if n not in self.natural}
        self.subsamples = subsamples_of(trace)
        self.whole = with_effects(model, guide)
        self.plates: dict[str, SitePlates] = {}
        self.dependent: frozenset[str] | None = None
        self._prior_kl: Tensor | None = None

    def surrogate(self, estimator: Estimator) -> Tensor:
        """The estimate of E_q[log p(y | w)], and of what else depends on the draws of signs."""
        check_levels(estimator, self.natural)
        objective = BatchObjective(
            self._terms_at, self.args, self.kwargs, self.plates, self.subsamples
        )
        if self.natural:
            return estimator(objective, self.natural)
        # Nothing to estimate: one evaluation, with a value for no site of the model.
        return objective({"": [torch.zeros(())]}).mean()

    def prior_kl(self) -> Tensor:
        """The KL of all sites whose priors are the same for every draw of the signs."""
        if self._prior_kl is None:
            # Outside autograd, or with an estimator that never evaluates with gradients.
            signs = {name: any_value(entry) for name, entry in self.natural.items()}
            self._keep_prior_kl(latent_sites(self._run(signs)))
        assert self._prior_kl is not None
        return self._prior_kl

    def _terms_at(self, values: Mapping[str, Sequence[Tensor]]) -> list[Term]:
        return terms_of(self.several_draws(self.model, self._evaluate, values))

    def _run(self, signs: Mapping[str, Tensor]) -> Any:
        """The model's trace; the first one tells which priors depend on binary sites."""
        values = self.fixed | dict(signs)
        if self.dependent is not None:
            return run_at(self.whole, values, self.subsamples, self.args, self.kwargs)
        with DependenceOnSigns(self.natural, self.guided) as following:
            trace = run_at(self.whole, values, self.subsamples, self.args, self.kwargs, following)
        self.dependent = frozenset(following.dependent & self.guided.keys())
        return trace

    def _evaluate(self, signs: dict[str, Tensor]) -> dict[TermKey, Tensor]:
        """The terms at one draw of the signs."""
        trace = self._run(signs)
        latents = latent_sites(trace)
        terms = TermSums(trace, self.natural)
        self.plates.update(terms.plates)
        with in_full_precision():
            for site, log_prob in observed_log_probs(trace):
                terms.add(log_prob, site)
            kl_of = kl_by_batch if terms.is_split else kl_of_site
            for name in sorted(self.dependent or ()):  # sums in one order in every process
                kl = kl_of(self.guided[name], latents[name])
                terms.add(-self.kl_weight * kl, latents[name])
        # The other priors are the same for every draw; keep the one with a live graph.
        if self._prior_kl is None and torch.is_grad_enabled():
            with torch.set_grad_enabled(self.kl_weight > 0):
                self._keep_prior_kl(latents)
        return terms.sums or {TermKey(): torch.zeros(())}

    def _keep_prior_kl(self, latents: Mapping[str, Any]) -> None:
        with in_full_precision():
            self._prior_kl = kl_of_sites(self.guided, latents, self.dependent or frozenset())


def _check_independent(dependent: set[str]) -> None:
    if dependent:
        raise ValueError(
            f"The guide's distribution at {sorted(dependent)} depends on the draw of a binary site. "
            "Estimators take the natural parameters of all binary sites together: make "
            "them depend on parameters and real-valued sites only."
        )


def _check_pathwise(guided: Mapping[str, Any], natural: Mapping[str, Any]) -> None:
    for name, site in guided.items():
        if name not in natural and not site["fn"].has_rsample:
            raise ValueError(
                f"The guide's distribution at {name!r} is {type(site['fn']).__name__}, which is neither a "
                "SignBernoulli nor reparameterised (rsample); TraceBinary_ELBO has no gradient for it."
            )
