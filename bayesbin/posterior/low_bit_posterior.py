"""LowBitPosterior: what a guide of weights with a few levels produces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayesbin.core.canonical import FLIPS, half_words, key_of
from bayesbin.core.numerics import LOG_2
from bayesbin.distributions import LowBitCategorical
from bayesbin.posterior.base import Posterior, average
from bayesbin.posterior.real_posterior import RealPosterior
from bayesbin.posterior.summary import SummaryRow

SATURATED_PROBABILITY = 0.9975  # of one level, above which a weight counts as decided: as for signs


class LowBitPosterior(Posterior[LowBitCategorical]):
    """A frozen mapping from site name to LowBitCategorical, with the real-valued sites beside it.

    It draws as :class:`BinaryPosterior` does, by (seed, index, site) alone, and serves in its place in an
    ``Ensemble``. Probabilities of a level are met to 2^-16.

    :param weights: site name -> distribution. :param real: site name -> :class:`RealPosterior`.
    :raises ValueError: if there is no site.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import LowBitCategorical
        >>> from bayesbin.posterior import LowBitPosterior
        >>> distribution = LowBitCategorical((-1, 0, 1), torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 50.0]]))
        >>> LowBitPosterior({"w": distribution}).signs()["w"].tolist()
        [0.0, 1.0]
    """

    _entry = "levels"

    def __init__(
        self,
        weights: Mapping[str, LowBitCategorical],
        real: Mapping[str, RealPosterior] | None = None,
    ) -> None:
        if not weights:
            raise ValueError("A LowBitPosterior has at least one site of weights; got none.")
        self._distributions = {
            name: LowBitCategorical(
                distribution.levels, distribution.logits.detach().clone(), validate_args=True
            )
            for name, distribution in weights.items()
        }
        self.real: Mapping[str, RealPosterior] = dict(real or {})
        self.effects: Mapping[str, tuple[str, ...]] = {}

    def __getitem__(self, site: str) -> LowBitCategorical:
        return self._distributions[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._distributions)

    def __len__(self) -> int:
        return len(self._distributions)

    @property
    def kind(self) -> str:
        """ "ternary" with three levels everywhere, else "low-bit"."""
        return (
            "ternary"
            if all(len(distribution.levels) == 3 for distribution in self.values())
            else "low-bit"
        )

    @property
    def num_weights(self) -> int:
        """The number of weights."""
        return sum(
            distribution.batch_shape.numel() for distribution in self._distributions.values()
        )

    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The levels of draw ``index`` of ``seed``, or if it is None the likeliest of each weight."""
        if index is None:
            return {site: distribution.mode for site, distribution in self.items()}
        return {
            site: self._draw(distribution, key_of(seed, index, site))
            for site, distribution in self.items()
        }

    @staticmethod
    def _draw(distribution: LowBitCategorical, key: int) -> Tensor:
        words = torch.from_numpy(half_words(key, tuple(distribution.batch_shape)).astype("int32"))
        cumulated = torch.softmax(distribution.logits.double().cpu(), -1)[..., :-1].cumsum(-1)
        index = (words[..., None] >= (FLIPS * cumulated).round()).sum(-1)
        return distribution.level_values[index.to(distribution.logits.device)]

    def kl(self, prior: Mapping[str, LowBitCategorical] | None = None) -> dict[str, Tensor]:
        """KL(q||p) of each site in nats; the prior is uniform over the levels where none is given."""
        totals = {}
        for site, q in self.items():
            p = prior[site] if prior else LowBitCategorical(q.levels, torch.zeros_like(q.logits))
            totals[site] = kl_divergence(q, p).sum()
        return totals

    def _summary_row(self, site: str, kl: Tensor) -> SummaryRow:
        q = self[site]
        return SummaryRow(
            site=site,
            shape=tuple(q.batch_shape),
            weights=q.batch_shape.numel(),
            mean_abs_mean=average(q.mean.abs()),
            entropy_bits=average(q.entropy()) / LOG_2,
            kl_bits=kl.item() / LOG_2,
            saturated=average(q.probs.amax(-1) > SATURATED_PROBABILITY),
        )

    def _bits(self) -> int:
        return max((len(distribution.levels) - 1).bit_length() for distribution in self.values())

    # Files

    def _contents_of_weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"logits.{site}": distribution.logits for site, distribution in self.items()}
        return tensors, {
            "levels": [[site, distribution.levels] for site, distribution in self.items()]
        }

    @classmethod
    def _from_contents(
        cls,
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
        real: Mapping[str, RealPosterior],
    ) -> Self:
        distributions = {
            site: LowBitCategorical(levels, tensors[f"logits.{site}"])
            for site, levels in header["levels"]
        }
        return cls(distributions, real)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The posterior on another device or in another dtype, as ``torch.Tensor.to``."""
        distributions = {
            site: LowBitCategorical(distribution.levels, distribution.logits.to(*args, **kwargs))
            for site, distribution in self.items()
        }
        return type(self)(
            distributions,
            {site: distribution.to(*args, **kwargs) for site, distribution in self.real.items()},
        )

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {tuple(q.batch_shape)}" for site, q in self.items())
        real = f"; real: {', '.join(self.real)}" if self.real else ""
        return f"LowBitPosterior({self.num_weights} weights; {sites}{real})"
