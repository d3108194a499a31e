"""Resume: bit for bit, within a task and between tasks, and past a damaged file."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import learner, multi_head, naturals, network, same, tasks
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bayesbin.continual import ContinualLearner, Learner, OnlineEWC, StraightThroughLearner, learn
from bayesbin.continual import learner as learner_module
from bayesbin.continual.coresets import RandomCoreset
from bayesbin.continual.priors import EveryNSteps, LeakyPrior, RelaxedPrior
from bayesbin.continual.training import Training
from bayesbin.core.files import contents
from bayesbin.infer.checkpoint import CheckpointWarning
from bayesbin.nn import Classifier
from bayesbin.optim import make_optimizers, training_groups

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "relaxed": {"prior_policy": RelaxedPrior(0.7)},
    "leaky": {"prior_policy": LeakyPrior(20.0)},
    "every 2 steps": {"boundary": EveryNSteps(2)},
    "joint": {"prior_policy": "fixed", "joint": True},
    "coreset": {"coreset": RandomCoreset(5)},
    "per task": {"normalization": "per-task"},
}


def make(kind: str, folder: Path | None = None, **more: Any) -> ContinualLearner:
    normalization = SETTINGS[kind].get("normalization", "layer")
    net = network(normalization=normalization)
    return learner(net, **SETTINGS[kind], **{"checkpoint_dir": folder, **more})


def slower(guide: Any, model: Any, dataset_size: int) -> Any:
    return make_optimizers(training_groups(guide), lr=0.01)


def scores_equal(left: Any, right: Any) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


def interrupt_at(step: int) -> Any:
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)

    return register_optimizer_step_pre_hook(hook)


@pytest.mark.parametrize("kind", SETTINGS)
def test_resume_between_tasks(kind: str, tmp_path: Path) -> None:
    stream = tasks(3)
    whole = make(kind)
    for task in stream:
        whole.observe(task)
    part = make(kind, tmp_path)
    for task in stream[:2]:
        part.observe(task)
    torch.manual_seed(99)  # nothing may depend on the global generator
    again = make(kind, tmp_path)
    restored = [again.observe(task) for task in stream[:2]]
    assert restored == part.reports and same(naturals(again), naturals(part))
    again.observe(stream[2])
    assert same(naturals(again), naturals(whole))
    assert scores_equal(again.evaluate(stream), whole.evaluate(stream))


@pytest.mark.parametrize("kind", ["exact", "leaky", "every 2 steps", "coreset"])
def test_resume_within_a_task(kind: str, tmp_path: Path) -> None:
    stream = tasks(2)
    whole = make(kind)
    for task in stream:
        whole.observe(task)
    part = make(kind, tmp_path)
    part.observe(stream[0])
    handle = interrupt_at(4)  # in the second epoch of the second task
    try:
        with pytest.raises(KeyboardInterrupt, match="the same call continues"):
            part.observe(stream[1])
    finally:
        handle.remove()
    assert (tmp_path / "task-000002").is_dir()
    again = make(kind, tmp_path)
    for task in stream:
        again.observe(task)
    assert same(naturals(again), naturals(whole))
    for left, right in zip(again.reports, whole.reports, strict=True):
        assert left.layers == right.layers
    assert scores_equal(again.evaluate(stream), whole.evaluate(stream))
    assert contents(tmp_path) == ["task-000001.ckpt", "task-000002.ckpt"]


def test_the_same_learner_continues_after_an_interruption(tmp_path: Path) -> None:
    stream = tasks(2)
    whole = make("exact")
    for task in stream:
        whole.observe(task)
    part = make("exact", tmp_path)
    part.observe(stream[0])
    handle = interrupt_at(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            part.observe(stream[1])
    finally:
        handle.remove()
    part.observe(stream[1])
    assert (
        same(naturals(part), naturals(whole)) and part.reports[1].layers == whole.reports[1].layers
    )


def test_a_damaged_file_falls_back_one_task_and_says_which(tmp_path: Path) -> None:
    stream = tasks(3)
    first = make("exact", tmp_path)
    for task in stream:
        first.observe(task)
    path = tmp_path / "task-000002.ckpt"
    payload = bytearray(path.read_bytes())
    payload[-9] ^= 4
    path.write_bytes(payload)
    again = make("exact", tmp_path)
    again.observe(stream[0])
    with pytest.warns(CheckpointWarning, match=r"task 2: it is learned again, from the state after "
                      r"task 1\..*task-000002\.ckpt"):  # fmt: skip
        again.observe(stream[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.observe(stream[2])
        third = make("exact", tmp_path)
        for task in stream:
            third.observe(task)
    assert same(naturals(again), naturals(first)) and same(naturals(third), naturals(first))


def test_a_damaged_checkpoint_within_a_task_starts_the_task_again(tmp_path: Path) -> None:
    stream = tasks(1)
    whole = make("exact")
    whole.observe(stream[0])
    part = make("exact", tmp_path)
    handle = interrupt_at(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            part.observe(stream[0])
    finally:
        handle.remove()
    (only,) = (tmp_path / "task-000001").iterdir()
    only.write_bytes(only.read_bytes()[:-1])
    again = make("exact", tmp_path)
    with pytest.warns(CheckpointWarning, match="task is learned from its start"):
        again.observe(stream[0])
    assert same(naturals(again), naturals(whole))


def test_checkpoints_of_other_tasks_or_settings_are_refused(tmp_path: Path) -> None:
    stream = tasks(2)
    make("exact", tmp_path).observe(stream[0])
    for other, message in (
        (make("exact", tmp_path, epochs=3), "epochs: 2 in the checkpoint, 3 now"),
        (make("relaxed", tmp_path), r"prior policy: ExactPrior\(\) in the checkpoint"),
        (make("exact", tmp_path, seed=1), "seed: 0 in the checkpoint, 1 now"),
        (make("exact", tmp_path, optimizers=slower), r"lr 0\.1 in the checkpoint.*lr 0\.01 now"),
    ):
        with pytest.raises(ValueError, match=message):
            other.observe(stream[0])
    with pytest.raises(ValueError, match=r"task 1: task 0 \("):
        make("exact", tmp_path).observe(stream[1])


def test_learn_continues_with_the_scores_it_had(tmp_path: Path, monkeypatch: Any) -> None:
    stream = tasks(3)
    whole = learn(make("exact"), stream, progress=False)
    learn(make("exact", tmp_path), stream[:2], progress=False)
    trained: list[int] = []
    real = Training.run
    monkeypatch.setattr(
        Training, "run", lambda self, *a, **k: trained.append(k["seed"]) or real(self, *a, **k)
    )
    scored: list[int] = []
    evaluate = Learner.evaluate
    monkeypatch.setattr(
        Learner, "evaluate", lambda self, t: scored.append(len(list(t))) or evaluate(self, t)
    )
    result = learn(make("exact", tmp_path), stream, progress=False)
    assert len(trained) == 1 and scored == [3]
    for name, matrix in whole.scores.items():
        assert np.array_equal(matrix, result.scores[name], equal_nan=True)
    kept = tmp_path / "scores"
    kept.write_bytes(kept.read_bytes().replace(b"0.", b"1.", 1))
    scored.clear()
    result = learn(make("exact", tmp_path), stream, progress=False)
    assert len(trained) == 1 and scored == [1, 2, 3]
    assert np.array_equal(whole.R, result.R, equal_nan=True)
    assert learner_module.ContinualLearner is ContinualLearner


def test_state_is_handed_over_by_value() -> None:
    stream = tasks(2)
    made = make("coreset")
    made.observe(stream[0])
    state = made.state_dict()
    kept = naturals(made)
    made.observe(stream[1])
    other = make("coreset")
    other.load_state_dict(state)
    assert same(naturals(other), kept) and len(other.reports) == 1
    other.observe(stream[1])
    assert same(naturals(other), naturals(made))
    assert scores_equal(other.evaluate(stream), made.evaluate(stream))


@pytest.mark.parametrize("kind", ["straight-through", "ewc"])
def test_baselines_resume_between_tasks(kind: str, tmp_path: Path) -> None:
    def baseline(folder: Path | None) -> Learner:
        settings: dict[str, Any] = {"epochs": 2, "progress": False, "checkpoint_dir": folder}
        model = Classifier(network(), dataset_size=1)
        if kind == "ewc":
            return OnlineEWC(model, strength=3.0, **settings)
        return StraightThroughLearner(model, metaplasticity=1.0, **settings)

    stream = tasks(3)
    whole = learn(baseline(None), stream, progress=False)
    learn(baseline(tmp_path), stream[:1], progress=False)
    again = learn(baseline(tmp_path), stream, progress=False)
    assert np.array_equal(whole.scores["nll"], again.scores["nll"], equal_nan=True)


def test_heads_resume(tmp_path: Path) -> None:
    stream = tasks(3, heads=True)

    def fresh(folder: Path | None) -> ContinualLearner:
        return learner(multi_head(binary_heads=True, learn_scale=True), checkpoint_dir=folder)

    whole, part, again = fresh(None), fresh(tmp_path), fresh(tmp_path)
    for task in stream:
        whole.observe(task)
    part.observe(stream[0])
    for task in stream:
        again.observe(task)
    assert same(naturals(again), naturals(whole)) and isinstance(again.model, Classifier)
    assert scores_equal(again.evaluate(stream), whole.evaluate(stream))
