"""Recipes: methods by name, with guide, estimator, optimizers, schedules and settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesbin.core.checks import shown, whole_number
from bayesbin.core.names import RECIPES
from bayesbin.core.registry import Registry
from bayesbin.core.turns import in_turn
from bayesbin.nn import Classifier, to_binary_
from bayesbin.recipes.base import (
    PRESET,
    Ingredients,
    Method,
    Parts,
    Recipe,
    assemble,
    resolve_model,
    resolved,
)
from bayesbin.recipes.points import POINTS
from bayesbin.recipes.posteriors import POSTERIORS
from bayesbin.recipes.settings import Setting, parse

__all__ = [
    "Ingredients",
    "Method",
    "Parts",
    "Recipe",
    "Setting",
    "names",
    "parse_settings",
    "recipe",
    "register",
    "settings_of",
]


def _check(name: str, method: Any) -> None:
    """Refuse what is no method, or builds no recipe for a small network."""
    if not isinstance(method, Method):
        raise ValueError(
            f"expected the recipe {name!r} to be a bayesbin.recipes.Method(build, settings); got "
            f"{shown(method)}."
        )
    settings = resolved(name, method, {})
    with in_turn(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = to_binary_(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        model = Classifier(net, dataset_size=8)
        try:
            built = assemble(name, method, model, 8, 2, {})
        except Exception as error:
            raise ValueError(
                f"The recipe {name!r} cannot be built for a network of two linear layers, with "
                f"{type(error).__name__}: {error}"
            ) from error
    if built.settings != settings:
        raise ValueError(
            f"The recipe {name!r} has other settings once built, {built.settings}, than before, {settings}; "
            "leave the settings that build() gets as they are."
        )


METHODS: Registry[Method] = Registry(
    "recipe",
    {name: (POSTERIORS | POINTS)[name] for name in RECIPES},
    group="bayesbin.recipes",
    check=_check,
)


def recipe(
    name: str, model: Any, *, epochs: int = 20, dataset_size: int | None = None, **overrides: Any
) -> Recipe:
    """Put a method together for a model: guide, estimator, optimizers, schedules and KL weight.

    :param name: one of ``bayesbin.recipes.names()``.
    :param model: a Pyro model with binary weights, such as ``Classifier(net, dataset_size)``, whose
        data-set size is the recipe's; or a network, together with ``dataset_size``. A network without
        binary weights is converted in place, by :func:`bayesbin.nn.to_binary_`.
    :param epochs: passes over the data that will be trained: schedules end there.
    :param overrides: settings other than the method's own, by the names of :func:`settings_of`, such as
        ``lr=0.05``; ``settings="published"`` for a method whose published settings are not ours.
        Networks, posteriors and tensors are no settings, but may be given: ``init`` (a network, its weights
        or a posterior to start from), ``args`` (what a model needs to declare its sites), ``pretrained`` for
        "lr-net", and for "bayesbin" a ``guide`` or an ``estimator`` itself in place of its name.
    :raises ValueError: for an unknown name or setting, a setting that does not apply or is out of range,
        no data-set size, or as the parts themselves.

    Example::

        >>> import torch
        >>> import bayesbin as bb
        >>> from bayesbin.data import Batches, two_moons
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> recipe = bb.recipe("bop", net, dataset_size=200, epochs=2, gamma=1e-3)
        >>> recipe.fit(Batches(two_moons(), batch_size=50), progress=False).epochs
        2
        >>> recipe.given, recipe.settings["gamma"], recipe.settings["threshold"]
        (('gamma',), 0.001, 1e-06)

    Source: that of each method, as ``recipe(...).source``.
    """
    method = METHODS[name]
    epochs = whole_number("epochs", epochs, at_least=1)
    with in_turn():
        model, size = resolve_model(model, dataset_size)
        return assemble(name, method, model, size, epochs, overrides)


def settings_of(name: str, **overrides: Any) -> dict[str, Any]:
    """All settings of a recipe, with overrides, in plain JSON; no model is needed.

    :raises ValueError: as :func:`recipe`.

    >>> settings_of("binaryconnect")
    {'lr': 0.01, 'real_lr': 0.01, 'init_scale': 0.1, 'schedule': 'cosine'}
    >>> settings_of("bayesbin", guide="nested")["sharing"]
    ['layer', 'filter', 'kernel', 'weight']
    """
    return resolved(name, METHODS[name], overrides)


def parse_settings(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Overrides of a recipe from texts such as "lr=0.2", as a command line has them.

    :return: setting -> its value, in plain JSON, for ``recipe(name, model, **found)``.
    :raises ValueError: for a text without "=", a setting given twice, and as :func:`recipe`.

    >>> parse_settings("bayesbin", ["lr=0.2", "guide=nested", "sharing=layer,filter"])
    {'lr': 0.2, 'guide': 'nested', 'sharing': ['layer', 'filter']}
    """
    method, found = METHODS[name], {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ValueError(f"expected a setting as name=value, such as lr=0.1; got {text!r}.")
        if key in found:
            raise ValueError(f"The setting {key} is given twice; once is enough.")
        found[key] = parse(value)
    settings = resolved(name, method, found)
    known = method.all_settings()
    return {
        key: settings[key] if key == PRESET else known[key].checked(key, value)
        for key, value in found.items()
    }


def names() -> tuple[str, ...]:
    """The names of all recipes: the package's, those registered, and those of installed plug-ins.

    >>> from bayesbin import recipes
    >>> recipes.names()[:3]
    ('bayesbin', 'bayesbinn', 'lr-net')
    """
    return METHODS.names()


def register(name: str, method: Method) -> None:
    """Give a method of your own a name, for :func:`recipe`, the command line and scikit-learn.

    The contract is checked at once: the method is built for a small network with its defaults. An installed
    package does the same by an entry point in the group ``bayesbin.recipes`` that leads to a
    :class:`Method`, which is checked when its name is used.

    :raises ValueError: for a name that is taken, settings that are no JSON, or where ``build`` fails or
        returns something other than :class:`Parts` with a guide, an estimator, optimizers and schedules.

    Example::

        >>> from bayesbin import estimators, guides, optim, recipes
        >>> def build(given):
        ...     guide = guides.AutoSignBernoulli(given.model, **given.guide_options())
        ...     rule = optim.BayesianLearningRule(guide.natural_parameters(), lr=given.settings["lr"])
        ...     return recipes.Parts(guide, estimators.StraightThrough(), [rule])
        >>> recipes.register("plain", recipes.Method(build, {"lr": 1e-3, "kl_weight": 1.0}))
        >>> recipes.settings_of("plain")
        {'lr': 0.001, 'kl_weight': 1.0, 'real_lr': 0.01, 'init_scale': 0.1, 'schedule': 'cosine'}
    """
    METHODS.register(name, method)
