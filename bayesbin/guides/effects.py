"""A model together with what its guide adds to it: random effects, and levels in place of signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import nn

from bayesbin.core import numerics
from bayesbin.distributions import LowBitCategorical
from bayesbin.distributions.wrappers import sign_distribution
from bayesbin.guides.base import SignGuide


def with_effects(model: Callable[..., Any], guide: Any) -> Callable[..., Any]:
    """The model preceded by the prior of the guide's random effects; the model itself without any.

    Where the guide has weights of a few levels and the model has signs, the prior becomes one of levels.

    For losses of Pyro's own, ``SVI(with_effects(model, guide), guide, ...)``; ``TraceBinary_ELBO`` does
    it by itself.

    :param guide: a guide, or a list of guides that contains some with random effects.

    Example::

        >>> from pyro import poutine
        >>> from bayesbin.guides import AutoNestedSignBernoulli, with_effects
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> model = Classifier(BinaryLinear(3, 2), dataset_size=10)
        >>> guide = AutoNestedSignBernoulli(model, ("filter", "weight"), "random-effects")
        >>> list(poutine.trace(with_effects(model, guide)).get_trace().stochastic_nodes)
        ['weight.filter', 'weight']
    """
    parts = guide.modules() if isinstance(guide, nn.Module) else ()
    guides = [
        part
        for part in parts
        if isinstance(part, SignGuide) and (part.effect_priors() or part.prior_levels())
    ]
    if not guides or isinstance(model, _WithEffects):
        return model
    return _WithEffects(model, guides)


class _WithEffects:
    def __init__(self, model: Callable[..., Any], guides: list[SignGuide]) -> None:
        self.model, self.guides = model, guides

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for guide in self.guides:
            for name, distribution in guide.effect_priors().items():
                pyro.sample(name, distribution)
        levels = {
            site: found for guide in self.guides for site, found in guide.prior_levels().items()
        }
        with _LevelPriors(levels):
            return self.model(*args, **kwargs)


class _LevelPriors(Messenger):
    """A sign's prior of natural parameter lambda_p becomes p(l) proportional to exp(lambda_p l).

    On the levels -1 and +1 that is the prior of the sign; at lambda_p = 0 all levels are equally likely.
    """

    def __init__(self, levels: dict[str, tuple[float, ...]]) -> None:
        super().__init__()
        self.levels = levels

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.levels or (distribution := sign_distribution(msg["fn"])) is None:
            return
        natural, shape = numerics.without_repeats(distribution.natural), msg["fn"].shape()
        levels = self.levels[msg["name"]]
        logits = natural[..., None] * natural.new_tensor(levels)
        prior: Any = LowBitCategorical(levels, logits, validate_args=False).expand(shape)
        msg["fn"] = prior.to_event(msg["fn"].event_dim)
