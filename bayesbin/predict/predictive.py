"""Prediction averaged over posterior draws, streamed: memory does not grow with the number of draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.arrays import network_batches
from bayesbin.core.checks import real_number, whole_number
from bayesbin.nn.state_norm import Statistics
from bayesbin.posterior import Posterior
from bayesbin.predict.quantities import entropy_of, mutual_information_of, probs_of


@dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for B inputs and C classes, averaged over draws; entropies in nats.

    :param log_probs: log of the averaged probabilities, (B, C).
    :param expected_entropy: mean entropy of the single draws' predictions, (B,): the noise in the data.
    :param probs_std: standard deviation of the class probabilities over draws, (B, C).
    :param num_samples: how many draws went in (1 for the mode). The mutual information is biased low
        for few draws: compare it only between predictions with the same number.
    """

    log_probs: Tensor
    expected_entropy: Tensor
    probs_std: Tensor
    num_samples: int

    @property
    def probs(self) -> Tensor:
        """Probabilities averaged over draws, (B, C)."""
        return _by(probs_of, self.log_probs)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the averaged probabilities, (B,): the total uncertainty."""
        return _by(entropy_of, self.log_probs)

    @property
    def mutual_information(self) -> Tensor:
        """entropy - expected_entropy, (B,), at least 0: what the draws disagree about."""
        return _by(mutual_information_of, self.log_probs, self.expected_entropy)


@dataclass(frozen=True)
class RegressionPrediction:
    """A regressor's prediction for B inputs, in the units of the targets (variances: squared).

    :param mean: mean over draws, (B,). :param aleatoric: mean noise variance, (B,).
    :param epistemic: variance of the means over draws, (B,).
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    num_samples: int

    @property
    def std(self) -> Tensor:
        """The predictive standard deviation, sqrt(aleatoric + epistemic), (B,)."""
        return (self.aleatoric + self.epistemic).sqrt()


def predict(
    net: nn.Module,
    posterior: Posterior[Any],
    x: Any,
    num_samples: int = 32,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> Prediction:
    r"""Average the class probabilities of posterior draws.

    .. math:: p(y | x) = \frac1S \sum_{s=1}^{S} \mathrm{softmax}(f_{w_s}(x))_y, \qquad w_s \sim q

    Probabilities are averaged, never logits. Draw s is ``posterior.signs(s, seed=seed)``, the same for
    every input and batch. ``num_samples=0`` predicts with the mode.

    :param net: a network with binary weights, logits (B, C). It is neither changed nor needed in
        evaluation mode.
    :param x: inputs (B, ...) as a tensor, a numpy array, a list of numbers or a data set; or an iterable
        of batches, each x or (x, y, ...). They get the network's type and device, see
        :func:`bayesbin.core.arrays.network_inputs`.
    :param statistics: from :func:`bayesbin.nn.recalibrate`, for the same seed and at least as many
        draws. Without them normalisation layers use their running statistics.
    :raises ValueError: for a negative number of draws, inputs that are no numbers, or have NaN or
        infinity, or outputs that are not (B, C).

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import predict
        >>> posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        >>> prediction = predict(BinaryLinear(4, 3), posterior, torch.randn(5, 4))
        >>> prediction.probs.shape, prediction.mutual_information.shape
        (torch.Size([5, 3]), torch.Size([5]))

    Source: Houlsby et al. 2011, arXiv 1112.5745 (the entropy decomposition).
    """
    num_samples = whole_number("num_samples", num_samples)
    total, entropies, squares = torch.tensor(-torch.inf), torch.zeros(()), torch.zeros(())
    for log_probs in draw_log_probs(net, posterior, x, num_samples, seed, statistics):
        probs = log_probs.exp()
        total = torch.logaddexp(total, log_probs)
        entropies = entropies + torch.special.entr(probs).sum(-1)
        squares = squares + probs.square()
    count = max(num_samples, 1)
    mean = total - math.log(count)
    spread = (squares / count - mean.exp().square()).clamp(min=0.0).sqrt()
    return Prediction(mean, entropies / count, spread, count)


def draw_log_probs(
    net: nn.Module,
    posterior: Posterior[Any],
    x: Any,
    num_samples: int,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> Iterator[Tensor]:
    """The log-probabilities (B, C) of draw 0, 1, ..., or of the mode alone for ``num_samples=0``.

    In float64, one draw at a time. Arguments as :func:`predict`.
    """
    outputs = draw_outputs(net, posterior, x, num_samples, seed, statistics)
    return map(_log_probs, outputs)


def predict_regression(
    net: nn.Module,
    posterior: Posterior[Any],
    x: Any,
    noise: float | str = "noise",
    num_samples: int = 32,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> RegressionPrediction:
    r"""Mean and variance of a regressor over posterior draws.

    .. math:: \mathrm{Var}[y|x] = \tfrac1S \textstyle\sum_s \sigma_s^2 + \mathrm{Var}_s[f_{w_s}(x)]

    :param noise: the noise standard deviation, or the name of the real-valued site that holds it.
    :raises ValueError: if that site is not in the posterior; otherwise as :func:`predict`.
    """
    noise = checked_noise(posterior, noise)
    num_samples = whole_number("num_samples", num_samples)
    outputs = draw_outputs(net, posterior, x, num_samples, seed, statistics)
    count, mean, squares, variance = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for index, output in enumerate(outputs):
        value = output.double()
        value = value.squeeze(1) if value.dim() == 2 and value.shape[1] == 1 else value
        if value.dim() != 1:
            raise ValueError(
                f"Expected one mean per input from the network, (B,) or (B, 1); got "
                f"{tuple(output.shape)}."
            )
        count += 1
        step = value - mean
        mean = mean + step / count
        squares = squares + step * (value - mean)  # Welford: no large numbers are subtracted
        variance = variance + _noise(posterior, noise, index if num_samples else None, seed) ** 2
    return RegressionPrediction(mean, (variance / count).expand_as(mean), squares / count, count)


def draw_outputs(
    net: nn.Module,
    posterior: Posterior[Any],
    x: Any,
    num_samples: int,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> Iterator[Tensor]:
    """The network's outputs for all inputs, draw after draw; one copy of the network serves them all."""
    num_samples, seed = whole_number("num_samples", num_samples), whole_number("seed", seed)
    batches = network_batches(net, x)
    if not batches:
        raise ValueError(
            "The iterable of inputs has no batch; pass a tensor (B, ...) or some batches."
        )
    if not all(bool(torch.isfinite(batch).all()) for batch in batches):
        raise ValueError("The inputs contain NaN or infinity; clean or impute them first.")
    return _run(copy.deepcopy(net).eval(), posterior, batches, num_samples, seed, statistics)


def _run(
    worker: nn.Module,
    posterior: Posterior[Any],
    batches: list[Tensor],
    num_samples: int,
    seed: int,
    statistics: Statistics | None,
) -> Iterator[Tensor]:
    for index in range(num_samples) if num_samples else [None]:
        state: Mapping[str, Tensor] | None = None
        if statistics is not None:
            state = statistics.mode if index is None else statistics.of_draw(index, seed)
        networks.write_(worker, posterior.signs(index, seed=seed), state)
        with torch.no_grad():
            yield torch.cat([worker(batch) for batch in batches])


def _log_probs(logits: Tensor) -> Tensor:
    if logits.dim() != 2:
        raise ValueError(
            f"Expected logits of shape (B, classes) from the network; got {tuple(logits.shape)}."
        )
    return torch.log_softmax(logits.double(), dim=-1)


def checked_noise(posterior: Posterior[Any], noise: float | str) -> float | str:
    """A noise standard deviation as a number, or the name of a noise that the posterior has."""
    if isinstance(noise, str) and noise not in posterior.real:
        raise ValueError(
            f"The posterior has no real-valued site {noise!r} (it has "
            f"{', '.join(posterior.real) or 'none'}); pass the noise standard deviation as a number."
        )
    return noise if isinstance(noise, str) else real_number("noise", noise, at_least=0.0)


def mean_noise_variance(
    posterior: Posterior[Any], noise: float | str, num_samples: int, seed: int
) -> Tensor:
    """The mean over draws of the noise variance, a scalar; of the median for the mode (0 draws)."""
    draws = range(num_samples) if num_samples else [None]
    values = [torch.as_tensor(_noise(posterior, noise, index, seed)) ** 2 for index in draws]
    return torch.stack([value.double() for value in values]).mean()


def _noise(
    posterior: Posterior[Any], noise: float | str, index: int | None, seed: int
) -> Tensor | float:
    if not isinstance(noise, str):
        return noise
    if index is None:
        return posterior.real[noise].at(0.0).double()
    return posterior.sample_real(noise, index, seed=seed).double()


def _by(formula: Callable[..., np.ndarray], *quantities: Tensor) -> Tensor:
    """A formula of numpy's as a tensor: predictors without torch give the same, to the last bit."""
    found = formula(*(each.detach().cpu().numpy() for each in quantities))
    return torch.from_numpy(np.asarray(found)).to(quantities[0].device)
