"""What a posterior would predict of each datum had it not seen it: PSIS-LOO, corrected for the guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.infer.checks.importance import log_prob_of, traces_at_draws
from bayesbin.infer.checks.pareto import pareto_smoothed
from bayesbin.infer.checks.pointwise import observed_sites, pointwise_of


@dataclass(frozen=True, eq=False)
class LooResult:
    """The expected log predictive density of data left out one at a time, in nats, summed over data.

    :param elpd: sum over the data; larger is better. :param standard_error: over the data.
    :param p_loo: effective number of parameters, what seeing a datum itself adds to its log density.
    :param pointwise: of each datum, (N,). :param khat: of the weights that leave it out, (N,).
    :param good_khat: above it a datum's estimate is not to be relied on, with this many draws.
    :param corrected: whether the weights turn the guide's draws into those of the posterior.
    """

    elpd: float
    standard_error: float
    p_loo: float
    pointwise: Tensor
    khat: Tensor
    good_khat: float
    num_samples: int
    corrected: bool

    @property
    def num_bad(self) -> int:
        """The number of data whose k-hat is above ``good_khat``."""
        return int((self.khat > self.good_khat).sum())

    def __str__(self) -> str:
        return (
            f"elpd_loo {self.elpd:.1f} +- {self.standard_error:.1f} nats over {len(self.pointwise)} data, "
            f"p_loo {self.p_loo:.1f}, k-hat above {self.good_khat:.2f} at {self.num_bad}"
        )


def psis_loo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any = (),
    num_samples: int = 1000,
    seed: int = 0,
    correct: bool = True,
) -> LooResult:
    r"""Leave-one-out predictive density from draws of a guide, by Pareto-smoothed importance sampling.

    .. math::
        \mathrm{elpd} = \sum_n \log \sum_s \bar r_{ns}\, p(y_n | w_s), \qquad
        r_{ns} = \frac{1}{p(y_n | w_s)^{c_n}} \cdot \frac{p(y, w_s)}{q(w_s)}, \qquad w_s \sim q

    with r smoothed and normalised over s, and c the weights of the data, or 1. A datum of a likelihood of
    :mod:`bayesbin.nn` is a row of its batch; of any other model it is an element of an observed site. Data
    that are masked, or of weight 0, are left out. The second factor turns draws of the guide into draws of
    the posterior; without it (``correct=False``) the guide is taken for the posterior. Where that factor is
    heavy-tailed, ``khat`` is large for all data, and it is the guide that is not to be relied on.

    :param data: what the model is called with, the whole data set: a tuple, list, dict or tensor.
    :param num_samples: S, at least 25.
    :raises ValueError: as :func:`log_joint_and_guide`; for fewer draws, or a model without observed data.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.infer.checks import psis_loo
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        >>> model = Classifier(BinaryLinear(3, 2), dataset_size=8)
        >>> psis_loo(model, AutoSignBernoulli(model), (x, y), num_samples=100).pointwise.shape
        torch.Size([8])

    Source: Magnusson et al. 2019, "Bayesian leave-one-out cross-validation for large data",
    arXiv 1904.10679; Vehtari, Gelman and Gabry 2017, arXiv 1507.04544.
    """
    ratios, rows, removed = [], [], []
    with torch.no_grad():
        for trace, guide_trace in traces_at_draws(model, guide, data, num_samples, seed):
            log_prob, contribution = _of_data(trace)
            rows.append(log_prob)
            removed.append(contribution)
            ratios.append((log_prob_of(trace) - log_prob_of(guide_trace)).double())
    log_likelihood = torch.stack(rows, dim=1)  # (N, S)
    ratio = torch.stack(ratios) if correct else torch.zeros(num_samples, dtype=torch.float64)
    weights, khat = pareto_smoothed(ratio - torch.stack(removed, dim=1))
    elpd = (weights + log_likelihood).logsumexp(1)
    all_data = pareto_smoothed(ratio)[0] if correct else ratio - math.log(num_samples)
    density = (all_data + log_likelihood).logsumexp(1)
    return LooResult(
        elpd=elpd.sum().item(),
        standard_error=_standard_error(elpd),
        p_loo=(density - elpd).sum().item(),
        pointwise=elpd,
        khat=khat,
        good_khat=min(1.0 - 1.0 / math.log10(num_samples), 0.7),
        num_samples=num_samples,
        corrected=correct,
    )


def _of_data(trace: Any) -> tuple[Tensor, Tensor]:
    """Log-likelihood and contribution of every datum that counts, site after site, each (N,)."""
    found = [pointwise_of(site) for _, site in observed_sites(trace)]
    if not found:
        raise ValueError("expected a model with observed data, got none; pass the targets in data.")
    if not any(bool(each.kept.any()) for each in found):
        raise ValueError("expected data that count, got none: all of them are masked.")
    return (
        torch.cat([each.log_prob[each.kept] for each in found]),
        torch.cat([each.contribution[each.kept] for each in found]),
    )


@dataclass(frozen=True)
class LooRow:
    """One of several models or guides.

    :param difference: its elpd minus the best one's, in nats, at most 0.
    :param difference_error: the standard error of that, paired by datum.
    """

    name: str
    elpd: float
    standard_error: float
    p_loo: float
    difference: float
    difference_error: float
    num_bad: int


@dataclass(frozen=True)
class LooComparison:
    """Rows from the best to the worst; ``str`` gives the table."""

    rows: tuple[LooRow, ...]

    def __str__(self) -> str:
        width = max(4, *(len(row.name) for row in self.rows))
        lines = [
            f"{'':<{width}}  {'elpd, nats':>10}  {'+-':>6}  {'p_loo':>6}  {'to best':>8}  {'+-':>6}  "
            f"{'bad k-hat':>9}"
        ]
        for row in self.rows:
            lines.append(
                f"{row.name:<{width}}  {row.elpd:>10.1f}  {row.standard_error:>6.1f}  {row.p_loo:>6.1f}  "
                f"{row.difference:>8.1f}  {row.difference_error:>6.1f}  {row.num_bad:>9d}"
            )
        return "\n".join(lines)


def compare_loo(results: Mapping[str, LooResult]) -> LooComparison:
    r"""Guides, priors or models by what they predict of data left out, with paired standard errors.

    .. math:: \mathrm{se}^2 = N\, \mathrm{Var}_n(\mathrm{elpd}_n^{(a)} - \mathrm{elpd}_n^{(b)})

    A difference of less than four nats, or two standard errors, tells little.

    :param results: name -> :class:`LooResult`, at least two, all of the same data.
    :raises ValueError: for fewer, or of different numbers of data.

    Example::

        >>> import torch
        >>> from bayesbin.infer.checks import compare_loo
        >>> from bayesbin.infer.checks.leave_one_out import LooResult
        >>> def result(values):
        ...     sum = values.sum().item()
        ...     return LooResult(sum, 0.1, 1.0, values, torch.zeros(3), 0.7, 1000, True)
        >>> better, worse = torch.tensor([-0.1, -0.2, -0.3]), torch.tensor([-0.3, -0.4, -0.5])
        >>> table = compare_loo({"worse": result(worse), "better": result(better)})
        >>> table.rows[0].name, round(table.rows[1].difference, 3)
        ('better', -0.6)

    Source: Vehtari, Gelman and Gabry 2017, arXiv 1507.04544, section 5.
    """
    if len(results) < 2 or len({len(result.pointwise) for result in results.values()}) > 1:
        came = ", ".join(f"{name}: {len(result.pointwise)}" for name, result in results.items())
        raise ValueError(
            f"expected two results or more, of the same data, got {came or 'none'} data; run psis_loo on one "
            "data set."
        )
    ordered = sorted(results.items(), key=lambda item: -item[1].elpd)
    best = ordered[0][1].pointwise
    rows = []
    for name, result in ordered:
        difference = result.pointwise - best
        rows.append(
            LooRow(
                name, result.elpd, result.standard_error, result.p_loo,
                difference.sum().item(), _standard_error(difference), result.num_bad,
            )
        )  # fmt: skip
    return LooComparison(tuple(rows))


def _standard_error(pointwise: Tensor) -> float:
    return math.sqrt(len(pointwise) * pointwise.var(correction=0).item())
