"""bayesbin report: one page, whole in itself, whose numbers are those of the run."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from bayesbin import data, plots
from bayesbin.diagnostics import TemperatureScaling, ood_scores
from bayesbin.experiments import evaluate_run, load_run
from bayesbin.experiments.cli import main
from bayesbin.experiments.report import report, writing
from bayesbin.experiments.report.other_inputs import other_inputs
from bayesbin.experiments.report.page import Cell, Section, Table, page
from bayesbin.experiments.report.pictures import error_pictures
from bayesbin.experiments.report.sections import sections_of
from bayesbin.posterior.summary import Summary

VOID = {"meta", "img", "br", "link", "input"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


class Page(HTMLParser):
    """Tags that are open, pictures, what is loaded, anchors, and the numbers of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: dict[str, list[list[float]]] = {}
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "a":
            self.links.append(str(given["href"]))
        self.ids += [str(given["id"])] if "id" in given else []
        self.loaded += [
            str(given[key]) for key in ("src", "srcset", "data", "poster") if key in given
        ]
        self.loaded += [str(given["href"])] if tag == "link" else []
        if tag == "table":
            self.rows = self.tables[str(given["id"]).removesuffix("-table")] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag == "data":
            self.rows[-1].append(float(str(given["value"])))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"a {tag} is closed that is not the last one opened"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    command = ["train", "digits", "--epochs", "2", "--width", "8", "--depth", "1", "--no-progress"]
    assert main([*command, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pixels(run):
    path = run.parent / "noise <b>.npy"  # a name that a page has to escape
    np.save(path, np.random.default_rng(0).integers(0, 17, (40, 8, 8)))
    return path


@pytest.fixture(scope="module")
def written(run, pixels):
    return report(run, run.parent / "out.html", ood=pixels, num_samples=3, num_bootstrap=8)


@pytest.fixture
def parsed(written):
    return Page(written.path.read_text())


def test_the_page_is_whole_in_itself(written, parsed):
    assert parsed.open == [] and parsed.tags.count("html") == 1
    assert len(parsed.images) == 9 and all(source.startswith("data:") for source in parsed.loaded)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    text = written.path.read_text()
    assert "url(" not in text and "@import" not in text and str(written.path.parent) not in text
    assert len(parsed.ids) == len(set(parsed.ids))
    assert [link.removeprefix("#") for link in parsed.links] == [
        "glance", "training", "scores", "calibration", "abstaining", "uncertainty", "other",
        "posterior", "limits",
    ]  # fmt: skip
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)


def test_every_picture_is_one_and_is_described(parsed):
    described = [str(image["alt"]) for image in parsed.images]
    assert all(len(alt) > 40 for alt in described) and len(set(described)) == len(described)
    assert parsed.tags.count("figcaption") == len(described)
    for image in parsed.images:
        content = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        assert content.startswith(b"\x89PNG")
        wide, high = (int.from_bytes(content[i : i + 4]) for i in (16, 20))
        shape = int(str(image["width"])) / int(str(image["height"]))
        assert wide / high == pytest.approx(shape, rel=0.01)


def test_the_tables_have_the_numbers_of_the_dictionary(written, parsed):
    found = json.loads(json.dumps(written.to_dict(), allow_nan=False))
    scores = found["scores"]
    methods = [*(scores[name] for name in ("mode", "mean", "draws")), found["mean_minus_mode"]]
    assert parsed.tables["scores"][1:] == [[e["value"] for e in row.values()] for row in methods]
    assert parsed.tables["temperature"][1:] == [
        [scores[method][name]["value"] for name in ("nll", "brier", "ece", "ece_equal_mass")]
        for method in ("mode", "mode scaled", "mean", "mean scaled")
    ]
    assert parsed.tables["uncertainty"][1:] == [
        [value for value in row.values() if value is not None]
        for row in found["uncertainty"].values()
    ]
    assert parsed.tables["other"][1:] == [
        [row[name]["value"] for name in ("auroc", "aupr_out", "aupr_in", "fpr95")]
        for row in found["other"]["scores"].values()
    ]
    assert parsed.tables["posterior"][1:] == [
        [row[n] for n in ("weights", "mean_abs_mean", "entropy_bits", "kl_bits", "saturated")]
        for row in found["posterior"]
    ]
    text = " ".join(parsed.text)
    record = load_run(written.findings.run.folder).record
    assert record["data"]["sha256"] in text and record["environment"]["torch"] in text


def test_the_numbers_are_those_of_the_run(written, run):
    loaded = load_run(run)
    expected, found = evaluate_run(loaded, num_samples=3), written.to_dict()
    for method in ("mode", "mean"):
        for name, value in expected[method].items():
            assert found["scores"][method][name]["value"] == pytest.approx(value, abs=1e-12)
    for name, value in expected["draws"]["mean"].items():
        assert found["scores"]["draws"][name]["value"] == pytest.approx(value, abs=1e-12)
    assert found["mean_minus_mode"]["nll"]["value"] == pytest.approx(
        expected["mean"]["nll"] - expected["mode"]["nll"], abs=1e-12
    )
    splits = data.digits()
    mode = loaded.ensemble(3, splits=splits).mode
    # The validation part of the training data alone decides the temperature.
    held = splits.hold_out(loaded.settings.validation, loaded.settings.data_seed)[1]
    at_held = mode.predict(held.x).log_probs
    temperature = TemperatureScaling.fit(at_held, held.y).temperature
    assert found["temperatures"]["mode"] == pytest.approx(temperature, rel=1e-9)
    at_test = mode.predict(splits.test.x).log_probs
    on_test = TemperatureScaling.fit(at_test, splits.test.y).temperature
    assert abs(on_test - temperature) > 1e-4
    groups = found["uncertainty"]
    assert groups["right"]["inputs"] + groups["wrong"]["inputs"] == len(splits.test)
    accuracy = found["scores"]["mean"]["accuracy"]["value"]
    assert groups["right"]["inputs"] == round(accuracy * len(splits.test))
    for row in groups.values():
        parts = row["expected_entropy"] + row["mutual_information"]
        assert row["entropy"] == pytest.approx(parts, abs=1e-9)


def test_a_decided_posterior_that_is_always_right_has_no_errors_to_show(written):
    found = written.findings
    answers = found.log_probs["mean"].argmax(-1)
    rows = tuple(dataclasses.replace(row, entropy_bits=0.0) for row in found.summary.rows)
    right = dataclasses.replace(found, y=answers, summary=Summary(rows), other=None)
    assert right.error_auroc() == {"entropy": None, "mutual_information": None}
    assert right.to_dict()["uncertainty"]["wrong"]["entropy"] is None
    shown = {section.name: section for section in sections_of(right)}
    assert "other" not in shown and [p.kind for p in shown["uncertainty"].parts] == ["table"]
    assert "no picture" in shown["uncertainty"].sentences[-1]
    assert "decided every weight" in shown["glance"].sentences[-1]
    text = " ".join(Page(page("right", [shown["uncertainty"]])).text)
    assert "none" in text and "nan" not in text
    grain = 1e-16 * torch.rand_like(found.uncertainty.entropy)  # of draws that are all the same
    agreed = dataclasses.replace(found.uncertainty, mutual_information=grain)
    decided = dataclasses.replace(found, uncertainty=agreed)
    assert decided.error_auroc()["mutual_information"] == 0.5
    assert [picture.alt.split(" of ")[1] for picture in error_pictures(decided)] == ["the entropy"]


def test_other_inputs_are_preprocessed_as_the_run_s_own(written, run, pixels):
    splits, loaded = data.digits(), load_run(run)
    assert splits.preprocessing is not None
    divisor, mean, std = splits.preprocessing
    assert isinstance(mean, float) and isinstance(std, float)
    raw = torch.from_numpy(np.load(pixels).reshape(40, 64)).double()
    expected = ((raw / divisor - mean) / std).float()
    name, x = other_inputs(pixels, splits)
    assert name == "noise <b>" and torch.equal(x, expected)
    ensemble = loaded.ensemble(3, splits=splits)
    inner, outer = (ensemble.predict(rows) for rows in (splits.test.x, expected))
    for quantity, row in written.to_dict()["other"]["scores"].items():
        value = ood_scores(getattr(inner, quantity), getattr(outer, quantity))["auroc"]
        assert row["auroc"]["value"] == pytest.approx(value, abs=1e-3)  # ties differ by rounding
    np.save(pixels.parent / "floats.npy", expected.numpy())
    assert torch.equal(other_inputs(pixels.parent / "floats.npy", splits).x, expected)


def idx_images(folder, count=6, side=8):
    folder.mkdir()
    generator = np.random.default_rng(1)
    for part in ("train", "t10k"):
        images = generator.integers(0, 256, (count, side, side), dtype=np.uint8)
        for kind, content in (("images-idx3", images), ("labels-idx1", np.arange(count) % 2)):
            bytes_ = content.astype(np.uint8).tobytes()
            sizes = b"".join(size.to_bytes(4, "big") for size in content.shape)
            path = folder / f"{part}-{kind}-ubyte"
            path.write_bytes(bytes([0, 0, 8, content.ndim]) + sizes + bytes_)
    return images


def test_other_inputs_from_a_folder_are_its_test_images(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    idx_images(own, count=8)
    images = idx_images(other)
    splits = data.load("idx", own)
    assert splits.preprocessing is not None
    divisor, mean, std = splits.preprocessing
    assert divisor == 255.0
    expected = (images.reshape(6, 64) / 255.0 - mean) / std
    name, x = other_inputs(other, splits)
    assert name == "other" and x.dtype == splits.train.x.dtype
    np.testing.assert_allclose(x, expected, atol=1e-5)
    # The images' own mean and deviation are not those that count here.
    assert abs(data.load("idx", other).test.x - x).max() > 1e-3


def test_the_command_line_writes_and_prints_the_same(run, capsys, monkeypatch):
    out = run.parent / "again.html"
    few = functools.partial(writing.report, num_bootstrap=8)
    monkeypatch.setattr(
        "bayesbin.experiments.report.report", few
    )  # which the verb imports when it is called
    command = ["report", str(run), "--out", str(out), "--num-samples", "1"]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(out) and found["other"] is None and found["num_samples"] == 1
    single = found["scores"]
    assert single["draws"]["nll"] == {
        k: single["mean"]["nll"]["value"] for k in ("value", "low", "high")
    }
    assert found["uncertainty"]["all"]["mutual_information_jackknife"] is None
    parsed = Page(out.read_text())
    assert "other" not in parsed.ids and parsed.open == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere", "--out", "r.html"], "no run.json"),
        (["RUN", "--out", "r.pdf"], "ends in .html"),
        (["RUN", "--out", "no/r.html"], "expected a folder"),
        (
            ["RUN", "--out", "r.html", "--num-samples", "0"],
            "num_samples to be a whole number of at least 1",
        ),
        (["RUN", "--out", "r.html", "--ood", "missing"], "there is no missing"),
        (["RUN", "--out", "r.html", "--ood", "empty"], "idx files"),
        (["RUN", "--out", "r.html", "--ood", "wide.npy"], "64 numbers each"),
        (["RUN", "--out", "r.html", "--ood", "nan.npy"], "NaN"),
        (["RUN", "--out", "r.html", "--ood", "text.npy"], "array of numbers"),
        (["tasks", "--out", "r.html"], "there is no run.json"),
        (["RUN", "--out", "r.html", "--run", "bop_seed0"], "expected a comparison for --run"),
        (["begun", "--out", "r.html"], "interrupted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_known_errors_are_one_sentence(arguments, said, run, tmp_path, monkeypatch, capsys):
    from bayesbin.experiments.record import read_record, write_record

    monkeypatch.chdir(tmp_path)
    for name in ("empty", "tasks", "begun"):
        (tmp_path / name).mkdir()
    write_record(tmp_path / "begun", read_record(run) | {"finished": False})
    np.save("wide.npy", np.zeros((3, 65)))
    np.save("nan.npy", np.full((3, 64), np.nan))
    (tmp_path / "text.npy").write_text("no array")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["report", *(str(run) if a == "RUN" else a for a in arguments)]) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("bayesbin: error: ") and said in last
    assert not captured.out and sorted(tmp_path.rglob("*")) == before


def test_what_a_page_is_given_is_escaped():
    table = Table("t", "<i>", ("",), [[Cell("<script>"), Cell("1", 1.0, "a & b")]])
    text = page("<title>", [Section("s", "<b>", ["x < y"], [table])])
    found = Page(text)
    assert found.open == [] and not {"script", "i", "b"} & set(found.tags)
    assert {"<script>", "x < y", "a & b"} <= set(found.text)


def test_the_terms_of_the_loss_are_drawn_as_they_are():
    rows = [{"epoch": 1, "nll": 2.0, "kl": 0.1}, {"epoch": 2, "nll": 1.0, "kl": 0.3}]
    rows[1]["validation_nll"] = 1.2
    fits, costs = plots.plot_loss_terms(rows).axes
    training, validation = fits.lines
    drawn = [np.ravel(line.get_ydata()).tolist() for line in (training, validation, costs.lines[0])]
    assert drawn == [[2.0, 1.0], [1.2], [0.1, 0.3]]
    assert np.ravel(validation.get_xdata()).tolist() == [2]
    with pytest.raises(ValueError, match="expected at least one epoch"):
        plots.plot_loss_terms([])


def test_a_browser_shows_the_page(written, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    shot = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,3000"]
    subprocess.run(
        [browser, *options, f"--screenshot={shot}", written.path.absolute().as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert shot.read_bytes().startswith(b"\x89PNG") and shot.stat().st_size > 20_000
