"""The mean-field guide of weights with a few levels: ternary posteriors, two bits, four bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.distributions import LowBitCategorical
from bayesbin.distributions.low_bit import TERNARY, checked_levels
from bayesbin.distributions.wrappers import sign_distribution, weight_distribution
from bayesbin.guides.base import ParameterTree, Read, SignGuide
from bayesbin.optim.assembly import DEFAULTS, TrainingGroup
from bayesbin.posterior import BinaryPosterior, LowBitPosterior


class AutoLowBit(SignGuide):
    r"""Mean-field posterior over weights that have a few levels each.

    .. math:: q(w) = \prod_j \mathrm{LowBitCategorical}(w_j;\ l, a_j)

    It takes the places of a model's binary weights: sites with a ``LowBitCategorical`` prior of these
    levels, and those with a ``SignBernoulli`` prior of natural parameter lambda_p, whose prior becomes
    p(l_k) proportional to exp(lambda_p l_k), uniform at 0. ``TraceBinary_ELBO`` and ``fit`` do that by
    themselves; for a loss of Pyro's own give it ``with_effects(model, guide)``.

    Estimators: ``Enumerate``, ``ScoreFunction``, ``Concrete``, ``LocalReparameterization`` and
    ``ExpectedWeight``, with which and ``kl_weight=0`` it is the search of SLB, for one network: the mode;
    draws are then those of the distribution before it was sharpened. Train :meth:`logits` with any
    torch optimizer, or with ``BayesianLearningRule(guide.logits(), lr,
    preconditioner=guide.natural_gradient)``, which is what ``fit`` does by default;
    ``natural_parameters()`` is empty. ``posterior()`` is a :class:`LowBitPosterior`.

    :param model: a Pyro model, and the other arguments, as for :class:`AutoSignBernoulli`.
    :param levels: the K levels, increasing; (-1, 0, 1) by default.
    :param init_scale: standard deviation of the initial logits; with ``init`` a network, the factor of its
        logits -(w / r - l_k)^2 / 2, r the root mean square of a layer's weights.
    :param init: a network or its weights, or a :class:`LowBitPosterior` (``ternary_from_latent(net)``).
    :raises ValueError: for levels that do not increase or are not those of a site's own prior, ``init`` a
        posterior over signs, or as :class:`AutoSignBernoulli`.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoLowBit
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> guide = AutoLowBit(Classifier(BinaryLinear(4, 3), dataset_size=100), levels=(-1, 0, 1))
        >>> [tuple(p.shape) for p in guide.logits()], sorted(set(guide()["weight"].flatten().tolist()))
        ([(3, 4, 3)], [-1.0, 0.0, 1.0])

    Source: Yang et al. 2020, arXiv 2009.08695; as a posterior: Shayer, Levi and Fetaya 2018, arXiv
    1710.07739 (LR-net, ternary).
    """

    levels: tuple[float, ...]

    def __init__(
        self, model: Callable[..., Any], levels: Sequence[float] = TERNARY, **options: Any
    ) -> None:
        # Before torch's constructor, in which the sites are built.
        scale = options.get("init_scale", DEFAULTS["init_scale"])
        vars(self).update(levels=checked_levels(levels), _init_scale=scale)
        init = options.get("init")
        if isinstance(init, BinaryPosterior):
            raise ValueError(
                "AutoLowBit starts at a network, its weights or a LowBitPosterior; got a BinaryPosterior."
            )
        found = init if isinstance(init, LowBitPosterior) else None
        vars(self).update(_replaced=[], _given_posterior=found)
        if found is not None:
            options = {**options, "init": None}
        super().__init__(model, **options)
        del self._given_posterior  # by value: the guide keeps none of it

    def is_weight(self, distribution: Any) -> bool:
        found = weight_distribution(distribution)
        if isinstance(found, LowBitCategorical) and found.levels != self.levels:
            raise ValueError(
                f"The guide has the levels {self.levels}, a prior of the model {found.levels}; give the "
                "guide levels=, one guide for each set of levels."
            )
        return found is not None

    def _describe(self, name: str, message: Any) -> Any:
        if sign_distribution(message["fn"]) is not None:
            self._replaced.append(name)
        return super()._describe(name, message)

    def insert_natural(self, name: str, start: Tensor, *, random: bool) -> None:
        if "logit" not in self._modules:
            self.logit = ParameterTree()
        levels = start.new_tensor(self.levels)
        if self._given_posterior is not None:
            logits = self._logits_given(name, start)
        elif random:
            logits = self._init_scale * torch.randn(*start.shape, len(levels)).to(start)
        else:
            size = start.square().mean().sqrt().clamp_min(torch.finfo(start.dtype).tiny)
            logits = -0.5 * self._init_scale * (start[..., None] / size - levels).square()
        self._tree("logit").insert(name, nn.Parameter(logits))

    def _logits_given(self, name: str, like: Tensor) -> Tensor:
        distribution = self._given_posterior.get(name)
        if (
            distribution is None
            or distribution.levels != self.levels
            or distribution.batch_shape != like.shape
        ):
            came = (
                f"{distribution.levels} of shape {tuple(distribution.batch_shape)}"
                if distribution
                else "none"
            )
            raise ValueError(
                f"The posterior given as init has at {name!r} the levels {self.levels} and the shape "
                f"{tuple(like.shape)}; got {came}."
            )
        return distribution.logits.to(like).clone()

    def natural_of(self, name: str, read: Read | None = None) -> Tensor:
        """The logits of one site, shape (..., K)."""
        return (read or self._parameter)("logit", name)

    def logits(self) -> Iterator[nn.Parameter]:
        """The logits of the sites, each of the site's shape and K."""
        return (self._parameter("logit", s.name) for s in self.sites.values() if s.is_binary)

    def natural_parameters(self) -> Iterator[nn.Parameter]:
        """None: the Fisher information of logits is not that of a natural parameter of signs."""
        return iter(())

    def real_parameters(self) -> Iterator[nn.Parameter]:
        """Locations and log scales of the real-valued sites."""
        weights = {id(p) for p in self.logits()}
        return (p for p in self.parameters() if id(p) not in weights)

    def training_groups(self) -> Iterator[TrainingGroup]:
        """The logits by their natural gradient, the rest by Adam."""
        yield from self.by_rows(self.logits(), "logits", self.natural_gradient)
        yield TrainingGroup(tuple(self.real_parameters()))

    def natural_gradient(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        r"""Natural gradients in the logits from plain ones, for ``BayesianLearningRule(preconditioner=)``.

        .. math:: \tilde g_k = g_k / p_k - \tfrac1K \sum_j g_j / p_j

        The Fisher information of the logits, diag(p) - p p', is singular along (1, ..., 1), where nothing
        changes: of the solutions this is the one of sum 0. With the levels (-1, 1) it is the rule of
        ``SignBernoulli``.
        """
        found: list[Tensor | None] = []
        for logits, gradient in zip(self.logits(), gradients, strict=True):
            if gradient is not None:
                probs = self.sign_distribution(logits.detach()).probs
                gradient = gradient / probs.clamp_min(torch.finfo(probs.dtype).tiny)
                gradient = gradient - gradient.mean(-1, keepdim=True)
            found.append(gradient)
        return found

    def prior_levels(self) -> dict[str, tuple[float, ...]]:
        return dict.fromkeys(self._replaced, self.levels)

    def sign_distribution(self, natural: Tensor) -> LowBitCategorical:
        return LowBitCategorical(self.levels, natural, validate_args=False)

    def posterior(self) -> Any:
        """The guide's distribution as a frozen :class:`LowBitPosterior`, by value."""
        weights = {
            name: self.sign_distribution(self.natural_of(name).detach().clone())
            for name, site in self.sites.items()
            if site.is_binary
        }
        return LowBitPosterior(weights, self.real_posterior())
