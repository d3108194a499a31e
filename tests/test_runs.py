"""A run directory: what is written is read back, resumed exactly, and refused where it does not fit."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bayesbin import data
from bayesbin.core.files import CorruptFileError
from bayesbin.experiments import RunConfig, environment, evaluate_run, load_run, train_run
from bayesbin.experiments import train as training_module

CONFIG = RunConfig("two-moons", width=8, depth=1, epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(CONFIG, folder)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    import shutil

    return shutil.copytree(trained, tmp_path / "copy")


def test_a_run_holds_all_that_evaluation_needs(trained):
    run = load_run(trained)
    assert run.config == CONFIG
    assert list(run.posterior) == ["0.weight", "3.weight"]
    assert run.posterior["0.weight"].natural.dtype == torch.float32  # whatever the ambient default
    assert len(run.record["history"]) == 2
    assert set(run.record["validation"]) == {"accuracy", "nll", "ece"}
    assert run.record["data"]["training"] + run.record["data"]["validation"] == 200
    assert run.record["environment"]["torch"]
    scores = evaluate_run(run, num_samples=2)
    assert 0.0 <= scores["mean"]["accuracy"] <= 1.0 and scores["num_samples"] == 2
    assert evaluate_run(load_run(trained), num_samples=2) == scores
    assert str(trained) not in (trained / "run.json").read_text()


def test_the_same_training_again_finds_it_finished(trained, monkeypatch):
    def fit(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(training_module, "fit", fit)
    assert train_run(CONFIG, trained).record == load_run(trained).record


def test_the_callers_generator_is_left_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train_run(dataclasses.replace(CONFIG, epochs=1), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_an_interrupted_run_continues_to_the_same_end(trained, tmp_path, monkeypatch):
    real_fit = training_module.fit

    def interrupted(*args, **kwargs):
        def stop(report):
            raise KeyboardInterrupt

        return real_fit(*args, callbacks=[stop], **kwargs)

    monkeypatch.setattr(training_module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_run(CONFIG, tmp_path / "run")
    with pytest.raises(ValueError, match="interrupted"):
        load_run(tmp_path / "run")
    monkeypatch.undo()
    continued, straight = train_run(CONFIG, tmp_path / "run"), load_run(trained)
    assert len(continued.record["history"]) == 2
    for site in straight.posterior:
        assert torch.equal(continued.posterior[site].natural, straight.posterior[site].natural)
    for name, tensor in straight.net.state_dict().items():
        assert torch.equal(continued.net.state_dict()[name], tensor)


@pytest.mark.parametrize("guide", ["nested", "random-effects"])
def test_nested_guides_train_and_load(guide, tmp_path):
    config = dataclasses.replace(CONFIG, guide=guide, levels=("filter", "weight"))
    run = train_run(config, tmp_path / "run")
    assert run.config == config and load_run(tmp_path / "run").config == config
    assert bool(run.posterior.effects) == (guide == "random-effects")
    assert train_run(config, tmp_path / "run").record["finished"]
    with pytest.raises(ValueError, match="levels"):
        train_run(dataclasses.replace(config, levels=("filter",)), tmp_path / "run")


def test_another_configuration_is_refused(trained):
    with pytest.raises(ValueError, match="seed 0 there, 1 now"):
        train_run(dataclasses.replace(CONFIG, seed=1), trained)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        train_run(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "posterior.safetensors", "network.safetensors"])
def test_damage_is_named(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(CorruptFileError, match=name):
        load_run(copied)


def test_a_missing_file_is_named(copied):
    (copied / "network.safetensors").unlink()
    with pytest.raises(CorruptFileError, match="missing"):
        load_run(copied)


def test_other_formats_and_versions_are_refused(copied):
    record = json.loads((copied / "run.json").read_bytes())
    (copied / "run.json").write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        load_run(copied)
    (copied / "run.json").write_text('{"format": "something else"}')
    with pytest.raises(CorruptFileError, match="not a run"):
        load_run(copied)
    (copied / "run.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="not a run"):
        load_run(copied)


def test_other_data_are_refused(trained, monkeypatch):
    run = load_run(trained)
    other = data.load("two-moons", seed=5)
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: other)
    with pytest.raises(data.DataError, match="trained on"):
        evaluate_run(run, num_samples=1)


@pytest.mark.parametrize("estimator", ["straight-through", "concrete"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_estimator_and_optimizer_trains(tmp_path, estimator, optimizer):
    config = dataclasses.replace(
        CONFIG, estimator=estimator, optimizer=optimizer, lr=0.01, epochs=1, num_samples=2
    )
    run = train_run(config, tmp_path / "run")
    assert run.record["history"][0]["lr"][0] > 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "imagenet"},
        {"guide": "full"},
        {"levels": ("row",), "guide": "nested"},
        {"levels": ("kernel",), "guide": "nested"},
        {"levels": ("filter", "filter"), "guide": "nested"},
        {"levels": ("weight",), "guide": "random-effects"},
        {"levels": ("filter",)},
        {"estimator": "magic"},
        {"optimizer": "lbfgs"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"epochs": 0},
        {"width": 0},
        {"batch_size": 0},
        {"num_samples": 0},
        {"kl_weight": -1.0},
        {"momentum": 1.0},
        {"temperature": 0.0},
        {"validation": 0.0},
    ],
    ids=str,
)
def test_configurations_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunConfig(**({"dataset": "digits"} | wrong))


def test_the_environment_is_plain_json():
    assert json.loads(json.dumps(environment())) == environment()
