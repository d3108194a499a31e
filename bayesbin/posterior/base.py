"""Posterior: what posteriors over signs, and over a few levels, have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.canonical import key_of
from bayesbin.core.checks import is_number, real_numbers
from bayesbin.distributions import Support
from bayesbin.posterior import file
from bayesbin.posterior.draws import draw_noise
from bayesbin.posterior.real_posterior import RealPosterior
from bayesbin.posterior.summary import Summary, SummaryRow

Distribution = TypeVar("Distribution")


class Posterior(Mapping[str, Distribution]):
    """A frozen mapping from site name to the distribution of its weights, with the real-valued
    sites beside it.

    Every draw is a function of (seed, index, site) alone: draw 7 of seed 0 is the same network today,
    tomorrow, and whether 8 draws are taken or 1000. Made by a guide's ``posterior()`` or read by
    :func:`load_posterior`, as a :class:`BinaryPosterior` or a :class:`LowBitPosterior`.
    """

    real: Mapping[str, RealPosterior]
    effects: Mapping[str, tuple[str, ...]]
    _entry: ClassVar[str]  # by which the header of a file shows the kind

    # What the two kinds say for themselves

    @property
    @abstractmethod
    def kind(self) -> str:
        """What one would call the weights: binary, ternary, low-bit."""

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """The number of weights, real ones not among them."""

    @abstractmethod
    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The weights of draw ``index`` of ``seed``, or if it is None the mode."""

    @abstractmethod
    def kl(self, prior: Mapping[str, Distribution] | None = None) -> dict[str, Tensor]:
        """KL(q||p) of each site in nats; the prior is uniform where none is given."""

    @abstractmethod
    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The posterior on another device or in another dtype, as ``torch.Tensor.to``."""

    @abstractmethod
    def _summary_row(self, site: str, kl: Tensor) -> SummaryRow: ...

    @abstractmethod
    def _bits(self) -> int:
        """What one weight takes, in bits."""

    @abstractmethod
    def _contents_of_weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    @classmethod
    @abstractmethod
    def _from_contents(
        cls,
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
        real: Mapping[str, RealPosterior],
    ) -> Self: ...

    # Draws

    def sample(self, index: int = 0, *, seed: int = 0) -> dict[str, Tensor]:
        """Draw ``index`` of ``seed``: every site, the weights as they are, real sites in their support."""
        real = {site: self.sample_real(site, index, seed=seed) for site in self.real}
        return self.signs(index, seed=seed) | real

    def sample_real(self, site: str, index: int = 0, *, seed: int = 0) -> Tensor:
        """Draw ``index`` of ``seed`` of one real-valued site."""
        distribution = self.real[site]
        return distribution.at(draw_noise(distribution.loc, key_of(seed, index, site)))

    def mode(self) -> dict[str, Tensor]:
        """The mode of the weights and the median of the real sites."""
        return self.signs() | {
            site: distribution.at(0.0) for site, distribution in self.real.items()
        }

    def quantiles(self, quantiles: Any) -> dict[str, Tensor]:
        """The quantiles of each site's elements: of signs and levels, and of real sites in their support.

        :param quantiles: Q numbers in [0, 1], or one.
        :return: by site, shape (Q, ...); without the first axis for a single number.
        :raises ValueError: for numbers outside of [0, 1].

        >>> import torch
        >>> from bayesbin.posterior import BinaryPosterior
        >>> posterior = BinaryPosterior({"w": torch.tensor([1.0, 0.0, -1.0])})
        >>> posterior.quantiles([0.2, 0.8])["w"].tolist()
        [[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]]
        """
        at = real_numbers("quantiles", quantiles, at_least=0, at_most=1)
        found = {}
        for site, distribution in (*self.items(), *self.real.items()):
            known: Any = distribution
            shape = known.loc.shape if isinstance(known, RealPosterior) else known.batch_shape
            rows = [known.icdf(torch.full(shape, q, dtype=torch.float64)) for q in at]
            found[site] = rows[0] if is_number(quantiles) else torch.stack(rows)
        return found

    def sample_network(self, net: nn.Module, index: int, seed: int = 0) -> nn.Module:
        """A copy of ``net`` in evaluation mode whose weights are draw ``index`` of ``seed``.

        It keeps the network's own normalisation statistics; ``Ensemble.network`` gives it those of the draw.
        """
        return networks.copy_with(net, self.signs(index, seed=seed))

    def mode_network(self, net: nn.Module) -> nn.Module:
        """A copy of ``net`` in evaluation mode whose weights are the mode."""
        return networks.copy_with(net, self.signs())

    def draws(self, net: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
        """Networks drawn from the posterior, one after another without end; none is kept."""
        index = 0
        while True:
            yield self.sample_network(net, index, seed)
            index += 1

    def summary(self, prior: Mapping[str, Distribution] | None = None) -> Summary:
        """Weights, mean |E[w]|, entropy, KL and saturation of each site, as a table that prints."""
        rows = tuple(self._summary_row(site, kl) for site, kl in self.kl(prior).items())
        return Summary(rows, self._bits())

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with a digest, atomically: a failed save leaves the old file."""
        file.write(path, *self.contents())

    @property
    def digest(self) -> str:
        """The SHA-256 digest, 64 characters, of tensors and header: that of the saved file."""
        return file.digest(*self.contents())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote; of either kind, see :func:`load_posterior`.

        :raises CorruptFileError: for a damaged or foreign file.
        :raises ValueError: for a posterior of the other kind.
        """
        return cls._of_file(path, *file.read(path))

    @classmethod
    def _of_file(
        cls, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> Self:
        if cls._entry not in header:
            raise ValueError(
                f"expected {path} to hold a {cls.__name__}, got one of the other kind; "
                "bayesbin.posterior.load_posterior reads both."
            )
        return cls._from_contents(tensors, header, real_sites(tensors, header["real"]))

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the header that a file of it holds."""
        tensors, header = self._contents_of_weights()
        for site, distribution in self.real.items():
            tensors |= {f"loc.{site}": distribution.loc, f"scale.{site}": distribution.scale}
        kinds = [
            [s, distribution.support.kind, *distribution.support.bounds]
            for s, distribution in self.real.items()
        ]
        return tensors, header | {"real": kinds}


def real_sites(
    tensors: Mapping[str, Tensor], kinds: Sequence[Sequence[Any]]
) -> dict[str, RealPosterior]:
    """The real-valued sites of a file, from its tensors and the entry ``real`` of its header."""
    return {
        site: RealPosterior(
            tensors[f"loc.{site}"], tensors[f"scale.{site}"], Support(kind, tuple(bounds))
        )
        for site, kind, *bounds in kinds
    }


def average(values: Tensor) -> float:
    """The mean as a number; 0 of nothing."""
    return values.double().mean().item() if values.numel() else 0.0
