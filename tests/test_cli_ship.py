"""bayesbin pack, predict, unpack, inspect."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from bayesbin import data
from bayesbin.experiments import load_run, pack_run
from bayesbin.experiments.cli import main
from bayesbin.nn import recalibrate
from bayesbin.predict import PackedPredictive, kernels, load

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
TRAIN = ["train", "digits", "--epochs", "1", "--width", "16", "--depth", "1", "--no-progress"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ship") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def model(run):
    path = run.parent / "model.bbn"
    assert main(["pack", str(run), "--samples", "5", "--seed", "2", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def pixels(run):
    from sklearn.datasets import load_digits

    path = run.parent / "pixels.npy"
    np.save(path, load_digits().data[:7].astype(np.uint8))
    return path


def printed(capsys):
    return json.loads(capsys.readouterr().out)


@needs_kernels
def test_a_packed_run_predicts_as_the_run_does(run, model, pixels, tmp_path, capsys):
    loaded = load_run(run)
    splits = data.digits()
    x = splits.hold_out(0.1)[0].train.x
    statistics = recalibrate(loaded.net, loaded.posterior, x, num_samples=5, seed=2)
    packed = PackedPredictive(
        loaded.net, loaded.posterior, 5, 2, statistics=statistics, backend="cpu"
    )
    shipped = load(model)
    found = shipped.predict(splits.test.x.numpy())
    assert np.array_equal(found.log_probs, packed.predict(splits.test.x).log_probs.numpy())
    # Pixels as they are in the source, from the command line.
    capsys.readouterr()
    out = tmp_path / "probs.npy"
    assert main(["predict", str(model), str(pixels), "--json", "--out", str(out)]) == 0
    report = printed(capsys)
    assert splits.preprocessing is not None
    divisor, mean, std = map(np.float32, splits.preprocessing)
    inputs = (np.load(pixels).astype(np.float32) / divisor - mean) / std
    expected = packed.predict(torch.from_numpy(inputs))
    assert np.array_equal(np.load(out), expected.probs.numpy())
    assert [row["label"] for row in report["rows"]] == [
        str(int(k)) for k in expected.probs.argmax(1)
    ]
    for key, values in (
        ("probability", expected.probs.max(1).values),
        ("entropy", expected.entropy),
        ("mutual_information", expected.mutual_information),
    ):
        assert [row[key] for row in report["rows"]] == values.tolist()
    assert report["num_samples"] == 5 and report["out"] == str(out)


@needs_kernels
def test_predict_prints_a_row_for_each_input(model, pixels, tmp_path, capsys):
    assert main(["predict", str(model), str(pixels)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["label", "probability", "entropy", "mutual", "information"]
    assert len(lines) == 8 and all(len(line.split()) == 4 for line in lines[1:])
    raw = np.load(pixels).astype(float)
    np.save(tmp_path / "x.npy", raw)
    answers = {}
    for option in ("--raw", "--as-is"):
        assert main(["predict", str(model), str(tmp_path / "x.npy"), option, "--json"]) == 0
        answers[option] = printed(capsys)["rows"]
    assert main(["predict", str(model), str(pixels), "--json", "--threads", "2"]) == 0
    assert printed(capsys)["rows"] == answers["--raw"] != answers["--as-is"]


@needs_kernels
def test_predict_of_a_regressor(tmp_path, capsys):
    from bayesbin import BinaryPosterior
    from bayesbin.nn import BinaryLinear
    from bayesbin.predict import pack

    posterior = BinaryPosterior({"weight": torch.zeros(1, 2)})
    path = pack(BinaryLinear(2, 1), posterior, tmp_path / "model.bbn", 50, noise=0.5)
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    out = tmp_path / "out.npy"
    assert main(["predict", str(path), str(tmp_path / "x.npy"), "--json", "--out", str(out)]) == 0
    rows = printed(capsys)["rows"]
    assert set(rows[0]) == {"mean", "std", "aleatoric", "epistemic"} and len(rows) == 3
    assert rows[0]["std"] ** 2 == pytest.approx(rows[0]["aleatoric"] + rows[0]["epistemic"])
    assert np.load(out).shape == (3, 3) and np.load(out)[0, 0] == rows[0]["mean"]


def test_pack_reports_what_it_wrote(run, tmp_path, capsys):
    out = tmp_path / "model.bbn"
    arguments = ["pack", str(run), "--posterior", "--samples", "3", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    report = printed(capsys)
    assert report["contents"] == "posterior" and report["num_samples"] == 3
    assert report["bytes"] == out.stat().st_size and report["weights"] == 64 * 16 + 16 * 10
    assert report["provenance"]["data set"] == "digits" and report["provenance"]["run"] == "run"
    record = load_run(run).record
    digest = record["files"]["posterior.safetensors"]
    assert report["provenance"]["posterior sha256"] == digest
    before = out.read_bytes()
    assert main(arguments) == 0
    assert out.read_bytes() == before and f"bayesbin predict {out}" in capsys.readouterr().out
    assert pack_run(load_run(run), tmp_path / "same.bbn", num_samples=3, contents="posterior")
    assert (tmp_path / "same.bbn").read_bytes() == before
    assert main(["pack", str(run), "--samples", "0", "--out", str(out), "--json"]) == 0
    assert printed(capsys)["num_samples"] == 0


def test_unpack(run, model, tmp_path, capsys):
    posterior = load_run(run).posterior
    expected = posterior.binary_state_dict(3, seed=2)
    out = tmp_path / "weights"
    assert main(["unpack", str(model), "--draw", "3", "--out", f"{out}.npz", "--json"]) == 0
    assert printed(capsys)["arrays"] == {"0.weight": [16, 64], "3.weight": [10, 16]}
    with np.load(f"{out}.npz", allow_pickle=False) as archive:
        found = dict(archive)
    assert main(["unpack", str(model), "--all", "--out", f"{out}.safetensors"]) == 0
    assert "5 x 16 x 64" in capsys.readouterr().out
    every = load_file(f"{out}.safetensors")
    for site, weight in expected.items():
        assert np.array_equal(found[site], weight.numpy()) and found[site].dtype == np.int8
        assert np.array_equal(every[site][3], weight.numpy())
    mode = tmp_path / "mode.bbn"
    assert main(["pack", str(run), "--posterior", "--out", str(mode)]) == 0
    assert main(["unpack", str(mode), "--mode", "--out", f"{out}.npz"]) == 0
    with np.load(f"{out}.npz") as archive:
        assert np.array_equal(
            archive["0.weight"], posterior.binary_state_dict()["0.weight"].numpy()
        )


@needs_kernels
def test_unpack_to_onnx(model, pixels, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "model.onnx"
    assert main(["unpack", str(model), "--draw", "4", "--onnx", str(out), "--json"]) == 0
    assert printed(capsys)["bytes"] == out.stat().st_size
    x = np.load(pixels).astype(np.float32) / 16.0
    (outputs,) = runtime.InferenceSession(out).run(["outputs"], {"input": x})
    np.testing.assert_allclose(outputs, load(model).outputs(x)[4], atol=1e-5)


@needs_kernels
def test_inspect(model, capsys):
    assert main(["inspect", str(model), "--json"]) == 0
    report = printed(capsys)
    assert report["digest"] and report["steps"][0] == "weights"
    assert [row["microseconds"] for row in report["layers"]] == [None, None]
    assert main(["inspect", str(model), "--profile", "20"]) == 0
    text = capsys.readouterr().out
    assert "us/draw, 20 inputs" in text and report["digest"] in text and "digits" in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["pack", "nowhere", "--out", "x.bbn"], "no run.json"),
        (["pack", "RUN", "--out", "no/x.bbn"], "expected a folder"),
        (["pack", "RUN", "--out", "x.bbn", "--samples", "-1"], "num_samples"),
        (["pack", "RUN", "--out", "x.bbn", "--precision", "half"], "precision"),
        (["predict", "missing.bbn", "PIXELS"], "missing.bbn"),
        (["predict", "PIXELS", "PIXELS"], "another file; name a .bbn"),
        (["predict", "MODEL", "missing.npy"], "missing.npy"),
        (["predict", "MODEL", "MODEL"], "array of numbers"),
        (["predict", "MODEL", "PIXELS", "--out", "probs.csv"], "ends in .npy"),
        (["predict", "MODEL", "PIXELS", "--threads", "0"], "threads"),
        (["unpack", "MODEL", "--mode", "--out", "x.npz"], "not the mode"),
        (["unpack", "MODEL", "--draw", "5", "--out", "x.npz"], "0 .. 4"),
        (["unpack", "MODEL", "--out", "x.txt"], ".safetensors"),
        (["unpack", "MODEL", "--all", "--onnx", "x.onnx"], "one draw"),
        (["inspect", "missing.bbn"], "missing.bbn"),
        (["inspect", "MODEL", "--profile", "0"], "at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@needs_kernels
def test_known_errors_are_one_sentence(
    arguments, said, run, model, pixels, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names = {"RUN": run, "MODEL": model, "PIXELS": pixels}
    assert main([str(names.get(each, each)) for each in arguments]) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("bayesbin: error: ") and said in last
    assert not captured.out and not list(tmp_path.iterdir())


@needs_kernels
def test_arrays_with_anything_but_numbers_are_not_loaded(model, tmp_path, capsys):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", x=np.zeros(3))
    for name in ("objects.npy", "two.npz"):
        assert main(["predict", str(model), str(tmp_path / name)]) == 1
        assert "array" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "x"],
        ["predict", "x"],
        ["unpack", "x"],
        ["unpack", "x", "--out", "a.npz", "--onnx", "b.onnx"],
        ["unpack", "x", "--out", "a.npz", "--mode", "--all"],
        ["predict", "x", "y", "--raw", "--as-is"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_without_kernels_or_onnx_the_error_says_so(model, pixels, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["unpack", str(model), "--onnx", str(tmp_path / "x.onnx")]) == 1
    assert "pip install" in capsys.readouterr().err
    monkeypatch.setattr(kernels, "_module", None)
    monkeypatch.setattr(kernels, "_why_not", "There was no compiler.")
    for arguments in (["predict", str(model), str(pixels)], ["inspect", str(model), "--profile"]):
        assert main(arguments) == 1
        assert "There was no compiler" in capsys.readouterr().err


@needs_kernels
def test_predict_loads_no_torch(model, pixels):
    program = (
        "import sys; from bayesbin.experiments.cli import main; "
        f"assert main(['predict', {str(model)!r}, {str(pixels)!r}]) == 0; "
        "sys.exit(bool({'torch', 'pyro', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_kernels
def test_blocks_by_two_processes_are_the_rows_of_one_call(model, pixels, tmp_path, capsys):
    options = ["--blocks", str(tmp_path / "out"), "--rows-per-block", "2", "--no-progress"]
    command = ["predict", str(model), str(pixels), *options]
    assert main([*command, "--part", "1/2"]) == 0
    assert "2 of 4 blocks" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    report = printed(capsys)
    assert report["complete"] and report["arrays"]["probs"] == [7, 10]
    probs = np.load(tmp_path / "out" / "probs.npy")
    assert np.array_equal(probs, load(model).predict(np.load(pixels)).probs)
    assert main([*command, "--out", str(tmp_path / "probs.npy")]) == 1
    assert "got both" in capsys.readouterr().err
    assert main([*command, "--part", "2"]) == 2
    assert "--part" in capsys.readouterr().err
