"""Inputs of another kind: digits 0 to 7 are learned, and 8, 9, shuffled pixels and noise come up.

    python out_of_distribution.py --out histograms.png

A network that has never seen an 8 calls it a 3, and may be sure of it. Does the posterior know better? Two
uncertainties try to tell the kinds apart: the entropy of the averaged prediction, and the mutual
information of prediction and weights, which is what the draws disagree about.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from bayesbin import nn, plots
from bayesbin.data import Batches, Dataset, digits
from bayesbin.diagnostics import bootstrap, ood_scores, scores
from bayesbin.ensemble import Ensemble
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit

FAMILIAR = 8  # classes: 0 .. 7


def other_inputs(test: Dataset, seed: int) -> dict[str, Tensor]:
    """Unseen classes; the familiar digits' pixels in other places; their brightnesses from anywhere."""
    generator = torch.Generator().manual_seed(seed)
    known = test.x[test.y < FAMILIAR]
    order = torch.randperm(known.shape[1], generator=generator)  # one for all, as in permuted MNIST
    pixels = torch.randint(known.numel(), known.shape, generator=generator)
    return {
        "digits 8 and 9": test.x[test.y >= FAMILIAR],
        "shuffled pixels": known[:, order],
        "noise": known.flatten()[pixels],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only: does it run?")
    arguments = parser.parse_args()
    epochs, draws, count = arguments.epochs, arguments.draws, 200
    if arguments.smoke:
        epochs, draws, count = 1, 3, 5
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread

    splits = digits(arguments.seed, test_fraction=0.5)
    learned = splits.train.y < FAMILIAR
    x, y = splits.train.x[learned], splits.train.y[learned]
    inner = splits.test.y < FAMILIAR
    x_test, y_test = splits.test.x[inner], splits.test.y[inner]

    net = nn.to_binary_(nn.mlp(64, [256, 256], FAMILIAR))
    model = nn.Classifier(net, dataset_size=len(x))
    guide = AutoSignBernoulli(model)
    progress = not arguments.smoke
    batches = Batches((x, y), batch_size=100)
    fit(model, guide, batches, epochs=epochs, kl_weight=0.3, seed=arguments.seed, progress=progress)

    # The same draws for all inputs: the mutual information depends on how many there are.
    ensemble = Ensemble(model, guide.posterior(), draws, arguments.seed).calibrate(x)
    familiar = ensemble.predict(x_test)
    table = scores(familiar.log_probs, y_test)
    print("digits 0 .. 7: " + ", ".join(f"{name} {value:.4f}" for name, value in table.items()))

    others = {
        name: ensemble.predict(x_other)
        for name, x_other in other_inputs(splits.test, arguments.seed).items()
    }
    quantities = {"entropy": "entropy (nats)", "mutual_information": "mutual information (nats)"}
    print(f"\n{'':<18}{'by':<20}{'AUROC, 95 % interval':>28}{'FPR95':>28}")
    for name, prediction in others.items():
        for quantity in quantities:
            pair = getattr(familiar, quantity), getattr(prediction, quantity)
            found = bootstrap(ood_scores, *pair, num_bootstrap=count)
            print(f"{name:<18}{quantity:<20}{found['auroc']!s:>28}{found['fpr95']!s:>28}")

    if arguments.out:
        figure = plots.Figure(figsize=(9.0, 3.2), layout="constrained")
        for axes, (quantity, label) in zip(figure.subplots(1, 2), quantities.items(), strict=True):
            outer = {name: getattr(prediction, quantity) for name, prediction in others.items()}
            plots.plot_in_vs_out(
                getattr(familiar, quantity),
                outer,
                axes,
                quantity=label,
                inner_name="digits 0 to 7",
                title=f"By {quantity.replace('_', ' ')}",
            )
        plots.save_figure(figure, arguments.out)
        print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
