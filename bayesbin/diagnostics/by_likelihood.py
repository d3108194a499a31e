"""Scores of averaged predictions, by the kind of likelihood: one table for training and ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.diagnostics.calibration import NUM_BINS, top_label
from bayesbin.diagnostics.regression import regression_uncertainty
from bayesbin.diagnostics.scores import brier, scores

LOGARITHMS = ("classes", "ordinal")  # kinds of which log-probabilities are averaged
COVERAGE = 0.95


def likelihood_scores(
    kind: str,
    log_likelihood: Any,
    average: Any,
    y: Any,
    mask: Any = None,
    weight: Any = None,
) -> dict[str, float]:
    r"""NLL of the average of draws, in nats per datum, and the scores that the kind of likelihood knows.

    .. math:: \mathrm{nll} = -\frac{\sum_n c_n \log \frac1S \sum_s p(y_n | x_n, w_s)}{\sum_n c_n}

    :param kind: of the likelihood's head: a key of :data:`SCORES`; of any other kind the NLL alone.
    :param log_likelihood: of each datum in each draw, (S, N), in nats, summed over the targets of a datum.
    :param average: what is predicted, averaged over draws. Of "classes" and "ordinal" logarithms of
        probabilities (N, ..., C), of "labels" probabilities (N, ...), of other kinds means (N, ...). None:
        nothing but the likelihood is known.
    :param y: targets (N, ...). :param mask: which of them count. Data without any are left out.
    :param weight: c, a weight of each datum, (N,), at least 0: all scores are weighted averages. Data of
        weight 0 are left out. None: 1.
    :returns: "nll"; "accuracy" and "ece" of classes; "accuracy" of labels, over all of them; "accuracy" and
        "mae" (of the median level) of ordered levels; "rmse" of other kinds.
    :raises ValueError: for shapes that do not fit, or if no target counts.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import likelihood_scores
        >>> y = torch.tensor([0.0, 2.0])
        >>> likelihood_scores("normal", torch.zeros(3, 2), torch.zeros(2), y)["rmse"] ** 2
        2.0000000000000004

    Source: Gneiting and Raftery 2007, JASA 102.
    """
    log_likelihood, y, kept, by_datum = _checked(log_likelihood, y, mask, weight)
    mean = log_likelihood.logsumexp(0) - math.log(len(log_likelihood))
    rows = kept.reshape(len(kept), -1).any(1)
    nll = -_mean(mean[rows], None if by_datum is None else by_datum[rows])
    found: dict[str, float] = {}
    if average is not None and kind in SCORES:
        average = _of_targets(average, y, kept)
        found = SCORES[kind](average[kept], y[kept], _by_target(by_datum, kept))
    first = {name: value for name, value in found.items() if name == "accuracy"}
    return first | {"nll": nll} | {k: v for k, v in found.items() if k not in ("accuracy", "nll")}


def draw_scores(
    kind: str,
    log_likelihood: Any,
    draws: Any,
    variances: Any,
    y: Any,
    mask: Any = None,
    weight: Any = None,
) -> dict[str, float]:
    """Scores of the average of some draws: :func:`likelihood_scores`, and those that need the draws.

    :param draws: what each draw predicts, (S, N, ...), as ``average`` there; None: nothing.
    :param variances: those of the targets in each draw, (S, N, ...); None: not known.
    :returns: further "brier" of classes, and of kind "normal" "crps", and "coverage" and "sharpness", the
        mean width, of central intervals of 95 %.
    """
    if draws is None:
        return likelihood_scores(kind, log_likelihood, None, y, mask, weight)
    draws = as_tensor("draws", draws).detach().double()
    average = draws.mean(0)
    if kind in LOGARITHMS:
        average = draws.logsumexp(0) - math.log(len(draws))
    found = likelihood_scores(kind, log_likelihood, average, y, mask, weight)
    _, y, kept, by_datum = _checked(log_likelihood, y, mask, weight)
    weights = _by_target(by_datum, kept)
    if kind == "classes":
        found["brier"] = _brier(average[kept], y[kept], weights)
    elif kind == "normal" and variances is not None:
        spread = as_tensor("variances", variances).detach().double()
        found |= _intervals(draws[:, kept], spread[:, kept], y[kept], weights)
    return found


def predicted(kind: str, distribution: Any) -> Tensor | None:
    """What of a distribution of targets is averaged over draws and scored, in one draw.

    Log-probabilities of classes and ordered levels, probabilities of labels, means of others; None where the
    distribution has none.
    """
    if kind in LOGARITHMS:
        return distribution.logits
    return moment(distribution, "mean")


def moment(distribution: Any, name: str) -> Tensor | None:
    """The "mean" or "variance" of a distribution; None where it has none, or all of it is NaN."""
    try:
        found = getattr(distribution, name)
    except (NotImplementedError, AttributeError):
        return None
    return None if found is None or bool(found.isnan().all()) else found


def _checked(
    log_likelihood: Any, y: Any, mask: Any, weight: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log-likelihoods in float64, targets, which of them count, and the weights of data."""
    log_likelihood = as_tensor("log-likelihoods", log_likelihood).detach().double()
    y = as_tensor("targets", y)
    if (
        log_likelihood.dim() != 2
        or not len(log_likelihood)
        or log_likelihood.shape[1:] != y.shape[:1]
    ):
        raise ValueError(
            f"expected log-likelihoods (S, N) of N targets, at least one draw; got "
            f"{tuple(log_likelihood.shape)} and targets of shape {tuple(y.shape)}."
        )
    kept = (
        torch.ones(y.shape, dtype=torch.bool) if mask is None else as_tensor("a mask", mask).bool()
    )
    kept = kept.to(y.device)
    if weight is not None:
        weight = as_tensor("weights", weight).detach().to(y.device).double()
        if weight.shape != y.shape[:1] or not bool((weight.isfinite() & (weight >= 0)).all()):
            raise ValueError(
                f"expected a finite weight of at least 0 for each of {len(y)} data; got weights of shape "
                f"{tuple(weight.shape)}{'' if weight.shape != y.shape[:1] else ' with others'}."
            )
        kept = kept & (weight > 0).reshape(-1, *[1] * (kept.dim() - 1))
    if not bool(kept.any()):
        raise ValueError(
            "expected at least one target that counts; the mask or the weights leave all of them out."
        )
    return log_likelihood, y, kept, weight


def _of_targets(average: Any, y: Tensor, kept: Tensor) -> Tensor:
    average = as_tensor("predictions", average).detach().double()
    axes = average.dim() - kept.dim()
    if axes not in (0, 1) or average.shape[: kept.dim()] != y.shape[: kept.dim()]:
        raise ValueError(
            f"expected a prediction for each target; got predictions of shape {tuple(average.shape)} for "
            f"targets of shape {tuple(y.shape)}."
        )
    return average


def _by_target(weight: Tensor | None, kept: Tensor) -> Tensor | None:
    """The weight of each target that counts; None: 1."""
    if weight is None:
        return None
    return weight.reshape(-1, *[1] * (kept.dim() - 1)).expand(kept.shape)[kept]


def _mean(values: Tensor, weight: Tensor | None) -> float:
    values = values.double()
    return (values.mean() if weight is None else (values * weight).sum() / weight.sum()).item()


# Scores of averaged predictions (n, [C]) of n targets that count, and their weights or None


def _classes(log_probs: Tensor, y: Tensor, weight: Tensor | None) -> dict[str, float]:
    if weight is None:
        return scores(log_probs, y)
    confidence, correct = top_label(log_probs, y)
    return {"accuracy": _mean(correct, weight), "ece": _weighted_ece(confidence, correct, weight)}


def _weighted_ece(
    confidence: Tensor, correct: Tensor, weight: Tensor, num_bins: int = NUM_BINS
) -> float:
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=bins.device)
    gaps = gaps.index_add(0, bins, weight * (correct.double() - confidence))
    return (gaps.abs().sum() / weight.sum()).item()


def _brier(log_probs: Tensor, y: Tensor, weight: Tensor | None) -> float:
    if weight is None:
        return brier(log_probs, y)
    probs = log_probs.exp()
    hit = torch.nn.functional.one_hot(y.long(), probs.shape[-1])
    return _mean((probs - hit).square().sum(-1), weight)


def _labels(probs: Tensor, y: Tensor, weight: Tensor | None) -> dict[str, float]:
    return {"accuracy": _mean((probs > 0.5) == (y > 0.5), weight)}


def _levels(log_probs: Tensor, y: Tensor, weight: Tensor | None) -> dict[str, float]:
    """The median level has the least expected absolute error."""
    median = (log_probs.exp().cumsum(-1) < 0.5).sum(-1)
    return {
        "accuracy": _mean(log_probs.argmax(-1) == y, weight),
        "mae": _mean((median - y).abs(), weight),
    }


def _means(mean: Tensor, y: Tensor, weight: Tensor | None) -> dict[str, float]:
    if bool(mean.isnan().any()):  # a distribution without a mean says NaN
        return {}
    return {"rmse": math.sqrt(_mean((mean - y).square(), weight))}


def _intervals(
    means: Tensor, variances: Tensor, y: Tensor, weight: Tensor | None
) -> dict[str, float]:
    found = regression_uncertainty(means, variances)
    low, high = found.interval(COVERAGE)
    y = y.double()
    return {
        "crps": _mean(found.crps(y), weight),
        "coverage": _mean((low <= y) & (y <= high), weight),
        "sharpness": _mean(high - low, weight),
    }


# Kind of head -> the scores of averaged predictions.
SCORES: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], dict[str, float]]] = {
    "classes": _classes,
    "labels": _labels,
    "negative_binomial": _means,
    "normal": _means,
    "ordinal": _levels,
    "outputs": _means,
    "poisson": _means,
}
