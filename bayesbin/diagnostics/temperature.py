"""One number that makes a predictor more or less sure: temperature scaling, to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesbin.core.checks import real_number
from bayesbin.diagnostics._accepted import labelled, log_probs_of, normalised

_LARGEST = 100.0  # temperature; the smallest is its inverse


@dataclass(frozen=True)
class TemperatureScaling:
    r"""Probabilities raised to the power 1 / T and normalised; labels stay what they were.

    .. math:: p_T(c) = p(c)^{1/T} \Big/ \textstyle\sum_k p(k)^{1/T}

    T > 1 makes a predictor less sure, T < 1 surer. For the comparison to be fair, fit on data that
    neither the training nor the reported score has seen.

    :param temperature: T, positive.
    :raises ValueError: for a temperature that is not positive and finite.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import TemperatureScaling
        >>> unsure = TemperatureScaling(2.0).apply(torch.tensor([[0.8, 0.2]]).log())
        >>> [round(p, 4) for p in unsure.exp()[0].tolist()]
        [0.6667, 0.3333]

    Source: Guo et al. 2017, arXiv 1706.04599.
    """

    temperature: float

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "temperature", real_number("temperature", self.temperature, above=0.0)
        )

    @classmethod
    def fit(cls, log_probs: Tensor, y: Tensor) -> TemperatureScaling:
        """The temperature with the least negative log-likelihood, from 0.01 to 100.

        The loss is convex in 1 / T, so its slope has one root at most. Without one inside, the end that
        is better is taken: 0.01 if every label is predicted right, 100 if guessing would be better; for
        predictions that are all uniform it is 1.

        :param log_probs: of held-out data, (N, C), normalised. :param y: their labels (N,).
        :raises ValueError: for shapes that do not fit, no data, NaN, labels out of range, or a label
            of probability 0, which no temperature mends.
        """
        from scipy.optimize import brentq  # comes with scikit-learn

        log_probs, y = labelled(log_probs, y)
        log_probs = log_probs_of(log_probs, "NC")
        true = log_probs.gather(1, y[:, None])[:, 0]
        if bool((true == -torch.inf).any()):
            raise ValueError(
                f"expected labels that were given some probability, got {int((true == -torch.inf).sum())} "
                "with none; average draws first, or fit on other data."
            )
        finite = log_probs.clamp(
            min=torch.finfo(torch.float64).min
        )  # 0 * -inf is NaN, 0 * this is 0

        def slope(log_temperature: float) -> float:
            """Derivative of the mean loss with respect to 1 / T."""
            power = torch.tensor(-log_temperature, dtype=torch.float64).exp()
            probs = (power * log_probs).softmax(-1)
            return ((probs * finite).sum(-1) - true).mean().item()

        if bool((log_probs.amax(-1) - log_probs.amin(-1) < 1e-12).all()):
            return cls(1.0)  # all are uniform, and stay so at any temperature
        end = torch.tensor(_LARGEST, dtype=torch.float64).log().item()
        if slope(-end) <= 0.0:  # still falling at the largest 1 / T
            return cls(1.0 / _LARGEST)
        if slope(end) >= 0.0:
            return cls(_LARGEST)
        root = float(brentq(slope, -end, end, xtol=1e-12))  # pyright: ignore[reportArgumentType]
        return cls(torch.tensor(root, dtype=torch.float64).exp().item())

    def apply(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities (..., C) at this temperature.

        :raises ValueError: for what are no log-probabilities; take log_softmax of logits first.
        """
        return torch.log_softmax(normalised(log_probs) / self.temperature, dim=-1)
