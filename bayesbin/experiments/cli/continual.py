"""continual permuted, split, rotated."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.core.names import (
    ACTIVATIONS,
    CONTINUAL_DATASETS,
    INITIAL_PRIORS,
    LEARNERS,
    NORMALIZATIONS,
    PRIOR_POLICIES,
    SCENARIOS,
)
from bayesbin.experiments.cli.verbs import (
    DATA_HELP,
    add_verb,
    path,
    progress_of,
    progress_option,
    require_writable,
)

STREAMS = {
    "permuted": "the pixels in another order in each task",
    "split": "a few classes in each task",
    "rotated": "the images turned by another angle in each task",
}


def add_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    summary = "learn a sequence of tasks, each posterior the next one's prior"
    continual = verbs.add_parser("continual", help=summary, description=summary, allow_abbrev=False)
    nested = continual.add_subparsers(title="verbs", metavar="VERB", required=True)
    for stream, what in STREAMS.items():
        parser = add_verb(nested, stream, _run, f"learn tasks one after another: {what}")
        parser.set_defaults(
            stream=stream, on_interrupt="The same command continues from the last checkpoint."
        )
        _add_options(parser, stream)


def _add_options(parser: argparse.ArgumentParser, stream: str) -> None:
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--dataset", choices=CONTINUAL_DATASETS, help="(default: digits)")
    tasks.add_argument("--data", metavar="FOLDER", type=path, help=DATA_HELP)
    if stream == "split":
        tasks.add_argument("--classes-per-task", type=int, metavar="K", help="(default: 2)")
        tasks.add_argument(
            "--scenario", choices=SCENARIOS,
            help="a head per task, which is known at test (default); the same labels through one head; "
            "or one head that must tell all classes apart, which fails",
        )  # fmt: skip
        tasks.add_argument(
            "--binary-heads", action="store_true", default=None,
            help="heads of binary weights instead of real ones",
        )  # fmt: skip
    tasks.add_argument("--tasks", type=int, metavar="T", help=_TASKS[stream])
    if stream == "rotated":
        tasks.add_argument("--max-degrees", type=float, help="the largest angle (default: 180)")
    tasks.add_argument("--stream-seed", type=int, metavar="SEED", help=_SEEDS[stream])
    tasks.add_argument(
        "--validation", type=float, metavar="FRACTION",
        help="hold out this part of the training data and score it in place of the test set",
    )  # fmt: skip

    how = parser.add_argument_group("learning")
    how.add_argument("--method", choices=LEARNERS, help="posterior (default), or a baseline")
    how.add_argument(
        "--prior-policy", choices=PRIOR_POLICIES,
        help="what the last posterior becomes as a prior (default: exact)",
    )  # fmt: skip
    how.add_argument("--gamma", type=float, help="of relax: how much of lambda is kept, in [0, 1]")
    how.add_argument("--cap", type=float, help="of cap: the bound on |lambda|")
    how.add_argument("--window", type=float, help="of leak: in steps")
    how.add_argument(
        "--initial-prior", choices=INITIAL_PRIORS,
        help="of the first task: the random initial posterior (default), or every sign equally likely",
    )  # fmt: skip
    how.add_argument(
        "--recipe", metavar="NAME", help="bayesbin (default): it continues from a posterior"
    )
    how.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="SETTING=VALUE",
        help="settings of the recipe, lr=0.2 say, or of a baseline without a posterior; a wrong name is "
        "answered with those there are",
    )  # fmt: skip
    how.add_argument("--epochs", type=int, help="passes over each task")
    how.add_argument("--batch-size", type=int)

    net = parser.add_argument_group("network")
    net.add_argument("--hidden", type=int, nargs="+", metavar="WIDTH", help="(default: 100 100)")
    net.add_argument(
        "--normalization", choices=NORMALIZATIONS,
        help="layer (default), or batch normalisation with statistics of each task, of the last task, or "
        "of the very inputs to predict",
    )  # fmt: skip
    net.add_argument("--activation", choices=ACTIVATIONS, help="(default: relu)")
    net.add_argument("--output-scale", type=float, help="of the logits (default: 3)")

    parser.add_argument("--num-samples", type=int, help="draws per prediction (default: 32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path,
        required=True,
        help="folder of the run; continued if begun",
    )
    progress_option(parser)


_TASKS = {
    "permuted": "how many (default: 5 for digits, else 10)",
    "split": "how many (default: all that the classes give)",
    "rotated": "how many (default: 5 for digits, else 10)",
}
_SEEDS = {
    "permuted": "of the permutations (default: that of --seed)",
    "split": "shuffles the classes (default: as they are numbered)",
    "rotated": "draws the angles (default: evenly spaced)",
}


def _run(arguments: argparse.Namespace) -> tuple[Any, str]:
    from dataclasses import fields

    from bayesbin.experiments import ContinualSettings, run_continual
    from bayesbin.experiments.continual_settings import method_settings

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    texts = method_settings(arguments.method or "posterior", arguments.recipe, arguments.set)
    settings = ContinualSettings(
        method_settings=texts,
        data_folder=arguments.data,
        **{f.name: given[f.name] for f in fields(ContinualSettings) if f.name in given},
    )
    require_writable(arguments.out, "folder")
    run = run_continual(settings, arguments.out, progress=progress_of(arguments))
    return {"folder": str(run.folder), **run.record}, (
        f"{run}\n\nsaved in {run.folder}; next: bayesbin report {run.folder} --out report.html"
    )
