"""The nested guide: log-odds that weights share by layer, filter and kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from bayesbin import _numerics
from bayesbin.distributions import SignBernoulli
from bayesbin.guides.base import ParameterTree, Read, SignGuide
from bayesbin.guides.nested_fisher import nested_natural_gradient

LEVELS = ("layer", "filter", "kernel", "weight")


class AutoNestedSignBernoulli(SignGuide):
    r"""Natural parameters that are sums of offsets shared by layer, filter, kernel and weight.

    .. math:: \lambda_{l,o,i,k} = a_l + b_{l,o} + c_{l,o,i} + d_{l,o,i,k}

    A filter is what feeds one output unit (a row of a linear layer), a kernel what leads from one input
    channel to it. A level that a site does not have (the kernel of a linear layer), or that would be
    another one over again (the filter of a layer with one unit), is left out there. Without the weight
    level this is a compact posterior, of a few per cent of the parameters; with it, it is the mean-field
    posterior in other coordinates: the same laws, the same optimum, and the same natural-gradient step
    in lambda.

    Train the offsets with their own natural gradient, ``BayesianLearningRule(guide.offsets(), lr,
    preconditioner=guide.natural_gradient)``, which is what ``fit`` does by default.
    ``natural_parameters()`` is empty: no parameter here is a natural one.

    :param model: a Pyro model, and the other arguments, as for :class:`AutoSignBernoulli`.
    :param levels: any of "layer", "filter", "kernel", "weight".
    :param damping: of the Fisher information, relative to its diagonal; above 0.
    :raises ValueError: for unknown or repeated levels, a site that none of them applies to, or a damping
        that is not positive; and as :class:`AutoSignBernoulli`.

    Example::

        >>> from bayesbin.guides import AutoNestedSignBernoulli
        >>> from bayesbin.nn import BinaryConv2d, Classifier
        >>> model = Classifier(BinaryConv2d(2, 3, kernel_size=5), dataset_size=100)
        >>> guide = AutoNestedSignBernoulli(model, levels=("layer", "filter", "kernel"))
        >>> [tuple(p.shape) for p in guide.offsets()]
        [(1, 1, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1)]

    Source: after SnapQuant, ICLR 2019 submission B1ePui0ctQ, whose exact function is not public.
    """

    levels: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]  # of the binary sites

    def __init__(
        self,
        model: Callable[..., Any],
        levels: Sequence[str] = LEVELS,
        *,
        damping: float = 1e-4,
        **options: Any,
    ) -> None:
        unknown = [level for level in levels if level not in LEVELS]
        if isinstance(levels, str) or unknown or not levels or len(set(levels)) < len(levels):
            raise ValueError(
                f"levels are some of {', '.join(LEVELS)}, each at most once; got {levels!r}."
            )
        if not 0 < damping < math.inf:
            raise ValueError(
                f"The damping is positive: without it the Fisher information of shared offsets has no "
                f"inverse; got {damping}."
            )
        # Before torch's constructor, in which the sites are built.
        vars(self).update(levels=tuple(level for level in LEVELS if level in levels), shapes={})
        super().__init__(model, **options)
        self.damping = float(damping)

    def insert_natural(self, name: str, start: Tensor, *, random: bool) -> None:
        if "offset" not in self._modules:
            self.offset = ParameterTree()
        shapes = self.level_shapes(tuple(start.shape))
        if not shapes:
            raise ValueError(
                f"The levels {', '.join(self.levels)} give the site {name!r} of shape "
                f'{tuple(start.shape)} no parameter; add "weight", or "filter" or "layer".'
            )
        self.shapes[name] = tuple(start.shape)
        rest = start
        for level, shape in shapes.items():
            mean = rest.sum_to_size(shape) / (rest.numel() // max(1, math.prod(shape)))
            rest = rest - mean
            if random:  # each level gets an equal share of the variance of lambda
                members = start.numel() / max(1, math.prod(shape))
                mean = mean * math.sqrt(members / len(shapes))
            self._tree("offset").insert(f"{name}.{level}", nn.Parameter(mean.clone()))

    def level_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Level -> shape of its offsets for a site, from the coarsest; they broadcast to the site."""
        ones = tuple(1 for _ in shape)
        of_level = {
            "layer": ones,
            "filter": shape[:1] + ones[1:] if len(shape) > 1 else None,
            "kernel": shape[:2] + ones[2:] if len(shape) > 2 else None,
            "weight": shape,
        }
        found: dict[str, tuple[int, ...]] = {}
        for level in self.levels:
            wanted = of_level[level]
            if wanted is not None and wanted not in found.values():
                found[level] = wanted
        return found

    def natural_of(self, name: str, read: Read | None = None) -> Tensor:
        read = read or self._parameter
        shape = self.shapes[name]
        total: Tensor | None = None
        for level in self.level_shapes(shape):  # coarse to fine: only the last sum is of full size
            offset = read("offset", f"{name}.{level}")
            total = offset if total is None else total + offset
        assert total is not None
        return total.expand(shape)

    def natural_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def offsets(self) -> Iterator[nn.Parameter]:
        """The offsets, site by site and from the coarsest level to the finest."""
        return (
            self._parameter("offset", f"{name}.{level}")
            for name, shape in self.shapes.items()
            for level in self.level_shapes(shape)
        )

    def natural_gradient(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        r"""The natural gradients of the offsets, from their gradients, in the order of :meth:`offsets`.

        .. math:: (J^T F J + \epsilon\, \mathrm{diag}(J^T F J))\, x = J^T g

        with F the diagonal Fisher information in lambda and J the membership of weights in offsets.
        Solved exactly, across the levels of a site, in one pass over its weights.

        :raises ValueError: unless there is one gradient (or None) per offset.
        """
        given = list(gradients)
        expected = sum(len(self.level_shapes(shape)) for shape in self.shapes.values())
        if len(given) != expected:
            raise ValueError(
                f"Expected the gradients of all {expected} offsets, in the order of offsets(); got "
                f"{len(given)}. Give the optimizer guide.offsets() as one group."
            )
        found: list[Tensor | None] = []
        for name, shape in self.shapes.items():
            levels = self.level_shapes(shape)
            own, given = given[: len(levels)], given[len(levels) :]
            finest = own[-1]
            if finest is None:
                found += [None] * len(levels)
                continue
            # All weights that share a finest offset have the same lambda, and so the same information.
            members = math.prod(shape) // max(1, finest.numel())
            natural = self.natural_of(name).detach()
            shared = natural[tuple(slice(n) for n in finest.shape)]
            bound = _numerics.BOUNDS[natural.dtype]
            fisher = members * _numerics.variance(shared.clamp(-bound, bound))
            found += nested_natural_gradient(finest, fisher, list(levels.values()), self.damping)
        return found

    def sign_law(self, natural: Tensor) -> SignBernoulli:
        return SignBernoulli(natural=natural, validate_args=False)
