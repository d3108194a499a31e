"""The noise of a gradient step where every datum has binary latents of its own, by estimator.

A sigmoid belief network: each of 200 data of 16 pixels has its own latent signs (two, and one), the guide is
mean-field. The standard deviation of a gradient in the local natural parameters is given in units of
the gradient's norm, at four draws (evaluations of the model) for all: once with each sign weighed by
the terms of its own datum, which is what the estimators do, and once by the whole objective. Pyro's own
Trace_ELBO, which knows plates, is the comparison. LocalExpectation is timed against one evaluation.

    python examples/benchmarks/plate_scores.py --out plate_scores.json
    python examples/benchmarks/plate_scores.py --report plate_scores.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from bayesbin import estimators as E
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators.base import Objective
from bayesbin.infer import TraceBinary_ELBO

DATA, PIXELS, DRAWS = 200, 16, 4
ESTIMATORS: dict[str, Callable[[], E.Estimator]] = {
    "score, no baseline": lambda: E.ScoreFunction(DRAWS, None),
    "score, leave-one-out": lambda: E.ScoreFunction(DRAWS),
    "score, moving average": lambda: E.ScoreFunction(DRAWS, E.MovingAverage()),
    "score, learned": lambda: E.ScoreFunction(DRAWS, E.Learned()),
    "ARM": lambda: E.ARM(DRAWS // 2),
    "DisARM": lambda: E.DisARM(DRAWS // 2),
    "ARMS": lambda: E.ARMS(DRAWS),
    "REBAR": lambda: E.REBAR(num_samples=DRAWS // 2),
    "LocalExpectation": lambda: E.LocalExpectation(max_weights=DATA * 2),
}


class Network:
    """The model and its guide: signs of each datum, and its pixels given them."""

    def __init__(self, latents: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = latents
        self.weight = 1.2 * torch.randn(PIXELS, latents, generator=generator)
        signs = torch.randint(0, 2, (DATA, latents), generator=generator) * 2.0 - 1.0
        self.x = torch.bernoulli(torch.sigmoid(signs @ self.weight.T), generator=generator)
        self.natural = 0.5 * torch.randn(DATA, latents, generator=generator)
        self.natural.requires_grad_()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", SignBernoulli(natural=torch.zeros(len(x), self.latents)).to_event(1)
            )
            pixels = dist.Bernoulli(logits=z @ self.weight.T).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", SignBernoulli(natural=self.natural).to_event(1))

    def gradient(self, loss: Any) -> Tensor:
        value = loss.differentiable_loss(self.model, self.guide, self.x)
        return torch.autograd.grad(value, self.natural)[0].flatten()


class Whole(E.Estimator):
    """Another estimator that is told nothing of terms and plates."""

    unbiased = True

    def __init__(self, estimator: E.Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        return self.estimator(lambda values: objective(values), natural)


def deviation(gradient: Callable[[], Tensor], exact: Tensor, count: int, warm_up: int) -> float:
    """The root of the total variance, in units of the norm of the exact gradient."""
    for _ in range(warm_up):
        gradient()
    draws = torch.stack([gradient() for _ in range(count)])
    return float(draws.var(0).sum().sqrt() / exact.norm())


def seconds(call: Callable[[], Any], count: int) -> float:
    def once() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return statistics.median(once() for _ in range(count))


def measure(latents: int, count: int) -> dict[str, Any]:
    torch.manual_seed(1)
    network = Network(latents)
    # Given everything else each weight has two states: averaged over many draws, nearly exact.
    reference = TraceBinary_ELBO(E.LocalExpectation(num_samples=16))
    exact = torch.stack([network.gradient(reference) for _ in range(count)]).mean(0)
    rows = []
    for name, build in ESTIMATORS.items():
        by_plate, whole = (TraceBinary_ELBO(e) for e in (build(), Whole(build())))
        few = max(2, count // 20) if name == "LocalExpectation" else count
        rows.append(
            {
                "estimator": name,
                "by plate": deviation(lambda e=by_plate: network.gradient(e), exact, count, 20),
                "whole": deviation(lambda e=whole: network.gradient(e), exact, few, 1),
            }
        )
    stock = Trace_ELBO(num_particles=DRAWS)
    pyro_deviation = deviation(lambda: network.gradient(stock), exact, count, 1)
    flip, once = TraceBinary_ELBO(E.LocalExpectation()), TraceBinary_ELBO(E.ScoreFunction(1, None))
    alone = TraceBinary_ELBO(Whole(E.LocalExpectation()))
    return {
        "latents": latents,
        "rows": rows,
        "Trace_ELBO": pyro_deviation,
        "seconds": {
            "one evaluation": seconds(lambda: network.gradient(once), count),
            "LocalExpectation, by plate": seconds(lambda: network.gradient(flip), count),
            "LocalExpectation, sign by sign": seconds(lambda: network.gradient(alone), 3),
        },
    }


def table(record: Mapping[str, Any]) -> str:
    lines = []
    for part in record["networks"]:
        lines += [f"{DATA} data, {part['latents']} signs each, {DRAWS} draws", ""]
        lines += ["| estimator | by plate | whole |", "|---|---|---|"]
        for row in part["rows"]:
            lines.append(f"| {row['estimator']} | {row['by plate']:.3g} | {row['whole']:.3g} |")
        lines += [f"| Pyro's Trace_ELBO | {part['Trace_ELBO']:.3g} | |", ""]
        lines += [f"{name}: {1e3 * value:.3g} ms" for name, value in part["seconds"].items()]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("plate_scores.json"))
    parser.add_argument("--report", type=Path, help="print the table of a file that is there")
    parser.add_argument("--gradients", type=int, default=100, help="of each estimator")
    parser.add_argument("--smoke", action="store_true", help="very few gradients")
    arguments = parser.parse_args()
    if arguments.report is None:
        torch.set_default_dtype(torch.float64)
        count = 3 if arguments.smoke else arguments.gradients
        record = {"networks": [measure(latents, count) for latents in (1, 2)], "gradients": count}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    else:
        record = json.loads(arguments.report.read_text())
    print(table(record))


if __name__ == "__main__":
    main()
