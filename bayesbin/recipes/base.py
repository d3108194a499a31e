"""Recipes: a method by its parts, and how the parts that all methods share are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro.nn import PyroModule
from torch import nn
from torch.optim import Optimizer

from bayesbin.core.checks import one_of, shown, whole_number
from bayesbin.core.wrappers import unwrapped
from bayesbin.estimators import Estimator
from bayesbin.infer import FitResult, fit
from bayesbin.nn import Classifier, binary_sites, to_binary_
from bayesbin.nn.convert import has_convertible_weights
from bayesbin.optim import DEFAULTS, make_optimizers, make_schedules, training_groups
from bayesbin.recipes.settings import Setting, choice, digest_of, number, positive, require_json


@dataclass(frozen=True, eq=False)
class Recipe:
    """A method put together for a model: ``recipe.fit(data)`` trains it.

    :param name: the method's. :param model: the model given, or the classifier made of a plain network.
    :param guide: the posterior. :param estimator: of the gradient.
    :param optimizers: those of the weights first. :param schedules: stepped once per epoch; they end at
        ``epochs``.
    :param kl_weight: what the loss has before its KL term; point estimates have no such term, and 0.
    :param epochs: passes over the data.
    :param settings: every setting, in plain JSON: ``recipe(name, model, epochs=epochs, **settings)`` is the
        same recipe. None: the setting does not apply, or the part was given as an object.
    :param given: the names of the settings and objects that the caller gave.
    :param objects: what was given that is no setting (``init``, ``args``, ``pretrained``; a guide or
        estimator itself): name -> class and digest.
    :param dataset_size: number of training data.
    :param source: where it was published. :param note: what of it is ours.
    """

    name: str
    model: Any
    guide: Any
    estimator: Estimator
    optimizers: tuple[Optimizer, ...]
    schedules: tuple[Any, ...]
    kl_weight: float
    epochs: int
    settings: dict[str, Any]
    given: tuple[str, ...]
    objects: dict[str, str]
    dataset_size: int
    source: str
    note: str

    def arguments(self) -> dict[str, Any]:
        """The keywords of ``fit``: estimator, optimizers and schedulers, ``declared_lr`` (the setting
        ``real_lr``), kl_weight, epochs and dataset_size."""
        return {
            "estimator": self.estimator,
            "optimizers": self.optimizers,
            "schedulers": self.schedules,
            "declared_lr": self.settings.get("real_lr"),
            "kl_weight": self.kl_weight,
            "epochs": self.epochs,
            "dataset_size": self.dataset_size,
        }

    def fit(self, data: Iterable[Any], **keywords: Any) -> FitResult:
        """Train: ``fit(recipe.model, recipe.guide, data, **recipe.arguments(), **keywords)``.

        :param data: batches, as of :func:`bayesbin.infer.fit`.
        :param keywords: of ``fit``, such as ``validation``, ``checkpoint_dir``, ``seed``, ``progress``.
        :raises ValueError: for a keyword that the recipe decides, such as ``kl_weight``.
        """
        decided = self.arguments()
        if twice := [name for name in keywords if name in decided]:
            raise ValueError(
                f"The recipe decides {', '.join(twice)}; give it to recipe({self.name!r}, ...) instead."
            )
        return fit(self.model, self.guide, data, **decided, **keywords)


@dataclass(frozen=True)
class Ingredients:
    """What a method is built from.

    :param model: the Pyro model. :param settings: all settings, checked. :param objects: what was given that
        is no setting. :param dataset_size: number of training data. :param epochs: passes over them.
    """

    model: Any
    settings: Mapping[str, Any]
    objects: Mapping[str, Any]
    dataset_size: int
    epochs: int

    def guide_options(self) -> dict[str, Any]:
        """The keywords that all guides take: init_scale, and init and args where they were given."""
        given = {name: self.objects[name] for name in _OBJECTS if name in self.objects}
        if "init_scale" in self.settings:
            given["init_scale"] = self.settings["init_scale"]
        return given


@dataclass(frozen=True)
class Parts:
    """What a method makes of its ingredients; the real parameters are added to it.

    :param guide: the posterior. :param estimator: of the gradient.
    :param optimizers: of the weights; parameters that none of them holds go to Adam at ``real_lr``.
    :param schedules: beside that of the learning rates, which every optimizer gets.
    :param kl_weight: of the loss, where it is not the setting ``kl_weight``.
    """

    guide: Any
    estimator: Estimator
    optimizers: list[Optimizer]
    schedules: list[Any] = field(default_factory=list)
    kl_weight: float | None = None


@dataclass(frozen=True)
class Method:
    """A method: its settings, and how it is built from them.

    :param build: from :class:`Ingredients` to :class:`Parts`.
    :param settings: name -> :class:`Setting`, or a default of the type that the setting has.
    :param source: where it was published. :param note: what of it is not as published.
    :param shared: those of the three settings of all methods that apply: "real_lr", Adam's for all that is
        not a weight; "init_scale", the guide's; "schedule", of the learning rates.
    :param presets: name -> values of settings, for ``recipe(name, model, settings="published")``.
    :param objects: names of arguments that are no settings, beside ``init`` and ``args``.
    :param resolve: completes settings that depend on others, and refuses what does not fit: from (settings,
        names given) to settings.
    """

    build: Callable[[Ingredients], Parts]
    settings: Mapping[str, Any]
    source: str = ""
    note: str = ""
    shared: tuple[str, ...] = ("real_lr", "init_scale", "schedule")
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    resolve: Callable[[dict[str, Any], frozenset[str]], dict[str, Any]] | None = None

    def all_settings(self) -> dict[str, Setting]:
        """The settings, with those that methods share."""
        own = {name: Setting.like(default) for name, default in self.settings.items()}
        return {**own, **{name: _SHARED[name] for name in self.shared if name not in own}}


_SHARED: Mapping[str, Setting] = {
    "real_lr": positive(DEFAULTS["real_lr"]),  # Adam's, for biases, normalisation and scale
    "init_scale": number(DEFAULTS["init_scale"], at_least=0),
    # Of the learning rates. A constant one lets a run be lengthened; "cosine" ends at the last epoch.
    "schedule": choice("cosine", lambda: ("cosine", "constant")),
}
_OBJECTS = ("init", "args")
PRESET = "settings"


def resolved(name: str, method: Method, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method, with overrides, checked and in plain JSON."""
    known = method.all_settings()
    allowed = (*([PRESET] if method.presets else []), *known)
    if unknown := [key for key in overrides if key not in allowed]:
        raise ValueError(
            f"The recipe {name!r} has the settings {', '.join(allowed)}; got {', '.join(unknown)}."
        )
    settings: dict[str, Any] = {key: setting.default for key, setting in known.items()}
    if method.presets:
        preset = one_of(PRESET, overrides.get(PRESET, "ours"), ("ours", *method.presets))
        settings = {PRESET: preset, **settings, **method.presets.get(preset, {})}
    for key, value in overrides.items():
        if key != PRESET:
            settings[key] = known[key].checked(key, value)
    given = frozenset(key for key, value in overrides.items() if value is not None)
    if method.resolve is not None:
        settings = method.resolve(settings, given)
    require_json(settings)
    return settings


def assemble(
    name: str,
    method: Method,
    model: Any,
    dataset_size: int,
    epochs: int,
    overrides: Mapping[str, Any],
) -> Recipe:
    """The recipe of a method for a model; ``overrides`` are settings and objects."""
    takes = (*_OBJECTS, *method.objects)
    settings_given, objects = split_objects(overrides, takes)
    settings = resolved(name, method, settings_given)
    for key in takes:
        if key in settings and settings[key] is None and key not in objects:
            raise ValueError(
                f"The setting {key!r} is None, which stands for one that was given as an object; pass "
                f"{key}=."
            )
    parts = method.build(Ingredients(model, settings, objects, dataset_size, epochs))
    _require_parts(name, parts)
    held = {id(p) for o in parts.optimizers for group in o.param_groups for p in group["params"]}
    left = [
        group
        for group in training_groups(parts.guide, model, parts.estimator)
        if not any(id(p) in held for p in group.parameters)
    ]
    real_lr = settings.get("real_lr", DEFAULTS["real_lr"])
    optimizers = [*parts.optimizers, *make_optimizers(left, real_lr=real_lr)]
    annealing = make_schedules(optimizers, epochs) if settings.get("schedule") != "constant" else []
    return Recipe(
        name=name,
        model=model,
        guide=parts.guide,
        estimator=parts.estimator,
        optimizers=tuple(optimizers),
        schedules=(*annealing, *parts.schedules),
        kl_weight=settings.get("kl_weight", 0.0) if parts.kl_weight is None else parts.kl_weight,
        epochs=epochs,
        settings=settings,
        given=tuple(key for key, value in overrides.items() if value is not None),
        objects={key: digest_of(value) for key, value in objects.items()},
        dataset_size=dataset_size,
        source=method.source,
        note=method.note,
    )


def split_objects(
    overrides: Mapping[str, Any], takes: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The overrides that are settings, and those that are objects; a setting given so becomes None."""
    settings, objects = dict(overrides), {}
    for key in takes:
        value = settings.get(key)
        if value is not None and not isinstance(value, str):
            objects[key] = value
        if key in _OBJECTS or key == "pretrained":
            settings.pop(key, None)
        elif key in objects:
            settings[key] = None
    return settings, objects


def resolve_model(model: Any, dataset_size: int | None) -> tuple[Any, int]:
    """The Pyro model and its data-set size; a plain network becomes a binary classifier."""
    if isinstance(model, nn.Module):
        if not binary_sites(model) and has_convertible_weights(model):
            to_binary_(model)
        if not isinstance(unwrapped(model), PyroModule):
            if dataset_size is None:
                raise ValueError(
                    "recipe takes a Pyro model, such as bayesbin.nn.Classifier(net, dataset_size), or a "
                    f"network and dataset_size=; got a {type(model).__name__} alone."
                )
            model = Classifier(model, whole_number("dataset_size", dataset_size, at_least=1))
    own = getattr(model, "dataset_size", None)
    if own is not None and dataset_size is not None and dataset_size != own:
        raise ValueError(
            f"expected one number of training data, got dataset_size={dataset_size} and "
            f"model.dataset_size={own}; leave the first out."
        )
    size = dataset_size if own is None else own
    if size is None:
        raise ValueError(
            "expected the number of training data, which the model does not say; pass dataset_size=."
        )
    return model, whole_number("dataset_size", size, at_least=1)


def _require_parts(name: str, parts: Any) -> None:
    if not isinstance(parts, Parts):
        raise ValueError(
            f"expected the recipe {name!r} to build bayesbin.recipes.Parts(guide, estimator, optimizers); "
            f"got {shown(parts)}."
        )
    if not callable(parts.guide):
        raise ValueError(
            f"expected the recipe {name!r} to build a guide; got {shown(parts.guide)}."
        )
    if not isinstance(parts.estimator, Estimator):
        raise ValueError(
            f"expected the recipe {name!r} to build a bayesbin.estimators.Estimator; got "
            f"{shown(parts.estimator)}."
        )
    if not all(isinstance(optimizer, Optimizer) for optimizer in parts.optimizers):
        raise ValueError(
            f"expected the recipe {name!r} to build optimizers of torch.optim's kind; got "
            f"{shown(parts.optimizers)}."
        )
    if not all(callable(getattr(schedule, "step", None)) for schedule in parts.schedules):
        raise ValueError(
            f"expected each schedule of the recipe {name!r} to have step(); got {shown(parts.schedules)}."
        )
