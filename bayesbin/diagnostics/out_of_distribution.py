"""Telling inputs of another kind from those trained on, by an uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.diagnostics._accepted import equal_to

_RECALL = 0.95


def ood_scores(in_scores: Tensor, out_scores: Tensor) -> dict[str, float]:
    """How well a score separates: out-of-distribution is the positive class, and has larger scores.

    - "auroc": probability that an outer input scores above an inner one, equals counting one half;
    - "aupr_out": average precision; "aupr_in": the same with inner inputs as positives, scores negated;
    - "fpr95": share of inner inputs flagged at the highest threshold that flags at least 95 % of the
      outer ones. All inputs with a score equal to the threshold are flagged.

    A constant score gives an AUROC of 1/2 and an FPR95 of 1. Average precision depends on how many
    inputs there are of each kind: a constant score's is the share of positives.

    :param in_scores: uncertainty of inputs of the training kind, (N,), such as an entropy or the mutual
        information; of a confidence pass the negative. :param out_scores: of the other kind, (M,).
    :raises ValueError: for other shapes, no input of a kind, or NaN.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import ood_scores
        >>> ood_scores(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.9]))["auroc"].__round__(4)
        0.9167

    Source: Hendrycks and Gimpel 2017, arXiv 1610.02136; Liang et al. 2018, arXiv 1706.02690 (FPR95).
    """
    from sklearn.metrics import auc, average_precision_score, roc_curve  # slow to import

    in_scores, out_scores = as_tensor("in_scores", in_scores), as_tensor("out_scores", out_scores)
    if in_scores.dim() != 1 or out_scores.dim() != 1 or not len(in_scores) or not len(out_scores):
        raise ValueError(
            f"expected scores (N,) and (M,), at least one of each kind, got {tuple(in_scores.shape)} "
            f"and {tuple(out_scores.shape)}; give one number per input."
        )
    scores = torch.cat([in_scores.detach().double().cpu(), out_scores.detach().double().cpu()])
    if bool(scores.isnan().any()):
        raise ValueError("expected scores that can be ordered, got NaN; look for its origin.")
    ranks = equal_to(scores)[1].numpy()  # infinities too have a rank
    outer = torch.ones(len(scores), dtype=torch.bool)
    outer[: len(in_scores)] = False
    outer = outer.numpy()
    flagged, recall, _ = roc_curve(outer, ranks, drop_intermediate=False)
    return {
        "auroc": float(auc(flagged, recall)),
        "aupr_out": float(average_precision_score(outer, ranks)),
        "aupr_in": float(average_precision_score(~outer, -ranks)),
        "fpr95": float(flagged[recall >= _RECALL].min()),
    }
