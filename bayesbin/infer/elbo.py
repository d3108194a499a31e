"""TraceBinary_ELBO: the bridge between Pyro models and gradient estimators for binary weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.elbo import ELBOModule
from pyro.util import warn_if_nan
from torch import Tensor

from bayesbin.core.checks import real_number, whole_number
from bayesbin.core.turns import alone
from bayesbin.estimators import Estimator
from bayesbin.guides.announcing import LocalParameters, announce
from bayesbin.guides.effects import with_effects
from bayesbin.infer.particle import Particle
from bayesbin.infer.plates import subsamples_of
from bayesbin.infer.several_draws import SeveralDraws
from bayesbin.infer.sites import (
    in_full_precision,
    kl_of_sites,
    latent_sites,
    observed_log_probs,
    run_at,
)


class Terms(NamedTuple):
    """A loss and its two parts, in nats over the whole data set.

    :param loss: negative_log_likelihood + kl_weight * kl, with a live graph.
    :param negative_log_likelihood: E_q[-log p(y | w)], detached. It includes the KL of those sites
        whose prior depends on a binary site, which can only be averaged together with it.
    :param kl: KL(q||p) of all other sites, unweighted, detached.
    """

    loss: Tensor
    negative_log_likelihood: Tensor
    kl: Tensor


class TraceBinary_ELBO(ELBO):
    r"""The negative ELBO of a model with binary sites, differentiated by an estimator of your choice.

    .. math::
        \mathcal L = E_q[-\log p(y | w, z)] + \beta\, \mathrm{KL}(q(w, z)\,\|\,p(w, z))

    in nats over the whole data set (plates scale minibatches). The expectation over binary sites w is
    the estimator's; real-valued sites z are drawn once per particle, with pathwise gradients. The KL is
    closed-form given the prior: a prior that depends on real-valued sites is averaged pathwise, one
    that depends on binary sites inside the estimator's objective. Several draws are evaluated together
    where ``torch.vmap`` can follow the model.

    Use it with ``pyro.infer.SVI(model, guide, optim, elbo)``, or as a torch module:
    ``loss = elbo(model, guide)(x, y)``. Both work in Pyro's global and local parameter modes, and each
    model and guide trains its own parameters.

    :param estimator: an instance of :class:`bayesbin.estimators.Estimator`.
    :param kl_weight: beta, at least 0; 1 is the ELBO.
    :param num_particles: how often the whole is repeated and averaged.
    :raises ValueError: for a bad argument; at a call, for a model site the guide does not know, a guide
        site that is not in the model, a guide whose binary sites depend on one another's draws, or
        distributions that do not fit.
    :raises RuntimeError: at a call while another thread is inside; ``fit`` waits for its turn instead.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import LocalReparameterization
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.infer import TraceBinary_ELBO
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> model = Classifier(BinaryLinear(4, 3), dataset_size=100)
        >>> guide = AutoSignBernoulli(model)
        >>> loss = TraceBinary_ELBO(LocalReparameterization())(model, guide)
        >>> loss(torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])).backward()

    Source: Ranganath, Gerrish and Blei 2014, arXiv 1401.0118; Kingma and Welling 2014, arXiv 1312.6114.
    """

    def __init__(
        self, estimator: Estimator, kl_weight: float = 1.0, num_particles: int = 1
    ) -> None:
        if not isinstance(estimator, Estimator):
            raise ValueError(
                f"estimator is an instance of bayesbin.estimators.Estimator, such as "
                f"StraightThrough(); got {estimator!r}."
            )
        super().__init__(num_particles=whole_number("num_particles", num_particles, at_least=1))
        self.estimator = estimator
        self.kl_weight = kl_weight
        self._several_draws = SeveralDraws()

    @property
    def kl_weight(self) -> float:
        """The weight on the KL term, at least 0; 1 is the ELBO."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = real_number("kl_weight", value, at_least=0)

    def __reduce__(self) -> Any:  # what was found out about models is neither copied nor pickled
        return type(self), (self.estimator, self.kl_weight, self.num_particles)

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> BinaryELBOModule:
        return BinaryELBOModule(model, guide, self)

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """The differentiable loss with its negative log-likelihood and KL, by the estimator."""

        def particle() -> Terms:
            one = Particle(model, guide, self.kl_weight, self._several_draws, args, kwargs)
            surrogate = one.surrogate(self.estimator)
            kl = one.prior_kl()
            return Terms(self.kl_weight * kl - surrogate, -surrogate.detach(), kl.detach())

        with alone(type(self).__name__):
            return self._mean(particle() for _ in range(self.num_particles))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The surrogate loss whose gradient is the estimator's."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Compute the loss, add its gradients to the parameters', return it as a number."""
        for name, parameter in self.estimator.named_parameters():
            announce(f"estimator.{name}", parameter)  # so that SVI trains what the estimator learns
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        warn_if_nan(loss, "loss")
        return loss.item()

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """An unbiased estimate of the loss at hard draws from the guide, whatever the estimator."""
        return self.hard_terms(model, guide, *args, **kwargs).loss.item()

    @torch.no_grad()
    def hard_terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """The loss and its parts at hard draws from the guide; no gradients."""

        def particle() -> Terms:
            trace, guide_trace = self._get_trace(model, guide, args, kwargs)
            with in_full_precision():
                kl = kl_of_sites(latent_sites(guide_trace), latent_sites(trace), frozenset())
                nll = -sum((value.sum() for _, value in observed_log_probs(trace)), torch.zeros(()))
            return Terms(nll + self.kl_weight * kl, nll, kl)

        with alone(type(self).__name__):
            return self._mean(particle() for _ in range(self.num_particles))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The traces of model and guide at one hard draw from the guide."""
        with LocalParameters():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        values = {name: site["value"] for name, site in latent_sites(guide_trace).items()}
        whole = with_effects(model, guide)
        return run_at(whole, values, subsamples_of(guide_trace), args, kwargs), guide_trace

    def _mean(self, particles: Any) -> Terms:
        parts = list(particles)
        return Terms(*(torch.stack(part).mean() for part in zip(*parts, strict=True)))


class BinaryELBOModule(ELBOModule):
    """A model, a guide and an estimator as one torch module: call it for the loss."""

    elbo: TraceBinary_ELBO

    def __init__(self, model: Any, guide: Any, elbo: TraceBinary_ELBO) -> None:
        super().__init__(model, guide, elbo)
        self.estimator = elbo.estimator  # so that its own parameters train

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        """The loss with its negative log-likelihood and KL."""
        return self.elbo.terms(self.model, self.guide, *args, **kwargs)
