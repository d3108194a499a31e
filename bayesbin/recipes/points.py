"""Point estimates: the sign, or the level, of a latent; and signs that are flipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import SGD, Adam, Optimizer

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
    clip_after_step,
    exponential,
    linear,
    recu_tau,
)
from bayesbin.recipes.base import Method, Parts, annealed, guide_options

Settings = dict[str, Any]


def _latent(binarizer: Callable[[Settings], Binarizer]) -> Callable[..., Parts]:
    """A guide of latents under Adam or SGD, clipped where the method does, annealed."""

    def build(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
        guide = AutoSignDelta(model, binarizer=binarizer(settings), **guide_options(settings))
        latents = list(guide.latents())
        optimizer = _optimizer(latents, settings, size)
        if guide.binarizer.latent_bound is not None:
            clip_after_step(optimizer, latents, guide.binarizer.latent_bound)
        return Parts(guide, _nothing_to_estimate(), [optimizer], [annealed(optimizer, epochs)])

    return build


def _recu(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    parts = _latent(lambda s: ReCU(s["tau"], quantile=s["quantile"]))(model, settings, size, epochs)
    tau = recu_tau(epochs, settings["tau"], settings["last_tau"])
    return _with_schedule(parts, "tau", tau)


def _slb(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    build = _latent(lambda s: SLB(s["levels"], s["sharpness"]))
    sharpness = exponential(
        settings["sharpness"], settings["last_sharpness"], epochs, settings["hold"]
    )
    return _with_schedule(build(model, settings, size, epochs), "sharpness", sharpness)


def _bop(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    guide = AutoSignDelta(model, binarizer=Signs(), **guide_options(settings))
    bop = Bop(
        guide.latents(),
        threshold=settings["threshold"] * size,
        gamma=settings["gamma"],
        fan_in_scaling=settings["fan_in_scaling"],
    )
    gamma = exponential(settings["gamma"], settings["last_gamma"], epochs)
    return Parts(guide, _nothing_to_estimate(), [bop], [Schedule(bop, "gamma", gamma)])


def _bop2(model: Any, settings: Settings, size: int, epochs: int) -> Parts:
    guide = AutoSignDelta(model, binarizer=Signs(), **guide_options(settings))
    names = ("threshold", "gamma", "sigma")
    bop = SecondOrderBop(guide.latents(), **{name: settings[name] for name in names})
    schedules = [
        Schedule(bop, name, linear(settings[name], settings[f"last_{name}"], epochs))
        for name in names
    ]
    return Parts(guide, _nothing_to_estimate(), [bop], schedules)


def _optimizer(latents: list[Any], settings: Settings, size: int) -> Optimizer:
    if "momentum" not in settings:
        return Adam(latents, lr=settings["lr"])
    # Published for a mean loss; ours is in nats over the data set, and so is the decay beside it.
    return SGD(
        latents,
        lr=settings["lr"] / size,
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"] * size,
    )


def _with_schedule(parts: Parts, name: str, function: Callable[[int], float]) -> Parts:
    assert isinstance(parts.guide, AutoSignDelta)
    parts.schedules.append(Schedule(parts.guide.binarizer, name, function))
    return parts


def _nothing_to_estimate() -> StraightThrough:
    # A Delta is differentiated through its binarizer, whatever the estimator: one that draws nothing.
    return StraightThrough(noise=False)


_ANNEALED = "Adam in place of SGD, annealed by a cosine, whatever the number of epochs"

POINTS: dict[str, Method] = {
    "ste": Method(
        _latent(lambda s: SignSTE(s["clip"])),
        {"lr": 1e-2, "clip": None},
        "Bengio, Leonard and Courville 2013, arXiv 1308.3432; with Adam as in Meng, Bachmann and Khan "
        "2020, arXiv 2002.10778, section 4",
        "latents are not clipped: with SGD it is the Bayesian learning rule with s = 1",
    ),
    "binaryconnect": Method(
        _latent(lambda s: BinaryConnect()),
        {"lr": 1e-2},
        "Courbariaux, Bengio and David 2015, arXiv 1511.00363",
        f"{_ANNEALED}; cross entropy in place of the squared hinge",
    ),
    "binaryconnect-stochastic": Method(
        _latent(lambda s: BinaryConnect(stochastic=True)),
        {"lr": 0.1},
        "Courbariaux, Bengio and David 2015, arXiv 1511.00363",
        f"{_ANNEALED}; predicts with the signs, where the paper tests on the real latents",
    ),
    "ternaryconnect": Method(
        _latent(lambda s: TernaryConnect(s["stochastic"])),
        {"lr": 1e-2, "stochastic": True},
        "Lin, Courbariaux, Memisevic and Bengio 2016, arXiv 1510.03009",
        f"{_ANNEALED}; three levels; predicts with the rounded latents",
    ),
    "recu": Method(
        _recu,
        {
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "tau": 0.85,
            "last_tau": 0.99,
            "quantile": "laplace",
        },
        "Xu et al. 2021, arXiv 2103.12369",
        "no scale per filter: the layers have one of their own",
    ),
    "slb": Method(
        _slb,
        {
            "lr": 1e-2,
            "levels": (-1.0, 1.0),
            "sharpness": 1.0,
            "last_sharpness": 100.0,
            "hold": (0.2, 0.9),
        },
        "Yang et al. 2020, arXiv 2009.08695",
        f"{_ANNEALED}; the sharpness grows by one factor per epoch, to 100 whatever their number",
    ),
    "bop": Method(
        _bop,
        {"threshold": 1e-6, "gamma": 1e-4, "last_gamma": 1e-5, "fan_in_scaling": True},
        "Helwegen, Widdicombe, Geiger, Liu, Cheng and Nusselder 2019, arXiv 1906.02107",
        "published: threshold 1e-8, the same for each layer, gamma times 0.1 every 100 epochs of 500, with "
        "batch normalisation. Here the threshold is divided by the root of the fan-in, as the layers' "
        "weights are, so that networks without normalisation train; gamma falls once over the training",
    ),
    "bop2": Method(
        _bop2,
        {
            "threshold": 0.3,
            "last_threshold": 0.1,
            "gamma": 1e-2,
            "last_gamma": 1e-2,
            "sigma": 1e-2,
            "last_sigma": 1e-2,
        },
        "Suarez-Ramirez, Gonzalez-Mendoza, Chang, Ochoa-Ruiz and Duran-Vega 2021, arXiv 2104.05124",
        "published: threshold 1e-5 to 1e-8, gamma 1e-2 to 1e-5, sigma 1e-7 to 1e-2, linear, with batch "
        "normalisation. Without it nothing trains at these thresholds, far below the noise of the ratio; "
        "those here are above it, and do as well with normalisation",
    ),
}
