"""Posteriors: a probability for each sign, drawn, relaxed or propagated in training."""

from __future__ import annotations

import inspect
from typing import Any

from bayesbin.core.names import OPTIMIZERS, SHARING
from bayesbin.estimators import (
    Concrete,
    LocalReparameterization,
    PseudoReward,
    named_estimator,
)
from bayesbin.estimators.named import ESTIMATORS, estimator_settings
from bayesbin.guides import (
    AutoNestedSignBernoulli,
    AutoSignBernoulli,
    natural_from_latent,
)
from bayesbin.guides.named import GUIDES
from bayesbin.optim import DEFAULTS
from bayesbin.optim.assembly import LEARNING_RATES, weight_groups, weight_optimizers
from bayesbin.posterior import BinaryPosterior
from bayesbin.recipes.base import Ingredients, Method, Parts
from bayesbin.recipes.settings import Setting, choice, count, names, number, positive

Settings = dict[str, Any]


# The default recipe


def _bayesbin(given: Ingredients) -> Parts:
    settings, objects = given.settings, given.objects
    guide = objects.get("guide")
    if guide is None:
        options = given.guide_options()
        if settings["sharing"] is not None:
            options["sharing"] = settings["sharing"]
        guide = GUIDES[settings["guide"]](given.model, **options)
    elif not callable(guide):
        raise ValueError(
            f"expected guide to be one of {', '.join(GUIDES.names())}, or a guide; got {guide!r}."
        )
    estimator = objects.get("estimator")
    if estimator is None:
        estimator = named_estimator(
            settings["estimator"], settings["num_samples"], settings["temperature"]
        )
    weights = weight_groups(guide)
    made = (
        weight_optimizers(
            weights,
            settings["optimizer"],
            lr=settings["lr"],
            momentum=settings["momentum"],
            dataset_size=given.dataset_size,
        )
        if weights
        else []
    )
    return Parts(guide, estimator, made)


def _complete(settings: Settings, given: frozenset[str]) -> Settings:
    """Fill in what depends on guide, estimator and optimizer, and refuse what these do not have."""
    settings = dict(settings)
    _complete_guide(settings, given)
    _complete_estimator(settings)
    optimizer = settings["optimizer"]
    if settings["lr"] is None:
        settings["lr"] = LEARNING_RATES[optimizer]
    if optimizer == "adam" and settings["momentum"] is not None:
        raise ValueError("The optimizer 'adam' has no setting momentum; leave it out.")
    if optimizer != "adam" and settings["momentum"] is None:
        settings["momentum"] = DEFAULTS["momentum"]
    return settings


def _complete_guide(settings: Settings, given: frozenset[str]) -> None:
    guide = settings["guide"]
    shares = guide is not None and "sharing" in inspect.signature(GUIDES[guide]).parameters
    if shares and settings["sharing"] is None:
        settings["sharing"] = list(SHARING)
    if not shares and settings["sharing"] is not None:
        raise ValueError(
            f"The guide {guide or 'given as an object'!r} has no setting sharing; leave it out, or take "
            "guide='nested' or guide='random-effects'."
        )
    if guide == "random-effects" and settings["sharing"] == ["weight"]:
        raise ValueError(
            "Random effects are those of layer, filter and kernel; got sharing=['weight'] alone."
        )
    if guide is None:
        if "init_scale" in given:
            raise ValueError(
                "A guide given as an object has its start already; leave out init_scale."
            )
        settings["init_scale"] = None


def _complete_estimator(settings: Settings) -> None:
    estimator = settings["estimator"]
    has: Settings = {"num_samples": None, "temperature": None}
    if estimator is not None:
        has = estimator_settings(estimator)
    for key, default in has.items():
        if default is None and settings[key] is not None:
            raise ValueError(
                f"The estimator {estimator or 'given as an object'!r} has no setting {key}; leave it out."
            )
        settings[key] = default if settings[key] is None else settings[key]
    if estimator is not None:  # refuses what else does not fit, an odd number of draws in pairs
        named_estimator(estimator, settings["num_samples"], settings["temperature"])


# Published methods


def _bayesbinn(given: Ingredients) -> Parts:
    settings = given.settings
    guide = AutoSignBernoulli(given.model, **given.guide_options())
    estimator = Concrete(settings["temperature"], settings["num_samples"])
    rules = weight_optimizers(
        weight_groups(guide),
        "bayesian-learning-rule",
        lr=settings["lr"],
        momentum=settings["momentum"],
    )
    return Parts(guide, estimator, rules)


def _lr_net(given: Ingredients) -> Parts:
    options = given.guide_options()
    pretrained = given.objects.get("pretrained")
    if pretrained is not None:
        options["init"] = BinaryPosterior(natural_from_latent(pretrained))
    guide = AutoSignBernoulli(given.model, **options)
    adam = weight_optimizers(weight_groups(guide), "adam", lr=given.settings["lr"])
    return Parts(guide, LocalReparameterization(), adam)


def _snapquant(given: Ingredients) -> Parts:
    settings = given.settings
    guide = AutoNestedSignBernoulli(given.model, settings["sharing"], **given.guide_options())
    adam = weight_optimizers(weight_groups(guide), "adam", lr=settings["lr"])
    return Parts(guide, PseudoReward(settings["reward_scale"], settings["num_samples"]), adam)


_MOMENTUM = number(DEFAULTS["momentum"], at_least=0, below=1)
_KL_WEIGHT = number(DEFAULTS["kl_weight"], at_least=0)

POSTERIORS: dict[str, Method] = {
    "bayesbin": Method(
        _bayesbin,
        {
            "guide": Setting(DEFAULTS["guide"], choice("", GUIDES.names).check, optional=True),
            "sharing": names(None, SHARING, optional=True),
            "estimator": Setting(
                DEFAULTS["estimator"], choice("", ESTIMATORS.names).check, optional=True
            ),
            "temperature": positive(None, optional=True),
            "num_samples": count(None, optional=True),
            "optimizer": choice(DEFAULTS["optimizer"], lambda: OPTIMIZERS),
            "lr": positive(None, optional=True),
            "momentum": number(None, optional=True, at_least=0, below=1),
            "real_lr": positive(DEFAULTS["real_lr"]),
            "kl_weight": _KL_WEIGHT,
            "init_scale": number(DEFAULTS["init_scale"], optional=True, at_least=0),
        },
        "Khan and Rue 2023, arXiv 2107.04562; Shayer, Levi and Fetaya 2018, arXiv 1710.07739",
        "this package's own",
        objects=("guide", "estimator"),
        resolve=_complete,
    ),
    "bayesbinn": Method(
        _bayesbinn,
        {
            "lr": positive(DEFAULTS["lr"]),
            "momentum": _MOMENTUM,
            "temperature": positive(0.5),
            "num_samples": count(1),
            "kl_weight": _KL_WEIGHT,
        },
        "Meng, Bachmann and Khan 2020, arXiv 2002.10778",
        "the algorithm as written, s without epsilons, with settings of ours at which draws differ: lambda "
        "from near 0, temperature 0.5, relative steps, a small weight on the KL. The published image runs, "
        "temperature 1e-10 from lambda = +-10, draw no weight that differs from its sign",
    ),
    "lr-net": Method(
        _lr_net,
        {"lr": positive(0.1), "kl_weight": number(0.0, at_least=0)},
        "Shayer, Levi and Fetaya 2018, arXiv 1710.07739",
        "from random probabilities unless pretrained= gives a network or its weights; no decay of the "
        "probabilities",
        objects=("pretrained",),
    ),
    "snapquant": Method(
        _snapquant,
        {
            "lr": positive(0.1),
            "sharing": names(SHARING, SHARING),
            "reward_scale": positive(1.0),
            "num_samples": count(1),
            "kl_weight": number(0.0, at_least=0),
        },
        "SnapQuant, ICLR 2019 submission B1ePui0ctQ",
        "its function of the levels is not public: ours is their sum",
    ),
}
