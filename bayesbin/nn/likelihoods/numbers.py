"""Likelihoods of numbers: real targets with normal noise, and counts."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesbin.core.checks import is_number, one_of, real_number, real_numbers, shown
from bayesbin.distributions import Support
from bayesbin.nn.likelihoods.base import Likelihood
from bayesbin.nn.likelihoods.classes import without_column

# Beyond these a normal distribution or a rate leaves the range of float32; no data are there.
MOST_LOG_SIGMA, MOST_LOG_RATE = 20.0, 40.0


class Regressor(Likelihood):
    r"""Regression with a binary network: y ~ Normal(net(x), noise), as a Pyro model.

    .. math:: \log p(y | w, \sigma) = \frac{N}{B} \sum_{b,t} \log N(y_{bt};\ f_w(x_b)_t, \sigma_t^2)

    :param net: maps x (B, ...) to means (B,), (B, 1), or (B, T) for T targets; with "heteroscedastic" noise
        to means and then logarithms of standard deviations, (B, 2) or (B, 2T).
    :param dataset_size: N, the number of training data.
    :param noise: sigma: a positive number, or T numbers; its prior, a distribution on the positive numbers of
        batch shape () or (T,): then "noise" is a latent site of its own; or "heteroscedastic", sigma =
        exp(second half of the outputs), bounded to e^-20 .. e^20. Default LogNormal(-1, 1), for
        standardised targets.
    :param hyperprior: the distribution of priors that are learned, as for :class:`Likelihood`.
    :raises ValueError: as :class:`Likelihood`; for targets that are not finite, or not as many as the means.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Regressor
        >>> model = Regressor(BinaryLinear(4, 1), dataset_size=100, noise=0.1)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])
        >>> model = Regressor(BinaryLinear(4, 6), dataset_size=100, noise="heteroscedastic")
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5, 3])

    Source: Nix and Weigend 1994, "Estimating the mean and variance of the target probability distribution".
    """

    def __init__(
        self, net: nn.Module, dataset_size: int, noise: Any = None, hyperprior: Any = None
    ) -> None:
        super().__init__(net, dataset_size, hyperprior)
        if isinstance(noise, str):
            self.noise = one_of("noise", noise, ["heteroscedastic"])
        else:
            default = dist.LogNormal(-1.0, 1.0)
            self.noise = _number_or_prior("noise", default if noise is None else noise)

    @property
    def prediction_head(self) -> dict[str, Any]:
        if isinstance(self.noise, str):
            return {"kind": "normal", "heteroscedastic": True}
        return {"kind": "normal", "noise": _described("noise", self.noise)}

    def latents(self) -> dict[str, Any]:
        return {"noise": self.noise} if hasattr(self.noise, "log_prob") else {}

    def distribution(self, outputs: Any, noise: Any = None, **latents: Tensor) -> Any:
        outputs = _columns(outputs)
        if isinstance(self.noise, str):
            if outputs.shape[1] % 2:
                raise ValueError(
                    "expected an even number of outputs, means and then logarithms of standard deviations; "
                    f"got {outputs.shape[1]}."
                )
            mean, log_sigma = map(without_column, outputs.chunk(2, 1))
            sigma = log_sigma.clamp(-MOST_LOG_SIGMA, MOST_LOG_SIGMA).exp()
        else:
            mean = without_column(outputs)
            sigma = _of_targets("noise", self.noise if noise is None else noise, mean)
        return dist.Normal(mean, sigma, validate_args=False)


class _Counts(Likelihood):
    """Counts whose logarithm of the mean is the output."""

    def targets(self, y: Tensor, outputs: Any) -> Tensor:
        y = super().targets(y, outputs)
        if not bool(((y >= 0) & (y == y.floor())).all()):
            raise ValueError(
                "expected counts, whole numbers of at least 0; got negative numbers or fractions."
            )
        return y


class Poisson(_Counts):
    r"""Counts with a binary network: y ~ Poisson(exp(net(x))), as a Pyro model.

    .. math:: \log p(y | w) = \frac{N}{B} \sum_{b,t} y_{bt} f - e^f - \log y_{bt}!, \qquad f = f_w(x_b)_t

    Exposure is the user's: a network that adds ``log(exposure)``, a further input, to its outputs. Above
    f = 40 the rate grows linearly, by the tangent of exp, so that it stays in the range of float32.

    :param net: maps x (B, ...) to logarithms of rates (B,), (B, 1), or (B, T, ...) for several counts.
    :param dataset_size: N, the number of training data.
    :param hyperprior: the distribution of priors that are learned, as for :class:`Likelihood`.
    :raises ValueError: as :class:`Likelihood`; for targets that are no whole numbers of at least 0.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Poisson
        >>> model = Poisson(BinaryLinear(4, 1), dataset_size=100)
        >>> model.log_prob(torch.zeros(1, 1), torch.tensor([0.0]))  # a rate of 1
        tensor([-1.])
    """

    @property
    def prediction_head(self) -> dict[str, Any]:
        return {"kind": "poisson"}

    def distribution(self, outputs: Any, **latents: Tensor) -> Any:
        return _LogPoisson(without_column(outputs))


class NegativeBinomial(_Counts):
    r"""Overdispersed counts: y ~ NegativeBinomial of mean exp(net(x)) and variance m + m^2 / r.

    .. math:: \log p(y | w, r) = \frac{N}{B} \sum_{b,t} \log \frac{\Gamma(y + r)}{\Gamma(r)\, y!}
        + r \log \frac{r}{r + m} + y \log \frac{m}{r + m}, \qquad m = e^{f_w(x_b)_t}

    :param net: maps x (B, ...) to logarithms of means (B,), (B, 1), or (B, T) for T counts.
    :param dataset_size: N, the number of training data.
    :param concentration: r: a positive number, or T numbers; or its prior, a distribution on the positive
        numbers of batch shape () or (T,): then "concentration" is a latent site of its own. Small r is
        much overdispersion, large r is nearly Poisson. Default LogNormal(1, 1).
    :param hyperprior: the distribution of priors that are learned, as for :class:`Likelihood`.
    :raises ValueError: as :class:`Likelihood`; for targets that are no whole numbers of at least 0.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, NegativeBinomial
        >>> model = NegativeBinomial(BinaryLinear(4, 1), dataset_size=100, concentration=2.0)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])

    Source: Cameron and Trivedi 2013, Regression Analysis of Count Data, chapter 3 (NB2).
    """

    def __init__(
        self,
        net: nn.Module,
        dataset_size: int,
        concentration: Any = None,
        hyperprior: Any = None,
    ) -> None:
        super().__init__(net, dataset_size, hyperprior)
        given = dist.LogNormal(1.0, 1.0) if concentration is None else concentration
        self.concentration = _number_or_prior("concentration", given)

    @property
    def prediction_head(self) -> dict[str, Any]:
        concentration = _described("concentration", self.concentration)
        return {"kind": "negative_binomial", "concentration": concentration}

    def latents(self) -> dict[str, Any]:
        latent = hasattr(self.concentration, "log_prob")
        return {"concentration": self.concentration} if latent else {}

    def distribution(self, outputs: Any, concentration: Any = None, **latents: Tensor) -> Any:
        log_mean = without_column(outputs)
        given = self.concentration if concentration is None else concentration
        r = _of_targets("concentration", given, log_mean)
        return _LogNegativeBinomial(r, log_mean)


class _LogPoisson(dist.Poisson):
    """Poisson by the logarithm of its rate; log-probabilities are computed in float64 and rounded once."""

    def __init__(self, log_rate: Tensor) -> None:
        self.log_rate = log_rate
        super().__init__(_rate(log_rate), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _LogPoisson:
        return _LogPoisson(self.log_rate.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        y, f = value.double(), self.log_rate.double()
        log_rate = f.clamp(max=MOST_LOG_RATE) + (f - MOST_LOG_RATE).clamp(min=0.0).log1p()
        return (y * log_rate - _rate(f) - torch.lgamma(y + 1.0)).to(self.log_rate.dtype)


class _LogNegativeBinomial(dist.NegativeBinomial):
    """Negative binomial by the logarithm of its mean; log-probabilities in float64, rounded once."""

    def __init__(self, concentration: Tensor, log_mean: Tensor) -> None:
        self.concentration, self.log_mean = concentration, log_mean
        logits = log_mean - concentration.log()
        super().__init__(concentration, logits=logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _LogNegativeBinomial:
        concentration = self.concentration.expand(batch_shape)
        return _LogNegativeBinomial(concentration, self.log_mean.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return _rate(self.log_mean)

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self.concentration

    def log_prob(self, value: Tensor) -> Tensor:
        y, r = value.double(), self.concentration.double()
        logits = self.log_mean.double() - r.log()
        choices = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1.0)
        softplus = torch.nn.functional.softplus
        return (choices - r * softplus(logits) - y * softplus(-logits)).to(self.log_mean.dtype)


def _rate(log_rate: Tensor) -> Tensor:
    """exp up to e^40, and its tangent beyond."""
    beyond = (log_rate - MOST_LOG_RATE).clamp(min=0.0)
    return log_rate.clamp(max=MOST_LOG_RATE).exp() * (1.0 + beyond)


def _columns(outputs: Tensor) -> Tensor:
    """Outputs (B,) or (B, T) as (B, T)."""
    if outputs.dim() not in (1, 2) or 0 in outputs.shape:
        raise ValueError(
            "expected one mean per input from the network, (B,) or (B, 1), or one for each of T targets, "
            f"(B, T); got {tuple(outputs.shape)}."
        )
    return outputs if outputs.dim() == 2 else outputs[:, None]


def _number_or_prior(name: str, given: Any) -> Any:
    """A positive number, a tuple of them, or a prior on the positive numbers, of one or several of them."""
    if is_number(given):
        return real_number(name, given, above=0)
    if not hasattr(given, "log_prob"):
        if isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == 1:
            return real_numbers(name, given, above=0)
        raise ValueError(
            f"expected {name} to be a positive number, one for each target, or a distribution; got "
            f"{shown(given)}."
        )
    came = f"a {type(given).__name__} of shape {tuple(given.shape())} on {given.support}"
    support = None if given.support.is_discrete else _support(given, name)
    if support is None or support.kind == "real" or (support.bounds and support.bounds[0] < 0):
        raise ValueError(f"expected {name} to have a prior on the positive numbers; got {came}.")
    if len(given.shape()) > 1:
        raise ValueError(
            f"expected {name} to have a prior of one number, or of one for each target; got {came}."
        )
    return given


def _support(given: Any, name: str) -> Support | None:
    try:
        return Support.of(given.support, name)
    except ValueError:
        return None


def _described(name: str, value: Any) -> Any:
    """A parameter as a head holds it."""
    if hasattr(value, "log_prob"):
        return {"site": name}
    return list(value) if isinstance(value, tuple) else value


def _of_targets(name: str, value: Any, like: Tensor) -> Tensor:
    """A parameter as a tensor: a number, or one for each target, the last axis of the outputs."""
    value = like.new_tensor(value) if isinstance(value, tuple) else torch.as_tensor(value)
    if value.dim() and (like.dim() < 2 or value.shape[-1] != like.shape[-1]):
        targets = like.shape[-1] if like.dim() > 1 else 1
        raise ValueError(
            f"expected {name} to be one number, or one for each of the network's {targets} targets; got "
            f"{value.shape[-1]}."
        )
    return value
