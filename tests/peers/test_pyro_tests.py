"""Pyro's own tests, applied to the distributions and guides of this package.

They are not part of this repository. With Pyro's sources at hand (a work tree of the installed version),

    BAYESBIN_PYRO_TESTS=/path/to/pyro/tests pytest tests/peers

imports their test functions and calls them with our classes in place of Pyro's. Where a test takes a model,
each first latent site of the model has a sign beside it, in the same plates.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from bayesbin.distributions import (
    LowBitCategorical,
    RelaxedLowBit,
    RelaxedSignBernoulli,
    SignBernoulli,
    SignBernoulliStraightThrough,
)
from bayesbin.guides import AutoSignBernoulli

WHERE = os.environ.get("BAYESBIN_PYRO_TESTS", "")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are written for another configuration


def theirs(name: str) -> types.ModuleType | None:
    """A module of Pyro's tests, or None where they are not at hand."""
    if not WHERE:
        return None
    if not (Path(WHERE) / "common.py").is_file():
        raise FileNotFoundError(f"BAYESBIN_PYRO_TESTS={WHERE} holds no common.py of Pyro's tests.")
    sys.path.append(
        str(Path(WHERE).resolve().parent)
    )  # last: the installed Pyro is the one under test
    try:
        return importlib.import_module(f"tests.{name}")
    finally:
        sys.path.pop()


def rows(names: list[str], given: Any) -> Iterator[Any]:
    """The values of each row of a parametrization, as a sequence."""
    for row in given:
        if hasattr(row, "marks"):  # pytest.param
            yield row.values
        else:
            yield row if len(names) > 1 else [row]


def calls(test: Callable[..., Any], ours: str, instead: list[Any]) -> Iterator[dict[str, Any]]:
    """The arguments of each call of a test by its own parametrization, with our classes for ``ours``."""
    axes = [[{ours: value} for value in instead]]
    for mark in getattr(test, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names = mark.args[0]
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        if ours not in names:
            axes.append([dict(zip(names, row, strict=True)) for row in rows(names, mark.args[1])])
    for combination in itertools.product(*axes):
        yield {name: value for part in combination for name, value in part.items()}


# Distributions


def fixtures(module: Any) -> dict[str, Any]:
    """Our distributions as their table describes a distribution."""
    fixture = module.Fixture
    natural, signs = [[0.3, -1.2], [0.0, 2.0]], [[1.0, -1.0], [-1.0, 1.0]]
    logits, relaxed = [[0.2, -0.5, 1.0], [0.0, 0.3, -2.0]], [[0.5, -0.3], [-0.9, 0.2]]
    both, two = [[[-1.0, -1.0], [-1.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]], [[-1.0], [1.0]]

    def of_signs(kind: Any) -> Any:
        examples = [
            {"natural": [0.3], "test_data": [1.0]},
            {"natural": natural, "test_data": signs},
        ]
        has = kind.has_enumerate_support
        return fixture(
            pyro_dist=kind,
            examples=examples,
            is_discrete=True,
            expected_support=both if has else None,
            expected_support_non_vec=two if has else None,
        )

    levels = {"levels": (-1.0, 0.0, 1.0), "logits": logits, "test_data": [1.0, 0.0]}
    # With two levels, whose density is known.
    two_levels = {"levels": (-1.0, 2.0), "logits": natural, "test_data": [0.4, -0.7]}

    return {
        "SignBernoulli": of_signs(SignBernoulli),
        "SignBernoulliStraightThrough": of_signs(SignBernoulliStraightThrough),
        "RelaxedSignBernoulli": fixture(
            pyro_dist=RelaxedSignBernoulli,
            examples=[
                {"temperature": 0.7, "natural": [0.3], "test_data": [0.4]},
                {"temperature": 0.7, "natural": natural, "test_data": relaxed},
            ],
        ),
        "LowBitCategorical": fixture(
            pyro_dist=LowBitCategorical, examples=[levels], is_discrete=True
        ),
        "RelaxedLowBit": fixture(
            pyro_dist=RelaxedLowBit, examples=[{"temperature": 0.7, **two_levels}]
        ),
    }


# Of all distributions, or of one: (test, class) -> why it does not apply.
NOT_OF_DISTRIBUTIONS = {
    ("test_infer_shapes", "LowBitCategorical"): "levels are numbers, and no tensor of a shape",
    ("test_infer_shapes", "RelaxedLowBit"): "levels are numbers, and no tensor of a shape",
    (
        "test_gof",
        "RelaxedSignBernoulli",
    ): "poles at both ends; tests/contracts compares on the real line",
}


def distribution_cases() -> list[Any]:
    tests = theirs("distributions.test_distributions")
    if tests is None:
        return []
    table = fixtures(importlib.import_module("tests.distributions.dist_fixture"))
    cases = []
    for name, test in vars(tests).items():
        if not name.startswith("test_"):
            continue
        arguments = test.__code__.co_varnames[: test.__code__.co_argcount]
        for fixture in ("dist", "continuous_dist", "discrete_dist"):
            if fixture not in arguments:
                continue
            for ours, entry in table.items():
                if fixture == "continuous_dist" and entry.is_discrete:
                    continue
                if fixture == "discrete_dist" and not entry.is_discrete:
                    continue
                for i, arguments_ in enumerate(calls(test, fixture, [entry])):
                    cases.append(pytest.param(test, ours, arguments_, id=f"{name}-{ours}-{i}"))
    return cases


@pytest.mark.skipif(not WHERE, reason="BAYESBIN_PYRO_TESTS does not say where Pyro's tests are")
@pytest.mark.parametrize("test, ours, arguments", distribution_cases())
def test_distributions(test, ours, arguments):
    if reason := NOT_OF_DISTRIBUTIONS.get((test.__name__, ours)):
        pytest.skip(reason)
    test(**arguments)


# Guides


class PyroWithSigns:
    """``pyro`` as their models see it: the first latent site of a test has a sign beside it."""

    def __init__(self) -> None:
        self.first: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(pyro, name)

    def sample(self, name: str, fn: Any, *args: Any, **kwargs: Any) -> Any:
        value = pyro.sample(name, fn, *args, **kwargs)
        if kwargs.get("obs") is None and not args and self.first in (None, name):
            self.first = name
            pyro.sample(f"{name}_sign", SignBernoulli(natural=torch.tensor(0.2)))
        return value


EAGER = "builds the guide without the model's arguments; ours run the model when they are built"
START = "gives the start as init_loc_fn, for models with a simplex or a Cholesky factor"
NOT_OF_GUIDES = {
    "test_factor": EAGER,
    "test_predictive": EAGER,
    "test_subsample_model": EAGER,
    "test_linear_regression_smoke": EAGER,
    "test_shapes": START,
    "test_subsample_guide": "builds the guide without the model's arguments, and from init_loc_fn",
    "test_init_loc_fn": "gives the start as init_loc_fn, with a multivariate normal prior",
    "test_replay_plates": "has latents on a simplex, whose site a guide of its own must take",
    "test_quantiles": "AutoSignBernoulli has no quantiles",
    "test_scores": "looks for the guide's site of all latents at once; ours has one for each site",
    "test_iplate_smoke": "sequential plates, which Pyro's guides do not follow either",
    "test_discrete_parallel": EAGER,
    "test_callable": "exposes sites without signs, which AutoSignBernoulli refuses",
    "test_callable_return_dict": "exposes sites without signs, which AutoSignBernoulli refuses",
    "test_guide_list": "exposes sites without signs, which AutoSignBernoulli refuses",
    "test_empty_model_error": "is about AutoDiagonalNormal alone",
    "test_unpack_latent": "is about AutoDiagonalNormal alone",
    "test_init_scale": "reads the scale of AutoNormal's parameters",
    "test_nested_autoguide": "is about AutoGuideList alone",
    "test_subsample_model_amortized": "reads the parameters of AutoNormal",
    "test_discrete_helpful_error": "a sign is discrete and supported",
    "test_sphere_helpful_error": "the error names Pyro's reparametrizers",
    "test_sphere_reparam_ok": "reparametrizes a site that the added sign stands beside",
    "test_sphere_raw_ok": "is about AutoDelta alone",
    "test_exact": "compares with an exact Gaussian posterior by name of Pyro's guides",
    "test_exact_batch": "compares with an exact Gaussian posterior by name of Pyro's guides",
    "test_exact_tree": "compares with an exact Gaussian posterior by name of Pyro's guides",
    "test_autonormal_dynamic_model": "is about AutoNormal alone",
}


def guide_cases() -> list[Any]:
    tests = theirs("infer.test_autoguide")
    if tests is None:
        return []
    cases = []
    for name, test in vars(tests).items():
        if name.startswith("test_") and name not in NOT_OF_GUIDES:
            for i, arguments in enumerate(calls(test, "auto_class", [AutoSignBernoulli])):
                cases.append(pytest.param(test, arguments, id=f"{name}-{i}"))
    return cases


@pytest.mark.skipif(not WHERE, reason="BAYESBIN_PYRO_TESTS does not say where Pyro's tests are")
@pytest.mark.parametrize("test, arguments", guide_cases())
def test_guides(test, arguments, monkeypatch):
    monkeypatch.setitem(test.__globals__, "pyro", PyroWithSigns())
    test(**arguments)


@pytest.mark.skipif(not WHERE, reason="BAYESBIN_PYRO_TESTS does not say where Pyro's tests are")
def test_what_does_not_apply_still_exists():
    for module, names in (
        ("infer.test_autoguide", NOT_OF_GUIDES),
        ("distributions.test_distributions", [name for name, _ in NOT_OF_DISTRIBUTIONS]),
    ):
        assert not set(names) - set(vars(theirs(module)))
