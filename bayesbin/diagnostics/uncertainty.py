"""What a classifier's draws know and do not know, split in two."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.diagnostics._accepted import log_probs_of

_ENTROPIES = ("entropy", "expected_entropy", "mutual_information", "mutual_information_jackknife")


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Uncertainty of B predictions, each (B,); what single draws are needed for is NaN without them.

    :param entropy: of the averaged probabilities: the total uncertainty.
    :param expected_entropy: mean entropy of the draws: aleatoric, what more data would not take away.
    :param mutual_information: their difference, at least 0: epistemic, what the draws disagree about.
        Biased low by about (C - 1) / 2 S or less: compare it only at one number of draws.
    :param mutual_information_jackknife: the same without the bias of order 1 / S. It may be negative
        where the true value is small; NaN with one draw.
    :param variation_ratio: share of draws that do not vote for the label most draws vote for.
    :param disagreement: share of draws whose label is not that of the averaged probabilities.
    :param max_probability: largest averaged probability: the confidence.
    :param num_samples: draws. :param unit: of the first four, "nats" or "bits".
    """

    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    mutual_information_jackknife: Tensor
    variation_ratio: Tensor
    disagreement: Tensor
    max_probability: Tensor
    num_samples: int
    unit: str = "nats"

    def in_bits(self) -> Uncertainty:
        """The same with entropies in bits, 1 bit = ln 2 nats."""
        if self.unit == "bits":
            return self
        bits = {name: getattr(self, name) / math.log(2.0) for name in _ENTROPIES}
        return dataclasses.replace(self, **bits, unit="bits")


def uncertainty(
    log_probs: Any,
) -> Uncertainty:
    r"""Total, aleatoric and epistemic uncertainty of predictions averaged over S draws, in nats.

    .. math:: \underbrace{H\big[\bar p\big]}_{\text{total}} = \underbrace{\tfrac1S \textstyle\sum_s
        H[p_s]}_{\text{aleatoric}} + \underbrace{I}_{\text{epistemic}}, \qquad
        \bar p = \tfrac1S \textstyle\sum_s p_s

    .. math:: I_{\mathrm{jackknife}} = S\,H[\bar p] - \frac{S - 1}{S} \sum_s H[\bar p_{-s}]
        - \tfrac1S \textstyle\sum_s H[p_s], \qquad \bar p_{-s}: \text{the mean without draw } s

    Where a draw gives its largest probability to several classes, its label is the first of them.
    Memory is that of all draws, in float64.

    :param log_probs: (S, B, C), normalised, as ``ensemble.log_probs(x)`` gives them; an
        iterable of (B, C), draw after draw; or a prediction, whose draws are averaged already: then
        ``variation_ratio``, ``disagreement`` and the jackknife are NaN.
    :raises ValueError: for another shape, no draws, NaN, or probabilities that do not add up to 1.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import uncertainty
        >>> certain_but_opposed = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> found = uncertainty(certain_but_opposed).in_bits()
        >>> found.entropy.item(), found.expected_entropy.item(), found.mutual_information.item()
        (1.0, 0.0, 1.0)

    Source: Houlsby et al. 2011, arXiv 1112.5745; Gal 2016, chapter 3.3.1 (variation ratio); Quenouille
    1956, Biometrika 43 (jackknife).
    """
    if all(hasattr(log_probs, name) for name in ("log_probs", "expected_entropy", "num_samples")):
        return _without_draws(
            as_tensor("log-probabilities", log_probs.log_probs),
            as_tensor("expected entropies", log_probs.expected_entropy),
            log_probs.num_samples,
        )
    if not isinstance(log_probs, Tensor) and not hasattr(log_probs, "__array__"):
        draws = [as_tensor("the log-probabilities of a draw", draw) for draw in log_probs]
        if not draws:
            raise ValueError("expected at least one draw, got none; raise num_samples.")
        log_probs = torch.stack(draws)
    log_probs = log_probs_of(log_probs, "SBC")
    count, _, num_classes = log_probs.shape
    probs = log_probs.exp()
    expected = torch.special.entr(probs).sum(-1).mean(0)
    mean = log_probs.logsumexp(0) - math.log(count)
    labels = log_probs.argmax(-1)
    votes = torch.nn.functional.one_hot(labels, num_classes).sum(0)
    found = _without_draws(mean, expected, count)
    return dataclasses.replace(
        found,
        mutual_information_jackknife=_jackknife(probs, found.entropy) - expected,
        variation_ratio=1.0 - votes.max(-1).values / count,
        disagreement=(labels != mean.argmax(-1)).double().mean(0),
    )


def _without_draws(log_probs: Tensor, expected_entropy: Tensor, num_samples: int) -> Uncertainty:
    log_probs = log_probs_of(log_probs, "NC")
    unknown = torch.full_like(log_probs[:, 0], torch.nan)
    probs = log_probs.exp()
    # A probability of 0 adds nothing, whatever its logarithm.
    entropy = -torch.where(probs > 0.0, probs * log_probs, 0.0).sum(-1)
    return Uncertainty(
        entropy=entropy,
        expected_entropy=expected_entropy,
        mutual_information=(entropy - expected_entropy).clamp(min=0.0),
        mutual_information_jackknife=unknown,
        variation_ratio=unknown,
        disagreement=unknown,
        max_probability=log_probs.max(-1).values.exp().clamp(max=1.0),
        num_samples=num_samples,
    )


def _jackknife(probs: Tensor, entropy: Tensor) -> Tensor:
    """The entropy of the mean over draws, without its bias of order 1 / S."""
    count = len(probs)
    if count == 1:
        return torch.full_like(entropy, torch.nan)
    total = probs.sum(0)
    without = torch.zeros_like(entropy)
    for draw in probs:  # one at a time: all at once would be the memory of the draws again
        # Rounding may leave a difference of equals below 0.
        left_out = ((total - draw) / (count - 1)).clamp(min=0.0)
        without = without + torch.special.entr(left_out).sum(-1)
    return count * entropy - (count - 1) / count * without
