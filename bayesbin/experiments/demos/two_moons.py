"""Two moons: a straight-through point estimate beside the posterior."""

from __future__ import annotations

import math
import os
import time

import torch
from torch import Tensor

from bayesbin import data
from bayesbin.ensemble import Ensemble
from bayesbin.experiments.demos.full_batch import NUM_TEST, TEST_SEED, seeded, train_full_batch
from bayesbin.experiments.demos.result import DemoResult
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.recipes import Recipe

WIDTH = 128  # of both hidden layers


def two_moons_demo(
    *,
    epochs: int = 1000,
    seed: int = 0,
    num_samples: int = 10,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = False,
) -> DemoResult:
    """Two moons with binary weights: a straight-through point estimate beside the posterior.

    Both train the same 2-128-128-2 network on 200 points, all in one batch. "data" in the result's
    uncertainty is the mean over test data, "far" that over a circle of radius 6 around them.

    :param epochs: steps, for each of the two. :param seed: of data, initial state and noise.
    :param num_samples: draws in the posterior mean.
    :param out: .png, .pdf or .svg file for the picture; None: no picture.
    :raises ValueError: for fewer than 1 epoch or draw. :raises OSError: if the picture cannot be written.

    Example::

        >>> from bayesbin.experiments.demos import two_moons_demo
        >>> two_moons_demo(epochs=2).weights
        16896
    """
    begin = time.perf_counter()
    train = data.two_moons(200, noise=0.1, seed=seed)
    test = data.two_moons(NUM_TEST, noise=0.1, seed=TEST_SEED + seed)

    def classifier(name: str) -> Recipe:
        with seeded(seed):
            net = to_binary_(mlp(2, [WIDTH, WIDTH], 2, normalize=False))
            model = Classifier(net, dataset_size=len(train))
            return train_full_batch(name, model, train, epochs=epochs, seed=seed, progress=progress)

    straight_through = classifier("binaryconnect")
    trained_point = time.perf_counter()
    method = classifier("bayesbin")
    posterior = method.guide.posterior()
    trained = time.perf_counter()

    point = Ensemble(straight_through.model, straight_through.guide.posterior()).mode
    ensemble = Ensemble(method.model, posterior, num_samples)
    table = ensemble.evaluate(test.x, test.y)
    inside, outside = ensemble.predict(test.x), ensemble.predict(_circle(radius=6.0))
    if out is not None:
        from bayesbin import plots  # matplotlib takes a second to import

        area = plots.grid((-3.5, -3.5), (3.5, 3.5))
        figure = plots.plot_two_moons(
            point.predict(area.points).probs[:, 1],
            ensemble.mode.predict(area.points).probs[:, 1],
            ensemble.predict(area.points),
            area,
            train.x,
            train.y,
        )
        plots.save_figure(figure, out)
    end = time.perf_counter()
    regions = {"data": inside, "far": outside}
    return DemoResult(
        name="two moons",
        scores={
            "straight-through": point.evaluate(test.x, test.y)["mean"],
            "mode": table["mode"],
            f"mean of {num_samples} draws": table["mean"],
            "single draws": table["draws"]["mean"],
        },
        uncertainty={
            "entropy": {k: p.entropy.mean().item() for k, p in regions.items()},
            "mutual information": {
                k: p.mutual_information.mean().item() for k, p in regions.items()
            },
        },
        units={"nll": "nats", "entropy": "nats", "mutual information": "nats"},
        weights=posterior.num_weights,
        bits_per_weight=posterior.summary().total().entropy_bits,
        settings={
            "epochs": epochs,
            "seed": seed,
            "num_samples": num_samples,
            "recipe": method.name,
            "settings": method.settings,
        },
        seconds={
            "straight-through": trained_point - begin,
            "posterior": trained - trained_point,
            "scores and picture": end - trained,
        },
        picture=None if out is None else os.fspath(out),
    )


def _circle(radius: float, num_points: int = 64) -> Tensor:
    angle = 2.0 * math.pi * torch.arange(num_points, dtype=torch.float32) / num_points
    return radius * torch.stack([angle.cos(), angle.sin()], dim=-1)
