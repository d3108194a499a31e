"""Estimators by the names that command lines and configurations use."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import shown, whole_number
from bayesbin.core.registry import Registry
from bayesbin.core.turns import in_turn
from bayesbin.estimators.antithetic import ARM, ARMS, DisARM
from bayesbin.estimators.base import Estimator, Values
from bayesbin.estimators.control_variate import REBAR, RELAX
from bayesbin.estimators.exact import Enumerate, LocalExpectation
from bayesbin.estimators.expected_weight import ExpectedWeight
from bayesbin.estimators.flipout import Flipout, FlipoutWhereShared
from bayesbin.estimators.gumbel_rao import GumbelRao
from bayesbin.estimators.local_reparam import LocalReparameterization
from bayesbin.estimators.pathwise import Concrete, StraightThrough
from bayesbin.estimators.pseudo_reward import PseudoReward
from bayesbin.estimators.score_function import ScoreFunction

NAMED: dict[str, type[Estimator]] = {
    "local-reparameterization": LocalReparameterization,
    "flipout": Flipout,
    "flipout-where-shared": FlipoutWhereShared,
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


def _check(name: str, factory: Any) -> None:
    """Refuse what is no estimator: without ``unbiased``, or with a surrogate that does not reach lambda."""
    if not callable(factory):
        raise ValueError(
            f"expected the estimator {name!r} to be an Estimator class, or a function that makes one; "
            f"got {shown(factory)}."
        )
    try:
        estimator = factory()
    except TypeError as error:
        raise ValueError(
            f"The estimator {name!r} has to be made without arguments, as {name!r} alone says no more; "
            f"{error}."
        ) from error
    if not isinstance(estimator, Estimator):
        raise ValueError(
            f"expected {name!r} to make a bayesbin.estimators.Estimator; got {type(estimator).__name__}."
        )
    if not isinstance(getattr(estimator, "unbiased", None), bool):
        raise ValueError(
            f"The estimator {name!r} has to say whether its gradient is exact in expectation: give "
            f"{type(estimator).__name__} the attribute unbiased = True or False."
        )
    natural = {"w": torch.linspace(-0.4, 0.5, 8).reshape(2, 4).requires_grad_()}
    x = torch.linspace(-1.0, 1.5, 12).reshape(3, 4)

    def objective(values: Values) -> Tensor:
        return torch.stack([nn.functional.linear(x, w).square().mean() for w in values["w"]])

    largest = 0.0
    with in_turn(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for _ in range(5):  # one gradient of a sampling estimator may be 0
            try:
                surrogate = estimator(objective, natural)
            except Exception as error:
                raise ValueError(
                    f"The estimator {name!r} fails on eight weights, with {type(error).__name__}: {error}"
                ) from error
            if not isinstance(surrogate, Tensor) or surrogate.dim() or not surrogate.isfinite():
                raise ValueError(
                    f"expected the surrogate of the estimator {name!r} to be a finite number, a tensor "
                    f"without dimensions; got {shown(surrogate)}."
                )
            gradient = (
                torch.autograd.grad(surrogate, natural["w"], allow_unused=True)[0]
                if surrogate.requires_grad
                else None
            )
            largest = max(largest, 0.0 if gradient is None else float(gradient.abs().max()))
    if not 0.0 < largest < math.inf:
        raise ValueError(
            f"The surrogate of the estimator {name!r} does not reach lambda: its gradient in the natural "
            "parameters is 0, or not finite. Compute it from natural[site], with a live graph."
        )


ESTIMATORS: Registry[Callable[..., Estimator]] = Registry(
    "estimator", NAMED, group="bayesbin.estimators", check=_check
)


def register(name: str, factory: Callable[..., Estimator]) -> None:
    """Give an estimator of your own a name, for recipes, reports and the command line.

    The contract is checked at once, on an objective of eight weights. An installed package does the same
    by an entry point in the group ``bayesbin.estimators``, which is checked when its name is used.

    :param factory: an :class:`Estimator` class, or a function that makes one. It is called without
        arguments, or with those of ``num_samples``, ``num_pairs`` and ``temperature`` that it has.
    :raises ValueError: for a name that is taken; where ``unbiased`` is missing; where the surrogate is no
        number or its gradient does not reach lambda.

    Example::

        >>> from bayesbin import estimators
        >>> estimators.register("two-draws", lambda: estimators.StraightThrough(num_samples=2))
        >>> estimators.named_estimator("two-draws")
        StraightThrough(num_samples=2, noise=True)
    """
    ESTIMATORS.register(name, factory)


def names() -> tuple[str, ...]:
    """The names of all estimators: the package's, those registered, and those of installed plug-ins.

    >>> from bayesbin import estimators
    >>> "disarm" in estimators.names()
    True
    """
    return ESTIMATORS.names()


def estimator_settings(name: str) -> dict[str, Any]:
    """The settings of a named estimator, with their defaults; None for those that it does not have.

    >>> estimator_settings("concrete"), estimator_settings("enumerate")
    ({'num_samples': 1, 'temperature': 0.5}, {'num_samples': None, 'temperature': None})
    """
    own = inspect.signature(ESTIMATORS[name]).parameters
    found: dict[str, Any] = {
        setting: own[setting].default if setting in own else None
        for setting in ("num_samples", "temperature")
    }
    if "num_pairs" in own:
        found["num_samples"] = 2 * own["num_pairs"].default
    return found


def named_estimator(
    name: str, num_samples: int | None = None, temperature: float | None = None
) -> Estimator:
    """Make an estimator from its name, such as "disarm".

    :param num_samples: draws per gradient; pairs of them are half as many. None: the estimator's default.
    :param temperature: of the relaxed ones. None: the estimator's default.
    :raises ValueError: for an unknown name, an odd number of draws where they come in pairs, a setting that
        the estimator does not have, or whatever the estimator itself refuses.

    >>> named_estimator("disarm", num_samples=4)
    DisARM(num_pairs=2)
    """
    factory, has = ESTIMATORS[name], estimator_settings(name)
    options: dict[str, Any] = {}
    if temperature is not None:
        if has["temperature"] is None:
            raise ValueError(
                f"The estimator {name!r} has no temperature; leave it out. Those that have one: "
                f"{', '.join(_with('temperature'))}."
            )
        options["temperature"] = temperature
    if num_samples is not None:
        num_samples = whole_number("num_samples", num_samples, at_least=1)
        if has["num_samples"] is None:
            raise ValueError(
                f"The estimator {name!r} draws nothing and has no number of draws; leave it out."
            )
        if "num_pairs" not in inspect.signature(factory).parameters:
            options["num_samples"] = num_samples
        elif num_samples % 2:
            raise ValueError(f"{name} draws in pairs: an even number; got {num_samples}.")
        else:
            options["num_pairs"] = num_samples // 2
    return factory(**options)


def _with(setting: str) -> list[str]:
    return [name for name in NAMED if estimator_settings(name)[setting] is not None]
