"""Comparing recipes from the command line, and training one."""

from __future__ import annotations

import json

import pytest

from bayesbin.experiments import FlipCounter, load_run
from bayesbin.experiments.cli import main
from bayesbin.plots import plot_learning_curves, plot_small_temperature

SMALL = ["--epochs", "2", "--width", "8", "--depth", "1", "--no-progress"]
COMPARE = ["compare", "--dataset", "two-moons", *SMALL, "--num-samples", "4"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    names = ["--recipes", "bayesbin", "bop", "slb", "--seeds", "2"]
    assert main([*COMPARE, *names, "--out", str(folder)]) == 0
    return folder


def test_compare_writes_a_file_per_run_a_table_and_a_figure(compared):
    runs = sorted(path.name for path in compared.glob("*_seed?.json"))
    assert runs == [f"{name}_seed{k}.json" for name in ("bayesbin", "bop", "slb") for k in (0, 1)]
    assert (compared / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    lines = (compared / "comparison.md").read_text().splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["bayesbin", "bop", "slb"]
    assert "[" in lines[2] and "[" not in lines[3]  # only a posterior has a spread over draws


def test_the_record_of_a_run(compared):
    posterior, point = (
        json.loads((compared / f"{name}_seed0.json").read_text()) for name in ("bayesbin", "bop")
    )
    assert posterior["scores"]["num_samples"] == 4 and posterior["bits_per_weight"] > 0.5
    assert point["bits_per_weight"] < 1e-6 and point["scores"]["mode"] == point["scores"]["mean"]
    for record in (posterior, point):
        assert len(record["history"]) == len(record["flips"]) == 2
        assert all(0.0 <= rate <= 1.0 for rate in record["flips"])
        assert record["peak_megabytes"] > 50 and record["seconds"] > 0
        assert record["environment"]["torch"]


def test_finished_runs_are_not_repeated_and_others_are_added(compared, capsys):
    path = compared / "bop_seed0.json"
    before = path.stat().st_mtime_ns
    names = ["--recipes", "bop", "ste", "--json"]
    assert main([*COMPARE, *names, "--out", str(compared)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["recipe"] for row in report["rows"]] == ["bop", "ste"]
    assert path.stat().st_mtime_ns == before and (compared / "ste_seed0.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipes", "magic"], "expected recipes from all, bayesbin,"),
        (["--seeds", "0"], "expected seeds"),
        (["--recipes", "bop", "--batch-size", "7"], "batch_size 100 there, 7 now"),
    ],
)
def test_what_compare_refuses(arguments, message, compared, capsys):
    assert main([*COMPARE, *arguments, "--out", str(compared)]) == 1
    assert message in capsys.readouterr().err


def test_an_interrupted_comparison_continues(tmp_path, monkeypatch, capsys):
    """The second epoch is interrupted; continued, the run is the one that nothing interrupted."""
    finish = FlipCounter.finish_epoch

    def interrupted(self, report):
        finish(self, report)
        if report.epoch == 1:
            raise KeyboardInterrupt

    command = [*COMPARE, "--recipes", "binaryconnect-stochastic", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(FlipCounter, "finish_epoch", interrupted)
        assert main([*command, str(tmp_path / "a")]) == 130
    assert main([*command, str(tmp_path / "a")]) == 0
    assert main([*command, str(tmp_path / "b")]) == 0
    a, b = (
        json.loads((tmp_path / name / "binaryconnect-stochastic_seed0.json").read_text())
        for name in "ab"
    )
    assert a["scores"] == b["scores"] and len(a["flips"]) == 2


def test_train_with_a_recipe(tmp_path, capsys):
    command = ["train", "two-moons", *SMALL, "--recipe", "recu", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    run = load_run(tmp_path / "run")
    assert run.config.recipe == "recu" and run.config.lr is None
    assert bool((run.posterior["0.weight"].natural.abs() == 40).all())
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["mode"] == pytest.approx(table["mean"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe", "magic"], "expected recipe to be one of bayesbin,"),
        (["--recipe", "bop", "--lr", "0.1"], "got lr beside bop"),
        (["--recipe", "bop", "--estimator", "concrete"], "got estimator beside bop"),
    ],
)
def test_what_training_a_recipe_refuses(arguments, message, tmp_path, capsys):
    assert main(["train", "two-moons", *SMALL, *arguments, "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_learning_curves_draw_a_line_per_method_and_a_band_over_seeds(compared):
    histories = {
        name: [
            json.loads((compared / f"{name}_seed{k}.json").read_text())["history"] for k in (0, 1)
        ]
        for name in ("bayesbin", "slb")
    }
    for axes in plot_learning_curves(histories).axes:
        assert [line.get_label() for line in axes.lines] == ["bayesbin", "slb"]
        assert len(axes.collections) == 2
    with pytest.raises(ValueError, match="at least one method"):
        plot_learning_curves({})
    with pytest.raises(ValueError, match="validation scores in each epoch of 'a'"):
        plot_learning_curves({"a": [[{"epoch": 1}]]})


def test_the_figure_of_small_temperatures_wants_an_entry_for_each():
    with pytest.raises(ValueError, match=r"with 2 entries.*got 0 for a"):
        plot_small_temperature([0.1, 0.2], {"a": []})


def test_images_are_not_for_a_perceptron(monkeypatch, tmp_path, capsys):
    import torch

    from bayesbin import data

    pictures = data.Dataset(torch.zeros(20, 3, 4, 4), torch.arange(20) % 2, "pictures", 2)
    monkeypatch.setattr(data, "load", lambda *_: data.Splits(pictures, pictures))
    assert main([*COMPARE, "--recipes", "bop", "--out", str(tmp_path / "a")]) == 1
    assert "expected vectors with labels" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
