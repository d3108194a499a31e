"""Learners killed at any moment continue to the same posterior, whichever the learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import file_operations, run_killed, spread
from problems import network, tasks

from bayesbin.continual import (
    ContinualLearner,
    Learner,
    OnlineEWC,
    StraightThroughLearner,
    Task,
    continual_network,
    fine_tuning,
    joint_training,
    learn,
)
from bayesbin.continual.coresets import RandomCoreset
from bayesbin.continual.priors import EveryNSteps
from bayesbin.core.files import contents
from bayesbin.nn import Classifier, Regressor

Made = tuple[Learner, list[Task]]


def small(make: Any, **settings: Any) -> Callable[[Path], Made]:
    def fresh(folder: Path) -> Made:
        model = Classifier(network(), dataset_size=1)
        return make(
            model, epochs=2, batch_size=20, num_samples=2, checkpoint_dir=folder, progress=False,
            **settings,
        ), tasks(2)  # fmt: skip

    return fresh


def growing(folder: Path) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = continual_network(6, (7,), 3, heads=1, binary_heads=True)
    stream = [
        Task(
            f"task {i}",
            (task.test.x[:20], [names[k] for k in task.test.y[:20].tolist()]),
            (task.test.x, [names[k] for k in task.test.y.tolist()]),
            head=i,
        )
        for i, (task, names) in enumerate(
            zip(tasks(2), (["a", "b", "c"], ["c", "b", "d"]), strict=True)
        )
    ]
    model = Classifier(net, 1)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "num_samples": 2, "progress": False}
    return ContinualLearner(model, checkpoint_dir=folder, **settings), stream


def regression(folder: Path) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = continual_network(6, (7,), 1)
    stream = [
        Task(t.name, (t.test.x[:20], t.test.x[:20, 0]), (t.test.x, t.test.x[:, 0]))
        for t in tasks(2)
    ]
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "num_samples": 2, "progress": False}
    return ContinualLearner(Regressor(net, 1), checkpoint_dir=folder, **settings), stream


PROGRAMS: dict[str, Callable[[Path], Made]] = {
    "posterior": small(ContinualLearner),
    "heads that grow": growing,
    "regression": regression,
    "straight-through": small(StraightThroughLearner, metaplasticity=1.0),
    "ewc": small(OnlineEWC, strength=3.0),
    "joint": small(joint_training),
    "fine-tuning": small(fine_tuning, recipe="bop"),
    "within tasks": small(ContinualLearner, boundary=EveryNSteps(2)),
    "coreset": small(ContinualLearner, coreset=RandomCoreset(5)),
}


def outcome(made: Made) -> tuple[dict[str, Any], Any]:
    learner, stream = made
    result = learn(learner, stream, progress=False)
    return learner.state_dict()["state"], result


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, torch.Tensor):
        return left.numpy().tobytes() == right.numpy().tobytes()
    return left == right


def survives(kind: str, folder: Path, every: int) -> None:
    fresh = PROGRAMS[kind]
    state, whole = outcome(fresh(folder / "whole"))
    count = file_operations(lambda: outcome(fresh(folder / "counted")), folder / "counted")
    assert count > 20
    for operation in spread(count, every, start=1 + len(kind) % every):
        place = folder / str(operation)
        run_killed(lambda: outcome(fresh(place)), place, operation)  # noqa: B023  runs at once
        resumed, result = outcome(fresh(place))
        assert equal(resumed, state), f"{kind}, killed before operation {operation} of {count}"
        for name, matrix in whole.scores.items():
            assert np.array_equal(result.scores[name], matrix, equal_nan=True)
        assert contents(place) == ["scores", "task-000001.ckpt", "task-000002.ckpt"]
        assert len(list(place.rglob("*.tmp"))) == 0


@pytest.mark.parametrize("kind", ["posterior", "heads that grow", "straight-through", "ewc"])
def test_killed_at_some_operations(kind: str, tmp_path: Path) -> None:
    survives(kind, tmp_path, every=29)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROGRAMS)
def test_killed_at_every_operation(kind: str, tmp_path: Path) -> None:
    survives(kind, tmp_path, every=1)


def test_the_harness_sees_a_writer_that_is_not_atomic(tmp_path: Path) -> None:
    def careless(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for text in ("one", "two"):
            (folder / "file").write_text(text)

    folder = tmp_path / "counted"
    assert file_operations(lambda: careless(folder), folder) == 3
    found = set()
    for operation in (1, 2, 3):
        place = tmp_path / str(operation)
        run_killed(lambda: careless(place), place, operation)  # noqa: B023  runs at once
        path = place / "file"
        found.add(path.read_text() if path.exists() else None)
    assert found == {None, "one"}
