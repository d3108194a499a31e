"""Validation scores of a guide during training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayesbin.core import networks
from bayesbin.core.arrays import as_tensor, network_arguments
from bayesbin.core.checks import shown
from bayesbin.core.copies import copy_network
from bayesbin.core.wrappers import unwrapped
from bayesbin.diagnostics import likelihood_scores
from bayesbin.diagnostics.by_likelihood import LOGARITHMS, predicted
from bayesbin.estimators import StraightThrough
from bayesbin.infer.batches import arguments, rows_of
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.nn import Likelihood
from bayesbin.nn.batch_statistics import batch_statistics, normalisations
from bayesbin.posterior import Posterior

NUM_SAMPLES = 8
CALIBRATION_DATA, CALIBRATION_ROWS = 2000, 1000


def validation_metrics(
    model: Any,
    guide: Any,
    data: Iterable[Any],
    calibration: Iterable[Any],
    dataset_size: int,
    seed: int = 0,
) -> dict[str, float]:
    """Scores on held-out data with the mean of 8 draws of the current posterior.

    A model with a likelihood gives nll, in nats per datum, and what :func:`likelihood_scores` knows of its
    kind: accuracy and ece of classes, accuracy of labels, accuracy and mae of ordered levels, and rmse of
    numbers and counts, in the units of the targets. Masks apply, and scores are weighted averages
    where batches have weights. Any other model gives the expected negative log-likelihood at hard draws, as
    nll.

    :param data: held-out batches, as for training.
    :param calibration: training batches, from whose first 2000 inputs normalisation statistics of each
        draw are computed where the network has normalisation layers.
    :param dataset_size: N, to which the plate of a model scales the likelihood of a batch.
    """
    device = next(guide.parameters()).device
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    if not isinstance(model, Likelihood):
        return {"nll": _expected_nll(model, guide, data, seed, device) / dataset_size}
    posterior, batches = guide.posterior(), [_Batch.of(batch, device) for batch in data]
    if not batches:
        raise ValueError("expected at least one batch of validation data; got none.")
    kind = model.prediction_head["kind"]
    found = [_Averages(kind) for _ in batches]
    drawn = _networks(model.net, posterior, batches, calibration, seed, device)
    for draw, network in enumerate(drawn):
        latents = {
            name: posterior.sample_real(name, draw, seed=seed).detach().double()
            for name in model.latents()
        }
        for batch, averages in zip(batches, found, strict=True):
            averages.add(model, network, latents, batch)
    return _scores(kind, found, any(batch.weight is not None for batch in batches))


def _scores(kind: str, found: list[_Averages], weighted: bool) -> dict[str, float]:
    """The scores of all batches together."""
    log_likelihood = torch.cat([torch.stack(each.log_likelihood) for each in found], 1)
    averages = [each.average() for each in found]
    known = [each for each in averages if each is not None]
    return likelihood_scores(
        kind,
        log_likelihood,
        torch.cat(known) if len(known) == len(found) else None,
        torch.cat([each.value for each in found]),
        torch.cat([each.kept for each in found]),
        torch.cat([each.weight.cpu() for each in found]) if weighted else None,
    )


@dataclass(frozen=True)
class _Batch:
    """A batch by the names of a likelihood's arguments."""

    x: Any
    y: Any
    weight: Any = None
    mask: Any = None

    @classmethod
    def of(cls, batch: Any, device: torch.device) -> _Batch:
        args, kwargs = arguments(batch, device)
        try:
            return cls(*args, **kwargs)
        except TypeError:
            raise ValueError(
                "expected batches (x, y), (x, y, weight) or (x, y, weight, mask), or dicts with "
                f"these names; got {len(args)} parts{' and ' if kwargs else ''}{', '.join(kwargs)}."
            ) from None


class _Averages:
    """Of one batch: the log-likelihood of each draw, and the average of what is predicted."""

    def __init__(self, kind: str) -> None:
        self.kind, self.log_likelihood = kind, []
        self.total: Tensor | None = None
        self.known = True
        self.value: Any = None
        self.kept: Any = None
        self.weight: Any = None

    def add(
        self, model: Likelihood, net: nn.Module, latents: Mapping[str, Tensor], batch: _Batch
    ) -> None:
        x = network_arguments(net, batch.x)
        with torch.no_grad():
            outputs = tree_map(_in_float64, net(*x))
            observed = model.observed(outputs, batch.y, batch.mask, **latents)
            self.log_likelihood.append(
                model.log_prob(outputs, batch.y, batch.mask, **latents).detach()
            )
            self._add(predicted(self.kind, observed.distribution))
        if self.value is None:
            rows = len(x[0])
            self.value, self.kept = observed.value, observed.counted()
            self.weight = (
                torch.ones(rows) if batch.weight is None else as_tensor("weights", batch.weight)
            )

    def _add(self, predicted: Tensor | None) -> None:
        if predicted is None:
            self.known = False
        elif self.total is None:
            self.total = predicted
        elif self.kind in LOGARITHMS:
            self.total = torch.logaddexp(self.total, predicted)
        else:
            self.total = self.total + predicted

    def average(self) -> Tensor | None:
        """The average over draws; None where the distribution has nothing to average."""
        if self.total is None or not self.known:
            return None
        count = len(self.log_likelihood)
        return self.total - math.log(count) if self.kind in LOGARITHMS else self.total / count


def _in_float64(values: Any) -> Any:
    return values.double() if isinstance(values, Tensor) and values.is_floating_point() else values


def _networks(
    net: nn.Module,
    posterior: Posterior[Any],
    held_out: list[_Batch],
    calibration: Iterable[Any],
    seed: int,
    device: torch.device,
) -> Iterator[nn.Module]:
    """The network of each draw, normalised by the draw's own statistics."""
    worker = copy_network(net).eval()
    by_batch = normalisations(worker, network_arguments(worker, held_out[0].x))
    known = _first(worker, calibration, device) if by_batch else []
    for draw in range(NUM_SAMPLES):
        signs = posterior.signs(draw, seed=seed)
        networks.write_(worker, signs)
        if by_batch:
            networks.write_(worker, {}, batch_statistics(worker, known))
        yield worker


def _first(
    net: nn.Module, batches: Iterable[Any], device: torch.device
) -> list[tuple[Tensor, ...]]:
    """The first few thousand inputs of an iterable of batches, in parts of equal size."""
    rows: list[tuple[Tensor, ...]] = []
    for batch in batches:
        rows.append(network_arguments(net, _Batch.of(batch, device).x))
        if sum(len(x[0]) for x in rows) >= CALIBRATION_DATA:
            break
    columns = [torch.cat(column)[:CALIBRATION_DATA] for column in zip(*rows, strict=True)]
    parts = math.ceil(len(columns[0]) / CALIBRATION_ROWS)
    return list(zip(*(column.tensor_split(parts) for column in columns), strict=True))


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
            size = rows_of(batch)
            if size is None:
                raise ValueError(f"expected a batch of arrays (B, ...); got {shown(batch)}.")
            terms = elbo.hard_terms(model, guide, *args, **kwargs)
            total += terms.negative_log_likelihood.item() * size
            count += size
    return total / count
