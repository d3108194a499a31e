"""Antithetic draws: ARM, DisARM and ARMS, for any objective, differentiable or not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.checks import whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.plates import evaluate
from bayesbin.estimators.surrogate import (
    combination,
    signs_at,
    uniform_draws,
    weighted_score,
    with_gradient,
)


class _Pairs(Estimator):
    """Draws w from u and w' from 1 - u, for all weights at once; a subclass weighs their difference."""

    unbiased = True

    def __init__(self, num_pairs: int = 1) -> None:
        super().__init__()
        self.num_pairs = whole_number("num_pairs", num_pairs, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        noise = uniform_draws(natural, self.num_pairs)
        mirrored = {name: [1.0 - u for u in sequence] for name, sequence in noise.items()}
        one, other = signs_at(natural, noise), signs_at(natural, mirrored)
        evaluation = evaluate(objective, {name: one[name] + other[name] for name in natural})
        results = evaluation.total
        gradients = {}
        for name, lam in natural.items():
            first, second = evaluation.of_site(name, lam.dim()).detach().chunk(2)
            difference = (first - second) / self.num_pairs
            gradients[name] = self.gradient(
                lam.detach(), difference, noise[name], one[name], other[name]
            )
        return with_gradient(results.mean(), natural, gradients)

    @abstractmethod
    def gradient(
        self,
        natural: Tensor,
        difference: Tensor,
        noise: Sequence[Tensor],
        one: Sequence[Tensor],
        other: Sequence[Tensor],
    ) -> Tensor:
        """The gradient of one site from f(w) - f(w'), the noise and the draws of each pair.

        :param difference: as the elements of the site see it, (pairs,) or (pairs, *sizes).
        """

    def extra_repr(self) -> str:
        return f"num_pairs={self.num_pairs}"


class ARM(_Pairs):
    r"""Augment-REINFORCE-merge: the difference over a mirrored pair, times its noise.

    .. math::
        \hat\nabla_\lambda = (f(w) - f(w'))\,(2u - 1), \qquad
        w = \mathrm{sign}(u - \sigma(-2\lambda)), \quad w' = \mathrm{sign}(\sigma(2\lambda) - u)

    Unbiased. Kept for comparison: :class:`DisARM` integrates out the part of u that the pair does not
    show, at the same cost and with never more variance.

    :param num_pairs: pairs averaged per call, two evaluations of f each.
    :raises ValueError: for fewer than one.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import ARM
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> ARM()(objective, natural).item()  # the two draws are opposite at lambda = 0
        0.0

    Source: Yin and Zhou 2019, arXiv 1807.11143.
    """

    def gradient(
        self,
        natural: Tensor,
        difference: Tensor,
        noise: Sequence[Tensor],
        one: Sequence[Tensor],
        other: Sequence[Tensor],
    ) -> Tensor:
        return combination(2.0 * difference, noise).sub_(difference.sum(0)).to(natural.dtype)


class DisARM(_Pairs):
    r"""ARM with the noise integrated out given the pair it led to; also published as U2G.

    .. math::
        \hat\nabla_\lambda = (f(w) - f(w'))\,\frac{w - w'}{2}\,\sigma(2|\lambda|)

    on the same mirrored pairs (w, w') as :class:`ARM`. Unbiased, and never of more variance than ARM.

    :param num_pairs: pairs averaged per call, two evaluations of f each.
    :raises ValueError: for fewer than one.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import DisARM
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.prod() for w in values["w"]])
        >>> DisARM(num_pairs=2)(objective, natural).backward(); natural["w"].grad.shape
        torch.Size([3])

    Source: Dong, Mnih and Tucker 2020, arXiv 2006.10680; Yin, Ho, Yan, Qian and Zhou 2020,
    arXiv 2006.11448 (U2G).
    """

    def gradient(
        self,
        natural: Tensor,
        difference: Tensor,
        noise: Sequence[Tensor],
        one: Sequence[Tensor],
        other: Sequence[Tensor],
    ) -> Tensor:
        # Pair by pair: a weight that is the same in both of a pair adds exactly nothing.
        draws = [draw for pair in zip(one, other, strict=True) for draw in pair]
        halves = torch.stack([0.5 * difference, -0.5 * difference], 1).flatten(0, 1)
        return combination(halves, draws).mul_(torch.sigmoid(2.0 * natural.abs()))


class ARMS(Estimator):
    r"""n mutually antithetic draws, each with the others as its baseline.

    .. math::
        \hat\nabla_\lambda = \frac{1}{n - 1} \sum_i (f(w_i) - \bar f)\,\frac{w_i - \mu}{1 - \rho}, \qquad
        \rho = \frac{P(r_i, r_j) - r^2}{r (1 - r)}

    with r = sigmoid(-2|lambda|) the probability of the rarer sign and P that of two draws both showing
    it. The n uniforms of a weight come from a Dirichlet copula, under which rarer signs avoid one
    another: P = max(0, 2 r^(1/(n-1)) - 1)^(n-1). Unbiased; with n = 2 it is :class:`DisARM`.

    :param num_samples: n, at least 2, one evaluation of f each.
    :raises ValueError: for fewer than two.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import ARMS
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.prod() for w in values["w"]])
        >>> ARMS(num_samples=4)(objective, natural).backward(); natural["w"].grad.shape
        torch.Size([3])

    Source: Dimitriev and Zhou 2021, arXiv 2105.14141.
    """

    unbiased = True

    def __init__(self, num_samples: int = 4) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=2)

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        count = self.num_samples
        signs, gradients = {}, {}
        for name, lam in natural.items():
            signs[name] = list(_antithetic_signs(lam.detach(), count))
        evaluation = evaluate(objective, signs)
        for name, lam in natural.items():
            results = evaluation.of_site(name, lam.dim()).detach()
            weights = (results - results.mean(0)) / (count - 1)
            total = weighted_score(weights, signs[name], lam, centred=True)
            gradients[name] = total / _one_minus_correlation(lam.detach(), count)
        return with_gradient(evaluation.total.mean(), natural, gradients)

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"


def _antithetic_signs(natural: Tensor, count: int) -> Tensor:
    """``count`` draws, each with the distribution of one weight, that avoid showing the rarer sign together.

    With d ~ Dirichlet(1, ..., 1), u_i = 1 - (1 - d_i)^(n-1) is uniform, and u_i > 1 - r is the event
    d_i > 1 - r^(1/(n-1)): the rarer sign sits in the upper tail, where few d_i have room at once.
    """
    dtype = torch.float64 if natural.dtype == torch.float64 else torch.float32
    wide = natural.to(dtype)
    # exp(-E) are the uniforms of the package's own source of noise; their logs are exponential.
    shares = torch.stack([-torch.log(numerics.uniform_noise(wide)) for _ in range(count)])
    shares = shares / shares.sum(0)
    threshold = -torch.expm1(_log_rarer(wide) / (count - 1))
    likelier = numerics.sign_of(wide)
    return torch.where(shares > threshold, -likelier, likelier).to(natural.dtype)


def _one_minus_correlation(natural: Tensor, count: int) -> Tensor:
    log_rarer = _log_rarer(natural)
    rarer = log_rarer.exp()
    together = (2.0 * torch.exp(log_rarer / (count - 1)) - 1.0).clamp_min(0.0).pow(count - 1)
    # 1 - rho = (r - P) / (r (1 - r)); P is 0 long before r underflows.
    ratio = torch.where(together > 0, together / rarer.clamp_min(1e-30), 0.0)
    return (1.0 - ratio) / torch.sigmoid(2.0 * natural.abs())


def _log_rarer(natural: Tensor) -> Tensor:
    """log r = log sigmoid(-2|lambda|)."""
    return torch.nn.functional.logsigmoid(-2.0 * natural.abs())
