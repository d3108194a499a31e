"""Reparameterised stand-ins for SignBernoulli: the Concrete distribution on (-1, 1) and the
straight-through draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints as torch_constraints
from torch.distributions import register_kl

from bayesbin.core import numerics
from bayesbin.core.differentiable import Elementwise, applied
from bayesbin.distributions import constraints
from bayesbin.distributions.sign_bernoulli import SignBernoulli

_REACH = 22.0  # sech^2 is below 1e-18 beyond


def _sech2(x: float) -> float:
    return 1.0 / math.cosh(x) ** 2


class RelaxedSignBernoulli(TorchDistribution):
    r"""Concrete relaxation of a sign: a reparameterised distribution on (-1, 1).

    .. math::
        w_r = \tanh\frac{\lambda + \delta}{\tau}, \quad \delta = \tfrac12 \mathrm{logit}(u),
        \quad u \sim U(0, 1), \qquad
        \log p(w_r) = \log\frac{\tau}{2} + \log \mathrm{sech}^2(\tau\,\mathrm{artanh}\,w_r - \lambda)
        - \log(1 - w_r^2).

    As tau tends to 0 the draw tends to the hard draw of the same noise. The KL to a ``SignBernoulli``
    (or between two relaxed distributions) is the closed form of the *discrete* distributions at the
    same natural parameters: the objective that stock ``TraceMeanField_ELBO`` then optimises has the
    exact KL and a likelihood averaged over relaxed weights, so its gradient is biased for the
    discrete posterior.

    :param temperature: tau > 0, a number or a tensor that broadcasts against ``natural``.
    :param natural: lambda, half the log-odds of the sign, any shape.
    :raises ValueError: if the temperature is not positive or a natural parameter is not finite.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import RelaxedSignBernoulli
        >>> q = RelaxedSignBernoulli(temperature=0.5, natural=torch.zeros(3))
        >>> bool((q.rsample((100,)).abs() <= 1).all())
        True

    Source: Maddison, Mnih and Teh 2017, arXiv 1611.00712; Jang, Gu and Poole 2017, arXiv 1611.01144;
    on {-1, +1}: Meng, Bachmann and Khan 2020, arXiv 2002.10778.
    """

    # torch declares these two as properties; its distributions, and ours, set them as plain attributes.
    arg_constraints: ClassVar[Any] = {  # pyright: ignore
        "natural": torch_constraints.real,
        "temperature": torch_constraints.positive,
    }
    support: Any = constraints.relaxed_signs  # pyright: ignore
    has_rsample = True

    def __init__(
        self, temperature: Tensor | float, natural: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.signs = SignBernoulli(natural=natural, validate_args=validate_args)
        self.natural = self.signs.natural
        self.temperature = torch.as_tensor(
            temperature, dtype=self.natural.dtype, device=self.natural.device
        )
        if not bool(((self.temperature > 0) & torch.isfinite(self.temperature)).all()):
            raise ValueError(
                f"The temperature of {type(self).__name__} is positive and finite; got {temperature}. "
                "For hard draws use SignBernoulli or SignBernoulliStraightThrough."
            )
        shape = torch.broadcast_shapes(self.natural.shape, self.temperature.shape)
        if shape != self.natural.shape:
            self.signs = self.signs.expand(shape)
            self.natural = self.signs.natural
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedSignBernoulli:
        new: Any = self._get_checked_instance(RelaxedSignBernoulli, _instance)
        new.signs = self.signs.expand(batch_shape)
        new.natural = new.signs.natural
        new.temperature = self.temperature
        TorchDistribution.__init__(new, new.natural.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Relaxed signs of shape sample_shape + batch_shape, differentiable in lambda and tau."""
        natural = self.natural.expand(self._extended_shape(sample_shape))
        shifted = natural + numerics.logistic_noise(natural)
        return numerics.relaxed_signs(shifted, self.temperature)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density at relaxed signs; a value that rounded to +-1 is read as its neighbour."""
        if self._validate_args:
            self._validate_sample(value)
        edge = 1.0 - torch.finfo(self.natural.dtype).eps
        value = value.clamp(-edge, edge)
        shifted = self.temperature * torch.atanh(value) - self.natural
        return (
            torch.log(self.temperature)
            - numerics.LOG_2
            + numerics.log_variance(shifted)
            - torch.log1p(-value * value)
        )

    @property
    def mode(self) -> Tensor:
        """The mode of the discrete distribution: the sign of lambda."""
        return self.signs.mode

    # With G(t) = P(w_r > t) = sigmoid(2 (lambda - tau artanh t)) and t = tanh x, E[g(w_r)] is
    # g(-1) + int g'(t) G(t) dt: an integral over x of smooth functions that decay like exp(-2|x|), for
    # which the trapezoidal rule converges exponentially.

    @property
    def mean(self) -> Tensor:
        """E[w_r], by quadrature; tends to tanh(lambda) as tau tends to 0."""
        return self._integral(lambda x: _sech2(x)) - 1.0

    @property
    def variance(self) -> Tensor:
        """Var[w_r], by quadrature; tends to sech^2(lambda) as tau tends to 0."""
        second = self._integral(lambda x: 2.0 * math.tanh(x) * _sech2(x)) + 1.0
        return (second - self.mean.square()).clamp(min=0.0)

    def _integral(self, weight: Callable[[float], float]) -> Tensor:
        total = torch.zeros_like(self.natural)
        step = self._step()
        for k in range(-round(_REACH / step), round(_REACH / step) + 1):
            x = k * step
            share = torch.sigmoid(2.0 * (self.natural - self.temperature * x))
            total = total + step * weight(x) * share
        return total

    def entropy(self) -> Tensor:
        r"""The differential entropy in nats, by quadrature; falls without bound as tau tends to 0.

        .. math:: H = 2 - \log\frac{\tau}{2} - \frac{2}{\tau} A(\lambda)
            - 2\,E[\mathrm{softplus}(-2|\lambda + \delta| / \tau)]
        """
        rest = torch.zeros_like(self.natural)
        step = self._step()
        count = 2 * round(_REACH / step / 2)
        for k in range(count + 1):  # Simpson's rule on the half-line, where the integrand is smooth
            y = k * step
            weight = step / 3.0 * (1 if k in (0, count) else 4 if k % 2 else 2)
            density = torch.exp(numerics.log_variance(self.temperature * y - self.natural))
            density = density + torch.exp(
                numerics.log_variance(self.temperature * y + self.natural)
            )
            rest = rest + weight * math.log1p(math.exp(-2.0 * y)) * self.temperature * density / 2.0
        tau = self.temperature
        return 2.0 - torch.log(tau / 2.0) - 2.0 / tau * self.signs.log_partition - 2.0 * rest

    def _step(self) -> float:
        # The steepest factor changes over 1 / tau.
        return 0.05 / max(1.0, float(self.temperature.max())) if self.temperature.numel() else 0.05

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)})"


class SignBernoulliStraightThrough(SignBernoulli):
    r"""SignBernoulli with hard draws whose gradient passes to the mean: dw/d mu = 1.

    .. math:: w = \mathrm{sign}(\lambda + \delta), \qquad
        \partial w / \partial \lambda := \partial \tanh(\lambda) / \partial \lambda = F(\lambda).

    Has ``rsample``, so stock ``TraceMeanField_ELBO`` accepts it, with the exact KL of the discrete
    distribution. The gradient of the likelihood term is exact for functions that are multilinear in
    the signs and biased for curved ones.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import SignBernoulliStraightThrough
        >>> natural = torch.zeros(4, requires_grad=True)
        >>> w = SignBernoulliStraightThrough(natural=natural).rsample()
        >>> w.sum().backward(); natural.grad.tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: Bengio, Leonard and Courville 2013, arXiv 1308.3432.
    """

    has_rsample = True
    has_enumerate_support = False

    def expand(self, batch_shape: Any, _instance: Any = None) -> SignBernoulliStraightThrough:
        return super().expand(
            batch_shape, self._get_checked_instance(SignBernoulliStraightThrough, _instance)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Hard signs whose value is exactly +-1 and whose gradient is that of the mean."""
        mean = numerics.mean(self.natural).expand(self._extended_shape(sample_shape))
        return straight_through(self.sample(sample_shape), mean)


def straight_through(signs: Tensor, mean: Tensor) -> Tensor:
    """``signs`` in the forward pass, ``mean`` in the backward pass."""
    return _apply_straight_through(signs, mean)


class _StraightThrough(Elementwise):
    @staticmethod
    def forward(signs: Tensor, mean: Tensor) -> Tensor:
        return signs.view_as(signs)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        return None, grads[0]

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        return tangents[1].view_as(tangents[1])


_apply_straight_through = applied(_StraightThrough)


@register_kl(RelaxedSignBernoulli, SignBernoulli)
def _kl_relaxed_sign(q: RelaxedSignBernoulli, p: SignBernoulli) -> Tensor:
    return torch.distributions.kl_divergence(q.signs, p)


@register_kl(RelaxedSignBernoulli, RelaxedSignBernoulli)
def _kl_relaxed_relaxed(q: RelaxedSignBernoulli, p: RelaxedSignBernoulli) -> Tensor:
    return torch.distributions.kl_divergence(q.signs, p.signs)
