"""Scores of averaged predictions, by the kind of likelihood: one table for training and ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.diagnostics.scores import scores


def likelihood_scores(
    kind: str, log_likelihood: Any, average: Any, y: Any, mask: Any = None
) -> dict[str, float]:
    r"""NLL of the average of draws, in nats per datum, and the scores that the kind of likelihood knows.

    .. math:: \mathrm{nll} = -\frac1N \sum_n \log \frac1S \sum_s p(y_n | x_n, w_s)

    :param kind: of the likelihood's head: a key of :data:`SCORES`; of any other kind the NLL alone.
    :param log_likelihood: of each datum in each draw, (S, N), in nats, summed over the targets of a datum.
    :param average: what is predicted, averaged over draws. Of "classes" and "ordinal" logarithms of
        probabilities (N, ..., C), of "labels" probabilities (N, ...), of other kinds means (N, ...). None:
        nothing but the likelihood is known.
    :param y: targets (N, ...). :param mask: which of them count. Data without any are left out.
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
    if not bool(kept.any()):
        raise ValueError(
            "expected at least one target that counts; the mask leaves all of them out."
        )
    mean = log_likelihood.logsumexp(0) - math.log(len(log_likelihood))
    nll = -mean[kept.reshape(len(kept), -1).any(1)].mean().item()
    found: dict[str, float] = {}
    if average is not None and kind in SCORES:
        average = as_tensor("predictions", average).detach().double()
        axes = average.dim() - kept.dim()
        if axes not in (0, 1) or average.shape[: kept.dim()] != y.shape[: kept.dim()]:
            raise ValueError(
                f"expected a prediction for each target; got predictions of shape {tuple(average.shape)} for "
                f"targets of shape {tuple(y.shape)}."
            )
        found = SCORES[kind](average[kept], y[kept])
    first = {name: value for name, value in found.items() if name == "accuracy"}
    return first | {"nll": nll} | {k: v for k, v in found.items() if k not in ("accuracy", "nll")}


def _classes(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    return scores(log_probs, y)


def _labels(probs: Tensor, y: Tensor) -> dict[str, float]:
    return {"accuracy": ((probs > 0.5) == (y > 0.5)).double().mean().item()}


def _levels(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """The median level has the least expected absolute error."""
    median = (log_probs.exp().cumsum(-1) < 0.5).sum(-1)
    return {
        "accuracy": (log_probs.argmax(-1) == y).double().mean().item(),
        "mae": (median - y).double().abs().mean().item(),
    }


def _means(mean: Tensor, y: Tensor) -> dict[str, float]:
    if bool(mean.isnan().any()):  # a distribution without a mean says NaN
        return {}
    return {"rmse": (mean - y).square().mean().sqrt().item()}


# Kind of head -> the scores of averaged predictions (n, [C]) of n targets that count.
SCORES: Mapping[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "classes": _classes,
    "labels": _labels,
    "negative_binomial": _means,
    "normal": _means,
    "ordinal": _levels,
    "outputs": _means,
    "poisson": _means,
}
