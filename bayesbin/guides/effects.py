"""A model together with the random effects of its guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from torch import nn

from bayesbin.guides.base import SignGuide


def with_effects(model: Callable[..., Any], guide: Any) -> Callable[..., Any]:
    """The model preceded by the prior of the guide's random effects; the model itself without any.

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
    guides = [part for part in parts if isinstance(part, SignGuide) and part.effect_priors()]
    if not guides or isinstance(model, _WithEffects):
        return model
    return _WithEffects(model, guides)


class _WithEffects:
    def __init__(self, model: Callable[..., Any], guides: list[SignGuide]) -> None:
        self.model, self.guides = model, guides

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for guide in self.guides:
            for name, law in guide.effect_priors().items():
                pyro.sample(name, law)
        return self.model(*args, **kwargs)
