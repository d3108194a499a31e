"""Bias, variance and cost of gradient estimators, at one model, guide and batch."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.estimators import BatchObjective, DisARM, Enumerate, Estimator, LocalExpectation
from bayesbin.estimators.base import Objective, Values
from bayesbin.estimators.surrogate import draw_signs
from bayesbin.infer.batches import arguments
from bayesbin.infer.checks.gradient_statistics import GradientStatistics, Reference
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.infer.noise import NoiseStream
from bayesbin.optim import make_optimizers, training_groups

REPORT_NOISE = 3  # stream number, apart from those of training
_LARGEST_ENUMERATED, _LARGEST_FLIPPED = 12, 2000


@dataclass(frozen=True)
class EstimatorRow:
    """What one estimator's gradients in lambda were like. Gradients are of E_q[log p(y | w)], in nats.

    :param bias: norm of the bias, corrected for the noise of both sides; 0 where that exceeds it.
    :param bias_standard_error: of that norm. :param reference_norm: what to hold it against.
    :param total_variance: of one gradient, summed over the weights.
    :param evaluations: of the model, per gradient. :param seconds: per gradient, median.
    :param computation: seconds in units of one evaluation of the model without gradient.
    :param variance_times_computation: the variance left when that much computation as one evaluation
        takes is spent on averaging; of two unbiased estimators, the smaller one wins.
    :param cosine: of one gradient with the reference, mean.
    """

    name: str
    unbiased: bool
    bias: float
    bias_standard_error: float
    reference_norm: float
    total_variance: float
    evaluations: float
    seconds: float
    computation: float
    variance_times_computation: float
    cosine: float


@dataclass(frozen=True)
class EstimatorReport:
    """The rows of :func:`estimator_report`; ``str`` gives the table, ``to_dict`` goes into JSON.

    :param reference: how the true gradient was found; its own standard error is the norm over the
        weights, 0 if it is exact.
    """

    rows: tuple[EstimatorRow, ...]
    reference: str
    reference_standard_error: float
    num_weights: int
    num_replicates: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dictionaries of strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len("estimator"), *(len(row.name) for row in self.rows))
        norm = self.rows[0].reference_norm
        lines = [
            f"{self.num_weights:,} weights, {self.num_replicates} gradients each; |gradient| {norm:.4g} "
            f"+- {self.reference_standard_error:.2g} by {self.reference}",
            f"{'estimator':<{width}}  {'unbiased':>8}  {'|bias| +- s.e.':>20}  {'variance':>10}  "
            f"{'evals':>6}  {'ms':>8}  {'forwards':>8}  {'var x fwd':>10}  {'cosine':>6}",
        ]
        for row in self.rows:
            bias = f"{row.bias:.3g} +- {row.bias_standard_error:.2g}"
            lines.append(
                f"{row.name:<{width}}  {'yes' if row.unbiased else 'no':>8}  {bias:>20}  "
                f"{row.total_variance:>10.3g}  {row.evaluations:>6.4g}  {1e3 * row.seconds:>8.3g}  "
                f"{row.computation:>8.3g}  {row.variance_times_computation:>10.3g}  {row.cosine:>6.3f}"
            )
        return "\n".join(lines)


def estimator_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: Any,
    estimators: Iterable[Estimator] | Mapping[str, Estimator],
    num_replicates: int = 200,
    *,
    reference: Estimator | None = None,
    reference_replicates: int | None = None,
    num_warmup: int = 100,
    seed: int = 0,
) -> EstimatorReport:
    r"""Bias, variance and cost of each estimator's gradient of E_q[log p(y | w)] in lambda.

    .. math::
        \text{bias} = \lVert E\hat g - \nabla_\lambda E_q[\log p(y | w)] \rVert, \qquad
        \text{variance} = \sum_j \mathrm{Var}(\hat g_j)

    at the guide's present parameters, one batch and one draw of the real-valued sites, if any. The
    estimators take turns, so that a busy machine slows all of them; each is copied, and first runs
    ``num_warmup`` times, in which baselines fill and what it learns is tuned (Adam, lr 0.01).

    :param batch: what the model is called with: a tuple, list, dict or tensor.
    :param estimators: by name, or named by their settings.
    :param num_replicates: gradients of each. :param reference: whose mean is the true gradient: by
        default Enumerate up to 12 weights, LocalExpectation up to 2000, DisARM beyond.
    :param reference_replicates: its gradients; by default 1 if it is Enumerate, 40 if
        LocalExpectation, else ten times num_replicates.
    :raises ValueError: for fewer than 20 replicates, no estimator, two of one name, or a guide without
        binary sites; and what an estimator raises for this model.

    Example::

        >>> from bayesbin import nn
        >>> from bayesbin.estimators import DisARM, StraightThrough
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> model = nn.Classifier(nn.BinaryLinear(3, 2), dataset_size=4)
        >>> batch = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> estimators = {"DisARM": DisARM(), "straight-through": StraightThrough()}
        >>> report = estimator_report(model, AutoSignBernoulli(model), batch, estimators, 20)
        >>> [row.name for row in report.rows], report.num_weights
        (['DisARM', 'straight-through'], 6)

    Source: the comparisons of Dong, Mnih and Tucker 2020, arXiv 2006.10680.
    """
    num_replicates = whole_number(
        "num_replicates", num_replicates, at_least=GradientStatistics.GROUPS
    )
    num_warmup = whole_number("num_warmup", num_warmup)
    if reference_replicates is not None:
        reference_replicates = whole_number(
            "reference_replicates", reference_replicates, at_least=1
        )
    named = _named(estimators)
    probe = _Probe(named, num_replicates, reference, reference_replicates, num_warmup, seed)
    device = next((p.device for p in _parameters(guide)), torch.device("cpu"))
    args, kwargs = arguments(batch, device)
    with NoiseStream(seed, REPORT_NOISE, 0).active(), torch.enable_grad():
        TraceBinary_ELBO(probe).terms(model, guide, *args, **kwargs)
    if probe.report is None:
        raise ValueError("The guide has no SignBernoulli site that an estimator could be used on.")
    return probe.report


class _Probe(Estimator):
    """Sits in an ELBO in an estimator's place, and tries others on the objective that it is handed."""

    unbiased = True

    def __init__(
        self,
        estimators: dict[str, Estimator],
        num_replicates: int,
        reference: Estimator | None,
        reference_replicates: int | None,
        num_warmup: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.candidates = {name: copy.deepcopy(e).train() for name, e in estimators.items()}
        self.num_replicates, self.num_warmup, self.seed = num_replicates, num_warmup, seed
        self.reference, self.reference_replicates = reference, reference_replicates
        self.report: EstimatorReport | None = None

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        leaves = {name: lam.detach().clone().requires_grad_() for name, lam in natural.items()}
        size = sum(lam.numel() for lam in leaves.values())
        reference, text = self._true_gradient(objective, leaves, size)
        for estimator in self.candidates.values():
            _warm_up(estimator, objective, leaves, self.num_warmup)
        seen = {name: GradientStatistics(reference) for name in self.candidates}
        seconds: dict[str, list[float]] = {name: [] for name in self.candidates}
        counts = dict.fromkeys(self.candidates, 0)
        forwards = []
        for _ in range(self.num_replicates):
            forwards.append(_seconds_of_one_evaluation(objective, leaves))
            for name, estimator in self.candidates.items():
                counted = _Counted(objective)
                begin = time.perf_counter()
                gradient = _gradient(estimator, counted.as_objective(), leaves)
                seconds[name].append(time.perf_counter() - begin)
                seen[name].add(gradient)
                counts[name] += counted.evaluations
        forward = statistics.median(forwards)
        rows = []
        for name, estimator in self.candidates.items():
            each = statistics.median(seconds[name])
            bias, error = seen[name].bias()
            variance = seen[name].total_variance()
            rows.append(
                EstimatorRow(
                    name, estimator.unbiased, bias, error, reference.norm(), variance,
                    counts[name] / self.num_replicates, each, each / forward,
                    variance * each / forward, seen[name].cosine(),
                )
            )  # fmt: skip
        self.report = EstimatorReport(
            tuple(rows), text, reference.standard_error(), size, self.num_replicates, self.seed
        )
        return objective(draw_signs(natural, 1)).mean()

    def _true_gradient(
        self, objective: Objective, leaves: Mapping[str, Tensor], size: int
    ) -> tuple[Reference, str]:
        estimator, count = self.reference, self.reference_replicates
        if estimator is None:
            if size <= _LARGEST_ENUMERATED:
                estimator = Enumerate()
            else:
                estimator = LocalExpectation() if size <= _LARGEST_FLIPPED else DisARM()
        exact = isinstance(estimator, Enumerate)
        if count is None:
            few = isinstance(estimator, LocalExpectation)
            count = 1 if exact else 40 if few else 10 * self.num_replicates
        gradients = Reference(exact)
        for _ in range(1 if exact else max(count, GradientStatistics.GROUPS)):
            gradients.add(_gradient(estimator, objective, leaves))
        return gradients, f"{estimator}" if exact else f"{gradients.count} x {estimator}"


class _Counted:
    """Counts the draws that an objective is evaluated at."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.evaluations = objective, 0

    def as_objective(self) -> Objective:
        """The objective, with its batch and its terms if it knows them."""
        if isinstance(self.objective, BatchObjective):
            return dataclasses.replace(self.objective, evaluate=self._evaluate)
        return self._evaluate

    def _evaluate(self, values: Values) -> Any:
        self.evaluations += len(next(iter(values.values())))
        if isinstance(self.objective, BatchObjective):
            return self.objective.evaluate(values)
        return self.objective(values)


def _gradient(estimator: Estimator, objective: Objective, leaves: Mapping[str, Tensor]) -> Tensor:
    """One gradient over all sites, as a vector in float64 on the CPU."""
    surrogate = estimator(objective, leaves)
    slopes = torch.autograd.grad(surrogate, list(leaves.values()), materialize_grads=True)
    return torch.cat([slope.flatten().double().cpu() for slope in slopes])


def _seconds_of_one_evaluation(objective: Objective, leaves: Mapping[str, Tensor]) -> float:
    signs = draw_signs(leaves, 1)
    begin = time.perf_counter()
    with torch.no_grad():
        objective(signs)
    return time.perf_counter() - begin


def _warm_up(
    estimator: Estimator, objective: Objective, leaves: Mapping[str, Tensor], steps: int
) -> None:
    learned = [p for p in estimator.parameters() if p.requires_grad]
    optimizers = make_optimizers(training_groups(estimator))
    for _ in range(steps if learned or any(True for _ in estimator.buffers()) else 1):
        surrogate = estimator(objective, leaves)
        for optimizer in optimizers:
            slopes = torch.autograd.grad(-surrogate, learned, materialize_grads=True)
            for parameter, slope in zip(learned, slopes, strict=True):
                parameter.grad = slope
            optimizer.step()


def _named(estimators: Iterable[Estimator] | Mapping[str, Estimator]) -> dict[str, Estimator]:
    if isinstance(estimators, Mapping):
        pairs = [(str(name), estimator) for name, estimator in estimators.items()]
    else:
        pairs = [(repr(estimator), estimator) for estimator in estimators]
    for name, estimator in pairs:
        if not isinstance(estimator, Estimator):
            raise ValueError(
                f"estimators are instances such as DisARM(); got {estimator!r} ({name})."
            )
    if not pairs or len(dict(pairs)) < len(pairs):
        raise ValueError(
            f"Expected estimators with a name each; got {', '.join(name for name, _ in pairs) or 'none'}."
        )
    return dict(pairs)


def _parameters(guide: Any) -> Iterable[Tensor]:
    return guide.parameters() if isinstance(guide, torch.nn.Module) else ()
