"""What averaging over a posterior brings: scores, abstention and out-of-distribution data.

MNIST and Fashion-MNIST, 784-512-512-10, trained on 55,000 images; the last 5,000 of the training set fit
the temperatures, and the test set is looked at once. Each is the other's out-of-distribution data, its
pixels shifted and scaled as those trained on. Beside the mode and the mean of draws: a float network, MC
dropout on one, one straight-through network and the average of five. `wary` is a posterior for the network
with each pixel normalised by itself and five times the weight on the KL: of a few variants tried
(activations, layer normalisation, inputs of unit length, convolutions, all for MNIST with fewer images and
epochs, and told apart by training images of Fashion-MNIST) the one that knew other images best.

The outputs of every trained network are kept in --out, and a network whose outputs are there is not trained
again.

    python examples/benchmarks/uncertainty.py --data folder --out results
    python examples/benchmarks/uncertainty.py --report results/uncertainty.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin import nn as bnn
from bayesbin.data import Batches, Dataset, idx_folder
from bayesbin.diagnostics import (
    TemperatureScaling,
    classification_scores,
    ood_scores,
    risk_coverage,
    uncertainty,
)
from bayesbin.ensemble import Ensemble
from bayesbin.recipes import recipe

DATASETS = ("mnist", "fashion-mnist")
VALIDATION = 5000
CALIBRATION_DATA = 5000
MEMBERS = 5  # of the ensemble
NETWORKS = {  # name -> how many are trained for each seed
    "posterior": 1,
    "wary": 1,
    "float": 1,
    "dropout": 1,
    "straight-through": MEMBERS,
}
WARY_KL_WEIGHT = 0.1  # the recipe's is 0.02
Outputs = dict[str, Tensor]  # "validation", "test", "other" -> log-probabilities (S, N, 10)


class Sets:
    """Training, validation and test set of one data set, and the other one's test images."""

    def __init__(self, folder: Path, name: str, images: int | None) -> None:
        (other,) = set(DATASETS) - {name}
        pixels, others = (idx_folder(folder / n, normalize=False) for n in (name, other))
        std, mean = torch.std_mean(pixels.train.x)
        x, y = (pixels.train.x - mean) / std, pixels.train.y
        held = min(VALIDATION, len(x) // 5)
        self.train = Dataset(x[:-held][:images], y[:-held][:images], name, 10)
        self.labels = {"validation": y[-held:][:images], "test": pixels.test.y[:images]}
        self.inputs = {
            "validation": x[-held:][:images],
            "test": ((pixels.test.x - mean) / std)[:images],
            "other": ((others.test.x - mean) / std)[:images],
        }


def wary(hidden: list[int]) -> nn.Module:
    """The network behind a normalisation of each pixel by itself.

    Pixels that are nearly always dark in training are large when they are not. Their signs were never
    settled, so the draws disagree about what it means. 0.01 is added to the variances, in units of that
    of all pixels: one that is always the same is not blown up without limit.
    """
    pixels = nn.BatchNorm1d(784, eps=0.01, affine=False)
    return nn.Sequential(pixels, *bnn.mlp(784, hidden, 10))


def binary_outputs(
    name: str, sets: Sets, args: argparse.Namespace, seed: int
) -> dict[str, Outputs]:
    """A posterior's mode and its draws, or one straight-through network as the mode."""
    torch.manual_seed(seed)
    point = name == "straight-through"
    net = wary(args.hidden) if name == "wary" else bnn.mlp(784, args.hidden, 10)
    method = "ste" if point else "bayesbin"
    # The settings that the results in docs/benchmarks were trained with.
    weight = WARY_KL_WEIGHT if name == "wary" else 0.02
    more = {"real_lr": 3e-3} if point else {"real_lr": 3e-3, "kl_weight": weight}
    parts = recipe(method, net, dataset_size=len(sets.train), epochs=args.epochs, **more)
    data = Batches(sets.train, 100)
    parts.fit(data, seed=seed, progress=False)
    ensemble = Ensemble(parts.model, parts.guide.posterior(), 1 if point else args.draws, seed)
    ensemble.calibrate(sets.train.x[:CALIBRATION_DATA])
    kinds = {"mode": ensemble.mode} if point else {"mode": ensemble.mode, "draws": ensemble}
    return {
        kind: {part: chosen.log_probs(x) for part, x in sets.inputs.items()}
        for kind, chosen in kinds.items()
    }


def float_outputs(name: str, sets: Sets, args: argparse.Namespace, seed: int) -> dict[str, Outputs]:
    """The same network with real weights, trained by Adam; with dropout, its draws instead."""
    torch.manual_seed(seed)
    net = bnn.mlp(784, args.hidden, 10, dropout=0.2 if name == "dropout" else 0.0)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, args.epochs)
    for _ in range(args.epochs):
        for rows in torch.randperm(len(sets.train)).split(100):
            loss = F.cross_entropy(net(sets.train.x[rows]), sets.train.y[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        if name == "float":
            return {"mode": {k: net(x).log_softmax(-1)[None] for k, x in sets.inputs.items()}}
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        return {"draws": {
            k: torch.stack([net(x).log_softmax(-1) for _ in range(args.draws)])
            for k, x in sets.inputs.items()
        }}  # fmt: skip


def outputs(
    dataset: str, name: str, args: argparse.Namespace, seed: int, sets: Any
) -> dict[str, Outputs]:
    """Those of a network that was trained before, or of one trained now."""
    path = args.out / f"{dataset}_{name}_{args.epochs}epochs_seed{seed}.pt"
    if not path.exists():
        make = float_outputs if name in ("float", "dropout") else binary_outputs
        partial = path.with_suffix(".part")
        torch.save(make(name, sets(), args, seed), partial)
        os.replace(partial, path)
    return torch.load(path)


def judge(log_probs: Outputs, labels: dict[str, Tensor]) -> dict[str, Any]:
    """Scores of the mean of draws, by itself and at the temperature that suits the validation set."""
    found = {k: uncertainty(v) for k, v in log_probs.items() if k != "validation"}
    mean = {k: v.double().logsumexp(0) - math.log(len(v)) for k, v in log_probs.items()}
    scaling = TemperatureScaling.fit(mean["validation"], labels["validation"])
    row: dict[str, Any] = {"draws": len(log_probs["test"]), "temperature": scaling.temperature}
    for key, test in {"scores": mean["test"], "scaled": scaling.apply(mean["test"])}.items():
        correct = test.argmax(-1) == labels["test"]
        curve = risk_coverage(test.max(-1).values, correct)
        row[key] = classification_scores(test, labels["test"]) | {"aurc": curve.aurc}
    quantities = ["entropy"] + ["mutual_information"] * (len(log_probs["test"]) > 1)
    row["ood"] = {
        q: ood_scores(getattr(found["test"], q), getattr(found["other"], q)) for q in quantities
    }
    return row


def run(args: argparse.Namespace, dataset: str, seed: int) -> list[dict[str, Any]]:
    """A row for each method, once all networks of a seed are there."""
    cache: list[Sets] = []

    def sets() -> Sets:
        if not cache:
            cache.append(Sets(args.data, dataset, 500 if args.smoke else None))
        return cache[0]

    members: list[Outputs] = []
    found: dict[str, Outputs] = {}
    for name, count in NETWORKS.items():
        for k in range(count):
            trained = outputs(dataset, name, args, seed * MEMBERS + k if count > 1 else seed, sets)
            if name == "straight-through":
                members.append(trained["mode"])
            else:
                found |= {f"{name}, {kind}": values for kind, values in trained.items()}
    found |= {f"straight-through, network {k}": member for k, member in enumerate(members)}
    found[f"straight-through, ensemble of {MEMBERS}"] = {
        k: torch.cat([member[k] for member in members]) for k in members[0]
    }
    labels = sets().labels
    return [
        {"dataset": dataset, "method": name, "seed": seed} | judge(values, labels)
        for name, values in found.items()
    ]


LABELS = {
    "posterior, mode": "posterior: mode",
    "posterior, draws": "posterior: mean of draws",
    "wary, mode": "wary posterior: mode",
    "wary, draws": "wary posterior: mean of draws",
    "straight-through, network": "one straight-through network",
    f"straight-through, ensemble of {MEMBERS}": f"{MEMBERS} straight-through networks",
    "float, mode": "float network",
    "dropout, draws": "MC dropout, float",
}


def report(record: dict[str, Any]) -> str:
    """Scores, scores at a fitted temperature, and out-of-distribution data: mean +- std over networks."""
    lines = []
    for dataset in DATASETS:
        rows = [row for row in record["rows"] if row["dataset"] == dataset]
        if not rows:
            continue
        lines += [f"{dataset}:", "", "| | networks | accuracy % | NLL | ECE | Brier | AURC x 1000 | NLL, "
                  "fitted temperature | ECE | other data: AUROC by entropy | FPR95 | AUROC by mutual "
                  "information | FPR95 |", "|" + "---|" * 13]  # fmt: skip
        for key, label in LABELS.items():
            chosen = [row for row in rows if row["method"].startswith(key)]
            if not chosen:
                continue
            cells = [str(len(chosen))]
            for name, factor, places in (
                ("accuracy", 100, 2), ("nll", 1, 4), ("ece", 1, 4), ("brier", 1, 4), ("aurc", 1000, 2),
            ):  # fmt: skip
                cells.append(spread([factor * row["scores"][name] for row in chosen], places))
            cells += [spread([row["scaled"][name] for row in chosen], 4) for name in ("nll", "ece")]
            for quantity in ("entropy", "mutual_information"):
                for name in ("auroc", "fpr95"):
                    there = [r["ood"][quantity][name] for r in chosen if quantity in r["ood"]]
                    cells.append(spread(there, 3) if there else "-")
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def spread(values: list[float], places: int) -> str:
    mean = f"{statistics.mean(values):.{places}f}"
    return f"{mean} +- {statistics.stdev(values):.{places}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with mnist/ and fashion-mnist/")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("uncertainty_results"))
    parser.add_argument("--report", type=Path, help="print the tables of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="500 images, one epoch")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.data is None:
        parser.error("expected --data, the folder with mnist/ and fashion-mnist/")
    if args.smoke:
        args.epochs, args.hidden, args.draws = 1, [16], 2
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "benchmark": "uncertainty", "hidden": args.hidden, "epochs": args.epochs, "rows": [],
        "torch": torch.__version__, "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    for seed in args.seeds:
        for dataset in args.datasets:
            record["rows"] += run(args, dataset, seed)
            (args.out / "uncertainty.json").write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
