"""A file per learned task: a learner's whole state, verified when it is read."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayesbin.core.files import CorruptFileError
from bayesbin.infer.checkpoint import (
    CheckpointWarning,
    load_latest,
    read_checkpoint,
    write_checkpoint,
)
from bayesbin.infer.setup import require_configuration


def folder_of(folder: Path, index: int) -> Path:
    """Where the training of task ``index`` (from 0) keeps its checkpoints while it lasts."""
    return folder / f"task-{index + 1:06d}"


def file_of(folder: Path, index: int) -> Path:
    """The state after task ``index`` (from 0)."""
    return folder / f"task-{index + 1:06d}.ckpt"


def save_task(
    folder: Path, index: int, state: Mapping[str, Any], configuration: dict[str, str]
) -> None:
    """Write the state after a task, atomically, and remove the checkpoints within it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": index + 1,
        "step": 0,
        "configuration": configuration,
        "learner": dict(state),
    }
    write_checkpoint(file_of(folder, index), content)
    shutil.rmtree(folder_of(folder, index), ignore_errors=True)


def load_task(folder: Path, index: int, configuration: dict[str, str]) -> dict[str, Any] | None:
    """The state after a task, or None if there is none to be had: then the task is to be learned.

    A damaged file is named in a CheckpointWarning.

    :raises ValueError: for a file of other tasks or settings.
    """
    path = file_of(folder, index)
    if not path.is_file():
        return None
    try:
        content = read_checkpoint(path)
    except CorruptFileError as error:
        before = f"the state after task {index}" if index else "the initial state"
        warnings.warn(
            f"Passing over the damaged checkpoint of task {index + 1}: it is learned again, from "
            f"{before}. {error}",
            CheckpointWarning,
            stacklevel=3,
        )
        return None
    require_configuration(content["configuration"], configuration)
    # Left where a process was killed between writing the file and removing what it stands for.
    shutil.rmtree(folder_of(folder, index), ignore_errors=True)
    return content["learner"]


def drop_if_all_damaged(folder: Path) -> None:
    """Remove the checkpoints within a task if there are some and none can be read, with a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # fit says it again
            load_latest(folder)
    except CorruptFileError as error:
        warnings.warn(
            f"Removing damaged checkpoints; the task is learned from its start. {error}",
            CheckpointWarning,
            stacklevel=2,
        )
        shutil.rmtree(folder)
