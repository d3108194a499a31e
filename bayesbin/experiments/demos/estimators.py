"""Gradient estimators side by side on logistic regression with binary weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.estimators import Estimator
from bayesbin.estimators import names as estimator_names
from bayesbin.estimators.named import estimator_settings, named_estimator
from bayesbin.experiments.demos.full_batch import seeded
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer.checks import EstimatorReport, estimator_report
from bayesbin.nn import BinaryLinear, Classifier

NUM_DATA = 200
_AFFORDABLE = {"enumerate": 12, "local-expectation": 2000}  # weights with which these are compared


@dataclass(frozen=True)
class EstimatorComparison:
    """Reports of several estimators, each with several numbers of draws, at several scales of lambda.

    :param reports: scale of lambda -> its report. :param picture: the file drawn, if any.
    """

    reports: dict[float, EstimatorReport]
    picture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dictionaries of strings and numbers."""
        reports = {f"{scale:g}": report.to_dict() for scale, report in self.reports.items()}
        return {"reports": reports, "picture": self.picture}

    def __str__(self) -> str:
        parts = [f"{_title(scale)}\n{report}" for scale, report in self.reports.items()]
        parts.append("var x fwd: of two unbiased estimators, the one with less is the better one.")
        return "\n\n".join(parts + ([f"picture: {self.picture}"] if self.picture else []))


def logistic_model(num_weights: int, seed: int = 0) -> tuple[Classifier, tuple[Tensor, Tensor]]:
    """Logistic regression with D binary weights on 200 data, and those data in one batch.

    Inputs are standard normal; labels follow the logits x w / sqrt(D) * 3 at random signs w, so that
    the data say something about the weights whatever their number.

    >>> model, (x, y) = logistic_model(10)
    >>> x.shape, y.shape
    (torch.Size([200, 10]), torch.Size([200]))
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(NUM_DATA, num_weights, generator=generator)
    signs = torch.sign(torch.randn(num_weights, generator=generator))
    scale = 3.0 / math.sqrt(num_weights)
    uniform = torch.rand(NUM_DATA, generator=generator)
    y = (uniform < torch.sigmoid(scale * (x @ signs))).long()
    layer = BinaryLinear(num_weights, 1, bias=False, scale=scale)
    return Classifier(nn.Sequential(layer, _TwoClasses()), dataset_size=NUM_DATA), (x, y)


class _TwoClasses(nn.Module):
    """The logit of class 1 beside a 0 for class 0: (B, 1) -> (B, 2)."""

    def forward(self, logit: Tensor) -> Tensor:
        return nn.functional.pad(logit, (1, 0))


def compare_estimators(
    names: Sequence[str] | None = None,
    *,
    num_weights: int = 100,
    num_samples: Sequence[int] = (2, 8),
    lambda_scales: Sequence[float] = (0.0, 0.5, 2.0),
    num_replicates: int = 100,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
) -> EstimatorComparison:
    """Bias, variance and cost of gradient estimators on :func:`logistic_model`.

    :param names: of ``bayesbin.estimators.names()``, registered ones included; None: all that are affordable
        at this number of weights. :param num_weights: D.
    :param num_samples: draws per gradient; an estimator is left out where it cannot have that many
        (pairs at odd numbers, leave-one-out at one).
    :param lambda_scales: standard deviations of the natural parameters, one report each.
    :param num_replicates: gradients of each, at least 20. :param out: picture to draw.
    :raises ValueError: for unknown names, numbers out of range, or names of which none can have any of
        the numbers of draws.

    Example::

        >>> comparison = compare_estimators(["disarm"], num_weights=3, num_samples=[2],
        ...                                 lambda_scales=[0.0], num_replicates=20)
        >>> comparison.reports[0.0].rows[0].evaluations
        2.0
    """
    if num_weights < 1 or not lambda_scales or not all(0 <= s < math.inf for s in lambda_scales):
        came = f"{num_weights} weights and lambda scales {list(lambda_scales)}"
        raise ValueError(f"expected at least one weight and scales of at least 0; got {came}.")
    if names is None:
        names = [
            name for name in estimator_names() if num_weights <= _AFFORDABLE.get(name, num_weights)
        ]
    estimators = _instances(names, num_samples)
    reports = {}
    with seeded(seed):
        model, batch = logistic_model(num_weights, seed)
        for scale in lambda_scales:
            guide = AutoSignBernoulli(model, init_scale=scale)
            reports[float(scale)] = estimator_report(
                model,
                guide,
                batch,
                {f"{name} {count}".strip(): e for (name, count), e in estimators.items()},
                num_replicates,
                seed=seed,
            )
    if out is not None:
        _draw(reports, estimators, out)
    return EstimatorComparison(reports, None if out is None else os.fspath(out))


def _instances(
    names: Sequence[str], num_samples: Sequence[int]
) -> dict[tuple[str, str], Estimator]:
    """(name, number of draws) -> estimator, in the order asked for."""
    found: dict[tuple[str, str], Estimator] = {}
    refusals = []
    for name in names:
        if estimator_settings(name)["num_samples"] is None:
            found[name, ""] = named_estimator(name)
            continue
        for count in num_samples:
            try:
                found[name, str(count)] = named_estimator(name, count)
            except ValueError as error:
                refusals.append(str(error))
    if not found:
        raise ValueError(refusals[0] if refusals else "expected at least one estimator; got none.")
    return found


def _draw(
    reports: Mapping[float, EstimatorReport],
    estimators: Mapping[tuple[str, str], Estimator],
    out: str | os.PathLike[str],
) -> None:
    from bayesbin import plots  # matplotlib takes a second to import

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for scale, report in reports.items():
        panel = panels.setdefault(_title(scale), {})
        for (name, _), row in zip(estimators, report.rows, strict=True):
            panel.setdefault(name, []).append((row.computation, row.total_variance))
    biased = sorted({name for (name, _), e in estimators.items() if not e.unbiased})
    plots.save_figure(plots.plot_estimators(panels, biased=biased), out)


def _title(scale: float) -> str:
    return "lambda = 0" if scale == 0 else f"lambda ~ N(0, {scale:g}²)"
