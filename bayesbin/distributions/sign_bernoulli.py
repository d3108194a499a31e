"""The distribution of a binary weight: an exponential family on {-1, +1}."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints as torch_constraints
from torch.distributions import register_kl
from torch.overrides import handle_torch_function, has_torch_function

from bayesbin.core import numerics
from bayesbin.distributions import constraints


class SignBernoulli(TorchDistribution):
    r"""Distribution of a sign w in {-1, +1} with natural parameter lambda, half the log-odds of +1.

    .. math::
        \log p(w) = \lambda w - \log 2\cosh\lambda, \qquad
        P(w = +1) = \sigma(2\lambda), \quad
        E[w] = \tanh\lambda, \quad \mathrm{Var}[w] = \mathrm{sech}^2\lambda = F(\lambda).

    Note the factor 2: ``logits`` (the log-odds) is twice ``natural``. The variance is the Fisher
    information of lambda. ``log_prob`` is linear in w and so extends to relaxed signs in [-1, +1].
    There is no ``rsample``: stock ``Trace_ELBO`` uses the score function, which is unbiased.

    :param natural: lambda, any shape (the batch shape), finite, float32, float64 or bfloat16.
    :param logits: 2 lambda, instead of ``natural``.
    :param probs: P(w = +1), strictly between 0 and 1, instead of ``natural``.
    :param mean: tanh(lambda), strictly between -1 and 1, instead of ``natural``.
    :raises ValueError: unless exactly one of the four is given, finite and inside its range.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import SignBernoulli
        >>> q = SignBernoulli(natural=torch.tensor([0.0, 0.5, -40.0]))
        >>> [round(m, 4) for m in q.mean.tolist()]
        [0.0, 0.4621, -1.0]
        >>> p = SignBernoulli(natural=-q.natural)
        >>> bool(torch.isfinite(torch.distributions.kl_divergence(q, p)).all())
        True

    Source: Wainwright and Jordan, Graphical Models, Exponential Families, and Variational Inference,
    2008, section 3 (the exponential family); Meng, Bachmann and Khan 2020, arXiv 2002.10778 (its use).
    """

    # torch declares these two as properties; its distributions, and ours, set them as plain attributes.
    arg_constraints: ClassVar[Any] = {"natural": torch_constraints.real}  # pyright: ignore
    support: Any = constraints.signs  # pyright: ignore
    has_enumerate_support = True

    def __init__(
        self,
        natural: Tensor | float | None = None,
        *,
        logits: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        mean: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        given = {
            name: value
            for name, value in dict(natural=natural, logits=logits, probs=probs, mean=mean).items()
            if value is not None
        }
        if len(given) != 1:
            raise ValueError(
                f"{type(self).__name__} takes exactly one of natural, logits, probs and mean; "
                f"got {', '.join(given) or 'none'}."
            )
        ((name, value),) = given.items()
        value = torch.as_tensor(value)
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        if value.dtype == torch.float16:
            raise ValueError(
                f"{name} is float16, whose range a natural parameter leaves; "
                "pass float32 or bfloat16."
            )
        if validate_args or (validate_args is None and self._validate_args):
            _check_parameter(type(self).__name__, name, value)
        if name == "natural":
            self.natural = value
        elif name == "logits":
            self.natural = 0.5 * value
        elif name == "probs":
            self.natural = 0.5 * torch.logit(value)
        else:
            self.natural = torch.atanh(value)
        super().__init__(self.natural.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SignBernoulli:
        new: Any = self._get_checked_instance(SignBernoulli, _instance)
        new.natural = self.natural.expand(torch.Size(batch_shape))
        TorchDistribution.__init__(new, new.natural.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def logits(self) -> Tensor:
        """The log-odds of +1, 2 lambda."""
        return 2.0 * self.natural

    @property
    def probs(self) -> Tensor:
        """P(w = +1) = sigmoid(2 lambda)."""
        return torch.sigmoid(2.0 * self.natural)

    @property
    def mean(self) -> Tensor:
        """tanh(lambda), the expectation parameter mu."""
        return numerics.mean(self.natural)

    @property
    def variance(self) -> Tensor:
        """sech^2(lambda), also the Fisher information of lambda."""
        return numerics.variance(self.natural)

    @property
    def log_variance(self) -> Tensor:
        """log sech^2(lambda), finite at every lambda."""
        return numerics.log_variance(self.natural)

    @property
    def log_partition(self) -> Tensor:
        """A(lambda) = log 2cosh(lambda)."""
        return numerics.log_partition(self.natural)

    @property
    def mode(self) -> Tensor:
        """The sign of lambda; +1 at lambda = 0."""
        return numerics.sign_of(self.natural)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Signs of shape sample_shape + batch_shape, in the natural parameter's dtype."""
        with torch.no_grad():
            natural = self.natural.expand(self._extended_shape(sample_shape))
            return numerics.hard_signs(natural, numerics.uniform_noise(natural))

    def log_prob(self, value: Tensor) -> Tensor:
        """lambda w - A(lambda), in nats; w may be relaxed to [-1, +1], anything else is an error."""
        if self._validate_args:
            self._validate_sample(value)
        if getattr(value, "_levels", (-1.0, 1.0)) != (-1.0, 1.0):
            raise ValueError(
                f"expected signs, got a draw of a guide with the levels {value._levels}; give the loss "  # pyright: ignore
                "bayesbin.guides.with_effects(model, guide) for the model, or the weight a prior of levels."
            )
        # Autograd functions do not see what a tensor of another class, such as Pyro's provenance, stands for.
        pair = self.natural, value.to(self.natural.dtype)
        if has_torch_function(pair):
            return handle_torch_function(numerics.log_prob, pair, *pair)
        return numerics.log_prob(*pair)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles: the smallest sign whose cumulative probability is at least ``value`` in [0, 1]."""
        minus = torch.sigmoid(-2.0 * self.natural)
        return torch.where(value <= minus, -1.0, 1.0).to(self.natural.dtype)

    def entropy(self) -> Tensor:
        """A(lambda) - lambda tanh(lambda), in nats: between 0 and log 2."""
        return numerics.entropy(self.natural)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The values -1 and +1 along a new leftmost dimension."""
        values = torch.tensor([-1.0, 1.0], dtype=self.natural.dtype, device=self.natural.device)
        values = values.reshape((2,) + (1,) * len(self.batch_shape))
        return values.expand((2, *self.batch_shape)) if expand else values

    def _validate_sample(self, value: Tensor) -> None:
        # Shapes as torch checks them; the values against the closed interval, where log p is linear.
        if not isinstance(value, Tensor):
            raise ValueError(f"log_prob takes a tensor of signs; got {type(value).__name__}.")
        try:
            torch.broadcast_shapes(value.shape, self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Values of shape {tuple(value.shape)} do not broadcast against the batch shape "
                f"{tuple(self.batch_shape)} of {type(self).__name__}."
            ) from None
        if not bool(constraints.relaxed_signs.check(value).all()):
            raise ValueError(
                f"{type(self).__name__}.log_prob takes signs -1 and +1 (or relaxed signs between "
                "them); got values outside [-1, 1] or NaN. Signs from {0, 1} are 2 * b - 1."
            )

    def __repr__(self) -> str:
        shape = tuple(self.batch_shape)
        if self.natural.numel() == 1:
            return f"{type(self).__name__}(natural={self.natural.item():.4g}, batch_shape={shape})"
        return f"{type(self).__name__}(batch_shape={shape})"


def _check_parameter(owner: str, name: str, value: Tensor) -> None:
    low, high = {"probs": (0.0, 1.0), "mean": (-1.0, 1.0)}.get(name, (-torch.inf, torch.inf))
    inside = (value > low) & (value < high)
    if bool(inside.all()):
        return
    first = value[~inside].flatten()[0].item()
    wanted = (
        "finite values" if low == -torch.inf else f"values strictly between {low:g} and {high:g}"
    )
    raise ValueError(
        f"{owner} expected {wanted} for {name}; got {first:g} among {value.numel()} values. "
        "A weight that must not move is natural=+-40, not an infinite one."
    )


@register_kl(SignBernoulli, SignBernoulli)
def _kl_sign_bernoulli(q: SignBernoulli, p: SignBernoulli) -> Tensor:
    natural, prior = torch.broadcast_tensors(q.natural, p.natural)
    return numerics.kl_divergence(natural, prior)
