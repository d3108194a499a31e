"""report."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.experiments.cli.streams import say
from bayesbin.experiments.cli.verbs import DATA_HELP, add_verb, path, require_writable


def add_verbs(verbs: Any) -> None:
    """Add it to the parser."""
    report = add_verb(
        verbs, "report", _report, "one HTML page about a run: scores, calibration, uncertainty"
    )
    report.set_defaults(on_interrupt="Nothing was written.")
    report.add_argument(
        "folder", metavar="DIR", type=path, help="what `bayesbin train --out DIR` wrote"
    )
    report.add_argument("--out", metavar="REPORT.html", type=path, required=True, help="the page")
    report.add_argument("--data", metavar="FOLDER", type=path, help=DATA_HELP)
    report.add_argument(
        "--ood", metavar="DIR", type=path,
        help="inputs of another kind, to see whether they are less certain: a folder with images in the "
        "layout of mnist, usps or cifar, or a .npy file (whole numbers are raw pixels)",
    )  # fmt: skip
    report.add_argument("--num-samples", type=int, default=32, help="draws (default: 32)")
    report.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")


def _report(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments.report import report

    require_writable(arguments.out)
    say(f"Predicting, resampling, then writing {arguments.out} ...", arguments.quiet)
    found = report(
        arguments.folder,
        arguments.out,
        data_folder=arguments.data,
        ood=arguments.ood,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
    )
    return found.to_dict(), str(found)
