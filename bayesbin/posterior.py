"""BinaryPosterior: what a guide produces and everything downstream consumes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from bayesbin import _networks
from bayesbin._files import CorruptFileError, write_atomically
from bayesbin._numerics import LOG_2
from bayesbin._summary import Summary, SummaryRow
from bayesbin.distributions import SignBernoulli, Support, unconstrained_normal

SATURATED = 3.0  # |lambda| above which a weight counts as decided: P(the other sign) < 0.25 %


@dataclass(frozen=True)
class RealPosterior:
    """The Normal posterior, in unconstrained space, of one real-valued site.

    :param loc: location. :param scale: positive scale, same shape. :param support: of the site itself.
    """

    loc: Tensor
    scale: Tensor
    support: Support

    def at(self, noise: Tensor | float) -> Tensor:
        """The value whose unconstrained image lies ``noise`` scales from the location."""
        value = self.support.transform(self.loc + self.scale * noise)
        assert value is not None
        return value

    def law(self) -> Any:
        """The law as a Pyro distribution, elementwise."""
        return unconstrained_normal(self.loc, self.scale, self.support)


class BinaryPosterior(Mapping[str, SignBernoulli]):
    r"""A frozen mapping from site name to SignBernoulli, with the real-valued sites beside it.

    Every draw is a function of (seed, index, site) alone: draw 7 of seed 0 is the same network today,
    tomorrow, and whether 8 draws are taken or 1000.

    :param signs: site name -> law of its signs, or its natural parameters as a tensor.
    :param real: site name -> :class:`RealPosterior`.
    :raises ValueError: if there is no site, or a natural parameter is not finite.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> posterior = BinaryPosterior({"w": torch.tensor([2.0, -2.0, 0.0])})
        >>> posterior.mode()["w"].tolist()
        [1.0, -1.0, 1.0]
        >>> bool((posterior.sample(7, seed=0)["w"] == posterior.sample(7, seed=0)["w"]).all())
        True
    """

    def __init__(
        self,
        signs: Mapping[str, SignBernoulli | Tensor],
        real: Mapping[str, RealPosterior] | None = None,
    ) -> None:
        if not signs:
            raise ValueError("A BinaryPosterior has at least one site of signs; got none.")
        self._signs = {name: _frozen(name, law) for name, law in signs.items()}
        self.real: Mapping[str, RealPosterior] = dict(real or {})
        if shared := self._signs.keys() & self.real.keys():
            raise ValueError(f"The sites {sorted(shared)} are given both as signs and as real.")

    def __getitem__(self, site: str) -> SignBernoulli:
        return self._signs[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._signs)

    def __len__(self) -> int:
        return len(self._signs)

    @property
    def num_weights(self) -> int:
        """The number of binary weights."""
        return sum(law.natural.numel() for law in self.values())

    # Draws

    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The signs of draw ``index`` of ``seed``, or of the mode (+1 at lambda = 0) if it is None."""
        if index is None:
            return {site: law.mode for site, law in self.items()}
        return {
            site: _draw(law.natural, _generator(seed, index, site)) for site, law in self.items()
        }

    def sample(self, index: int = 0, *, seed: int = 0) -> dict[str, Tensor]:
        """Draw ``index`` of ``seed``: every site, signs as -1.0 and +1.0, real sites in their support."""
        real = {site: self.sample_real(site, index, seed=seed) for site in self.real}
        return self.signs(index, seed=seed) | real

    def sample_real(self, site: str, index: int = 0, *, seed: int = 0) -> Tensor:
        """Draw ``index`` of ``seed`` of one real-valued site."""
        law = self.real[site]
        noise = _generator(seed, index, site).standard_normal(tuple(law.loc.shape))
        return law.at(torch.as_tensor(noise).to(law.loc))

    def mode(self) -> dict[str, Tensor]:
        """The mode of the signs and the median of the real sites."""
        return self.signs() | {site: law.at(0.0) for site, law in self.real.items()}

    def binary_state_dict(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The binary weights themselves as int8 tensors of -1 and +1: the mode, or one draw."""
        return {site: w.to(torch.int8) for site, w in self.signs(index, seed=seed).items()}

    def sample_network(
        self,
        net: nn.Module,
        index: int,
        seed: int = 0,
        statistics: Any = None,
    ) -> nn.Module:
        """A copy of ``net`` in evaluation mode whose weights are draw ``index`` of ``seed``.

        :param statistics: normalisation statistics from :func:`bayesbin.nn.recalibrate`, if any.
        """
        state = statistics.of_draw(index, seed) if statistics is not None else None
        return _networks.copy_with(net, self.signs(index, seed=seed), state)

    def mode_network(self, net: nn.Module, statistics: Any = None) -> nn.Module:
        """A copy of ``net`` in evaluation mode whose weights are the mode."""
        return _networks.copy_with(net, self.signs(), statistics.mode if statistics else None)

    def draws(self, net: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
        """Networks drawn from the posterior, one after another without end; none is kept."""
        index = 0
        while True:
            yield self.sample_network(net, index, seed)
            index += 1

    # Information

    def kl(self, prior: Mapping[str, SignBernoulli] | None = None) -> dict[str, Tensor]:
        """KL(q||p) of the signs of each site in nats; the prior is uniform where none is given."""
        if prior is None:
            prior = {
                site: SignBernoulli(natural=torch.zeros_like(q.natural)) for site, q in self.items()
            }
        return {site: kl_divergence(q, prior[site]).sum() for site, q in self.items()}

    def summary(self, prior: Mapping[str, SignBernoulli] | None = None) -> Summary:
        """Weights, mean |mu|, entropy, KL and saturation of each site, as a table that prints."""
        nats = self.kl(prior)
        rows = []
        for site, q in self.items():
            rows.append(
                SummaryRow(
                    site=site,
                    shape=tuple(q.natural.shape),
                    weights=q.natural.numel(),
                    mean_abs_mu=_average(q.mean.abs()),
                    entropy_bits=_average(q.entropy()) / LOG_2,
                    kl_bits=nats[site].item() / LOG_2,
                    saturated=_average(q.natural.abs() > SATURATED),
                )
            )
        return Summary(tuple(rows))

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with a digest, atomically: a failed save leaves the old file."""
        tensors = {f"signs.{site}": q.natural.contiguous().clone() for site, q in self.items()}
        for site, law in self.real.items():
            tensors[f"loc.{site}"] = law.loc.contiguous().clone()
            tensors[f"scale.{site}"] = law.scale.contiguous().clone()
        header = {
            "format": _FORMAT,
            "version": 1,
            "signs": list(self),
            "real": [[s, law.support.kind, *law.support.bounds] for s, law in self.real.items()],
        }
        metadata = {"bayesbin": json.dumps(header, sort_keys=True)}
        metadata["sha256"] = _digest(tensors, metadata["bayesbin"])
        write_atomically(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BinaryPosterior:
        """Read what :meth:`save` wrote. :raises CorruptFileError: for a damaged or foreign file."""
        raw = Path(path).read_bytes()
        try:
            (length,) = struct.unpack("<Q", raw[:8])
            metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
            header = json.loads(metadata["bayesbin"])
            tensors = safetensors.torch.load(raw)
        except Exception as error:
            raise CorruptFileError(
                path, f"it is not a posterior saved by bayesbin, or is cut short ({error})"
            ) from error
        if not isinstance(header, dict):
            raise CorruptFileError(path, "it is not a posterior saved by bayesbin")
        if header.get("format") != _FORMAT or header.get("version") != 1:
            raise CorruptFileError(
                path, f"it has format {header.get('format')!r} version {header.get('version')!r}"
            )
        if metadata.get("sha256") != _digest(tensors, metadata["bayesbin"]):
            raise CorruptFileError(path, "its contents do not match their digest")
        real = {
            site: RealPosterior(
                tensors[f"loc.{site}"], tensors[f"scale.{site}"], Support(kind, tuple(bounds))
            )
            for site, kind, *bounds in header["real"]
        }
        return cls({site: tensors[f"signs.{site}"] for site in header["signs"]}, real)

    def to(self, *args: Any, **kwargs: Any) -> BinaryPosterior:
        """The posterior on another device or in another dtype, as ``torch.Tensor.to``."""
        return BinaryPosterior(
            {site: q.natural.to(*args, **kwargs) for site, q in self.items()},
            {
                site: RealPosterior(
                    law.loc.to(*args, **kwargs), law.scale.to(*args, **kwargs), law.support
                )
                for site, law in self.real.items()
            },
        )

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {tuple(q.natural.shape)}" for site, q in self.items())
        real = f"; real: {', '.join(self.real)}" if self.real else ""
        return f"BinaryPosterior({self.num_weights} weights; {sites}{real})"


_FORMAT = "bayesbin posterior"


def _frozen(site: str, law: SignBernoulli | Tensor) -> SignBernoulli:
    natural = law.natural if isinstance(law, SignBernoulli) else law
    natural = natural.detach().clone()
    if not bool(torch.isfinite(natural).all()):
        raise ValueError(f"The natural parameters of {site!r} are finite; got NaN or infinity.")
    return SignBernoulli(natural=natural, validate_args=False)


def _average(values: Tensor) -> float:
    return values.double().mean().item() if values.numel() else 0.0


def _generator(seed: int, index: int, site: str) -> np.random.Generator:
    # The site enters by name, so that its draws do not depend on which other sites there are.
    key = int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "little")
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(index, key))
    return np.random.Generator(np.random.Philox(sequence))


def _draw(natural: Tensor, generator: np.random.Generator) -> Tensor:
    uniform = torch.from_numpy(
        generator.random(tuple(natural.shape), dtype=np.float32).reshape(tuple(natural.shape))
    )
    # Half a step above 0, so that a weight that all but never differs from its sign does not.
    uniform = uniform.clamp_(min=2.0**-25)
    threshold = torch.sigmoid(-2.0 * natural)
    return torch.where(uniform.to(natural.device) >= threshold, 1.0, -1.0).to(natural.dtype)


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
