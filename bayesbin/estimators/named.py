"""Estimators by the names that command lines and configurations use."""

from __future__ import annotations

from typing import Any

from bayesbin.estimators.antithetic import ARM, ARMS, DisARM
from bayesbin.estimators.base import Estimator, checked_count
from bayesbin.estimators.control_variate import REBAR, RELAX
from bayesbin.estimators.exact import Enumerate, LocalExpectation
from bayesbin.estimators.expected_weight import ExpectedWeight
from bayesbin.estimators.gumbel_rao import GumbelRao
from bayesbin.estimators.local_reparam import LocalReparameterization
from bayesbin.estimators.pathwise import Concrete, StraightThrough
from bayesbin.estimators.pseudo_reward import PseudoReward
from bayesbin.estimators.score_function import ScoreFunction

NAMED: dict[str, type[Estimator]] = {
    "local-reparameterization": LocalReparameterization,
    "straight-through": StraightThrough,
    "concrete": Concrete,
    "gumbel-rao": GumbelRao,
    "pseudo-reward": PseudoReward,
    "disarm": DisARM,
    "arms": ARMS,
    "score-function": ScoreFunction,
    "rebar": REBAR,
    "relax": RELAX,
    "arm": ARM,
    "local-expectation": LocalExpectation,
    "expected-weight": ExpectedWeight,
    "enumerate": Enumerate,
}
_PAIRED = (ARM, DisARM)
WITHOUT_DRAWS = (Enumerate, ExpectedWeight)
_RELAXED = (Concrete, GumbelRao, REBAR, RELAX)


def named_estimator(
    name: str, num_samples: int | None = None, temperature: float | None = None
) -> Estimator:
    """An estimator by its name in lower case with hyphens, such as "disarm".

    :param num_samples: draws per gradient; pairs of them are half as many. None: the estimator's default.
    :param temperature: of the relaxed ones. None: the estimator's default.
    :raises ValueError: for an unknown name, an odd number of draws where they come in pairs, draws for one
        that has none, "enumerate" or "expected-weight", or whatever the estimator itself refuses.

    >>> named_estimator("disarm", num_samples=4)
    DisARM(num_pairs=2)
    """
    if name not in NAMED:
        raise ValueError(f"expected an estimator among {', '.join(NAMED)}; got {name!r}.")
    kind = NAMED[name]
    options: dict[str, Any] = {}
    if num_samples is not None:
        checked_count("num_samples", num_samples)
        if kind in WITHOUT_DRAWS:
            raise ValueError(f"{name} draws nothing and has no number of draws; leave it out.")
        if kind in _PAIRED:
            if num_samples % 2:
                raise ValueError(f"{name} draws in pairs: an even number; got {num_samples}.")
            options["num_pairs"] = num_samples // 2
        else:
            options["num_samples"] = num_samples
    if temperature is not None and kind in _RELAXED:
        options["temperature"] = temperature
    return kind(**options)
