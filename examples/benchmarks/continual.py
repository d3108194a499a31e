"""Sequences of tasks on MNIST: a posterior as the next prior, beside baselines, online, and split classes.

One JSON file per configuration and seed in --out; what is there is not repeated, and what was interrupted
goes on. The seed is that of the permutations, of the initial posterior, of the noise and of the order of
the data: 0, 1, 2 for reporting. Settings were chosen on held-out training images of permutations 100 and
101. Every task is scored on all test images after every task, with 32 draws.

    python examples/benchmarks/continual.py --data FOLDER --out results
    python examples/benchmarks/continual.py --report results

FOLDER has subfolders mnist and, for out-of-distribution data, fashion-mnist. Those are brought to the
network in MNIST's mean and standard deviation, with the pixels of the last task's permutation.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from continual_settings import CONFIGURATIONS, PUBLISHED, SETTINGS, SHOWN, THREE_SEEDS
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from bayesbin import data, plots
from bayesbin.continual import ContinualResult, Learner, PermutedPixels, TaskStream, learn
from bayesbin.experiments import (
    ContinualSettings,
    continual_learner,
    continual_stream,
    uncertainty_rows,
    unseen_task,
)


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Learn one configuration's tasks; writes its JSON."""
    label = f"{name.replace(', ', '_').replace(' ', '-')}_seed{seed}"
    path = args.out / f"{label}.json"
    if path.exists():
        return json.loads(path.read_text())
    settings: dict[str, Any] = CONFIGURATIONS[name] | {"seed": seed}
    train_size = settings.pop("train_size", None)
    chosen = {name: settings.pop(name) for name in SETTINGS if name in settings}
    test_size = None
    if args.smoke:
        settings |= {"epochs": 1, "num_samples": 2}
        if settings["stream"] == "permuted":
            settings["tasks"] = 2
        train_size = test_size = 60
    config = ContinualSettings(**settings, method_settings=chosen)
    stream = continual_stream(
        config, first(data.load(config.dataset, args.data), train_size, test_size)
    )
    checkpoints = args.out / "checkpoints" / label
    learner = continual_learner(config, stream, checkpoints, not args.no_progress)
    result = learn(learner, stream, progress=not args.no_progress)
    tasks = [stream.exam(index) for index in range(len(stream))]
    record = {
        "benchmark": "continual", "name": name, "seed": seed, "config": config.to_record(),
        "train_size": train_size, **trimmed(result),
        "uncertainty": uncertainty_rows(learner, tasks, unseen_task(config, stream)),
        "ood": separation(args, learner, stream), "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    path.write_text(json.dumps(rounded(record), indent=1))
    shutil.rmtree(checkpoints)
    return record


def first(splits: data.Splits, train: int | None, test: int | None) -> data.Splits:
    """The first so many training and test examples."""
    parts = [
        type(part)(part.x[:count], part.y[:count], part.name, part.num_classes)
        for part, count in ((splits.train, train), (splits.test, test))
    ]
    return data.Splits(parts[0], parts[1], splits.preprocessing)


def trimmed(result: ContinualResult) -> dict[str, Any]:
    """The result without the rows of each epoch."""
    content = result.to_dict()
    for report in content["reports"]:
        report["history"] = []
    return content


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def separation(
    args: argparse.Namespace, learner: Learner, stream: TaskStream
) -> dict[str, float] | None:
    """AUROC of telling Fashion-MNIST (positive) from the last task's test images, after that task."""
    is_mnist = isinstance(stream, PermutedPixels) and stream.splits.train.name == "mnist"
    if not is_mnist or not (Path(args.data) / "fashion-mnist").is_dir():
        return None
    assert isinstance(stream, PermutedPixels)
    raw = data.idx_folder(Path(args.data) / "fashion-mnist", normalize=False).test
    preprocessing = stream.splits.preprocessing
    assert preprocessing is not None
    mean, std = preprocessing.mean, preprocessing.std
    assert isinstance(mean, float) and isinstance(std, float)  # one channel
    last = len(stream) - 1
    x = (raw.x[: len(stream.splits.test)] - mean) / std
    exam = stream.exam(last)
    own = learner.predict(exam.test.x, exam)
    other = learner.predict(x[:, stream.permutation(last)], exam)
    return {
        name: auroc(getattr(own, name), getattr(other, name))
        for name in ("entropy", "mutual_information")
    }


def auroc(own: Tensor, other: Tensor) -> float:
    values, foreign = (
        torch.cat([own, other]),
        torch.cat([torch.zeros(len(own)), torch.ones(len(other))]),
    )
    # torchmetrics takes anything outside [0, 1] for a logit; a rank is a rank.
    return binary_auroc(values / values.max().clamp(min=1.0), foreign.long()).item()


def report(folder: Path) -> str:
    """Tables over all runs in a folder: mean and standard deviation over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in CONFIGURATIONS}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("benchmark") == "continual":
            groups[record["name"]].append(record)
    groups = {name: records for name, records in groups.items() if records}
    tables = {"permuted": permuted_table, "split": five_tasks_table, "digits": five_tasks_table}
    of_table: dict[str, dict[str, Any]] = {name: {} for name in tables}
    for name, records in groups.items():
        config = records[0]["config"]
        config = config.get("settings", config)  # records of version 0.1 have them side by side
        of_table["digits" if config["dataset"] == "digits" else config["stream"]][name] = records
    parts = [table(of_table[name]) for name, table in tables.items() if of_table[name]]
    if of_table["permuted"]:
        parts.append(uncertainty_table(of_table["permuted"]))
    return "\n\n".join(parts)


def permuted_table(groups: dict[str, list[dict[str, Any]]]) -> str:
    heads = " | ".join(f"{count} task{'s' * (count > 1)}" for count in SHOWN)
    lines = [
        f"| permuted MNIST | seeds | {heads} | backward transfer | NLL | ECE | entropy, bits/weight "
        "| training s |",
        f"|---|---|{'---|' * len(SHOWN)}---|---|---|---|---|",
    ]
    for name, published in PUBLISHED:
        cells = ["" if value is None else f"{value:g}" for value in published]
        lines.append(f"| {name} | | {' | '.join(cells)} | | | | | |")
    for name, records in groups.items():
        shown = [averages(records, count) for count in SHOWN]
        lines.append(f"| {name} | {len(records)} | {' | '.join(shown)} | {summary(records)} |")
    return "\n".join(lines)


def five_tasks_table(groups: dict[str, list[dict[str, Any]]]) -> str:
    digits = next(iter(groups)).startswith("digits")
    lines = [
        f"| {'digits' if digits else 'split MNIST'}, 5 tasks | seeds | average accuracy % | learning "
        "accuracy % | backward transfer | NLL | ECE | entropy, bits/weight | training s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    places = 1 if digits else 2
    for name, records in groups.items():
        keys = ("average_accuracy", "learning_accuracy")
        percent = [over(records, key, 100, places) for key in keys]
        title = name.removeprefix("digits, ")
        lines.append(f"| {title} | {len(records)} | {' | '.join(percent)} | {summary(records)} |")
    return "\n".join(lines)


def uncertainty_table(groups: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| after the last task | AUROC Fashion-MNIST, entropy | mutual information "
        "| mean MI, oldest task | newest task | unseen task |",
        "|---|---|---|---|---|---|",
    ]
    for name, records in groups.items():
        ood = [r["ood"] for r in records if r["ood"]]
        rows = [r["uncertainty"] for r in records]
        cells = [
            spread([row["entropy"] for row in ood], 3),
            spread([row["mutual_information"] for row in ood], 3),
            *(spread([row[i]["mutual_information"] for row in rows], 3) for i in (0, -2, -1)),
        ]
        if rows[0][0]["mutual_information"] < 1e-5:  # a single network has none
            cells[1:] = ["-"] * 4
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def averages(records: list[dict[str, Any]], count: int) -> str:
    """The average accuracy in per cent after so many tasks."""
    rows = [r["average_accuracies"] for r in records]
    return spread([100 * row[count - 1] for row in rows], 2) if len(rows[0]) >= count else ""


def summary(records: list[dict[str, Any]]) -> str:
    final = [r["reports"][-1]["layers"] for r in records]
    bits = [
        sum(row["entropy_bits"] * row["weights"] for row in rows)
        / sum(row["weights"] for row in rows)
        for rows in final
        if rows
    ]
    seconds = [sum(report["seconds"] for report in r["reports"]) for r in records]
    cells = [
        over(records, "backward_transfer", 100, 2),
        over(records, "average_nll", 1, 3),
        over(records, "average_ece", 1, 3),
        spread(bits, 2) or "-",
        f"{statistics.mean(seconds):.0f}",
    ]
    return " | ".join(cells)


def over(records: list[dict[str, Any]], key: str, factor: float, digits: int) -> str:
    return spread([factor * r[key] for r in records], digits)


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over seeds."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with the subfolders mnist and fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("continual_results"))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONFIGURATIONS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="(default: 0; the main one and digits 0 1 2)"
    )
    parser.add_argument("--report", type=Path, help="print the tables of a results folder")
    parser.add_argument("--figure", nargs=2, metavar=("JSON", "PNG"), help="draw one run")
    parser.add_argument("--smoke", action="store_true", help="60 images, 2 draws, an epoch")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args()
    if args.report:
        print(report(args.report))
        return
    if args.figure:
        record = json.loads(Path(args.figure[0]).read_text())
        figure = plots.plot_continual(ContinualResult.from_dict(record), record["uncertainty"])
        plots.save_figure(figure, args.figure[1])
        return
    if not args.data:
        parser.error("--data is needed: the folder of the data")
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.only or list(CONFIGURATIONS)
    runs = [(name, seed) for name in names for seed in args.seeds or [0]]
    if args.seeds is None:
        runs += [(name, seed) for name in names if name in THREE_SEEDS for seed in (1, 2)]
    for name, seed in runs:
        record = run(args, name, seed)
        averages = " ".join(f"{100 * value:.2f}" for value in record["average_accuracies"])
        print(f"{name}, seed {seed}: {averages}", flush=True)
    print(report(args.out))


if __name__ == "__main__":
    main()
