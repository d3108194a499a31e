"""One draw as an ONNX graph: what onnxruntime makes of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from shipped_examples import DRAWS, NETWORKS, SEED, example, statistics_of

from bayesbin import BinaryPosterior
from bayesbin.nn import mlp, to_binary_
from bayesbin.predict import export_onnx, kernels, load, pack

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))


def run(path, x: np.ndarray) -> dict[str, np.ndarray]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": x.astype(np.float32)}), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("contents", ["draws", "posterior"])
def test_a_draw_is_the_same_network(name, contents, tmp_path):
    net, posterior, x = example(name)
    statistics = statistics_of(net, posterior, x)
    path = pack(net, posterior, tmp_path / "model.bbn", DRAWS, SEED, statistics=statistics,
                contents=contents, input_shape=NETWORKS[name][1])  # fmt: skip
    expected = load(path).outputs(x.numpy())
    for draw in (0, DRAWS - 1):
        found = run(export_onnx(path, tmp_path / "model.onnx", draw), x.numpy())
        np.testing.assert_allclose(found["outputs"], expected[draw], rtol=1e-5, atol=1e-5)
        softmax = torch.from_numpy(expected[draw]).double().softmax(-1).numpy()
        np.testing.assert_allclose(found["probs"], softmax, atol=1e-5)
    assert np.abs(expected[0] - expected[-1]).max() > 0.01  # other draws are other networks
    weights = {w.name: w for w in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert weights["0.weight"].data_type == onnx.TensorProto.INT8


def test_the_mode(tmp_path):
    net, posterior, x = example("relu")
    expected = posterior.mode_network(net)(x).detach().numpy()
    for draws, contents in ((0, "draws"), (0, "posterior"), (3, "posterior")):
        path = pack(net, posterior, tmp_path / "model.bbn", draws, contents=contents)
        found = run(export_onnx(path, tmp_path / "model.onnx", "mode"), x.numpy())
        np.testing.assert_allclose(found["outputs"], expected, rtol=1e-5, atol=1e-5)
    statistics = statistics_of(net, posterior, x)
    path = pack(net, posterior, path, DRAWS, SEED, statistics=statistics, contents="posterior")
    with pytest.raises(ValueError, match="normalisation of its draws and not of the mode"):
        export_onnx(path, tmp_path / "other.onnx", "mode")
    with pytest.raises(ValueError, match=r"draws 0 \.\. 8; got 9"):
        export_onnx(path, tmp_path / "other.onnx", DRAWS)
    assert not (tmp_path / "other.onnx").exists()


def test_the_sign_of_0_is_plus_1(tmp_path):
    net = to_binary_(mlp(2, [2], 1, activation="sign", normalize=False, output_scale=False)).float()
    for module in (net[0], net[2]):
        torch.nn.init.zeros_(module.bias)
    posterior = BinaryPosterior(
        {"0.weight": torch.full((2, 2), 9.0), "2.weight": torch.full((1, 2), 9.0)}
    )
    path = pack(net, posterior, tmp_path / "model.bbn", 1, noise=0.1)
    x = np.array([[0.0, 0.0], [1.0, -1.0], [-0.0, -0.0], [-1.0, 0.0]])
    found = run(export_onnx(path, tmp_path / "model.onnx"), x)
    assert list(found) == ["outputs"]  # a regressor has no probabilities
    np.testing.assert_allclose(found["outputs"], load(path).outputs(x)[0], atol=1e-6)
    assert (found["outputs"][:3] > 0).all() and found["outputs"][3] < 0


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    net, posterior, _ = example("tanh")
    path = pack(net, posterior, tmp_path / "model.bbn", 1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'bayesbin\[onnx\]'"):
        export_onnx(path, tmp_path / "model.onnx")
