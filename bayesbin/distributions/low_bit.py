"""The distribution of a weight with a few levels: ternary, two bits, four bits; two levels are signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints as torch_constraints
from torch.distributions import register_kl

from bayesbin.core import numerics
from bayesbin.core.checks import real_numbers, whole_number
from bayesbin.distributions.constraints import LevelSet
from bayesbin.distributions.sign_bernoulli import SignBernoulli

TERNARY = (-1.0, 0.0, 1.0)
SIGNS = (-1.0, 1.0)


def equal_levels(bits: int) -> tuple[float, ...]:
    """The 2^bits equally spaced levels from -1 to 1.

    >>> equal_levels(1), len(equal_levels(4))
    ((-1.0, 1.0), 16)
    """
    last = 2 ** whole_number("bits", bits, at_least=1, at_most=8) - 1
    return tuple((2 * k - last) / last for k in range(last + 1))


def checked_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels as numbers, or an error unless there are at least two, finite and increasing."""
    found = real_numbers("levels", levels)
    rising = all(low < high for low, high in pairwise(found))
    if len(found) < 2 or not rising:
        raise ValueError(f"levels are at least two finite increasing numbers; got {found}.")
    return found


class LowBitCategorical(TorchDistribution):
    r"""Distribution of a weight on K levels l_1 < ... < l_K with logits a_1 .. a_K.

    .. math::
        P(w = l_k) = p_k = \mathrm{softmax}(a)_k, \qquad E[w] = \sum_k p_k l_k, \quad
        \mathrm{Var}[w] = \sum_k p_k (l_k - E[w])^2

    Enumerable. KL and entropy are closed-form and finite at every finite logit. With the levels (-1, 1)
    it is the ``SignBernoulli`` with lambda = (a_2 - a_1) / 2. There is no ``rsample``: stock ``Trace_ELBO``
    uses the score function, which is unbiased.

    :param levels: the K levels, increasing: (-1, 0, 1) for ternary weights, ``equal_levels(bits)``.
    :param logits: a, shape (..., K); the batch shape is what comes before K. A constant added to all K
        changes nothing.
    :raises ValueError: for levels that do not increase, or logits that are not finite or not (..., K).

    Example::

        >>> import torch
        >>> from bayesbin.distributions import LowBitCategorical
        >>> q = LowBitCategorical((-1, 0, 1), torch.tensor([[0.0, 0.0, 0.0], [0.0, 50.0, -50.0]]))
        >>> [round(v, 4) for v in q.variance.tolist()]
        [0.6667, 0.0]
        >>> q.mode.tolist()
        [1.0, 0.0]

    Source: Yang et al. 2020, arXiv 2009.08695 (SLB); Shayer, Levi and Fetaya 2018, arXiv 1710.07739.
    """

    # torch declares these two as properties; its distributions, and ours, set them as plain attributes.
    arg_constraints: ClassVar[Any] = {  # pyright: ignore
        "logits": torch_constraints.independent(torch_constraints.real, 1)
    }
    has_enumerate_support = True

    def __init__(
        self, levels: Sequence[float], logits: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.levels = checked_levels(levels)
        self.logits = logits
        if not isinstance(logits, Tensor) or logits.shape[-1:] != (len(self.levels),):
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{len(self.levels)} levels have logits of shape (..., {len(self.levels)}); got {came}."
            )
        checked = self._validate_args if validate_args is None else validate_args
        if checked and not bool(torch.isfinite(logits).all()):
            raise ValueError(
                f"{type(self).__name__} expected finite logits; got NaN or infinity. A level that "
                "must not occur has a logit 80 below the others, not -inf."
            )
        # torch's own check of logits fails where there are no weights.
        super().__init__(logits.shape[:-1], validate_args=False)
        self._validate_args = checked

    @property
    def support(self) -> Any:
        """The set of levels."""
        return LevelSet(self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowBitCategorical:
        new: Any = self._get_checked_instance(LowBitCategorical, _instance)
        new.levels = self.levels
        new.logits = self.logits.expand(*batch_shape, len(self.levels))
        TorchDistribution.__init__(new, new.logits.shape[:-1], validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def level_values(self) -> Tensor:
        """The levels as a tensor (K,) of the logits' type."""
        return torch.tensor(self.levels, dtype=self.logits.dtype, device=self.logits.device)

    @property
    def log_probs(self) -> Tensor:
        """log p, shape (..., K)."""
        return over_levels(torch.log_softmax, self.logits)

    @property
    def probs(self) -> Tensor:
        """p, shape (..., K)."""
        return over_levels(torch.softmax, self.logits)

    @property
    def mean(self) -> Tensor:
        """E[w]."""
        return (self.probs * self.level_values).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Var[w], as a sum of squares: nothing cancels where one level is all but certain."""
        return self.moments()[1]

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles: the smallest level whose cumulative probability is at least ``value`` in [0, 1]."""
        below = self.probs.cumsum(-1)[..., :-1] < value[..., None]
        return self.level_values[below.sum(-1)]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, from one pass over the logits."""
        probs, levels = self.probs, self.level_values
        mean = (probs * levels).sum(-1)
        return mean, (probs * (levels - mean[..., None]).square()).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The level of the highest logit; of several, the largest: +1 for a sign at lambda = 0."""
        last = len(self.levels) - 1
        return self.level_values[last - self.logits.flip(-1).argmax(-1)]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Levels of shape sample_shape + batch_shape, in the logits' dtype."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            like = torch.empty(shape, dtype=self.logits.dtype, device=self.logits.device)
            uniform = numerics.uniform_noise(like)
            # A uniform number counts the levels whose cumulated probability it exceeds.
            probs = over_levels(torch.softmax, self.logits.to(uniform.dtype))
            cumulated = torch.zeros((), dtype=uniform.dtype, device=uniform.device)
            index = torch.zeros(shape, dtype=torch.long, device=uniform.device)
            for k in range(len(self.levels) - 1):
                cumulated = cumulated + probs[..., k]
                index += uniform >= cumulated
            drawn: Any = self.level_values[index]
            drawn._levels = self.levels  # a prior of signs refuses other levels
            return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of a level, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._at(_shared_log_probs(self.logits), self._index(value))

    def score(self, value: Tensor) -> Tensor:
        """d log p / d logits at levels: 1 at the level, less p; shape (..., K), no graph."""
        hit = torch.nn.functional.one_hot(self._index(value), len(self.levels))
        return hit.to(self.logits.dtype) - self.probs.detach()

    def _index(self, value: Tensor) -> Tensor:
        """Which level is the nearest, of two the lower: a pass for each is faster than an argmin."""
        index = torch.zeros(value.shape, dtype=torch.long, device=value.device)
        for lower, upper in pairwise(self.levels):
            index += value > 0.5 * (lower + upper)
        return index

    def _at(self, table: Tensor, index: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(self.batch_shape, index.shape)
        if table.numel() == len(self.levels):  # one distribution for all weights
            return (
                table.reshape(-1).index_select(0, index.reshape(-1)).view(index.shape).expand(shape)
            )
        table = table.expand(*shape, len(self.levels))
        return table.gather(-1, index.expand(shape)[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """-sum_k p_k log p_k, in nats: between 0 and log K."""
        log_probs = self.log_probs
        return -(log_probs.exp() * log_probs).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The levels along a new leftmost dimension."""
        values = self.level_values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values

    def _validate_sample(self, value: Tensor) -> None:
        try:
            torch.broadcast_shapes(value.shape, self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Values of shape {tuple(value.shape)} do not broadcast against the batch shape "
                f"{tuple(self.batch_shape)} of {type(self).__name__}."
            ) from None
        if not bool(self.support.check(value).all()):
            raise ValueError(f"{type(self).__name__}.log_prob takes the levels {self.levels} only.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(levels={self.levels}, batch_shape={tuple(self.batch_shape)})"


@register_kl(LowBitCategorical, LowBitCategorical)
def _kl_low_bit(q: LowBitCategorical, p: LowBitCategorical) -> Tensor:
    if q.levels != p.levels:
        raise ValueError(
            f"KL is between distributions on the same levels; got {q.levels} in the posterior and "
            f"{p.levels} in the prior."
        )
    log_q, log_p = q.log_probs, _shared_log_probs(p.logits)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def _shared_log_probs(logits: Tensor) -> Tensor:
    """log p, with one entry for all weights along the dimensions that share it."""
    return over_levels(torch.log_softmax, numerics.without_repeats(logits, keep=1))


def over_levels(function: Callable[..., Tensor], logits: Tensor) -> Tensor:
    """A softmax over the levels, in memory one level after the other.

    Over a last dimension of three numbers torch takes ten times as long as over a first one.
    """
    return function(logits.movedim(-1, 0).contiguous(), 0).movedim(0, -1)


@register_kl(LowBitCategorical, SignBernoulli)
def _kl_low_bit_sign(q: LowBitCategorical, p: SignBernoulli) -> Tensor:
    logits = torch.stack([-p.natural, p.natural], -1)
    return _kl_low_bit(q, LowBitCategorical(SIGNS, logits, validate_args=False))


@register_kl(SignBernoulli, LowBitCategorical)
def _kl_sign_low_bit(q: SignBernoulli, p: LowBitCategorical) -> Tensor:
    logits = torch.stack([-q.natural, q.natural], -1)
    return _kl_low_bit(LowBitCategorical(SIGNS, logits, validate_args=False), p)
