"""What the verbs share: their options, and what they say beside their reports."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

DATA_HELP = "folder of the data files (default: the environment variable BAYESBIN_DATA)"


def add_verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    """A verb's parser; ``run`` takes its arguments and returns what to print as JSON, and as text."""
    # No abbreviated options: a later option must not change what a script means.
    parser = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on stdout"
    )
    parser.set_defaults(verb=run)
    return parser


def require_folder_of(out: str) -> None:
    """Before the work is done, not after."""
    if not (folder := Path(out).absolute().parent).is_dir():
        raise FileNotFoundError(
            f"expected a folder for {out}, but there is no {folder}; create it."
        )


def say(message: str) -> None:
    """On stderr: stdout is for the report."""
    print(message, file=sys.stderr, flush=True)
