"""Comparing recipes from the command line, and training one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bayesbin.experiments import load_run, open_run
from bayesbin.experiments.cli import main
from bayesbin.experiments.comparison import Measurement
from bayesbin.plots import plot_learning_curves, plot_small_temperature

SMALL = ["--epochs", "2", "--width", "8", "--depth", "1", "--no-progress"]
COMPARE = ["compare", "--dataset", "two-moons", *SMALL, "--num-samples", "4"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "methods"
    names = ["--recipes", "bayesbin", "bop", "slb", "--seeds", "2"]
    assert main([*COMPARE, *names, "--out", str(folder)]) == 0
    return folder


def printed_json(capsys):
    return json.loads(capsys.readouterr().out)


def test_compare_writes_a_run_per_recipe_and_seed_a_table_and_a_figure(compared):
    runs = sorted(path.name for path in compared.glob("*_seed?"))
    assert runs == [f"{name}_seed{k}" for name in ("bayesbin", "bop", "slb") for k in (0, 1)]
    assert (compared / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    lines = (compared / "comparison.md").read_text().splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["bayesbin", "bop", "slb"]
    assert "[" in lines[2] and "[" not in lines[3]  # only a posterior has a spread over draws


def test_the_record_of_a_run(compared):
    posterior, point = (load_run(compared / f"{name}_seed0").record for name in ("bayesbin", "bop"))
    assert posterior["scores"]["num_samples"] == 4 and posterior["bits_per_weight"] > 0.5
    assert point["bits_per_weight"] < 1e-6 and point["scores"]["mode"] == point["scores"]["mean"]
    for record in (posterior, point):
        assert len(record["history"]) == len(record["flips"]) == 2
        assert all(0.0 <= rate <= 1.0 for rate in record["flips"])
        assert record["peak_megabytes"] > 50 and record["seconds"] > 0
        assert record["environment"]["torch"]


def test_finished_runs_are_not_repeated_and_others_are_added(compared, capsys):
    path = compared / "bop_seed0" / "run.json"
    before = path.stat().st_mtime_ns
    options = ["--recipe", "bop", "ste", "--seed", "1", "--json"]
    assert main([*COMPARE, *options, "--out", str(compared)]) == 0
    report = printed_json(capsys)
    rows = [(row["recipe"], row["seeds"]) for row in report["rows"]]
    assert rows == [
        ("bayesbin", 2),
        ("bop", 2),
        ("slb", 2),
        ("ste", 1),
    ]  # all that the folder holds
    assert report["runs"][-1] == "ste_seed1" and path.stat().st_mtime_ns == before
    table = (compared / "comparison.md").read_text()
    assert table.strip() == str(open_run(compared))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipes", "magic"], "recipe to be one of bayesbin,"),
        (["--seeds", "0"], "expected seeds"),
        (["--recipes", "bop", "--batch-size", "7"], "batch_size 100 there, 7 now"),
        (["--recipes", "bop", "--set", "gamma=1e-3"], "gamma 0.0001 there, 0.001 now"),
        (["--recipes", "bop", "--set", "lr=0.1"], "'bop' has the settings"),
        (["--recipes", "bop", "ste", "--set", "ste.gamma=0.1"], "'ste' has the settings"),
    ],
)
def test_what_compare_refuses(arguments, message, compared, capsys):
    assert main([*COMPARE, *arguments, "--out", str(compared)]) == 1
    assert message in capsys.readouterr().err


def test_settings_for_all_recipes_and_for_one(tmp_path, capsys):
    options = ["--recipes", "ste", "recu", "--set", "lr=0.2", "ste.lr=0.05", "--json"]
    assert main([*COMPARE, *options, "--out", str(tmp_path / "c")]) == 0
    rates = [load_run(tmp_path / "c" / name).settings.recipe_settings["lr"] for name in
             printed_json(capsys)["runs"]]  # fmt: skip
    assert rates == [0.05, 0.2]


def test_an_interrupted_comparison_continues(tmp_path, monkeypatch, capsys):
    """The second epoch is interrupted; continued, the run is the one that nothing interrupted."""
    finish = Measurement.finish_epoch

    def interrupted(self, report):
        finish(self, report)
        if report.epoch == 1:
            raise KeyboardInterrupt

    command = [*COMPARE, "--recipes", "binaryconnect-stochastic", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "finish_epoch", interrupted)
        assert main([*command, str(tmp_path / "a")]) == 130
    assert main(["evaluate", str(tmp_path / "a")]) == 1
    assert "interrupted" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "a")]) == 0
    assert main([*command, str(tmp_path / "b")]) == 0
    a, b = (load_run(tmp_path / n / "binaryconnect-stochastic_seed0").record for n in "ab")
    assert a["scores"] == b["scores"] and a["flips"] == b["flips"] and len(a["flips"]) == 2
    assert a["files"] == b["files"]


def test_the_winner_can_be_scored_reported_packed_and_predicted_with(compared, tmp_path, capsys):
    """By its name or by its validation score, every verb takes the same run of a comparison."""
    best = open_run(compared).best
    np.save(tmp_path / "x.npy", np.zeros((2, 2), dtype=np.float32))
    for options, name in (([], best), (["--run", "bop_seed1"], "bop_seed1")):
        capsys.readouterr()
        assert main(["evaluate", str(compared), *options, "--num-samples", "4", "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["run"] == name
        assert json.loads(said.out)["mode"] == load_run(compared / name).record["scores"]["mode"]
        assert ("lowest validation NLL" in said.err) == (not options)
        out = str(tmp_path / "m.bbn")
        assert (
            main(["pack", str(compared), *options, "--samples", "4", "--out", out, "--json"]) == 0
        )
        packed = printed_json(capsys)
        assert packed["provenance"]["run"] == name
        digest = load_run(compared / name).digest_of("posterior.safetensors")
        assert packed["provenance"]["posterior sha256"] == digest
        assert main(["predict", out, str(tmp_path / "x.npy"), "--json"]) == 0
        rows = printed_json(capsys)["rows"]
        folder = [str(compared), str(tmp_path / "x.npy"), *options, "--num-samples", "4"]
        assert main(["predict", *folder, "--json"]) == 0
        assert printed_json(capsys)["rows"] == rows
        page = tmp_path / "r.html"
        assert (
            main(["report", str(compared), *options, "--num-samples", "2", "--out", str(page)]) == 0
        )
        assert "Recipes side by side" in page.read_text() and f"is about {name}" in page.read_text()


def test_train_with_a_recipe(tmp_path, capsys):
    command = ["train", "two-moons", *SMALL, "--recipe", "recu", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    run = load_run(tmp_path / "run")
    assert run.settings.recipe == "recu" and run.settings.recipe_settings["tau"] == 0.85
    assert bool((run.posterior["0.weight"].natural.abs() == 40).all())
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "2", "--json"]) == 0
    table = printed_json(capsys)
    assert table["mode"] == pytest.approx(table["mean"])


def test_learning_curves_draw_a_line_per_method_and_a_band_over_seeds(compared):
    histories = {
        name: [load_run(compared / f"{name}_seed{k}").record["history"] for k in (0, 1)]
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
