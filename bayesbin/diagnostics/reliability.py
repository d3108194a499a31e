"""How often confidences come true, without bins: reliability by isotonic regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.diagnostics._accepted import equal_to, hits_of, share

_POINTS = 500  # of the band: finer than any picture of it


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability curve and what it says about the Brier score of the confidences.

    Brier score of the confidences = ``miscalibration`` - ``discrimination`` + ``base_uncertainty``.

    :param confidence: the different ones, ascending, (K,). :param counts: how often each came, (K,).
    :param frequency: how often they came true, by the best increasing function of the confidence, (K,).
    :param band_confidence: where the band is given, (G,). :param low, high: of the band, (G,).
    :param level: with this probability a calibrated predictor's curve is in the band at one confidence.
    :param miscalibration: what replacing confidence by frequency would gain; 0 is calibrated.
    :param discrimination: what the curve gains over one constant. :param base_uncertainty: that
        constant's own score, p (1 - p).
    """

    confidence: Tensor
    counts: Tensor
    frequency: Tensor
    band_confidence: Tensor
    low: Tensor
    high: Tensor
    level: float
    miscalibration: float
    discrimination: float
    base_uncertainty: float

    @property
    def outside(self) -> float:
        """Share of the data at whose confidence the curve is outside the band: if calibrated, 1 - level
        in the mean."""
        at = torch.searchsorted(self.confidence, self.band_confidence)
        curve = self.frequency[at]
        out = ((curve < self.low) | (curve > self.high)).double()
        weights = self.counts[at].double()
        return (out @ weights / weights.sum()).item()


def reliability(
    confidence: Tensor,
    correct: Tensor,
    *,
    level: float = 0.9,
    num_simulations: int = 500,
    seed: int = 0,
) -> Reliability:
    r"""Reliability by isotonic regression (CORP), with consistency bands by simulation.

    The curve is the increasing function that is closest to the hits in least squares (pool adjacent
    violators): nothing is to be chosen, as the number of bins is. The band is where the curve lies if
    hits are drawn with the confidences as probabilities, i.e. of a calibrated predictor.

    :param confidence: of a label, in 0 .. 1, (N,); of the most probable one: :func:`top_label`.
    :param correct: whether it was right, (N,). :param level: of the band, point by point.
    :param num_simulations: data sets drawn for the band.
    :raises ValueError: for shapes that do not fit, no data, or numbers out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import reliability
        >>> found = reliability(torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.tensor([0, 1, 0, 1]).bool())
        >>> found.frequency.tolist()
        [0.0, 0.5, 0.5, 1.0]

    Source: Dimitriadis, Gneiting and Jordan 2021, PNAS 118 (8), arXiv 2008.03033.
    """
    from sklearn.isotonic import isotonic_regression  # a second to import

    level = share("level", level)
    num_simulations = whole_number("num_simulations", num_simulations, at_least=1)
    confidence, correct = hits_of(confidence, correct, probabilities=True)
    values, places, counts = (part.cpu() for part in equal_to(confidence))
    hits = torch.zeros_like(values).index_add(0, places, correct.cpu())
    weights = counts.double().numpy()

    def curve(successes: np.ndarray) -> np.ndarray:
        # PAV gives values between 0 and 1 up to rounding.
        fit = isotonic_regression(successes / weights, sample_weight=weights)
        return np.clip(fit, 0.0, 1.0)

    frequency = curve(hits.numpy())
    grid = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))
    generator = np.random.default_rng(whole_number("seed", seed))
    drawn = np.stack(
        [
            curve(generator.binomial(counts.numpy(), values.numpy()).astype(float))[grid]
            for _ in range(num_simulations)
        ]
    )
    low, high = np.quantile(drawn, [0.5 * (1 - level), 0.5 * (1 + level)], axis=0)

    # The Brier score of a forecast f is the mean of (f - hit)^2; what f does not change cancels below.
    part, rate = weights / weights.sum(), hits.numpy() / weights
    base = float(part @ rate)

    def distance(forecast: np.ndarray) -> float:
        return float(part @ (forecast - rate) ** 2)

    within = distance(np.asarray(base)) - distance(frequency)
    return Reliability(
        confidence=values,
        counts=counts,
        frequency=torch.from_numpy(frequency),
        band_confidence=values[torch.from_numpy(grid)],
        low=torch.from_numpy(low),
        high=torch.from_numpy(high),
        level=level,
        miscalibration=max(distance(values.numpy()) - distance(frequency), 0.0),
        discrimination=max(within, 0.0),
        base_uncertainty=base * (1.0 - base),
    )
