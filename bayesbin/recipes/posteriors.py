"""Posteriors: a probability for each sign, drawn, relaxed or propagated in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

from bayesbin.estimators import Concrete, LocalReparameterization, PseudoReward
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli, natural_from_latent
from bayesbin.optim import BayesianLearningRule
from bayesbin.posterior import BinaryPosterior
from bayesbin.recipes.base import Method, Parts, annealed, guide_options

Settings = dict[str, Any]


def _bayesbinn(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    guide = AutoSignBernoulli(model, **guide_options(settings))
    estimator = Concrete(settings["temperature"], settings["num_samples"])
    rule = _rule(guide, settings)
    return Parts(guide, estimator, [rule], [annealed(rule, epochs)])


def _bayesbin(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    guide = AutoSignBernoulli(model, **guide_options(settings))
    rule = _rule(guide, settings)
    return Parts(guide, LocalReparameterization(), [rule], [annealed(rule, epochs)])


def _lr_net(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    options = guide_options(settings)
    if settings["pretrained"] is not None:
        pretrained: nn.Module | Mapping[str, Tensor] = settings["pretrained"]
        options["init"] = BinaryPosterior(natural_from_latent(pretrained))
    guide = AutoSignBernoulli(model, **options)
    adam = Adam(guide.natural_parameters(), lr=settings["lr"])
    return Parts(guide, LocalReparameterization(), [adam], [annealed(adam, epochs)])


def _snapquant(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    guide = AutoNestedSignBernoulli(model, settings["levels"], **guide_options(settings))
    adam = Adam(guide.offsets(), lr=settings["lr"])
    estimator = PseudoReward(settings["reward_scale"], settings["num_samples"])
    return Parts(guide, estimator, [adam], [annealed(adam, epochs)])


def _rule(guide: AutoSignBernoulli, settings: Settings) -> BayesianLearningRule:
    return BayesianLearningRule(
        guide.natural_parameters(), settings["lr"], settings["momentum"], normalize=True
    )


POSTERIORS: dict[str, Method] = {
    "bayesbinn": Method(
        _bayesbinn,
        {"lr": 0.1, "momentum": 0.9, "temperature": 0.5, "num_samples": 1, "kl_weight": 0.02},
        "Meng, Bachmann and Khan 2020, arXiv 2002.10778",
        "the algorithm as written, s without epsilons, with settings of ours at which draws differ: lambda "
        "from near 0, temperature 0.5, relative steps, a small weight on the KL. The published image runs, "
        "temperature 1e-10 and momentum 0.99 from lambda = +-10, draw no weight that differs from its sign",
    ),
    "lr-net": Method(
        _lr_net,
        {"lr": 0.1, "pretrained": None},
        "Shayer, Levi and Fetaya 2018, arXiv 1710.07739",
        "from random probabilities unless pretrained= gives a network or its weights; no decay of the "
        "probabilities",
    ),
    "snapquant": Method(
        _snapquant,
        {
            "lr": 0.1,
            "levels": ("layer", "filter", "kernel", "weight"),
            "reward_scale": 1.0,
            "num_samples": 1,
        },
        "SnapQuant, ICLR 2019 submission B1ePui0ctQ",
        "its function of the levels is not public: ours is their sum",
    ),
    "bayesbin": Method(
        _bayesbin,
        {"lr": 0.1, "momentum": 0.9, "kl_weight": 0.02},
        "Khan and Rue 2023, arXiv 2107.04562; Shayer, Levi and Fetaya 2018, arXiv 1710.07739",
        "this package's own",
    ),
}
