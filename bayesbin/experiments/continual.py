"""A sequence of tasks as its settings say: learned, recorded with a posterior per task, and used again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bayesbin import data
from bayesbin.continual import (
    ContinualResult,
    Learner,
    MultiHead,
    SplitClasses,
    Task,
    TaskStream,
    learn,
)
from bayesbin.continual.checkpoints import file_of
from bayesbin.core.checks import whole_number
from bayesbin.core.files import CorruptFileError, sha256, write_atomically
from bayesbin.ensemble import Ensemble
from bayesbin.experiments.continual_learners import continual_learner, continual_stream, unseen_task
from bayesbin.experiments.continual_settings import ContinualSettings
from bayesbin.experiments.machine import environment
from bayesbin.experiments.record import (
    CHECKPOINTS,
    NETWORK,
    POSTERIOR,
    data_record,
    existing_record,
    read_record,
    require_kind,
    require_same,
    write_record,
    writing,
)
from bayesbin.experiments.runs import Run, load_splits, verified_splits
from bayesbin.infer.checkpoint import read_checkpoint
from bayesbin.posterior import BinaryPosterior
from bayesbin.posterior.file import to_bytes


@dataclass(frozen=True, eq=False)
class ContinualRun:
    """A finished sequence of tasks; ``str`` gives its tables.

    :param result: the matrices of scores, and a report on each task.
    :param record: what ``run.json`` holds: the result, ``uncertainty`` (:func:`uncertainty_rows`, after the
        last task), ``settings``, ``data`` (name, folder, digest, sizes), ``scored_on``, ``seconds`` of
        training, ``environment``, ``files`` (their digests).
    """

    folder: Path
    settings: ContinualSettings
    result: ContinualResult
    record: Mapping[str, Any]

    @property
    def uncertainty(self) -> list[dict[str, Any]]:
        """How sure the last posterior is of each task, and of one that it has not learned."""
        return self.record["uncertainty"]

    def after(
        self, task: int | None = None, data_folder: str | os.PathLike[str] | None = None
    ) -> TaskRun:
        """The network and the posterior after a task, as they answer for it.

        :param task: its number, from 1; None: the last one. :param data_folder: where the data are now;
            None: where they were.
        :raises ValueError: for a number out of range. :raises CorruptFileError: if its state is missing or
            damaged. :raises DataError: if the data cannot be read, or are not those of the run.
        """
        last = len(self.result.tasks)
        number = last if task is None else whole_number("task", task, 1, last)
        splits = verified_splits(self.settings, self.record, data_folder)
        stream = continual_stream(self.settings, splits)
        learner = continual_learner(self.settings, stream, progress=False)
        path = file_of(self.folder / CHECKPOINTS, number - 1)
        if not path.is_file():
            raise CorruptFileError(
                path,
                f"the state after task {number} is missing from the run; restore it from a copy.",
            )
        learner.load_state_dict(read_checkpoint(path)["learner"])
        net, posterior = learner.answering(stream.exam(number - 1))
        return TaskRun(
            self.folder,
            self.settings,
            net.eval(),
            posterior,
            self.record,
            learner,
            stream,
            number,
            named=task is not None,
        )

    def __str__(self) -> str:
        return "\n\n".join([_scores_table(self), _posterior_table(self), _metrics_lines(self)])


@dataclass(frozen=True, eq=False)
class TaskRun(Run):
    """The network and the posterior after one task of a sequence.

    :param number: of the task, from 1. :param named: whether it was asked for by its number.
    """

    learner: Learner
    stream: TaskStream
    number: int
    named: bool

    @property
    def name(self) -> str:
        return f"{self.folder.resolve().name}, task {self.number}"

    @property
    def labels(self) -> list[str]:
        if isinstance(self.stream, SplitClasses) and self.settings.scenario != "class":
            return [str(k) for k in self.stream.classes(self.number - 1)]
        return [str(k) for k in range(self.stream.splits.train.num_classes or 0)]

    def digest_of(self, name: str) -> str | None:
        return self.record["files"].get(f"task-{self.number}/{name}")

    def splits(self, data_folder: str | os.PathLike[str] | None = None) -> data.Splits:
        """The data of the task; those of the sequence were verified when the run was opened."""
        task = self.stream[self.number - 1]
        assert task.train is not None
        return data.Splits(task.train, task.test, self.stream.splits.preprocessing)

    def ensemble(
        self, num_samples: int = 32, seed: int = 0, *, splits: data.Splits | None = None
    ) -> Ensemble:
        """The networks that the learner answers the task with, normalised as it normalises them.

        :raises ValueError: for other draws than those whose normalisation statistics the learner keeps.
        """
        return self._answering(self.stream.exam(self.number - 1), num_samples, seed)

    def evaluate(self, num_samples: int, seed: int) -> dict[str, Any]:
        """Scores of this posterior on each task learned so far, and their averages.

        :returns: as :meth:`Ensemble.evaluate`, averaged over tasks, with ``tasks``, a row for each.
        """
        num_samples = whole_number("num_samples", num_samples, at_least=1)
        rows = []
        for index in range(self.number):
            exam = self.stream.exam(index)
            found = self._answering(exam, num_samples, seed).evaluate(exam.test.x, exam.test.y)
            rows.append({"task": exam.name, **found})
        self.learner.answering(self.stream.exam(self.number - 1))  # its head, as before
        return {**_averaged(rows), "num_samples": num_samples, "tasks": rows}

    def require_one_network(self) -> None:
        """Refuse a network with a head per task where no task is named."""
        if isinstance(self.net, MultiHead) and not self.named:
            raise ValueError(
                f"expected to know which task the inputs are of, for the sequence in {self.folder} has a "
                f"head for each of its {len(self.net.heads)} tasks; name it with --task K."
            )

    def _answering(self, task: Task, num_samples: int, seed: int) -> Ensemble:
        kept, learner = self.learner.normalization, self.learner
        if kept.keeps and (seed != learner.seed or num_samples > max(learner.num_samples, 1)):
            raise ValueError(
                f"The run in {self.folder} keeps normalisation statistics of {learner.num_samples} draws of "
                f"seed {learner.seed}; got {num_samples} draws of seed {seed}. Use these, or fewer."
            )
        ensemble = learner.ensemble(task, num_samples, seed)
        return kept.settled(task.name, ensemble, task.test.x)


def run_continual(
    settings: ContinualSettings, folder: str | os.PathLike[str], *, progress: bool | None = False
) -> ContinualRun:
    """Learn the tasks that the settings say, score every task after every task, and write the record.

    ``folder`` gets a record, a posterior and a network for each task, and the learner's whole state after it.
    The same call continues what was interrupted, within a task too, and only reads the record where all is
    done. One process at a time writes to a folder.

    :raises ValueError: if the folder holds a run of other settings or other data, with what differs, or
        something else, or the data do not have the tasks. :raises FolderInUseError: if another process is
        writing to it. :raises DataError: if the data cannot be read. :raises KeyboardInterrupt: after a
        checkpoint.
    """
    folder = Path(folder)
    splits = load_splits(settings)
    stream = continual_stream(settings, splits)
    record: dict[str, Any] = {
        "kind": "tasks",
        **settings.to_record(),
        "data": data_record(
            splits,
            settings.data_folder,
            training=len(stream.splits.train),
            scored=len(stream.splits.test),
        ),
        "scored_on": "validation" if settings.validation else "test",
        "environment": environment(),
    }
    found = existing_record(folder, "tasks")
    if found is not None:
        require_same(folder, found, record)
        if found["finished"]:
            return load_continual(folder)
    with writing(folder, "tasks") as found:
        if found is None:
            write_record(folder, record | {"finished": False})
        else:
            require_same(folder, found, record)
            record["environment"] = found["environment"]
        _learn(settings, folder, stream, record, progress)
    return load_continual(folder)


def load_continual(folder: str | os.PathLike[str]) -> ContinualRun:
    """The sequence of tasks in ``folder``, read from its record.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged record.
    :raises ValueError: for another kind of run, one that is not finished, or of a version that this one does
        not read.
    """
    folder = Path(folder)
    record = read_record(folder)
    require_kind(folder, record, "tasks")
    settings = ContinualSettings.from_record(record)
    return ContinualRun(folder, settings, ContinualResult.from_dict(record), record)


def _learn(
    settings: ContinualSettings,
    folder: Path,
    stream: TaskStream,
    record: dict[str, Any],
    progress: bool | None,
) -> None:
    learner = continual_learner(settings, stream, folder / CHECKPOINTS, progress)
    digests: dict[str, str] = {}

    def keep(index: int) -> None:
        """Write the network and the posterior after a task."""
        net, posterior = learner.answering(stream.exam(index))
        digests.update(_save(folder, index + 1, net, posterior))

    result = learn(learner, _Watched(stream, keep), progress=progress)
    tasks = [stream.exam(index) for index in range(len(stream))]
    matrices = {"R": "accuracy", "nll": "nll", "ece": "ece"}
    record |= {
        **result.to_dict(),
        # A score may be infinite, which the record keeps.
        **{name: result.scores[score].tolist() for name, score in matrices.items()},
        "uncertainty": uncertainty_rows(learner, tasks, unseen_task(settings, stream)),
        "seconds": sum(report.seconds for report in result.reports),
        "files": digests,
    }
    write_record(folder, record | {"finished": True})


def _save(folder: Path, number: int, net: nn.Module, posterior: Any) -> dict[str, str]:
    """Write what a task left; the files' digests. Real weights without spread have no file of their own."""
    place = folder / f"task-{number}"
    place.mkdir(exist_ok=True)
    write_atomically(place / NETWORK, to_bytes(net.state_dict()))
    names = [NETWORK]
    if isinstance(posterior, BinaryPosterior):
        posterior.save(place / POSTERIOR)
        names.append(POSTERIOR)
    return {f"{place.name}/{name}": sha256((place / name).read_bytes()) for name in names}


class _Watched(Sequence[Task]):
    """A stream that calls ``done(index)`` when a task has been learned and scored."""

    def __init__(self, stream: TaskStream, done: Callable[[int], None]) -> None:
        self.stream, self.done = stream, done

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: Any) -> Any:
        return self.stream[index]

    def __iter__(self) -> Iterator[Task]:
        for index in range(len(self.stream)):
            yield self.stream[index]
            self.done(index)


def _averaged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number over rows of nested mappings of the same form."""
    return {
        name: _averaged([row[name] for row in rows])
        if isinstance(value, Mapping)
        else sum(row[name] for row in rows) / len(rows)
        for name, value in rows[0].items()
        if name not in ("task", "num_samples")
    }


def uncertainty_rows(
    learner: Learner, tasks: Iterable[Task], unseen: Task | None
) -> list[dict[str, Any]]:
    """How sure a learner is of the test inputs of each task, and of one that it has not learned.

    :returns: for each task its name, whether it was ``learned``, and the means over its test inputs of
        the entropy of the prediction and of its mutual information with the weights, in nats.
    """
    rows = []
    for task in [*tasks, *([] if unseen is None else [unseen])]:
        prediction = learner.predict(task.test.x, task)
        rows.append(
            {
                "task": task.name,
                "learned": task is not unseen,
                "entropy": prediction.entropy.double().mean().item(),
                "mutual_information": prediction.mutual_information.double().mean().item(),
            }
        )
    return rows


# Tables


def _scores_table(run: ContinualRun) -> str:
    """R in per cent, a row for each task learned, with the average over the tasks seen."""
    R, names = run.result.R, run.result.tasks
    width = max(map(len, names))
    lines = [
        f"accuracy in per cent of {run.settings.dataset} ({run.record['scored_on']}), after each task",
        "  ".join([f"{'':<{width}}", "average", *(f"{j + 1:>5}" for j in range(len(names)))]),
    ]
    for i, (name, mean) in enumerate(zip(names, run.record["average_accuracies"], strict=True)):
        cells = [f"{100 * value:>5.1f}" for value in R[i, : i + 1]]
        lines.append("  ".join([f"{name:<{width}}", f"{100 * mean:>7.1f}", *cells]))
    return "\n".join(lines)


def _posterior_table(run: ContinualRun) -> str:
    """What became of the posterior, and how sure the predictions are after the last task."""
    reports = {report.name: report for report in run.result.reports}
    names = [row["task"] + ("" if row["learned"] else " (unseen)") for row in run.uncertainty]
    width = max(map(len, names))
    heads = (
        "seconds",
        "entropy, bits/weight",
        "|lambda| > 3",
        "KL, bits",
        "mutual information, nats",
    )
    lines = ["  ".join([f"{'':<{width}}", *heads])]
    for name, row in zip(names, run.uncertainty, strict=True):
        report = reports.get(row["task"]) if row["learned"] else None
        cells = [""] * 4
        if report is not None:
            cells = [f"{report.seconds:.1f}"]
            known = not math.isnan(report.entropy_bits)
            cells += (
                [f"{report.entropy_bits:.3f}", f"{report.saturated:.1%}", f"{report.kl_bits:,.0f}"]
                if known
                else ["-"] * 3
            )
        cells.append(f"{row['mutual_information']:.4f}")
        sized = [f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True)]
        lines.append("  ".join([f"{name:<{width}}", *sized]))
    return "\n".join(lines)


def _metrics_lines(run: ContinualRun) -> str:
    values = run.result.metrics()
    heads = {"average_nll": "average NLL, nats", "average_ece": "average ECE"}
    return "\n".join(
        f"{heads.get(name, name.replace('_', ' ')):<20} {value:.4f}"
        for name, value in values.items()
        if not math.isnan(value)
    )
