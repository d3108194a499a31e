"""One training step of each estimator against one SGD-with-momentum step of the same float network.

Both sides are interleaved in one run, step by step, and the medians of the paired ratios are printed:
absolute times of a noisy machine mean little. Peak memory is measured in a process of its own for each
side. Writes JSON.

    python examples/benchmarks/training_step.py --out training_step.json
    python examples/benchmarks/training_step.py --report training_step.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesbin.core import one_pass
from bayesbin.estimators import Concrete, LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.optim import BayesianLearningRule

DATASET_SIZE = 60_000
ESTIMATORS = {
    "StraightThrough": StraightThrough,
    "LocalReparameterization": LocalReparameterization,
    "LocalReparameterization(variance_dtype=torch.bfloat16)": partial(
        LocalReparameterization, variance_dtype=torch.bfloat16
    ),
    "Concrete": Concrete,
}


def float_step(width: int, depth: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and update of the real-valued network."""
    net = mlp(784, [width] * depth, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def binary_step(
    name: str, width: int, depth: int, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    """The whole step of the posterior: draw, likelihood, KL, natural-gradient update with momentum."""
    net = to_binary_(mlp(784, [width] * depth, 10))
    model = Classifier(net, dataset_size=DATASET_SIZE)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(ESTIMATORS[name](), kl_weight=0.03)(model, guide)
    rule = BayesianLearningRule(guide.natural_parameters(), lr=1.0 / DATASET_SIZE, momentum=0.9)
    adam = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)

    def step() -> None:
        rule.zero_grad()
        adam.zero_grad()
        elbo(x, y).backward()
        rule.step()
        adam.step()

    return step


def build(name: str, width: int, depth: int, batch_size: int) -> Callable[[], None]:
    torch.manual_seed(0)
    x, y = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))
    if name == "float SGD":
        return float_step(width, depth, x, y)
    return binary_step(name, width, depth, x, y)


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_of_this_process() -> float:
    """Peak resident memory in MB. Linux' own status file: getrusage reports a parent's peak too."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_megabytes(name: str, args: argparse.Namespace) -> float:
    """Peak resident memory of a process that takes a few steps of one kind."""
    command = [sys.executable, __file__, "--memory-of", name, "--width", str(args.width)]
    command += ["--depth", str(args.depth), "--batch-size", str(args.batch_size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output)


def report(result: dict[str, Any]) -> str:
    """The result as a table."""
    threads, how = result["threads"], "BAYESBIN_COMPILE=1" if result["compiled"] else "plain torch"
    lines = [
        f"| {how}, {threads} thread{'s' * (threads > 1)} | ratio to float SGD, median (quartiles) "
        "| median ms | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        low, high = row["quartiles_of_ratio"]
        lines.append(
            f"| {name} | {row['median_ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['median_ms']:.0f} "
            f"| {row['peak_megabytes']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--report", type=Path, help="print the table of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, two steps")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.smoke:
        args.width, args.depth, args.steps = 32, 1, 2
    shape = (args.width, args.depth, args.batch_size)
    if args.memory_of:
        step = build(args.memory_of, *shape)
        for _ in range(3):
            step()
        print(peak_of_this_process())
        return

    names = ["float SGD", *ESTIMATORS]
    steps = {name: build(name, *shape) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _warm in range(3):
        for name in names:
            steps[name]()
    for _ in range(args.steps):
        for name in names:
            times[name].append(seconds(steps[name]))
    rows = {}
    for name in names:
        ratios = [t / f for t, f in zip(times[name], times["float SGD"], strict=True)]
        rows[name] = {
            "median_ms": 1e3 * statistics.median(times[name]),
            "median_ratio": statistics.median(ratios),
            "quartiles_of_ratio": statistics.quantiles(ratios, n=4)[::2],
            "peak_megabytes": peak_megabytes(name, args),
        }
    result = {
        "benchmark": "training_step",
        "network": [784, *[args.width] * args.depth, 10],
        "batch_size": args.batch_size,
        "steps": args.steps,
        "threads": torch.get_num_threads(),
        "compiled": one_pass.COMPILE,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "rows": rows,
    }
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=2))
    print(report(result))


if __name__ == "__main__":
    main()
