"""Nested posteriors beside mean-field: accuracy, likelihood, calibration, out-of-distribution data, size.

One JSON file per run (data, network, posterior, seed) in --out; runs that are there are not repeated, and
one that was interrupted continues from its last checkpoint. Settings were chosen on images held out from
the training set; here all of it is trained on, for a fixed number of epochs, and the test set is looked
at once, at the end. Out-of-distribution data are the test images of Fashion-MNIST, for digits averaged
down to 8 x 8.

    python examples/benchmarks/nested.py --data folder --out results
    python examples/benchmarks/nested.py --data folder --dataset mnist --network conv --epochs 5 --out results
    python examples/benchmarks/nested.py --report results
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from bayesbin import BinaryPosterior
from bayesbin.data import Batches, Splits, load
from bayesbin.ensemble import Ensemble
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli, PolicyNetwork
from bayesbin.nn import Classifier, conv_net, mlp, to_binary_
from bayesbin.plots import plot_sharing, save_figure
from bayesbin.recipes import Recipe, recipe

BATCH_SIZE = 100
NUM_SAMPLES = 32
MOMENTUM = 0.9
SHARED = ("layer", "filter", "kernel")
ALL = (*SHARED, "weight")
# How each posterior is built, in the order of the table.
POSTERIORS: dict[str, dict[str, Any]] = {
    "mean-field": {},
    "nested": {"sharing": ALL},
    "nested, no weight scope": {"sharing": SHARED},
    "random effects": {"sharing": ALL, "kind": "random-effects"},
    "random effects, no weight scope": {"sharing": SHARED, "kind": "random-effects"},
    "policy network, no weight scope": {"sharing": SHARED, "policy": 8},
}
# lr is the typical change of lambda in one step; real-valued parameters have Adam's.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits mlp": {"lr": 0.05, "adam_lr": 1e-2, "kl_weight": 0.03, "init_scale": 0.1, "epochs": 60},
    "digits conv": {"lr": 0.05, "adam_lr": 1e-2, "kl_weight": 0.03, "init_scale": 0.1, "epochs": 60},
    "mnist mlp": {"lr": 0.05, "adam_lr": 3e-3, "kl_weight": 0.02, "init_scale": 0.1, "epochs": 20},
    "mnist conv": {"lr": 0.1, "adam_lr": 3e-3, "kl_weight": 0.02, "init_scale": 0.1, "epochs": 20},
}  # fmt: skip


def network(dataset: str, kind: str) -> nn.Module:
    """In real weights: 64-128-128-10 and 784-512-512-10, or two convolutional stages and a layer."""
    if dataset == "digits":
        conv = {"channels": (16, 32), "hidden": (128,), "kernel_size": 3, "padding": 1}
        return mlp(64, [128, 128], 10) if kind == "mlp" else conv_net((1, 8, 8), **conv)
    if kind == "mlp":
        return nn.Sequential(nn.Dropout(0.2), *mlp(784, [512, 512], 10))
    return conv_net((1, 28, 28))


def images(x: Tensor, kind: str) -> Tensor:
    """(N, pixels), or (N, 1, side, side) for a convolutional network."""
    side = math.isqrt(x.shape[1])
    return x if kind == "mlp" else x.view(-1, 1, side, side)


def foreign_images(args: argparse.Namespace, dataset: str) -> Tensor | None:
    """Fashion-MNIST in the pixels and the brightness that the network was trained for."""
    if args.data is None:
        return None
    fashion = load("fashion-mnist", args.data).test
    if dataset == "mnist":
        return fashion.x
    small = nn.functional.avg_pool2d(nn.functional.pad(fashion.x.view(-1, 1, 28, 28), (2,) * 4,
                                     value=fashion.x.min().item()), 4)  # fmt: skip
    return small.flatten(1)


def method(name: str, model: Classifier, settings: dict[str, Any], epochs: int) -> Recipe:
    """The default recipe with one of the guides, and with the settings of this benchmark."""
    options = dict(POSTERIORS[name])
    if name == "mean-field":
        guide: Any = AutoSignBernoulli(model, init_scale=settings["init_scale"])
    else:
        policy = options.pop("policy", None)
        combine = PolicyNetwork(policy) if policy else None
        guide = AutoNestedSignBernoulli(
            model, **options, combine=combine, init_scale=settings["init_scale"]
        )
    return recipe(
        "bayesbin", model, guide=guide, epochs=epochs, lr=settings["lr"], momentum=MOMENTUM,
        real_lr=settings["adam_lr"], kl_weight=settings["kl_weight"],
    )  # fmt: skip


def run(args: argparse.Namespace, dataset: str, kind: str, name: str, seed: int) -> dict[str, Any]:
    """Train and score one run; writes its JSON, and its posterior beside it."""
    settings = SETTINGS[f"{dataset} {kind}"]
    epochs = 1 if args.smoke else args.epochs or settings["epochs"]
    label = (
        f"{dataset}_{kind}_{name.replace(', ', '-').replace(' ', '-')}_{epochs}epochs_seed{seed}"
    )
    path = args.out / f"{label}.json"
    if path.exists():
        return json.loads(path.read_text())
    splits = load(dataset, args.data)
    if args.smoke:
        train, test = (type(d)(d.x[:300], d.y[:300], d.name, d.num_classes)
                       for d in (splits.train, splits.test))  # fmt: skip
        splits = Splits(train, test)
    x, test_x = images(splits.train.x, kind), images(splits.test.x, kind)
    torch.manual_seed(seed)
    net = to_binary_(network(dataset, kind))
    model = Classifier(net, dataset_size=len(x))
    trained = method(name, model, settings, epochs)
    guide = trained.guide
    result = trained.fit(
        Batches((x, splits.train.y), BATCH_SIZE), seed=seed, progress=not args.no_progress,
        checkpoint_dir=args.out / "checkpoints" / label,
    )  # fmt: skip
    posterior = guide.posterior()
    posterior.save(args.out / "checkpoints" / label / "posterior.safetensors")
    draws = 2 if args.smoke else args.draws
    ensemble = Ensemble(model, posterior, draws, seed).calibrate(x[:10_000])
    start = time.perf_counter()
    scores = ensemble.evaluate(test_x, splits.test.y)
    foreign = foreign_images(args, dataset)
    if foreign is not None:
        scores["ood"] = separation(ensemble, test_x, images(foreign, kind))
    summary = posterior.summary()
    record = {
        "benchmark": "nested", "dataset": dataset, "network": kind, "posterior": name, "epochs": epochs,
        "batch_size": BATCH_SIZE, "seed": seed, "settings": settings, "scores": scores,
        "parameters": sum(p.numel() for p in guide.parameters()), "weights": posterior.num_weights,
        "entropy_bits_per_weight": summary.total().entropy_bits,
        "entropy_bits_per_layer": [row.entropy_bits for row in summary.rows],
        "train_nll": result.history[-1]["nll"], "train_kl": result.history[-1]["kl"],
        "seconds_training": sum(row["seconds"] for row in result.history),
        "seconds_prediction": time.perf_counter() - start, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=2))
    return record


def separation(ensemble: Ensemble, x: Tensor, foreign: Tensor) -> dict[str, float]:
    """AUROC of telling foreign images by predictive entropy and by mutual information."""
    own, other = ensemble.predict(x), ensemble.predict(foreign)
    is_foreign = torch.cat([torch.zeros(len(x)), torch.ones(len(foreign))]).long()
    scores = {}
    for name in ("entropy", "mutual_information"):
        values = torch.cat([getattr(own, name), getattr(other, name)])
        # torchmetrics takes anything outside [0, 1] for a logit; a rank is a rank.
        scores[name] = binary_auroc(values / values.max().clamp(min=1.0), is_foreign).item()
    return scores


def report(folder: Path) -> str:
    """A table over all runs in a folder: mean and standard deviation over seeds, and over draws."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("benchmark") == "nested":
            place = list(POSTERIORS).index(record["posterior"])
            key = (record["dataset"], record["network"] == "conv", -record["epochs"], place)
            groups.setdefault(key, []).append(record)
    lines = [
        "| data, network, epochs | posterior | seeds | accuracy %, mean of draws | single draws "
        "| NLL | single draws | ECE | AUROC, entropy | AUROC, MI | parameters | bits/weight | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, rs in sorted(groups.items()):
        first = rs[0]
        mean = [r["scores"]["mean"] for r in rs]
        ood = [r["scores"]["ood"] for r in rs if "ood" in r["scores"]]
        share = first["parameters"] / first["weights"]
        cells = [
            f"{first['dataset']}, {first['network']}, {first['epochs']}", first["posterior"],
            str(len(rs)), spread([100 * row["accuracy"] for row in mean], 2),
            over_draws(rs, "accuracy", 100, 2), spread([row["nll"] for row in mean], 4),
            over_draws(rs, "nll", 1, 3), spread([row["ece"] for row in mean], 4),
            spread([row["entropy"] for row in ood], 3),
            spread([row["mutual_information"] for row in ood], 3),
            f"{first['parameters']:,} ({share:.1%})",
            spread([r["entropy_bits_per_weight"] for r in rs], 2),
            f"{statistics.mean(r['seconds_training'] for r in rs):.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over seeds."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def over_draws(records: list[dict[str, Any]], score: str, factor: float, digits: int) -> str:
    """mean +- standard deviation over single draws, both averaged over seeds."""
    kinds = [[r["scores"]["draws"][kind][score] for r in records] for kind in ("mean", "std")]
    mean, std = (factor * statistics.mean(values) for values in kinds)
    return f"{mean:.{digits}f} +- {std:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with the idx files of mnist and fashion-mnist")
    parser.add_argument("--dataset", default="digits", choices=["digits", "mnist"])
    parser.add_argument("--network", nargs="+", default=["mlp", "conv"], choices=["mlp", "conv"])
    parser.add_argument(
        "--posteriors", nargs="+", default=list(POSTERIORS), choices=list(POSTERIORS)
    )
    parser.add_argument("--epochs", type=int, help="default: 60 on digits, 20 on MNIST")
    parser.add_argument("--draws", type=int, default=NUM_SAMPLES, help="to score (default: 32)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("nested_results"))
    parser.add_argument("--report", type=Path, help="print the table of a results folder")
    parser.add_argument("--figure", nargs=2, metavar=("POSTERIOR", "PNG"),
                        help="draw lambda by scope of a saved posterior")  # fmt: skip
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="300 images, one epoch, one seed")
    args = parser.parse_args()
    if args.report:
        print(report(args.report))
        return
    if args.figure:
        posterior = BinaryPosterior.load(args.figure[0])
        save_figure(plot_sharing(posterior), args.figure[1])
        return
    if args.smoke:
        args.seeds, args.no_progress = args.seeds[:1], True
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for kind in args.network:
            for name in args.posteriors:
                print(json.dumps(run(args, args.dataset, kind, name, seed)), flush=True)


if __name__ == "__main__":
    main()
