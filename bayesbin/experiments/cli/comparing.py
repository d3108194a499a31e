"""estimators, compare, info."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.core.names import DATASETS
from bayesbin.experiments.cli.streams import say
from bayesbin.experiments.cli.verbs import (
    DATA_HELP,
    add_verb,
    device_of,
    device_option,
    path,
    progress_of,
    progress_option,
    recipe_options,
    require_writable,
)


def add_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    estimators = add_verb(
        verbs,
        "estimators",
        _estimators,
        "compare bias, variance and cost of gradient estimators on binary logistic regression",
    )
    estimators.set_defaults(on_interrupt="Nothing was written.")
    estimators.add_argument(
        "names", metavar="NAME", nargs="*", help="disarm, straight-through, ... (default: all)"
    )
    estimators.add_argument("--weights", type=int, default=100, help="(default: 100)")
    estimators.add_argument(
        "--num-samples", type=int, nargs="+", default=[2, 8], metavar="K",
        help="draws per gradient (default: 2 8)",
    )  # fmt: skip
    estimators.add_argument(
        "--lambda-scales", type=float, nargs="+", default=[0.0, 0.5, 2.0], metavar="SD",
        help="standard deviations of lambda, one table each (default: 0 0.5 2)",
    )  # fmt: skip
    estimators.add_argument(
        "--replicates", type=int, default=100, help="gradients of each (default: 100)"
    )
    estimators.add_argument("--plot", metavar="FILE", type=path, help="picture: .png, .pdf or .svg")
    estimators.add_argument("--seed", type=int, default=0)

    compare = add_verb(
        verbs,
        "compare",
        _compare,
        "train published methods on the same network and data, side by side",
    )
    compare.set_defaults(
        on_interrupt="The same command continues: finished runs are kept, this one has a checkpoint."
    )
    recipe_options(compare, several=True)
    compare.add_argument("--dataset", metavar="DATASET", choices=DATASETS, default="digits",
                         help=f"{', '.join(DATASETS)} (default: digits)")  # fmt: skip
    compare.add_argument("--data", metavar="FOLDER", type=path, help=DATA_HELP)
    compare.add_argument(
        "--out", metavar="DIR", type=path, required=True,
        help="folder of the runs, the table and the figure; continued if begun",
    )  # fmt: skip
    compare.add_argument("--epochs", type=int, help="passes over the training data")
    compare.add_argument("--seed", type=int, help="the first seed (default: 0)")
    compare.add_argument("--seeds", type=int, metavar="K", help="how many seeds (default: 1)")
    compare.add_argument("--width", type=int, help="units per hidden layer (default: 512)")
    compare.add_argument("--depth", type=int, help="hidden layers (default: 2)")
    compare.add_argument("--batch-size", type=int, help="(default: 100)")
    compare.add_argument("--num-samples", type=int, help="draws of a posterior (default: 32)")
    progress_option(compare)
    device_option(compare)

    info = add_verb(verbs, "info", _info, "print versions and the number of threads")
    info.set_defaults(on_interrupt="")


def _estimators(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments import demos

    if arguments.plot:
        require_writable(arguments.plot)
    say("Comparing; with all estimators this takes a minute or two ...", arguments.quiet)
    comparison = demos.compare_estimators(
        arguments.names or None,
        num_weights=arguments.weights,
        num_samples=arguments.num_samples,
        lambda_scales=arguments.lambda_scales,
        num_replicates=arguments.replicates,
        seed=arguments.seed,
        out=arguments.plot,
    )
    return comparison.to_dict(), str(comparison)


def _compare(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments import ComparisonSettings, compare
    from bayesbin.experiments.comparison import FIGURE
    from bayesbin.experiments.settings import settings_for

    names = ("seed", "seeds", "num_samples", "width", "depth", "epochs", "batch_size")
    given = {name: vars(arguments)[name] for name in names if vars(arguments)[name] is not None}
    recipes = arguments.recipes or ["all"]
    chosen = ComparisonSettings(recipes, arguments.dataset).recipes  # "all" by their names
    settings = ComparisonSettings(
        recipes,
        arguments.dataset,
        recipe_settings=settings_for(chosen, arguments.set),
        data_folder=arguments.data,
        **given,
    )
    require_writable(arguments.out, "folder")
    device = device_of(arguments)
    what = f"{len(settings.recipes)} recipes with {settings.seeds} seeds"
    say(f"Training {what} in {arguments.out} ...", arguments.quiet)
    comparison = compare(settings, arguments.out, progress=progress_of(arguments), device=device)
    figure = str(comparison.folder / FIGURE)
    legend = "mean +- std over seeds; in brackets the std over single draws of a posterior"
    return {**comparison.to_dict(), "picture": figure}, (
        f"{comparison}\n\n{legend}\npicture: {figure}\n"
        f"next: bayesbin evaluate {comparison.folder} --run {comparison.best}, the lowest validation NLL"
    )


def _info(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments.machine import environment
    from bayesbin.runtime import native_backend

    report = environment()
    lines = [f"{name:<12} {value}" for name, value in report.items()]
    if reason := native_backend.why_not():
        lines.append(reason)
    return report, "\n".join(lines)
