"""Validation scores of a guide during training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.arrays import network_batches
from bayesbin.core.checks import is_number
from bayesbin.core.copies import copy_network
from bayesbin.diagnostics import regression_scores, scores
from bayesbin.estimators import StraightThrough
from bayesbin.infer.batches import arguments
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.nn import Classifier, Regressor
from bayesbin.nn.batch_statistics import batch_statistics, normalisations
from bayesbin.posterior import Posterior

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
    posterior, pairs = guide.posterior(), [(x, y) for x, y in data]
    y = torch.cat([torch.as_tensor(part) for _, part in pairs]).to(device)
    outputs = torch.stack(list(_outputs(model.net, posterior, pairs, calibration, seed)))
    if isinstance(model, Classifier):
        log_probs = outputs.double().log_softmax(-1)
        return scores(log_probs.logsumexp(0) - math.log(NUM_SAMPLES), y)
    stds = [
        torch.as_tensor(
            model.noise if is_number(model.noise) else posterior.sample_real("noise", k, seed=seed)
        )
        for k in range(NUM_SAMPLES)
    ]
    variances = torch.stack([std.detach().double().square() for std in stds])[:, None]
    found = regression_scores(outputs.reshape(NUM_SAMPLES, len(y)), variances, y)
    return {"nll": found["nll"], "rmse": found["rmse"]}


def _outputs(
    net: nn.Module,
    posterior: Posterior[Any],
    pairs: list[tuple[Any, Any]],
    calibration: Iterable[Any],
    seed: int,
) -> Iterator[Tensor]:
    """The outputs of each draw for all held-out inputs, normalised by the draw's own statistics."""
    worker = copy_network(net).eval()
    batches = network_batches(worker, pairs)
    by_batch = normalisations(worker, (batches[0],))
    known = [(x,) for x in _first(worker, calibration)] if by_batch else []
    for draw in range(NUM_SAMPLES):
        signs = posterior.signs(draw, seed=seed)
        networks.write_(worker, signs)
        if by_batch:
            networks.write_(worker, {}, batch_statistics(worker, known))
        with torch.no_grad():
            yield torch.cat([worker(x) for x in batches])


def _first(net: nn.Module, batches: Iterable[Any]) -> list[Tensor]:
    """The first few thousand inputs of an iterable of batches, in parts of equal size."""
    inputs: list[Tensor] = []
    for batch in batches:
        inputs += network_batches(net, [batch])
        if sum(map(len, inputs)) >= CALIBRATION_DATA:
            break
    return network_batches(net, torch.cat(inputs)[:CALIBRATION_DATA])


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
