"""The networks of examples/networks: each has an answer in torch, and becomes a graph where it should.

Every fourth network is tested each time, all of them by ``make test-slow``.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from scripts import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "networks"))

from prepared import Prepared, catalogue, prepare
from reference import compare, default_dtype, reference

NETWORKS = catalogue()
RUNNING = [name for name, network in NETWORKS.items() if network.expected == "runs"]
QUICK = 4


def some(names: list[str]) -> list[object]:
    """Parameters of a test: a few of the networks quick, the others slow."""
    return [
        name if i % QUICK == 0 else pytest.param(name, marks=pytest.mark.slow)
        for i, name in enumerate(names)
    ]


def exported(prepared: Prepared) -> torch.export.ExportedProgram:
    """The graph of a network, in which the first axis of every input has any size."""
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in prepared.inputs)
    return torch.export.export(prepared.net, prepared.inputs, dynamic_shapes=shapes)


def test_the_catalogue_is_large_and_says_what_it_holds():
    assert len(RUNNING) >= 124
    assert all(network.line and network.group for network in NETWORKS.values())
    assert len({network.line for network in NETWORKS.values()}) == len(NETWORKS)
    expected = Counter(network.expected for network in NETWORKS.values())
    assert set(expected) == {"runs", "refused"}
    kinds = {network.posterior for network in NETWORKS.values()}
    assert kinds == {"binary", "point", "effects", "low-bit"}


@pytest.mark.parametrize("name", some(RUNNING))
def test_a_network_becomes_a_graph_of_any_batch(name):
    prepared = prepare(NETWORKS[name])
    with default_dtype(torch.float32), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = exported(prepared)
        few = tuple(x[1:3] for x in prepared.inputs)
        found, right = program.module()(*few), prepared.net(*few)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", some(RUNNING))
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
