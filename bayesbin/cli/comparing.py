"""estimators, info."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.cli.verbs import add_verb, require_folder_of, say


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
    estimators.add_argument("--plot", metavar="FILE", help="picture: .png, .pdf or .svg")
    estimators.add_argument("--seed", type=int, default=0)

    info = add_verb(verbs, "info", _info, "print versions and the number of threads")
    info.set_defaults(on_interrupt="")


def _estimators(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin import demos

    if arguments.plot:
        require_folder_of(arguments.plot)
    say("Comparing; with all estimators this takes a minute or two ...")
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
