"""UCI regression: a binary posterior beside a float network, Bayesian linear regression and MCMC.

Concrete, energy, kin8nm, power plant, red wine and yacht, the given splits 0 to 4. Two hidden layers of 128,
and as many epochs as make about 2000 steps; the settings are the same everywhere. Inputs are the features,
or their bins (16, the default of the estimator), for the float network too. The posterior at its default
kl_weight, 0.1, and at 0.01. The second layer, this value and the bins were chosen on a fifth of the training
sets of split 0. The noise of the float network is that of a tenth of the training set, which it does not
see. On yacht, the smallest, MCMC samples the signs and the noise of a small network that was fitted at
kl_weight 1, its biases and scale kept: the exact posterior beside the one fitted. Two chains start at two
draws of the latter.

What is in --out already is not run again.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayesbin.data import Splits, uci_folder
from bayesbin.diagnostics import regression_scores
from bayesbin.infer import run_mcmc
from bayesbin.nn import Regressor
from bayesbin.sklearn import BinaryNetworkRegressor, PiecewiseLinearEncoder

DATASETS = ("concrete", "energy", "kin8nm", "power-plant", "wine-quality-red", "yacht")
HIDDEN, BATCH_SIZE, STEPS = (128, 128), 100, 2000
KL_WEIGHTS = (0.1, 0.01)
INPUTS = {"features": 0, "16 bins": 16}  # -> num_bins
MCMC_ON, MCMC_HIDDEN, MCMC_BINS = "yacht", (16,), 16
SCORES = ("rmse", "nll", "crps", "coverage")


def epochs_for(size: int, steps: int) -> int:
    return max(1, round(steps * BATCH_SIZE / max(size, BATCH_SIZE)))


def binary(
    splits: Splits, args: argparse.Namespace, num_bins: int, kl_weight: float, seed: int,
    hidden: Sequence[int] | None = None,
) -> BinaryNetworkRegressor:  # fmt: skip
    epochs = epochs_for(len(splits.train), args.steps)
    found = BinaryNetworkRegressor(
        hidden or args.hidden, num_bins=num_bins, epochs=epochs, batch_size=BATCH_SIZE, kl_weight=kl_weight,
        num_samples=args.draws, random_state=seed,
    )  # fmt: skip
    return found.fit(splits.train.x.double().numpy(), splits.train.y.double().numpy())


def inputs_of(fitted: BinaryNetworkRegressor, x: torch.Tensor) -> torch.Tensor:
    """The features as the network takes them: in bins, standardised."""
    return torch.from_numpy(fitted.transformer_.transform(x.double().numpy())).float()


def posterior_scores(fitted: BinaryNetworkRegressor, splits: Splits) -> dict[str, dict[str, float]]:
    """Scores of the mixture over draws of networks and noise, and of the mode, in the units of y."""
    found = fitted.ensemble_.evaluate(inputs_of(fitted, splits.test.x), splits.test.y)
    return {"mean of draws": found["mean"], "mode": found["mode"]}


def float_scores(
    splits: Splits, args: argparse.Namespace, num_bins: int, seed: int
) -> dict[str, float]:
    x, y = splits.train.x.double().numpy(), splits.train.y.double().numpy()
    parts: list[Any] = train_test_split(x, y, test_size=0.1, random_state=seed)
    x, held_x, y, held_y = parts
    batch_size: Any = min(BATCH_SIZE, len(x))  # scikit-learn's annotation knows "auto" only
    encoders = [PiecewiseLinearEncoder(num_bins)] if num_bins else []
    inputs = make_pipeline(*encoders, StandardScaler()).fit(x)
    targets = StandardScaler().fit(y[:, None])
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
    x, test = inputs_of(fitted, splits.train.x), inputs_of(fitted, splits.test.x)
    y = (splits.train.y - fitted.y_mean_) / scale
    # The layers alone, whose targets are standardised; the estimator's network ends in the units of y.
    layers: Any = fitted.ensemble_.mode.network(0)
    net, posterior = torch.nn.Sequential(*layers).eval(), fitted.posterior_

    def start(chain: int) -> dict[str, torch.Tensor]:
        return {
            **{name: signs.float() for name, signs in posterior.sample(chain).items()},
            "noise": (posterior.sample_real("noise", chain) / scale).log().float(),
        }

    found = run_mcmc(
        Regressor(net, dataset_size=len(x)), (x, y), num_samples=args.mcmc, num_warmup=args.mcmc // 2,
        num_chains=2, sign_steps=20, initial=start, seed=seed,
    )  # fmt: skip

    def outputs(draw: Any) -> torch.Tensor:
        signs = {name: draw[name] for name in posterior}
        return torch.func.functional_call(net, signs, (test,))[:, 0].double()

    means = fitted.y_mean_ + scale * found.values(outputs).flatten(0, 1)
    variances = (scale * found.real["noise"].double().flatten()[:, None]).square()
    agreement = found.convergence(outputs)
    return regression_scores(means, variances.expand_as(means), splits.test.y) | {
        "worst_rhat": agreement.worst_rhat,
        "least_ess": agreement.least_ess,
        "acceptance": found.acceptance.tolist(),
    }


def complete(args: argparse.Namespace, block: dict[str, Any]) -> None:
    """Run what a block of the record has not."""
    name, split, methods = block["dataset"], block["split"], block["methods"]
    splits = uci_folder(args.data / name, split)
    block |= {"train": len(splits.train), "test": len(splits.test)}
    for inputs, num_bins in INPUTS.items():
        for kl_weight in KL_WEIGHTS:
            key = f"{inputs}, kl_weight {kl_weight:g}"
            if f"{key}: mode" not in methods:
                start = time.perf_counter()
                fitted = binary(splits, args, num_bins, kl_weight, split)
                block["seconds"][key] = time.perf_counter() - start
                for kind, scores in posterior_scores(fitted, splits).items():
                    methods[f"{key}: {kind}"] = scores
        if f"{inputs}, float network" not in methods:
            methods[f"{inputs}, float network"] = float_scores(splits, args, num_bins, split)
    if "Bayesian linear regression" not in methods:
        methods["Bayesian linear regression"] = linear_scores(splits)
    if name != MCMC_ON:
        return
    if (key := "features, kl_weight 1: mean of draws") not in methods:
        fitted = binary(splits, args, 0, 1.0, split)
        methods[key] = posterior_scores(fitted, splits)["mean of draws"]
    small = f"{MCMC_BINS} bins, one layer of {MCMC_HIDDEN[0]}"
    if args.mcmc and f"{small}, MCMC" not in methods:
        fitted = binary(splits, args, MCMC_BINS, 1.0, split, MCMC_HIDDEN)
        of_draws = posterior_scores(fitted, splits)["mean of draws"]
        methods[f"{small}, kl_weight 1: mean of draws"] = of_draws
        methods[f"{small}, MCMC"] = mcmc_scores(fitted, splits, args, split)


def report(record: dict[str, Any]) -> str:
    """Mean and standard error over splits; RMSE and CRPS in the units of y, NLL in nats."""
    lines = [
        "| data | splits | method | RMSE | NLL | CRPS | inside 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in DATASETS:
        blocks = [block for block in record["blocks"] if block["dataset"] == name]
        for method in sorted({method for block in blocks for method in block["methods"]}):
            found = [block["methods"][method] for block in blocks if method in block["methods"]]
            cells = []
            for score in SCORES:
                values = [scores[score] for scores in found]
                cells.append(mean_and_error(values))
            lines.append(f"| {name} | {len(found)} | {method} | {' | '.join(cells)} |")
    for block in record["blocks"]:
        for method, scores in block["methods"].items():
            if "worst_rhat" in scores:
                accepted = " and ".join(f"{rate:.2f}" for rate in scores["acceptance"])
                lines += ["", f"{block['dataset']}, split {block['split']}, {method}: of the outputs the "
                          f"worst R-hat {scores['worst_rhat']:.2f} and least effective sample size "
                          f"{scores['least_ess']:.0f}; the chains accepted {accepted} of moves."]  # fmt: skip
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
        default=2000,
        help="draws of a chain, after half as many of warm-up; 0: no MCMC, a quarter of an hour a split",
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
    blocks = {(block["dataset"], block["split"]): block for block in record["blocks"]}
    for split in args.splits:
        for name in args.datasets:
            if (name, split) not in blocks:
                empty = {"dataset": name, "split": split, "seconds": {}, "methods": {}}
                record["blocks"].append(blocks.setdefault((name, split), empty))
            complete(args, blocks[name, split])
            args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
