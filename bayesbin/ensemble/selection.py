"""Choosing one of an ensemble's networks by a few labelled data, and what the choice is worth elsewhere."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import one_of, real_number, whole_number
from bayesbin.data import Dataset
from bayesbin.diagnostics.held_out import HeldOut, bootstrap, halves, per_example, refuse_leaks
from bayesbin.ensemble.ensemble import Ensemble

SCORES = ("accuracy", "nll")
_MODELS = ("chosen", "mode", "mean", "single")


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen network, and its scores on data that had no part in the choice.

    :param index: the chosen network is ``ensemble.network(index)``; alone it predicts, compiles and ships as
        ``ensemble.select(draws=[index])``.
    :param seed: of the split in halves and of the resampling.
    :param score: what it was chosen by, "nll" or "accuracy".
    :param selection_score: that score where it was chosen; the best of many, so biased to be too good.
    :param candidate_scores: that score of every candidate there, (num_candidates,).
    :param chosen: held-out scores. :param mode: those of the posterior's mode.
    :param mean: those of the probabilities averaged over all candidates.
    :param single: scores averaged over all candidates: what a draw not chosen is worth.
    :param differences: "mode", "mean", "single" -> chosen minus that one, paired by example.
    :param num_selection: examples it was chosen by. :param num_held_out: examples it is scored on.
    :param interval: coverage of the intervals, by ``num_bootstrap`` resamples.
    """

    index: int
    seed: int
    score: str
    selection_score: float
    candidate_scores: Tensor
    chosen: HeldOut
    mode: HeldOut
    mean: HeldOut
    single: HeldOut
    differences: dict[str, HeldOut]
    num_selection: int
    num_held_out: int
    num_bootstrap: int
    interval: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, in numbers, lists and dictionaries that JSON knows."""
        nested = {name: asdict(getattr(self, name)) for name in _MODELS}
        nested["differences"] = {name: asdict(row) for name, row in self.differences.items()}
        scores = self.candidate_scores.tolist()
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "candidate_scores": scores,
            **nested,
        }

    def __str__(self) -> str:
        count = len(self.candidate_scores)
        labels = {
            "chosen": f"draw {self.index}, the chosen one",
            "mode": "mode",
            "mean": f"mean of {count} draws",
            "single": "single draws, on average",
        }
        rows = {label: getattr(self, name) for name, label in labels.items()}
        rows |= {f"chosen - {labels[name]}": row for name, row in self.differences.items()}
        head = f"on {self.num_held_out} held-out examples"
        width = max(len(label) for label in (*rows, head))
        lines = [
            f"draw {self.index}, best of {count} by {self.score} on "
            f"{self.num_selection} examples: {self.selection_score:.4f} there, biased as the best of many",
            f"{head:<{width}}  {'accuracy':>25}  {'nll (nats)':>25}",
        ]
        for label, row in rows.items():
            lines.append(f"{label:<{width}}  {row.accuracy!s:>25}  {row.nll!s:>25}")
        lines.append(f"[{100 * self.interval:g} % bootstrap intervals over held-out examples]")
        return "\n".join(lines)


def select_network(
    ensemble: Ensemble,
    data: Dataset | tuple[Any, Any],
    *,
    held_out: Dataset | tuple[Any, Any] | None = None,
    seed: int = 0,
    score: str = "nll",
    num_bootstrap: int = 1000,
    interval: float = 0.95,
) -> Selection:
    r"""Choose among the draws of an ensemble the one that fits ``data``, and score it on ``held_out``.

    .. math:: s^* = \arg\min_s \frac1N \sum_{n=1}^{N} -\log p(y_n \mid x_n, w_s), \qquad w_s \sim q

    Choosing a network is a feature for domain drift: a few labelled examples of a new domain pick,
    without any training, the network among those the posterior holds that suits it. The best of many
    is never the reported score: the best of many noisy numbers is too good on average even where all
    candidates are alike. The scores to report are ``chosen`` and ``differences``, from examples that
    had no part in the choice. Averaging all draws may well be better; ``differences`` tells.

    Candidates are all draws of the ensemble. Of equal accuracy the lower nll wins, then the lower index.
    Intervals are percentiles of means over resampled held-out examples, one resample for all networks, so
    that differences are paired. They hold for the network that was chosen, and leave out that other
    selection examples might have chosen another.

    :param ensemble: of a classifier, calibrated if it needs to be. :param data: x (N, ...), labels y (N,).
    :param held_out: examples to score on, none of them an input of ``data``. None: ``data`` is split
        in halves by ``seed``, class by class; copies of one input stay in one half.
    :param seed: of the split and of the resampling.
    :param score: "nll", or "accuracy". :param interval: coverage of the intervals, in (0, 1).
    :raises ValueError: if a held-out input is also a selection input, whatever its label; for data
        that are no labelled pairs, too few inputs to split, outputs that are not finite, or settings
        out of range.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior, Ensemble, nn
        >>> from bayesbin.data import two_moons
        >>> from bayesbin.ensemble import select_network
        >>> net = nn.to_binary_(nn.mlp(2, [8], 2, normalize=False))
        >>> posterior = BinaryPosterior({"0.weight": torch.zeros(8, 2), "2.weight": torch.zeros(2, 8)})
        >>> ensemble = Ensemble(nn.Classifier(net, dataset_size=100), posterior, num_samples=20)
        >>> selection = select_network(ensemble, two_moons())
        >>> selection.num_selection, selection.num_held_out, selection.candidate_scores.shape
        (100, 100, torch.Size([20]))
        >>> selection.differences["single"].nll.value < 0.0  # better than a draw that is not chosen
        True

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles);
    Cawley and Talbot 2010, JMLR 11 (why the selection score is not reported).
    """
    num_bootstrap = whole_number("num_bootstrap", num_bootstrap, at_least=1)
    score = one_of("score", score, SCORES)
    interval = real_number("interval", interval, above=0, below=1)
    seed = whole_number("seed", seed)
    x, y = _pair(data, "data")
    if held_out is None:
        first, second = halves(x, y, seed)
        (x, y), (x_held, y_held) = (x[first], y[first]), (x[second], y[second])
    else:
        x_held, y_held = _pair(held_out, "held_out")
    refuse_leaks(x, x_held)
    if not isinstance(ensemble, Ensemble):
        raise ValueError(f"expected an ensemble to choose from; got {type(ensemble).__name__}.")

    found = torch.stack([per_example(draw, y).mean(1) for draw in _log_probs(ensemble, x)])
    candidate_scores = found[:, SCORES.index(score)]
    ranking = [(nll if score == "nll" else -accuracy, nll) for accuracy, nll in found.tolist()]
    index = min(range(len(ranking)), key=ranking.__getitem__)  # the first of equals

    draws = _log_probs(ensemble, x_held)
    values = torch.stack([per_example(draw, y_held) for draw in draws])
    mean = per_example(draws.logsumexp(0) - math.log(len(draws)), y_held)
    (of_mode,) = _log_probs(ensemble.mode, x_held)
    mode = per_example(of_mode, y_held)
    chosen, single = values[index], values.mean(0)

    models = torch.stack([chosen, mode, mean, single])  # as _MODELS, (4, 2, N)
    table = torch.cat([models, models[:1] - models[1:]])
    scored = bootstrap(table, seed, num_bootstrap, interval)
    return Selection(
        index=index,
        seed=seed,
        score=score,
        selection_score=candidate_scores[index].item(),
        candidate_scores=candidate_scores,
        **dict(zip(_MODELS, scored[:4], strict=True)),
        differences=dict(zip(_MODELS[1:], scored[4:], strict=True)),
        num_selection=len(x),
        num_held_out=len(x_held),
        num_bootstrap=num_bootstrap,
        interval=interval,
    )


def _log_probs(ensemble: Ensemble, x: Tensor) -> Tensor:
    """Log-probabilities of each draw, (S, N, C)."""
    found = torch.as_tensor(ensemble.log_probs(x))
    if found.dim() != 3:
        raise ValueError(
            f"expected an ensemble that predicts one label for each input; got log-probabilities of shape "
            f"{tuple(found.shape[1:])}, several labels for each."
        )
    return found


def _pair(data: Any, name: str) -> tuple[Tensor, Tensor]:
    pair = (data.x, data.y) if isinstance(data, Dataset) else data
    wanted = f"expected {name} to be a pair of inputs (N, ...) and integer labels (N,)"
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{wanted}, got {type(data).__name__}; pass (x, y) or a Dataset.")
    x, y = as_tensor(f"the inputs of {name}", pair[0]), as_tensor(f"the labels of {name}", pair[1])
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole or y.ndim != 1 or x.shape[:1] != y.shape or len(y) == 0:
        came = f"x {tuple(x.shape)} and y {tuple(y.shape)} of {y.dtype}"
        raise ValueError(f"{wanted}, N at least 1, got {came}; pass one label for each input.")
    return x, y.long()
