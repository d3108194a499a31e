"""Sequences of tasks from the command line: the record, an exact resume, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bayesbin import continual
from bayesbin.continual.task_model import own_priors
from bayesbin.core.files import CorruptFileError
from bayesbin.core.names import LEARNERS
from bayesbin.data import digits
from bayesbin.experiments import (
    ContinualSettings,
    choose_run,
    continual_learner,
    continual_stream,
    evaluate_run,
    open_run,
    run_continual,
    unseen_task,
)
from bayesbin.experiments import continual as module
from bayesbin.experiments import runs as runs_module
from bayesbin.experiments.cli import main
from bayesbin.experiments.record import read_record
from bayesbin.optim import cosine_by_step_

SMALL = ["--epochs", "1", "--hidden", "8", "--num-samples", "2", "--no-progress"]
PERMUTED = ["continual", "permuted", "--tasks", "2", *SMALL]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continual") / "run"
    assert main([*PERMUTED, "--out", str(folder)]) == 0
    return folder


def printed_json(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_record_says_what_was_done_and_how_it_went(run):
    record = read_record(run)
    assert record["settings"]["hidden"] == [8] and record["settings"]["stream_seed"] == 0
    assert record["recipe"]["settings"]["kl_weight"] == 1.0 and record["recipe"]["given"] == []
    assert record["finished"] and record["scored_on"] == "test"
    assert record["data"]["training"] == 1437 and len(record["data"]["sha256"]) == 64
    stream = continual.PermutedPixels(digits(), 2, seed=0)
    assert record["digests"] == [task.digest for task in stream]
    R = np.array(record["R"], dtype=float)
    assert np.isnan(R[0, 1]) and not np.isnan(R[[0, 1, 1], [0, 0, 1]]).any()
    assert record["average_accuracy"] == pytest.approx(R[1].mean())
    assert record["learning_accuracy"] == pytest.approx(np.diag(R).mean())
    assert record["backward_transfer"] == pytest.approx(R[1, 0] - R[0, 0])
    assert (
        record["forgetting_final"] == record["forgetting_max_past"] == -record["backward_transfer"]
    )
    assert len(record["nll"]) == len(record["ece"]) == 2
    for report in record["reports"]:
        assert report["seconds"] > 0 and len(report["layers"]) == 2
        assert all(0 < row["entropy_bits"] < 1 and row["kl_bits"] > 0 for row in report["layers"])
    rows = record["uncertainty"]
    assert [row["learned"] for row in rows] == [True, True, False]
    assert rows[2]["task"] == "permutation 3"
    assert all(0 < row["mutual_information"] < row["entropy"] for row in rows)
    assert str(run) not in json.dumps(record)


def test_the_report_prints_the_tables_again_and_draws_them(run, tmp_path, capsys):
    assert main([*PERMUTED, "--out", str(run)]) == 0  # finished: only read
    first = capsys.readouterr().out.split("\n\nsaved in")[0]
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page)]) == 0
    again = capsys.readouterr().out
    assert again.startswith(first) and "permutation 3 (unseen)" in first
    assert main(["report", str(run), "--out", str(page), "--json"]) == 0
    report = printed_json(capsys)
    assert report["out"] == str(page) and report["R"][0][1] is None
    assert report["R"][1] == read_record(run)["R"][1]
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4 and "permutation 3 (unseen)" in text
    assert report["data"]["sha256"] in text and "url(" not in text
    for options in (["--run", "x"], ["--ood", str(page)]):
        assert main(["report", str(run), "--out", str(page), *options]) == 1
        assert f"expected one network for {options[0]}" in capsys.readouterr().err


def test_every_task_has_a_posterior_that_verbs_take(run, tmp_path, capsys):
    from bayesbin.posterior import BinaryPosterior

    files = read_record(run)["files"]
    assert sorted(files) == [f"task-{k}/{name}.safetensors" for k in (1, 2)
                             for name in ("network", "posterior")]  # fmt: skip
    posteriors = [BinaryPosterior.load(run / f"task-{k}" / "posterior.safetensors") for k in (1, 2)]
    assert posteriors[0].digest != posteriors[1].digest
    for options, name in (([], "run, task 2"), (["--task", "1"], "run, task 1")):
        assert main(["evaluate", str(run), *options, "--num-samples", "2", "--json"]) == 0
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert found["run"] == name and ("after the last task" in said.err) == (not options)
        assert [row["task"] for row in found["tasks"]] == [
            "permutation 1", "permutation 2"
        ][: len(found["tasks"])]  # fmt: skip
        assert {"accuracy", "nll", "ece", "brier"} == set(found["mode"]) == set(found["mean"])
    assert main(["evaluate", str(run), "--num-samples", "2"]) == 0
    assert "averages over 2 tasks, test data, 2 draws" in capsys.readouterr().out


@pytest.mark.parametrize("normalization", ["layer", "per-task"])
def test_a_sequence_ships(normalization, tmp_path, capsys):
    options = ["--normalization", normalization, "--out", str(tmp_path / "run")]
    assert main([*PERMUTED, *options]) == 0
    np.save(tmp_path / "x.npy", np.arange(128, dtype=np.uint8).reshape(2, 64) % 17)
    answers = []
    for task in ("1", "2"):
        out = str(tmp_path / "m.bbn")
        choice = [str(tmp_path / "run"), "--task", task]
        assert main(["pack", *choice, "--samples", "2", "--out", out]) == 0
        capsys.readouterr()
        assert main(["predict", out, str(tmp_path / "x.npy"), "--json"]) == 0
        packed = printed_json(capsys)["rows"]
        inputs = [str(tmp_path / "run"), str(tmp_path / "x.npy"), "--task", task]
        assert main(["predict", *inputs, "--num-samples", "2", "--json"]) == 0
        drawn = printed_json(capsys)["rows"]
        assert packed == drawn
        answers.append(packed)
    assert answers[0] != answers[1]
    kept = normalization == "per-task"
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "5"]) == int(kept)
    assert ("statistics of 2 draws of seed 0; got 5 draws" in capsys.readouterr().err) == kept


def test_heads_are_named_or_refused(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["continual", "split", *SMALL, "--out", folder]) == 0
    np.save(tmp_path / "x.npy", np.zeros((2, 64)))
    pack = ["pack", folder, "--samples", "2", "--out", str(tmp_path / "m.bbn")]
    assert main(pack) == 1
    assert "a head for each of its 5 tasks; name it with --task K" in capsys.readouterr().err
    predict = ["predict", folder, str(tmp_path / "x.npy"), "--num-samples", "2", "--json"]
    assert main(predict) == 1
    assert "expected to know which task the inputs are of" in capsys.readouterr().err
    assert main([*predict, "--task", "2"]) == 0
    rows = printed_json(capsys)["rows"]
    assert {row["label"] for row in rows} <= {"2", "3"}
    assert main([*pack, "--task", "2"]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "m.bbn"), str(tmp_path / "x.npy"), "--json"]) == 0
    assert printed_json(capsys)["rows"] == rows
    assert main(["evaluate", folder, "--num-samples", "2", "--json"]) == 0
    found = printed_json(capsys)
    averages = np.mean([row["mean"]["nll"] for row in found["tasks"]])
    assert found["mean"]["nll"] == pytest.approx(averages) and len(found["tasks"]) == 5


def test_an_interrupted_run_continues_to_the_same_record(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"

    learn_task, learned = continual.ContinualLearner.learn_task, []

    def until_the_second(self, task, *args):
        learned.append(task.name)
        if len(learned) == 2:
            raise KeyboardInterrupt
        return learn_task(self, task, *args)

    monkeypatch.setattr(continual.ContinualLearner, "learn_task", until_the_second)
    assert main([*PERMUTED, "--out", str(folder)]) == 130
    assert "The same command continues" in capsys.readouterr().err
    with pytest.raises(ValueError, match="interrupted"):
        open_run(folder)
    assert main([*PERMUTED, "--out", str(folder)]) == 0
    assert learned == ["permutation 1", "permutation 2", "permutation 2"]
    whole, resumed = (open_run(f).record for f in (run, folder))
    for name in ("R", "nll", "ece", "uncertainty", "digests", "settings", "files"):
        assert whole[name] == resumed[name]


def test_another_configuration_or_folder_is_refused(run, tmp_path, capsys):
    assert main([*PERMUTED, "--set", "kl_weight=2", "--out", str(run)]) == 1
    assert "kl_weight 1.0 there, 2.0 now" in capsys.readouterr().err
    (tmp_path / "other").write_text("")
    assert main([*PERMUTED, "--out", str(tmp_path)]) == 1
    assert "new or empty folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", "r.html"]) == 1
    assert "no run.json" in capsys.readouterr().err


def test_a_damaged_record_is_named(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    path = folder / "run.json"
    text = path.read_text()
    path.write_text(text.replace('"epochs": 1', '"epochs": 2'))
    with pytest.raises(CorruptFileError, match="digest"):
        open_run(folder)
    path.write_text(text[:100])
    with pytest.raises(CorruptFileError, match="expected JSON"):
        open_run(folder)
    record = {**json.loads(text), "version": 3}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="expected version 2"):
        open_run(folder)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_split(scenario, tmp_path, capsys):
    command = ["continual", "split", "--scenario", scenario, *SMALL, "--out", str(tmp_path / "run")]
    assert main([*command, "--json"]) == 0
    record = printed_json(capsys)
    assert len(record["tasks"]) == 5 and all(row["learned"] for row in record["uncertainty"])
    run = open_run(tmp_path / "run")
    net = continual_learner(run.settings, continual_stream(run.settings, digits())).net
    assert isinstance(net, continual.MultiHead) == (scenario == "task")
    if scenario == "class":  # what has been learned last is all that is answered
        assert run.result.R[-1, :-1].max() < 0.3


def test_rotated_tasks_leave_an_unseen_angle():
    config = ContinualSettings("rotated", tasks=3, max_degrees=90.0)
    stream = continual_stream(config, digits())
    assert [task.name.split()[-1] for task in stream] == ["0", "45", "90"]
    unseen = unseen_task(config, stream)
    assert unseen is not None and unseen.name == "rotation by 135" and unseen.train is None


@pytest.mark.parametrize("method", LEARNERS[1:])
def test_baselines(method, tmp_path):
    config = ContinualSettings(
        "permuted", method=method, tasks=2, epochs=1, hidden=(8,), num_samples=2
    )
    run = run_continual(config, tmp_path / "run", progress=False)
    assert run.result.R.shape == (2, 2) and run.settings == config
    variational = method in ("fine-tuning", "fixed-prior", "joint")
    assert all(bool(report.layers) == variational for report in run.result.reports)
    assert (run.uncertainty[0]["mutual_information"] > 1e-4) == variational
    assert "average accuracy" in str(run)
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(page)]) == 0
    assert page.read_text().count("data:image/png") == (4 if variational else 3)
    binary = method != "ewc"
    assert (tmp_path / "run" / "task-2" / "posterior.safetensors").exists() == binary
    scores = evaluate_run(choose_run(tmp_path / "run"), num_samples=2)
    assert scores["mean"]["accuracy"] == pytest.approx(run.result.R[1].mean(), abs=0.01)


@pytest.mark.parametrize(
    "options",
    [
        ["none"],
        ["fixed"],
        ["relax", "--gamma", "0.9"],
        ["cap", "--cap", "2"],
        ["leak", "--window", "100"],
    ],
    ids=lambda options: options[0],
)
def test_prior_policies_give_runs_of_their_own(options, run, tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main([*PERMUTED, "--prior-policy", *options, "--out", folder, "--json"]) == 0
    record, exact = printed_json(capsys), open_run(run).record
    assert record["settings"]["prior_policy"] == options[0]
    assert record["reports"][1]["layers"] != exact["reports"][1]["layers"]


def test_held_out_data_are_scored_in_place_of_the_test_set(tmp_path, capsys):
    options = ["--validation", "0.2", "--out", str(tmp_path / "run"), "--json"]
    assert main([*PERMUTED, *options]) == 0
    record = printed_json(capsys)
    assert record["scored_on"] == "validation"
    assert record["data"]["training"] + record["data"]["scored"] == 1437


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_than_the_run_was_begun_with_are_refused(finished, tmp_path, monkeypatch):
    config = ContinualSettings("permuted", tasks=1, epochs=1, hidden=(4,), num_samples=2)
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(module, "learn", _interrupted)
        try:
            run_continual(config, tmp_path / "run", progress=False)
        except KeyboardInterrupt:
            assert not finished
    other = digits(seed=1)
    monkeypatch.setattr(runs_module.data, "load", lambda *args: other)
    with pytest.raises(ValueError, match=r"data sha256 \w{12}\.\.\. there"):
        run_continual(config, tmp_path / "run", progress=False)


def _interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": "shuffled"}, "expected stream to be one of"),
        ({"method": "magic"}, "expected method to be one of"),
        ({"prior_policy": "relax"}, "takes gamma="),
        ({"method": "ewc", "prior_policy": "none"}, "with the method 'posterior' only"),
        ({"tasks": 0}, "expected tasks to be a whole number"),
        ({"hidden": ()}, "expected hidden to be whole numbers"),
        ({"method_settings": {"lr": -1.0}}, "expected lr to be a number above 0"),
        ({"method_settings": {"kl_weight": -1.0}}, "expected kl_weight"),
        ({"validation": 1.0}, "expected validation to be a number of at least 0 and below 1"),
        ({"num_samples": -1}, "num_samples to be a whole number of at least 0"),
        ({"method_settings": {"magic": 1}}, "has the settings guide"),
        ({"method_settings": {"guide": "nested"}}, "expected the guide mean-field"),
        (
            {"method": "ewc", "method_settings": {"kl_weight": 1}},
            "'ewc' has the settings lr, strength",
        ),
        (
            {"method": "metaplastic", "method_settings": {"lr": 0}},
            "expected lr to be a number above 0",
        ),
        ({"dataset": "two-moons"}, "expected dataset to be one of"),
    ],
)
def test_what_a_configuration_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        ContinualSettings(**{"stream": "permuted", **settings})


def test_tasks_that_the_classes_do_not_give_are_refused():
    config = ContinualSettings("split", tasks=3)
    with pytest.raises(ValueError, match="expected 5 tasks of 2 classes"):
        continual_stream(config, digits())


def test_a_configuration_survives_json():
    config = ContinualSettings("rotated", dataset="mnist", prior_policy="cap", cap=3.0)
    record = json.loads(json.dumps(config.to_record())) | {"data": {"folder": None}}
    assert ContinualSettings.from_record(record) == config


def test_the_first_prior_is_the_initial_posterior_or_uniform():
    for kind, scale in (("random", 1.0), ("uniform", 0.1)):
        config = ContinualSettings("permuted", initial_prior=kind)
        learner = continual_learner(config, continual_stream(config, digits()))
        assert isinstance(learner, continual.ContinualLearner)
        naturals = {name: distribution.natural for name, distribution in learner.posterior.items()}
        natural = naturals["0.weight"]
        prior = own_priors(learner.model, naturals, ())["0.weight"]
        assert natural.dtype == torch.float32
        # 6400 weights: the standard error of the standard deviation is scale / sqrt(2 * 6400).
        assert abs(natural.std().item() - scale) < 5 * scale / 12800**0.5
        assert torch.equal(prior, natural if kind == "random" else torch.zeros_like(natural))


def test_the_cosine_by_step_is_resumed_with_the_optimizer():
    def make():
        parameter = torch.nn.Parameter(torch.zeros(()))
        parameter.grad = torch.ones(())
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        cosine_by_step_(optimizer, 4)
        return optimizer

    def rates(optimizer, count):
        found = []
        for _ in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        return found

    whole = rates(make(), 6)
    expected = [0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    np.testing.assert_allclose(whole, [*expected, 0.0, 0.0], atol=1e-12)
    begun, rest = make(), make()
    rates(begun, 2)
    rest.load_state_dict(begun.state_dict())
    assert rates(rest, 2) == whole[2:4]


@pytest.mark.slow
def test_a_previous_posterior_as_prior_remembers_digits():
    """Average accuracy after five permutations, against fine-tuning, three seeds."""
    gains = []
    for seed in range(3):
        scores = []
        for method in ("posterior", "fine-tuning"):
            config = ContinualSettings(
                "permuted",
                method=method,
                seed=seed,
                method_settings={"lr": 0.2},
                epochs=4,
                batch_size=100,
                num_samples=8,
            )
            stream = continual_stream(config, digits())
            learner = continual_learner(config, stream, progress=False)
            result = continual.learn(learner, stream, progress=False)
            scores.append(continual.metrics.average_accuracy(result.R))
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.2, gains
