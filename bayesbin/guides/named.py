"""Guides by the names that recipes and the command line use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import nn

from bayesbin.core.checks import shown
from bayesbin.core.nesting import SCOPES
from bayesbin.core.registry import Registry
from bayesbin.core.turns import in_turn
from bayesbin.guides.mean_field import AutoSignBernoulli
from bayesbin.guides.nested import AutoNestedSignBernoulli
from bayesbin.nn import BinaryLinear, Classifier
from bayesbin.optim import training_groups


def _nested(model: Any, *, sharing: Sequence[str] = SCOPES, **options: Any) -> Any:
    return AutoNestedSignBernoulli(model, tuple(sharing), **options)


def _random_effects(model: Any, *, sharing: Sequence[str] = SCOPES, **options: Any) -> Any:
    return AutoNestedSignBernoulli(model, tuple(sharing), "random-effects", **options)


NAMED: dict[str, Callable[..., Any]] = {
    "mean-field": AutoSignBernoulli,
    "nested": _nested,
    "random-effects": _random_effects,
}
SHARING = ("nested", "random-effects")  # the guides whose weights share parameters


def _check(name: str, factory: Any) -> None:
    """Refuse what is no guide: without sites, without ``posterior()``, or that draws no signs."""
    if not callable(factory):
        raise ValueError(
            f"expected the guide {name!r} to be a class or function that takes a model; got "
            f"{shown(factory)}."
        )
    model = Classifier(BinaryLinear(3, 2), dataset_size=4)
    with in_turn(), torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        try:
            made: Any = factory(model, init_scale=0.1)
        except Exception as error:
            raise ValueError(
                f"The guide {name!r} cannot be built as factory(model, init_scale=0.1) for a model with one "
                f"site of signs, 'weight': {type(error).__name__}: {error}"
            ) from error
        _check_posterior(name, made)
        _check_training(name, made)
        with poutine.trace() as drawn:
            made()
    if "weight" not in drawn.trace.stochastic_nodes:
        raise ValueError(
            f"The guide {name!r} draws no value for the site 'weight' when it is called; its sites are "
            f"{', '.join(drawn.trace.stochastic_nodes) or 'none'}."
        )


def _check_posterior(name: str, guide: Any) -> None:
    if not isinstance(guide, nn.Module):
        raise ValueError(f"expected the guide {name!r} to be a torch module; got {shown(guide)}.")
    sites: Any = getattr(guide, "sites", None)
    if not isinstance(sites, Mapping) or "weight" not in sites:
        raise ValueError(
            f"The guide {name!r} has to say what it is over: sites, a dictionary by the model's names "
            "of its latent sites, in which the site 'weight' of a small model is missing."
        )
    method: Any = getattr(guide, "posterior", None)
    if not callable(method):
        raise ValueError(
            f"The guide {name!r} has to have a method posterior(), which gives its distribution by value."
        )
    posterior = method()
    if not isinstance(posterior, Mapping) or "weight" not in posterior:
        raise ValueError(
            f"expected posterior() of the guide {name!r} to be a mapping of site names to "
            f"distributions, such as a BinaryPosterior; got {shown(posterior)}."
        )


def _check_training(name: str, guide: Any) -> None:
    try:
        groups = training_groups(guide)
    except TypeError as error:
        raise ValueError(f"The guide {name!r} cannot be trained: {error}") from error
    if not groups:
        raise ValueError(
            f"The guide {name!r} has nothing to train: give it parameters, or let training_groups() yield "
            "them."
        )


GUIDES: Registry[Callable[..., Any]] = Registry(
    "guide", NAMED, group="bayesbin.guides", check=_check
)


def register(name: str, factory: Callable[..., Any]) -> None:
    """Give a guide of your own a name, for the setting ``guide`` of recipes and the command line.

    The contract is checked at once, on a model of six weights: the guide is a torch module, has ``sites``
    and ``posterior()``, draws the model's sites, and has parameters. An installed package does the same by
    an entry point in the group ``bayesbin.guides``, which is checked when its name is used.

    :param factory: takes a model and, as keywords, ``init_scale``, ``init`` and ``args`` of
        :class:`AutoSignBernoulli`; only ``init_scale`` always comes.
    :raises ValueError: for a name that is taken, or where the guide breaks the contract.

    Example::

        >>> from bayesbin import guides
        >>> guides.register("cautious", lambda model, **options: guides.AutoSignBernoulli(
        ...     model, **options | {"real_scale": 0.01}))
        >>> "cautious" in guides.names()
        True
    """
    GUIDES.register(name, factory)


def names() -> tuple[str, ...]:
    """The names of all guides: the package's, those registered, and those of installed plug-ins.

    >>> from bayesbin import guides
    >>> guides.names()[:3]
    ('mean-field', 'nested', 'random-effects')
    """
    return GUIDES.names()
