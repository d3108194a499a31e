"""The networks of examples/networks: each has one answer in torch and in every backend, or is refused.

Some networks are tested each time, all of them by ``make test-slow``.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from scripts import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "networks"))

from backends import BACKENDS, SAME_BITS
from page import page
from prepared import catalogue, prepare
from reference import compare, default_dtype, reference
from table import digest, row

from bayesbin.compile import NotCompiled
from bayesbin.runtime import native_backend

NETWORKS = catalogue()
RUNNING = [name for name, network in NETWORKS.items() if network.expected == "runs"]
QUICK = 5
ROOT = EXAMPLES.parent


def some(names: list[str], every: int = QUICK) -> list[object]:
    """Parameters of a test: a few of the networks quick, the others slow."""
    return [
        name if i % every == 0 else pytest.param(name, marks=pytest.mark.slow)
        for i, name in enumerate(names)
    ]


def test_the_catalogue_is_large_and_says_what_it_holds():
    assert len(RUNNING) >= 124
    assert all(network.line and network.group for network in NETWORKS.values())
    assert len({network.line for network in NETWORKS.values()}) == len(NETWORKS)
    expected = Counter(network.expected for network in NETWORKS.values())
    assert set(expected) == {"runs", "refused"}
    kinds = {network.posterior for network in NETWORKS.values()}
    assert kinds == {"binary", "point", "effects", "low-bit"}


@pytest.mark.parametrize("name", some(RUNNING, 16))
def test_the_reference_is_sure_of_its_answer(name):
    found = reference(prepare(NETWORKS[name]))
    for output in found.outputs:
        assert output.shape[:2] == (3, 5)
        assert output.dtype.kind in "bi" or output.dtype == np.float64
        assert np.isfinite(output).all()
    assert found.decisions.nearest > 1e-9
    # The draws differ, but for point estimates: otherwise nothing would be tested of them.
    spread = max(float(np.ptp(each.astype(float), axis=0).max()) for each in found.outputs)
    assert (spread == 0) == (NETWORKS[name].posterior == "point")


EXPORTS = ("torch", ".bbn", "ONNX", "C")
NUMPY_ALONE = native_backend.why_not() or ""


def quietly(name: str, backend: str) -> dict[str, object]:
    """The row of one network and backend."""
    prepared = prepare(NETWORKS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = NETWORKS[name].expected == "runs"
        return row(prepared, backend, reference(prepared) if runs else None)


@pytest.mark.parametrize("name", some(RUNNING))
def test_a_program_agrees_with_the_network(name):
    found = quietly(name, "numpy")
    assert found["status"] == "agrees", found
    assert found["same_bits_alone"]
    if not NUMPY_ALONE:
        native = quietly(name, "native")
        assert native["bits"] == found["bits"] and native["same_bits_alone"]


@pytest.mark.parametrize("backend", EXPORTS)
@pytest.mark.parametrize("name", some(RUNNING, 16))
def test_what_is_made_of_a_program_agrees_with_the_network(name, backend):
    if backend == "ONNX":
        pytest.importorskip("onnxruntime")
    if backend == "C" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    found = quietly(name, backend)
    assert found["status"] == "agrees", found


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in RUNNING])
def test_what_cannot_become_a_program_is_refused_by_name(name):
    prepared = prepare(NETWORKS[name])
    with default_dtype(torch.float32), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NotCompiled, match=r"expected|there is no step") as refused:
            BACKENDS["numpy"](prepared.net, prepared.posterior, prepared.inputs, 3)
    assert refused.value.operator or refused.value.line


def test_the_page_shows_the_table_as_it_is():
    rows = json.loads((ROOT / "docs" / "benchmarks" / "networks.json").read_text())
    assert (ROOT / "docs" / "reference" / "networks.md").read_text() == page(NETWORKS, rows) + "\n"
    assert {(each["network"], each["backend"]) for each in rows} == {
        (name, backend) for name in NETWORKS for backend in BACKENDS
    }
    bits = {(each["network"], each["backend"]): each.get("bits") for each in rows}
    for name in RUNNING:
        assert all(bits[name, backend] == bits[name, "numpy"] for backend in SAME_BITS)


def test_a_digest_sees_every_bit_but_the_sign_of_zero():
    x = np.array([[0.0, 1.0]])
    assert digest([x]) == digest([x * np.array([-1.0, 1.0])])
    assert digest([x]) != digest([np.nextafter(x, 2.0)])


def test_a_comparison_finds_a_wrong_answer_and_another_label():
    right = [np.array([[[1.0, 2.0], [3.0, -4.0]]]), np.array([[1, 2]])]
    assert compare(right, right).deviation == 0 and compare(right, right).labels
    slightly = [right[0] + np.array([4e-6, 0.0]), right[1]]
    assert compare(slightly, right).deviation == pytest.approx(1e-6)
    assert not compare([right[0][..., ::-1], right[1]], right).labels
    assert not compare([right[0], right[1] + 1], right).labels
    assert compare([right[0] * np.nan, right[1]], right).deviation == np.inf
    with pytest.raises(ValueError, match="outputs of shapes"):
        compare(right[:1], right)
