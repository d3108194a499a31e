"""The command line where standard streams are closed or full, and outputs cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bayesbin.experiments import cli
from bayesbin.experiments.cli import main
from bayesbin.experiments.cli.verbs import require_writable

posix = pytest.mark.skipif(os.name == "nt", reason="streams and devices of POSIX")


def ran(redirection, *arguments, **environment):
    """Run ``bayesbin arguments redirection`` in a shell; (code, stdout, stderr)."""
    line = f'"{sys.executable}" -m bayesbin {" ".join(arguments)} {redirection}'
    found = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.slow
@posix
def test_the_report_stands_alone_where_stderr_is_closed_and_is_escaped_where_it_must_be():
    compare = ["estimators", "disarm", "--weights", "2", "--replicates", "20"]
    code, out, err = ran("2>&-", *compare, PYTHONIOENCODING="ascii")
    assert code == 0 and not err
    assert out.startswith(b"lambda = 0\n2 weights")  # "Comparing ..." is not in it
    assert rb"N(0, 0.5\xb2)" in out


@posix
@pytest.mark.parametrize(
    ("redirection", "arguments", "said"),
    [
        (">&-", ["info"], "expected a standard output for the report, but it is closed"),
        (">/dev/full", ["--version"], "cannot write the report to standard output: no space left"),
        (">/dev/full", ["--help"], "cannot write the report to standard output: no space left"),
        (">/dev/full 2>&1", ["--version"], ""),
        (">/dev/full 2>&-", ["--version"], ""),
        ("2>&-", ["demo", "two-moons", "--out", "missing/x.png"], ""),
        ("2>/dev/full", ["demo", "two-moons", "--out", "missing/x.png"], ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_exit_codes_where_a_stream_cannot_be_written(redirection, arguments, said, unbuffered):
    code, out, err = ran(redirection, *arguments, PYTHONUNBUFFERED=unbuffered)
    assert code == 1 and not out
    assert err.decode().count("\n") == (1 if said else 0)
    assert said in err.decode()


@posix
def test_messages_that_cannot_be_written_stop_nothing(monkeypatch):
    from bayesbin.experiments.cli.streams import say

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("half done")
    say("closed since")
    monkeypatch.setattr(sys, "stderr", None)
    say("there is none")


@pytest.fixture
def verb(monkeypatch):
    """A function that lets ``bayesbin info`` do something else."""
    from bayesbin.experiments.cli import comparing

    def let(function):
        monkeypatch.setattr(comparing, "_info", function)

    return let


def test_prints_of_a_library_stay_out_of_the_report(verb, capsys):
    def noisy(arguments):
        print("loading ...")
        return {"nll": float("nan"), "path": Path("x"), "rows": [(1, float("inf"))]}, "text"

    verb(noisy)
    assert main(["info", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"nll": None, "path": "x", "rows": [[1, None]]}
    assert captured.err == "loading ...\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("expected onnx; pip install onnx."), "expected onnx"),
        (OSError(28, "No space left on device", "a.npy"), "cannot use a.npy: no space left"),
    ],
)
def test_known_errors_are_sentences(error, said, verb, capsys):
    def failing(arguments):
        raise error

    verb(failing)
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith(f"bayesbin: error: {said}")


def parsers(parser, names=()):
    """All parsers of verbs, with their names."""
    import argparse

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, nested in action.choices.items():
                yield from parsers(nested, (*names, name))
            return
    yield " ".join(names), parser


VERBS = dict(parsers(cli._parser()))
DEMANDS = {
    "demo": ["two-moons"],
    "train": ["two-moons"],
    "report": ["run"],
    "compare": [],
    "pack": ["run"],
    "predict": ["model.bbn", "inputs.npy"],
    "unpack": ["model.bbn"],
    "continual permuted": [],
    "continual split": [],
    "continual rotated": [],
    "estimators": [],
}
FOLDERS = ("train", "compare", "continual permuted", "continual split", "continual rotated")
ENDINGS = {"predict": ".npy", "estimators": ".png", "demo": ".png"}


def writing(verb, out):
    option = "--plot" if verb == "estimators" else "--out"
    return [*verb.split(), *DEMANDS[verb], option, str(out)]


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_json_and_quiet(name):
    options = VERBS[name]._option_string_actions
    assert {"--json", "--quiet"} <= set(options)
    if "--out" in options:
        assert name in DEMANDS
    if "--epochs" in options:
        assert "--no-progress" in options and {"--seed", "--seeds"} & set(options)


@pytest.fixture
def no_work(monkeypatch):
    """Let no verb work: whatever begins to read or to train fails."""
    from bayesbin import data, experiments
    from bayesbin.runtime import inspection, unpacking

    def begun(*arguments, **options):
        raise AssertionError("the work has begun")

    for module, names in {
        data: ["load"],
        experiments: ["load_run"],
        inspection: ["inspect"],
        unpacking: ["unpack"],
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, begun)


@pytest.mark.parametrize("verb", DEMANDS)
@pytest.mark.parametrize("place", ["file above", "other kind", "device", "too long"])
@pytest.mark.usefixtures("no_work")
def test_outputs_that_cannot_be_written_are_found_before_the_work(verb, place, tmp_path, capsys):
    folder, ending = verb in FOLDERS, ENDINGS.get(verb, "")
    out = tmp_path / f"out{ending}"
    if place == "file above":
        (tmp_path / "file").write_text("x")
        out = tmp_path / "file" / f"out{ending}"
    elif place == "other kind":
        out.write_text("x") if folder else out.mkdir()
    elif place == "device":
        out.symlink_to("/dev/full")
    else:
        out = tmp_path / ("x" * 300 + ending)
    before = sorted(tmp_path.rglob("*"))
    assert main(writing(verb, out)) == 1
    error = capsys.readouterr().err
    assert error.startswith("bayesbin: error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", [name for name in DEMANDS if name not in FOLDERS])
@pytest.mark.usefixtures("no_work")
def test_a_file_wants_its_folder(verb, tmp_path, capsys):
    out = tmp_path / "missing" / f"out{ENDINGS.get(verb, '')}"
    assert main(writing(verb, out)) == 1
    assert "expected a folder for" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("number", [13, 28, 30], ids=["not allowed", "full", "read-only"])
def test_folders_that_take_no_file(kind, number, tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(number, os.strerror(number), "probe")

    monkeypatch.setattr(os, "fsync", refused)  # where a full disk is noticed, at the latest
    with pytest.raises(OSError, match=rf"^cannot write .*out: {os.strerror(number).lower()}; name"):
        require_writable(str(tmp_path / "out"), kind)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_with_its_parents_only_by_the_work(tmp_path):
    assert require_writable(str(tmp_path / "a" / "b"), "folder") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["~nobody2/x", "", "~nobody2"])
def test_a_home_that_is_not_known(out, capsys):
    assert main(["train", "two-moons", "--out", out]) == 2
    assert "to be a path; got" in capsys.readouterr().err
    assert main(["evaluate", "run", "--data", "~nobody2/x"]) == 2


def test_a_table_is_no_array(tmp_path, capsys):
    from bayesbin.experiments.cli.shipping import _array

    tables = {
        "x.csv": (b"a,b\n1,2\n", r"numpy.loadtxt"),
        "x.npy": (b"", "another file"),
        "y.npy": (b"\x93NUMPY\x01\x00", "another file"),
        "z.npz": (b"PK\x03\x04rest", "numpy.save"),
    }
    for name, (payload, said) in tables.items():
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(ValueError, match=said):
            _array(str(tmp_path / name))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(ValueError, match="an array of numbers"):
        _array(str(tmp_path / "words.npy"))
    np.save(tmp_path / "good.npy", np.arange(3))
    assert _array(str(tmp_path / "good.npy")).tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "cpu:3", "warp", "xla", ""])
@pytest.mark.usefixtures("no_work")
def test_a_device_that_is_not_there_is_said_at_once(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for verb in (
        ["train", "two-moons", "--out", str(tmp_path / "run")],
        ["compare", "--out", str(tmp_path / "comparison")],
    ):
        assert main([*verb, "--device", device]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("bayesbin: error: expected a device") and error.endswith(".")
    assert not list(tmp_path.iterdir())


def test_devices_that_are_there(monkeypatch):
    from argparse import Namespace

    from bayesbin.experiments.cli.verbs import device_of

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert device_of(Namespace(device=name)) == torch.device(name)
    with pytest.raises(ValueError, match=r"this machine \(cpu, cuda:0 to cuda:1\); got 'cuda:2'"):
        device_of(Namespace(device="cuda:2"))
