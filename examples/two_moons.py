"""Two moons: train a posterior over binary weights, and see where it is sure and where it is not.

    python two_moons.py --out two_moons.png

The whole path in one file: data, network, model, guide, training, ensemble, prediction, picture. The command
``bayesbin demo two-moons`` puts a straight-through point estimate beside it.
"""

from __future__ import annotations

import argparse

import torch

import bayesbin as bb
from bayesbin import nn, plots
from bayesbin.data import Batches, two_moons


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps only, to see that it runs"
    )
    arguments = parser.parse_args()
    epochs = 5 if arguments.smoke else arguments.epochs
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread

    # Any torch network becomes a binary one; weights turn into signs, biases stay real.
    train, test = two_moons(200, seed=arguments.seed), two_moons(2000, seed=arguments.seed + 1000)
    net = nn.to_binary_(nn.mlp(2, [128, 128], 2, normalize=False))

    # A Pyro model with one sample site per weight matrix.
    model = nn.Classifier(net, dataset_size=len(train))

    # The recipe adds a Bernoulli posterior for each sign, natural gradients for it, and Adam for biases
    # and output scale; any of its settings can be given here, lr=0.05 say.
    recipe = bb.recipe("bayesbin", model, epochs=epochs)
    batches = Batches(train, batch_size=len(train))
    recipe.fit(batches, seed=arguments.seed, progress=not arguments.smoke)

    # What a guide has learned is a posterior: a value, which knows nothing of the training.
    posterior = recipe.guide.posterior()
    print(posterior.summary())

    # Ten drawn networks, with everything that belongs to them: from here on only the ensemble predicts.
    ensemble = bb.Ensemble(model, posterior, num_samples=10, seed=arguments.seed)
    scores = ensemble.evaluate(test.x, test.y)
    for name in ("mode", "mean"):
        row = ", ".join(f"{score} {value:.4f}" for score, value in scores[name].items())
        print(f"{name + ':':<6}{row}")

    # Draws that disagree far from the data: the mutual information of prediction and weights.
    near, far = ensemble.predict(test.x), ensemble.predict(4.0 * test.x)
    for place, prediction in (("at the data", near), ("four times as far out", far)):
        information = prediction.mutual_information.mean().item()
        print(f"mutual information {place}: {information:.4f} nats")

    if arguments.out:
        area = plots.grid((-3.5, -3.5), (3.5, 3.5))
        prediction = ensemble.predict(area.points)
        figure = plots.Figure(figsize=(4.6, 3.6), layout="constrained")
        axes = figure.subplots()
        mesh = plots.plot_field(axes, prediction.entropy, area, title="predictive entropy")
        plots.plot_boundary(axes, prediction.probs[:, 1], area, color="white")
        plots.plot_classes(axes, train.x, train.y).set_ylabel("$x_2$")
        figure.colorbar(mesh, ax=axes).set_label("nats")
        plots.save_figure(figure, arguments.out)
        print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
