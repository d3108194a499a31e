"""What tests ask of ArviZ, whose names changed from 0.23 to 1.0, by one name each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import arviz as az
import numpy as np
import pytest

MAJOR = int(az.__version__.partition(".")[0])

needs_no_equal_weights = pytest.mark.skipif(
    MAJOR >= 1, reason="ArviZ 1 refuses weights whose largest are equal, as those of few states are"
)


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log weights and k-hat."""
    if MAJOR < 1:
        return az.psislw(log_weights)
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_weights)  # it takes log-likelihoods


def loo(posterior: dict[str, Any], log_likelihood: dict[str, Any]) -> SimpleNamespace:
    """PSIS-LOO of independent draws: ``elpd``, ``se``, ``p`` and ``good_k``."""
    if MAJOR < 1:
        data = az.from_dict(posterior=posterior, log_likelihood=log_likelihood)
    else:
        data = az.from_dict({"posterior": posterior, "log_likelihood": log_likelihood})
    return loo_of(data, reff=1.0)


def loo_of(data: Any, **options: Any) -> SimpleNamespace:
    """The same of what :func:`bayesbin.to_inference_data` gives."""
    found = az.loo(data, **options)
    names = ("elpd_loo", "p_loo") if MAJOR < 1 else ("elpd", "p")
    elpd, p = (getattr(found, name) for name in names)
    return SimpleNamespace(elpd=elpd, se=found.se, p=p, good_k=found.good_k)


def groups_of(data: Any) -> list[str]:
    """The names of the groups of an InferenceData or a DataTree."""
    return list(data.children) if MAJOR >= 1 else list(data.groups())


def dataset_of(data: Any, group: str) -> Any:
    """One group as a data set."""
    return data[group].to_dataset() if MAJOR >= 1 else data[group]


def plot_all(data: Any, variable: str) -> None:
    """Draw the three pictures that need the groups that we fill."""
    az.plot_trace(data)
    if MAJOR < 1:
        az.plot_ppc(data)
        az.plot_loo_pit(data, variable)
    else:
        az.plot_ppc_dist(data)
        az.plot_loo_pit(data, var_names=variable)
