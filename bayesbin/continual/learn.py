"""Learning a whole sequence, with the score of every task after every task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bayesbin.continual.base import Learner
from bayesbin.continual.result import ContinualResult
from bayesbin.continual.streams import TaskStream
from bayesbin.continual.tasks import Task
from bayesbin.core.files import sha256, write_atomically

SCORES_FILE = "scores"  # a line with the digest of what follows, which is JSON


def learn(
    learner: Learner, stream: Iterable[Task], *, forward: bool = False, progress: bool | None = None
) -> ContinualResult:
    """Let a learner observe each task in turn, and score it on all tasks after each.

    A learner with a ``checkpoint_dir`` continues where it was stopped, with the scores it had.

    :param stream: tasks; any iterable, whose tasks are only asked for when it is their turn.
    :param forward: whether to score tasks not learned yet as well, and the learner before the first;
        the stream is then a sequence (it has a length, and can be indexed). A task whose head or labels
        the learner does not know yet has the score NaN.
    :param progress: whether to show a bar over tasks; None: where standard error is a terminal.
    :raises ValueError: for a stream without tasks, a learner that has learned some already, or
        ``forward`` with a stream that is not a sequence.

    Example::

        >>> from bayesbin.continual import ContinualLearner, PermutedPixels, continual_network
        >>> from bayesbin.data import digits
        >>> from bayesbin.nn import Classifier
        >>> model = Classifier(continual_network(64, (16,)), dataset_size=1)
        >>> learner = ContinualLearner(model, epochs=1, progress=False)
        >>> result = learn(learner, PermutedPixels(digits(), 2, seed=0), progress=False)
        >>> result.R.shape, bool(np.isnan(result.R[0, 1]))
        ((2, 2), True)
    """
    if learner.reports:
        raise ValueError(
            f"expected a learner that has not learned anything yet, got one that has learned "
            f"{len(learner.reports)} tasks; make a new one (its checkpoints are found again)."
        )
    exams = _exams(stream) if forward else []
    untrained = learner.evaluate(exams) if forward else None
    kept = _Kept(learner.checkpoint_dir, forward)
    rows: list[dict[str, np.ndarray]] = []
    hidden = None if progress is None else not progress
    total = len(stream) if isinstance(stream, Sequence) else None
    with tqdm(total=total, disable=hidden, unit="task", leave=True) as bar:
        for index, task in enumerate(stream):
            bar.set_description_str(task.name, refresh=True)
            report = learner.observe(task).to_dict()
            if not forward:
                exams.append(task.exam())
            row = kept.row(index, report)
            if row is None:
                row = learner.evaluate(exams)
                kept.add(index, report, row)
            rows.append(row)
            main = next(iter(row))
            bar.set_postfix({main: f"{row[main][: index + 1].mean():.4f}"}, refresh=False)
            bar.update()
    if not rows:
        raise ValueError("expected at least one task, got a stream without any.")
    return _result(learner, rows, untrained, exams)


def _result(
    learner: Learner,
    rows: list[dict[str, np.ndarray]],
    untrained: dict[str, np.ndarray] | None,
    exams: Sequence[Task],
) -> ContinualResult:
    size, names = len(rows), tuple(rows[0])
    if untrained is None:
        untrained = {name: np.full(size, np.nan) for name in names}
    return ContinualResult(
        tuple(report.name for report in learner.reports),
        tuple(report.digest for report in learner.reports),
        {name: np.stack([_padded(row[name], size) for row in rows]) for name in names},
        untrained,
        tuple(learner.reports),
        tuple(task.labels for task in exams),
    )


def _exams(stream: Iterable[Task]) -> list[Task]:
    if not isinstance(stream, Sequence):
        raise ValueError(
            "expected a sequence of tasks with forward=True, which looks ahead; got "
            f"{type(stream).__name__}. Make it a list."
        )
    if isinstance(stream, TaskStream):  # these make a test set without making a training set
        return [stream.exam(index) for index in range(len(stream))]
    return [stream[index].exam() for index in range(len(stream))]


def _padded(row: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([row, np.full(size - len(row), np.nan)])


class _Kept:
    """Rows of scores beside the checkpoints, each with the report of the state that it is of."""

    def __init__(self, folder: Path | None, forward: bool) -> None:
        self.path = None if folder is None else folder / SCORES_FILE
        self.forward = forward
        self.entries: list[Any] = []
        if self.path is not None and self.path.is_file():
            digest, _, content = self.path.read_bytes().partition(b"\n")
            if digest.decode(errors="replace") == sha256(content):  # else damaged: computed again
                self.entries = json.loads(content)

    def row(self, index: int, report: dict[str, Any]) -> dict[str, np.ndarray] | None:
        if index >= len(self.entries):
            return None
        entry = self.entries[index]
        # The seconds in a report are those of the very training: no other state has the same.
        same = json.dumps(entry["report"]) == json.dumps(report)  # as text: NaN is not NaN
        if entry["forward"] != self.forward or not same:
            return None
        return {name: np.array(row) for name, row in entry["scores"].items()}

    def add(self, index: int, report: dict[str, Any], row: dict[str, np.ndarray]) -> None:
        if self.path is None:
            return
        scores = {name: values.tolist() for name, values in row.items()}
        entry = {"forward": self.forward, "report": report, "scores": scores}
        self.entries = [*self.entries[:index], entry]
        content = json.dumps(self.entries).encode()
        write_atomically(self.path, sha256(content).encode() + b"\n" + content)
