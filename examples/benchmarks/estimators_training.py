"""The ELBO reached by each gradient estimator, against epochs and seconds, at one budget of epochs.

Networks 64-64-10 on digits and 784-100-10 on MNIST, without normalisation (so that the ELBO at a draw
needs no statistics), kl_weight 1. The score is the negative ELBO of the training data in nats per
datum, at fresh hard draws whatever the estimator. Each estimator gets the optimizer and learning rate
that reached the lowest value of it in a run with a seed that is used for nothing else; the test set is
scored once, at the end. One JSON file per run in --out; runs that are there are not repeated.

    python examples/benchmarks/estimators_training.py --dataset digits --out results
    python examples/benchmarks/estimators_training.py --dataset mnist --data mnist_folder --out results
    python examples/benchmarks/estimators_training.py --report results --plot estimators_training.png
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bayesbin import estimators as E
from bayesbin.data import Batches, Splits, load
from bayesbin.ensemble import Ensemble
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.recipes import recipe

ESTIMATORS: dict[str, Callable[[], E.Estimator]] = {
    "StraightThrough": E.StraightThrough,
    "LocalReparameterization": E.LocalReparameterization,
    "Concrete": E.Concrete,
    "GumbelRao": E.GumbelRao,
    "PseudoReward": E.PseudoReward,
    "REBAR": E.REBAR,
    "RELAX": E.RELAX,
    "DisARM x2": lambda: E.DisARM(num_pairs=2),
    "ARM x2": lambda: E.ARM(num_pairs=2),
    "ARMS 4": lambda: E.ARMS(4),
    "ARMS 64": lambda: E.ARMS(64),
    "score 4, leave-one-out": lambda: E.ScoreFunction(4),
    "score 1, moving average": lambda: E.ScoreFunction(1, E.MovingAverage()),
}
OPTIMIZERS = {"rule .02": ("rule", 0.02), "rule .05": ("rule", 0.05), "rule .15": ("rule", 0.15),
              "adam .02": ("adam", 0.02)}  # fmt: skip
SELECTION_SEED = 100


@dataclass(frozen=True)
class Task:
    """A data set, its network and its budget."""

    hidden: int
    epochs: int
    batch_size: int
    every: int  # epochs between two scores
    without: tuple[str, ...] = ()  # estimators that would take too long


TASKS = {
    "digits": Task(64, 60, 100, 5),
    "mnist": Task(100, 5, 100, 1, without=("ARMS 64",)),
}


def train(
    task: Task, splits: Splits, name: str, optimizer: str, epochs: int, seed: int
) -> tuple[Classifier, AutoSignBernoulli, list[dict[str, float]]]:
    """Train one network; returns it with the negative ELBO along the way."""
    data = splits.train
    torch.manual_seed(seed)
    net = to_binary_(mlp(data.x.shape[1], [task.hidden], 10, normalize=False))
    model = Classifier(net, dataset_size=len(data))
    guide = AutoSignBernoulli(model)
    estimator = ESTIMATORS[name]()
    kind, lr = OPTIMIZERS[optimizer]
    method = recipe(
        "bayesbin", model, epochs=epochs, guide=guide, estimator=estimator, kl_weight=1.0,
        optimizer={"rule": "bayesian-learning-rule"}.get(kind, kind), lr=lr, real_lr=3e-3,
    )  # fmt: skip
    scorer = TraceBinary_ELBO(estimator, num_particles=4)
    curve: list[dict[str, float]] = []
    seconds = 0.0

    def score(report: Any) -> None:
        nonlocal seconds
        seconds += report.row["seconds"]
        if report.epoch % task.every == 0 or report.epoch in (1, epochs):
            terms = scorer.hard_terms(model, guide, data.x, data.y)
            per_datum = {k: v.item() / len(data) for k, v in terms._asdict().items()}
            curve.append({"epoch": report.epoch, "seconds": seconds, **per_datum})

    method.fit(Batches(data, task.batch_size), seed=seed, callbacks=[score], progress=False)
    return model, guide, curve


def run(
    args: argparse.Namespace, splits: Splits, name: str, optimizer: str, selection: bool
) -> None:
    """One JSON per run: selection runs with their own seed, or final ones with each seed asked for."""
    task = TASKS[args.dataset]
    epochs = 1 if args.smoke else task.epochs
    for seed in [SELECTION_SEED] if selection else args.seeds:
        kind = "selection" if selection else "final"
        slug = "-".join(f"{name} {optimizer}".replace(",", "").replace(".", "").lower().split())
        path = args.out / f"{args.dataset}_{kind}_{slug}_seed{seed}.json"
        if path.exists():
            continue
        record = {
            "benchmark": "estimators_training", "dataset": args.dataset, "kind": kind,
            "estimator": name, "settings": repr(ESTIMATORS[name]()), "optimizer": optimizer,
            "epochs": epochs, "seed": seed, "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        }  # fmt: skip
        try:
            model, guide, curve = train(task, splits, name, optimizer, epochs, seed)
            record["curve"] = curve
            if not selection:
                test = splits.test
                ensemble = Ensemble(model, guide.posterior(), num_samples=32, seed=seed)
                record["test"] = ensemble.evaluate(test.x, test.y)
        except FloatingPointError as error:  # training diverged, which is a result
            record |= {"curve": [], "diverged": str(error)}
        path.write_text(json.dumps(record, indent=1))
        print(path.name, *(f"{row['loss']:.3f}" for row in record["curve"][-1:]), flush=True)


def records(folder: Path, dataset: str, kind: str) -> list[dict[str, Any]]:
    found = [
        json.loads(path.read_text()) for path in sorted(folder.glob(f"{dataset}_{kind}_*.json"))
    ]
    return [r for r in found if r["benchmark"] == "estimators_training"]


def chosen(folder: Path, dataset: str) -> dict[str, str]:
    """The optimizer of each estimator: the one whose selection run ended lowest."""
    best: dict[str, tuple[float, str]] = {}
    for record in records(folder, dataset, "selection"):
        last = record["curve"][-1]["loss"] if record["curve"] else float("inf")
        best[record["estimator"]] = min(
            best.get(record["estimator"], (float("inf"), "rule .05")), (last, record["optimizer"])
        )
    return {name: optimizer for name, (_, optimizer) in best.items()}


def grouped(folder: Path, dataset: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """The final runs by estimator, lowest negative ELBO first; diverged ones last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records(folder, dataset, "final"):
        groups.setdefault(record["estimator"], []).append(record)

    def last(group: tuple[str, list[dict[str, Any]]]) -> float:
        ends = [r["curve"][-1]["loss"] if r["curve"] else float("inf") for r in group[1]]
        return statistics.mean(ends)

    return sorted(groups.items(), key=last)


def report(folder: Path) -> str:
    """A table per data set: mean and standard deviation over seeds."""
    lines = []
    for dataset in TASKS:
        groups = grouped(folder, dataset)
        if not groups:
            continue
        lines += [
            f"| {dataset}: estimator | optimizer | seeds | negative ELBO, nats/datum | its KL "
            "| test accuracy %, mean of 32 draws | test NLL | seconds per epoch |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, runs in groups:
            done = [r for r in runs if r["curve"]]
            ends = [r["curve"][-1] for r in done]
            if len(done) < len(runs) or not ends:
                lines.append(f"| {name} | {runs[0]['optimizer']} | {len(runs)} | diverged |||||")
                continue
            tests = [r["test"]["mean"] for r in done]
            cells = [
                name, runs[0]["optimizer"], str(len(runs)),
                spread([e["loss"] for e in ends], 3), spread([e["kl"] for e in ends], 3),
                spread([100 * t["accuracy"] for t in tests], 2), spread([t["nll"] for t in tests], 3),
                f"{statistics.median(e['seconds'] / e['epoch'] for e in ends):.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


# Okabe and Ito's colours, which colour-blind readers can tell apart, each with two lines and markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = {
    name: {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": ("-", "--")[i // len(COLOURS)],
        "marker": ("o", "s")[i // len(COLOURS)],
    }
    for i, name in enumerate(ESTIMATORS)
}


def plot(folder: Path, out: str) -> None:
    """Negative ELBO against epochs and against seconds, a row per data set; bands are seeds' ranges."""
    present = [d for d in TASKS if grouped(folder, d)]
    figure = Figure(figsize=(11, 3.8 * len(present)), layout="constrained")
    axes: Any = figure.subplots(len(present), 2, squeeze=False, sharey="row")
    for row, dataset in zip(axes, present, strict=True):
        ends = {}
        for name, runs in grouped(folder, dataset):
            curves = [r["curve"] for r in runs if r["curve"]]
            if not curves:
                continue
            for axis, unit in zip(row, ("epoch", "seconds"), strict=True):
                across = [
                    statistics.mean(p[unit] for p in points) for points in zip(*curves, strict=True)
                ]
                losses = [[p["loss"] for p in points] for points in zip(*curves, strict=True)]
                middle = [statistics.mean(x) for x in losses]
                axis.plot(across, middle, markersize=3, linewidth=1.2, **STYLES[name])
                axis.fill_between(across, [min(x) for x in losses], [max(x) for x in losses],
                                  color=STYLES[name]["color"], alpha=0.12, linewidth=0)  # fmt: skip
                ends[name] = across[-1], middle[-1]
        for axis, unit in zip(row, ("epochs", "seconds of training"), strict=True):
            axis.set(xlabel=unit, title=dataset)
        row[0].set_ylabel("negative ELBO, nats per datum")
        row[1].set_xscale("log")
        label_ends(row[1], ends)
    figure.savefig(out, dpi=150)


def label_ends(axis: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Name each curve beside its end, in the order of the ends, with a line from the end to its name."""
    low, high = axis.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][1])
    gap, below = 1.0 / len(names), -1.0
    heights = []
    for name in names:  # from below, each name at its curve's height or above the name before
        below = max((ends[name][1] - low) / (high - low), below + 0.9 * gap)
        heights.append(below)
    above = 1.0 + 0.9 * gap
    for i in reversed(range(len(names))):  # and down again where they left the axes
        above = heights[i] = min(heights[i], above - 0.9 * gap)
    for name, height in zip(names, heights, strict=True):
        color = STYLES[name]["color"]
        axis.annotate(
            name, ends[name], (1.06, height), textcoords="axes fraction", fontsize=8, color=color,
            va="center", arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=list(TASKS))
    parser.add_argument("--data", help="folder with the idx .gz files of MNIST")
    parser.add_argument(
        "--estimators", nargs="+", default=list(ESTIMATORS), choices=list(ESTIMATORS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("estimators_results"))
    parser.add_argument("--report", type=Path, help="print the tables of a results folder")
    parser.add_argument("--plot", help="with --report: also draw the curves into this file")
    parser.add_argument("--smoke", action="store_true", help="one epoch, one seed, two estimators")
    args = parser.parse_args()
    if not args.report:
        if args.smoke:
            args.seeds, args.estimators = [0], ["StraightThrough", "DisARM x2"]
        args.out.mkdir(parents=True, exist_ok=True)
        splits = load(args.dataset, args.data)
        names = [n for n in args.estimators if n not in TASKS[args.dataset].without]
        for name in names:
            for optimizer in OPTIMIZERS:
                run(args, splits, name, optimizer, selection=True)
        best = chosen(args.out, args.dataset)
        for seed in list(args.seeds):  # every estimator's first seed before anyone's second
            args.seeds = [seed]
            for name in names:
                run(args, splits, name, best[name], selection=False)
    print(report(args.report or args.out))
    if args.plot:
        plot(args.report or args.out, args.plot)


if __name__ == "__main__":
    main()
