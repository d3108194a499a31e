"""Settings of a sequence of tasks: the stream, the network, and how it is learned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bayesbin.continual.priors import named_prior_policy
from bayesbin.core.checks import one_of, real_number, true_or_false, whole_number, whole_numbers
from bayesbin.core.names import (
    ACTIVATIONS,
    CONTINUAL_DATASETS,
    INITIAL_PRIORS,
    LEARNERS,
    NORMALIZATIONS,
    SCENARIOS,
    STREAMS,
)
from bayesbin.recipes import parse_settings, settings_of
from bayesbin.recipes.settings import parse

RECIPE = "bayesbin"
# Settings of the baselines that are no recipes, with their defaults.
BASELINES: Mapping[str, Mapping[str, float]] = {
    "straight-through": {"lr": 5e-3, "real_lr": 5e-3, "init_scale": 0.1},
    "metaplastic": {"lr": 5e-3, "real_lr": 5e-3, "init_scale": 0.1, "metaplasticity": 1.35},
    "ewc": {"lr": 1e-3, "strength": 1.0},
}
# Small sets need more passes and smaller batches to take as many steps.
EPOCHS, BATCH_SIZES = {"digits": 15}, {"digits": 50}


@dataclass(frozen=True)
class ContinualSettings:
    """A sequence of tasks made of one data set, a network, and a way to learn.

    Numbers that are left out are filled in when the settings are made, so that settings that are saved do not
    change with the defaults.

    :param stream: "permuted", "split" or "rotated". :param dataset: images in rows of pixels.
    :param method: "posterior", or a baseline of ``bayesbin.core.names.LEARNERS``.
    :param method_settings: of the recipe "bayesbin", which trains posteriors, or of a baseline without a
        posterior: ``lr``, and ``real_lr``, ``init_scale``, ``metaplasticity`` or ``strength``; those that
        are not named get defaults. In a sequence the recipe has the defaults Adam for the natural parameters,
        ``kl_weight`` 1, ``real_lr`` 0.003 and ``init_scale`` 1 with the random prior, else 0.1. Learning
        rates fall to 0 by a cosine over the steps of each task, but not with "leak", whose steps are
        plain natural gradients with lr 1.
    :param tasks: how many; None: 5 for digits and 10 else, or as many as the classes give.
    :param scenario: of split classes: "task", "domain" or "class". :param classes_per_task: of those.
    :param max_degrees: the largest rotation. :param stream_seed: of permutations, class order (None: as
        numbered) and rotations (None: evenly spaced); None for permutations: ``seed``.
    :param identity_first: whether the first permutation leaves the pixels in their order.
    :param prior_policy: of the method "posterior"; with "relax" ``gamma``, "cap" ``cap``, "leak"
        ``window``, and with the others none of these.
    :param initial_prior: of the first task: "random", the random initial posterior itself, or
        "uniform", every sign equally likely.
    :param hidden: widths of the hidden layers. :param normalization: one of NORMALIZATIONS.
    :param activation: "relu", "tanh" or "sign". :param output_scale: of the logits.
    :param binary_heads: whether heads have binary weights, in the scenario "task".
    :param epochs: passes over each task. :param batch_size: of its minibatches.
    :param num_samples: draws per prediction. :param validation: fraction of the training data that is
        held out and scored in place of the test set; 0: the test set is scored.
    :param data_folder: where files of data are. It is not compared: they may be elsewhere tomorrow.
    :param given: names of ``method_settings`` that were chosen; None: all that are named.
    :raises ValueError: for a name that is not known, a number out of range, or settings that do not
        go together.

    >>> settings = ContinualSettings("permuted", method_settings={"lr": 0.2})
    >>> settings.tasks, settings.method_settings["kl_weight"], settings.given
    (5, 1.0, ('lr',))
    """

    stream: str
    dataset: str = "digits"
    method: str = "posterior"
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    tasks: int | None = None
    scenario: str = "task"
    classes_per_task: int = 2
    max_degrees: float = 180.0
    stream_seed: int | None = None
    identity_first: bool = False
    prior_policy: str = "exact"
    gamma: float | None = None
    cap: float | None = None
    window: float | None = None
    initial_prior: str = "random"
    hidden: Sequence[int] = (100, 100)
    normalization: str = "layer"
    activation: str = "relu"
    output_scale: float = 3.0
    binary_heads: bool = False
    epochs: int | None = None
    batch_size: int | None = None
    num_samples: int = 32
    validation: float = 0.0
    seed: int = 0
    data_folder: str | None = field(default=None, compare=False)
    given: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("stream", STREAMS),
            ("dataset", CONTINUAL_DATASETS),
            ("method", LEARNERS),
            ("scenario", SCENARIOS),
            ("initial_prior", INITIAL_PRIORS),
            ("normalization", NORMALIZATIONS),
            ("activation", ACTIVATIONS),
        ):
            one_of(name, getattr(self, name), known)
        if self.method != "posterior" and self.prior_policy != "exact":
            raise ValueError(
                f"expected a prior policy with the method 'posterior' only; got "
                f"{self.prior_policy!r} with {self.method!r}, leave it out."
            )
        named_prior_policy(self.prior_policy, **self.policy_settings())  # refuses what it would
        self._fill_in()
        self._fill(**self._settings_of_the_method())

    def policy_settings(self) -> dict[str, float | None]:
        """The settings of the prior policy, by name."""
        return {"gamma": self.gamma, "cap": self.cap, "window": self.window}

    @property
    def recipe(self) -> str | None:
        """The recipe that trains the posterior; None for a baseline without one."""
        return None if self.method in BASELINES else RECIPE

    # In a record

    def to_record(self) -> dict[str, Any]:
        """The entries ``settings`` and ``recipe`` of a record."""
        apart = ("method_settings", "given", "data_folder")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        return {
            "settings": settings,
            "recipe": {
                "name": self.recipe,
                "settings": dict(self.method_settings),
                "given": list(self.given or ()),
            },
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ContinualSettings:
        """The settings in a record, complete."""
        return cls(
            **record["settings"],
            method_settings=record["recipe"]["settings"],
            given=tuple(record["recipe"]["given"]),
            data_folder=record["data"]["folder"],
        )

    # Defaults

    def _fill(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _fill_in(self) -> None:
        """Complete and check the numbers."""

        def chosen(name: str, default: Any) -> Any:
            given = getattr(self, name)
            return default if given is None else given

        split = self.stream == "split"
        tasks = chosen("tasks", 0 if split else 5 if self.dataset == "digits" else 10)
        stream_seed = chosen("stream_seed", self.seed if self.stream == "permuted" else None)
        self._fill(
            tasks=whole_number("tasks", tasks, at_least=0 if split else 1),
            epochs=whole_number("epochs", chosen("epochs", EPOCHS.get(self.dataset, 5)), 1),
            batch_size=whole_number(
                "batch_size", chosen("batch_size", BATCH_SIZES.get(self.dataset, 250)), 1
            ),
            classes_per_task=whole_number("classes_per_task", self.classes_per_task, 1),
            num_samples=whole_number("num_samples", self.num_samples),
            seed=whole_number("seed", self.seed),
            stream_seed=None if stream_seed is None else whole_number("stream_seed", stream_seed),
            hidden=whole_numbers("hidden", self.hidden),
            max_degrees=real_number("max_degrees", self.max_degrees, above=0.0),
            output_scale=real_number("output_scale", self.output_scale, above=0.0),
            validation=real_number("validation", self.validation, at_least=0.0, below=1.0),
            identity_first=true_or_false("identity_first", self.identity_first),
            binary_heads=true_or_false("binary_heads", self.binary_heads),
            data_folder=None if self.data_folder is None else os.fspath(self.data_folder),
        )

    def _settings_of_the_method(self) -> dict[str, Any]:
        chosen = dict(self.method_settings)
        if self.method in BASELINES:
            known: Mapping[str, Any] = BASELINES[self.method]
            if unknown := [name for name in chosen if name not in known]:
                raise ValueError(
                    f"The method {self.method!r} has the settings {', '.join(known)}; got "
                    f"{', '.join(unknown)}."
                )
            numbers = {
                name: real_number(name, value, at_least=0.0) for name, value in chosen.items()
            }
            complete = {**known, **numbers}
            for name in ("lr", "real_lr", "init_scale"):
                if name in complete:
                    real_number(name, complete[name], above=0.0)
        else:
            complete = settings_of(RECIPE, **{**self._of_sequences(), **chosen})
            if complete["guide"] != "mean-field":
                raise ValueError(
                    f"expected the guide mean-field, whose posterior is the next task's prior; got "
                    f"{complete['guide']!r}."
                )
        given = chosen if self.given is None else self.given
        return {
            "method_settings": complete,
            "given": tuple(name for name in complete if name in given),
        }

    def _of_sequences(self) -> dict[str, Any]:
        """The recipe's settings in a sequence of tasks, where they are not named."""
        scale = 1.0 if self.initial_prior == "random" else 0.1
        common = {"kl_weight": 1.0, "real_lr": 3e-3, "init_scale": scale}
        if self.prior_policy == "leak":
            return {"optimizer": "bayesian-learning-rule", "lr": 1.0, **common}
        return {"optimizer": "adam", "lr": 0.1, **common}


def method_settings(method: str, recipe: str | None, texts: Sequence[str]) -> dict[str, Any]:
    """The settings of a method from texts such as "lr=0.2".

    :param recipe: that was asked for, if any.
    :raises ValueError: for a recipe that cannot continue a posterior, and for settings that do not fit.

    >>> method_settings("posterior", None, ["lr=0.2"]), method_settings("ewc", None, ["strength=2"])
    ({'lr': 0.2}, {'strength': 2.0})
    """
    if recipe not in (None, RECIPE):
        raise ValueError(
            f"expected the recipe {RECIPE!r}, which starts each task from the last posterior; got "
            f"{recipe!r}. Baselines without a posterior have names of their own: --method "
            f"{', '.join(BASELINES)}."
        )
    if method not in BASELINES:
        return parse_settings(RECIPE, texts)
    if recipe is not None:
        raise ValueError(f"The method {method!r} is no recipe; leave --recipe {recipe} out.")
    pairs = [text.partition("=") for text in texts]
    found = {name.strip().replace("-", "_"): parse(value) for name, _, value in pairs}
    return {name: real_number(name, value) for name, value in found.items()}
