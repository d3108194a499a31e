"""Predictions in blocks: the bytes of one call, whatever the blocks, processes and interruptions."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from bayesbin import BinaryPosterior
from bayesbin.core.files import CorruptFileError
from bayesbin.nn import BinaryLinear, binary_sites, mlp, to_binary_
from bayesbin.predict import blocks, kernels, load, pack, predict_blocks
from bayesbin.predict.shipped import ShippedPredictive

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model file and inputs."""
    net = to_binary_(mlp(12, [9], 3)).float()
    posterior = BinaryPosterior(
        {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )
    pack(net, posterior, tmp_path / "model.bbn", num_samples=5, seed=1)
    x = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "model.bbn", tmp_path / "x.npy"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_the_rows_are_those_of_one_prediction(files, tmp_path):
    model, inputs = files
    found = predict_blocks(model, inputs, tmp_path / "out", rows_per_block=16)
    whole = load(model).predict(np.load(inputs))
    assert found.complete and found.blocks == found.done == 4
    for name in ("probs", "entropy", "expected_entropy", "mutual_information"):
        assert np.array_equal(found.arrays[name], getattr(whole, name))
        assert np.array_equal(np.load(tmp_path / "out" / f"{name}.npy"), getattr(whole, name))
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["entropy"][0] = 1.0
    other = predict_blocks(model, inputs, tmp_path / "other", rows_per_block=50)
    assert contents(other.folder) == contents(found.folder)


def test_a_regressor_has_its_own_quantities(tmp_path):
    posterior = BinaryPosterior({"weight": torch.zeros(1, 4)})
    pack(BinaryLinear(4, 1), posterior, tmp_path / "r.bbn", num_samples=5, noise=0.5)
    np.save(tmp_path / "x.npy", np.ones((7, 4)))
    found = predict_blocks(tmp_path / "r.bbn", tmp_path / "x.npy", tmp_path / "out")
    assert set(found.arrays) == {"mean", "aleatoric", "epistemic"}
    assert np.array_equal(found.arrays["aleatoric"], np.full(7, 0.25))


def test_processes_with_a_part_each_write_the_bytes_of_one(files, tmp_path):
    one = predict_blocks(*files, tmp_path / "one", rows_per_block=4)
    program = (
        "import sys; from bayesbin.predict import predict_blocks; "
        "predict_blocks(*sys.argv[1:4], rows_per_block=4, part=(int(sys.argv[4]), 3))"
    )
    arguments = [*map(str, files), str(tmp_path / "three")]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *arguments, str(i)]) for i in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "three") == contents(one.folder)
    assert not list((tmp_path / "three").glob("*.tmp"))


def test_an_interruption_is_continued_and_done_blocks_are_not_predicted_again(
    files, tmp_path, monkeypatch
):
    predicted: list[int] = []
    predict = ShippedPredictive.predict

    def counted(self, x, preprocess=None):
        if len(predicted) == 2:
            raise KeyboardInterrupt
        predicted.append(len(x))
        return predict(self, x, preprocess)

    monkeypatch.setattr(ShippedPredictive, "predict", counted)
    with pytest.raises(KeyboardInterrupt):
        predict_blocks(*files, tmp_path / "out", rows_per_block=16)
    monkeypatch.setattr(ShippedPredictive, "predict", predict)
    part = predict_blocks(*files, tmp_path / "out", rows_per_block=16, part=(2, 4))
    assert part.done == 3 and not part.complete
    assert not part.arrays["entropy"][48:].any()  # to come
    calls: list[int] = []
    monkeypatch.setattr(
        ShippedPredictive, "predict", lambda *a: calls.append(len(a[1])) or predict(*a)
    )
    done = predict_blocks(*files, tmp_path / "out", rows_per_block=16)
    assert calls == [2] and done.complete
    whole = predict_blocks(*files, tmp_path / "whole", rows_per_block=16)
    assert contents(done.folder) == contents(whole.folder)


def test_damaged_results_are_predicted_again(files, tmp_path):
    first = contents(predict_blocks(*files, tmp_path / "out", rows_per_block=16).folder)
    probs = np.load(tmp_path / "out" / "probs.npy", mmap_mode="r+")
    probs[20] = 7.0
    probs.flush()
    (tmp_path / "out" / "block-00000000.json").write_text("{")
    assert contents(predict_blocks(*files, tmp_path / "out", rows_per_block=16).folder) == first


def test_what_does_not_fit_is_refused(files, tmp_path):
    model, inputs = files
    predict_blocks(model, inputs, tmp_path / "out", rows_per_block=16)
    with pytest.raises(ValueError, match="rows_per_block; name another folder"):
        predict_blocks(model, inputs, tmp_path / "out", rows_per_block=8)
    x = np.load(inputs)
    np.save(inputs, x + 1.0)
    with pytest.raises(ValueError, match="have changed"):
        predict_blocks(model, inputs, tmp_path / "out", rows_per_block=16)
    with pytest.raises(ValueError, match=r"part \(3, 3\)"):
        predict_blocks(model, inputs, tmp_path / "new", part=(3, 3))
    with pytest.raises(ValueError, match="neither"):
        predict_blocks(model, inputs, tmp_path)  # the files above are in it
    np.save(inputs, x[:, :5])
    with pytest.raises(ValueError, match=r"\(N, 12\)"):
        predict_blocks(model, inputs, tmp_path / "new")
    np.save(inputs, x[:0])
    with pytest.raises(ValueError, match="no input to predict"):
        predict_blocks(model, inputs, tmp_path / "new")
    inputs.write_bytes(b"not an array")
    with pytest.raises(CorruptFileError, match="npy"):
        predict_blocks(model, inputs, tmp_path / "new")
    (tmp_path / "out" / blocks.MANIFEST).write_text("[")
    np.save(inputs, x)
    with pytest.raises(CorruptFileError, match="JSON"):
        predict_blocks(model, inputs, tmp_path / "out", rows_per_block=16)


def test_memory_does_not_grow_with_the_number_of_rows(files, tmp_path):
    model, _ = files
    peaks = []
    for rows in (20_000, 80_000):
        path = tmp_path / f"{rows}.npy"
        np.save(path, np.zeros((rows, 12), dtype=np.float32))
        tracemalloc.start()
        predict_blocks(model, path, tmp_path / f"out-{rows}", rows_per_block=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
