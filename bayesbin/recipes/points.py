"""Point estimates: the sign, or the level, of a latent; and signs that are flipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from bayesbin.estimators import StraightThrough
from bayesbin.guides import AutoSignDelta
from bayesbin.nn.binarizers import (
    SLB,
    Binarizer,
    BinaryConnect,
    ReCU,
    Signs,
    SignSTE,
    TernaryConnect,
)
from bayesbin.optim import (
    Bop,
    Schedule,
    SecondOrderBop,
    exponential,
    linear,
    recu_tau,
    step_decay,
    training_groups,
)
from bayesbin.optim.assembly import weight_optimizers
from bayesbin.recipes.base import Ingredients, Method, Parts
from bayesbin.recipes.settings import Setting, choice, count, flag, number, numbers, positive

Settings = Mapping[str, Any]


def _latent(binarizer: Callable[[Settings], Binarizer]) -> Callable[[Ingredients], Parts]:
    """A guide of latents under Adam or SGD, clipped where the method does."""

    def build(given: Ingredients) -> Parts:
        settings = given.settings
        guide = AutoSignDelta(given.model, binarizer=binarizer(settings), **given.guide_options())
        latents = [group for group in training_groups(guide) if group.role == "latents"]
        made: list[Optimizer]
        if "weight_decay" not in settings:
            made = weight_optimizers(latents, "adam", lr=settings["lr"])
        else:  # published for a mean loss; ours is in nats over the data set
            made = weight_optimizers(
                latents,
                "sgd",
                lr=settings["lr"],
                momentum=settings["momentum"],
                weight_decay=settings["weight_decay"],
                dataset_size=given.dataset_size,
            )
        return Parts(guide, _nothing_to_estimate(), made)

    return build


def _recu(given: Ingredients) -> Parts:
    settings = given.settings
    parts = _latent(lambda s: ReCU(s["tau"], quantile=s["quantile"]))(given)
    tau = recu_tau(given.epochs, settings["tau"], settings["last_tau"])
    return _with_schedule(parts, "tau", tau)


def _slb(given: Ingredients) -> Parts:
    settings = given.settings
    parts = _latent(lambda s: SLB(tuple(s["levels"]), s["sharpness"]))(given)
    begin, end = settings["hold"]
    sharpness = exponential(
        settings["sharpness"], settings["last_sharpness"], given.epochs, (begin, end)
    )
    return _with_schedule(parts, "sharpness", sharpness)


def _bop(given: Ingredients) -> Parts:
    settings = given.settings
    guide = AutoSignDelta(given.model, binarizer=Signs(), **given.guide_options())
    bop = Bop(
        guide.latents(),
        threshold=settings["threshold"] * given.dataset_size,
        gamma=settings["gamma"],
        fan_in_scaling=settings["fan_in_scaling"],
    )
    if settings["gamma_every"] is None:
        gamma = exponential(settings["gamma"], settings["last_gamma"], given.epochs)
    else:
        gamma = step_decay(settings["gamma"], 0.1, settings["gamma_every"])
    return Parts(guide, _nothing_to_estimate(), [bop], [Schedule(bop, "gamma", gamma)])


def _complete_bop(settings: dict[str, Any], given: frozenset[str]) -> dict[str, Any]:
    if settings["gamma_every"] is None:
        return settings
    if "last_gamma" in given:
        raise ValueError(
            "gamma falls to last_gamma over the training, or by 0.1 each gamma_every epochs; leave out one."
        )
    return settings | {"last_gamma": None}


def _bop2(given: Ingredients) -> Parts:
    settings = given.settings
    guide = AutoSignDelta(given.model, binarizer=Signs(), **given.guide_options())
    scheduled = ("threshold", "gamma", "sigma")
    bop = SecondOrderBop(guide.latents(), **{name: settings[name] for name in scheduled})
    schedules = [
        Schedule(bop, name, linear(settings[name], settings[f"last_{name}"], given.epochs))
        for name in scheduled
    ]
    return Parts(guide, _nothing_to_estimate(), [bop], schedules)


def _with_schedule(parts: Parts, name: str, function: Callable[[int], float]) -> Parts:
    parts.schedules.append(Schedule(parts.guide.binarizer, name, function))
    return parts


def _nothing_to_estimate() -> StraightThrough:
    # A Delta is differentiated through its binarizer, whatever the estimator: one that draws nothing.
    return StraightThrough(noise=False)


_ANNEALED = "Adam in place of SGD, annealed by a cosine, whatever the number of epochs"


def _rate(default: float, *, optional: bool = False) -> Setting:
    """A rate of averaging, in (0, 1]."""
    return number(default, optional=optional, above=0, at_most=1)


POINTS: dict[str, Method] = {
    "ste": Method(
        _latent(lambda s: SignSTE(s["clip"])),
        {"lr": positive(1e-2), "clip": positive(None, optional=True)},
        "Bengio, Leonard and Courville 2013, arXiv 1308.3432; with Adam as in Meng, Bachmann and Khan "
        "2020, arXiv 2002.10778, section 4",
        "latents are not clipped: with SGD it is the Bayesian learning rule with s = 1",
    ),
    "binaryconnect": Method(
        _latent(lambda s: BinaryConnect()),
        {"lr": positive(1e-2)},
        "Courbariaux, Bengio and David 2015, arXiv 1511.00363",
        f"{_ANNEALED}; cross entropy in place of the squared hinge",
    ),
    "binaryconnect-stochastic": Method(
        _latent(lambda s: BinaryConnect(stochastic=True)),
        {"lr": positive(0.1)},
        "Courbariaux, Bengio and David 2015, arXiv 1511.00363",
        f"{_ANNEALED}; predicts with the signs, where the paper tests on the real latents",
    ),
    "ternaryconnect": Method(
        _latent(lambda s: TernaryConnect(s["stochastic"])),
        {"lr": positive(1e-2), "stochastic": flag(True)},
        "Lin, Courbariaux, Memisevic and Bengio 2016, arXiv 1510.03009",
        f"{_ANNEALED}; three levels; predicts with the rounded latents",
        shared=("real_lr", "schedule"),  # latents start at one size, whatever init_scale
    ),
    "recu": Method(
        _recu,
        {
            "lr": positive(0.1),
            "momentum": number(0.9, at_least=0, below=1),
            "weight_decay": number(5e-4, at_least=0),
            "tau": number(0.85, above=0.5, below=1),
            "last_tau": number(0.99, above=0.5, below=1),
            "quantile": choice("laplace", lambda: ("laplace", "empirical")),
        },
        "Xu et al. 2021, arXiv 2103.12369",
        "no scale per filter: the layers have one of their own",
    ),
    "slb": Method(
        _slb,
        {
            "lr": positive(1e-2),
            "levels": numbers((-1.0, 1.0)),
            "sharpness": positive(1.0),
            "last_sharpness": positive(100.0),
            "hold": numbers((0.2, 0.9), length=2, at_least=0, at_most=1),
        },
        "Yang et al. 2020, arXiv 2009.08695",
        f"{_ANNEALED}; the sharpness grows by one factor per epoch, to 100 whatever their number",
        shared=("real_lr", "schedule"),
    ),
    "bop": Method(
        _bop,
        {
            "threshold": number(1e-6, at_least=0),
            "gamma": _rate(1e-4),
            "last_gamma": _rate(1e-5, optional=True),
            "gamma_every": count(None, optional=True),
            "fan_in_scaling": flag(True),
        },
        "Helwegen, Widdicombe, Geiger, Liu, Cheng and Nusselder 2019, arXiv 1906.02107",
        "the threshold is divided by the root of the fan-in, as the layers' weights are, so that networks "
        "without normalisation train; gamma falls by 0.1 over the training. settings='published': threshold "
        "1e-8, the same for each layer, gamma times 0.1 every 100 epochs, for networks with batch "
        "normalisation",
        shared=("real_lr", "schedule"),
        presets={
            "published": {
                "threshold": 1e-8,
                "last_gamma": None,
                "gamma_every": 100,
                "fan_in_scaling": False,
            }
        },
        resolve=_complete_bop,
    ),
    "bop2": Method(
        _bop2,
        {
            "threshold": number(0.3, at_least=0),
            "last_threshold": number(0.1, at_least=0),
            "gamma": _rate(1e-2),
            "last_gamma": _rate(1e-2),
            "sigma": _rate(1e-2),
            "last_sigma": _rate(1e-2),
        },
        "Suarez-Ramirez, Gonzalez-Mendoza, Chang, Ochoa-Ruiz and Duran-Vega 2021, arXiv 2104.05124",
        "thresholds above the noise of the ratio, so that networks without normalisation train. "
        "settings='published': threshold 1e-5 to 1e-8, gamma 1e-2 to 1e-5, sigma 1e-7 to 1e-2, for networks "
        "with batch normalisation",
        shared=("real_lr", "schedule"),
        presets={
            "published": {
                "threshold": 1e-5,
                "last_threshold": 1e-8,
                "last_gamma": 1e-5,
                "sigma": 1e-7,
            }
        },
    ),
}
