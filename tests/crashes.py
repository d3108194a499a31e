"""Kill a run around every file operation, and run it again: a program that forks after its imports.

    python tests/crashes.py FOLDER VERB [POINT ...]
    python tests/crashes.py FOLDER VERB FIRST::STEP

runs ``train``, ``compare`` or ``continual`` once to count the points before, within and after each operation
that changes a file below FOLDER; then for each of them, those named, or every STEP-th from FIRST on, a
child that ends itself there with SIGKILL, and another that runs the verb again. One line of JSON says how
many points there are, which operations they belong to, and where the second child did not get the files
that a run without interruption gets.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# A process that is forked has no threads to lose: of the CPU alone, and one of them.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

import torch

import bayesbin.experiments.any_run as any_run
from bayesbin import data, plots
from bayesbin.core.files import LOCK, contents, sha256
from bayesbin.experiments import (
    ComparisonSettings,
    ContinualSettings,
    RunSettings,
    compare,
    run_continual,
    train_run,
)

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Points:
    """Counts points around file operations below a folder, and dies at one of them.

    :param folder: what is written elsewhere does not count. :param last: the point to die at; None: none.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last = str(folder), last
        self.passed: list[str] = []
        self.audited = 0

    def reach(self, what: str) -> None:
        self.passed.append(what)
        if len(self.passed) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def below(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder)

    def install(self) -> None:
        """Patch what changes files in this process."""
        for name in (
            "fsync",
            "replace",
            "rename",
            "mkdir",
            "unlink",
            "remove",
            "rmdir",
            "truncate",
            "write",
        ):
            self._wrap(name)
        os_open, plain_open = os.open, builtins.open

        def open_descriptor(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if not (self.below(path) and flags & _CHANGING):
                return os_open(path, flags, *args, **kwargs)
            self.reach(f"before open {path}")
            descriptor = os_open(path, flags, *args, **kwargs)
            self.reach(f"after open {path}")
            return descriptor

        def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not (self.below(path) and set(mode) & set("wxa+")):
                return plain_open(path, mode, *args, **kwargs)
            self.reach(f"before open {path}")
            file = plain_open(path, mode, *args, **kwargs)
            self.reach(f"after open {path}")
            return _Written(file, self)

        os.open = open_descriptor
        builtins.open = io.open = open_file
        sys.addaudithook(self._audit)

    def _wrap(self, name: str) -> None:
        function = getattr(os, name)

        def wrapped(first: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(first, (str, os.PathLike)) and not self.below(first) and not kwargs:
                return function(first, *args, **kwargs)
            self.reach(f"before {name} {first}")
            result = function(first, *args, **kwargs)
            self.reach(f"after {name} {first}")
            return result

        setattr(os, name, wrapped)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        """What the interpreter itself says of files that are opened to be written, renamed and deleted."""
        if event == "open":
            self.audited += self.below(args[0]) and bool((args[2] or 0) & _CHANGING)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            self.audited += self.below(args[0]) or isinstance(args[0], int)


class _Written:
    """A file whose every write has a point in its middle."""

    def __init__(self, file: Any, points: Points) -> None:
        self.file, self.points = file, points

    def write(self, payload: bytes) -> int:
        half = len(payload) // 2
        self.points.reach("before write")
        self.file.write(payload[:half])
        self.file.flush()
        self.points.reach("within write")
        self.file.write(payload[half:])
        self.file.flush()
        self.points.reach("after write")
        return len(payload)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def in_a_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """The exit status of a forked child, negative for a signal, and what its work returned."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            answer, code = work(), 0
        except BaseException:
            answer, code = traceback.format_exc(), 1
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(text) if text else None


def tiny_digits() -> data.Splits:
    """Six images of each digit to learn from, and two to be tested on."""
    whole = data.digits()
    chosen = [torch.nonzero(whole.train.y == k)[:8, 0] for k in range(10)]
    train, test = (torch.cat([rows[part] for rows in chosen]) for part in (slice(6), slice(6, 8)))
    parts: Any = [
        data.Dataset(whole.train.x[i], whole.train.y[i], "digits", 10) for i in (train, test)
    ]
    return data.Splits(parts[0], parts[1], whole.preprocessing)


SMALL: dict[str, Any] = {"width": 4, "depth": 1, "epochs": 2, "batch_size": 100}
VERBS: dict[str, Callable[[Path], Any]] = {
    "train": lambda folder: train_run(RunSettings("two-moons", **SMALL), folder),
    "compare": lambda folder: compare(
        ComparisonSettings(("bayesbin", "bop"), "two-moons", num_samples=2, **SMALL), folder
    ),
    "continual": lambda folder: run_continual(
        ContinualSettings("permuted", tasks=2, epochs=2, hidden=(4,), batch_size=60, num_samples=2), folder
    ),
}  # fmt: skip


def result(folder: Path) -> dict[str, str]:
    """The digests of the files that a run promises, and the numbers in its record."""
    run = any_run.open_run(folder)
    found = {
        str(path.relative_to(folder)): sha256(path.read_bytes())
        for path in sorted(folder.rglob("*.safetensors"))
    }
    names = ("validation", "R", "nll", "runs", "finished", "files")
    found["record"] = repr({name: run.record.get(name) for name in names})
    # The file of a lock that was killed blocks nobody; temporaries are swept by the next writer.
    left = [str(path) for path in folder.rglob(".*") if path.name != LOCK]
    assert not left, f"left behind: {left}"
    return found


def points_of(named: list[str], count: int) -> list[int]:
    """The points that the command line names, of 1 .. count."""
    if not named:
        return list(range(1, count + 1))
    if "::" in named[0]:
        first, step = map(int, named[0].split("::"))
        return list(range(first, count + 1, step))
    return list(map(int, named))


def main(folder: Path, verb: str, named: list[str]) -> dict[str, Any]:
    run, splits = VERBS[verb], tiny_digits()
    load = data.load
    data.load = lambda name, *args: splits if name == "digits" else load(name, *args)
    # Drawing is not what is killed here: a figure without curves has the same file operations.
    plots.plot_learning_curves = lambda curves: plots.Figure(figsize=(1, 1))

    def counted(last: int | None, place: Path) -> Any:
        points = Points(place, last)
        points.install()
        run(place / "run")
        return {"points": points.passed, "audited": points.audited}

    def resumed(place: Path) -> dict[str, str]:
        run(place / "run")
        return result(place / "run")

    run(folder / "warm")  # imports and first uses take longer than all the rest
    expected = result(folder / "warm")
    (folder / "whole").mkdir()
    status, whole = in_a_child(lambda: counted(None, folder / "whole"))
    assert status == 0, whole
    operations = Counter(
        point.split()[1] for point in whole["points"] if point.startswith("before")
    )
    seen = sum(operations[name] for name in operations if name not in ("fsync", "write"))
    assert seen >= whole["audited"], f"{whole['audited']} changes, of which {seen} have points"
    assert result(folder / "whole" / "run") == expected
    failures: list[dict[str, Any]] = []
    chosen = points_of(named, len(whole["points"]))
    for last in chosen:
        place = folder / f"{last}"
        place.mkdir()
        status, _ = in_a_child(partial(counted, last, place))
        killed = status == -signal.SIGKILL
        code, found = in_a_child(partial(resumed, place))
        if not killed or code or found != expected:
            what = whole["points"][last - 1].replace(str(folder / "whole"), "")
            failures.append({"point": last, "at": what, "killed": killed, "then": found})
        shutil.rmtree(place)
    shutil.rmtree(folder / "whole")
    shutil.rmtree(folder / "warm")
    assert contents(folder) == []
    return {
        "points": len(whole["points"]),
        "tried": len(chosen),
        "operations": operations,
        "failures": failures,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])))
