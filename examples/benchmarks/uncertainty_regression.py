"""UCI regression: a binary posterior beside a float network, Bayesian linear regression and MCMC.

Concrete, energy, kin8nm, power plant, red wine and yacht, the given splits 0 to 4. Two hidden layers of 128,
and as many epochs as make about 2000 steps; the settings are the same everywhere. The posterior at its
default kl_weight, 0.1, and at 0.01; the second layer and this value were chosen on a fifth of the training
sets of yacht, energy and concrete, split 0. The noise of the float network is that of a tenth of the
training set, which it does not see. On yacht, the smallest, MCMC samples the signs and the noise of the
network that was fitted, its biases and scale kept: the exact posterior, beside the one fitted at kl_weight 1.

A split that is in --out already is not run again.

    python examples/benchmarks/uncertainty_regression.py --data folder --out uncertainty_regression.json
    python examples/benchmarks/uncertainty_regression.py --report uncertainty_regression.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from bayesbin.data import Splits, uci_folder
from bayesbin.diagnostics import draw_gaussians, regression_scores
from bayesbin.infer import run_mcmc
from bayesbin.nn import Regressor
from bayesbin.sklearn import BinaryNetworkRegressor

DATASETS = ("concrete", "energy", "kin8nm", "power-plant", "wine-quality-red", "yacht")
HIDDEN, BATCH_SIZE, STEPS = (128, 128), 100, 2000
KL_WEIGHTS = (0.1, 0.01)
MCMC_ON = "yacht"
SCORES = ("rmse", "nll", "crps", "coverage")


def epochs_for(size: int, steps: int) -> int:
    return max(1, round(steps * BATCH_SIZE / max(size, BATCH_SIZE)))


def binary(
    splits: Splits, args: argparse.Namespace, kl_weight: float, seed: int
) -> BinaryNetworkRegressor:
    epochs = epochs_for(len(splits.train), args.steps)
    found = BinaryNetworkRegressor(
        args.hidden, epochs=epochs, batch_size=BATCH_SIZE, kl_weight=kl_weight, random_state=seed
    )
    return found.fit(splits.train.x.double().numpy(), splits.train.y.double().numpy())


def drawn_scores(fitted: BinaryNetworkRegressor, splits: Splits, draws: int) -> dict[str, float]:
    """Of the mixture over draws of networks and noise, in the units of y."""
    x = torch.from_numpy(fitted.scaler_.transform(splits.test.x.double().numpy())).float()
    means, variances = draw_gaussians(fitted.net_, fitted.posterior_, x, num_samples=draws)
    scale = fitted.y_scale_
    return regression_scores(fitted.y_mean_ + scale * means, scale**2 * variances, splits.test.y)


def mode_scores(fitted: BinaryNetworkRegressor, splits: Splits) -> dict[str, float]:
    """The likeliest network, with the mean of the noise's posterior."""
    x = torch.from_numpy(fitted.scaler_.transform(splits.test.x.double().numpy())).float()
    with torch.no_grad():
        mean = fitted.posterior_.mode_network(fitted.net_)(x).double()[:, 0]
    noise = torch.stack([fitted.posterior_.sample_real("noise", k) for k in range(100)]).mean()
    scale = fitted.y_scale_
    variance = (scale * float(noise)) ** 2
    return regression_scores((fitted.y_mean_ + scale * mean)[None], variance, splits.test.y)


def float_scores(splits: Splits, args: argparse.Namespace, seed: int) -> dict[str, float]:
    x, y = splits.train.x.double().numpy(), splits.train.y.double().numpy()
    parts: list[Any] = train_test_split(x, y, test_size=0.1, random_state=seed)
    x, held_x, y, held_y = parts
    batch_size: Any = min(BATCH_SIZE, len(x))  # scikit-learn's annotation knows "auto" only
    inputs, targets = StandardScaler().fit(x), StandardScaler().fit(y[:, None])
    net = MLPRegressor(
        hidden_layer_sizes=args.hidden, batch_size=batch_size,
        max_iter=epochs_for(len(x), args.steps), tol=0.0, n_iter_no_change=10**6, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many steps and no more: meant
        net.fit(inputs.transform(x), np.asarray(targets.transform(y[:, None])).ravel())

    def mean(z: np.ndarray) -> np.ndarray:
        found = np.asarray(net.predict(inputs.transform(z)))
        return np.asarray(targets.inverse_transform(found[:, None])).ravel()

    variance = float(np.mean((held_y - mean(held_x)) ** 2))
    means = torch.from_numpy(mean(splits.test.x.double().numpy()))[None]
    return regression_scores(means, variance, splits.test.y)


def linear_scores(splits: Splits) -> dict[str, float]:
    inputs = StandardScaler().fit(splits.train.x.double().numpy())
    ridge = BayesianRidge().fit(
        inputs.transform(splits.train.x.double().numpy()), splits.train.y.double().numpy()
    )
    test = inputs.transform(splits.test.x.double().numpy())
    mean, std = (torch.from_numpy(values)[None] for values in ridge.predict(test, return_std=True))
    return regression_scores(mean, std.square(), splits.test.y)


def mcmc_scores(
    fitted: BinaryNetworkRegressor, splits: Splits, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Signs and noise by MCMC, in the network that was fitted; with R-hat and ESS of its test outputs."""
    scale = fitted.y_scale_
    x = torch.from_numpy(fitted.scaler_.transform(splits.train.x.double().numpy())).float()
    y = (splits.train.y - fitted.y_mean_) / scale
    test = torch.from_numpy(fitted.scaler_.transform(splits.test.x.double().numpy())).float()
    net = fitted.net_
    found = run_mcmc(
        Regressor(net, dataset_size=len(x)), (x, y), num_samples=args.mcmc, num_warmup=args.mcmc,
        num_chains=2, sign_steps=20, seed=seed,
    )  # fmt: skip

    def outputs(draw: Any) -> torch.Tensor:
        signs = {name: draw[name] for name in fitted.posterior_}
        return torch.func.functional_call(net, signs, (test,))[:, 0].double()

    means = fitted.y_mean_ + scale * found.values(outputs).flatten(0, 1)
    variances = (scale * found.real["noise"].double().flatten()[:, None]).square()
    agreement = found.convergence(outputs)
    return regression_scores(means, variances.expand_as(means), splits.test.y) | {
        "worst_rhat": agreement.worst_rhat,
        "least_ess": agreement.least_ess,
        "acceptance": found.acceptance.tolist(),
    }


def run(args: argparse.Namespace, name: str, split: int) -> dict[str, Any]:
    splits = uci_folder(args.data / name, split)
    start = time.perf_counter()
    fitted = {kl_weight: binary(splits, args, kl_weight, split) for kl_weight in KL_WEIGHTS}
    seconds = (time.perf_counter() - start) / len(fitted)
    methods: dict[str, Any] = {}
    for kl_weight, found in fitted.items():
        methods[f"kl_weight {kl_weight:g}: mean of draws"] = drawn_scores(found, splits, args.draws)
        methods[f"kl_weight {kl_weight:g}: mode"] = mode_scores(found, splits)
    methods["float network"] = float_scores(splits, args, split)
    methods["Bayesian linear regression"] = linear_scores(splits)
    if name == MCMC_ON:
        elbo = binary(splits, args, 1.0, split)
        methods["kl_weight 1: mean of draws"] = drawn_scores(elbo, splits, args.draws)
        if args.mcmc:
            methods["MCMC"] = mcmc_scores(fitted[KL_WEIGHTS[0]], splits, args, split)
    return {
        "dataset": name, "split": split, "train": len(splits.train), "test": len(splits.test),
        "seconds": seconds, "methods": methods,
    }  # fmt: skip


def report(record: dict[str, Any]) -> str:
    """Mean and standard error over splits; RMSE and CRPS in the units of y, NLL in nats."""
    lines = [
        "| data | splits | method | RMSE | NLL | CRPS | inside 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in DATASETS:
        blocks = [block for block in record["blocks"] if block["dataset"] == name]
        for method in {method: None for block in blocks for method in block["methods"]}:
            found = [block["methods"][method] for block in blocks if method in block["methods"]]
            cells = []
            for score in SCORES:
                values = [scores[score] for scores in found]
                cells.append(mean_and_error(values))
            lines.append(f"| {name} | {len(found)} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_and_error(values: list[float]) -> str:
    """mean +- standard error; of one split, its value."""
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets' folders")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--hidden", type=int, nargs="+", default=list(HIDDEN))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument(
        "--mcmc",
        type=int,
        default=1000,
        help="draws of a chain, and of warm-up; 0: no MCMC, a matter of ten minutes a split",
    )
    parser.add_argument("--out", type=Path, default=Path("uncertainty_regression.json"))
    parser.add_argument("--report", type=Path, help="print the table of a JSON file")
    parser.add_argument(
        "--smoke", action="store_true", help="one split of the smallest, a few steps"
    )
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.data is None:
        parser.error("expected --data, the folder with the data sets' folders")
    if args.smoke:
        args.datasets, args.splits = [MCMC_ON], [0]
        args.steps, args.draws, args.mcmc = 20, 4, 10
    record: dict[str, Any] = {
        "benchmark": "uncertainty_regression", "hidden": args.hidden, "steps": args.steps,
        "torch": torch.__version__, "machine": platform.processor() or platform.machine(), "blocks": [],
    }  # fmt: skip
    if args.out.exists():
        record = json.loads(args.out.read_text())
    done = {(block["dataset"], block["split"]) for block in record["blocks"]}
    for split in args.splits:
        for name in args.datasets:
            if (name, split) not in done:
                record["blocks"].append(run(args, name, split))
                args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
