"""Two demonstrations of one page each: train on generated data, return the numbers, draw the picture."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from bayesbin import data
from bayesbin.diagnostics import evaluate, scores
from bayesbin.estimators import Estimator, LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import Classifier, Regressor, mlp, to_binary_
from bayesbin.optim import BayesianLearningRule
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict import draw_log_probs, predict, predict_regression

WIDTH = 128  # of both hidden layers of the two-moons network
# Test data come from the law of the training data, with a seed that no training run uses.
TEST_SEED = 1_000_003
NUM_TEST = 2000


@dataclass(frozen=True)
class DemoResult:
    """What a demonstration measured; ``str`` gives one screen of it, ``to_dict`` goes into JSON.

    :param name: of the demonstration. :param scores: method -> score -> value, on fresh test data.
    :param uncertainty: quantity -> region -> its mean there.
    :param units: unit of each score and quantity.
    :param weights: number of binary weights. :param bits_per_weight: mean posterior entropy.
    :param settings: what it was trained with. :param seconds: stage -> wall-clock time.
    :param picture: the file drawn, if any.
    """

    name: str
    scores: dict[str, dict[str, float]]
    uncertainty: dict[str, dict[str, float]]
    units: dict[str, str]
    weights: int
    bits_per_weight: float
    settings: dict[str, Any]
    seconds: dict[str, float]
    picture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dictionaries of strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.weights:,} binary weights, "
            f"{self.bits_per_weight:.2f} bits of entropy per weight",
            "",
            *_table("test data", self.scores, self.units),
            "",
            *_table("mean of draws", self.uncertainty, {}, self.units),
            "",
            ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items()),
        ]
        return "\n".join(lines + ([f"picture: {self.picture}"] if self.picture else []))


def two_moons_demo(
    *,
    epochs: int = 1200,
    seed: int = 0,
    num_samples: int = 10,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> DemoResult:
    """Two moons with binary weights: a straight-through point estimate beside the posterior.

    Both train the same 2-128-128-2 network on 200 points, all in one batch. "data" in the result's
    uncertainty is the mean over test data, "far" that over a circle of radius 6 around them.

    :param epochs: steps, for each of the two. :param seed: of data, initial state and noise.
    :param num_samples: draws in the posterior mean.
    :param out: .png, .pdf or .svg file for the picture; None: no picture.
    :raises ValueError: for fewer than 1 epoch or draw. :raises OSError: if the picture cannot be written.

    Example::

        >>> from bayesbin.demos import two_moons_demo
        >>> two_moons_demo(epochs=2).weights
        16896
    """
    begin = time.perf_counter()
    train = data.two_moons(200, noise=0.1, seed=seed)
    test = data.two_moons(NUM_TEST, noise=0.1, seed=TEST_SEED + seed)

    def classifier(estimator: Estimator, **settings: Any) -> tuple[nn.Module, BinaryPosterior]:
        with _seeded(seed):
            net = to_binary_(mlp(2, [WIDTH, WIDTH], 2, normalize=False).float())
            model = Classifier(net, dataset_size=len(train))
            posterior = _train(
                model, train, estimator, epochs=epochs, seed=seed, progress=progress, **settings
            )
        return net, posterior

    # The latent weights of the straight-through estimator are clipped at 1, as its authors do.
    point, latent = classifier(
        StraightThrough(noise=False), lr=1.0, kl_weight=0.0, init_scale=0.1, bound=1.0
    )
    trained_point = time.perf_counter()
    net, posterior = classifier(LocalReparameterization(), **TWO_MOONS)
    trained = time.perf_counter()

    (log_probs,) = draw_log_probs(point, latent, test.x, num_samples=0)
    table = evaluate(net, posterior, test.x, test.y, num_samples=num_samples)
    inside = predict(net, posterior, test.x, num_samples=num_samples)
    outside = predict(net, posterior, _circle(radius=6.0), num_samples=num_samples)
    if out is not None:
        from bayesbin import plots  # matplotlib takes a second to import

        area = plots.grid((-3.5, -3.5), (3.5, 3.5))
        figure = plots.plot_two_moons(
            next(draw_log_probs(point, latent, area.points, 0)).exp()[:, 1],
            next(draw_log_probs(net, posterior, area.points, 0)).exp()[:, 1],
            predict(net, posterior, area.points, num_samples=num_samples),
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
            "straight-through": scores(log_probs, test.y),
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
        settings={"epochs": epochs, "seed": seed, "num_samples": num_samples, **TWO_MOONS},
        seconds={
            "straight-through": trained_point - begin,
            "posterior": trained - trained_point,
            "scores and picture": end - trained,
        },
        picture=None if out is None else os.fspath(out),
    )


def regression_demo(
    *,
    epochs: int = 2000,
    seed: int = 0,
    num_samples: int = 32,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
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

        >>> from bayesbin.demos import regression_demo
        >>> regression_demo(epochs=2).weights
        4160
    """
    begin = time.perf_counter()
    train = data.regression_1d(200, seed=seed)
    test = data.regression_1d(NUM_TEST, seed=TEST_SEED + seed)
    with _seeded(seed):
        layers = mlp(64, [64], 1, activation="tanh", normalize=False)
        net = to_binary_(nn.Sequential(LocalBumps(64), *layers).float())
        posterior = _train(
            Regressor(net, dataset_size=len(train)),
            train,
            LocalReparameterization(),
            epochs=epochs,
            seed=seed,
            progress=progress,
            **REGRESSION,
        )
    trained = time.perf_counter()

    places = {"data": test.x, "gap": torch.linspace(-0.25, 0.5, 101)[:, None]}
    regions = {
        name: predict_regression(net, posterior, x.float(), num_samples=num_samples)
        for name, x in places.items()
    }
    mean = regions["data"]
    mode = predict_regression(net, posterior, test.x, num_samples=0)
    if out is not None:
        from bayesbin import plots  # matplotlib takes a second to import

        line = torch.linspace(-3.0, 3.0, 601, dtype=torch.float32)
        axes = plots.plot_regression(
            line,
            predict_regression(net, posterior, line[:, None], num_samples=num_samples),
            data=(train.x, train.y),
            truth=torch.sin(2.0 * line) + line / 4.0,
            mode=predict_regression(net, posterior, line[:, None], num_samples=0).mean,
        )
        plots.save_figure(plots.figure_of(axes), out)
    end = time.perf_counter()
    return DemoResult(
        name="regression",
        scores={
            "mode": _regression_scores(mode.mean, mode.std, test.y),
            f"mean of {num_samples} draws": _regression_scores(mean.mean, mean.std, test.y),
        },
        uncertainty={
            "epistemic sd": {k: p.epistemic.mean().sqrt().item() for k, p in regions.items()},
            "noise sd": {k: p.aleatoric.mean().sqrt().item() for k, p in regions.items()},
        },
        units={"nll": "nats", "rmse": "y", "epistemic sd": "y", "noise sd": "y"},
        weights=posterior.num_weights,
        bits_per_weight=posterior.summary().total().entropy_bits,
        settings={"epochs": epochs, "seed": seed, "num_samples": num_samples, **REGRESSION},
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


# Chosen by the likelihood of validation data drawn with other seeds. The learning rate is that of the
# rule, times the data-set size.
TWO_MOONS = {"lr": 10.0, "kl_weight": 0.03, "init_scale": 1.0}
REGRESSION = {"lr": 5.0, "kl_weight": 0.005, "init_scale": 0.2}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initial states from ``seed``, one thread; the caller's generator and threads are left as they were.

    Layers this small gain nothing from a second thread, and on a busy machine wait for it at each step.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _train(
    model: Classifier | Regressor,
    dataset: data.Dataset,
    estimator: Estimator,
    *,
    epochs: int,
    seed: int,
    progress: bool,
    lr: float,
    kl_weight: float,
    init_scale: float,
    bound: float | str | None = "auto",
) -> BinaryPosterior:
    """Full-batch training: natural gradients for the signs, Adam for everything real, cosine decay.

    :param lr: of the rule, times the data-set size.
    """
    size = len(dataset)
    guide = AutoSignBernoulli(model, init_scale=init_scale).float()
    real = [*model.parameters(), *guide.real_parameters()]
    optimizers = [
        BayesianLearningRule(guide.natural_parameters(), lr=lr / size, momentum=0.9, bound=bound),
        Adam(real, lr=1e-2),
    ]
    fit(
        model,
        guide,
        data.Batches(dataset, batch_size=size, shuffle=False),
        estimator=estimator,
        epochs=epochs,
        kl_weight=kl_weight,
        optimizers=optimizers,
        schedulers=[CosineAnnealingLR(optimizer, epochs) for optimizer in optimizers],
        seed=seed,
        progress=progress,
    )
    return guide.posterior()


def _circle(radius: float, num_points: int = 64) -> Tensor:
    angle = 2.0 * math.pi * torch.arange(num_points, dtype=torch.float32) / num_points
    return radius * torch.stack([angle.cos(), angle.sin()], dim=-1)


def _regression_scores(mean: Tensor, std: Tensor, y: Tensor) -> dict[str, float]:
    law = torch.distributions.Normal(mean, std)
    return {
        "nll": -law.log_prob(y).mean().item(),
        "rmse": (mean - y).square().mean().sqrt().item(),
    }


def _table(
    corner: str,
    rows: dict[str, dict[str, float]],
    column_units: dict[str, str],
    row_units: dict[str, str] | None = None,
) -> Iterable[str]:
    columns = list(next(iter(rows.values())))
    heads = [f"{name} ({column_units[name]})" if name in column_units else name for name in columns]
    names = [
        f"{name} ({row_units[name]})" if row_units and name in row_units else name for name in rows
    ]
    width = max(map(len, [corner, *names]))
    yield "  ".join([f"{corner:<{width}}", *(f"{head:>17}" for head in heads)])
    for name, row in zip(names, rows.values(), strict=True):
        yield "  ".join([f"{name:<{width}}", *(f"{row[column]:>17.4f}" for column in columns)])
