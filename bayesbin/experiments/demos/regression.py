"""Regression on a line with a gap in the data: the predictive band widens there."""

from __future__ import annotations

import math
import os
import time

import torch
from torch import Tensor, nn

from bayesbin import data
from bayesbin.ensemble import Ensemble
from bayesbin.experiments.demos.full_batch import NUM_TEST, TEST_SEED, seeded, train_full_batch
from bayesbin.experiments.demos.result import DemoResult
from bayesbin.nn import Regressor, mlp, to_binary_

SETTINGS = {"kl_weight": 0.005}  # chosen by the likelihood of data drawn with other seeds


def regression_demo(
    *,
    epochs: int = 2000,
    seed: int = 0,
    num_samples: int = 32,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = False,
) -> DemoResult:
    """Regression with binary weights and unknown noise, on a line with a gap in the data.

    Bumps at 64 places, then a 64-64-1 network, on 200 points in one batch. The noise is a latent site of
    its own, with a Normal posterior over its logarithm. "data" in the result's uncertainty is the mean
    over test inputs, "gap" that over the gap between them.

    The inputs are local because the posterior is mean-field: over a network of global features such a
    posterior is too sure of itself between data (Foong et al. 2020, arXiv 1909.00719), over local ones
    the weights that no datum reaches keep their prior.

    Parameters and errors as :func:`two_moons_demo`.

    Example::

        >>> from bayesbin.experiments.demos import regression_demo
        >>> regression_demo(epochs=2).weights
        4160
    """
    begin = time.perf_counter()
    train = data.regression_1d(200, seed=seed)
    test = data.regression_1d(NUM_TEST, seed=TEST_SEED + seed)
    with seeded(seed):
        layers = mlp(64, [64], 1, activation="tanh", normalize=False)
        net = to_binary_(nn.Sequential(LocalBumps(64), *layers))
        model = Regressor(net, dataset_size=len(train))
        method = train_full_batch(
            "bayesbin", model, train, epochs=epochs, seed=seed, progress=progress, **SETTINGS
        )
    posterior = method.guide.posterior()
    trained = time.perf_counter()

    places = {"data": test.x, "gap": torch.linspace(-0.25, 0.5, 101, dtype=torch.float32)[:, None]}
    ensemble = Ensemble(model, posterior, num_samples)
    regions = {name: ensemble.predict(x) for name, x in places.items()}
    table = ensemble.evaluate(test.x, test.y)
    if out is not None:
        from bayesbin import plots  # matplotlib takes a second to import

        line = torch.linspace(-3.0, 3.0, 601, dtype=torch.float32)
        axes = plots.plot_regression(
            line,
            ensemble.predict(line[:, None]),
            data=(train.x, train.y),
            truth=torch.sin(2.0 * line) + line / 4.0,
            mode=ensemble.mode.predict(line[:, None]).mean,
        )
        plots.save_figure(plots.figure_of(axes), out)
    end = time.perf_counter()
    return DemoResult(
        name="regression",
        scores={
            name: {score: table[row][score] for score in ("nll", "rmse")}
            for row, name in (("mode", "mode"), ("mean", f"mean of {num_samples} draws"))
        },
        uncertainty={
            "epistemic sd": {
                k: p.epistemic_variance.mean().sqrt().item() for k, p in regions.items()
            },
            "noise sd": {k: p.aleatoric_variance.mean().sqrt().item() for k, p in regions.items()},
        },
        units={"nll": "nats", "rmse": "y", "epistemic sd": "y", "noise sd": "y"},
        weights=posterior.num_weights,
        bits_per_weight=posterior.summary().total().entropy_bits,
        settings={
            "epochs": epochs,
            "seed": seed,
            "num_samples": num_samples,
            "recipe": method.name,
            "settings": method.settings,
        },
        seconds={"posterior": trained - begin, "scores and picture": end - trained},
        picture=None if out is None else os.fspath(out),
    )


class LocalBumps(nn.Module):
    r"""Gaussian bumps on the line: (B, 1) -> (B, K), each row of norm sqrt(K).

    .. math:: \phi_k(x) \propto \exp(-(x - c_k)^2 / (2 \ell^2))

    with centres from -3.5 to 3.5 and length scale 0.33. With signs from the prior, a fan-in scaled
    linear layer on top has variance 1 at every x.
    """

    centres: Tensor

    def __init__(self, count: int, length_scale: float = 0.33) -> None:
        super().__init__()
        self.length_scale = length_scale
        self.register_buffer("centres", torch.linspace(-3.5, 3.5, count))

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-0.5 * ((x - self.centres) / self.length_scale) ** 2)
        return bumps * math.sqrt(len(self.centres)) / bumps.norm(dim=-1, keepdim=True)
