"""Predictions in blocks: the bytes of one call, whatever the blocks, processes and interruptions."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from model_examples import convolution, perceptron, varied

from bayesbin.core.files import CorruptFileError
from bayesbin.runtime import blocks, load, predict_blocks
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.preprocessing import scaling_program

CLASSES = {"kind": "classes"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model file and inputs."""
    Predictor(perceptron(), CLASSES, backend="numpy").save(tmp_path / "model.bbn")
    x = np.random.default_rng(0).standard_normal((50, 11)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "model.bbn", tmp_path / "x.npy"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_the_rows_are_those_of_one_prediction(files, tmp_path):
    model, inputs = files
    found = predict_blocks(model, inputs, tmp_path / "out", rows_per_block=16)
    whole = load(model).predict(np.load(inputs))
    assert found.complete and found.blocks == found.done == 4
    assert set(found.arrays) == {"probs", "entropy", "expected_entropy", "mutual_information"}
    for name, array in found.arrays.items():
        assert np.array_equal(array, getattr(whole, name))
        assert np.array_equal(np.load(tmp_path / "out" / f"{name}.npy"), getattr(whole, name))
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["entropy"][0] = 1.0
    other = predict_blocks(model, inputs, tmp_path / "other", rows_per_block=50)
    assert contents(other.folder) == contents(found.folder)


def test_other_heads_have_their_own_quantities(tmp_path):
    x = np.random.default_rng(0).standard_normal((7, 11))
    np.save(tmp_path / "x.npy", x)
    for head, names in [
        ({"kind": "normal", "noise": 0.5}, {"mean", "aleatoric_variance", "epistemic_variance"}),
        ({"kind": "outputs"}, {"mean", "variance"}),
    ]:
        predictor = Predictor(perceptron(outputs=1), head, backend="numpy")
        path = predictor.save(tmp_path / f"{head['kind']}.bbn")
        found = predict_blocks(path, tmp_path / "x.npy", tmp_path / head["kind"])
        assert set(found.arrays) == names
        for name, array in found.arrays.items():
            assert np.array_equal(array, getattr(predictor.predict(x), name))


def test_whether_inputs_are_raw_is_found_out_once_for_all_blocks(tmp_path):
    """The first rows are dark, so that they alone would be taken for something else."""
    program = convolution()
    before = scaling_program((255.0, 0.13, 0.31), (2, 5, 6))
    predictor = Predictor(program, CLASSES, preprocessing=before, backend="numpy")
    path = predictor.save(tmp_path / "model.bbn")
    x = np.random.default_rng(0).integers(0, 256, (9, 2, 5, 6)).astype(np.float64)
    x[:3] = 0.0
    np.save(tmp_path / "x.npy", x)
    with pytest.warns(UserWarning, match="taken for raw pixels"):
        found = predict_blocks(path, tmp_path / "x.npy", tmp_path / "out", rows_per_block=2)
    expected = predictor.predict(x, preprocess=True)
    assert np.array_equal(found.arrays["probs"], expected.probs)
    as_is = predictor.predict(x / 300.0, preprocess=False)
    assert not np.array_equal(as_is.probs, expected.probs)


def test_processes_with_a_part_each_write_the_bytes_of_one(files, tmp_path):
    one = predict_blocks(*files, tmp_path / "one", rows_per_block=4)
    program = (
        "import sys, warnings; warnings.simplefilter('ignore'); from bayesbin.runtime import predict_blocks; "
        "predict_blocks(*sys.argv[1:4], rows_per_block=4, part=(int(sys.argv[4]), 3))"
    )
    arguments = [*map(str, files), str(tmp_path / "three")]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *arguments, str(i)]) for i in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "three") == contents(one.folder)
    assert not [path for path in (tmp_path / "three").iterdir() if path.suffix == ".tmp"]


def test_an_interruption_is_continued_and_done_blocks_are_not_predicted_again(
    files, tmp_path, monkeypatch
):
    predicted: list[int] = []
    predict = Predictor.predict

    def counted(self, x, preprocess=None):
        if len(x) and len(predicted) == 2:
            raise KeyboardInterrupt
        if len(x):
            predicted.append(len(x))
        return predict(self, x, preprocess)

    monkeypatch.setattr(Predictor, "predict", counted)
    with pytest.raises(KeyboardInterrupt):
        predict_blocks(*files, tmp_path / "out", rows_per_block=16)
    monkeypatch.setattr(Predictor, "predict", predict)
    part = predict_blocks(*files, tmp_path / "out", rows_per_block=16, part=(2, 4))
    assert part.done == 3 and not part.complete
    assert not part.arrays["entropy"][48:].any()  # to come
    predicted.clear()
    predicted.append(0)  # one more may be predicted

    monkeypatch.setattr(Predictor, "predict", counted)
    done = predict_blocks(*files, tmp_path / "out", rows_per_block=16)
    monkeypatch.setattr(Predictor, "predict", predict)
    assert predicted == [0, 2] and done.complete
    whole = predict_blocks(*files, tmp_path / "whole", rows_per_block=16)
    assert contents(done.folder) == contents(whole.folder)


def test_damaged_results_are_predicted_again(files, tmp_path):
    first = contents(predict_blocks(*files, tmp_path / "out", rows_per_block=16).folder)
    probs = np.load(tmp_path / "out" / "probs.npy", mmap_mode="r+")
    probs[20] = 7.0
    probs.flush()
    (tmp_path / "out" / "block-00000000.json").write_text("{")
    (tmp_path / "out" / "block-00000002.json").write_text("[]")
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
    with pytest.raises(ValueError, match=r"got \(3, 3\)"):
        predict_blocks(model, inputs, tmp_path / "new", part=(3, 3))
    with pytest.raises(ValueError, match="rows_per_block to be a whole number of at least 1"):
        predict_blocks(model, inputs, tmp_path / "new", rows_per_block=0)
    with pytest.raises(ValueError, match="neither"):
        predict_blocks(model, inputs, tmp_path)  # the files above are in it
    np.save(inputs, x[:, :5])
    with pytest.raises(ValueError, match=r"shape \(B, 11\), got \(50, 5\)"):
        predict_blocks(model, inputs, tmp_path / "new")
    np.save(inputs, x[:0])
    with pytest.raises(ValueError, match="inputs to predict"):
        predict_blocks(model, inputs, tmp_path / "new")
    for damage in (b"not an array", b"", np.lib.format.MAGIC_PREFIX + b"\1\0\3\0{{{"):
        inputs.write_bytes(damage)
        with pytest.raises(CorruptFileError, match="npy"):
            predict_blocks(model, inputs, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    np.save(inputs, x)
    for damage in ("[", "[]", "1"):
        (tmp_path / "out" / blocks.MANIFEST).write_text(damage)
        with pytest.raises(CorruptFileError, match="JSON"):
            predict_blocks(model, inputs, tmp_path / "out", rows_per_block=16)
    path = Predictor(varied(), CLASSES, backend="numpy").save(tmp_path / "two.bbn")
    with pytest.raises(ValueError, match=r"one input and one output, got 2 inputs"):
        predict_blocks(path, inputs, tmp_path / "new")


def test_memory_does_not_grow_with_the_number_of_rows(files, tmp_path):
    model, _ = files
    peaks = []
    for rows in (20_000, 80_000):
        path = tmp_path / f"{rows}.npy"
        np.save(path, np.zeros((rows, 11), dtype=np.float32))
        tracemalloc.start()
        predict_blocks(model, path, tmp_path / f"out-{rows}", rows_per_block=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
