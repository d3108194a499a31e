"""Regression with binary weights and unknown noise: a predictive band that widens where data are absent.

    python regression.py --out regression.png

A real-valued site, the noise, is learned in the same model as the signs. The inputs are local bumps, so
that weights which no datum reaches keep their prior; see ``bayesbin.experiments.demos.LocalBumps``.
"""

from __future__ import annotations

import argparse

import torch

import bayesbin as bb
from bayesbin import nn, plots
from bayesbin.data import Batches, regression_1d
from bayesbin.experiments.demos import LocalBumps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps only, to see that it runs"
    )
    arguments = parser.parse_args()
    epochs = 5 if arguments.smoke else arguments.epochs
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread

    # 200 points with noise of standard deviation 0.1, and none between -0.5 and 0.75.
    train = regression_1d(200, noise=0.1, seed=arguments.seed)
    layers = nn.mlp(64, [64], 1, activation="tanh", normalize=False)
    net = nn.to_binary_(torch.nn.Sequential(LocalBumps(64), *layers))

    # The noise has a LogNormal prior, and so becomes a latent site "noise" beside the weights.
    model = nn.Regressor(net, dataset_size=len(train))

    # The recipe gives the weights and the noise a posterior, and trains biases and output scale with them.
    recipe = bb.recipe("bayesbin", model, epochs=epochs)
    batches = Batches(train, batch_size=len(train))
    recipe.fit(batches, seed=arguments.seed, progress=not arguments.smoke)

    # 32 drawn networks, each with a drawn noise level.
    ensemble = bb.Ensemble(model, recipe.guide.posterior(), num_samples=32, seed=arguments.seed)

    # Two uncertainties: what the draws disagree about (epistemic), and the noise (aleatoric).
    places = {
        "data, -2 .. -0.5": torch.linspace(-2.0, -0.5, 50),
        "gap, -0.25 .. 0.5": torch.linspace(-0.25, 0.5, 50),
        "outside, 2.5 .. 3": torch.linspace(2.5, 3.0, 50),
    }
    print(f"{'':<18}  {'epistemic sd':>12}  {'noise sd':>12}")
    for place, x in places.items():
        prediction = ensemble.predict(x[:, None])
        spread = prediction.epistemic_variance.mean().sqrt().item()
        noise = prediction.aleatoric_variance.mean().sqrt().item()
        print(f"{place:<18}  {spread:>12.3f}  {noise:>12.3f}")

    if arguments.out:
        line = torch.linspace(-3.0, 3.0, 601)
        axes = plots.plot_regression(
            line,
            ensemble.predict(line[:, None]),
            data=(train.x, train.y),
            truth=torch.sin(2.0 * line) + line / 4.0,
        )
        plots.save_figure(plots.figure_of(axes), arguments.out)
        print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
