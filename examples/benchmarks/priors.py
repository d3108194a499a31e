"""The prior P(w = +1) = p against bias, variance and likelihood on digits, an MLP 64-64-10.

For each prior and kl_weight, networks are trained on random halves of the training set. On the test
set the mean Brier score of single draws p_sk of training set s, with grand mean m and means m_s, is

    mean_sk |p_sk - y|^2 = |m - y|^2 + mean_s |m_s - m|^2 + mean_sk |p_sk - m_s|^2

(bias^2 with the noise of the labels, variance between training sets, variance between draws), exactly.
With S training sets, the first term still holds 1/S of the variance between them. The initial weights
and the order of the data change with the training set, and count as part of it. The optimizers are those
of ``fit``, but for a larger step of Adam and a cosine, with which 40 epochs reach the training loss of
200 (p = 0.5, kl_weight 1, one training set). One JSON file per prior and kl_weight in --out, since the
decomposition needs all its training sets together; files that are there are not repeated.

    python examples/benchmarks/priors.py --out results
    python examples/benchmarks/priors.py --report results
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesbin.data import Batches, Dataset, digits
from bayesbin.distributions import SignBernoulli
from bayesbin.ensemble import Ensemble
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.recipes import recipe

PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
LEARNED = "learned"  # one p per layer, uniform on (0, 1) a priori
KL_WEIGHTS = (1.0, 0.1)
HIDDEN, BATCH_SIZE = 64, 64
LR, MOMENTUM, ADAM_LR = 0.05, 0.9, 0.02
PARTS = ("bias2", "variance_between_sets", "variance_between_draws")


def halves(data: Dataset, num_sets: int) -> list[Dataset]:
    """Random subsets of half the size, the subset of index s drawn with seed s."""
    subsets = []
    for seed in range(num_sets):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        chosen = order[: len(data) // 2]
        subsets.append(Dataset(data.x[chosen], data.y[chosen], data.name, data.num_classes))
    return subsets


def brier_decomposition(probs: Tensor, y: Tensor) -> dict[str, Any]:
    """The Brier score of single draws and its parts, means over the inputs.

    :param probs: (S, K, N, C), of K draws for each of S training sets. :param y: labels (N,).
    :returns: ``brier`` and its three parts, and ``per_set``: the score and the variance between draws
        of each training set.
    """
    target = torch.nn.functional.one_hot(y, probs.shape[-1]).to(probs)
    of_set = probs.mean(1, keepdim=True)
    grand = of_set.mean(0, keepdim=True)

    def squared(difference: Tensor) -> Tensor:  # (S, K): over classes and inputs
        return difference.square().sum(-1).mean(-1)

    score, within = squared(probs - target), squared(probs - of_set)
    parts = (squared(grand - target), squared(of_set - grand), within)
    return {
        "brier": score.mean().item(),
        **{name: part.mean().item() for name, part in zip(PARTS, parts, strict=True)},
        "per_set": {
            "brier": score.mean(1).tolist(),
            "variance_between_draws": within.mean(1).tolist(),
        },
    }


def train(
    args: argparse.Namespace, prior: str, kl_weight: float, data: Dataset, test: Dataset, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """One training set: its scores, and the probabilities (K, N, C) of its draws on the test set."""
    torch.manual_seed(seed)
    learned = prior == LEARNED
    distribution = SignBernoulli(natural=0.0) if learned else SignBernoulli(probs=float(prior))
    net = to_binary_(mlp(data.x.shape[1], [HIDDEN], 10), prior=distribution)
    hyperprior = dist.Beta(1.0, 1.0) if learned else None
    model = Classifier(net, dataset_size=len(data), hyperprior=hyperprior)
    method = recipe(
        "bayesbin", model, epochs=args.epochs, lr=LR, momentum=MOMENTUM, real_lr=ADAM_LR,
        kl_weight=kl_weight,
    )  # fmt: skip
    start = time.perf_counter()
    result = method.fit(Batches(data, BATCH_SIZE), seed=seed, progress=False)
    seconds = time.perf_counter() - start
    posterior = method.guide.posterior()
    ensemble = Ensemble(model, posterior, args.draws, seed).calibrate(data.x)
    scores = ensemble.evaluate(test.x, test.y)
    record = {
        "seed": seed, "size": len(data), "scores": scores, "seconds_training": seconds,
        "train_nll": result.history[-1]["nll"], "train_kl": result.history[-1]["kl"],
        "share_of_plus_per_layer": [distribution.probs.mean().item() for distribution in posterior.values()],
        "entropy_nats_per_layer": [q.entropy().mean().item() for q in posterior.values()],
        "learned_p_per_layer": [distribution.at(0.0).item() for distribution in posterior.real.values()],
    }  # fmt: skip
    return record, ensemble.log_probs(test.x).exp()


def run(args: argparse.Namespace, prior: str, kl_weight: float, folder: Path) -> dict[str, Any]:
    """Train and score all training sets of one prior and kl_weight; writes their JSON."""
    path = folder / f"p{prior}_kl{kl_weight:g}_{args.epochs}epochs_{args.sets}sets.json"
    if path.exists():
        return json.loads(path.read_text())
    splits = digits()
    runs = [
        train(args, prior, kl_weight, data, splits.test, seed)
        for seed, data in enumerate(halves(splits.train, args.sets))
    ]
    record = {
        "benchmark": "priors", "prior": prior, "kl_weight": kl_weight, "epochs": args.epochs,
        "batch_size": BATCH_SIZE, "hidden": HIDDEN, "num_draws": args.draws,
        "settings": {"lr": LR, "momentum": MOMENTUM, "adam_lr": ADAM_LR},
        "decomposition": brier_decomposition(torch.stack([p for _, p in runs]), splits.test.y),
        "sets": [record for record, _ in runs], "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=1))
    return record


def report(folder: Path) -> str:
    """A table over all runs in a folder: mean and standard deviation over training sets."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    records = [record for record in found if record.get("benchmark") == "priors"]
    lines = [
        "| kl_weight | prior p | sets | Brier of single draws | bias² | variance, sets "
        "| variance, draws | accuracy % | NLL | P(w = +1) by layer | learned p by layer |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda r: (-r["kl_weight"], r["prior"], r["epochs"])):
        parts, sets = record["decomposition"], record["sets"]
        means = [s["scores"]["mean"] for s in sets]
        lines.append(
            f"| {record['kl_weight']:g} | {record['prior']} | {len(sets)} "
            f"| {spread(parts['per_set']['brier'], 4)} | {parts['bias2']:.4f} "
            f"| {parts['variance_between_sets']:.4f} "
            f"| {spread(parts['per_set']['variance_between_draws'], 4)} "
            f"| {spread([100 * m['accuracy'] for m in means], 1)} "
            f"| {spread([m['nll'] for m in means], 4)} "
            f"| {by_layer(s['share_of_plus_per_layer'] for s in sets)} "
            f"| {by_layer(s['learned_p_per_layer'] for s in sets) or '-'} |"
        )
    return "\n".join(lines)


def by_layer(rows: Any) -> str:
    """The mean over training sets of each layer's number."""
    return " ".join(f"{statistics.mean(layer):.2f}" for layer in zip(*rows, strict=True))


def spread(values: list[float], digits: int) -> str:
    """mean +- standard deviation over training sets."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--sets", type=int, default=5, help="training sets per prior")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--priors", nargs="+", default=[*map(str, PROBABILITIES), LEARNED])
    parser.add_argument("--kl-weights", type=float, nargs="+", default=list(KL_WEIGHTS))
    parser.add_argument("--out", type=Path, default=Path("priors_results"))
    parser.add_argument("--report", type=Path, help="print the table of a results folder")
    parser.add_argument("--smoke", action="store_true", help="two epochs, two sets, three draws")
    args = parser.parse_args()
    if args.report:
        print(report(args.report))
        return
    if args.smoke:
        args.epochs, args.sets, args.draws = 2, 2, 3
        args.priors, args.kl_weights = ["0.1", "0.9", LEARNED], [1.0]
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    args.out.mkdir(parents=True, exist_ok=True)
    for kl_weight in args.kl_weights:
        for prior in args.priors:
            run(args, prior, kl_weight, args.out)
    print(report(args.out))


if __name__ == "__main__":
    main()
