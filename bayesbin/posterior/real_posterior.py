"""The posterior of one real-valued site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.distributions import Support, unconstrained_normal


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

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles of the site itself, in its support, at ``value`` in [0, 1]."""
        transform = self.support.transform
        value = value if transform.sign == 1 else 1.0 - value
        noise = torch.special.ndtri(value.to(self.loc))
        found = transform(self.loc + self.scale * noise)
        assert isinstance(found, Tensor)
        return found

    def distribution(self) -> Any:
        """The distribution as a Pyro distribution, elementwise."""
        return unconstrained_normal(self.loc, self.scale, self.support)

    def to(self, *args: Any, **kwargs: Any) -> RealPosterior:
        """The distribution on another device or in another dtype, as ``torch.Tensor.to``."""
        loc, scale = self.loc.to(*args, **kwargs), self.scale.to(*args, **kwargs)
        return RealPosterior(loc, scale, self.support)
