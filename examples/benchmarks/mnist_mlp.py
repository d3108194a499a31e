"""Accuracy, likelihood and calibration of binary MLPs on MNIST-like images, posterior beside point rule.

One JSON file per run (method, network, seed) in --out; runs that are there are not repeated, and one
that was interrupted continues from its last checkpoint. Settings were chosen on 10,000 images held out
from the training set; here all 60,000 are trained on, for a fixed number of epochs, and the test set is
looked at once, at the end.

    python examples/benchmarks/mnist_mlp.py --data mnist_folder --out results
    python examples/benchmarks/mnist_mlp.py --report results
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesbin as bb
from bayesbin.data import Batches, load
from bayesbin.distributions.relaxed import straight_through
from bayesbin.estimators import Estimator, LocalReparameterization
from bayesbin.estimators.base import Objective
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import Classifier, Scale, mlp, to_binary_
from bayesbin.optim import BayesianLearningRule

BATCH_SIZE = 100
NUM_SAMPLES = 32

# lr (times the data-set size) is that of the hidden layers; the gradient of the last layer is larger by
# an order of magnitude or two, and its step is smaller by `last`. Both decay along a cosine.
POSTERIOR = {"lr": 5000.0, "last": 0.004, "momentum": 0.9, "kl_weight": 0.02, "input_dropout": 0.2,
             "init_scale": 0.1, "adam_lr": 1e-3}  # fmt: skip
# Published: lr 1e-4 cosine, temperature 1e-10, momentum 0.99, lambda started at +-10, dropout 0.2.
EFFECTIVE = {"lr": 1e-4, "temperature": 1e-10, "momentum": 0.99, "init": 10.0, "dropout": 0.2,
             "adam_lr": 1e-3}  # fmt: skip
# Twenty times as many weights share the same information: a smaller weight on their KL.
WIDE = {"kl_weight": 0.01}
METHODS: dict[str, dict[str, Any]] = {
    "posterior": POSTERIOR,
    "bayesbinn-effective": EFFECTIVE | {"output_scale": False},
    "bayesbinn-effective-output-scale": EFFECTIVE | {"output_scale": True},
}


class SignIdentity(Estimator):
    """sign(lambda) with gradient dL/dw / temperature: what the published runs compute in float32.

    With lambda started at +-10 and an epsilon in both factors of the scale s, s is 1/temperature for
    every weight and no draw ever differs from the sign.
    """

    unbiased = False

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        values = {}
        for name, lam in natural.items():
            sign = torch.where(lam.detach() >= 0, 1.0, -1.0)
            values[name] = [straight_through(sign, lam / self.temperature)]
        return objective(values).mean()


def published_network(hidden: list[int], settings: dict[str, Any]) -> nn.Module:
    """No biases, normalisation without scale or shift also after the last layer, dropout on inputs."""
    layers: list[nn.Module] = [nn.Dropout(settings["dropout"])]
    sizes = [784, *hidden]
    for fan_in, fan_out in zip(sizes, hidden, strict=False):
        norm = nn.BatchNorm1d(fan_out, eps=1e-4, momentum=0.15, affine=False)
        layers += [nn.Linear(fan_in, fan_out, bias=False), norm, nn.ReLU()]
        layers.append(nn.Dropout(settings["dropout"]))
    layers += [nn.Linear(hidden[-1], 10, bias=False), nn.BatchNorm1d(10, 1e-4, 0.15, affine=False)]
    return nn.Sequential(*layers, *([Scale()] if settings["output_scale"] else []))


def parts(
    method: str, hidden: list[int], settings: dict[str, Any], size: int
) -> tuple[Classifier, AutoSignBernoulli, Estimator, list[torch.optim.Optimizer], float]:
    """Model, guide, estimator, optimizers and kl_weight of one method."""
    if method == "posterior":
        net = to_binary_(
            nn.Sequential(nn.Dropout(settings["input_dropout"]), *mlp(784, hidden, 10))
        )
        model = Classifier(net, dataset_size=size)
        guide = AutoSignBernoulli(model, init_scale=settings["init_scale"])
        *layers, last = guide.natural_parameters()
        lr = settings["lr"] / size
        groups = [{"params": layers}, {"params": [last], "lr": settings["last"] * lr}]
        rule = BayesianLearningRule(groups, lr=lr, momentum=settings["momentum"])
        estimator: Estimator = LocalReparameterization()
        kl_weight = settings["kl_weight"]
    else:
        model = Classifier(to_binary_(published_network(hidden, settings)), dataset_size=size)
        guide = AutoSignBernoulli(model, init_scale=settings["init"])
        natural = list(guide.natural_parameters())
        with torch.no_grad():
            for lam in natural:
                lam.copy_(settings["init"] * torch.sign(lam))
        # The gradient is that of the mean already; the decay toward the prior is added here.
        rule = BayesianLearningRule(
            natural, lr=settings["lr"], momentum=settings["momentum"], bound=None,
            preconditioner=lambda g: [None if a is None else a + b for a, b in zip(g, natural, strict=True)],
        )  # fmt: skip
        estimator, kl_weight = SignIdentity(settings["temperature"]), 0.0
    rest = [p for p in model.parameters() if p.requires_grad]
    adam = [torch.optim.Adam(rest, lr=settings["adam_lr"])] if rest else []
    return model, guide, estimator, [rule, *adam], kl_weight


def entropy_per_layer(posterior: bb.BinaryPosterior, x: Tensor) -> list[float]:
    """Bits per weight; the first layer over pixels that are active in more than 5 % of the images."""
    active = (x > x.min()).double().mean(0) > 0.05
    bits = [distribution.entropy() / math.log(2.0) for distribution in posterior.values()]
    return [bits[0][:, active].mean().item(), *(layer.mean().item() for layer in bits[1:])]


def run(args: argparse.Namespace, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and score one run; writes its JSON."""
    shape = "-".join(map(str, args.hidden))
    name = f"{args.dataset}_{method}_{shape}_{args.epochs}epochs_seed{seed}"
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    splits = load(args.dataset, args.data)
    if args.smoke:
        train, test = (type(d)(d.x[:500], d.y[:500], d.name, d.num_classes)
                       for d in (splits.train, splits.test))  # fmt: skip
        splits = type(splits)(train, test)
    wide = method == "posterior" and max(args.hidden) > 1024
    settings = METHODS[method] | (WIDE if wide else {})
    torch.manual_seed(seed)
    train = splits.train
    model, guide, estimator, optimizers, kl_weight = parts(
        method, args.hidden, settings, len(train)
    )
    schedulers = [
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
        for optimizer in optimizers
    ]
    start = time.perf_counter()
    result = fit(
        model, guide, Batches(train, BATCH_SIZE), estimator=estimator, epochs=args.epochs,
        kl_weight=kl_weight, optimizers=optimizers, schedulers=schedulers, seed=seed,
        checkpoint_dir=folder / "checkpoints" / name, progress=not args.no_progress,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    posterior = guide.posterior()
    draws = 2 if args.smoke else NUM_SAMPLES
    ensemble = bb.Ensemble(model, posterior, draws, seed).calibrate(train.x[:10_000])
    scores = ensemble.evaluate(splits.test.x, splits.test.y)
    record = {
        "benchmark": "mnist_mlp", "dataset": args.dataset, "method": method, "hidden": args.hidden,
        "epochs": args.epochs, "batch_size": BATCH_SIZE, "seed": seed, "settings": settings,
        "scores": scores, "entropy_bits_per_layer": entropy_per_layer(posterior, train.x),
        "train_nll": result.history[-1]["nll"], "train_kl": result.history[-1]["kl"],
        "seconds_training": sum(row["seconds"] for row in result.history),
        "seconds_this_process": seconds, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=2))
    return record


def report(folder: Path) -> str:
    """A table over all runs in a folder: mean and standard deviation over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("benchmark") == "mnist_mlp":
            key = (record["dataset"], tuple(record["hidden"]), record["epochs"], record["method"])
            groups.setdefault(key, []).append(record)
    lines = [
        "| data | network | epochs | method | seeds | prediction | accuracy % | NLL | ECE "
        "| entropy, bits/weight by layer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, hidden, epochs, method), records in sorted(groups.items()):
        layers = zip(*(r["entropy_bits_per_layer"] for r in records), strict=True)
        entropy = " ".join(f"{statistics.mean(layer):.2f}" for layer in layers)
        for kind in ("mode", "mean", "draws"):
            rows = [r["scores"][kind] for r in records]
            rows = [row["mean"] for row in rows] if kind == "draws" else rows
            label = {"mean": f"mean of {records[0]['scores']['num_samples']} draws",
                     "draws": "single draws"}.get(kind, kind)  # fmt: skip
            lines.append(
                f"| {dataset} | {'-'.join(map(str, (784, *hidden, 10)))} | {epochs} | {method} | {len(rows)} "
                f"| {label} | {spread([100 * r['accuracy'] for r in rows], 2)} "
                f"| {spread([r['nll'] for r in rows], 4)} | {spread([r['ece'] for r in rows], 4)} "
                f"| {entropy} |"
            )
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with the idx .gz files")
    parser.add_argument("--dataset", default="mnist", choices=["mnist", "fashion-mnist"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("mnist_mlp_results"))
    parser.add_argument("--report", type=Path, help="print the table of a results folder")
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="500 images, one epoch, one seed")
    args = parser.parse_args()
    if args.report:
        print(report(args.report))
        return
    if args.smoke:
        args.epochs, args.seeds, args.hidden = 1, [0], [16]
    args.out.mkdir(parents=True, exist_ok=True)
    for method in args.methods:
        for seed in args.seeds:
            run(args, method, seed, args.out)
    print(report(args.out))


if __name__ == "__main__":
    main()
