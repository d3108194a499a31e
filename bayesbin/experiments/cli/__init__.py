"""``bayesbin ...``: argument parsing. Every verb calls one public function and prints what it returns.

Exit codes: 0 done, 1 a known error (one sentence on stderr), 2 a wrong command line, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from bayesbin import __version__
from bayesbin.experiments.cli import comparing, continual, reporting, shipping, training
from bayesbin.experiments.cli.verbs import say

# Whatever takes time to import is imported by the verb that needs it: --help answers at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code.

    :param argv: the arguments after the program's name; None: those of the process.

    >>> main(["info", "--json"])  # doctest: +ELLIPSIS
    {"bayesbin": ...
    0
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    try:
        report = arguments.verb(arguments)
    except KeyboardInterrupt as interrupt:
        say(f"bayesbin: interrupted. {arguments.on_interrupt} {interrupt}".rstrip())
        return 130
    # DataError, CorruptFileError and every refused argument are ValueErrors; the others are files that
    # cannot be read or written, and training that diverged.
    except (ValueError, OSError, FloatingPointError) as error:
        say(f"bayesbin: error: {_sentence(error)}")
        return 1
    try:
        print(json.dumps(report[0]) if arguments.json else report[1], flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
    return 0


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
