"""demo, train, evaluate."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.core.names import DATASETS, DEMOS
from bayesbin.experiments.cli.streams import say
from bayesbin.experiments.cli.verbs import (
    DATA_HELP,
    add_verb,
    path,
    progress_of,
    progress_option,
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

    train = add_verb(verbs, "train", _train, "train a binary network and save the run")
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
    train.add_argument(
        "--recipe", metavar="NAME",
        help="a published method, with its own settings: bayesbin, bayesbinn, bop, recu, ...: whatever "
        "`bayesbin compare` compares",
    )  # fmt: skip
    train.add_argument(
        "--guide",
        help="mean-field (default), nested, or random-effects (nested, with Normal offsets)",
    )
    train.add_argument(
        "--sharing", nargs="+", metavar="SCOPE",
        help="of a nested guide: layer, filter, kernel, weight (default: all)",
    )  # fmt: skip
    train.add_argument(
        "--estimator",
        help="local-reparameterization (default), straight-through, concrete, disarm, rebar, ...: "
        "whatever `bayesbin estimators` compares",
    )
    train.add_argument("--temperature", type=float, help="of relaxed estimators (default: 0.5)")
    train.add_argument("--optimizer", help="bayesian-learning-rule (default), adam or sgd")
    train.add_argument(
        "--lr",
        type=float,
        help="learning rate of the natural parameters; sgd divides it by the number of training data",
    )
    train.add_argument("--momentum", type=float, help="of the rule and sgd (default: 0.9)")
    train.add_argument("--width", type=int, help="units per hidden layer (default: 512)")
    train.add_argument("--depth", type=int, help="hidden layers (default: 2)")
    train.add_argument("--kl-weight", type=float, help="weight on the KL term")
    train.add_argument("--epochs", type=int, help="passes over the training data")
    train.add_argument("--batch-size", type=int, help="(default: 100)")
    train.add_argument(
        "--num-samples", type=int, help="draws per training step (default: the estimator's own)"
    )
    train.add_argument("--seed", type=int, default=0)
    progress_option(train)

    evaluate = add_verb(verbs, "evaluate", _evaluate, "score a run on its test data")
    evaluate.set_defaults(on_interrupt="Nothing was changed.")
    evaluate.add_argument(
        "folder", metavar="DIR", type=path, help="what `bayesbin train --out DIR` wrote"
    )
    evaluate.add_argument("--data", metavar="FOLDER", type=path, help=DATA_HELP)
    evaluate.add_argument("--num-samples", type=int, default=32, help="draws (default: 32)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")


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
    from dataclasses import fields

    from bayesbin.experiments import RunConfig, train_run

    given = vars(arguments)
    config = RunConfig(
        **{f.name: given[f.name] for f in fields(RunConfig) if given.get(f.name) is not None}
    )
    require_writable(arguments.out, "folder")
    run = train_run(
        config, arguments.out, data_folder=arguments.data, progress=progress_of(arguments)
    )
    scores, record = run.record["validation"], run.record
    report = {
        "folder": str(run.folder),
        "config": record["config"],
        "weights": run.posterior.num_weights,
        "validation": scores,
        "seconds": record["seconds"],
    }
    text = (
        f"{run.posterior.num_weights:,} {run.posterior.kind} weights, {config.epochs} epochs on "
        f"{config.dataset} in {record['seconds']:.0f} s of training\n"
        f"validation: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}\n"
        f"saved in {run.folder}; next: bayesbin evaluate {run.folder}"
    )
    return report, text


def _evaluate(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments import evaluate_run, load_run

    run = load_run(arguments.folder)
    table = evaluate_run(
        run, data_folder=arguments.data, num_samples=arguments.num_samples, seed=arguments.seed
    )
    summary = run.posterior.summary()
    report = {
        **table,
        "seed": arguments.seed,
        "dataset": run.config.dataset,
        "posterior": [vars(row) for row in (*summary.rows, summary.total())],
    }
    return report, f"{_score_table(run, table)}\n\n{summary}"


def _score_table(run: Any, table: dict[str, Any]) -> str:
    draws, size = table["draws"], run.record["data"]["test"]
    names = list(table["mode"])
    heads = {"nll": "nll (nats)"}
    lines = [
        f"{run.config.dataset}, {size:,} test examples, {table['num_samples']} draws",
        "  ".join([f"{'':<6}", *(f"{heads.get(name, name):>17}" for name in names)]),
    ]
    for row in ("mode", "mean"):
        lines.append("  ".join([f"{row:<6}", *(f"{table[row][name]:>17.4f}" for name in names)]))
    spread = [f"{draws['mean'][name]:.4f} +- {draws['std'][name]:.4f}" for name in names]
    interval = [f"{draws['low'][name]:.4f} .. {draws['high'][name]:.4f}" for name in names]
    for label, cells in (("draws", spread), ("95 %", interval)):
        lines.append("  ".join([f"{label:<6}", *(f"{cell:>17}" for cell in cells)]))
    return "\n".join(lines)
