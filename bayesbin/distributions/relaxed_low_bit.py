"""The reparameterised stand-in for LowBitCategorical: a Concrete draw between the levels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints as torch_constraints
from torch.distributions import kl_divergence, register_kl

from bayesbin.core import numerics
from bayesbin.core.checks import real_number
from bayesbin.distributions.low_bit import LowBitCategorical, over_levels
from bayesbin.distributions.relaxed import RelaxedSignBernoulli
from bayesbin.distributions.sign_bernoulli import SignBernoulli


class RelaxedLowBit(TorchDistribution):
    r"""Concrete relaxation of a weight with a few levels: a reparameterised draw between them.

    .. math:: w_r = \sum_k l_k\, s_k, \qquad s = \mathrm{softmax}((a + g) / \tau), \qquad
        g_k = -\log(-\log u_k), \quad u_k \sim U(0, 1)

    As tau tends to 0 the draw tends to a level, drawn from softmax(a). Mean and variance are those of
    w_r. With two levels w_r is a scaled ``RelaxedSignBernoulli``, and has its density and entropy; with
    more, the density has no closed form, and ``log_prob`` and ``entropy`` raise NotImplementedError. KL and
    mode are those of the *discrete* distribution of the same logits, as of ``RelaxedSignBernoulli``.

    :param temperature: tau > 0. :param levels: and :param logits: as of :class:`LowBitCategorical`.
    :raises ValueError: for a temperature that is not positive, or as :class:`LowBitCategorical`.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import RelaxedLowBit
        >>> q = RelaxedLowBit(0.5, (-1, 0, 1), torch.zeros(4, 3))
        >>> bool((q.rsample((100,)).abs() <= 1).all())
        True
        >>> [round(v, 3) for v in q.variance.tolist()]
        [0.374, 0.374, 0.374, 0.374]

    Source: Maddison, Mnih and Teh 2017, arXiv 1611.00712; Jang, Gu and Poole 2017, arXiv 1611.01144.
    """

    # torch declares it as a property; its distributions, and ours, set it as a plain attribute.
    arg_constraints: ClassVar[Any] = LowBitCategorical.arg_constraints  # pyright: ignore
    has_rsample = True

    def __init__(
        self,
        temperature: float,
        levels: Sequence[float],
        logits: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.temperature = real_number("temperature", temperature, above=0)
        try:
            self.categorical = LowBitCategorical(levels, logits, validate_args=validate_args)
        except ValueError as error:
            raise ValueError(str(error).replace("LowBitCategorical", type(self).__name__)) from None
        super().__init__(self.categorical.batch_shape, validate_args=False)
        self._validate_args = self.categorical._validate_args

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedLowBit:
        new: Any = self._get_checked_instance(RelaxedLowBit, _instance)
        new.temperature = self.temperature
        new.categorical = self.categorical.expand(batch_shape)
        TorchDistribution.__init__(new, new.categorical.batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def levels(self) -> tuple[float, ...]:
        """The K levels."""
        return self.categorical.levels

    @property
    def logits(self) -> Tensor:
        """a, shape (..., K)."""
        return self.categorical.logits

    @property
    def support(self) -> Any:
        """The interval from the lowest to the highest level."""
        return torch_constraints.interval(self.levels[0], self.levels[-1])

    @property
    def mode(self) -> Tensor:
        """The mode of the discrete distribution: the level of the highest logit."""
        return self.categorical.mode

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Relaxed weights of shape sample_shape + batch_shape, differentiable in the logits."""
        shape = (*self._extended_shape(sample_shape), len(self.levels))
        logits = self.logits.expand(shape)
        uniform = numerics.uniform_noise(logits)
        gumbel = -torch.log(-torch.log(uniform)).to(logits.dtype)
        shares = over_levels(torch.softmax, (logits + gumbel) / self.temperature)
        drawn = (shares * self.categorical.level_values).sum(-1)
        return drawn.clamp(self.levels[0], self.levels[-1])  # shares add up to 1 but for rounding

    @property
    def mean(self) -> Tensor:
        """E[w_r], by quadrature; tends to the mean of the levels as tau tends to 0."""
        return self._centred(torch.zeros_like(self.logits[..., 0]))[0]

    @property
    def variance(self) -> Tensor:
        """Var[w_r], by quadrature; tends to the variance of the levels as tau tends to 0."""
        centre = (
            self.mean.detach()
        )  # about the mean nothing cancels, and the centre has no gradient
        first, second = self._centred(centre)
        return (second - first.square()).clamp(min=0.0)

    def _centred(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """E[w_r - c] and E[(w_r - c)^2]."""
        logits = over_levels(torch.log_softmax, self.logits.double())
        levels = self.categorical.level_values.double()
        away = levels - centre[..., None].double()
        first, second = _share_moments(logits, away, self.temperature)
        return first.to(self.logits.dtype), second.to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density at values between two levels.

        :raises NotImplementedError: with more than two levels.
        """
        relaxed, half = self._as_relaxed_signs("log_prob")
        if self._validate_args:
            self._validate_sample(value)
        return relaxed.log_prob((value - self.levels[0]) / half - 1.0) - math.log(half)

    def entropy(self) -> Tensor:
        """The differential entropy of two levels, in nats.

        :raises NotImplementedError: with more than two levels.
        """
        relaxed, half = self._as_relaxed_signs("entropy")
        return relaxed.entropy() + math.log(half)

    def _as_relaxed_signs(self, wanted: str) -> tuple[RelaxedSignBernoulli, float]:
        """t of w_r = l_1 + (t + 1) h with two levels, and h, half their distance."""
        if len(self.levels) != 2:
            raise NotImplementedError(
                f"{type(self).__name__}.{wanted} is known for two levels, and there are {len(self.levels)}: "
                "the density between more has no closed form. LowBitCategorical has that of the levels."
            )
        natural = 0.5 * (self.logits[..., 1] - self.logits[..., 0])
        relaxed = RelaxedSignBernoulli(self.temperature, natural, validate_args=False)
        return relaxed, 0.5 * (self.levels[1] - self.levels[0])

    def __repr__(self) -> str:
        shape = tuple(self.batch_shape)
        return f"{type(self).__name__}(levels={self.levels}, batch_shape={shape})"


# Moments of s. With E_k = exp(-g_k), exponentially distributed, s_k = e_k / sum_j e_j for independent
# e_k = (exp(a_k) / E_k)^(1/tau), and 1 / x^n = int t^(n-1) exp(-t x) dt / (n-1)! makes of the expectation of
# a ratio an integral of products of functions of one level each. With t = exp(y / tau) and
#   psi(y) = E[exp(-exp(y / tau) E^(-1/tau))] = P(G + tau G' < -y), G and G' two Gumbel variables,
#   S = -psi', X = tau psi'' - psi',
# at y + a_k for each k:
#   E[s_k] = int S_k prod_{i != k} psi_i dy, E[s_k^2] = int X_k prod_{i != k} psi_i dy,
#   E[s_j s_k] = tau int S_j S_k prod_{i != j, k} psi_i dy.
# The integrands are analytic in a strip about the real axis: the trapezoidal rule converges exponentially.


class _Table(NamedTuple):
    """log psi, log S and log X and their slopes per entry, (n, 3), at start + i / _PER_UNIT."""

    start: float
    values: Tensor
    slopes: Tensor


_PER_UNIT = 64
_DEPTH = 40.0  # exp(-40) is far below a rounding of 1


@functools.lru_cache(maxsize=8)
def _table(temperature: float) -> _Table:
    # Of G and tau G' the wider is integrated in closed form, the other by the trapezoidal rule.
    slower = max(1.0, temperature)
    other = min(temperature, 1.0 / temperature)
    start, stop = -_DEPTH * slower, 10.0 + 5.0 * temperature
    step = 0.25
    noise = torch.arange(-4.0, _DEPTH + 8.0, step, dtype=torch.float64)
    density = step * torch.exp(-noise - torch.exp(-noise))
    count = math.ceil((stop - start) * _PER_UNIT)
    places = start + torch.arange(count, dtype=torch.float64) / _PER_UNIT
    u = torch.exp((places[:, None] / slower + other * noise).clamp(max=6.5))
    weight = density * torch.exp(-u)
    psi, one = weight.sum(1), (weight * u).sum(1)
    two, three = (weight * u * u).sum(1), (weight * u * u * u).sum(1)
    tau = temperature
    if tau <= 1:
        x = tau * two + (1 - tau) * one
        x_slope = 2 * tau * two + (1 - tau) * one - tau * three - (1 - tau) * two
    else:
        x, x_slope = two, 2 * two - three
    values = torch.stack([psi, one / slower, x / slower], 1)
    slopes = torch.stack([-one, (one - two) / slower, x_slope / slower], 1) / slower
    kept = int((psi > 1e-40).sum())  # psi falls
    return _Table(start, values[:kept].log(), (slopes / values)[:kept] / _PER_UNIT)


def _look_up(table: _Table, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log psi, log S and log X: cubic between the entries of the table, linear beyond them."""
    last = len(table.values) - 1
    position = (places - table.start) * _PER_UNIT
    inside = position.clamp(0.0, float(last))
    index = inside.detach().long().clamp(max=last - 1)
    t = (inside - index)[..., None]
    device = places.device
    values, slopes = table.values.to(device), table.slopes.to(device)
    low, high, rise = values[index], values[index + 1], slopes[index]
    change = high - low
    curve = slopes[index + 1] - change
    bent = change - rise
    found = low + t * (rise + t * ((2 * bent - curve) + t * (curve - bent)))
    ends = torch.where((position < 0)[..., None], slopes[0], slopes[-1])
    found = found + ends * (position - inside)[..., None]
    return found[..., 0], found[..., 1], found[..., 2]


def _share_moments(logits: Tensor, away: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """E[sum_k c_k s_k] and E[(sum_k c_k s_k)^2], c of the shape of the logits."""
    table = _table(temperature)
    shifts = logits - logits.amax(-1, keepdim=True).detach()
    step = 0.2 * (1.0 + temperature)
    stop = table.start + (len(table.values) - 1) / _PER_UNIT
    first = second = torch.zeros_like(logits[..., 0])
    for i in range(round((stop - table.start) / step) + 1):
        log_psi, log_s, log_x = _look_up(table, shifts + (stop - i * step))
        rest = log_psi.sum(-1, keepdim=True) - log_psi  # of all the other levels
        first = first + step * (away * torch.exp(rest + log_s)).sum(-1)
        own = (away.square() * torch.exp(rest + log_x)).sum(-1)
        ratio = away * torch.exp(log_s - log_psi)
        pairs = ratio.sum(-1).square() - ratio.square().sum(-1)
        second = second + step * (own + temperature * torch.exp(log_psi.sum(-1)) * pairs)
    return first, second


@register_kl(RelaxedLowBit, LowBitCategorical)
def _kl_relaxed_low_bit(q: RelaxedLowBit, p: LowBitCategorical) -> Tensor:
    return kl_divergence(q.categorical, p)


@register_kl(RelaxedLowBit, RelaxedLowBit)
def _kl_relaxed_relaxed(q: RelaxedLowBit, p: RelaxedLowBit) -> Tensor:
    return kl_divergence(q.categorical, p.categorical)


@register_kl(RelaxedLowBit, SignBernoulli)
def _kl_relaxed_sign(q: RelaxedLowBit, p: SignBernoulli) -> Tensor:
    return kl_divergence(q.categorical, p)
