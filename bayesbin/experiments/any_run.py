"""A run of any kind, one network, a comparison or a sequence of tasks: opened, chosen from, rebuilt."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from bayesbin.experiments.comparison import Comparison, compare_runs, load_comparison
from bayesbin.experiments.continual import ContinualRun, TaskRun, load_continual, run_continual
from bayesbin.experiments.record import KINDS, read_record
from bayesbin.experiments.runs import Run, evaluate_network, load_run, verified_splits
from bayesbin.experiments.train import train_run

AnyRun = Run | Comparison | ContinualRun
_LOAD = {"network": load_run, "comparison": load_comparison, "tasks": load_continual}


def open_run(folder: str | os.PathLike[str]) -> AnyRun:
    """The run in ``folder``, of whatever kind.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged or missing file.
    :raises ValueError: for a run that is not finished, or of a version that this one does not read.
    """
    return _LOAD[read_record(folder)["kind"]](folder)


def choose_run(
    folder: str | os.PathLike[str],
    run: str | None = None,
    task: int | None = None,
    data_folder: str | os.PathLike[str] | None = None,
) -> Run:
    """One network with its posterior, of a run of any kind.

    :param run: of a comparison, the name of a run; None: the one with the lowest validation NLL.
    :param task: of a sequence of tasks, the number of a task, from 1; None: the last one.
    :param data_folder: where the data are now; None: where they were.
    :raises ValueError: for a choice that the run does not have. And as :func:`open_run`.
    """
    found = open_run(folder)
    if run is not None and not isinstance(found, Comparison):
        raise ValueError(
            f"expected a comparison for --run {run}, got {_what(found)} in {folder}; leave it out."
        )
    if task is not None and not isinstance(found, ContinualRun):
        raise ValueError(
            f"expected a sequence of tasks for --task {task}, got {_what(found)} in {folder}; leave it out."
        )
    if isinstance(found, Comparison):
        return found.run(run)
    return found.after(task, data_folder) if isinstance(found, ContinualRun) else found


def evaluate_run(
    run: Run,
    *,
    data_folder: str | os.PathLike[str] | None = None,
    num_samples: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Test scores of the mode, of the mean of draws and of single draws: :meth:`Ensemble.evaluate`.

    Normalisation statistics of each draw are computed from training data first. After a task of a
    sequence, they are the averages over the tasks learned so far, with ``tasks``, a row for each.

    :raises ValueError: for fewer than 1 draw. :raises DataError: if the data cannot be read or are not
        those of the run.
    """
    if isinstance(run, TaskRun):
        return run.evaluate(num_samples, seed)
    return evaluate_network(run, data_folder=data_folder, num_samples=num_samples, seed=seed)


def rebuild(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data_folder: str | os.PathLike[str] | None = None,
    progress: bool | None = False,
) -> AnyRun:
    """Train the run in ``folder`` again, from its record alone, into ``out``: to the same bits.

    The same bits are promised for the same machine and versions, which the record names.

    :param data_folder: where the data are now; None: where they were.
    :raises ValueError: if ``out`` holds something else. :raises DataError: if the data cannot be read, or are
        not those of the run. And as :func:`open_run`.
    """
    found = open_run(folder)
    now = None if data_folder is None else os.fspath(data_folder)

    def moved(settings: Any) -> Any:
        """The settings, with the folder that the data are in now, verified."""
        settings = settings if now is None else dataclasses.replace(settings, data_folder=now)
        verified_splits(settings, found.record, now)
        return settings

    if isinstance(found, Comparison):
        runs = {name: moved(found.run(name).settings) for name in found.names}
        num_samples = found.record["settings"]["num_samples"]
        return compare_runs(runs, out, num_samples=num_samples, progress=progress)
    train: Any = run_continual if isinstance(found, ContinualRun) else train_run
    return train(moved(found.settings), out, progress=progress)


def _what(run: AnyRun) -> str:
    return KINDS[run.record["kind"]]
