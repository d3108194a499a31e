"""Bias, variance and speed of the gradient estimators.

Variance: logistic regression with D = 10, 100, 1000 binary weights on 200 data, lambda ~ N(0, 0.5^2), at
K = 2 and 4 evaluations of the model per gradient. Published comparisons take the gradient in the
logits, which is half of that in lambda: the table has total variances in the logits.

Speed: the gradient of ScoreFunction with K draws and of DisARM in units of K forward passes (draw the
signs, evaluate the model), both sides taking turns.

    python examples/benchmarks/estimators.py --out estimators.json --plot estimators.png
    python examples/benchmarks/estimators.py --report estimators.json

ELBO against epochs and seconds: examples/benchmarks/estimators_training.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesbin import estimators as E
from bayesbin import plots
from bayesbin.estimators.base import Objective
from bayesbin.estimators.surrogate import draw_signs
from bayesbin.experiments.demos import logistic_model
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.infer.checks import estimator_report
from bayesbin.nn import BinaryLinear, Classifier

SIZES, BUDGETS, LAMBDA_SCALE = (10, 100, 1000), (2, 4), 0.5
# K evaluations each: the control variates spend two per draw, one of them at relaxed signs.
AT_BUDGET: dict[str, Callable[[int], E.Estimator]] = {
    "score, no baseline": lambda k: E.ScoreFunction(k, None),
    "score, leave-one-out": lambda k: E.ScoreFunction(k),
    "score, moving average": lambda k: E.ScoreFunction(k, E.MovingAverage()),
    "score, learned constant": lambda k: E.ScoreFunction(k, E.Learned()),
    "ARM": lambda k: E.ARM(k // 2),
    "DisARM": lambda k: E.DisARM(k // 2),
    "ARMS": lambda k: E.ARMS(k),
    "REBAR": lambda k: E.REBAR(num_samples=k // 2),
    "RELAX": lambda k: E.RELAX(num_samples=k // 2),
    "StraightThrough": lambda k: E.StraightThrough(k),
    "Concrete": lambda k: E.Concrete(num_samples=k),
    "GumbelRao": lambda k: E.GumbelRao(num_samples=k),
    "PseudoReward": lambda k: E.PseudoReward(num_samples=k),
    "LocalReparameterization": lambda k: E.LocalReparameterization(k),
}
NETWORKS = {"logistic, D = 1000": None, "64-64-10": (64, 64), "784-100-10": (784, 100),
            "784-512-10": (784, 512)}  # fmt: skip


def variances(replicates: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """A report per number of weights, with every estimator at every budget."""
    found = []
    for size in sizes:
        torch.manual_seed(0)
        model, batch = logistic_model(size)
        guide = AutoSignBernoulli(model, init_scale=LAMBDA_SCALE)
        instances = {
            f"{name}, K = {k}": build(k) for name, build in AT_BUDGET.items() for k in BUDGETS
        }
        # The reference is an average of at least 100 local expectations, or exact.
        report = estimator_report(
            model, guide, batch, instances, replicates,
            reference_replicates=100 if size > 12 else None,
        )  # fmt: skip
        found.append({"weights": size, **report.to_dict()})
        print(f"D = {size}\n{report}\n", flush=True)
    return found


class _Timed(E.Estimator):
    """Times the gradients of others against forward passes, on the objective that an ELBO hands it."""

    unbiased = True

    def __init__(self, repeats: int) -> None:
        super().__init__()
        self.repeats = repeats
        self.candidates: dict[str, tuple[E.Estimator, int]] = {
            **{f"ScoreFunction({k})": (E.ScoreFunction(k, None if k == 1 else "leave-one-out"), k)
               for k in (1, 2, 4, 16)},
            "DisARM(1)": (E.DisARM(1), 2), "DisARM(4)": (E.DisARM(4), 8),
        }  # fmt: skip
        self.ratios: dict[str, list[float]] = {name: [] for name in self.candidates}

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        leaves = {name: lam.detach().clone().requires_grad_() for name, lam in natural.items()}
        for turn in range(self.repeats + 2):  # the first two warm up
            for name, (estimator, count) in self.candidates.items():
                begin = time.perf_counter()
                with torch.no_grad():
                    for _ in range(count):
                        objective(draw_signs(leaves, 1))
                middle = time.perf_counter()
                torch.autograd.grad(estimator(objective, leaves), list(leaves.values()))
                end = time.perf_counter()
                if turn > 1:
                    self.ratios[name].append((end - middle) / (middle - begin))
        return objective(draw_signs(natural, 1)).mean()


def speeds(repeats: int, networks: list[str]) -> list[dict[str, Any]]:
    """Ratios of a gradient's time to that of as many forward passes, no real parameters."""
    found = []
    for network in networks:
        torch.manual_seed(0)
        sizes = NETWORKS[network]
        if sizes is None:
            model, batch = logistic_model(1000)
        else:
            layers = [BinaryLinear(sizes[0], sizes[1], bias=False), torch.nn.ReLU()]
            net = torch.nn.Sequential(*layers, BinaryLinear(sizes[1], 10, bias=False))
            model = Classifier(net, dataset_size=1000)
            batch = (torch.randn(100, sizes[0]), torch.randint(0, 10, (100,)))
        timed = _Timed(repeats)
        TraceBinary_ELBO(timed).terms(model, AutoSignBernoulli(model), *batch)
        for name, ratios in timed.ratios.items():
            low, middle, high = statistics.quantiles(ratios, n=4)
            found.append({"network": network, "estimator": name, "median": middle,
                          "quartiles": [low, high], "repeats": repeats})  # fmt: skip
    return found


def report(record: dict[str, Any]) -> str:
    """The tables."""
    blocks = record["variance"]
    rows = {(b["weights"], row["name"]): row for b in blocks for row in b["rows"]}
    columns = [(b["weights"], k) for b in blocks for k in BUDGETS]
    heads = " | ".join(f"D = {size}, K = {k}" for size, k in columns)

    def row_of(name: str, size: int, k: int) -> dict[str, Any]:
        return rows[size, f"{name}, K = {k}"]

    lines = [
        f"| total variance, logits | unbiased | {heads} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for name in AT_BUDGET:
        found = [row_of(name, *column) for column in columns]
        cells = " | ".join(f"{row['total_variance'] / 4:.2g}" for row in found)
        lines.append(f"| {name} | {'yes' if found[0]['unbiased'] else 'no'} | {cells} |")
    lines += ["", f"| bias / norm of the gradient, % | {heads} |", f"|---|{'---|' * len(columns)}"]
    for name in AT_BUDGET:
        found = [row_of(name, *column) for column in columns]
        if not found[0]["unbiased"]:
            lines.append(f"| {name} | {' | '.join(map(_percent, found))} |")
    networks = list(dict.fromkeys(row["network"] for row in record["speed"]))
    lines += [
        "",
        f"| time / as many forward passes | {' | '.join(networks)} |",
        f"|---|{'---|' * len(networks)}",
    ]
    for name in dict.fromkeys(row["estimator"] for row in record["speed"]):
        timed = [row for row in record["speed"] if row["estimator"] == name]
        cells = [
            f"{r['median']:.2f} ({r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f})" for r in timed
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(row: dict[str, Any]) -> str:
    scale = 100.0 / row["reference_norm"]
    return f"{scale * row['bias']:.2g} +- {scale * row['bias_standard_error']:.1g}"


def plot(record: dict[str, Any], out: str) -> None:
    """Variance against computation, a panel per number of weights, from K = 2 to K = 4."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for block in record["variance"]:
        panel = panels.setdefault(f"{block['weights']:,} weights", {})
        for row in block["rows"]:
            name = row["name"].rsplit(",", 1)[0]
            panel.setdefault(name, []).append((row["computation"], row["total_variance"]))
    biased = [name for name, build in AT_BUDGET.items() if not build(2).unbiased]
    plots.save_figure(plots.plot_estimators(panels, biased=biased), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicates", type=int, default=1000, help="gradients of each estimator")
    parser.add_argument("--repeats", type=int, default=60, help="timings of each")
    parser.add_argument("--out", type=Path, default=Path("estimators.json"))
    parser.add_argument("--report", type=Path, help="print the tables of a results file")
    parser.add_argument("--plot", help="also draw variance against computation into this file")
    parser.add_argument("--smoke", action="store_true", help="few replicates, small models")
    args = parser.parse_args()
    if args.report:
        record = json.loads(args.report.read_text())
    else:
        if args.smoke:
            args.replicates, args.repeats = 20, 2
        torch.set_num_threads(1)
        record = {
            "benchmark": "estimators", "lambda_scale": LAMBDA_SCALE, "threads": 1,
            "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
            "speed": speeds(args.repeats, list(NETWORKS)[:2] if args.smoke else list(NETWORKS)),
            "variance": variances(args.replicates, SIZES[:1] if args.smoke else SIZES),
        }  # fmt: skip
        args.out.write_text(json.dumps(record, indent=1))
    print(report(record))
    if args.plot:
        plot(record, args.plot)


if __name__ == "__main__":
    main()
