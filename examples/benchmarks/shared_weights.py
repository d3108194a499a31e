"""Estimators where a weight is shared over positions: convolutions, and linear layers over sequences.

Three parts: the loss, its slope and the variance of the gradient of one layer, beside hard draws; the
training of 32C5-64C5-512-10 on MNIST; and of a small Transformer encoder on digits, whose eight rows are its
sequence. The convolutional network has one recipe for all estimators; the Transformer's learning rate is
chosen for each estimator from one grid, on images held out from the training set. Runs train on all
training images and score the test images once, at the end. One JSON file per result in --out: what is there
is not repeated, and a run that was interrupted continues from its last checkpoint.

    python examples/benchmarks/shared_weights.py --part gradients --out results
    python examples/benchmarks/shared_weights.py --part mnist --data mnist_folder --out results
    python examples/benchmarks/shared_weights.py --part transformer --out results
    python examples/benchmarks/shared_weights.py --report results
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
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
    "FlipoutWhereShared": E.FlipoutWhereShared,
}
DEFAULT = "FlipoutWhereShared"  # of fit; in a single shared layer it is Flipout
# The same for all estimators. The lr of the convolutional network was chosen for local reparameterization.
COMMON = {"lr": 0.1, "init_scale": 0.1, "momentum": 0.9, "kl_weight": 0.02, "real_lr": 0.02}
GRID = (0.03, 0.1, 0.3)  # learning rates
TUNING = (1_000, 400, 20)  # images, images held out, epochs
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
    """NLL and its slope along a steep direction u at hard draws, and the same by each estimator.

    At hard draws the slope is the mean of (f - mean f) u^T (w - mu), which is unbiased.
    """
    nll, x, natural = problem(kind, smoke)
    ways = {name: make for name, make in ESTIMATORS.items() if name != DEFAULT}
    ways["Flipout(pathwise=True)"] = lambda: E.Flipout(pathwise=True)

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
    direction = estimates(ways["LocalReparameterization"], 50)[1].mean(0)
    direction += estimates(ways["Flipout(pathwise=True)"], 50)[1].mean(0)
    direction /= direction.norm()
    found: dict[str, Any] = {}
    hard, scores = [], []
    with torch.no_grad():
        probs, mean = torch.sigmoid(2 * natural), torch.tanh(natural)
        for _ in range(10 * draws):
            w = 2 * torch.bernoulli(probs) - 1
            hard.append(nll(w))
            scores.append(direction @ (w - mean).flatten())
    values = torch.stack(hard)
    slopes = (values - values.mean()) * torch.stack(scores)
    found["hard draws"] = {"nll": summary(values), "slope": summary(slopes)}
    for name, make in ways.items():
        values, slopes = estimates(make, draws)
        found[name] = {
            "nll": summary(values), "slope": summary(slopes @ direction),
            "variance": slopes.var(0).sum().item(),
        }  # fmt: skip
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


def tune(args: argparse.Namespace, part: str, estimator: str) -> float:
    """The learning rate of the grid with the lowest NLL on held-out training images, after a short run."""
    whole, _ = data_of(part, args.data, args.smoke)
    size, held, epochs = (50, 50, 1) if args.smoke else TUNING
    shown = Dataset(whole.x[:size], whole.y[:size], whole.name, whole.num_classes)
    hidden = Dataset(whole.x[-held:], whole.y[-held:], whole.name, whole.num_classes)
    found = []
    for lr in GRID:
        settings = COMMON | {"lr": lr, "epochs": epochs, "batch_size": args.batch_size}
        record = once(
            args.out / "tuning" / f"{part}_{estimator}_lr{lr:g}.json",
            lambda settings=settings: train(
                part, estimator, settings, (shown, hidden), seed=0, draws=8
            ),
        )
        found.append((record["scores"]["mean"]["nll"], lr))
        print(
            f"{part}, {estimator}, lr {lr}: NLL {found[-1][0]:.4f} on held-out images", flush=True
        )
    return min(found)[1]


def report(folder: Path) -> str:
    """The tables of a folder of results, as in the documentation."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = []
    measured = {r["kind"]: r["results"] for r in records if r["part"] == "gradients"}
    if measured:
        lines += [
            "| layer | draws by | NLL per datum | slope | variance of the gradient |",
            "|---|---|---|---|---|",
        ]
    for kind in KINDS:
        for name, row in measured.get(kind, {}).items():
            cells = [
                f"{row[key]['mean']:.{digits}f} +- {row[key]['error']:.{digits}f}"
                for key, digits in (("nll", 3), ("slope", 4))
            ]
            variance = f"{row['variance']:.2g}" if "variance" in row else "-"
            lines.append(f"| {kind} | {name} | {' | '.join(cells)} | {variance} |")
    for part in ("mnist", "transformer"):
        rows = [record for record in records if record["part"] == part]
        if rows:
            lines += [
                "",
                "| network | estimator | lr | seeds | accuracy % | NLL | ECE | NLL, mode | s per epoch |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
        for name in ESTIMATORS:
            own = [row for row in rows if row["estimator"] == name]
            if own:
                means = [row["scores"]["mean"] for row in own]
                lines.append(
                    f"| {part} | {name} | {own[0]['settings']['lr']:g} | {len(own)} "
                    f"| {spread([100 * each['accuracy'] for each in means], 2)} "
                    f"| {spread([each['nll'] for each in means], 4)} "
                    f"| {spread([each['ece'] for each in means], 4)} "
                    f"| {spread([row['scores']['mode']['nll'] for row in own], 4)} "
                    f"| {statistics.median(h['seconds'] for row in own for h in row['history']):.1f} |"
                )
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def runs(args: argparse.Namespace, part: str) -> None:
    """All runs of a part: one seed of every estimator, then the next."""
    data = data_of(part, args.data, args.smoke)
    for seed, estimator in itertools.product(args.seeds, args.estimators):
        settings = COMMON | {"epochs": args.epochs or EPOCHS[part], "batch_size": args.batch_size}
        if part == "transformer":
            settings["lr"] = tune(args, part, estimator)
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
    parser.add_argument("--report", type=Path, help="print the tables of a results folder")
    args = parser.parse_args()
    if args.report:
        print(report(args.report))
        return
    if args.smoke:
        args.epochs, args.seeds, args.batch_size = 1, [0], 25
    if args.part != "gradients":
        runs(args, args.part)
        print(report(args.out))
        return
    for kind in KINDS:
        path = args.out / f"gradients_{kind.replace(', ', '_').replace(' ', '_')}.json"
        once(path, lambda kind=kind: gradients(kind, 20 if args.smoke else args.draws, args.smoke))
    print(report(args.out))


if __name__ == "__main__":
    main()
