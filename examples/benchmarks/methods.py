"""Every recipe on MNIST, beside a plain-torch twin of it, with and without batch normalisation.

One JSON file per run in --out; runs that are there are not repeated, and a recipe that was interrupted
continues from its last checkpoint. All 60,000 training images, a fixed number of epochs; the test set is
looked at once, at the end. MNIST: --seeds seeds with batch normalisation, the first of them without;
Fashion-MNIST: the first seed, recipes alone. Two processes with different --only share a folder.

    python examples/benchmarks/methods.py --data folder --out results
    python examples/benchmarks/methods.py --data folder --dataset fashion-mnist --out results
    python examples/benchmarks/methods.py --report results
    python examples/benchmarks/methods.py --limits methods_limits.png
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from methods_twins import TWINS, train_twin, twin_log_probs

from bayesbin.core import numerics
from bayesbin.core.names import RECIPES as NAMES
from bayesbin.data import Splits, load
from bayesbin.diagnostics import scores
from bayesbin.estimators import Concrete
from bayesbin.experiments import comparison_table, summary_rows, train_and_score
from bayesbin.nn import mlp
from bayesbin.plots import plot_small_temperature, save_figure
from bayesbin.recipes import recipe

KINDS = ("recipe", "twin")
CALIBRATION_DATA = 5000
POSTERIORS = ("bayesbin", "bayesbinn", "lr-net", "snapquant")
# The means of signs with lambda of 0.1 shrink the signal tenfold at each layer that nothing normalises.
UNNORMALISED = {"init_scale": 1.0}


def jobs(args: argparse.Namespace) -> list[tuple[str, str, bool, int]]:
    """(kind, method, normalised, seed), the cheapest questions first."""
    first, *more = args.seeds
    found = [("recipe", name, True, first) for name in args.only]
    if args.dataset == "mnist":
        for kind, normalize, seed in [
            ("twin", True, first),
            *(("recipe", True, seed) for seed in more[:1]),
            ("recipe", False, first),
            *(("recipe", True, seed) for seed in more[1:]),
            ("twin", False, first),
            *(("twin", True, seed) for seed in more),
        ]:
            found += [(kind, name, normalize, seed) for name in args.only]
    return [job for job in found if job[0] == "recipe" or job[1] in TWINS]


def run(
    args: argparse.Namespace, splits: Splits, kind: str, name: str, normalize: bool, seed: int
) -> None:
    """Train and score one job, unless its file is there."""
    norm = "norm" if normalize else "plain"
    stem = f"{args.dataset}_{name}_{kind}_{norm}_{args.epochs}epochs_seed{seed}"
    path = args.out / f"{stem}.json"
    if path.exists():
        return
    draws = 2 if args.smoke else args.num_samples
    train, test = splits.train, splits.test
    overrides = UNNORMALISED if name in POSTERIORS and not normalize else {}
    if kind == "recipe":
        # The settings that the results in docs/benchmarks were trained with.
        kl_weight = {"kl_weight": 0.02} if name in ("bayesbin", "bayesbinn") else {}
        overrides = {"real_lr": 3e-3, **kl_weight, **overrides}
        torch.manual_seed(seed)
        net = mlp(train.x.shape[1], args.hidden, 10, normalize=normalize)
        record = train_and_score(
            recipe(name, net, dataset_size=len(train), epochs=args.epochs, **overrides), splits,
            seed=seed, num_samples=draws, checkpoint_dir=args.out / "checkpoints" / stem,
            progress=not args.no_progress,
        )  # fmt: skip
    else:
        sizes = [train.x.shape[1], *args.hidden, 10]
        start = time.perf_counter()
        trained = train_twin(
            name, train.x, train.y, sizes, normalize, args.epochs, seed, **overrides
        )
        seconds = time.perf_counter() - start
        calibration = train.x[:CALIBRATION_DATA]
        log_probs = twin_log_probs(*trained[:2], test.x, calibration, draws)
        found = {"mean": scores(log_probs, test.y), "num_samples": draws}
        record = {"recipe": name, "seed": seed, "scores": found, "seconds": seconds,
                  "losses": trained[2]}  # fmt: skip
    record |= {
        "benchmark": "methods", "dataset": args.dataset, "kind": kind, "normalize": normalize,
        "hidden": args.hidden, "epochs": args.epochs, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, path)


def report(folder: Path) -> str:
    """The recipes by data set and normalisation; recipes beside twins; the two normalisations of SLB."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    records = [record for record in records if record.get("benchmark") == "methods"]
    records.sort(key=lambda r: (NAMES.index(r["recipe"]), r["seed"]))
    parts = []
    for dataset in sorted({r["dataset"] for r in records}, reverse=True):
        for normalize in (True, False):
            chosen = [
                r for r in records
                if (r["dataset"], r["normalize"], r["kind"]) == (dataset, normalize, "recipe")
            ]  # fmt: skip
            if chosen:
                title = f"{dataset}, {'with' if normalize else 'without'} batch normalisation"
                parts.append(f"{title}\n\n{comparison_table(summary_rows(chosen))}")
    if any(r["kind"] == "twin" for r in records):
        parts.append(twin_table(records))
    parts.append(normalisation_table(records))
    return "\n\n".join(parts)


def twin_table(records: list[dict[str, Any]]) -> str:
    """Accuracy and NLL of the mean of draws, recipe and twin on the seeds that both have."""
    lines = [
        "| method | normalised | seeds | recipe, accuracy % | twin | recipe, NLL | twin |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in TWINS:
        for normalize in (True, False):
            runs: dict[str, dict[int, Any]] = {kind: {} for kind in KINDS}
            for r in records:
                if (r["dataset"], r["recipe"], r["normalize"]) == ("mnist", name, normalize):
                    runs[r["kind"]][r["seed"]] = r["scores"]["mean"]
            seeds = sorted(set(runs["recipe"]) & set(runs["twin"]))
            if seeds:
                cells = [
                    spread([factor * runs[kind][s][score] for s in seeds], digits)
                    for score, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4))
                    for kind in KINDS
                ]
                yes = "yes" if normalize else "no"
                lines.append(f"| {name} | {yes} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def normalisation_table(records: list[dict[str, Any]]) -> str:
    """The mode with the running statistics of training, and with those of its own weights."""
    lines = [
        "| data | method | running statistics, accuracy % | own | running, NLL | own |",
        "|---|---|---|---|---|---|",
    ]
    for dataset in sorted({r["dataset"] for r in records}, reverse=True):
        for name in NAMES:
            runs = [r for r in records if (r["dataset"], r["recipe"]) == (dataset, name)]
            runs = [r for r in runs if r["kind"] == "recipe" and r["normalize"]]
            if runs:
                cells = [
                    spread([factor * modes(r)[k][score] for r in runs], digits)
                    for score, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4))
                    for k in range(2)
                ]
                lines.append(f"| {dataset} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def modes(record: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    return record["running"], record["scores"]["mode"]


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def small_temperature(path: Path, draws: int) -> None:
    """The factor s = (d w_r / d lambda) / F between a relaxed gradient and that of straight-through."""
    temperatures = [2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
    factors: dict[str, list[dict[str, float]]] = {}
    for value in (0.0, 1.5):
        for temperature in temperatures:
            torch.manual_seed(0)
            natural = torch.full((draws,), value, dtype=torch.float64, requires_grad=True)
            surrogate = Concrete(temperature)(lambda v: v["w"][0].sum()[None], {"w": natural})
            s = torch.autograd.grad(surrogate, natural)[0] / numerics.variance(natural.detach())
            row = {"mean": s.mean().item(), "std": s.std().item(),
                   "near": ((s - 1).abs() < 0.5).double().mean().item()}  # fmt: skip
            factors.setdefault(f"lambda = {value:g}", []).append(row)
    save_figure(plot_small_temperature(temperatures, factors), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with the idx .gz files, or of both data sets")
    parser.add_argument("--dataset", default="mnist", choices=["mnist", "fashion-mnist"])
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-samples", type=int, default=32, help="draws of a posterior")
    parser.add_argument("--out", type=Path, default=Path("methods_results"))
    parser.add_argument("--report", type=Path, help="print the tables of a results folder")
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="500 images, one epoch, one seed")
    parser.add_argument("--limits", type=Path, metavar="PNG", help="draw s against temperature")
    args = parser.parse_args()
    if args.limits:
        small_temperature(args.limits, 1000 if args.smoke else 400_000)
        return
    if args.report:
        print(report(args.report))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    splits = load(args.dataset, args.data)
    if args.smoke:
        args.epochs, args.seeds, args.hidden = 1, [0], [16]
        parts = (splits.train, splits.test)
        train, test = (type(d)(d.x[:500], d.y[:500], d.name, d.num_classes) for d in parts)
        splits = Splits(train, test)
    for job in jobs(args):
        run(args, splits, *job)
    print(report(args.out))


if __name__ == "__main__":
    main()
