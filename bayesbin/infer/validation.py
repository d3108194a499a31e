"""Validation scores of a guide during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import is_number
from bayesbin.diagnostics import scores
from bayesbin.estimators import StraightThrough
from bayesbin.infer.batches import arguments
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.nn import Classifier, Regressor, recalibrate
from bayesbin.predict import predict, predict_regression

NUM_SAMPLES = 8
CALIBRATION_DATA = 2000


def validation_metrics(
    model: Any,
    guide: Any,
    data: Iterable[Any],
    calibration: Iterable[Any],
    dataset_size: int,
    seed: int = 0,
) -> dict[str, float]:
    """Scores per datum on held-out data with the mean of 8 draws of the current posterior.

    A ``Classifier`` gives accuracy, nll and ece; a ``Regressor`` nll and rmse, in the units of its
    targets; any other model the expected negative log-likelihood at hard draws, as nll, all in nats.

    :param data: held-out batches, as for training.
    :param calibration: training batches, from whose first 2000 inputs normalisation statistics of each
        draw are computed where the network has normalisation layers.
    :param dataset_size: N, to which the plate of a model scales the likelihood of a batch.
    """
    device = next(guide.parameters()).device
    if not isinstance(model, (Classifier, Regressor)):
        return {"nll": _expected_nll(model, guide, data, seed, device) / dataset_size}
    posterior, net = guide.posterior(), model.net
    statistics = None
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        statistics = recalibrate(net, posterior, _first(calibration).to(device), NUM_SAMPLES, seed)
    pairs = [(x, y) for x, y in data]
    x, y = (
        torch.cat([as_tensor("validation data", part) for part in parts]).to(device)
        for parts in zip(*pairs, strict=True)
    )
    if isinstance(model, Classifier):
        prediction = predict(net, posterior, x, NUM_SAMPLES, seed, statistics)
        return scores(prediction.log_probs, y)
    noise = model.noise if is_number(model.noise) else "noise"
    result = predict_regression(net, posterior, x, noise, NUM_SAMPLES, seed, statistics)
    distribution = torch.distributions.Normal(result.mean, result.std)
    rmse = (result.mean - y).square().mean().sqrt()
    return {"nll": -distribution.log_prob(y).mean().item(), "rmse": rmse.item()}


def _first(batches: Iterable[Any]) -> Tensor:
    """The first few thousand inputs of an iterable of batches."""
    inputs: list[Tensor] = []
    for x, *_ in batches:
        inputs.append(as_tensor("training data", x))
        if sum(map(len, inputs)) >= CALIBRATION_DATA:
            break
    return torch.cat(inputs)[:CALIBRATION_DATA]


def _expected_nll(
    model: Any, guide: Any, data: Iterable[Any], seed: int, device: torch.device
) -> float:
    """In nats over N data: each batch is scaled to N by the model's own plate, so batches average."""
    elbo = TraceBinary_ELBO(
        StraightThrough(), num_particles=NUM_SAMPLES
    )  # hard draws: any would do
    total, count = 0.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in data:
            args, kwargs = arguments(batch, device)
            size = len(next(iter([*args, *kwargs.values()])))
            terms = elbo.hard_terms(model, guide, *args, **kwargs)
            total += terms.negative_log_likelihood.item() * size
            count += size
    return total / count
