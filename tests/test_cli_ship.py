"""bayesbin pack, predict, unpack, inspect."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from bayesbin import BinaryPosterior, Ensemble, data, load
from bayesbin.compile.refusal import NotCompiled
from bayesbin.experiments import load_run, pack_run
from bayesbin.experiments.cli import main
from bayesbin.nn import BinaryLinear, Classifier, Regressor
from bayesbin.runtime import backends, native_backend
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Constant, Program, Step, Value

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


def test_a_packed_run_predicts_as_the_run_does(run, model, pixels, tmp_path, capsys):
    loaded = load_run(run)
    splits = data.digits()
    x = splits.hold_out(0.1)[0].train.x
    model_ = Classifier(loaded.net, dataset_size=len(x))
    ensemble = Ensemble(model_, loaded.posterior, 5, 2).calibrate(x)
    found = load(model).predict(splits.test.x.numpy())
    assert np.array_equal(found.log_probs, ensemble.predict(splits.test.x).log_probs.numpy())
    # Pixels as they are in the source, from the command line.
    capsys.readouterr()
    out = tmp_path / "probs.npy"
    assert main(["predict", str(model), str(pixels), "--json", "--out", str(out)]) == 0
    report = printed(capsys)
    assert splits.preprocessing is not None
    divisor, mean, std = map(np.float32, splits.preprocessing)
    inputs = (np.load(pixels).astype(np.float32) / divisor - mean) / std
    expected = ensemble.predict(inputs)
    assert np.array_equal(np.load(out), expected.probs)
    assert [row["label"] for row in report["rows"]] == [
        str(int(k)) for k in expected.probs.argmax(1)
    ]
    for key, values in (
        ("probability", expected.probs.max(1)),
        ("entropy", expected.entropy),
        ("mutual_information", expected.mutual_information),
    ):
        assert [row[key] for row in report["rows"]] == values.tolist()
    assert report["num_samples"] == 5 and report["out"] == str(out)
    options = ["--num-samples", "5", "--seed", "2", "--json"]
    assert main(["predict", str(run), str(pixels), *options]) == 0
    assert printed(capsys)["rows"] == report["rows"]


def test_digits_as_scikit_learn_has_them_are_not_taken_for_standardised_ones(
    run, model, tmp_path, capsys
):
    """Whole numbers in float64: as they are, they would be right half as often, without a word."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.save(tmp_path / "x.npy", digits.data[-300:])
    accuracies = {}
    for source, options in (
        (str(model), []),
        (str(run), ["--num-samples", "5", "--seed", "2"]),
        (str(model), ["--raw"]),
        (str(model), ["--as-is"]),
    ):
        capsys.readouterr()
        assert main(["predict", source, str(tmp_path / "x.npy"), *options, "--json"]) == 0
        captured = capsys.readouterr()
        answers = [int(row["label"]) for row in json.loads(captured.out)["rows"]]
        accuracies[source, *options[:1]] = np.mean(answers == digits.target[-300:])
        warned = "bayesbin: warning: The inputs" in captured.err
        assert ("Pass --raw" in captured.err or "pass --raw" in captured.err) == warned
        assert warned == (options[:1] not in (["--raw"], ["--as-is"]))
    assert accuracies[str(model),] == accuracies[str(run), "--num-samples"]
    assert accuracies[str(model),] == accuracies[str(model), "--raw"]
    assert accuracies[str(model), "--as-is"] < accuracies[str(model),] - 0.1


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


def test_predict_of_a_regressor(tmp_path, capsys):
    posterior = BinaryPosterior({"weight": torch.zeros(1, 2)})
    model = Regressor(BinaryLinear(2, 1), dataset_size=9, noise=0.5)
    path = Ensemble(model, posterior, 50).compile().save(tmp_path / "model.bbn")
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    out = tmp_path / "out.npy"
    assert main(["predict", str(path), str(tmp_path / "x.npy"), "--json", "--out", str(out)]) == 0
    rows = printed(capsys)["rows"]
    names = ["mean", "std", "aleatoric_variance", "epistemic_variance"]
    assert list(rows[0]) == names and len(rows) == 3
    (mean, std, noise, weights) = np.ravel(list(rows[0].values()))
    assert std**2 == pytest.approx(noise + weights) and noise == pytest.approx(0.25)
    saved = np.load(out)
    assert len(saved) == 3 and np.ravel(saved[0]).tolist() == [mean, noise, weights]


def test_predict_of_outputs_without_a_meaning(tmp_path, capsys):
    posterior = BinaryPosterior({"weight": torch.zeros(3, 2)})
    path = Ensemble(BinaryLinear(2, 3), posterior, 50).compile().save(tmp_path / "model.bbn")
    np.save(tmp_path / "x.npy", np.ones((4, 2)))
    out = tmp_path / "out.npy"
    assert main(["predict", str(path), str(tmp_path / "x.npy"), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mean", "std"] and len(lines) == 5
    found = load(path).predict(np.ones((4, 2)))
    assert np.array_equal(np.load(out), np.stack([found.mean, found.variance], axis=1))


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
    assert report["provenance"]["seed"] == 0 and report["provenance"]["network sha256"]
    assert report["labels"] == [str(k) for k in range(10)] and report["preprocessing"]
    before = out.read_bytes()
    assert main(arguments) == 0
    assert out.read_bytes() == before and f"bayesbin predict {out}" in capsys.readouterr().out
    assert pack_run(load_run(run), tmp_path / "same.bbn", num_samples=3, contents="posterior")
    assert (tmp_path / "same.bbn").read_bytes() == before
    assert main(["pack", str(run), "--samples", "0", "--out", str(out), "--json"]) == 0
    assert printed(capsys)["num_samples"] == 1
    found = load(out).predict(data.digits().test.x.numpy())
    mode = load_run(run).ensemble(0)
    assert np.array_equal(found.probs, mode.predict(data.digits().test.x.numpy()).probs)


def test_a_network_that_does_not_compile_predicts_in_torch_and_is_not_packed(
    run, pixels, tmp_path, monkeypatch, capsys
):
    from bayesbin.ensemble import programs

    assert main(["predict", str(run), str(pixels), "--num-samples", "3", "--json"]) == 0
    expected = printed(capsys)["rows"]

    def refuse(*_, **__):
        raise NotCompiled(
            "There is no step for aten.sort", "aten.sort.default", "net.py:3: x.sort()"
        )

    monkeypatch.setattr(programs, "export_program", refuse)
    assert main(["pack", str(run), "--out", str(tmp_path / "m.bbn")]) == 1
    said = capsys.readouterr().err
    assert "no step for aten.sort (net.py:3: x.sort())" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
    assert main(["predict", str(run), str(pixels), "--num-samples", "3", "--json"]) == 0
    for row, other in zip(printed(capsys)["rows"], expected, strict=True):
        assert row["label"] == other["label"]
        assert row["entropy"] == pytest.approx(other["entropy"], abs=1e-5)


def test_the_winner_of_a_comparison_is_packed(tmp_path, capsys):
    folder, out = tmp_path / "c", tmp_path / "m.bbn"
    small = ["--epochs", "1", "--width", "8", "--depth", "1", "--num-samples", "2"]
    recipes = ["--recipe", "bayesbin", "ternaryconnect"]
    assert main(["compare", *recipes, "--out", str(folder), *small, "--no-progress"]) == 0
    np.save(tmp_path / "x.npy", data.digits().test.x[:20].numpy())
    for options in ([], ["--run", "ternaryconnect_seed0"]):
        capsys.readouterr()
        assert main(["pack", str(folder), *options, "--samples", "3", "--out", str(out)]) == 0
        capsys.readouterr()
        assert main(["predict", str(out), str(tmp_path / "x.npy"), "--json"]) == 0
        packed = printed(capsys)["rows"]
        run = [str(folder), str(tmp_path / "x.npy"), *options, "--num-samples", "3"]
        assert main(["predict", *run, "--json"]) == 0
        assert printed(capsys)["rows"] == packed


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


def test_unpack_to_onnx(model, pixels, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "model.onnx"
    for options, draws in (([], range(5)), (["--draw", "4"], [4])):
        assert main(["unpack", str(model), *options, "--onnx", str(out), "--json"]) == 0
        assert printed(capsys)["bytes"] == out.stat().st_size
        x = np.load(pixels)
        session = runtime.InferenceSession(out)
        (given,) = session.get_inputs()
        probs, outputs = session.run(["probs", "outputs"], {given.name: x.astype(np.float32)})
        chosen = load(model).select(list(draws))
        np.testing.assert_allclose(outputs, chosen.outputs(x), atol=1e-4)
        np.testing.assert_allclose(probs, chosen.predict(x).probs, atol=1e-5)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_unpack_to_c(model, pixels, tmp_path, capsys):
    folder = tmp_path / "c"
    assert main(["unpack", str(model), "--c", str(folder), "--json"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["main.c", "model.c", "model.h"]
    assert printed(capsys)["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    sources = ["model.c", "main.c", "-lm", "-o", "predict"]
    subprocess.run(["gcc", "-std=c99", "-ffp-contract=off", *sources], cwd=folder, check=True)
    row = np.load(pixels)[0]
    done = subprocess.run(
        [folder / "predict"],
        input=" ".join(map(str, row)),
        capture_output=True,
        text=True,
        check=True,
    )
    best = load(model).predict(row[None]).probs.max()
    assert f"{best:.3f}" in done.stdout


def test_inspect(model, capsys):
    assert main(["inspect", str(model), "--json"]) == 0
    report = printed(capsys)
    assert report["digest"] and report["num_samples"] == 5
    assert {"linear"} <= {row["kind"] for row in report["steps"]}
    assert {row["microseconds"] for row in report["steps"]} == {None}
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
        (["predict", "MODEL", "PIXELS", "--out", "probs.txt"], "ends in .npy or .csv"),
        (["predict", "MODEL", "PIXELS", "--threads", "0"], "threads"),
        (["unpack", "MODEL", "--mode", "--out", "x.npz"], "for its mode"),
        (["unpack", "MODEL", "--draw", "5", "--out", "x.npz"], "0 to 4"),
        (["unpack", "MODEL", "--out", "x.txt"], ".safetensors"),
        (["unpack", "MODEL", "--mode", "--onnx", "x.onnx"], "--samples 0"),
        (["unpack", "MODEL", "--draw", "5", "--c", "x"], "draw"),
        (["inspect", "missing.bbn"], "missing.bbn"),
        (["inspect", "MODEL", "--profile", "0"], "at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
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
        ["unpack", "x", "--out", "a.npz", "--c", "folder"],
        ["unpack", "x", "--out", "a.npz", "--mode", "--all"],
        ["predict", "x", "y", "--raw", "--as-is"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_without_onnx_the_error_says_so(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["unpack", str(model), "--onnx", str(tmp_path / "x.onnx")]) == 1
    assert "pip install" in capsys.readouterr().err


def test_without_kernels_the_answers_are_the_same_and_a_warning_says_so(
    model, pixels, monkeypatch, capsys
):
    assert main(["predict", str(model), str(pixels), "--json"]) == 0
    expected = printed(capsys)["rows"]
    monkeypatch.setattr(native_backend, "_module", None)
    monkeypatch.setattr(native_backend, "_why_not", "There was no compiler.")
    monkeypatch.setattr(backends, "_warned", False)
    assert main(["predict", str(model), str(pixels), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == expected
    assert captured.err.startswith("bayesbin: warning: ") and "no compiler" in captured.err
    assert main(["inspect", str(model), "--profile", "--json"]) == 0
    assert {row["backend"] for row in printed(capsys)["steps"]} == {"numpy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "MODEL", "PIXELS"],
        ["predict", "MODEL", "PIXELS", "--blocks", "OUT"],
        ["inspect", "MODEL", "--profile", "5"],
        ["unpack", "MODEL", "--out", "OUT.npz"],
        ["unpack", "MODEL", "--c", "OUT"],
        ["info"],
    ],
    ids=" ".join,
)
def test_model_files_need_no_torch(arguments, model, pixels, tmp_path):
    names = {"MODEL": str(model), "PIXELS": str(pixels)}
    given = [names.get(each, each.replace("OUT", str(tmp_path / "out"))) for each in arguments]
    program = (
        f"import sys; from bayesbin.experiments.cli import main; assert main({given!r}) == 0; "
        "sys.exit(bool({'torch', 'pyro', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


KINDS = {
    "classes": ({"kind": "classes"}, "label,probability,entropy,mutual_information"),
    "ordinal": (
        {"kind": "ordinal", "cutpoints": [[-1.0, 1.0]]}, "label,probability,entropy,mutual_information",
    ),
    "labels": (
        {"kind": "labels"},
        "labels,probs_0,probs_1,entropy_0,entropy_1,mutual_information_0,mutual_information_1",
    ),
    "normal": (
        {"kind": "normal", "heteroscedastic": True}, "mean,std,aleatoric_variance,epistemic_variance",
    ),
    "poisson": ({"kind": "poisson"}, "mean,std,aleatoric_variance,epistemic_variance"),
    "negative_binomial": (
        {"kind": "negative_binomial", "concentration": [0.5, 2.0]},
        "mean,std,aleatoric_variance,epistemic_variance",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_is_predicted_and_inspected(kind, tmp_path, capsys):
    head, header = KINDS[kind]
    units = 2 if kind in ("classes", "labels", "normal") else 1
    weight = Constant(
        np.linspace(-1.0, 1.0, 4 * units).reshape(2, units, 2).astype("f4"), np.arange(2)
    )
    step = Step("linear", ("x", "w"), ("y",))
    program = Program({"x": Value((2,), "f4")}, {"w": weight}, {}, (step,), ("y",), 2)
    predictor = Predictor(program, head, labels=["a", "b"] if kind == "labels" else None)
    path, x = (
        str(predictor.save(tmp_path / "model.bbn")),
        np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, 1.0]]),
    )
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out.csv"
    assert main(["predict", path, str(tmp_path / "x.npy"), "--json", "--out", str(out)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    lines = out.read_text().splitlines()
    assert lines[0] == header and len(lines) == 4 and len(rows) == 3
    found = predictor.predict(x)
    if kind == "labels":
        assert rows[0]["labels"] == [
            n for n, p in zip("ab", found.probs[0], strict=True) if p > 0.5
        ]
        assert [row["probs"] for row in rows] == found.probs.tolist()
        assert lines[1].split(",")[0] == " ".join(rows[0]["labels"])
    elif hasattr(found, "probs"):
        assert [row["probability"] for row in rows] == found.probs.max(-1).tolist()
    else:
        assert [row["mean"] for row in rows] == found.mean.tolist()
    assert main(["predict", path, str(tmp_path / "x.npy")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["inspect", path]) == 0
    assert f"head {kind}" in capsys.readouterr().out
