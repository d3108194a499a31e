"""Model files: the answers of the packed predictor, bit for bit, without torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shipped_examples import DRAWS, NETWORKS, SEED, correlated, example, statistics_of

from bayesbin import BinaryPosterior
from bayesbin.core.preprocessing import Preprocessing
from bayesbin.distributions import Support
from bayesbin.nn import BinaryLinear, binary_sites, mlp, to_binary_
from bayesbin.posterior import RealPosterior
from bayesbin.predict import (
    PackedPredictive,
    ShippedPrediction,
    ShippedRegression,
    inspect,
    kernels,
    load,
    pack,
    unpack,
)

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
pytestmark = needs_kernels
QUANTITIES = (
    "log_probs", "probs", "probs_std", "entropy", "expected_entropy", "mutual_information",
)  # fmt: skip


def shape_of(name: str) -> tuple[int, ...]:
    return NETWORKS[name][1]


def assert_same(packed: PackedPredictive, shipped, x) -> None:
    """Bit for bit."""
    expected, found = packed.predict(x), shipped.predict(x.numpy())
    for quantity in QUANTITIES:
        assert np.array_equal(getattr(expected, quantity).numpy(), getattr(found, quantity))
    assert found.num_samples == expected.num_samples
    assert np.array_equal(packed.outputs(x).numpy(), shipped.outputs(x.numpy()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_statistics", [False, True], ids=["running", "per draw"])
@pytest.mark.parametrize("contents", ["draws", "posterior"])
def test_a_round_trip_keeps_every_bit(name, with_statistics, contents, tmp_path):
    net, posterior, x = example(name)
    statistics = statistics_of(net, posterior, x) if with_statistics else None
    path = pack(
        net, posterior, tmp_path / "model.bbn", DRAWS, SEED,
        statistics=statistics, contents=contents, input_shape=shape_of(name),
    )  # fmt: skip
    packed = PackedPredictive(net, posterior, DRAWS, SEED, statistics=statistics, backend="cpu")
    shipped = load(path, threads=2)
    assert_same(packed, shipped, x)
    # Each row's answer is its own, and another seed is another answer: the test can tell.
    rows = [shipped.predict(x.numpy()[i : i + 1]).log_probs for i in range(len(x))]
    assert np.array_equal(np.concatenate(rows), shipped.predict(x.numpy()).log_probs)
    if not with_statistics:
        other = PackedPredictive(net, posterior, DRAWS, SEED + 1, backend="cpu").predict(x)
        assert np.abs(other.probs.numpy() - shipped.predict(x.numpy()).probs).max() > 1e-3


@pytest.mark.parametrize("name", ["relu", "residual"])
def test_fast_sums_and_the_mode(name, tmp_path):
    net, posterior, x = example(name)
    for contents in ("draws", "posterior"):
        path = pack(net, posterior, tmp_path / "f.bbn", DRAWS, precision="fast", contents=contents,
                    input_shape=shape_of(name))  # fmt: skip
        packed = PackedPredictive(net, posterior, DRAWS, precision="fast", backend="cpu")
        assert_same(packed, load(path), x)
        path = pack(net, posterior, tmp_path / "m.bbn", 0, contents=contents,
                    input_shape=shape_of(name))  # fmt: skip
        assert_same(PackedPredictive(net, posterior, 0, backend="cpu"), load(path), x)
        mode = posterior.binary_state_dict()
        assert all(
            np.array_equal(w, mode[site].numpy()) for site, w in unpack(path, "mode").items()
        )


def test_correlated_weights_are_packed_as_draws_and_added_up_in_the_same_order(tmp_path):
    net, posterior, x = example("relu")
    joint = correlated(posterior)
    path = pack(net, joint, tmp_path / "model.bbn", 19, SEED)
    packed = PackedPredictive(net, joint, 19, SEED, backend="cpu")
    assert_same(packed, load(path), x)
    for draw in (0, 18):
        expected = joint.binary_state_dict(draw, seed=SEED)
        found = unpack(path, draw)
        assert all(np.array_equal(found[site], w.numpy()) for site, w in expected.items())
    with pytest.raises(ValueError, match=r'0\.weight.*correlated.*contents="draws"'):
        pack(net, joint, tmp_path / "other.bbn", contents="posterior")
    assert not (tmp_path / "other.bbn").exists()


@pytest.mark.parametrize("noise", [0.5, "noise"])
@pytest.mark.parametrize("draws", [0, 30])
def test_regression(noise, draws, tmp_path):
    net = to_binary_(mlp(5, [40], 1, activation="tanh", normalize=False)).float()
    real = {"noise": RealPosterior(torch.tensor(-1.0), torch.tensor(0.3), Support("positive"))}
    signs = {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    posterior, x = BinaryPosterior(signs, real), torch.randn(6, 5).float()
    path = pack(net, posterior, tmp_path / "model.bbn", draws, 1, noise=noise)
    expected = PackedPredictive(net, posterior, draws, 1, noise=noise, backend="cpu").predict(x)
    found = load(path).predict(x.numpy())
    assert isinstance(found, ShippedRegression)
    for quantity in ("mean", "aleatoric", "epistemic", "std"):
        assert np.array_equal(
            getattr(expected, quantity).double().numpy(), getattr(found, quantity)
        )
    assert "regression" in load(path).describe()


def test_draws_are_those_of_the_posterior(tmp_path):
    net, posterior, _ = example("conv, signs")
    for contents in ("draws", "posterior"):
        path = pack(net, posterior, tmp_path / "model.bbn", DRAWS, SEED, contents=contents,
                    input_shape=(1, 14, 14))  # fmt: skip
        every = unpack(path, "all")
        for draw in range(DRAWS):
            expected = posterior.binary_state_dict(draw, seed=SEED)
            found = unpack(path, draw)
            assert set(found) == set(expected)
            for site, weight in expected.items():
                assert found[site].dtype == np.int8
                assert np.array_equal(found[site], weight.numpy())
                assert np.array_equal(every[site][draw], weight.numpy())
        with pytest.raises(ValueError, match=r"draws 0 \.\. 8; got 9"):
            unpack(path, DRAWS)
    mode = posterior.binary_state_dict()
    assert all(np.array_equal(w, mode[site].numpy()) for site, w in unpack(path, "mode").items())
    path = pack(net, posterior, path, DRAWS, input_shape=(1, 14, 14))
    with pytest.raises(ValueError, match="holds draws and not the mode"):
        unpack(path, "mode")


def test_a_bit_per_weight_and_draw_or_17_per_weight(tmp_path):
    net = to_binary_(mlp(100, [300], 3)).float()
    posterior = BinaryPosterior(
        {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )
    weights = posterior.num_weights
    file = tmp_path / "model.bbn"
    found = inspect(pack(net, posterior, file, 64))
    assert found.bytes == file.stat().st_size
    assert weights * 64 / 8 <= found.bytes < 1.05 * weights * 64 / 8
    assert sum(row.bytes for row in found.layers) == 64 * sum(
        -(-r.weights // 8) for r in found.layers
    )
    found = inspect(pack(net, posterior, file, 64, contents="posterior"))
    assert 17 * weights / 8 <= found.bytes < 1.1 * 17 * weights / 8
    before = file.read_bytes()
    pack(net, posterior, file, 64, contents="posterior")
    assert file.read_bytes() == before


def test_what_a_file_says(tmp_path):
    net, posterior, _ = example("residual")
    path = pack(
        net, posterior, tmp_path / "model.bbn", 4, 7, input_shape=(1, 6, 6), labels=["a", "b", "c"],
        preprocessing=(255.0, 0.1, 0.3), provenance={"data set": "toy"},
    )  # fmt: skip
    found, shipped = inspect(path, profile=3), load(path)
    assert shipped.labels == found.labels == ("a", "b", "c")
    assert shipped.preprocessing == Preprocessing(255.0, 0.1, 0.3)
    assert (found.num_samples, found.seed, found.input) == (4, 7, (1, 6, 6))
    assert found.provenance["data set"] == "toy" and found.provenance["bayesbin"]
    assert "push" in found.steps and "swap" in found.steps and "add" in found.steps
    assert found.layers[0].operations == 2 * 3 * 9 * 36
    assert all((row.microseconds or 0.0) > 0.0 for row in found.layers)
    assert json.loads(json.dumps(found.to_dict()))["digest"] == found.digest
    for word in ("0.weight", "toy", found.digest, "us/draw, 3 inputs", "a, b, c"):
        assert word in str(found)
    assert "4 draws of seed 7" in repr(shipped) and kernels.isa() in repr(shipped)
    with pytest.raises(ValueError, match="at least 1 input"):
        inspect(path, profile=0)


# Inputs


@pytest.fixture
def model(tmp_path) -> tuple[PackedPredictive, Path]:
    net, posterior, _ = example("whole bytes")
    preprocessing = Preprocessing(255.0, 0.1306604762738429, 0.30810781717887855)
    path = pack(net, posterior, tmp_path / "model.bbn", 3, preprocessing=preprocessing)
    return PackedPredictive(net, posterior, 3, backend="cpu"), path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "bool"])
def test_numbers_that_are_not_whole_go_in_as_they_are(model, dtype):
    packed, path = model
    x = np.random.default_rng(0).standard_normal((5, 24)).astype(dtype)
    tensor = torch.from_numpy(x.astype("float64" if dtype == ">f4" else dtype))
    expected = packed.predict(tensor).probs.numpy()
    shipped = load(path)
    assert np.array_equal(shipped.predict(x).probs, expected)
    assert np.array_equal(shipped.predict(np.asfortranarray(x)).probs, expected)
    assert np.array_equal(shipped.predict(np.repeat(x, 2, 0)[::2]).probs, expected)
    assert np.array_equal(shipped.predict(x.tolist()).probs, expected)
    assert np.array_equal(shipped.predict(tensor).probs, expected)  # numpy makes an array of it


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16"])
def test_whole_numbers_are_raw_and_are_preprocessed_as_for_training(model, dtype):
    packed, path = model
    shipped = load(path)
    raw = np.random.default_rng(0).integers(0, 256, (5, 24)).astype(dtype)
    divisor, mean, std = (torch.tensor(n, dtype=torch.float32) for n in shipped.preprocessing)
    inputs = (torch.from_numpy(raw.astype("int64")).to(torch.float32).div_(divisor) - mean).div_(
        std
    )
    expected = packed.predict(inputs).probs.numpy()
    assert np.array_equal(shipped.predict(raw).probs, expected)
    assert np.array_equal(shipped.predict(raw.astype(float), preprocess=True).probs, expected)
    assert np.array_equal(shipped.outputs(raw), packed.outputs(inputs).numpy())
    as_is = packed.predict(torch.from_numpy(raw.astype("float32"))).probs.numpy()
    assert np.array_equal(shipped.predict(raw, preprocess=False).probs, as_is)
    assert not np.array_equal(as_is, expected)


def test_the_preprocessing_of_a_data_set_makes_its_inputs_from_the_pixels():
    from sklearn.datasets import load_digits

    from bayesbin.data import digits

    splits = digits()
    assert splits.preprocessing is not None
    divisor, mean, std = map(np.float32, splits.preprocessing)
    pixels = load_digits().data.astype(np.float32)
    made = {row.tobytes() for row in (pixels / divisor - mean) / std}
    assert all(row.tobytes() in made for row in splits.train.x.numpy())
    assert splits.hold_out(0.1)[0].preprocessing == splits.preprocessing


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 4), (48,)], ids=str)
def test_each_channel_may_have_constants_of_its_own(shape, tmp_path):
    channels = 3 if shape == (48,) else shape[0]
    layers = [torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 3)]
    net = to_binary_(torch.nn.Sequential(*layers))
    posterior = BinaryPosterior({"1.weight": torch.randn(3, math.prod(shape))})
    means, stds = (0.49, 0.48, 0.45)[:channels], (0.25, 0.24, 0.26)[:channels]
    preprocessing = Preprocessing(255.0, means, stds)
    path = pack(
        net, posterior, tmp_path / "model.bbn", 3, input_shape=shape, preprocessing=preprocessing
    )
    shipped = load(path)
    assert shipped.preprocessing == preprocessing
    assert f"({means[0]:g}" in str(inspect(path))
    raw = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    images = raw.reshape(5, channels, -1).astype(np.float32) / np.float32(255.0)
    mean, std = (np.float32(constants)[:, None] for constants in (means, stds))
    inputs = torch.from_numpy(((images - mean) / std).reshape(raw.shape))
    packed = PackedPredictive(net, posterior, 3, backend="cpu")
    assert np.array_equal(shipped.outputs(raw), packed.outputs(inputs).numpy())
    for wrong in (means * 2, ()) if shape != (48,) else (means[:1] * 5, ()):
        with pytest.raises(ValueError, match=r"a number per channel of inputs .* as the mean"):
            pack(
                net, posterior, tmp_path / "model.bbn", 3, input_shape=shape,
                preprocessing=Preprocessing(255.0, wrong, stds),
            )  # fmt: skip


def test_inputs_that_do_not_fit_are_refused_in_a_sentence(model, tmp_path):
    _, path = model
    shipped, x = load(path), np.zeros((2, 24))
    for wrong in (x[:, :20], x[0], x[:, :, None], np.zeros(())):
        with pytest.raises(ValueError, match=r"shape \(B, 24\); got"):
            shipped.predict(wrong)
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="NaN, infinity or numbers beyond float32"):
            shipped.predict(np.where(np.arange(24) == 3, bad, x))
    for wrong in (x.astype(str), x.astype(complex), x.astype(object), [["a"] * 24]):
        with pytest.raises(ValueError, match="Inputs are numbers"):
            shipped.predict(wrong)
    with pytest.raises(ValueError, match="threads to be a whole number of at least 1"):
        load(path, threads=0)
    none = shipped.predict(x[:0])
    assert isinstance(none, ShippedPrediction) and none.probs.shape == (0, 3)
    assert none.entropy.shape == (0,)
    plain = pack(BinaryLinear(2, 2), BinaryPosterior({"weight": torch.zeros(2, 2)}), tmp_path / "p")
    with pytest.raises(ValueError, match="has no preprocessing"):
        load(plain).predict(np.ones((1, 2), int), preprocess=True)
    assert load(plain).predict(np.ones((1, 2), int)).probs.shape == (1, 2)


# What is refused to be packed


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    net, posterior, x = example("relu")
    statistics = statistics_of(net, posterior, x)
    convolution, images, _ = example("convolutional")
    out = tmp_path / "model.bbn"
    refused = [
        (dict(contents="all"), "contents to be one of draws, posterior"),
        (dict(precision="half"), "precision to be one of exact, fast"),
        (dict(num_samples=-1), "num_samples to be a whole number of at least 0"),
        (dict(noise="noise"), "no real-valued site 'noise'"),
        (dict(noise=1.0), "outputs"),
        (dict(labels=["a"]), "a label for each of 3 classes, got 1"),
        (dict(labels=[1, 2, 3]), "labels that are text"),
        (dict(input_shape=(36,)), "36 channels"),
        (dict(input_shape=(37, 2, 2)), "flattened"),
        (dict(preprocessing=(0.0, 0.0, 1.0)), "divisor"),
        (dict(preprocessing=(1.0, float("nan"), 1.0)), "mean"),
        (dict(provenance={"net": net}), "JSON"),
        (dict(num_samples=DRAWS + 1, seed=SEED, statistics=statistics), r"draws 0\.\.8 of seed 3"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            pack(net, posterior, out, **arguments)
    with pytest.raises(ValueError, match=r"input_shape=\(channels, height, width\)"):
        pack(convolution, images, out)
    with pytest.raises(ValueError, match="has no site"):
        pack(net, BinaryPosterior({"0.weight": posterior["0.weight"]}), out)
    with pytest.raises(ValueError, match=r"use bayesbin\.predict\.predict"):
        pack(
            to_binary_(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())), posterior, out
        )
    net[1].running_var.fill_(1e-80)
    net[1].eps = 0.0
    with pytest.raises(ValueError, match="finite"):
        pack(net.double(), posterior, out)
    assert list(tmp_path.iterdir()) == []


def test_without_kernels_a_file_can_be_looked_into_but_not_predicted_with(tmp_path, monkeypatch):
    net, posterior, _ = example("relu")
    monkeypatch.setattr(kernels, "_module", None)
    monkeypatch.setattr(kernels, "_why_not", "There was no compiler.")
    path = pack(net, posterior, tmp_path / "model.bbn", 2)
    assert inspect(path).num_samples == 2 and unpack(path, 1)
    with pytest.raises(RuntimeError, match="There was no compiler"):
        load(path)
    with pytest.raises(RuntimeError, match="There was no compiler"):
        inspect(path, profile=1)
    path = pack(net, posterior, path, 2, contents="posterior")
    assert unpack(path, "mode")
    with pytest.raises(RuntimeError, match="There was no compiler"):
        unpack(path, 1)


# Without torch

REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "pyro", "safetensors", "sklearn", "arviz", "matplotlib"}:
            raise AssertionError(f"imported {name}")

sys.meta_path.insert(0, Refuse())
"""


def test_neither_torch_nor_pyro_is_imported(tmp_path):
    net, posterior, x = example("residual")
    path = pack(net, posterior, tmp_path / "model.bbn", DRAWS, SEED, input_shape=(1, 6, 6))
    np.save(tmp_path / "x.npy", x.numpy())
    program = REFUSING + (
        "import json, numpy as np\n"
        "import bayesbin\n"
        "from bayesbin.experiments.cli import main\n"
        f"path, x = {str(path)!r}, {str(tmp_path / 'x.npy')!r}\n"
        "found = bayesbin.predict.load(path).predict(np.load(x))\n"
        "print(json.dumps(found.probs.tolist()))\n"
        "bayesbin.predict.unpack(path, 1), bayesbin.predict.inspect(path, profile=2)\n"
        "assert main(['predict', path, x, '--json']) == 0\n"
        "assert main(['inspect', path]) == 0\n"
        "assert main(['unpack', path, '--out', path + '.npz']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    expected = PackedPredictive(net, posterior, DRAWS, SEED, backend="cpu").predict(x)
    assert np.array_equal(json.loads(first), expected.probs.numpy())
    best = [row["probability"] for row in json.loads(second)["rows"]]
    assert best == expected.probs.max(1).values.tolist()


def test_the_refusal_of_torch_refuses():
    done = subprocess.run(
        [sys.executable, "-c", REFUSING + "import bayesbin.nn"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "imported torch" in done.stderr
