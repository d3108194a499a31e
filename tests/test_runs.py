"""Runs: written and read back, resumed exactly, lengthened, rebuilt, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

from bayesbin import data
from bayesbin.core.files import LOCK, CorruptFileError, FolderInUseError, one_writer
from bayesbin.experiments import (
    ComparisonSettings,
    ContinualSettings,
    RunSettings,
    choose_run,
    compare,
    environment,
    evaluate_run,
    load_run,
    open_run,
    predict_run,
    rebuild,
    run_continual,
    train_run,
)
from bayesbin.experiments import train as train_module
from bayesbin.experiments.record import differences, read_record, write_record
from bayesbin.experiments.runs import settings_from
from bayesbin.experiments.settings import settings_for
from bayesbin.recipes import settings_of

SETTINGS = RunSettings("two-moons", width=8, depth=1, epochs=2, batch_size=64)
TASKS = ContinualSettings("permuted", tasks=2, epochs=1, hidden=(8,), num_samples=2)
FILES = ("posterior.safetensors", "network.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "comparison"
    small = {"width": 8, "depth": 1, "epochs": 2, "batch_size": 64, "num_samples": 3}
    compare(ComparisonSettings(("bayesbin", "bop"), "two-moons", **small), folder)
    return folder


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tasks"
    run_continual(TASKS, folder)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def same_bytes(one, other, names=FILES):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def interrupted(monkeypatch, after):
    """Let the training of two epochs end with Ctrl-C after so many of them."""
    real_fit = train_module.fit

    def fit(*args, callbacks, **kwargs):
        def stop(report):
            if report.epoch == after:
                raise KeyboardInterrupt

        return real_fit(*args, callbacks=[*callbacks, stop], **kwargs)

    monkeypatch.setattr(train_module, "fit", fit)


def no_training(monkeypatch):
    def fit(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(train_module, "fit", fit)


# What a run holds


def test_a_run_holds_all_that_evaluation_needs(trained):
    run = load_run(trained)
    assert run.settings == SETTINGS and run.name == "run"
    assert list(run.posterior) == ["0.weight", "3.weight"]
    assert run.posterior["0.weight"].natural.dtype == torch.float32  # whatever the ambient default
    assert len(run.record["history"]) == 2
    assert set(run.record["validation"]) == {"accuracy", "nll", "ece"}
    assert run.record["data"]["training"] + run.record["data"]["validation"] == 200
    assert run.record["environment"]["torch"] and run.record["kind"] == "network"
    scores = evaluate_run(run, num_samples=2)
    assert 0.0 <= scores["mean"]["accuracy"] <= 1.0 and scores["num_samples"] == 2
    assert evaluate_run(load_run(trained), num_samples=2) == scores
    assert str(trained) not in (trained / "run.json").read_text()


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("bayesbin", {}),
        ("bayesbin", {"guide": "nested", "sharing": ["filter", "weight"], "optimizer": "adam"}),
        ("bayesbin", {"guide": "random-effects", "estimator": "concrete", "temperature": 0.3}),
        ("bop", {"gamma": 1e-3}),
        ("snapquant", {"num_samples": 2}),
        ("slb", {"hold": [0.1, 0.8]}),
        ("bayesbinn", {"lr": 0.2, "schedule": "constant"}),
    ],
    ids=str,
)
def test_a_record_says_the_method_whole_and_rebuilds_its_run(recipe, given, tmp_path):
    """Of the record alone: what is in it survives JSON, and defaults that change tomorrow do not count."""
    settings = dataclasses.replace(SETTINGS, recipe=recipe, recipe_settings=given, given=None)
    run = train_run(settings, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_bytes())["recipe"]
    assert record["name"] == recipe and set(record["given"]) == set(given)
    assert record["settings"] == settings_of(recipe, **given)
    assert record["settings"] | given == record["settings"]
    if recipe == "bop":
        assert "threshold" in record["settings"] and "kl_weight" not in record["settings"]
    assert settings_from(run.record) == settings == run.settings
    again = rebuild(tmp_path / "run", tmp_path / "again")
    assert same_bytes(tmp_path / "run", tmp_path / "again") and again.settings == settings
    assert {**again.record["recipe"]} == {**run.record["recipe"]}


def test_a_rebuilt_run_does_not_depend_on_the_defaults_of_the_day(trained, tmp_path, monkeypatch):
    from bayesbin.experiments import settings as settings_module

    def other_defaults(name, **given):
        return settings_of(name, **{"lr": 7.0, "init_scale": 3.0, **given})

    monkeypatch.setattr(settings_module, "settings_of", other_defaults)
    assert RunSettings("two-moons").recipe_settings["lr"] == 7.0
    rebuild(trained, tmp_path / "again")
    assert same_bytes(trained, tmp_path / "again")


def test_a_comparison_and_a_sequence_are_rebuilt_too(compared, sequence, tmp_path):
    rebuild(compared, tmp_path / "comparison")
    for name in ("bayesbin_seed0", "bop_seed0"):
        assert same_bytes(compared / name, tmp_path / "comparison" / name)
    rows = [open_run(folder).rows for folder in (compared, tmp_path / "comparison")]
    names = ("recipe", "accuracy", "nll", "ece", "flips_per_step")
    assert [{n: row[n] for n in names} for row in rows[0]] == [
        {n: row[n] for n in names} for row in rows[1]
    ]
    rebuild(sequence, tmp_path / "tasks")
    for task in ("task-1", "task-2"):
        assert same_bytes(sequence / task, tmp_path / "tasks" / task)
    records = [read_record(folder) for folder in (sequence, tmp_path / "tasks")]
    assert records[0]["R"][1] == records[1]["R"][1] and records[0]["files"] == records[1]["files"]


def test_a_run_of_a_comparison_is_the_run_that_train_makes(trained, compared):
    assert same_bytes(trained, compared / "bayesbin_seed0")
    run = load_run(compared / "bayesbin_seed0")
    assert run.settings == SETTINGS
    assert run.record["scores"] == evaluate_run(run, num_samples=3)


# Continuing


def test_the_same_training_again_finds_it_finished(trained, monkeypatch):
    no_training(monkeypatch)
    before = (trained / "run.json").stat().st_mtime_ns
    assert train_run(SETTINGS, trained).record == load_run(trained).record
    assert (trained / "run.json").stat().st_mtime_ns == before


def test_the_callers_generator_is_left_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train_run(dataclasses.replace(SETTINGS, epochs=1), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_an_interrupted_run_continues_to_the_same_end(trained, tmp_path, monkeypatch):
    interrupted(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        train_run(SETTINGS, tmp_path / "run")
    with pytest.raises(ValueError, match="interrupted"):
        load_run(tmp_path / "run")
    monkeypatch.undo()
    assert len(train_run(SETTINGS, tmp_path / "run").record["history"]) == 2
    assert same_bytes(trained, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"width": 9}, "width 8 there, 9 now"),
        ({"batch_size": 7}, "batch_size 64 there, 7 now"),
        ({"validation": 0.2}, "validation 0.1 there, 0.2 now"),
        ({"dataset": "digits"}, "dataset two-moons there, digits now"),
        ({"data_seed": 1}, "data_seed 0 there, 1 now"),
        ({"recipe": "bop", "recipe_settings": {}}, "recipe name bayesbin there, bop now"),
        ({"recipe_settings": {"lr": 0.2}}, "lr 0.1 there, 0.2 now"),
        ({"recipe_settings": {"guide": "nested"}}, "guide mean-field there, nested now"),
        ({"recipe_settings": {"schedule": "constant"}}, "schedule cosine there, constant now"),
        ({"epochs": 1}, "at least 2 epochs"),
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_differs_is_said_before_anything_is_trained(
    changes, said, finished, copied, monkeypatch
):
    if not finished:
        write_record(copied, read_record(copied) | {"finished": False})
    no_training(monkeypatch)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=said):
        train_run(dataclasses.replace(SETTINGS, **changes, given=None), copied)
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def idx_files(folder, seed):
    """Images and labels of two classes, in the format of MNIST."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for part, count in (("train", 30), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        for kind, content in (("images-idx3", images), ("labels-idx1", np.arange(count) % 2)):
            sizes = b"".join(size.to_bytes(4, "big") for size in content.shape)
            path = folder / f"{part}-{kind}-ubyte"
            path.write_bytes(bytes([0, 0, 8, content.ndim]) + sizes + bytes(content.astype("u1")))
    return folder


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_of_the_same_name_are_refused_and_the_same_in_another_folder_are_not(
    finished, tmp_path, monkeypatch
):
    a, b = idx_files(tmp_path / "a", 0), idx_files(tmp_path / "b", 1)
    settings = dataclasses.replace(SETTINGS, dataset="idx", data_folder=str(a))
    with monkeypatch.context() as patch:
        if not finished:
            interrupted(patch, after=1)
        try:
            train_run(settings, tmp_path / "run")
        except KeyboardInterrupt:
            assert not finished
    with pytest.raises(ValueError, match=r"data sha256 \w{12}\.\.\. there, \w{12}\.\.\. now"):
        train_run(dataclasses.replace(settings, data_folder=str(b)), tmp_path / "run")
    assert read_record(tmp_path / "run", finished=False)["data"]["folder"] == str(a)
    moved = shutil.copytree(a, tmp_path / "moved")
    run = train_run(dataclasses.replace(settings, data_folder=str(moved)), tmp_path / "run")
    scores = evaluate_run(
        run, num_samples=1
    )  # the record's folder is where the data are looked for
    shutil.rmtree(a)
    shutil.rmtree(moved)
    monkeypatch.setenv("BAYESBIN_DATA", str(b))
    with pytest.raises(data.DataError, match="trained on"):
        evaluate_run(load_run(tmp_path / "run"), num_samples=1)
    again = idx_files(tmp_path / "again", 0)
    assert evaluate_run(run, num_samples=1, data_folder=again) == scores


def test_another_machine_is_named_and_does_not_end_a_run(copied, trained, monkeypatch):
    for name in FILES:
        (copied / name).unlink()
    record = read_record(copied)
    begun = {k: record[k] for k in ("kind", "settings", "recipe", "architecture", "data")}
    there = record["environment"] | {"torch": "1.0", "threads": 64}
    write_record(copied, begun | {"environment": there, "finished": False})
    with pytest.warns(UserWarning, match=r"torch 1\.0 there, .* now; threads 64 there, 1 now"):
        run = train_run(SETTINGS, copied)
    assert same_bytes(copied, trained) and run.record["environment"] == there


# Lengthening


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("bayesbin", {"schedule": "constant"}),
        ("bop", {"schedule": "constant", "last_gamma": 1e-4}),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_more_epochs_give_the_run_that_had_them_from_the_start(
    recipe, given, finished, tmp_path, monkeypatch
):
    settings = dataclasses.replace(SETTINGS, recipe=recipe, recipe_settings=given, given=None)
    longer = dataclasses.replace(settings, epochs=4)
    with monkeypatch.context() as patch:
        if not finished:
            interrupted(patch, after=1)
        try:
            train_run(settings, tmp_path / "run")
        except KeyboardInterrupt:
            assert not finished
    run = train_run(longer, tmp_path / "run")
    assert run.settings.epochs == 4 and len(run.record["history"]) == 4
    train_run(longer, tmp_path / "straight")
    assert same_bytes(tmp_path / "run", tmp_path / "straight")
    with pytest.raises(ValueError, match="at least 4 epochs"):
        train_run(settings, tmp_path / "run")


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        ("bayesbin", {}, "lr of BayesianLearningRule"),
        ("ste", {}, "lr of Adam"),
        ("bop", {"schedule": "constant"}, "gamma of Bop"),
        ("recu", {"schedule": "constant"}, "tau depends"),
    ],
)
def test_a_schedule_that_ends_with_the_training_cannot_be_lengthened(
    recipe, given, said, tmp_path, monkeypatch
):
    settings = dataclasses.replace(SETTINGS, recipe=recipe, recipe_settings=given, given=None)
    train_run(settings, tmp_path / "run")
    no_training(monkeypatch)
    with pytest.raises(ValueError, match=f"{said}.*another folder.*schedule=constant"):
        train_run(dataclasses.replace(settings, epochs=4), tmp_path / "run")
    assert load_run(tmp_path / "run").settings == settings


def test_a_run_that_is_being_lengthened_is_still_the_finished_one(tmp_path, monkeypatch):
    constant = {"recipe_settings": {"schedule": "constant"}, "given": None}
    settings = dataclasses.replace(SETTINGS, **constant)
    longer = dataclasses.replace(settings, epochs=4)
    train_run(settings, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupted(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            train_run(longer, tmp_path / "run")
    assert load_run(tmp_path / "run").settings == settings
    assert train_run(settings, tmp_path / "run").settings == settings
    # There is a checkpoint of three epochs, which two could not be continued from.
    with pytest.raises(ValueError, match="at least 4 epochs"):
        train_run(dataclasses.replace(settings, epochs=3), tmp_path / "run")
    train_run(longer, tmp_path / "run")
    train_run(longer, tmp_path / "straight")
    assert same_bytes(tmp_path / "run", tmp_path / "straight")


# One writer


WRITERS = {
    "train": lambda folder: train_run(SETTINGS, folder),
    "compare": lambda folder: compare(
        ComparisonSettings(("bop",), "two-moons", width=8, depth=1, epochs=2), folder
    ),
    "continual": lambda folder: run_continual(TASKS, folder),
}


@pytest.mark.parametrize("verb", WRITERS)
def test_a_second_writer_is_told(verb, tmp_path):
    folder = tmp_path / "run"
    with one_writer(folder):
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on "):
            WRITERS[verb](folder)
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_comparison_leaves_alone_a_run_that_another_process_is_writing(tmp_path):
    WRITERS["compare"](tmp_path / "c")
    more = ComparisonSettings(("bop", "ste"), "two-moons", width=8, depth=1, epochs=2)
    with (
        one_writer(tmp_path / "c" / "ste_seed0"),
        pytest.raises(FolderInUseError, match="ste_seed0"),
    ):
        compare(more, tmp_path / "c")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_of_two_processes_at_once_one_trains_and_the_other_is_told(tmp_path):
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from bayesbin.experiments import RunSettings, train_run\n"
        "settings = RunSettings('two-moons', width=8, depth=1, epochs=400)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "train_run(settings, sys.argv[1])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    processes: list[Any] = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    deadline = time.monotonic() + 60
    while all(p.poll() is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    first = next(p for p in processes if p.poll() is not None)
    other = processes[1 - processes.index(first)]
    said = first.communicate()[1]
    assert first.returncode == 1 and f"process {other.pid} on " in said
    other.kill()
    other.communicate()
    # Its lock has died with it.
    settings = RunSettings("two-moons", width=8, depth=1, epochs=400)
    with one_writer(tmp_path / "run"):
        assert read_record(tmp_path / "run", finished=False)["settings"] == settings.to_dict()


# Numbers that JSON does not have


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_kept(value, tmp_path, monkeypatch):
    from bayesbin.infer import validation

    monkeypatch.setattr(
        validation,
        "likelihood_scores",
        lambda *_: {"accuracy": 0.5, "nll": value, "ece": 0.1},
    )
    run = train_run(SETTINGS, tmp_path / "run")
    json.loads((tmp_path / "run" / "run.json").read_bytes(), parse_constant=lambda text: 1 / 0)
    for record in (run.record, load_run(tmp_path / "run").record):
        assert repr(record["validation"]["nll"]) == repr(value)
        assert repr(record["history"][-1]["validation_nll"]) == repr(value)
    monkeypatch.undo()
    assert repr(train_run(SETTINGS, tmp_path / "run").record["validation"]["nll"]) == repr(value)
    assert evaluate_run(run, num_samples=1)["mean"]["nll"] > 0


@pytest.mark.parametrize(
    "value",
    [
        {"float": 1.0},
        {"float": "text"},
        {"float": "nan", "more": 1},
        ["nan", "inf"],
        {"a": [1, None, True, "x", {"b": -0.0}]},
        1e308,
        5e-324,
    ],
    ids=str,
)
def test_whatever_else_a_record_holds_comes_back_as_it_was(value, tmp_path):
    write_record(tmp_path, {"kind": "network", "finished": True, "value": value})
    assert repr(read_record(tmp_path)["value"]) == repr(value)


def test_the_run_with_a_score_that_is_not_a_number_is_not_the_best(compared, tmp_path):
    folder = shutil.copytree(compared, tmp_path / "copy")
    best = open_run(folder).best
    record = read_record(folder / best)
    for value in (math.nan, math.inf):
        write_record(folder / best, record | {"validation": {"nll": value}})
        assert open_run(folder).best != best


# Any kind of run


def test_one_network_of_a_run_of_any_kind(trained, compared, sequence):
    assert choose_run(trained).folder == trained
    best = open_run(compared).best
    assert choose_run(compared).name == best
    nll = {
        name: load_run(compared / name).record["validation"]["nll"]
        for name in open_run(compared).names
    }
    assert nll[best] == min(nll.values()) and len(nll) == 2
    assert choose_run(compared, run="bop_seed0").settings.recipe == "bop"
    last, first = choose_run(sequence), choose_run(sequence, task=1)
    assert (last.number, first.number) == (2, 1) and last.name == "tasks, task 2"
    for run in (last, first):
        file = sequence / f"task-{run.number}" / "posterior.safetensors"
        assert run.posterior.digest == type(run.posterior).load(file).digest


def test_scores_after_a_task_are_those_of_the_record(sequence):
    record = read_record(sequence)
    for number in (1, 2):
        scores = evaluate_run(choose_run(sequence, task=number), num_samples=2)
        found = [row["mean"]["accuracy"] for row in scores["tasks"]]
        # The learner's own kernels round differently: a few answers may change.
        assert found == pytest.approx(record["R"][number - 1][:number], abs=0.01)
        assert scores["mean"]["accuracy"] == pytest.approx(np.mean(found))
        assert {"mode", "mean", "draws"} < set(scores)


@pytest.mark.parametrize(
    ("kind", "choice", "said"),
    [
        (
            "trained",
            {"run": "bop_seed0"},
            "expected a comparison for --run bop_seed0, got a run of one",
        ),
        (
            "trained",
            {"task": 1},
            "expected a sequence of tasks for --task 1, got a run of one network",
        ),
        ("compared", {"task": 1}, "expected a sequence of tasks for --task 1, got a comparison"),
        ("compared", {"run": "magic"}, "one of bayesbin_seed0, bop_seed0; got 'magic'"),
        ("compared", {"run": "../run"}, "one of bayesbin_seed0, bop_seed0"),
        ("sequence", {"run": "x"}, "expected a comparison for --run x, got a sequence of tasks"),
        ("sequence", {"task": 0}, "task to be a whole number from 1 to 2; got 0"),
        ("sequence", {"task": 3}, "task to be a whole number from 1 to 2; got 3"),
    ],
)
def test_a_choice_that_a_run_does_not_have_is_refused(kind, choice, said, request):
    with pytest.raises(ValueError, match=said):
        choose_run(request.getfixturevalue(kind), **choice)


def test_a_run_predicts_raw_and_preprocessed_inputs_alike(sequence):
    run = choose_run(sequence)
    splits = data.digits()
    assert splits.preprocessing is not None
    divisor, mean, std = splits.preprocessing
    raw = np.random.default_rng(0).integers(0, 17, (5, 8, 8))
    done = (raw / divisor - mean) / std
    found = predict_run(run, raw.astype(np.uint8), num_samples=2)
    same = predict_run(run, done, num_samples=2)
    forced = predict_run(run, raw.astype(np.float64), num_samples=2, preprocess=True)
    np.testing.assert_allclose(found.probs, same.probs, atol=1e-6)
    np.testing.assert_allclose(found.probs, forced.probs, atol=0)
    for wrong in (np.zeros((5, 63)), np.zeros(64), np.zeros((0, 64)), np.array([["a"] * 64])):
        with pytest.raises(ValueError, match="expected"):
            predict_run(run, wrong)
    with pytest.raises(ValueError, match="NaN"):
        predict_run(run, np.full((1, 64), np.nan))


def test_folders_of_one_kind_are_not_continued_as_another(trained, compared, sequence):
    for folder, verb in (
        (trained, "compare"),
        (trained, "continual"),
        (compared, "train"),
        (sequence, "compare"),
    ):
        with pytest.raises(ValueError, match=r"expected a .* in .*, got a .*; name another folder"):
            WRITERS[verb](folder)
    with pytest.raises(ValueError, match="expected a run of one network"):
        load_run(compared)


# Damage


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for verb in WRITERS:
        with pytest.raises(ValueError, match=r"new or empty folder, or a run; got thesis\.txt"):
            WRITERS[verb](tmp_path)
        with pytest.raises(ValueError, match="got a file"):
            WRITERS[verb](tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["run.json", *FILES])
def test_damage_is_named(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(CorruptFileError, match=name):
        load_run(copied)


def test_a_missing_file_is_named(copied, sequence, tmp_path):
    (copied / "network.safetensors").unlink()
    with pytest.raises(CorruptFileError, match="missing"):
        load_run(copied)
    folder = shutil.copytree(sequence, tmp_path / "tasks")
    next((folder / "checkpoints").glob("task-*1.ckpt")).unlink()
    with pytest.raises(CorruptFileError, match="after task 1 is missing"):
        choose_run(folder, task=1)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"run"', '{"format": "something else"}', "{}"])
def test_other_json_is_no_run(text, copied):
    (copied / "run.json").write_text(text)
    with pytest.raises(CorruptFileError, match="not a run"):
        open_run(copied)


def test_other_formats_and_versions_are_refused(copied):
    record = json.loads((copied / "run.json").read_bytes())
    (copied / "run.json").write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        load_run(copied)
    (copied / "run.json").write_text("[" * 100_000)
    with pytest.raises(CorruptFileError, match="expected JSON"):
        load_run(copied)
    (copied / "run.json").write_text("no JSON")
    with pytest.raises(CorruptFileError, match="expected JSON"):
        load_run(copied)


def test_other_data_are_refused(trained, monkeypatch):
    run = load_run(trained)
    other = data.load("two-moons", seed=5)
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: other)
    with pytest.raises(data.DataError, match="trained on"):
        evaluate_run(run, num_samples=1)


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "imagenet"},
        {"recipe": "magic"},
        {"recipe_settings": {"magic": 1}},
        {"recipe_settings": {"lr": 0.0}},
        {"recipe_settings": {"lr": float("nan")}},
        {"recipe_settings": {"guide": "full"}},
        {"recipe": "bop", "recipe_settings": {"kl_weight": 0.03}},
        {"epochs": 0},
        {"epochs": True},
        {"width": 0},
        {"depth": 1.5},
        {"batch_size": 0},
        {"validation": 0.0},
        {"validation": 1.0},
        {"seed": -1},
        {"seed": None},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    (name, value), *_ = reversed(wrong.items())
    with pytest.raises(ValueError, match=next(iter(value)) if isinstance(value, dict) else name):
        RunSettings(**({"dataset": "digits"} | wrong))


def test_numbers_of_numpy_and_torch_are_plain_in_a_record():
    settings = RunSettings(
        "digits", width=np.int64(8), epochs=torch.tensor(2), validation=np.float32(0.5),
        recipe_settings={"lr": np.float64(0.2)},
    )  # fmt: skip
    written = json.dumps([settings.to_dict(), settings.recipe_settings])
    assert '"width": 8' in written and '"lr": 0.2' in written
    assert settings == RunSettings(
        "digits", width=8, epochs=2, validation=0.5, recipe_settings={"lr": 0.2}
    )


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], {}),
        (["lr=0.2"], {"ste": {"lr": 0.2}, "recu": {"lr": 0.2}}),
        (["lr=0.2", "ste.lr=0.1"], {"ste": {"lr": 0.1}, "recu": {"lr": 0.2}}),
        (["recu.tau=0.9"], {"recu": {"tau": 0.9}}),
    ],
)
def test_settings_of_several_recipes(texts, found):
    assert settings_for(["ste", "recu"], texts) == found


@pytest.mark.parametrize("text", ["tau=0.9", "bop.gamma=1", "lr", "ste.magic=1"])
def test_settings_that_a_recipe_does_not_have(text):
    with pytest.raises(ValueError, match=r"expected a setting|has the settings"):
        settings_for(["ste", "recu"], [text])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"recipes": ()}, "at least one recipe"),
        ({"recipes": ("magic",)}, "magic"),
        ({"seeds": 0}, "seeds"),
        ({"num_samples": 0}, "num_samples"),
        ({"recipe_settings": {"ste": {"lr": 1.0}}}, "got those of ste"),
        ({"recipe_settings": {"bop": {"lr": 1.0}}}, "got lr"),
        ({"epochs": 0}, "epochs"),
    ],
    ids=str,
)
def test_comparisons_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ComparisonSettings(**{"recipes": ("bop",), "dataset": "digits", **wrong})


def test_differences_are_found_at_any_depth():
    there = {"a": {"b": [1, 2], "same": 0}, "gone": 1, "folder": "x"}
    here = {"a": {"b": [1, 3], "same": 0}, "new": "n" * 50, "folder": "y"}
    assert differences(there, here) == [
        "b [1, 2] there, [1, 3] now",
        "gone 1 there, none now",
        f"new none there, {'n' * 12}... now",
    ]


def test_the_environment_is_plain_json():
    assert json.loads(json.dumps(environment())) == environment()
    assert environment()["processor"]
