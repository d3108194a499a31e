"""Settings of runs: the data, the network, the recipe and how long it is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bayesbin.core.checks import one_of, real_number, whole_number
from bayesbin.core.names import DATASETS, RECIPES
from bayesbin.recipes import parse_settings, settings_of

# Default passes over the data, 20 where not named: small sets need more to take as many steps.
EPOCHS = {"digits": 60, "two-moons": 300}


@dataclass(frozen=True)
class RunSettings:
    """What is trained: one multilayer perceptron of binary weights on one data set, by one recipe.

    Numbers that are left out are filled in when the settings are made, so that settings that are saved do not
    change with the defaults.

    :param dataset: one of ``bayesbin.core.names.DATASETS``.
    :param recipe: one of ``bayesbin.recipes.names()``.
    :param recipe_settings: of the recipe; those that are not named get the recipe's defaults.
    :param width: units per hidden layer. :param depth: number of hidden layers.
    :param epochs: passes over the training data; None: 60 for digits, 300 for two-moons, 20 for the others.
    :param batch_size: of minibatches.
    :param validation: fraction of the training data held out and scored during training.
    :param seed: of the initial weights, the noise and the order of the data.
    :param data_seed: of the data that are generated or split.
    :param data_folder: where files of data are, see :func:`bayesbin.data.data_folder`. It is not compared:
        the same data may be in another folder tomorrow.
    :param given: names of ``recipe_settings`` that were chosen rather than left at their defaults; None: all
        that are named.
    :raises ValueError: for a name that is not known or a number out of range.

    >>> settings = RunSettings("digits", recipe="bop", recipe_settings={"gamma": 1e-3})
    >>> settings.epochs, settings.given, settings.recipe_settings["gamma"]
    (60, ('gamma',), 0.001)
    """

    dataset: str
    recipe: str = "bayesbin"
    recipe_settings: Mapping[str, Any] = field(default_factory=dict)
    width: int = 512
    depth: int = 2
    epochs: int | None = None
    batch_size: int = 100
    validation: float = 0.1
    seed: int = 0
    data_seed: int = 0
    data_folder: str | None = field(default=None, compare=False)
    given: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        one_of("dataset", self.dataset, DATASETS)
        known = settings_of(self.recipe, **self.recipe_settings)
        given = self.recipe_settings if self.given is None else self.given
        epochs = EPOCHS.get(self.dataset, 20) if self.epochs is None else self.epochs
        _fill(
            self,
            recipe_settings=known,
            given=tuple(name for name in known if name in given),
            epochs=whole_number("epochs", epochs, at_least=1),
            **{
                name: whole_number(name, getattr(self, name), at_least=1)
                for name in ("width", "depth", "batch_size")
            },
            **{name: whole_number(name, getattr(self, name)) for name in ("seed", "data_seed")},
            validation=real_number("validation", self.validation, above=0.0, below=1.0),
            data_folder=None if self.data_folder is None else os.fspath(self.data_folder),
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings without those of the recipe, which a record has under its name."""
        left_out = ("recipe", "recipe_settings", "given", "data_folder")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}


@dataclass(frozen=True)
class ComparisonSettings:
    """Which recipes are compared, and on what: each with each seed is a run of its own.

    :param recipes: names; "all" alone: every one.
    :param recipe_settings: recipe -> settings that differ from its defaults.
    :param seeds: how many. :param seed: the first of them.
    :param num_samples: draws that a posterior is scored with.
    :param dataset: and all others: as of :class:`RunSettings`, the same for all recipes.
    :raises ValueError: for an unknown name, or a number out of range.

    >>> settings = ComparisonSettings(("all",), "digits", seeds=2)
    >>> len(settings.recipes), list(settings.runs())[:2]
    (12, ['bayesbin_seed0', 'bayesbinn_seed0'])
    """

    recipes: Sequence[str]
    dataset: str
    recipe_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: int = 1
    seed: int = 0
    num_samples: int = 32
    width: int = 512
    depth: int = 2
    epochs: int | None = None
    batch_size: int = 100
    validation: float = 0.1
    data_seed: int = 0
    data_folder: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        asked = (self.recipes,) if isinstance(self.recipes, str) else tuple(self.recipes)
        chosen = RECIPES if asked == ("all",) else tuple(dict.fromkeys(asked))
        if not chosen:
            raise ValueError("expected at least one recipe, or all; got none.")
        for name in chosen:
            if name not in RECIPES:
                settings_of(name)  # one of the user's own, or refused by name
        if stray := [name for name in self.recipe_settings if name not in chosen]:
            raise ValueError(
                f"expected settings of the recipes compared, {', '.join(chosen)}; got those of {stray[0]}."
            )
        _fill(
            self,
            recipes=chosen,
            seeds=whole_number("seeds", self.seeds, at_least=1),
            num_samples=whole_number("num_samples", self.num_samples, at_least=1),
        )
        first = next(iter(self.runs().values()))  # refuses what it would
        for name in ("epochs", "width", "depth", "batch_size", "validation", "seed", "data_seed"):
            _fill(self, **{name: getattr(first, name)})

    def runs(self) -> dict[str, RunSettings]:
        """The name of each run, and its settings."""
        names = (
            "dataset", "width", "depth", "epochs", "batch_size", "validation", "data_seed", "data_folder",
        )  # fmt: skip
        common = {name: getattr(self, name) for name in names}
        return {
            f"{recipe}_seed{seed}": RunSettings(
                recipe=recipe,
                recipe_settings=self.recipe_settings.get(recipe, {}),
                seed=seed,
                **common,
            )
            for seed in range(self.seed, self.seed + self.seeds)
            for recipe in self.recipes
        }


def settings_for(recipes: Sequence[str], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Recipe -> its settings, from texts such as "lr=0.2", for all recipes, and "ste.lr=0.1", for one.

    :raises ValueError: for a setting that a recipe does not have, or a value that does not fit.

    >>> settings_for(["ste", "binaryconnect"], ["lr=0.2", "ste.lr=0.1"])
    {'ste': {'lr': 0.1}, 'binaryconnect': {'lr': 0.2}}
    """
    found = {}
    for recipe in recipes:
        prefixes = tuple(f"{name}." for name in recipes)
        own = [text.removeprefix(f"{recipe}.") for text in texts if text.startswith(f"{recipe}.")]
        shared = [text for text in texts if not text.startswith(prefixes)]
        if settings := parse_settings(recipe, shared) | parse_settings(recipe, own):
            found[recipe] = settings
    return found


def _fill(settings: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(settings, name, value)
