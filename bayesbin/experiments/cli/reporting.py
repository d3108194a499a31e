"""evaluate, report: what a run is worth."""

from __future__ import annotations

import argparse
from typing import Any

from bayesbin.experiments.cli.streams import say
from bayesbin.experiments.cli.verbs import (
    RUN_DATA_HELP,
    add_verb,
    chosen_run,
    path,
    require_writable,
    run_options,
)


def add_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    evaluate = add_verb(verbs, "evaluate", _evaluate, "score a run on its test data")
    evaluate.set_defaults(on_interrupt="Nothing was changed.")
    run_options(evaluate, "score")
    evaluate.add_argument("--num-samples", type=int, default=32, help="draws (default: 32)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")

    report = add_verb(
        verbs, "report", _report, "one HTML page about a run: scores, calibration, uncertainty"
    )
    report.set_defaults(on_interrupt="Nothing was written.")
    report.add_argument(
        "folder", metavar="RUN", type=path,
        help="what `bayesbin train`, `compare` or `continual` wrote with --out",
    )  # fmt: skip
    report.add_argument("--out", metavar="REPORT.html", type=path, required=True, help="the page")
    report.add_argument(
        "--run", metavar="NAME",
        help="of a comparison, the run to report on (default: the one with the lowest validation NLL)",
    )  # fmt: skip
    report.add_argument("--data", metavar="FOLDER", type=path, help=RUN_DATA_HELP)
    report.add_argument(
        "--ood", metavar="DIR", type=path,
        help="inputs of another kind, to see whether they are less certain: a folder with images in the "
        "layout of mnist, usps or cifar, or a .npy file (whole numbers are raw pixels)",
    )  # fmt: skip
    report.add_argument("--num-samples", type=int, default=32, help="draws (default: 32)")
    report.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")


def _evaluate(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments import evaluate_run
    from bayesbin.posterior import BinaryPosterior, LowBitPosterior

    run = chosen_run(arguments, arguments.folder)
    table = evaluate_run(
        run, data_folder=arguments.data, num_samples=arguments.num_samples, seed=arguments.seed
    )
    report = {
        **table,
        "run": run.name,
        "seed": arguments.seed,
        "dataset": run.settings.dataset,
    }
    tables = [_score_table(run, table)]
    if "tasks" in table:
        tables.append(_task_table(table["tasks"]))
    if isinstance(
        run.posterior, BinaryPosterior | LowBitPosterior
    ):  # of real weights there is none
        summary = run.posterior.summary()
        report["posterior"] = [vars(row) for row in (*summary.rows, summary.total())]
        tables.append(str(summary))
    return report, "\n\n".join(tables)


def _report(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments.report import report

    require_writable(arguments.out)
    say(f"Predicting, resampling, then writing {arguments.out} ...", arguments.quiet)
    found = report(
        arguments.folder,
        arguments.out,
        run=arguments.run,
        data_folder=arguments.data,
        ood=arguments.ood,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
    )
    return found.to_dict(), str(found)


def _score_table(run: Any, table: dict[str, Any]) -> str:
    draws = table["draws"]
    names = list(table["mode"])
    heads = {"nll": "nll (nats)"}
    if "tasks" in table:
        count = len(table["tasks"])
        what = (
            f"averages over {count} task{'s' if count > 1 else ''}, {run.record['scored_on']} data"
        )
    else:
        what = f"{run.record['data']['test']:,} test examples"
    lines = [
        f"{run.name}: {run.settings.dataset}, {what}, {table['num_samples']} draws",
        "  ".join([f"{'':<6}", *(f"{heads.get(name, name):>17}" for name in names)]),
    ]
    for row in ("mode", "mean"):
        lines.append("  ".join([f"{row:<6}", *(f"{table[row][name]:>17.4f}" for name in names)]))
    spread = [f"{draws['mean'][name]:.4f} +- {draws['std'][name]:.4f}" for name in names]
    interval = [f"{draws['low'][name]:.4f} .. {draws['high'][name]:.4f}" for name in names]
    for label, cells in (("draws", spread), ("95 %", interval)):
        lines.append("  ".join([f"{label:<6}", *(f"{cell:>17}" for cell in cells)]))
    return "\n".join(lines)


def _task_table(rows: list[dict[str, Any]]) -> str:
    """The mean of draws on each task."""
    names = list(rows[0]["mean"])
    width = max(len("mean of draws"), *(len(row["task"]) for row in rows))
    lines = ["  ".join([f"{'mean of draws':<{width}}", *(f"{name:>10}" for name in names)])]
    for row in rows:
        cells = [f"{row['mean'][name]:>10.4f}" for name in names]
        lines.append("  ".join([f"{row['task']:<{width}}", *cells]))
    return "\n".join(lines)
