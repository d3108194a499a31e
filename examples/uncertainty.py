"""What a posterior knows it does not know: two moons under two guides, and calibration on digits.

    python uncertainty.py --out uncertainty.png

The picture has, per guide, the mean probability over the plane and its uncertainty in two parts: aleatoric,
where the classes overlap, and epistemic, what the draws disagree about. Below, for handwritten digits:
whether confidences are frequencies, and how many errors are left if the least confident are not answered.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from bayesbin import nn, plots
from bayesbin.data import Batches, Dataset, digits, two_moons
from bayesbin.diagnostics import (
    TemperatureScaling,
    bootstrap,
    classification_scores,
    reliability,
    risk_coverage,
    top_label,
    uncertainty,
)
from bayesbin.ensemble import Ensemble
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.runtime import ClassPrediction

SCORES = ("accuracy", "nll", "brier", "ece")


def two_moons_under(
    guide_class: type, train: Dataset, area: Tensor, args: argparse.Namespace
) -> ClassPrediction:
    """The prediction over the plane, averaged over draws of that guide's posterior."""
    torch.manual_seed(args.seed)
    net = nn.to_binary_(nn.mlp(2, [64, 64], 2, normalize=False))
    model = nn.Classifier(net, dataset_size=len(train))
    guide = guide_class(model, init_scale=0.5)
    batches = Batches(train, batch_size=len(train))
    fit(model, guide, batches, epochs=args.epochs, kl_weight=0.1, seed=args.seed, progress=False)
    ensemble = Ensemble(model, guide.posterior(), args.draws, args.seed)
    far = uncertainty(ensemble.log_probs(4.0 * train.x)).in_bits()
    names = ["entropy", "mutual_information", "mutual_information_jackknife", "disagreement"]
    line = ", ".join(f"{name} {getattr(far, name).mean():.3f}" for name in names)
    print(f"{guide_class.__name__}: four times as far out as the data, in bits: {line}")
    return ensemble.predict(area)


def digits_at(args: argparse.Namespace) -> tuple[dict[str, Tensor], Tensor]:
    """Log-probabilities of the mode, scaled by temperature or not, and of the mean; and the labels."""
    torch.manual_seed(args.seed)
    splits, held_out = digits(args.seed, test_fraction=0.5).hold_out(0.2)
    train, test = splits.train, splits.test
    net = nn.to_binary_(nn.mlp(64, [128, 128], 10))
    model = nn.Classifier(net, dataset_size=len(train))
    guide = AutoSignBernoulli(model)
    epochs = max(args.epochs // 10, 1)
    batches = Batches(train, batch_size=100)
    fit(model, guide, batches, epochs=epochs, kl_weight=0.03, seed=args.seed, progress=False)
    ensemble = Ensemble(model, guide.posterior(), args.draws, args.seed).calibrate(train.x)

    # The temperature is fitted on data that neither training nor the scores below have seen.
    scaling = TemperatureScaling.fit(ensemble.mode.predict(held_out.x).log_probs, held_out.y)
    mode = ensemble.mode.predict(test.x).log_probs
    scaled = f"temperature {scaling.temperature:.2f}"
    mean = f"mean of {args.draws} draws"
    averaged = ensemble.predict(test.x).log_probs
    return {"mode": mode, scaled: scaling.apply(mode), mean: averaged}, test.y


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--epochs", type=int, default=400, help="on two moons; digits: a tenth")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--resamples", type=int, default=300, help="of the intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only: does it run?")
    args = parser.parse_args()
    if args.smoke:
        args.epochs, args.draws, args.resamples = 2, 3, 10
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread

    train = two_moons(200, seed=args.seed)
    area = plots.grid((-3.5, -3.5), (3.5, 3.5), num_points=20 if args.smoke else 80)
    guides = {"mean-field": AutoSignBernoulli, "nested": AutoNestedSignBernoulli}
    planes = {n: two_moons_under(g, train, area.points, args) for n, g in guides.items()}

    methods, y = digits_at(args)
    print(f"\n{'digits, 90 % intervals':<26}" + "".join(f"{name:>26}" for name in SCORES))
    for name, log_probs in methods.items():
        found = bootstrap(
            classification_scores, (log_probs, y), num_bootstrap=args.resamples, interval=0.9
        )
        print(f"{name:<26}" + "".join(f"{found[score]!s:>26}" for score in SCORES))

    if args.out:
        figure = plots.Figure(figsize=(9.6, 10.0), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.45, 1.0])
        plots.plot_uncertainty_panel(planes, area, train.x, train.y, parts[0])
        panels = parts[1].subplots(1, 3, width_ratios=[1, 1, 1.3])
        for axes, name in zip(panels, ("mode", list(methods)[-1]), strict=False):
            plots.plot_reliability(reliability(*top_label(methods[name], y)), axes, title=name)
        curves = {name: risk_coverage(log_probs, y) for name, log_probs in methods.items()}
        plots.plot_risk_coverage(curves, panels[2])
        plots.save_figure(figure, args.out)
        print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
