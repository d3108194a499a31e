"""demo, train."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.core.names import DATASETS, DEMOS
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
    demo = add_verb(verbs, "demo", _demo, "train on generated data and draw a picture of it")
    demo.set_defaults(on_interrupt="The same command starts anew.")
    demo.add_argument("name", choices=DEMOS)
    demo.add_argument(
        "--out",
        metavar="PNG",
        type=path,
        help="the picture: .png, .pdf or .svg (default: NAME.png)",
    )
    demo.add_argument("--epochs", type=int, help="training steps (default: what the picture needs)")
    demo.add_argument("--seed", type=int, default=0)
    progress_option(demo)

    train = add_verb(verbs, "train", _train, "train a binary network by a recipe, and save the run")
    train.set_defaults(on_interrupt="The same command continues from the last checkpoint.")
    train.add_argument("dataset", metavar="DATASET", choices=DATASETS, help=", ".join(DATASETS))
    train.add_argument("--data", metavar="FOLDER", type=path, help=DATA_HELP)
    train.add_argument(
        "--out",
        metavar="DIR",
        type=path,
        required=True,
        help="folder of the run; continued if begun",
    )
    recipe_options(train)
    train.add_argument("--width", type=int, help="units per hidden layer (default: 512)")
    train.add_argument("--depth", type=int, help="hidden layers (default: 2)")
    train.add_argument(
        "--epochs",
        type=int,
        help="passes over the training data; a finished run can get more, where no schedule forbids it",
    )
    train.add_argument("--batch-size", type=int, help="(default: 100)")
    train.add_argument("--seed", type=int, default=0)
    progress_option(train)
    device_option(train)


def _demo(arguments: argparse.Namespace) -> tuple[Any, str]:
    out = arguments.out or f"{arguments.name.replace('-', '_')}.png"
    require_writable(out)
    from bayesbin.experiments import demos

    demo = {"two-moons": demos.two_moons_demo, "regression": demos.regression_demo}[arguments.name]
    options = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    say(f"Training, then drawing {out} ...", arguments.quiet)
    result = demo(seed=arguments.seed, out=out, progress=progress_of(arguments), **options)
    return result.to_dict(), str(result)


def _train(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments import RunSettings, train_run
    from bayesbin.recipes import parse_settings

    recipe = arguments.recipe or "bayesbin"
    names = ("width", "depth", "epochs", "batch_size")
    given = {name: vars(arguments)[name] for name in names if vars(arguments)[name] is not None}
    settings = RunSettings(
        arguments.dataset,
        recipe=recipe,
        recipe_settings=parse_settings(recipe, arguments.set),
        seed=arguments.seed,
        data_folder=arguments.data,
        **given,
    )
    require_writable(arguments.out, "folder")
    device = device_of(arguments)
    run = train_run(settings, arguments.out, progress=progress_of(arguments), device=device)
    record = run.record
    report = {
        "folder": str(run.folder),
        "weights": run.posterior.num_weights,
        **{name: record[name] for name in ("settings", "recipe", "validation", "seconds")},
    }
    scores = ", ".join(f"{name} {value:.4f}" for name, value in record["validation"].items())
    text = (
        f"{run.posterior.num_weights:,} {run.posterior.kind} weights, {settings.epochs} epochs of "
        f"{recipe} on {settings.dataset} in {record['seconds']:.0f} s of training\n"
        f"validation: {scores}\n"
        f"saved in {run.folder}; next: bayesbin evaluate {run.folder}"
    )
    return report, text
