"""A Normal distribution in unconstrained space, for the real-valued sites beside the binary ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.constraints import ordered_vector
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

_FIXED: dict[str, Any] = {
    "real": constraints.real,
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "unit_interval": constraints.unit_interval,
    "ordered_vector": ordered_vector,
}
_BOUNDED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "interval": (constraints.interval, ("lower_bound", "upper_bound")),
    "greater_than": (constraints.greater_than, ("lower_bound",)),
    "greater_than_eq": (constraints.greater_than_eq, ("lower_bound",)),
    "less_than": (constraints.less_than, ("upper_bound",)),
}


@dataclass(frozen=True)
class Support:
    """A support by name and bounds, elementwise or of increasing vectors: it can be written to a file.

    :param kind: "real", "positive", "nonnegative", "unit_interval", "ordered_vector", "interval",
        "greater_than", "greater_than_eq" or "less_than". :param bounds: the numbers that belong to it.
    """

    kind: str
    bounds: tuple[float, ...] = ()

    @classmethod
    def of(cls, constraint: Any, site: str) -> Support:
        """The support behind a torch constraint, or an error that names the site."""
        while isinstance(constraint, constraints.independent):
            constraint = constraint.base_constraint
        for kind, known in _FIXED.items():
            if constraint is known:
                return cls(kind)
        for kind, (known, names) in _BOUNDED.items():
            if type(constraint) is known:
                bounds = [torch.as_tensor(getattr(constraint, name)) for name in names]
                if all(bound.numel() == 1 for bound in bounds):
                    return cls(kind, tuple(bound.item() for bound in bounds))
        raise ValueError(
            f"The latent site {site!r} has support {constraint}; real-valued sites are real, positive, in an "
            "interval with fixed bounds, or increasing vectors. Give that site a guide of its own: block it "
            "here (pyro.poutine.block) and combine with pyro.infer.autoguide.AutoGuideList."
        )

    @property
    def transform(self) -> Transform:
        """The bijection from the real line to the support."""
        if self.kind in _FIXED:
            return biject_to(_FIXED[self.kind])
        return biject_to(_BOUNDED[self.kind][0](*self.bounds))


def unconstrained_normal(
    loc: Tensor, scale: Tensor, support: Support, event_dim: int = 0
) -> TorchDistributionMixin:
    r"""x = T(z), z ~ Normal(loc, scale), with T the bijection from the real line to the support.

    A plain Normal where the support is real, so that its KL to a Normal prior is closed-form.

    :param loc: location in unconstrained space. :param scale: positive, of the same shape.
    :param event_dim: how many of the rightmost dimensions belong to one event.

    Example::

        >>> import torch
        >>> from bayesbin.distributions import Support, unconstrained_normal
        >>> q = unconstrained_normal(torch.zeros(2), torch.ones(2), Support("positive"), event_dim=1)
        >>> bool((q.sample() > 0).all())
        True

    Source: Kucukelbir et al. 2017, arXiv 1603.00788 (ADVI).
    """
    base = dist.Normal(loc, scale, validate_args=False)
    distribution = (
        base if support.kind == "real" else dist.TransformedDistribution(base, [support.transform])
    )
    own = distribution.event_dim  # 1 of a vector whose elements are ordered
    return distribution.to_event(event_dim - own) if event_dim > own else distribution
