"""Learn a sequence of tasks as a configuration says, and keep a record of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bayesbin import data
from bayesbin.continual import ContinualResult, Learner, Task, learn
from bayesbin.experiments.continual_learners import continual_learner, continual_stream, unseen_task
from bayesbin.experiments.continual_settings import ContinualConfig, config_from
from bayesbin.experiments.record import environment
from bayesbin.experiments.record_file import RecordFile
from bayesbin.experiments.train import CHECKPOINTS, data_digest

CONTINUAL_RECORD = "continual.json"
_FILE = RecordFile(CONTINUAL_RECORD, "bayesbin continual run", 1, "a continual run", "continual")


@dataclass(frozen=True, eq=False)
class ContinualRun:
    """A finished sequence of tasks; ``str`` gives its tables.

    :param result: the matrices of scores, and a report on each task.
    :param uncertainty: of :func:`uncertainty_rows`, after the last task.
    :param record: what ``continual.json`` holds: these, ``config``, ``data`` (digest, sizes),
        ``scored_on``, ``seconds`` of training, ``environment``.
    """

    folder: Path
    config: ContinualConfig
    result: ContinualResult
    uncertainty: list[dict[str, Any]]
    record: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n\n".join([_scores_table(self), _posterior_table(self), _metrics_lines(self)])


def run_continual(
    config: ContinualConfig,
    folder: str | os.PathLike[str],
    data_folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> ContinualRun:
    """Learn the tasks of ``config``, score every task after every task, and write the record.

    ``folder`` gets ``continual.json`` and a checkpoint for each task. The same call continues what was
    interrupted, within a task too, and only reads the record where all is done.

    :param data_folder: where idx files are, see :func:`bayesbin.data.data_folder`.
    :raises ValueError: if the folder holds a run of another configuration, or something else, or the
        data do not have the tasks. :raises DataError: if the data cannot be read, or are others than
        those that the run was begun with. :raises KeyboardInterrupt: after a checkpoint.
    """
    folder = Path(folder)
    begun = _begun(folder, config)
    if begun is not None and begun["finished"]:
        return continual_report(folder)
    splits = data.load(config.dataset, None if data_folder is None else Path(data_folder))
    stream = continual_stream(config, splits)
    test = stream.splits.test
    record: dict[str, Any] = {
        "config": asdict(config),
        "data": {
            "name": splits.train.name,
            "sha256": data_digest(splits),
            "training": len(stream.splits.train),
            "scored": len(test),
        },
        "scored_on": "validation" if config.validation else "test",
    }
    if begun is None:
        folder.mkdir(parents=True, exist_ok=True)
        _FILE.write(folder, record | {"finished": False})
    elif begun["data"] != record["data"]:
        raise data.DataError(
            f"expected the {config.dataset} data that the run was begun with, got others (SHA-256 "
            f"{record['data']['sha256'][:12]}...); name their folder."
        )
    learner = continual_learner(config, stream, folder / CHECKPOINTS, progress)
    result = learn(learner, stream, progress=progress)
    tasks = [stream.exam(index) for index in range(len(stream))]
    record |= {
        **result.to_dict(),
        "uncertainty": uncertainty_rows(learner, tasks, unseen_task(config, stream)),
        "seconds": sum(report.seconds for report in result.reports),
        "environment": environment(),
    }
    _FILE.write(folder, record | {"finished": True})
    return continual_report(folder)


def continual_report(folder: str | os.PathLike[str]) -> ContinualRun:
    """The run in ``folder``, read from its record.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged record.
    :raises ValueError: for a run that is not finished, or of a version that this one does not read.
    """
    folder = Path(folder)
    record = _FILE.read(folder)
    if not record["finished"]:
        remedy = "run the same command again to continue it"
        raise ValueError(
            f"expected a finished run, got one that was interrupted in {folder}; {remedy}."
        )
    result = ContinualResult.from_dict(record)
    return ContinualRun(
        folder, config_from(record["config"]), result, record["uncertainty"], record
    )


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


# The record on disk


def _begun(folder: Path, config: ContinualConfig) -> dict[str, Any] | None:
    """The record in ``folder`` if it is of this run; an error if it is of another one."""
    if not (folder / CONTINUAL_RECORD).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"expected {folder} to be a new or empty folder, or a continual run; name another one."
            )
        return None
    record = _FILE.read(folder)
    saved, now = asdict(config_from(record["config"])), asdict(config)
    different = [f"{name} {saved[name]} there, {now[name]} now" for name in now
                 if saved[name] != now[name]]  # fmt: skip
    if different:
        raise ValueError(
            f"expected {folder} to hold a run of this configuration, but these differ: "
            f"{'; '.join(different)}. To go on, use the same settings to continue it, or name another "
            "folder."
        )
    return record


# Tables


def _scores_table(run: ContinualRun) -> str:
    """R in per cent, a row for each task learned, with the average over the tasks seen."""
    R, names = run.result.R, run.result.tasks
    width = max(map(len, names))
    lines = [
        f"accuracy in per cent of {run.config.dataset} ({run.record['scored_on']}), after each task",
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
