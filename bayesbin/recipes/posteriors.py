"""Posteriors: a probability for each sign, drawn, relaxed or propagated in training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import shown
from bayesbin.core.names import OPTIMIZERS, SHARING
from bayesbin.core.numerics import sign_of
from bayesbin.estimators import (
    Concrete,
    LocalReparameterization,
    PseudoReward,
    StraightThrough,
    named_estimator,
)
from bayesbin.estimators.named import ESTIMATORS, estimator_settings
from bayesbin.guides import (
    AutoNestedSignBernoulli,
    AutoSignBernoulli,
    AutoSignDelta,
    natural_from_latent,
)
from bayesbin.guides.named import GUIDES
from bayesbin.nn import binary_sites
from bayesbin.nn.binarizers import SignSTE
from bayesbin.optim import DEFAULTS, BayesianLearningRule
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
    elif not isinstance(guide, nn.Module):
        raise ValueError(
            f"expected guide to be one of {', '.join(GUIDES.names())}, or a guide that is a torch module; "
            f"got {shown(guide)}. The parameters of a function are known once it runs: train it with "
            "bayesbin.fit(model, guide, data, epochs=...)."
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
    if settings["settings"] == "published":
        return _bayesbinn_in_float32(given)
    guide = AutoSignBernoulli(given.model, **given.guide_options())
    if settings["start"] == "signs":
        _to_signs_(guide.natural_parameters(), settings["init_scale"])
    rules = weight_optimizers(
        weight_groups(guide),
        "bayesian-learning-rule",
        lr=settings["lr"],
        momentum=settings["momentum"],
        relative=settings["steps"] == "relative",
    )
    return Parts(guide, Concrete(settings["temperature"], settings["num_samples"]), rules)


def _bayesbinn_in_float32(given: Ingredients) -> Parts:
    """What the published code computes in float32 where lambda starts at +-10 and tau is small.

    There tanh((lambda + delta) / tau) is sign(lambda) for every delta, and with an epsilon of 1e-10 in
    numerator and denominator s is 1 / tau for every weight. In exact arithmetic s would be 0. A step is of
    the order of 1 / tau, so that lambda does not come to lie between -9 and 9, where s is another one.
    """
    settings = given.settings
    sites = binary_sites(given.model) if isinstance(given.model, nn.Module) else {}
    told = [name for name, site in sites.items() if bool((site.prior != 0).any())]
    if told or getattr(given.model, "hyperpriors", None):
        raise ValueError(
            "The published settings of bayesbinn have the uniform prior; the model has another, of "
            f"{', '.join(told[:3]) or 'all weights'}. Leave settings='published' out."
        )
    guide = AutoSignDelta(given.model, binarizer=SignSTE(clip=None), **given.guide_options())
    latents = list(guide.latents())
    _to_signs_(latents, settings["init_scale"])
    decay = StraightThroughWithDecay(latents, settings["temperature"], settings["kl_weight"])
    rule = BayesianLearningRule(
        latents, settings["lr"], settings["momentum"], bound=None, preconditioner=decay
    )
    # The rule has the decay of the KL in it, and the network is a single one: nothing else to weigh.
    return Parts(guide, StraightThrough(noise=False), [rule], kl_weight=0.0)


class StraightThroughWithDecay:
    r"""The natural gradient of the published BayesBiNN in float32, from the gradient at the signs.

    .. math:: \tilde g = g / \tau + \beta \lambda
    """

    def __init__(self, latents: Sequence[Tensor], temperature: float, kl_weight: float) -> None:
        self.latents, self.temperature, self.kl_weight = latents, temperature, kl_weight

    def __call__(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [
            None if g is None else g / self.temperature + self.kl_weight * latent.detach()
            for g, latent in zip(gradients, self.latents, strict=True)
        ]


@torch.no_grad()
def _to_signs_(parameters: Iterable[Tensor], size: float) -> None:
    """Let parameters start at plus or minus one size, with the signs that they have."""
    for parameter in parameters:
        parameter.copy_(size * sign_of(parameter))


def _complete_bayesbinn(settings: Settings, given: frozenset[str]) -> Settings:
    if settings["settings"] != "published":
        return settings
    fixed = {"steps": "natural", "start": "signs"}
    for name, value in fixed.items():
        if settings[name] != value:
            raise ValueError(
                f"The published settings of bayesbinn have {name}={value!r}; leave {name} out, or "
                "settings='published'."
            )
    if settings["num_samples"] not in (None, 1):
        raise ValueError(
            "The published settings of bayesbinn draw nothing in float32, and have no num_samples; leave it "
            "out, or settings='published'."
        )
    if settings["temperature"] > 1e-8 or settings["init_scale"] < 9:
        raise ValueError(
            "The published settings of bayesbinn draw no weight that differs from its sign, which holds for "
            f"temperatures of at most 1e-8 and init_scale of at least 9; got {settings['temperature']:g} and "
            f"{settings['init_scale']:g}. Leave settings='published' out for others."
        )
    return settings | {"num_samples": None}


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
            "num_samples": count(1, optional=True),
            "kl_weight": _KL_WEIGHT,
            "init_scale": number(DEFAULTS["init_scale"], at_least=0),
            "start": choice("normal", lambda: ("normal", "signs")),
            "steps": choice("relative", lambda: ("relative", "natural")),
        },
        "Meng, Bachmann and Khan 2020, arXiv 2002.10778",
        "the algorithm as written, s without epsilons, with settings of ours at which draws differ: lambda "
        "from near 0, temperature 0.5, relative steps, a small weight on the KL. settings='published' has "
        "those of the authors' image runs, which draw no weight that differs from its sign in float32: it "
        "is trained as what that is, w = sign(lambda), s = 1 / temperature, no bound on lambda",
        presets={
            "published": {
                "lr": 1e-4,
                "momentum": 0.0,
                "temperature": 1e-10,
                "num_samples": None,
                "kl_weight": 1.0,
                "init_scale": 10.0,
                "start": "signs",
                "steps": "natural",
            }
        },
        resolve=_complete_bayesbinn,
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
