"""ReCU: latents standardised per filter and clamped at a quantile, so that none is out of reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.numerics import sign_of
from bayesbin.nn.binarizers.base import Binarizer
from bayesbin.nn.straight_through import sign_through

MEAN_SIZE = 2.0  # b, the mean |v| of a standardised latent that is Laplace
_EPSILON = (
    1e-5  # the published code's, added to the variance of a filter: keeps a constant one finite
)
QUANTILES = ("laplace", "empirical")


class ReCU(Binarizer):
    r"""The sign of a standardised latent, clamped to its quantiles.

    .. math::
        v' = \frac{v - \bar v}{\mathrm{sd}(v)}\, \sqrt2\, b, \quad b = 2, \qquad
        v'' = \mathrm{clamp}(v';\ Q_{1-\tau}, Q_\tau), \qquad w = \mathrm{sign}(v'')

    Mean and standard deviation are those of a filter (what feeds one output), the quantiles those of the
    layer. The gradient of the sign is the identity; that of the clamp and of the standardisation is
    autograd's, as in the published code, so that a clamped latent moves by its filter's mean and deviation
    alone. Raise ``tau`` from 0.85 to 0.99 between epochs: ``bayesbin.optim.Schedule(binarizer, "tau",
    recu_tau(epochs))``.

    :param tau: the quantile, in (1/2, 1].
    :param scale: multiply the signs by the mean \|v'\| of their filter, without a gradient.
    :param quantile: "laplace": Q = -E\|v'\| log(2 - 2 tau), that of a Laplace distribution, as the
        published code has it; "empirical": that of the latents at hand.
    :raises ValueError: for other arguments; at a call, for filters of a single weight.

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import ReCU
        >>> ReCU(tau=0.9)(torch.tensor([[0.1, 0.2, 0.9], [-3.0, 0.0, 1.0]])).tolist()
        [[-1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]

    Source: Xu et al. 2021, arXiv 2103.12369.
    """

    def __init__(self, tau: float = 0.85, scale: bool = False, quantile: str = "laplace") -> None:
        super().__init__()
        if not 0.5 < tau <= 1:
            raise ValueError(f"tau is a quantile above 1/2 and at most 1, such as 0.85; got {tau}.")
        if quantile not in QUANTILES:
            raise ValueError(f"quantile is one of {', '.join(QUANTILES)}; got {quantile!r}.")
        self.tau, self.scale, self.quantile = float(tau), scale, quantile
        if scale:
            self.levels = ()  # a size of its own for each filter

    def forward(self, latent: Tensor) -> Tensor:
        standard = standardised(latent)
        low, high = self.bounds(standard)
        signs = sign_through(standard.clamp(low, high), "identity")
        return signs * _mean_size(standard.detach()) if self.scale else signs

    def hard(self, latent: Tensor) -> Tensor:
        """The signs of the standardised latents, scaled if ``scale`` says so."""
        standard = standardised(latent.detach())
        return sign_of(standard) * (_mean_size(standard) if self.scale else 1.0)

    def bounds(self, standard: Tensor) -> tuple[float, float]:
        """Q(1 - tau) and Q(tau) of standardised latents."""
        flat = standard.detach().flatten()
        if self.quantile == "laplace":
            tail = 2.0 - 2.0 * self.tau
            high = -flat.abs().mean().item() * math.log(tail) if tail > 0 else math.inf
            return -high, high
        low, high = np.quantile(flat.double().cpu().numpy(), [1.0 - self.tau, self.tau])
        return float(low), float(high)

    def readout(self, latent: Tensor) -> LatentReadout:
        """What the clamp does to a layer's latents."""
        standard = standardised(latent.detach())
        low, high = self.bounds(standard)
        clamped = standard.clamp(low, high)
        size = standard.abs().mean().item()
        outside = ((standard < low) | (standard > high)).double().mean().item()
        plus = (standard >= 0).double().mean().item()
        error = (clamped.abs() - size).square().mean().item()
        return LatentReadout(
            entropy=clamped_laplace_entropy(self.tau, size),
            quantization_error=error,
            sign_entropy_bits=_bits(plus),
            clamped=outside,
        )

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, scale={self.scale}, quantile={self.quantile!r}"


@dataclass(frozen=True)
class LatentReadout:
    """What ReCU does to the latents of one layer.

    :param entropy: of the clamped latents under a Laplace distribution, in nats, see
    ``clamped_laplace_entropy``.
    :param quantization_error: mean (v'' - a sign(v''))^2 with a = mean \\|v'\\|; for a Laplace
        distribution it is a^2 (1 - 2 u e^-u), u = -log(2 - 2 tau), least at tau = 1 - 1/(2e) = 0.816.
    :param sign_entropy_bits: of the signs as one sample: 1 where both are equally many.
    :param clamped: the fraction of latents outside the quantiles.
    """

    entropy: float
    quantization_error: float
    sign_entropy_bits: float
    clamped: float


def clamped_laplace_entropy(tau: float, mean_size: float) -> float:
    r"""The entropy in nats of a Laplace variable of mean size b, clamped to its tau quantiles.

    .. math:: H = \log 2 + (1 - s)(1 + \log b), \qquad s = 2 - 2\tau

    the density's inside, plus that of the two points, of mass s / 2 each. It grows with tau for b > 1/e.

    >>> round(clamped_laplace_entropy(1.0, 2.0), 4)  # the whole Laplace distribution: 1 + log 2b
    2.3863
    """
    outside = 2.0 - 2.0 * tau
    return math.log(2.0) + (1.0 - outside) * (1.0 + math.log(mean_size))


def latent_histogram(
    latent: Tensor, bins: int = 50, limits: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (bins,) and edges (bins + 1,) of latent weights, to be kept at the start and the end.

    :param limits: the range; None: from the least to the largest latent.

    >>> counts, edges = latent_histogram(torch.tensor([0.0, 0.2, 1.0]), bins=2)
    >>> counts.tolist(), edges.tolist()
    ([2, 1], [0.0, 0.5, 1.0])
    """
    return np.histogram(latent.detach().double().cpu().numpy(), bins=bins, range=limits)


def standardised(latent: Tensor) -> Tensor:
    """Latents of mean 0 and standard deviation sqrt(2) b in each filter, with a live graph."""
    dims = _within_filter(latent)
    if math.prod(latent.shape[d] for d in dims) < 2:
        raise ValueError(
            f"ReCU standardises each filter and needs two weights in it; got shape {tuple(latent.shape)}."
        )
    centred = latent - latent.mean(dims, keepdim=True)
    spread = torch.sqrt(centred.var(dims, keepdim=True) + _EPSILON)
    return centred / spread * (math.sqrt(2.0) * MEAN_SIZE)


def _within_filter(latent: Tensor) -> tuple[int, ...]:
    return tuple(range(1, latent.dim())) if latent.dim() > 1 else tuple(range(latent.dim()))


def _mean_size(standard: Tensor) -> Tensor:
    return standard.abs().mean(_within_filter(standard), keepdim=True)


def _bits(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1.0 - p) if q > 0)
