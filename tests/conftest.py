"""Every test runs in float64, from one fixed seed, with an empty Pyro parameter store."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Generator, Iterator

# Both are read by libraries when they are imported, which any of the imports below may do, and by the
# processes that tests start. Tensors here are tiny: a second thread costs more than it brings.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyro
import pytest
import torch

SEED = int(os.environ.get("BAYESBIN_TEST_SEED", "20"))


# A shell gives what it starts with & a deaf ear for Ctrl-C, and what that starts inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, as ``pyro.set_rng_seed`` does.

    ``torch.manual_seed`` formats the stack for each kind of accelerator that this process does not use:
    milliseconds in every test.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the generator that code under test may draw from
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@pytest.fixture(autouse=True)
def float64_by_default() -> Iterator[None]:
    """Tests compare with formulas, so rounding should not be what they measure."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def fresh_pyro() -> Iterator[None]:
    """A fixed seed, validation on, and no parameter left over from, or for, another test."""
    pyro.clear_param_store()
    seed_all(SEED)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def registered_names_end_with_the_test() -> Iterator[None]:
    """What a test, a docstring or a page registers is not there for the next one."""
    yield
    rooms = {"estimators": "ESTIMATORS", "guides": "GUIDES", "recipes": "METHODS"}
    for room, name in rooms.items():
        module = sys.modules.get(
            f"bayesbin.{room}" if room == "recipes" else f"bayesbin.{room}.named"
        )
        if (registry := getattr(module, name, None)) is not None:
            for registered in registry.registered:
                registry.unregister(registered)


def pytest_report_header() -> str:
    return f"bayesbin: BAYESBIN_TEST_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure says with which seed it can be repeated."""
    report = yield
    if report.failed:
        report.sections.append(("seed", f"repeat with BAYESBIN_TEST_SEED={SEED}"))
    return report
