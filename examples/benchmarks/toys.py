"""Two moons and Snelson's data: BayesBiNN with its authors' settings beside the recipes of this package.

Every arm trains the same network with all data in one batch: 2-64-64-2 with tanh on two moons (200 points,
noise 0.1, standardised), 1-64-64-1 with tanh and a normalised output on Snelson's 200 points. The authors'
settings are those of their toy experiments: lambda from +-15 (10 for Snelson), temperature 1, lr 1e-3
(1e-4), momentum 0.99, five draws, KL weight 1, 3000 (5000) epochs, signs without a scale.

Training and test loss are nats per datum of the mean of 10 draws, and of single draws; test data of two moons
are 2000 new points, those of Snelson a fifth of the points, every fifth in the order of the inputs. Nothing
is chosen by them. One JSON file per data set, arm and seed in --out; those that are there are not repeated.

    python examples/benchmarks/toys.py --snelson FOLDER --out results
    python examples/benchmarks/toys.py --report results

FOLDER holds train_inputs and train_outputs, a number per line, of Snelson and Ghahramani 2005.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

import bayesbin as bb
from bayesbin.data import Batches, Dataset, two_moons
from bayesbin.nn import Classifier, Regressor, mlp, to_binary_
from bayesbin.recipes import Recipe, recipe

TEST_SEED = 1_000_003
MOONS, SNELSON = "two moons", "Snelson"
EPOCHS = {MOONS: 3000, SNELSON: 5000}
AUTHORS: dict[str, dict[str, Any]] = {
    MOONS: {"lr": 1e-3, "init_scale": 15.0},
    SNELSON: {"lr": 1e-4, "init_scale": 10.0},
}
TOY = {
    "momentum": 0.99, "temperature": 1.0, "num_samples": 5, "kl_weight": 1.0, "steps": "natural",
    "start": "signs", "schedule": "constant",
}  # fmt: skip
AUTHORS_ARM = "bayesbinn, authors' settings"
ARMS = (AUTHORS_ARM, "bayesbinn", "bayesbin", "ste")


def data_of(name: str, folder: Path | None, seed: int) -> tuple[Dataset, Dataset]:
    """Training and test data; the points of two moons depend on the seed, Snelson's do not."""
    if name == MOONS:
        return two_moons(200, noise=0.1, seed=seed), two_moons(
            2000, noise=0.1, seed=TEST_SEED + seed
        )
    assert folder is not None
    x, y = (np.loadtxt(folder / f"train_{which}") for which in ("inputs", "outputs"))
    order = np.argsort(x)
    x, y = x[order], y[order]
    held_out = np.arange(len(x)) % 5 == 2
    x, y = ((values - values[~held_out].mean()) / values[~held_out].std() for values in (x, y))

    def part(rows: np.ndarray) -> Dataset:
        return Dataset(
            torch.tensor(x[rows, None], dtype=torch.float32),
            torch.tensor(y[rows], dtype=torch.float32),
            SNELSON,
            None,
        )

    return part(~held_out), part(held_out)


def model_of(name: str, arm: str, size: int) -> Any:
    """The network of an arm as a model: the authors' signs have no scale, ours that of the fan-in."""
    outputs = 2 if name == MOONS else 1
    layers = list(
        mlp(2 if name == MOONS else 1, [64, 64], outputs, activation="tanh", normalize=False)
    )
    if name == SNELSON:  # the output is normalised, before its learned scale
        layers.insert(len(layers) - 1, nn.BatchNorm1d(1, affine=False))
    options: dict[str, Any] = {"scale": 1.0} if arm == AUTHORS_ARM else {}
    net = to_binary_(nn.Sequential(*layers), **options)
    return Classifier(net, size) if name == MOONS else Regressor(net, size)


def method_of(name: str, arm: str, model: Any, epochs: int) -> tuple[Recipe, list[Any]]:
    """The recipe of an arm and the schedules of its learning rates."""
    if arm != AUTHORS_ARM:
        method = recipe(arm, model, epochs=epochs)
        return method, list(method.schedules)
    method = recipe("bayesbinn", model, epochs=epochs, **{**TOY, **AUTHORS[name]})
    # A tenth of the learning rate from one half and five sixths of the training on.
    steps = [epochs // 2, epochs * 5 // 6]
    return method, [MultiStepLR(each, steps) for each in method.optimizers]


def run(args: argparse.Namespace, name: str, arm: str, seed: int) -> None:
    """Train and score one arm; writes its JSON."""
    epochs = args.epochs or EPOCHS[name]
    path = (
        args.out / f"{name.replace(' ', '_')}_{''.join(c for c in arm if c.isalnum())}_{seed}.json"
    )
    if path.exists() and json.loads(path.read_text())["epochs"] == epochs:
        return
    train, test = data_of(name, args.snelson, seed)
    torch.manual_seed(seed)
    model = model_of(name, arm, len(train))
    method, schedules = method_of(name, arm, model, epochs)
    batches = Batches(train, batch_size=len(train), shuffle=False)
    begin = time.perf_counter()
    result = bb.fit(
        model, method.guide, batches, seed=seed, progress=False,
        **{**method.arguments(), "schedulers": schedules},
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    posterior = method.guide.posterior()
    ensemble = bb.Ensemble(model, posterior, 10, seed).calibrate(train.x)
    naturals = torch.cat([q.natural.reshape(-1) for q in posterior.values()])
    record = {
        "benchmark": "toys", "data": name, "arm": arm, "seed": seed, "epochs": epochs,
        "settings": method.settings, "seconds": seconds, "loss_of_last_step": result.history[-1]["nll"],
        "train": ensemble.evaluate(train.x, train.y), "test": ensemble.evaluate(test.x, test.y),
        "probability_of_rarer_sign": torch.sigmoid(-2.0 * naturals.abs()).mean().item(),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=1))


def report(folder: Path) -> str:
    """A table: mean and standard deviation over seeds."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = [
        "| data | method | seeds | training loss, last step | training loss, mean of draws "
        "| test loss, mean of draws | single draws | test accuracy % or RMSE | P(rarer sign) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (MOONS, SNELSON):
        for arm in ARMS:
            rows = [r for r in found if r["data"] == name and r["arm"] == arm]
            if not rows:
                continue
            last = (
                [100 * r["test"]["mean"]["accuracy"] for r in rows]
                if name == MOONS
                else [r["test"]["mean"]["rmse"] for r in rows]
            )
            lines.append(
                f"| {name} | {arm} | {len(rows)} "
                f"| {spread([r['loss_of_last_step'] for r in rows])} "
                f"| {spread([r['train']['mean']['nll'] for r in rows])} "
                f"| {spread([r['test']['mean']['nll'] for r in rows])} "
                f"| {spread([r['test']['draws']['mean']['nll'] for r in rows])} "
                f"| {spread(last, 1 if name == MOONS else 3)} "
                f"| {spread([r['probability_of_rarer_sign'] for r in rows])} |"
            )
    return "\n".join(lines)


def spread(values: list[float], digits: int = 3) -> str:
    """mean ± standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--snelson", type=Path, help="a folder with Snelson's data")
    parser.add_argument("--epochs", type=int, help="default: those of the authors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("toys_results"))
    parser.add_argument("--report", type=Path, help="print the table of a results folder")
    parser.add_argument("--smoke", action="store_true", help="three epochs, one seed")
    args = parser.parse_args()
    if args.report:
        print(report(args.report))
        return
    if args.smoke:
        args.epochs, args.seeds = 6, 1
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for name in (MOONS, SNELSON):
            if name == SNELSON and args.snelson is None:
                continue
            for arm in ARMS:
                run(args, name, arm, seed)
    print(report(args.out))


if __name__ == "__main__":
    main()
