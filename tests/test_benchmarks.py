"""The benchmark scripts run, write their JSON, and do not repeat what is there."""

from __future__ import annotations

import gzip
import itertools
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import EXAMPLES, run_script

ROOT = Path(__file__).parent.parent


def run(script: str, *arguments: str, cwd: Path) -> str:
    return run_script(EXAMPLES / "benchmarks" / script, *arguments, cwd=cwd)


@pytest.fixture
def answers(request, monkeypatch):
    """Quick: what the processes print that the script would start. Slow: it starts them (None)."""
    if request.param is None:
        return
    real = subprocess.run

    def answer(command, *args, **options):
        if str(command[0]).endswith(("python", "cmake", "peak")) or command[0] == sys.executable:
            return SimpleNamespace(stdout=request.param, returncode=0)
        return real(command, *args, **options)

    monkeypatch.setattr(subprocess, "run", answer)


def processes(printed: object) -> pytest.MarkDecorator:
    """Each test twice: with processes that answer at once, and, if slow tests run, with real ones."""
    real = pytest.param(None, marks=pytest.mark.slow, id="real processes")
    return pytest.mark.parametrize(
        "answers", [pytest.param(printed, id="quick"), real], indirect=True
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of idx files like MNIST's, of noise."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 30)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def test_mnist_mlp(images, tmp_path):
    arguments = ("--smoke", "--no-progress", "--data", str(images), "--out", "results")
    table = run("mnist_mlp.py", *arguments, cwd=tmp_path)
    records = sorted((tmp_path / "results").glob("*.json"))
    assert len(records) == 3
    for path in records:
        record = json.loads(path.read_text())
        assert 0.0 <= record["scores"]["mean"]["accuracy"] <= 1.0
        # The published rule's posterior has no spread; ours has.
        saturated = record["method"].startswith("bayesbinn")
        assert (record["entropy_bits_per_layer"][-1] < 1e-3) == saturated
        assert (record["scores"]["draws"]["std"]["nll"] == 0.0) == saturated
    written = [path.stat().st_mtime_ns for path in records]
    assert run("mnist_mlp.py", *arguments, cwd=tmp_path) == table
    assert [path.stat().st_mtime_ns for path in records] == written


@pytest.mark.slow
def test_plate_scores(tmp_path):
    table = run("plate_scores.py", "--smoke", "--out", "scores.json", cwd=tmp_path)
    record = json.loads((tmp_path / "scores.json").read_text())
    for part in record["networks"]:
        assert all(row["by plate"] < 0.2 * row["whole"] for row in part["rows"][:7])
    assert run("plate_scores.py", "--report", "scores.json", cwd=tmp_path) == table


def test_methods(images, tmp_path):
    names = ("bayesbinn", "bop")
    arguments = ("--smoke", "--no-progress", "--data", str(images), "--dataset", "mnist")
    arguments = (*arguments, "--out", "results", "--only", *names)
    table = run("methods.py", *arguments, cwd=tmp_path)
    records = sorted((tmp_path / "results").glob("*.json"))
    assert len(records) == 2 * 2 * 2  # recipe and twin, with and without normalisation
    for path in records:
        record = json.loads(path.read_text())
        assert 0.0 <= record["scores"]["mean"]["accuracy"] <= 1.0
        if record["kind"] == "recipe":
            draws = {"bayesbinn": 2, "bop": 1}[record["recipe"]]
            assert record["scores"]["num_samples"] == draws
    assert table.count("| bop | yes | 1 |") == table.count("| bop | no | 1 |") == 1
    written = [path.stat().st_mtime_ns for path in records]
    assert run("methods.py", *arguments, cwd=tmp_path) == table  # nothing is trained again
    assert [path.stat().st_mtime_ns for path in records] == written


def test_uncertainty(images, tmp_path):
    folder = tmp_path / "data"
    for name in ("mnist", "fashion-mnist"):
        shutil.copytree(images, folder / name)
    arguments = ("--smoke", "--data", str(folder), "--datasets", "mnist", "--out", "results")
    table = run("uncertainty.py", *arguments, cwd=tmp_path)
    networks = sorted((tmp_path / "results").glob("*.pt"))
    assert len(networks) == 4 + 5
    record = json.loads((tmp_path / "results" / "uncertainty.json").read_text())
    for row in record["rows"]:
        assert row["scores"]["accuracy"] == row["scaled"]["accuracy"]
        assert row["temperature"] > 0
        # The other data set is the same here: nothing tells them apart but the noise of dropout.
        aurocs = [found["auroc"] for found in row["ood"].values()]
        assert row["method"].startswith("dropout") or aurocs == pytest.approx([0.5] * len(aurocs))
        assert ("mutual_information" in row["ood"]) == (row["draws"] > 1)
    written = [path.stat().st_mtime_ns for path in networks]
    assert run("uncertainty.py", *arguments, cwd=tmp_path) == table
    assert [path.stat().st_mtime_ns for path in networks] == written
    report = run("uncertainty.py", "--report", "results/uncertainty.json", cwd=tmp_path)
    assert report == table


def test_uncertainty_regression(tmp_path):
    folder = tmp_path / "data" / "yacht"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(folder / "data.txt", rows)
    for name, numbers in {"features": [0, 1], "target": [2], "train_0": range(30),
                          "test_0": range(30, 40)}.items():  # fmt: skip
        np.savetxt(folder / f"index_{name}.txt", list(numbers))
    arguments = ("--smoke", "--data", str(tmp_path / "data"), "--out", "r.json")
    table = run("uncertainty_regression.py", *arguments, cwd=tmp_path)
    (block,) = json.loads((tmp_path / "r.json").read_text())["blocks"]
    assert len(block["methods"]) == 14
    assert all(0.0 <= found["coverage"] <= 1.0 for found in block["methods"].values())
    assert run("uncertainty_regression.py", *arguments, cwd=tmp_path) == table
    report = run("uncertainty_regression.py", "--report", "r.json", cwd=tmp_path)
    assert report == table


@processes("123.4")
def test_training_step(tmp_path, answers):
    table = run("training_step.py", "--smoke", "--out", "steps.json", cwd=tmp_path)
    assert run("training_step.py", "--report", "steps.json", cwd=tmp_path) == table
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert rows["float SGD"]["median_ratio"] == 1.0
    assert all(row["peak_megabytes"] > 0 for row in rows.values())


def test_estimators(tmp_path):
    arguments = ("--smoke", "--out", "e.json", "--plot", "e.png")
    table = run("estimators.py", *arguments, cwd=tmp_path)
    report = run("estimators.py", "--report", "e.json", cwd=tmp_path)
    assert table.endswith(report) and (tmp_path / "e.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "e.json").read_text())
    (block,) = record["variance"]
    for row in block["rows"]:  # the budget of an estimator is what it spends
        assert row["name"].endswith(f"K = {row['evaluations']:g}")
    assert all(row["median"] > 0 for row in record["speed"])


def test_shared_weights(tmp_path):
    arguments = ("--smoke", "--part", "transformer", "--estimators", "Flipout", "--out", "results")
    table = run("shared_weights.py", *arguments, cwd=tmp_path)
    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "results").glob("*.json"))
    tried = {
        r["settings"]["lr"]: r["scores"]["mean"]["nll"]
        for r in (json.loads(p.read_text()) for p in (tmp_path / "results/tuning").glob("*.json"))
    }
    assert record["settings"]["lr"] == min(tried, key=tried.__getitem__)
    assert record["settings"]["epochs"] == len(record["history"]) == 1
    again = run("shared_weights.py", "--report", "results", cwd=tmp_path)
    assert table.endswith(again) and f"{record['scores']['mean']['nll']:.4f}" in again


def test_toys(tmp_path):
    table = run("toys.py", "--smoke", "--out", "results", cwd=tmp_path)
    records = [json.loads(p.read_text()) for p in (tmp_path / "results").glob("*.json")]
    assert len(records) == 4 and all(r["data"] == "two moons" for r in records)
    assert {r["settings"].get("steps") for r in records} == {None, "natural", "relative"}
    assert run("toys.py", "--report", "results", cwd=tmp_path) == table


def test_estimators_training(tmp_path):
    arguments = ("--smoke", "--out", "results")
    table = run("estimators_training.py", *arguments, cwd=tmp_path)
    records = [json.loads(p.read_text()) for p in sorted((tmp_path / "results").glob("*.json"))]
    finals = {r["estimator"]: r for r in records if r["kind"] == "final"}
    assert set(finals) == {"StraightThrough", "DisARM x2"}
    for name, final in finals.items():
        ends = {r["optimizer"]: r["curve"][-1]["loss"] for r in records
                if r["kind"] == "selection" and r["estimator"] == name}  # fmt: skip
        assert final["optimizer"] == min(ends, key=ends.__getitem__)
        end = final["curve"][-1]
        assert end["loss"] == pytest.approx(end["negative_log_likelihood"] + end["kl"])
    again = run("estimators_training.py", "--report", "results", "--plot", "t.png", cwd=tmp_path)
    assert table.endswith(again) and (tmp_path / "t.png").stat().st_size > 10_000


def test_nested(tmp_path):
    arguments = ("--smoke", "--out", "results", "--network", "mlp", "--posteriors", "mean-field",
                 "nested, no weight scope", "random effects")  # fmt: skip
    run("nested.py", *arguments, cwd=tmp_path)
    paths = sorted((tmp_path / "results").glob("*.json"))
    records = {r["posterior"]: r for r in (json.loads(path.read_text()) for path in paths)}
    assert len(records) == len(paths) == 3
    sizes = {name: record["parameters"] for name, record in records.items()}
    # Layers of 64-128-128-10: a parameter per weight; per layer and unit; location and scale of those.
    shared = 3 + 128 + 128 + 10
    assert sizes["mean-field"] == 64 * 128 + 128 * 128 + 128 * 10
    assert sizes["nested, no weight scope"] == shared
    assert sizes["random effects"] == sizes["mean-field"] + 2 * shared
    written = [path.stat().st_mtime_ns for path in paths]
    run("nested.py", *arguments, cwd=tmp_path)
    assert [path.stat().st_mtime_ns for path in paths] == written
    table = run("nested.py", "--report", "results", cwd=tmp_path)
    assert len(table.splitlines()) == 5 and "random effects" in table
    (saved, *_) = (tmp_path / "results" / "checkpoints").rglob("posterior.safetensors")
    run("nested.py", "--figure", str(saved), "levels.png", cwd=tmp_path)
    assert (tmp_path / "levels.png").stat().st_size > 10_000


@processes(json.dumps({"ms_per_draw": 1.0, "extra_megabytes": 2.0}))
def test_predict(tmp_path, answers):
    table = run("predict.py", "--smoke", "--out", "p.json", cwd=tmp_path)
    assert run("predict.py", "--report", "p.json", cwd=tmp_path) == table
    record = json.loads((tmp_path / "p.json").read_text())
    assert [block["network"] for block in record["blocks"]] == ["relu", "sign", "conv"]
    for block in record["blocks"]:
        assert all(second > 0 for seconds in block["seconds"].values() for second in seconds)


PEAKS = json.loads((ROOT / "docs" / "benchmarks" / "kernels.json").read_text())["peaks"]


@pytest.mark.skipif(
    not shutil.which("cmake"), reason="the benchmark compiles its program with cmake"
)
@processes(json.dumps(PEAKS))
def test_kernels(tmp_path, answers):
    table = run("kernels.py", "--smoke", "--out", "k.json", cwd=tmp_path)
    assert run("kernels.py", "--report", "k.json", cwd=tmp_path) == table
    record = json.loads((tmp_path / "k.json").read_text())
    assert len(record["peaks"]["kernels"]) == 5 and len(record["convolutions"]) == 3
    for row in record["peaks"]["kernels"]:
        assert row["ratio"] is None or 0.0 < row["ratio"] < 1.5


PARTS = ("bias2", "variance_between_sets", "variance_between_draws")


def test_priors(tmp_path):
    arguments = ("--smoke", "--out", "results")
    table = run("priors.py", *arguments, cwd=tmp_path)
    paths = sorted((tmp_path / "results").glob("*.json"))
    records = {r["prior"]: r for r in (json.loads(path.read_text()) for path in paths)}
    assert set(records) == {"0.1", "0.9", "learned"} and len(paths) == 3
    for record in records.values():
        parts = record["decomposition"]
        assert sum(parts[name] for name in PARTS) == pytest.approx(parts["brier"], abs=1e-12)
        assert all(parts[name] > 1e-4 for name in PARTS)
        assert np.mean(parts["per_set"]["brier"]) == pytest.approx(parts["brier"], abs=1e-12)
    # The prior has pulled the weights its way, and only the learned one has a probability of its own.
    shares = {
        p: np.mean([s["share_of_plus_per_layer"] for s in r["sets"]]) for p, r in records.items()
    }
    assert shares["0.1"] < 0.4 < 0.6 < shares["0.9"]
    learned = {p: [s["learned_p_per_layer"] for s in r["sets"]] for p, r in records.items()}
    assert learned["0.1"] == learned["0.9"] == [[], []]
    assert all(len(ps) == 2 and all(0 < p < 1 for p in ps) for ps in learned["learned"])
    written = [path.stat().st_mtime_ns for path in paths]
    assert run("priors.py", *arguments, cwd=tmp_path) == table
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert run("priors.py", "--report", "results", cwd=tmp_path) == table


def test_priors_decomposition_is_the_sum_written_out():
    script = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "priors.py"))
    sets, draws, inputs = 3, 4, 5
    probs = torch.rand(sets, draws, inputs, 6).softmax(-1)
    y = torch.tensor([0, 5, 2, 2, 1])
    found = script["brier_decomposition"](probs, y)
    mean = {s: probs[s].mean(0) for s in range(sets)}
    grand = sum(mean.values()) / sets
    expected = dict.fromkeys(("brier", *PARTS), 0.0)
    for s, k, n in itertools.product(range(sets), range(draws), range(inputs)):
        target = torch.zeros(6)
        target[y[n]] = 1.0
        pairs = ((probs[s, k, n], target), (grand[n], target), (mean[s][n], grand[n]),
                 (probs[s, k, n], mean[s][n]))  # fmt: skip
        for name, (a, b) in zip(expected, pairs, strict=True):
            expected[name] += ((a - b) ** 2).sum().item() / (sets * draws * inputs)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert sum(found[name] for name in PARTS) == pytest.approx(found["brier"], abs=1e-12)


@processes("")
def test_ship(images, tmp_path, answers):
    arguments = ("--smoke", "--data", str(images), "--out", "s.json")
    table = run("ship.py", *arguments, cwd=tmp_path)
    assert run("ship.py", "--report", "s.json", cwd=tmp_path) == table
    record = json.loads((tmp_path / "s.json").read_text())
    for row in record["sizes"]:
        assert row["bytes"] > row["bits"] / 8 > 0
    (cold,), (blocks,) = record["cold_starts"], record["throughput"]
    assert set(cold["seconds"]) == {"interpreter", "numpy", "file", "torch"}
    assert blocks["images"] == 90 and len(blocks["seconds"]) == 3


def test_compile(tmp_path):
    table = run("compile.py", "--smoke", "--out", "c.json", cwd=tmp_path)
    assert run("compile.py", "--report", "c.json", cwd=tmp_path) == table
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["first"] > 0.0 and len(record["compile"]) == 1
    assert set(record["calibrate"][0]["seconds"]) == {"in torch", "by the program"}


def test_continual(images, tmp_path):
    # Data by name lie in subfolders; the foreign images are the same noise as the test images.
    folder = tmp_path / "data"
    for name in ("mnist", "fashion-mnist"):
        shutil.copytree(images, folder / name)
    names = ("posterior 2x100", "straight-through", "split, all classes (class)")
    arguments = ("--smoke", "--no-progress", "--data", str(folder), "--out", "results", "--seeds",
                 "0", "--only", *names)  # fmt: skip
    run("continual.py", *arguments, cwd=tmp_path)
    paths = sorted((tmp_path / "results").glob("*.json"))
    records = {r["name"]: r for r in (json.loads(path.read_text()) for path in paths)}
    assert set(records) == set(names) and len(paths) == 3
    posterior, straight, split = (records[name] for name in names)
    R = np.array(posterior["R"], dtype=float)
    assert posterior["average_accuracies"] == pytest.approx([R[0, 0], R[1, :2].mean()], abs=1e-5)
    assert not any(report["history"] for report in posterior["reports"])
    # The same images in the same place and brightness cannot be told apart.
    assert posterior["ood"] == pytest.approx({"entropy": 0.5, "mutual_information": 0.5}, abs=1e-3)
    assert split["ood"] is None
    assert straight["ood"]["mutual_information"] == 0.5  # one network has none, for any image
    assert len(split["average_accuracies"]) == 5 and len(posterior["uncertainty"]) == 3
    assert list((tmp_path / "results" / "checkpoints").iterdir()) == []
    written = [path.stat().st_mtime_ns for path in paths]
    table = run("continual.py", *arguments, cwd=tmp_path)
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert table.endswith(run("continual.py", "--report", "results", cwd=tmp_path))
    run("continual.py", "--figure", str(paths[0]), "c.png", cwd=tmp_path)
    assert (tmp_path / "c.png").stat().st_size > 10_000
