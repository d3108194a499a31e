"""The marks that Pyro's tests use, which this configuration would take for misspellings."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("stage(name)", "init(rng_seed)", "disable_validation"):
        config.addinivalue_line("markers", f"{mark}: of Pyro's own tests")
