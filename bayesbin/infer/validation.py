"""Validation scores of a guide during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.diagnostics import scores
from bayesbin.estimators import StraightThrough
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.nn import Classifier, Regressor, recalibrate
from bayesbin.predict import predict, predict_regression

NUM_SAMPLES = 8
CALIBRATION_DATA = 2000


def validation_metrics(
    model: Any, guide: Any, data: Iterable[Any], calibration: Iterable[Any], seed: int = 0
) -> dict[str, float]:
    """Scores per datum on held-out data with the mean of 8 draws of the current posterior.

    A ``Classifier`` gives accuracy, nll and ece; a ``Regressor`` nll and rmse, in the units of its
    targets; any other model the expected negative log-likelihood at hard draws, as nll.

    :param data: held-out batches, as for training.
    :param calibration: training batches, from whose first 2000 inputs normalisation statistics of each
        draw are computed where the network has normalisation layers.
    """
    if not isinstance(model, (Classifier, Regressor)):
        return {"nll": _expected_nll(model, guide, data, seed)}
    posterior, net = guide.posterior(), model.net
    statistics = None
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        statistics = recalibrate(net, posterior, _first(calibration), NUM_SAMPLES, seed)
    pairs = [(x, y) for x, y in data]
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if isinstance(model, Classifier):
        prediction = predict(net, posterior, x, NUM_SAMPLES, seed, statistics)
        return scores(prediction.log_probs, y)
    noise = model.noise if isinstance(model.noise, float) else "noise"
    result = predict_regression(net, posterior, x, noise, NUM_SAMPLES, seed, statistics)
    law = torch.distributions.Normal(result.mean, result.std)
    rmse = (result.mean - y).square().mean().sqrt()
    return {"nll": -law.log_prob(y).mean().item(), "rmse": rmse.item()}


def _first(batches: Iterable[Any]) -> Tensor:
    """The first few thousand inputs of an iterable of batches."""
    inputs: list[Tensor] = []
    for x, *_ in batches:
        inputs.append(x)
        if sum(map(len, inputs)) >= CALIBRATION_DATA:
            break
    return torch.cat(inputs)[:CALIBRATION_DATA]


def _expected_nll(model: Any, guide: Any, data: Iterable[Any], seed: int) -> float:
    # Hard draws, so any estimator will do; the likelihood of a batch is scaled to the data set by the
    # model's own plate, so the batches' values average to that of the whole.
    elbo = TraceBinary_ELBO(StraightThrough(), num_particles=NUM_SAMPLES)
    total, count = 0.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in data:
            terms = elbo.hard_terms(model, guide, *batch)
            total += terms.negative_log_likelihood.item() * len(batch[0])
            count += len(batch[0])
    return total / count
