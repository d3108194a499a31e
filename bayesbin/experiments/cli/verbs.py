"""Options that several verbs share, and the checks of what they are given."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path
from typing import Any

from bayesbin.core.checks import user_path
from bayesbin.core.names import RECIPES
from bayesbin.experiments.cli.streams import say

RUN_DATA_HELP = "folder of the data files, if they are not where they were in training"
DATA_HELP = "folder of the data files (default: the environment variable BAYESBIN_DATA)"
_PROBE = b"\0" * 4096


def add_verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    """Add a verb, and return its parser, which has the options ``--json`` and ``--quiet``.

    :param run: a function of the parsed arguments that returns the report twice: as what JSON can hold,
        and as text.
    """
    # No abbreviated options: a later option must not change what a script means.
    parser = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on stdout"
    )
    parser.add_argument("--quiet", action="store_true", help="no messages and no progress bar")
    parser.set_defaults(verb=run, on_interrupt="", no_progress=False)
    return parser


def progress_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-progress`` to a verb that shows a progress bar; :func:`progress_of` reads it."""
    parser.add_argument(
        "--no-progress",
        action="store_true",
        help="no progress bar (default: one if standard error is a terminal)",
    )


def progress_of(arguments: argparse.Namespace) -> bool | None:
    """``progress`` for the function that a verb calls: None, a bar on terminals, or False."""
    return False if arguments.quiet or arguments.no_progress else None


def path(text: str) -> str:
    """The ``type`` of options and arguments that are paths: ``~`` becomes the home folder."""
    try:
        return str(user_path("it", text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def recipe_options(parser: argparse._ActionsContainer, several: bool = False) -> None:
    """Add ``--recipe`` and ``--set`` to a verb that trains.

    :param several: whether it takes several recipes, and settings for one of them as ``NAME.setting=value``.
    """
    known = ", ".join(RECIPES)
    if several:
        parser.add_argument(
            "--recipes", "--recipe", nargs="+", action="extend", metavar="NAME",
            help=f"all (default), or some of {known}",
        )  # fmt: skip
    else:
        parser.add_argument("--recipe", metavar="NAME", help=f"one of {known} (default: bayesbin)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="SETTING=VALUE",
        help="settings of the recipe, lr=0.2 say; a wrong name is answered with those there are"
        + ("; NAME.lr=0.2 is for one recipe alone" if several else ""),
    )  # fmt: skip


def run_options(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the folder of a run, ``--run``, ``--task`` and ``--data`` to a verb that uses one."""
    parser.add_argument(
        "folder", metavar="RUN", type=path,
        help="what `bayesbin train`, `compare` or `continual` wrote with --out",
    )  # fmt: skip
    choice_options(parser, verb)
    parser.add_argument("--data", metavar="FOLDER", type=path, help=RUN_DATA_HELP)


def choice_options(parser: argparse._ActionsContainer, verb: str) -> None:
    """Add ``--run`` and ``--task``, which choose one network of a run."""
    parser.add_argument(
        "--run", metavar="NAME",
        help=f"of a comparison, the run to {verb}, bop_seed0 say (default: the one with the lowest "
        "validation NLL)",
    )  # fmt: skip
    parser.add_argument(
        "--task", type=int, metavar="K",
        help=f"of a sequence of tasks, {verb} the posterior after task K, from 1 (default: the last)",
    )  # fmt: skip


def chosen_run(arguments: argparse.Namespace, folder: str) -> Any:
    """The network that the options of :func:`run_options` choose; says which, where there are several."""
    from bayesbin.experiments import choose_run

    run = choose_run(folder, arguments.run, arguments.task, arguments.data)
    if run.folder != Path(folder) and arguments.run is None:
        say(f"Using {run.name}, the run with the lowest validation NLL.", arguments.quiet)
    elif run.record["kind"] == "tasks" and arguments.task is None:
        say(f"Using the posterior after the last task: {run.name}.", arguments.quiet)
    return run


def device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` to a verb that trains; :func:`device_of` reads it."""
    parser.add_argument(
        "--device", metavar="NAME", default="cpu", help="cpu (default), cuda, cuda:1 or mps"
    )


def device_of(arguments: argparse.Namespace) -> Any:
    """The torch device that ``--device`` names. Raises ValueError if this machine has no such device."""
    import torch

    name = arguments.device
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected a device such as cpu, cuda or cuda:1; got {name!r}.") from error
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    count = counts.get(device.type)
    if count is None:
        raise ValueError(f"expected a device of cpu, cuda or mps; got {name!r}.")
    if (device.index or 0) >= count:
        there = ", ".join(
            kind if number == 1 else f"{kind}:0 to {kind}:{number - 1}"
            for kind, number in counts.items()
            if number
        )
        raise ValueError(f"expected a device of this machine ({there}); got {name!r}.")
    return device


def require_writable(out: str, kind: str = "file") -> Path:
    """Check before the work that its result can be written, by writing a few bytes beside it.

    :param kind: "file", whose folder has to exist, or "folder", which will be made with its parents.
    :returns: the path, with ``~`` replaced by the home folder.
    :raises ValueError: for a path whose ``~`` has no home, an empty one, or something of another kind
        in its place.
    :raises OSError: if its folder does not exist, cannot be written, or the disk is full.
    """
    path = user_path("the output", out)
    if os.path.lexists(path):
        right = path.is_dir() if kind == "folder" else path.is_file()
        if not right:
            raise ValueError(
                f"expected a {kind} at {path}, got {_kind_of(path)}; name another one."
            )
    folder = path if kind == "folder" else path.absolute().parent
    if kind == "folder":
        while not os.path.lexists(folder):
            folder = folder.absolute().parent
    if not folder.is_dir():
        there = f"{_kind_of(folder)} at {folder}" if os.path.lexists(folder) else f"no {folder}"
        raise FileNotFoundError(f"expected a folder for {path}, but there is {there}; create it.")
    probe = folder / f".{path.name}.{secrets.token_hex(8)}.tmp"  # a name as of core.files
    try:
        with open(probe, "xb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"cannot write {path}: {reason}; name another place.") from error
    finally:
        probe.unlink(missing_ok=True)
    return path


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a file" if path.is_file() else "a device, a pipe or a broken link"
