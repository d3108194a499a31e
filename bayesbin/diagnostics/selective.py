"""Answering only where the confidence is high: risk against coverage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import real_number
from bayesbin.diagnostics._accepted import equal_to, hits_of, labelled, log_probs_of


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The share of wrong answers among the k most confident ones, for k = 1 .. N.

    Where confidences are equal, risks are means over all orders of them: the order in which the data
    came makes no difference, and one confidence for all gives the error rate everywhere.

    :param coverage: share of inputs answered, k / N, (N,). :param risk: (N,). :param best_risk: if all
        right answers came before all wrong ones, (N,).
    """

    coverage: Tensor
    risk: Tensor
    best_risk: Tensor

    @property
    def aurc(self) -> float:
        """Area under the curve: the mean of the risks over k; 0 is best."""
        return self.risk.mean().item()

    @property
    def excess_aurc(self) -> float:
        """What of the area is due to the order of the answers: 0 if every error comes last."""
        return (self.risk - self.best_risk).mean().item()

    def risk_at(self, coverage: float) -> float:
        """The risk when at least this share of inputs is answered, and no more than needed.

        :raises ValueError: for a share outside (0, 1].
        """
        coverage = real_number("coverage", coverage, above=0.0, at_most=1.0)
        reached = torch.searchsorted(self.coverage, coverage - 1e-12)  # k / N is rounded
        return self.risk[reached].item()


def risk_coverage(confidence: Tensor, correct: Tensor) -> RiskCoverage:
    r"""Risk-coverage curve: what abstaining from the least confident answers brings.

    .. math:: r_k = \frac1k \sum_{i \le k} (1 - \mathrm{correct}_{(i)}), \qquad
        \mathrm{AURC} = \frac1N \sum_k r_k

    :param confidence: numbers (N,), larger where surer: a probability, minus an entropy; or
        log-probabilities (N, C), of which the largest is taken.
    :param correct: whether each answer was right, (N,); or labels (N,) beside log-probabilities.
    :raises ValueError: for shapes that do not fit, no data, NaN, or hits that are neither true nor false.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import risk_coverage
        >>> found = risk_coverage(torch.tensor([0.9, 0.6, 0.6]), torch.tensor([True, True, False]))
        >>> found.risk.tolist()  # the two equals: half an error each
        [0.0, 0.25, 0.3333333333333333]

    Source: Geifman, Uziel and El-Yaniv 2019, arXiv 1805.08206 (AURC and its excess).
    """
    confidence, correct = as_tensor("confidences", confidence), as_tensor("hits", correct)
    if confidence.dim() == 2:
        confidence = log_probs_of(confidence, "NC")
        if correct.dtype != torch.bool:
            confidence, correct = labelled(confidence, correct)
            correct = confidence.argmax(-1) == correct
        confidence = confidence.max(-1).values
    confidence, correct = hits_of(confidence, correct, probabilities=False)
    wrong = 1.0 - correct
    values, places, counts = equal_to(confidence)
    # Any order of equals has, in the mean, the same share of errors at each place.
    share = torch.zeros_like(values).index_add(0, places, wrong) / counts
    expected = share[places[confidence.argsort(descending=True)]]
    answered = torch.arange(1, len(wrong) + 1, device=wrong.device, dtype=torch.float64)
    return RiskCoverage(
        coverage=answered / len(wrong),
        risk=expected.cumsum(0) / answered,
        best_risk=wrong.sort().values.cumsum(0) / answered,
    )
