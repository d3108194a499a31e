"""Bayesian inference over binary weights, in Pyro.

Public names are resolved when first used, so that ``import bayesbin`` stays light: modules by their
name (``bayesbin.nn``, ``bayesbin.ensemble``), and ``BinaryPosterior``, ``Ensemble``, ``fit``, ``load``,
``recipe``, ``TraceBinary_ELBO`` and ``to_inference_data``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what the names below are, for type checkers and editors
    from bayesbin import (
        arviz,
        compile,
        continual,
        data,
        diagnostics,
        distributions,
        ensemble,
        estimators,
        guides,
        infer,
        nn,
        optim,
        plots,
        posterior,
        recipes,
        runtime,
        sklearn,
    )
    from bayesbin.arviz import to_inference_data
    from bayesbin.distributions import SignBernoulli
    from bayesbin.ensemble import Ensemble
    from bayesbin.guides import AutoSignBernoulli
    from bayesbin.infer import TraceBinary_ELBO, fit
    from bayesbin.posterior import BinaryPosterior
    from bayesbin.recipes import recipe
    from bayesbin.runtime.predictor import load

_NAMES = {
    "BinaryPosterior": "bayesbin.posterior",
    "Ensemble": "bayesbin.ensemble",
    "SignBernoulli": "bayesbin.distributions",
    "AutoSignBernoulli": "bayesbin.guides",
    "TraceBinary_ELBO": "bayesbin.infer",
    "fit": "bayesbin.infer",
    "load": "bayesbin.runtime.predictor",
    "recipe": "bayesbin.recipes",
    "to_inference_data": "bayesbin.arviz",
}

__all__ = [
    "AutoSignBernoulli",
    "BinaryPosterior",
    "Ensemble",
    "SignBernoulli",
    "TraceBinary_ELBO",
    "__version__",
    "arviz",
    "compile",
    "continual",
    "data",
    "diagnostics",
    "distributions",
    "ensemble",
    "estimators",
    "fit",
    "guides",
    "infer",
    "load",
    "nn",
    "optim",
    "plots",
    "posterior",
    "recipe",
    "recipes",
    "runtime",
    "sklearn",
    "to_inference_data",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in __all__:  # all others are modules
        return importlib.import_module(f"bayesbin.{name}")
    raise AttributeError(f"module 'bayesbin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
