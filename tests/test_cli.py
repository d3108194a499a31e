"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from bayesbin.experiments.cli import main
from bayesbin.runtime import native_backend

TRAIN = ["train", "two-moons", "--epochs", "2", "--width", "8", "--depth", "1", "--no-progress"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


def printed_json(capsys):
    return json.loads(capsys.readouterr().out)


def test_help_needs_no_torch():
    program = (
        "import sys; from bayesbin.experiments.cli import main; main(['--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["two-moons", "regression"])
def test_demo(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "picture.png"
    assert main(["demo", name, "--epochs", "2", "--out", str(out), "--json", "--no-progress"]) == 0
    result = printed_json(capsys)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [out]
    assert result["settings"]["epochs"] == 2 and result["picture"] == str(out)
    assert {"mode"} < set(result["scores"]) and result["weights"] > 1000


COMPARE = ["estimators", "disarm", "straight-through", "--weights", "4", "--replicates", "20"]


def test_estimators(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scales = ["--num-samples", "1", "2", "--lambda-scales", "0", "2"]
    assert main([*COMPARE, *scales, "--plot", "e.png", "--json"]) == 0
    result = printed_json(capsys)
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "e.png"] and result["picture"] == "e.png"
    assert list(result["reports"]) == ["0", "2"]
    for report in result["reports"].values():
        names = [row["name"] for row in report["rows"]]  # a pair of draws cannot be one draw
        assert names == ["disarm 2", "straight-through 1", "straight-through 2"]
        assert report["reference"] == "Enumerate(max_weights=16)"


def test_estimators_print_a_table_per_scale(capsys):
    assert main([*COMPARE, "--num-samples", "2", "--lambda-scales", "0", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "lambda = 0\n4 weights" in out and "lambda ~ N(0, 0.5²)\n4 weights" in out
    assert out.count("straight-through 2") == 2 and "picture" not in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nonsense"], "estimator to be one of local-reparameterization"),
        (["disarm", "--num-samples", "1"], "draws in pairs: an even number; got 1"),
        (["disarm", "--num-samples", "0"], "num_samples to be a whole number of at least 1; got 0"),
        (["disarm", "--weights", "0"], "at least one weight"),
        (["disarm", "--lambda-scales", "-1"], "scales of at least 0"),
        (["disarm", "--replicates", "3"], "at least 20; got 3"),
        (["disarm", "--plot", "nowhere/e.png"], "there is no"),
    ],
)
def test_what_estimators_refuse(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["estimators", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_demo_prints_one_screen_and_names_the_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "regression", "--epochs", "1", "--no-progress"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert lines[-1] == "picture: regression.png" and (tmp_path / "regression.png").is_file()


def test_train_then_evaluate(run, capsys):
    assert main(["evaluate", str(run), "--num-samples", "2", "--json"]) == 0
    table = printed_json(capsys)
    assert set(table["mode"]) == set(table["mean"]) == {"accuracy", "nll", "ece", "brier"}
    assert set(table["draws"]) == {"mean", "std", "low", "high"} and table["num_samples"] == 2
    assert table["posterior"][-1]["site"] == "total"
    assert main(["evaluate", str(run), "--num-samples", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{table['mean']['nll']:.4f}" in text and "+-" in text and "bits/weight" in text


def test_training_again_finds_the_run_finished(run, capsys):
    before = (run / "run.json").stat().st_mtime_ns
    assert main([*TRAIN, "--out", str(run), "--json"]) == 0
    report = printed_json(capsys)
    assert report["settings"]["width"] == 8 and report["recipe"]["name"] == "bayesbin"
    assert (run / "run.json").stat().st_mtime_ns == before


def test_info(capsys, monkeypatch):
    assert main(["info", "--json"]) == 0
    assert printed_json(capsys)["torch"]
    assert main(["info"]) == 0
    assert "threads" in capsys.readouterr().out
    monkeypatch.setattr(native_backend, "_module", None)
    monkeypatch.setattr(native_backend, "_why_not", "There was no compiler.")
    assert main(["info"]) == 0
    assert capsys.readouterr().out.endswith("There was no compiler.\n")


def test_training_is_in_single_precision_and_changes_no_default(run):
    from bayesbin.experiments import load_run

    assert torch.get_default_dtype() == torch.float64  # what the tests run in
    assert load_run(run).posterior["0.weight"].natural.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["evaluate", "no-such-folder"], "no run.json"),
        (["train", "mnist", "--out", "x"], "BAYESBIN_DATA"),
        (["train", "mnist", "--data", "no-such-folder", "--out", "x"], "no-such-folder"),
        (["train", "digits", "--out", "x", "--set", "lr=-1"], "expected lr"),
        (["train", "digits", "--out", "x", "--set", "estimator=magic"], "concrete"),
        (["train", "digits", "--out", "x", "--set", "magic=1"], "has the settings guide, sharing"),
        (["train", "digits", "--out", "x", "--recipe", "magic"], "bayesbin, bayesbinn"),
        (["train", "digits", "--out", "x", "--recipe", "bop", "--set", "kl_weight=.03"], "gamma"),
        (["demo", "two-moons", "--epochs", "0"], "epochs"),
        (["demo", "regression", "--epochs", "1", "--out", "picture.doc"], ".png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_known_errors_are_one_sentence(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BAYESBIN_DATA", raising=False)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("bayesbin: error: ") and said in last
    assert "Traceback" not in captured.err and not captured.out
    assert not list(tmp_path.iterdir())


def test_another_configuration_in_the_same_folder_is_refused(run, capsys):
    assert main([*TRAIN, "--seed", "3", "--out", str(run)]) == 1
    assert "seed 0 there, 3 now" in capsys.readouterr().err


def test_a_damaged_run_is_an_error(run, tmp_path, capsys):
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes()[:-20])
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["train", "digits"], ["demo", "three-moons"], ["info", "--jso"]],
    ids=str,
)
def test_a_wrong_command_line_is_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_interruption_is_130_and_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    import bayesbin.experiments

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt("Interrupted after step 3.")

    monkeypatch.setattr(bayesbin.experiments, "train_run", interrupted)
    assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 130
    captured = capsys.readouterr()
    assert "continues" in captured.err and "step 3" in captured.err and not captured.out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_leaves_a_run_that_continues(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bayesbin",
        "train",
        "two-moons",
        "--width",
        "8",
        "--depth",
        "1",
    ]
    command += ["--epochs", "20000", "--out", str(tmp_path / "run"), "--no-progress", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 90
    while not list(checkpoints.glob("*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "continues" in err and "Traceback" not in err and not out
    assert list(checkpoints.glob("*.ckpt"))
    result = subprocess.run(
        [sys.executable, "-m", "bayesbin", "evaluate", str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "interrupted" in result.stderr


def test_a_picture_into_no_folder_is_refused_before_training(tmp_path, capsys):
    out = tmp_path / "missing" / "picture.png"
    assert main(["demo", "regression", "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "expected a folder" in message and "Training" not in message
