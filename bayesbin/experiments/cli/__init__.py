"""``bayesbin ...``: argument parsing. Every verb calls one public function and prints what it returns.

Exit codes: 0 done, 1 a known error (one sentence on stderr), 2 a wrong command line, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bayesbin import __version__
from bayesbin.experiments.cli import comparing, continual, reporting, shipping, training
from bayesbin.experiments.cli.streams import (
    open_closed_streams,
    require_output,
    say,
    write_report,
)

# Whatever takes time to import is imported by the verb that needs it: --help answers at once.

# What warnings call the arguments of functions, as the command line has them.
_OPTIONS = {
    "preprocess=True if that is right, False if not": "--raw if that is right, --as-is if not",
    "preprocess=True": "--raw",
}

# DataError, CorruptFileError and every refused argument are ValueErrors; the others are files that cannot
# be read or written, training that diverged, and an optional package that is not installed.
_KNOWN = (ValueError, OSError, FloatingPointError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code.

    :param argv: the arguments after the program's name; None: those of the process.

    >>> main(["info", "--json"])  # doctest: +ELLIPSIS
    {"bayesbin": ...
    0
    """
    open_closed_streams()
    helped = io.StringIO()
    try:
        with contextlib.redirect_stdout(helped):
            arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why, or printed help or a version
        code = stop.code if isinstance(stop.code, int) else 2
        return code or _reported(lambda: helped.getvalue().rstrip("\n"))
    try:
        return _reported(lambda: _report_of(arguments))
    except KeyboardInterrupt as interrupt:
        say(f"bayesbin: interrupted. {arguments.on_interrupt} {interrupt}".rstrip())
        return 130


def _report_of(arguments: argparse.Namespace) -> str:
    # What a library prints meanwhile is no part of the report.
    with contextlib.redirect_stdout(sys.stderr or io.StringIO()), _own_warnings():
        report, text = arguments.verb(arguments)
    return json_of(report) if arguments.json else text


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Let warnings of this package be sentences, as errors are, without a line of its code."""
    with warnings.catch_warnings():
        before = warnings.showwarning
        if not sys.warnoptions:  # which are the user's word
            warnings.simplefilter("always", UserWarning)

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if category is UserWarning:
                text = str(message)
                for argument, option in _OPTIONS.items():
                    text = text.replace(argument, option)
                say(f"bayesbin: warning: {text}")
            else:
                before(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _reported(make: Callable[[], str]) -> int:
    """Make a report and print it; the exit code."""
    try:
        require_output()
        write_report(make())
    except _KNOWN as error:
        say(f"bayesbin: error: {_sentence(error)}")
        return 1
    return 0


def json_of(report: Any) -> str:
    """A report as JSON in one line; numbers that are not finite become null, which JSON can hold.

    >>> json_of({"nll": math.nan, "hidden": (8, 8)})
    '{"nll": null, "hidden": [8, 8]}'
    """
    return json.dumps(_finite(report), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sentence(error: Exception) -> str:
    """The operating system's own errors by name and reason; all others say it themselves."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}."
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesbin",
        description="Bayesian inference over binary weights.",
        epilog="Begin with: bayesbin demo two-moons",
    )
    parser.add_argument("--version", action="version", version=f"bayesbin {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for group in (training, reporting, continual, comparing, shipping):
        group.add_verbs(verbs)
    return parser
