"""``bayesbin ...``: argument parsing. Every verb calls one public function and prints what it returns.

Exit codes: 0 done, 1 a known error (one sentence on stderr), 2 a wrong command line, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayesbin import __version__

# Whatever takes time to import is imported by the verb that needs it: --help answers at once.

_NAMES = ("digits", "fashion-mnist", "idx", "mnist", "two-moons", "usps")
_DATA_HELP = "folder of the data files (default: the environment variable BAYESBIN_DATA)"


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
        _say(f"bayesbin: interrupted. {arguments.on_interrupt} {interrupt}".rstrip())
        return 130
    # DataError, CorruptFileError and every refused argument are ValueErrors; the others are files that
    # cannot be read or written, and training that diverged.
    except (ValueError, OSError, FloatingPointError) as error:
        _say(f"bayesbin: error: {error}")
        return 1
    try:
        print(json.dumps(report[0]) if arguments.json else report[1], flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
    return 0


def _demo(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin import demos

    demo = {"two-moons": demos.two_moons_demo, "regression": demos.regression_demo}[arguments.name]
    options = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    out = arguments.out or f"{arguments.name.replace('-', '_')}.png"
    _require_folder_of(out)
    _say(f"Training, then drawing {out} ...")
    result = demo(seed=arguments.seed, out=out, progress=not arguments.no_progress, **options)
    return result.to_dict(), str(result)


def _train(arguments: argparse.Namespace) -> tuple[Any, str]:
    from dataclasses import fields

    from bayesbin.runs import RunConfig, train_run

    given = vars(arguments)
    config = RunConfig(
        **{f.name: given[f.name] for f in fields(RunConfig) if given.get(f.name) is not None}
    )
    run = train_run(
        config, arguments.out, data_folder=arguments.data, progress=not arguments.no_progress
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
        f"{run.posterior.num_weights:,} binary weights, {config.epochs} epochs on {config.dataset} in "
        f"{record['seconds']:.0f} s of training\n"
        f"validation: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}\n"
        f"saved in {run.folder}; next: bayesbin evaluate {run.folder}"
    )
    return report, text


def _evaluate(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.runs import evaluate_run, load_run

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


def _estimators(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin import demos

    if arguments.plot:
        _require_folder_of(arguments.plot)
    _say("Comparing; with all estimators this takes a minute or two ...")
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


def _info(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.runs import environment

    report = environment()
    return report, "\n".join(f"{name:<12} {value}" for name, value in report.items())


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesbin",
        description="Bayesian inference over binary weights.",
        epilog="Begin with: bayesbin demo two-moons",
    )
    parser.add_argument("--version", action="version", version=f"bayesbin {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    demo = _verb(verbs, "demo", _demo, "train on generated data and draw a picture of it")
    demo.set_defaults(on_interrupt="The same command starts anew.")
    demo.add_argument("name", choices=("two-moons", "regression"))
    demo.add_argument(
        "--out", metavar="PNG", help="the picture: .png, .pdf or .svg (default: NAME.png)"
    )
    demo.add_argument("--epochs", type=int, help="training steps (default: what the picture needs)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--no-progress", action="store_true", help="no progress bar")

    train = _verb(verbs, "train", _train, "train a binary network and save the run")
    train.set_defaults(on_interrupt="The same command continues from the last checkpoint.")
    train.add_argument("dataset", metavar="DATASET", choices=_NAMES, help=", ".join(_NAMES))
    train.add_argument("--data", metavar="FOLDER", help=_DATA_HELP)
    train.add_argument(
        "--out", metavar="DIR", required=True, help="folder of the run; continued if begun"
    )
    train.add_argument(
        "--guide",
        help="mean-field (default), nested, or random-effects (nested, with Normal offsets)",
    )
    train.add_argument(
        "--levels", nargs="+", metavar="LEVEL",
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
    train.add_argument("--no-progress", action="store_true", help="no progress bar")

    evaluate = _verb(verbs, "evaluate", _evaluate, "score a run on its test data")
    evaluate.set_defaults(on_interrupt="Nothing was changed.")
    evaluate.add_argument("folder", metavar="DIR", help="what `bayesbin train --out DIR` wrote")
    evaluate.add_argument("--data", metavar="FOLDER", help=_DATA_HELP)
    evaluate.add_argument("--num-samples", type=int, default=32, help="draws (default: 32)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")

    estimators = _verb(
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
    estimators.add_argument("--plot", metavar="FILE", help="picture: .png, .pdf or .svg")
    estimators.add_argument("--seed", type=int, default=0)

    info = _verb(verbs, "info", _info, "print versions and the number of threads")
    info.set_defaults(on_interrupt="")
    return parser


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    # No abbreviated options: a later option must not change what a script means.
    parser = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on stdout"
    )
    parser.set_defaults(verb=run)
    return parser


def _require_folder_of(out: str) -> None:
    """Before the work is done, not after."""
    if not (folder := Path(out).absolute().parent).is_dir():
        raise FileNotFoundError(
            f"expected a folder for {out}, but there is no {folder}; create it."
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
