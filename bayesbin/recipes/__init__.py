"""Published methods by name: guide, estimator, update rule, schedules and settings."""

from __future__ import annotations

from typing import Any

from bayesbin.recipes.base import Recipe, assemble, resolve_model
from bayesbin.recipes.points import POINTS
from bayesbin.recipes.posteriors import POSTERIORS

METHODS = POSTERIORS | POINTS
NAMES = (
    "bayesbin",
    "bayesbinn",
    "lr-net",
    "snapquant",
    "ste",
    "binaryconnect",
    "binaryconnect-stochastic",
    "ternaryconnect",
    "bop",
    "bop2",
    "recu",
    "slb",
)

__all__ = ["NAMES", "Recipe", "recipe"]


def recipe(
    name: str, model: Any, *, epochs: int = 20, dataset_size: int | None = None, **overrides: Any
) -> Recipe:
    """A method by its published name, made for a model.

    :param name: one of ``bayesbin.recipes.NAMES``.
    :param model: a Pyro model with binary weights, such as ``Classifier(net, dataset_size)``, whose
        data-set size is the recipe's; or a network, together with ``dataset_size``. A network without
        binary weights is converted in place, by :func:`bayesbin.nn.to_binary_`.
    :param epochs: passes over the data that will be trained: schedules end there.
    :param overrides: settings other than the method's own; ``recipe(...).settings`` has their names.
        ``real_lr`` is Adam's for biases, normalisation and scale; ``init``, ``init_scale`` and ``args``
        (for a model that declares its sites only with data) are the guide's.
    :raises ValueError: for an unknown name or setting, no data-set size, or as the parts themselves.

    Example::

        >>> import torch
        >>> from bayesbin import nn
        >>> from bayesbin.data import Batches, two_moons
        >>> from bayesbin.infer import fit
        >>> from bayesbin.recipes import recipe
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> parts = recipe("bop", net, dataset_size=200, epochs=2)
        >>> data = Batches(two_moons(), batch_size=50)
        >>> fit(parts.model, parts.guide, data, progress=False, **parts.arguments()).epochs
        2

    Source: that of each method, as ``recipe(...).source``.
    """
    if name not in METHODS:
        raise ValueError(f"expected the name of a recipe, one of {', '.join(NAMES)}; got {name!r}.")
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"expected epochs to be a whole number of at least 1; got {epochs!r}.")
    model, size = resolve_model(model, dataset_size)
    return assemble(name, METHODS[name], model, size, epochs, overrides)
