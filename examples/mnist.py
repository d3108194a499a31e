"""A binary network on MNIST, with calibrated probabilities: 784-512-512-10.

    python mnist.py --data FOLDER      the folder with MNIST's four idx files
    python mnist.py                    without them: scikit-learn's digits, a small stand-in

Prints accuracy, negative log-likelihood and calibration error of the posterior's mode, of the mean of
its draws, and of single draws. The command line does the same: ``bayesbin train``, ``bayesbin evaluate``.
"""

from __future__ import annotations

import argparse

import torch

import bayesbin as bb
from bayesbin import nn
from bayesbin.data import Batches, load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder of MNIST's idx files; without it: digits")
    parser.add_argument("--epochs", type=int, help="default: 20, for digits 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="save the posterior to this .safetensors file")
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps only, to see that it runs"
    )
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    if arguments.data is None:
        print("No --data folder: training on scikit-learn's digits instead of MNIST.")
    name = "digits" if arguments.data is None else "mnist"
    epochs = arguments.epochs or (60 if name == "digits" else 20)
    width, draws = 512, 32
    if arguments.smoke:
        epochs, width, draws = 1, 32, 4

    # Settings are chosen by held-out training data; the test set is looked at once, at the end.
    splits, validation = load(name, arguments.data).hold_out(0.1)
    train, test = splits.train, splits.test

    # Normalised hidden layers and a learned output scale; all weights binary, and nothing else.
    net = nn.to_binary_(nn.mlp(train.x.shape[1], [width, width], 10))
    model = nn.Classifier(net, dataset_size=len(train))

    # Natural gradients of layers differ by orders of magnitude; the recipe normalises them, so that its lr
    # is the typical change of a natural parameter in one step.
    recipe = bb.recipe("bayesbin", model, epochs=epochs)
    recipe.fit(
        Batches(train, batch_size=100),
        validation=Batches(validation, batch_size=1000, shuffle=False),
        validate_every=5,
        seed=arguments.seed,
        progress=not arguments.smoke,
    )
    posterior = recipe.guide.posterior()
    print(posterior.summary())

    # Each draw is a network of its own and needs normalisation statistics of its own.
    ensemble = bb.Ensemble(model, posterior, num_samples=draws, seed=arguments.seed)
    scores = ensemble.calibrate(train.x[:5000]).evaluate(test.x, test.y)
    rows = {
        "mode": scores["mode"],
        f"mean of {draws} draws": scores["mean"],
        "single draws": scores["draws"]["mean"],
        "  +- (std)": scores["draws"]["std"],
    }
    print(f"\n{name} test set    {'accuracy':>10}{'nll (nats)':>12}{'ece':>10}")
    for label, row in rows.items():
        print(f"{label:<18}{row['accuracy']:>10.4f}{row['nll']:>12.4f}{row['ece']:>10.4f}")

    if arguments.out:
        posterior.save(arguments.out)
        print(f"posterior: {arguments.out}")


if __name__ == "__main__":
    main()
