"""What a run is worth on its test data: every number of the report, and what its pictures need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin import data
from bayesbin.core.checks import whole_number
from bayesbin.diagnostics import (
    Estimate,
    TemperatureScaling,
    Uncertainty,
    bootstrap,
    classification_scores,
    ood_scores,
    reliability,
    risk_coverage,
    top_label,
    uncertainty,
)
from bayesbin.experiments.report.other_inputs import OtherInputs
from bayesbin.experiments.runs import Run
from bayesbin.posterior.summary import Summary

QUANTITIES = {"entropy": "entropy (nats)", "mutual_information": "mutual information (nats)"}
SPLIT = (
    "entropy", "expected_entropy", "mutual_information", "mutual_information_jackknife",
    "disagreement",
)  # fmt: skip
_INTERVAL = 0.95
_ROUNDING = 1e-12  # nats: what draws that all agree disagree about
_COVERAGES = (0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class OtherFindings:
    """How inputs of another kind differ in uncertainty from the test inputs.

    :param scores: quantity -> score of :func:`bayesbin.diagnostics.ood_scores` -> its interval.
    """

    name: str
    uncertainty: Uncertainty
    scores: dict[str, dict[str, Estimate]]


@dataclass(frozen=True, eq=False)
class Findings:
    """Predictions of a run on its N test data, and their scores.

    :param log_probs: method -> (N, C); the methods are "mode", "mean", and each of them "... scaled" by
        the temperature fitted on the validation data.
    :param scores: method, and "draws" -> score -> its value. low and high: 95 % over resampled test
        data, of "draws" over the single draws. :param mean_minus_mode: over the same
        resamples.
    :param temperatures: "mode", "mean" -> what fits the validation data best.
    :param summary: of the posterior, site by site.
    """

    run: Run
    y: Tensor
    num_samples: int
    seed: int
    num_bootstrap: int
    log_probs: dict[str, Tensor]
    scores: dict[str, dict[str, Estimate]]
    mean_minus_mode: dict[str, Estimate]
    temperatures: dict[str, float]
    uncertainty: Uncertainty
    summary: Summary
    other: OtherFindings | None

    @property
    def right(self) -> Tensor:
        """Whether the mean of draws is right, (N,)."""
        return self.log_probs["mean"].argmax(-1) == self.y

    def split(self) -> dict[str, dict[str, float]]:
        """Mean uncertainties over all test data, those answered right or wrong, and the others."""
        groups = {"all": torch.ones_like(self.right), "right": self.right, "wrong": ~self.right}
        found = {name: _means(self.uncertainty, chosen) for name, chosen in groups.items()}
        if self.other is not None:
            every = torch.ones_like(self.other.uncertainty.entropy, dtype=torch.bool)
            found["other inputs"] = _means(self.other.uncertainty, every)
        return found

    def error_auroc(self) -> dict[str, float | None]:
        """By quantity: the probability that a wrong answer is the less certain one; None without both."""
        right = self.right
        if bool(right.all()) or not bool(right.any()):
            return dict.fromkeys(QUANTITIES)
        values = {name: quantity(self.uncertainty, name) for name in QUANTITIES}
        return {name: ood_scores(v[right], v[~right])["auroc"] for name, v in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON; None where one is not defined."""
        record = self.run.record
        curves = {name: risk_coverage(self.log_probs[name], self.y) for name in ("mode", "mean")}
        bands = {
            name: reliability(*top_label(self.log_probs[name], self.y)) for name in ("mode", "mean")
        }
        other = self.other and {
            "name": self.other.name,
            "inputs": len(self.other.uncertainty.entropy),
            "scores": _plain(self.other.scores),
        }
        return {
            "run": self.run.name,
            "settings": record["settings"],
            "recipe": record["recipe"],
            "data": record["data"],
            "environment": record["environment"],
            "seconds": record["seconds"],
            "num_samples": self.num_samples,
            "seed": self.seed,
            "num_bootstrap": self.num_bootstrap,
            "temperatures": self.temperatures,
            "scores": _plain(self.scores),
            "mean_minus_mode": _plain(self.mean_minus_mode),
            "reliability": {
                name: {
                    "miscalibration": band.miscalibration,
                    "discrimination": band.discrimination,
                    "base_uncertainty": band.base_uncertainty,
                    "outside": band.outside,
                }
                for name, band in bands.items()
            },
            "abstaining": {
                name: {
                    "aurc": curve.aurc,
                    "excess_aurc": curve.excess_aurc,
                    "risk_at": {str(c): curve.risk_at(c) for c in _COVERAGES},
                }
                for name, curve in curves.items()
            },
            "uncertainty": _plain(self.split()),
            "error_auroc": self.error_auroc(),
            "posterior": [asdict(row) for row in (*self.summary.rows, self.summary.total())],
            "other": other,
        }


def quantity(found: Uncertainty, name: str) -> Tensor:
    """One of the QUANTITIES, (B,), without rounding errors, whose order would pass for knowledge."""
    values = getattr(found, name)
    return values * (values > _ROUNDING)


def findings_of(
    run: Run,
    splits: data.Splits,
    other: OtherInputs | None = None,
    *,
    num_samples: int = 32,
    seed: int = 0,
    num_bootstrap: int = 300,
) -> Findings:
    """Predict the test data by the mode and by draws, calibrated with training data, and score.

    :param splits: the run's own data, see ``Run.splits``.
    :raises ValueError: for fewer than 1 draw or resample.
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    test = splits.test
    ensemble = run.ensemble(num_samples, seed, splits=splits)
    mode = ensemble.mode
    validation = splits.hold_out(run.settings.validation, run.settings.data_seed)[1]
    draws = ensemble.log_probs(test.x)
    log_probs = {
        "mode": mode.predict(test.x).log_probs,
        "mean": torch.logsumexp(draws, dim=0) - math.log(num_samples),
    }
    scalings = {
        "mode": TemperatureScaling.fit(mode.predict(validation.x).log_probs, validation.y),
        "mean": TemperatureScaling.fit(ensemble.predict(validation.x).log_probs, validation.y),
    }
    log_probs |= {f"{name} scaled": s.apply(log_probs[name]) for name, s in scalings.items()}
    scores, difference = _intervals(log_probs, test.y, num_bootstrap)
    scores["draws"] = _over_draws(draws, test.y)
    found = uncertainty(draws)
    return Findings(
        run=run,
        y=test.y,
        num_samples=num_samples,
        seed=seed,
        num_bootstrap=num_bootstrap,
        log_probs=log_probs,
        scores=scores,
        mean_minus_mode=difference,
        temperatures={name: scaling.temperature for name, scaling in scalings.items()},
        uncertainty=found,
        summary=run.posterior.summary(),
        other=other
        and _compared(found, other.name, uncertainty(ensemble.log_probs(other.x)), num_bootstrap),
    )


def _intervals(
    log_probs: Mapping[str, Tensor], y: Tensor, num_bootstrap: int
) -> tuple[dict[str, dict[str, Estimate]], dict[str, Estimate]]:
    """Scores of every method, and those of the mean minus the mode's, from the same resamples."""

    def score(y: Tensor, *tables: Tensor) -> dict[str, float]:
        rows = {
            name: classification_scores(table, y)
            for name, table in zip(log_probs, tables, strict=True)
        }
        rows["difference"] = {n: rows["mean"][n] - value for n, value in rows["mode"].items()}
        return {f"{m}/{name}": value for m, row in rows.items() for name, value in row.items()}

    found: dict[str, dict[str, Estimate]] = {}
    sample = (y, *log_probs.values())
    flat = bootstrap(score, sample, num_bootstrap=num_bootstrap, interval=_INTERVAL)
    for key, estimate in flat.items():
        method, name = key.split("/")
        found.setdefault(method, {})[name] = estimate
    return found, found.pop("difference")


def _over_draws(draws: Tensor, y: Tensor) -> dict[str, Estimate]:
    rows = [classification_scores(log_probs, y) for log_probs in draws]
    table = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)
    tails = torch.tensor([(1 - _INTERVAL) / 2, (1 + _INTERVAL) / 2], dtype=table.dtype)
    low, high = torch.quantile(table, tails, dim=0)
    columns = zip(table.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Estimate(*column) for name, column in zip(rows[0], columns, strict=True)}


def _compared(
    inner: Uncertainty, other_name: str, outer: Uncertainty, num_bootstrap: int
) -> OtherFindings:
    scores = {
        name: bootstrap(
            ood_scores,
            quantity(inner, name),
            quantity(outer, name),
            num_bootstrap=num_bootstrap,
            interval=_INTERVAL,
        )
        for name in QUANTITIES
    }
    return OtherFindings(other_name, outer, scores)


def _means(found: Uncertainty, chosen: Tensor) -> dict[str, float]:
    values = {name: getattr(found, name)[chosen].mean().item() for name in SPLIT}
    return {"inputs": int(chosen.sum()), **values}


def _plain(found: Any) -> Any:
    """Dictionaries of numbers, with None for what JSON has no word for."""
    if isinstance(found, Estimate):
        return _plain(asdict(found))
    if isinstance(found, Mapping):
        return {name: _plain(value) for name, value in found.items()}
    return None if isinstance(found, float) and not math.isfinite(found) else found
