"""LR-net's way from a pretrained network of real weights to the probabilities of signs or levels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesbin.distributions import LowBitCategorical
from bayesbin.distributions.low_bit import TERNARY
from bayesbin.posterior import LowBitPosterior

LEAST = 0.05  # the published bound: no sign starts with less probability


def natural_from_latent(
    weights: nn.Module | Mapping[str, Tensor], least: float = LEAST
) -> dict[str, Tensor]:
    r"""Natural parameters for signs whose means are pretrained weights in units of their deviation.

    .. math:: P(w = +1) = \mathrm{clip}\big(\tfrac12 (1 + v / \mathrm{sd}(v)),\ \epsilon,\ 1 - \epsilon\big)

    with the standard deviation of each layer. For ``AutoSignBernoulli(model,
    init=BinaryPosterior(natural_from_latent(net)))``; where ``init=net`` makes lambda proportional to the
    weight, this makes the mean so.

    :param weights: a network, or weights by site name; tensors of fewer than two dimensions (biases,
        normalisation) are left out. :param least: epsilon, in (0, 1/2).
    :return: lambda = logit(P) / 2 by name, without a graph.
    :raises ValueError: if no weight is left, or epsilon is outside its range.

    Example::

        >>> import torch
        >>> from bayesbin.guides import natural_from_latent
        >>> found = natural_from_latent({"w": torch.tensor([[0.0, 0.1], [-0.1, 0.0]])})
        >>> torch.sigmoid(2 * found["w"]).tolist()[0]
        [0.5, 0.949999988079071]

    Source: Shayer, Levi and Fetaya 2018, arXiv 1710.07739, section 3.3.
    """
    _check(least)
    return {
        name: 0.5 * torch.logit((0.5 + 0.5 * size).clamp(least, 1.0 - least))
        for name, size in _in_deviations(weights).items()
    }


def ternary_from_latent(
    weights: nn.Module | Mapping[str, Tensor], least: float = LEAST
) -> LowBitPosterior:
    r"""A ternary posterior at pretrained weights: the smaller a weight, the likelier 0.

    .. math::
        P(0) = 1 - \epsilon - (1 - 2\epsilon)\, |\tilde v|, \qquad
        P(+1 \mid w \ne 0) = \tfrac12 \Big(1 + \frac{\tilde v}{1 - P(0)}\Big),
        \quad \tilde v = v / \mathrm{sd}(v)

    both clipped to [epsilon, 1 - epsilon]. For ``AutoLowBit(model, init=...)``; arguments and errors as of
    :func:`natural_from_latent`.

    Example::

        >>> import torch
        >>> from bayesbin.guides import ternary_from_latent
        >>> ternary_from_latent({"w": torch.tensor([[0.0, 0.3], [-0.3, 0.01]])})["w"].mode.tolist()
        [[0.0, 1.0], [-1.0, 0.0]]

    Source: Shayer, Levi and Fetaya 2018, arXiv 1710.07739, section 3.3.
    """
    _check(least)
    distributions = {}
    for name, size in _in_deviations(weights).items():
        zero = (1.0 - least - (1.0 - 2.0 * least) * size.abs()).clamp(least, 1.0 - least)
        plus = (0.5 + 0.5 * size / (1.0 - zero)).clamp(least, 1.0 - least)
        probs = torch.stack([(1.0 - zero) * (1.0 - plus), zero, (1.0 - zero) * plus], -1)
        distributions[name] = LowBitCategorical(TERNARY, probs.log())
    return LowBitPosterior(distributions)


def _in_deviations(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    found = {}
    for name, weight in tensors.items():
        if weight.dim() > 1 and weight.numel() > 1:
            weight = weight.detach()
            found[name] = weight / weight.std().clamp_min(torch.finfo(weight.dtype).tiny)
    if not found:
        raise ValueError(
            f"Expected weights of two dimensions or more; got {', '.join(tensors) or 'none'}."
        )
    return found


def _check(least: float) -> None:
    if not 0 < least < 0.5:
        raise ValueError(f"least is a probability between 0 and 1/2, such as 0.05; got {least}.")
