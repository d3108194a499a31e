"""LowBitPosterior: what a guide of weights with a few levels produces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from bayesbin import _networks
from bayesbin.distributions import LowBitCategorical
from bayesbin.posterior.draws import FLIPS, draw_noise, half_words, key_of
from bayesbin.posterior.real_posterior import RealPosterior


class LowBitPosterior(Mapping[str, LowBitCategorical]):
    """A frozen mapping from site name to LowBitCategorical, with the real-valued sites beside it.

    It draws as :class:`BinaryPosterior` does, by (seed, index, site) alone, and so serves
    ``bayesbin.predict.predict``, ``recalibrate`` and ``sample_network`` in its place. Probabilities of a
    level are met to 2^-16. It has no file of its own and does not pack: those formats hold signs.

    :param weights: site name -> law. :param real: site name -> :class:`RealPosterior`.
    :raises ValueError: if there is no site.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import LowBitCategorical
        >>> from bayesbin.posterior import LowBitPosterior
        >>> law = LowBitCategorical((-1, 0, 1), torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 50.0]]))
        >>> LowBitPosterior({"w": law}).signs()["w"].tolist()
        [0.0, 1.0]
    """

    effects: Mapping[str, tuple[str, ...]] = {}

    def __init__(
        self,
        weights: Mapping[str, LowBitCategorical],
        real: Mapping[str, RealPosterior] | None = None,
    ) -> None:
        if not weights:
            raise ValueError("A LowBitPosterior has at least one site of weights; got none.")
        self._laws = {
            name: LowBitCategorical(law.levels, law.logits.detach().clone(), validate_args=True)
            for name, law in weights.items()
        }
        self.real: Mapping[str, RealPosterior] = dict(real or {})

    def __getitem__(self, site: str) -> LowBitCategorical:
        return self._laws[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._laws)

    def __len__(self) -> int:
        return len(self._laws)

    @property
    def num_weights(self) -> int:
        """The number of weights."""
        return sum(law.batch_shape.numel() for law in self._laws.values())

    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The levels of draw ``index`` of ``seed``, or if it is None the likeliest of each weight."""
        if index is None:
            return {site: law.mode for site, law in self.items()}
        return {site: self._draw(law, key_of(seed, index, site)) for site, law in self.items()}

    @staticmethod
    def _draw(law: LowBitCategorical, key: int) -> Tensor:
        words = torch.from_numpy(half_words(key, tuple(law.batch_shape)).astype("int32"))
        cumulated = torch.softmax(law.logits.double().cpu(), -1)[..., :-1].cumsum(-1)
        index = (words[..., None] >= (FLIPS * cumulated).round()).sum(-1)
        return law.level_values[index.to(law.logits.device)]

    def sample(self, index: int = 0, *, seed: int = 0) -> dict[str, Tensor]:
        """Draw ``index`` of ``seed``: every site, the real ones in their support."""
        real = {site: self.sample_real(site, index, seed=seed) for site in self.real}
        return self.signs(index, seed=seed) | real

    def sample_real(self, site: str, index: int = 0, *, seed: int = 0) -> Tensor:
        """Draw ``index`` of ``seed`` of one real-valued site."""
        law = self.real[site]
        return law.at(draw_noise(law.loc, key_of(seed, index, site)))

    def mode(self) -> dict[str, Tensor]:
        """The likeliest levels and the median of the real sites."""
        return self.signs() | {site: law.at(0.0) for site, law in self.real.items()}

    def sample_network(
        self, net: nn.Module, index: int, seed: int = 0, statistics: Any = None
    ) -> nn.Module:
        """A copy of ``net`` in evaluation mode whose weights are draw ``index`` of ``seed``."""
        state = statistics.of_draw(index, seed) if statistics is not None else None
        return _networks.copy_with(net, self.signs(index, seed=seed), state)

    def mode_network(self, net: nn.Module, statistics: Any = None) -> nn.Module:
        """A copy of ``net`` in evaluation mode whose weights are the likeliest levels."""
        return _networks.copy_with(net, self.signs(), statistics.mode if statistics else None)

    def kl(self, prior: Mapping[str, LowBitCategorical] | None = None) -> dict[str, Tensor]:
        """KL(q||p) of each site in nats; the prior is uniform over the levels where none is given."""
        totals = {}
        for site, q in self.items():
            p = prior[site] if prior else LowBitCategorical(q.levels, torch.zeros_like(q.logits))
            totals[site] = kl_divergence(q, p).sum()
        return totals

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {tuple(q.batch_shape)}" for site, q in self.items())
        real = f"; real: {', '.join(self.real)}" if self.real else ""
        return f"LowBitPosterior({self.num_weights} weights; {sites}{real})"
