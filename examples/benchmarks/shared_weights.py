"""Estimators where a weight is shared over positions: convolutions, and linear layers over sequences.

Three parts: the bias and the variance of the loss and of its gradient against hard draws; the training of
32C5-64C5-512-10 on MNIST; the training of a small Transformer encoder on digits, whose eight rows are its
sequence. Learning rates are chosen on images held out from the training set, from one grid for all
estimators (``--tune``); the runs that are reported train on all training images, and score the test images
once, at the end. One JSON file per result in --out; what is there is not repeated.

    python examples/benchmarks/shared_weights.py --part gradients --out results
    python examples/benchmarks/shared_weights.py --part mnist --data mnist_folder --out results
    python examples/benchmarks/shared_weights.py --part transformer --out results
    python examples/benchmarks/shared_weights.py --report results
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesbin as bb
from bayesbin import estimators as E
from bayesbin.data import Batches, Dataset, load
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import Classifier, Scale, conv_net, to_binary_
from bayesbin.optim import make_optimizers, training_groups
from bayesbin.optim.schedules import cosine_by_step_

ESTIMATORS: dict[str, Callable[[], E.Estimator]] = {
    "Flipout": E.Flipout,
    "LocalReparameterization": E.LocalReparameterization,
    "StraightThrough": E.StraightThrough,
    "Concrete": E.Concrete,
}
# The same for all estimators, but for what --tune chose for each.
COMMON = {"momentum": 0.9, "kl_weight": 0.02, "real_lr": 0.02}
GRID = {"lr": (0.03, 0.1, 0.3), "init_scale": (0.1,)}
TUNING = {"mnist": (10_000, 5_000, 3), "transformer": (1_000, 400, 20)}  # images, held out, epochs
# Input channels or features, positions along a side or in a sequence, fan-in.
KINDS = {
    "convolution, fan-in 144": (16, 8, 144),
    "convolution, fan-in 576": (64, 8, 576),
    "convolution, fan-in 2304": (256, 4, 2304),
    "linear over 30 positions": (64, 30, 64),
}
EPOCHS = {"mnist": 10, "transformer": 60}
DRAWS = 32


class RowEncoder(nn.Module):
    """A Transformer encoder over the rows of an image, and a linear layer of what its places have in mean."""

    def __init__(self, rows: int = 8, features: int = 8, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.places = nn.Parameter(0.1 * torch.randn(rows, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=128, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(width, 10), Scale())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, rows, features)."""
        return self.head(self.encoder(self.embed(x) + self.places).mean(1))


def data_of(part: str, folder: str | None, smoke: bool) -> tuple[Dataset, Dataset]:
    """The training and the test set, images in the shape that the network takes."""
    splits = load("digits" if part == "transformer" else "mnist", folder)
    shape = (8, 8) if part == "transformer" else (1, 28, 28)
    few = 200 if smoke else None
    train, test = (
        Dataset(d.x[:few].reshape(-1, *shape), d.y[:few], d.name, d.num_classes)
        for d in (splits.train, splits.test)
    )
    return train, test


def network(part: str) -> nn.Module:
    """The network of a part, in binary weights."""
    return to_binary_(RowEncoder() if part == "transformer" else conv_net((1, 28, 28)))


def train(
    part: str,
    estimator: str,
    settings: dict[str, Any],
    data: tuple[Dataset, Dataset],
    *,
    seed: int,
    draws: int,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Train on the first of two data sets and score the mean of draws on the second."""
    train_set, test_set = data
    torch.manual_seed(seed)
    model = Classifier(network(part), dataset_size=len(train_set))
    guide = AutoSignBernoulli(model, init_scale=settings["init_scale"])
    made = ESTIMATORS[estimator]()
    optimizers = make_optimizers(
        training_groups(guide, model, made), lr=settings["lr"], momentum=settings["momentum"],
        real_lr=settings["real_lr"],
    )  # fmt: skip
    batches = Batches(train_set, settings["batch_size"], drop_last=True)
    for optimizer in optimizers:
        cosine_by_step_(optimizer, settings["epochs"] * len(batches))
    start = time.perf_counter()
    result = fit(
        model, guide, batches, estimator=made, epochs=settings["epochs"],
        kl_weight=settings["kl_weight"], optimizers=optimizers, seed=seed,
        checkpoint_dir=checkpoints, progress=False,
        callbacks=[told(f"{estimator}, seed {seed}")],
    )  # fmt: skip
    seconds = time.perf_counter() - start
    ensemble = bb.Ensemble(model, guide.posterior(), draws, seed).calibrate(train_set.x[:10_000])
    return {
        "part": part, "estimator": estimator, "seed": seed, "settings": settings,
        "scores": ensemble.evaluate(test_set.x, test_set.y),
        "history": result.history, "seconds_per_epoch": seconds / settings["epochs"],
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def problem(kind: str, smoke: bool) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """The NLL per datum of one layer of shared weights as a function of its signs, its input, and lambda.

    The layer, a ReLU, the mean over positions and a fixed linear layer: inputs, lambda and that layer are
    random; inputs are correlated between positions, as those of images and texts.
    """
    torch.manual_seed(0)
    count, places, fan_in = KINDS[kind]
    data = 8 if smoke else 32
    y = torch.randint(0, 10, (data,))
    head = 0.5 * torch.randn(10, 64)
    if kind.startswith("convolution"):
        x = nn.functional.avg_pool2d(torch.randn(data, count, places + 2, places + 2), 2, 1).relu()
        natural = 0.5 * torch.randn(64, count, 3, 3)

        def outputs(w: Tensor) -> Tensor:
            return nn.functional.conv2d(x, w).flatten(2).transpose(1, 2)
    else:
        x = (torch.randn(data, places, count) + torch.randn(data, 1, count)).relu()
        natural = 0.5 * torch.randn(64, count)

        def outputs(w: Tensor) -> Tensor:
            return nn.functional.linear(x, w)

    size = (x.square().mean() * fan_in).sqrt()

    def nll(w: Tensor) -> Tensor:
        hidden = (outputs(w) / size).relu().mean(1)
        return nn.functional.cross_entropy(hidden @ head.T, y)

    return nll, x, natural.requires_grad_()


def gradients(kind: str, draws: int, smoke: bool) -> dict[str, Any]:
    """NLL and slopes along two directions at hard draws, and the same by each estimator.

    At hard draws the slope along u is the mean of (f - mean f) u^T (w - mu), which is unbiased.
    """
    nll, x, natural = problem(kind, smoke)
    ways: dict[str, Callable[[], E.Estimator]] = {
        **ESTIMATORS, "Flipout(pathwise=True)": lambda: E.Flipout(pathwise=True)
    }  # fmt: skip

    def objective(values: Any) -> Tensor:
        return torch.stack([nll(w) for w in values["w"]])

    def estimates(make: Callable[[], E.Estimator], count: int) -> tuple[Tensor, Tensor]:
        estimator, surrogates, slopes = make(), [], []
        for _ in range(count):
            surrogate = estimator(E.BatchObjective(objective, (x,)), {"w": natural})
            slopes.append(torch.autograd.grad(surrogate, natural)[0].flatten())
            surrogates.append(surrogate.detach())
        return torch.stack(surrogates), torch.stack(slopes)

    torch.manual_seed(1)
    steepest = estimates(ways["LocalReparameterization"], 50)[1].mean(0)
    steepest += estimates(ways["Flipout(pathwise=True)"], 50)[1].mean(0)
    decided = natural.detach().flatten()
    along = {
        "steepest": steepest / steepest.norm(),
        "decided": decided / decided.norm(),
    }
    found: dict[str, Any] = {}
    hard, scores = [], {name: [] for name in along}
    with torch.no_grad():
        probs, mean = torch.sigmoid(2 * natural), torch.tanh(natural)
        for _ in range(10 * draws):
            w = 2 * torch.bernoulli(probs) - 1
            hard.append(nll(w))
            for name, u in along.items():
                scores[name].append(u @ (w - mean).flatten())
    values = torch.stack(hard)
    found["hard draws"] = {"nll": summary(values)} | {
        name: summary((values - values.mean()) * torch.stack(terms))
        for name, terms in scores.items()
    }
    for name, make in ways.items():
        values, slopes = estimates(make, draws)
        found[name] = {"nll": summary(values), "variance": slopes.var(0).sum().item()}
        found[name] |= {direction: summary(slopes @ u) for direction, u in along.items()}
        print(f"{kind}, {name}: {found[name]}", flush=True)
    return {"part": "gradients", "kind": kind, "draws": draws, "results": found}


def summary(values: Tensor) -> dict[str, float]:
    """Mean and standard error."""
    return {"mean": values.mean().item(), "error": (values.std() / len(values) ** 0.5).item()}


def told(name: str) -> Callable[[Any], None]:
    """A callback of ``fit`` that prints a line for each epoch."""

    def tell(report: Any) -> None:
        row = report.row
        print(
            f"{name}: epoch {row['epoch']}, nll {row['nll']:.4f}, {row['seconds']:.0f} s",
            flush=True,
        )

    return tell


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record in a file, made and written if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        record = make()
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2))
        partial.replace(path)
    return json.loads(path.read_text())


def tune(args: argparse.Namespace, part: str, estimator: str) -> dict[str, Any]:
    """The settings of the grid with the lowest NLL on held-out training images, after a short run."""
    whole, _ = data_of(part, args.data, args.smoke)
    size, held, epochs = (50, 50, 1) if args.smoke else TUNING[part]
    shown = Dataset(whole.x[:size], whole.y[:size], whole.name, whole.num_classes)
    hidden = Dataset(whole.x[-held:], whole.y[-held:], whole.name, whole.num_classes)
    found = []
    for values in itertools.product(*GRID.values()):
        chosen = dict(zip(GRID, values, strict=True))
        settings = COMMON | chosen | {"epochs": epochs, "batch_size": args.batch_size}
        name = "_".join(f"{key}{value:g}" for key, value in chosen.items())
        record = once(
            args.out / "tuning" / f"{part}_{estimator}_{name}.json",
            lambda settings=settings: train(
                part, estimator, settings, (shown, hidden), seed=0, draws=8
            ),
        )
        found.append((record["scores"]["mean"]["nll"], chosen))
        print(f"{part}, {estimator}, {name}: NLL {found[-1][0]:.4f} on held-out images", flush=True)
    return min(found, key=lambda each: each[0])[1]


def runs(args: argparse.Namespace, part: str) -> None:
    """All runs of a part: one seed of every estimator, then the next."""
    for estimator in args.estimators:
        tune(args, part, estimator)
    data = data_of(part, args.data, args.smoke)
    for seed, estimator in itertools.product(args.seeds, args.estimators):
        settings = COMMON | tune(args, part, estimator)
        settings |= {"epochs": args.epochs or EPOCHS[part], "batch_size": args.batch_size}
        name = f"{part}_{estimator}_seed{seed}"
        once(
            args.out / f"{name}.json",
            lambda estimator=estimator, settings=settings, seed=seed, name=name: train(
                part, estimator, settings, data, seed=seed, draws=2 if args.smoke else DRAWS,
                checkpoints=args.out / "checkpoints" / name,
            ),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--part", choices=["gradients", "mnist", "transformer"], default="gradients"
    )
    parser.add_argument(
        "--draws", type=int, default=1000, help="of each estimator, for the gradients"
    )
    parser.add_argument("--data", help="folder with the idx .gz files of MNIST")
    parser.add_argument(
        "--estimators", nargs="+", default=list(ESTIMATORS), choices=list(ESTIMATORS)
    )
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("shared_weights_results"))
    parser.add_argument("--smoke", action="store_true", help="200 images, one epoch, one seed")
    args = parser.parse_args()
    if args.smoke:
        args.epochs, args.seeds = 1, [0]
    if args.part != "gradients":
        runs(args, args.part)
        return
    for kind in KINDS:
        path = args.out / f"gradients_{kind.replace(', ', '_').replace(' ', '_')}.json"
        once(path, lambda kind=kind: gradients(kind, 20 if args.smoke else args.draws, args.smoke))


if __name__ == "__main__":
    main()
