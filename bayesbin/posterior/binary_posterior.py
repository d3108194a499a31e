"""BinaryPosterior: what a guide produces and everything downstream consumes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn import functional as F

from bayesbin.core import numerics
from bayesbin.core.canonical import key_of
from bayesbin.core.numerics import LOG_2
from bayesbin.distributions import SignBernoulli, Support
from bayesbin.posterior.base import Posterior, average
from bayesbin.posterior.draws import Thresholds, signs_of
from bayesbin.posterior.real_posterior import RealPosterior
from bayesbin.posterior.summary import SummaryRow

_REACH = 7.0  # standard deviations beyond the tilt: the Normal tail left out is 1e-12
_ACCURACY = 26.0  # -log of the error of a quadrature
SATURATED = 3.0  # |lambda| above which a weight counts as decided: P(the other sign) < 0.25 %


class BinaryPosterior(Posterior[SignBernoulli]):
    r"""A frozen mapping from site name to SignBernoulli, with the real-valued sites beside it.

    Every draw is a function of (seed, index, site) alone: draw 7 of seed 0 is the same network today,
    tomorrow, and whether 8 draws are taken or 1000. Probabilities of a sign are met to 2^-17: a draw
    compares 16 random bits, see ``bayesbin/posterior/draws.py``.

    The signs of a site may have random effects: real-valued sites that are added to its natural
    parameters in each draw, and so correlate the weights that share them,

    .. math:: \lambda = \texttt{natural} + \sum_e a_e, \qquad a_e \sim N(m_e, s_e^2)

    The mapping then answers with the marginal distribution of each weight, computed at the first look (one
    quadrature per weight); draws, and whatever predicts by them, keep the joint distribution.

    :param signs: site name -> distribution of its signs, or its natural parameters as a tensor.
    :param real: site name -> :class:`RealPosterior`.
    :param effects: site of signs -> names of the real sites, of real support and of shapes that
        broadcast to it, that are added to its natural parameters.
    :raises ValueError: if there is no site, a natural parameter is not finite, or an effect is not
        a real site that fits.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> posterior = BinaryPosterior({"w": torch.tensor([2.0, -2.0, 0.0])})
        >>> posterior.mode()["w"].tolist()
        [1.0, -1.0, 1.0]
        >>> bool((posterior.sample(7, seed=0)["w"] == posterior.sample(7, seed=0)["w"]).all())
        True
    """

    _entry = "signs"

    def __init__(
        self,
        signs: Mapping[str, SignBernoulli | Tensor],
        real: Mapping[str, RealPosterior] | None = None,
        effects: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not signs:
            raise ValueError("A BinaryPosterior has at least one site of signs; got none.")
        self._given = {name: _frozen(name, distribution) for name, distribution in signs.items()}
        self.real: Mapping[str, RealPosterior] = dict(real or {})
        self.effects: Mapping[str, tuple[str, ...]] = {
            site: tuple(names) for site, names in (effects or {}).items() if names
        }
        if shared := self._given.keys() & self.real.keys():
            raise ValueError(f"The sites {sorted(shared)} are given both as signs and as real.")
        for site, names in self.effects.items():
            self._check_effects(site, names)
        # Both computed at the first look, and then kept.
        self._marginal: dict[str, SignBernoulli] = {}
        self._thresholds: dict[str, Thresholds] = {}

    def _check_effects(self, site: str, names: tuple[str, ...]) -> None:
        if site not in self._given:
            raise ValueError(f"The posterior has effects for {site!r}, but no signs of that name.")
        shape = self._given[site].natural.shape
        for name in names:
            effect = self.real.get(name)
            if effect is None or effect.support != Support("real"):
                raise ValueError(
                    f"The effect {name!r} of {site!r} is a real-valued site of real support; got "
                    f"{'none' if effect is None else effect.support.kind}."
                )
            try:
                fits = torch.broadcast_shapes(effect.loc.shape, shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(
                    f"The effect {name!r} of shape {tuple(effect.loc.shape)} does not broadcast to "
                    f"the signs of {site!r}, {tuple(shape)}."
                )

    def __getitem__(self, site: str) -> SignBernoulli:
        if site not in self.effects:
            return self._given[site]
        if site not in self._marginal:
            natural = _marginal_natural(*self._natural_moments(site))
            dtype = self._given[site].natural.dtype
            self._marginal[site] = SignBernoulli(natural=natural.to(dtype), validate_args=False)
        return self._marginal[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def natural_given_effects(self, site: str, index: int, *, seed: int = 0) -> Tensor:
        """The natural parameters of a site in draw ``index``: those given, and the drawn effects."""
        total = self._given[site].natural
        for name in self.effects.get(site, ()):
            total = total + self.sample_real(name, index, seed=seed)
        return total

    def _natural_moments(self, site: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of lambda under the effects, in float64, of the signs' shape."""
        mean = self._given[site].natural.double()
        variance = torch.zeros_like(mean)
        for name in self.effects[site]:
            mean = mean + self.real[name].loc.double()
            variance = variance + self.real[name].scale.double().square()
        return mean, variance.sqrt()

    @property
    def kind(self) -> str:
        return "binary"

    @property
    def num_weights(self) -> int:
        """The number of binary weights."""
        return sum(distribution.natural.numel() for distribution in self._given.values())

    # Draws

    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The signs of draw ``index`` of ``seed``, or if it is None the mode of each (+1 at lambda = 0)."""
        if index is None:
            return {site: self._mode(site) for site in self}
        return {
            site: signs_of(
                self.thresholds(site, index, seed=seed).draw(key_of(seed, index, site)),
                self._given[site].natural,
            )
            for site in self
        }

    def thresholds(self, site: str, index: int, *, seed: int = 0) -> Thresholds:
        """What the signs of draw ``index`` are drawn by: the same for all draws, but for effects."""
        if site in self.effects:
            return Thresholds.of(self.natural_given_effects(site, index, seed=seed))
        if site not in self._thresholds:
            self._thresholds[site] = Thresholds.of(self._given[site].natural)
        return self._thresholds[site]

    def _mode(self, site: str) -> Tensor:
        if site not in self.effects:
            return self._given[site].mode
        # The marginal log-odds have the sign of their mean: the distribution of lambda is symmetric about it.
        mean = self._natural_moments(site)[0].to(self._given[site].natural.dtype)
        return SignBernoulli(natural=mean, validate_args=False).mode

    def binary_state_dict(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The binary weights themselves as int8 tensors of -1 and +1: the mode, or one draw."""
        return {site: w.to(torch.int8) for site, w in self.signs(index, seed=seed).items()}

    # Information

    def kl(self, prior: Mapping[str, SignBernoulli] | None = None) -> dict[str, Tensor]:
        """KL(q||p) of the signs of each site in nats; the prior is uniform where none is given.

        Of a site with random effects: E[KL(q(w|a) || p(w))], an upper bound, which together with the KL
        of the effects enters the loss.
        """
        return {site: self._site_kl(site, prior[site] if prior else None) for site in self}

    def _site_kl(self, site: str, prior: SignBernoulli | None) -> Tensor:
        given = self._given[site]
        prior = prior or SignBernoulli(natural=torch.zeros_like(given.natural))
        if site not in self.effects:
            return kl_divergence(given, prior).sum()
        return (
            _expected_kl(*self._natural_moments(site), prior.natural.double()).sum().to(given.mean)
        )

    def _summary_row(self, site: str, kl: Tensor) -> SummaryRow:
        q = self[site]
        return SummaryRow(
            site=site,
            shape=tuple(q.natural.shape),
            weights=q.natural.numel(),
            mean_abs_mean=average(q.mean.abs()),
            entropy_bits=average(q.entropy()) / LOG_2,
            kl_bits=kl.item() / LOG_2,
            saturated=average(q.natural.abs() > SATURATED),
        )

    def _bits(self) -> int:
        return 1

    # Files

    def _contents_of_weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"signs.{site}": q.natural for site, q in self._given.items()}
        effects = {"effects": self.effects} if self.effects else {}
        return tensors, {"signs": list(self), **effects}

    @classmethod
    def _from_contents(
        cls,
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
        real: Mapping[str, RealPosterior],
    ) -> Self:
        signs = {site: tensors[f"signs.{site}"] for site in header["signs"]}
        return cls(signs, real, header.get("effects"))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The posterior on another device or in another dtype, as ``torch.Tensor.to``."""
        return type(self)(
            {site: q.natural.to(*args, **kwargs) for site, q in self._given.items()},
            {site: distribution.to(*args, **kwargs) for site, distribution in self.real.items()},
            self.effects,
        )

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {tuple(q.natural.shape)}" for site, q in self._given.items())
        real = f"; real: {', '.join(self.real)}" if self.real else ""
        return f"BinaryPosterior({self.num_weights} weights; {sites}{real})"


def _frozen(site: str, distribution: SignBernoulli | Tensor) -> SignBernoulli:
    natural = distribution.natural if isinstance(distribution, SignBernoulli) else distribution
    natural = natural.detach().clone()
    if not bool(torch.isfinite(natural).all()):
        raise ValueError(f"The natural parameters of {site!r} are finite; got NaN or infinity.")
    return SignBernoulli(natural=natural, validate_args=False)


# Signs whose natural parameter is Normal. With lambda ~ N(m, s^2) an expectation over lambda is one
# integral for each weight. Integrands here are analytic except for poles pi / (2 s) away from the real
# axis, where the trapezoid rule of step h errs by about exp(-pi^2 / (s h)); nodes reach far enough for the
# tilt e^{2 lambda} of a rare sign.


def _marginal_natural(mean: Tensor, scale: Tensor) -> Tensor:
    r"""Half the log-odds of a sign with lambda ~ N(mean, scale^2), elementwise.

    .. math:: \tfrac12 \log \frac{E[\sigma(2\lambda)]}{E[\sigma(-2\lambda)]}

    In log space, so that a sign that is all but certain keeps its odds.
    """
    plus = minus = torch.full_like(mean, -torch.inf)
    for noise, log_weight in _nodes(scale):
        # Both nodes at once, in an order that does not matter: odds at mean 0 are even to the last bit.
        above, below = 2.0 * (mean + scale * noise), 2.0 * (mean - scale * noise)
        pair = torch.logaddexp(F.logsigmoid(above), F.logsigmoid(below))
        plus = torch.logaddexp(plus, pair + log_weight)
        pair = torch.logaddexp(F.logsigmoid(-above), F.logsigmoid(-below))
        minus = torch.logaddexp(minus, pair + log_weight)
    return 0.5 * (plus - minus)


def _expected_kl(mean: Tensor, scale: Tensor, prior: Tensor) -> Tensor:
    """E[KL(lambda || prior)] in nats for lambda ~ N(mean, scale^2), elementwise."""
    total = torch.zeros_like(mean)
    for noise, log_weight in _nodes(scale):
        for natural in (mean + scale * noise, mean - scale * noise):
            divergence = numerics.kl_divergence(natural, prior.expand_as(natural))
            total = total + math.exp(log_weight) * divergence
    return total


def _nodes(scale: Tensor) -> Iterator[tuple[float, float]]:
    """Nodes z >= 0, each to stand for z and -z, and log weights of the trapezoid rule for N(0, 1)."""
    largest = scale.max().item() if scale.numel() else 0.0
    step = min(0.5, math.pi**2 / (_ACCURACY * max(largest, 1e-300)))
    count = math.ceil((_REACH + 2.0 * largest) / step)
    log_scale = math.log(step) - 0.5 * math.log(2.0 * math.pi)
    for k in range(count + 1):
        twice = math.log(0.5) if k == 0 else 0.0  # 0 is its own mirror image
        yield k * step, log_scale + twice - 0.5 * (k * step) ** 2
