"""The nested guide: log-odds that weights share by layer, filter and kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesbin.core import numerics
from bayesbin.core.nesting import SCOPES, scope_effects, scope_shapes
from bayesbin.distributions import SignBernoulli, Support
from bayesbin.guides.base import ParameterTree, Read, SignGuide, Site
from bayesbin.guides.combine import Combine
from bayesbin.guides.nested_summary import NestedSummary, summarise
from bayesbin.optim.assembly import TrainingGroup

KINDS = ("shared", "random-effects")


class AutoNestedSignBernoulli(SignGuide):
    r"""Natural parameters that are sums of offsets shared by layer, filter, kernel and weight.

    .. math:: \lambda_{l,o,i,k} = a_l + b_{l,o} + c_{l,o,i} + d_{l,o,i,k}

    A filter is what feeds one output unit (a row of a linear layer), a kernel what leads from one input
    channel to it. A scope that a site does not have (the kernel of a linear layer), or that would be
    another one over again (the filter of a layer with one unit), is left out there.

    ``kind="shared"``: offsets are parameters. Without the weight scope this is a compact posterior, of a
    few per cent of the parameters; with it, it is the mean-field posterior in other coordinates: the
    same distributions, the same optimum, and the same natural-gradient step in lambda. Train the offsets with
    their own natural gradient, ``BayesianLearningRule(guide.offsets(), lr,
    preconditioner=guide.natural_gradient)``, which is what ``fit`` does by default.

    ``kind="random-effects"``: the offsets z of layer, filter and kernel are Normal sites of the guide,
    named after site and scope ("0.weight.filter"), with prior N(0, effect_scale^2); those of the weights
    stay parameters. Weights that share an offset are then correlated. The loss bounds the evidence of
    the model as it was given, whose own prior p(w) stays the prior of the weights:

    .. math::
        \log p(y) \ge E_{q(z)} \big[ E_{q(w|z)} \log p(y|w) - \mathrm{KL}(q(w|z)\,\|\,p(w)) \big]
            - \mathrm{KL}(q(z)\,\|\,p(z))

    It is the ELBO of the pair (w, z) when z has its prior and the data do not depend on it; the gap to
    the marginal bound is the information that w has of z. ``TraceBinary_ELBO`` and ``fit`` add the prior
    of z by themselves; for a loss of Pyro's own give it ``with_effects(model, guide)``.

    ``combine``: another composition of the scopes than their sum, see :class:`Combine`.

    ``natural_parameters()`` is empty: no parameter here is a natural one. ``offsets()`` are those that
    the natural gradient is for; everything else is in ``real_parameters()``.

    :param model: a Pyro model, and the other arguments, as for :class:`AutoSignBernoulli`.
    :param sharing: any of "layer", "filter", "kernel", "weight".
    :param kind: "shared" or "random-effects".
    :param combine: a :class:`Combine`, or a function from a dictionary of offsets by scope to lambda.
    :param effect_scale: standard deviation of the prior of random effects, positive.
    :param fisher: "joint", a solution across the scopes, or "diagonal", scope by scope, see
        :meth:`natural_gradient`.
    :param damping: of the Fisher information, relative to its diagonal; above 0.
    :param real_scale: initial standard deviation of random effects and other real-valued sites.
    :raises ValueError: for unknown or repeated scopes, a site that none of them applies to, a number
        that is not positive, or random effects with ``combine``; and as :class:`AutoSignBernoulli`.

    Example::

        >>> from bayesbin.guides import AutoNestedSignBernoulli
        >>> from bayesbin.nn import BinaryConv2d, Classifier
        >>> model = Classifier(BinaryConv2d(2, 3, kernel_size=5), dataset_size=100)
        >>> guide = AutoNestedSignBernoulli(model, sharing=("layer", "filter", "kernel"))
        >>> [tuple(p.shape) for p in guide.offsets()]
        [(1, 1, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1)]

    Source: after SnapQuant, ICLR 2019 submission B1ePui0ctQ, whose exact function is not public; the
    bound: Ranganath, Tran and Blei 2016, arXiv 1511.02386.
    """

    sharing: tuple[str, ...]
    kind: str
    shapes: dict[str, tuple[int, ...]]  # of the binary sites

    def __init__(
        self,
        model: Callable[..., Any],
        sharing: Sequence[str] = SCOPES,
        kind: str = "shared",
        *,
        combine: Combine | Callable[[dict[str, Tensor]], Tensor] | None = None,
        effect_scale: float = 1.0,
        fisher: str = "joint",
        damping: float = 1e-4,
        real_scale: float = 0.1,
        **options: Any,
    ) -> None:
        unknown = [scope for scope in sharing if scope not in SCOPES]
        if isinstance(sharing, str) or unknown or not sharing or len(set(sharing)) < len(sharing):
            raise ValueError(
                f"sharing is some of {', '.join(SCOPES)}, each at most once; got {sharing!r}."
            )
        for what, value, known in (("kind", kind, KINDS), ("fisher", fisher, FISHERS)):
            if value not in known:
                raise ValueError(f"{what} is one of {', '.join(known)}; got {value!r}.")
        if not 0 < damping < math.inf:
            raise ValueError(
                f"The damping is positive: without it the Fisher information of shared offsets has no "
                f"inverse; got {damping}."
            )
        if not 0 < effect_scale < math.inf:
            raise ValueError(f"effect_scale is a positive standard deviation; got {effect_scale}.")
        if kind == "random-effects":
            if combine is not None:
                raise ValueError(
                    'combine composes parameters; random effects add up: leave it out, or kind="shared".'
                )
            if not set(sharing) - {"weight"}:
                raise ValueError(
                    f"Random effects are those of layer, filter and kernel; got sharing={sharing!r}."
                )
        # Before torch's constructor, in which the sites are built.
        vars(self).update(sharing=tuple(scope for scope in SCOPES if scope in sharing), kind=kind)
        vars(self).update(shapes={}, fisher=fisher, damping=float(damping), _real_scale=real_scale)
        vars(self).update(effect_scale=float(effect_scale), _given_combine=combine)
        super().__init__(model, real_scale=real_scale, **options)

    # Parameters

    def insert_natural(self, name: str, start: Tensor, *, random: bool) -> None:
        shape = tuple(start.shape)
        shapes = scope_shapes(shape, self.sharing)
        if not shapes:
            raise ValueError(
                f"The scopes {', '.join(self.sharing)} give the site {name!r} of shape "
                f'{shape} no parameter; add "weight", or "filter" or "layer".'
            )
        if "offset" not in self._modules:
            self.offset, self.combine = ParameterTree(), Combine.of(self._given_combine)
        self.shapes[name] = shape
        if self.combine is not None:
            started = self.combine.start(name, start, shapes, random=random)
            for scope, value in started.items():
                self._tree("offset").insert(f"{name}.{scope}", nn.Parameter(value))
            return
        for scope, effect in scope_effects(start, shapes).items():
            if random:  # each scope gets an equal share of the variance of lambda
                members = start.numel() / max(1, effect.numel())
                effect = effect * math.sqrt(members / len(shapes))
            key = f"{name}.{scope}"
            if self._is_random(scope):
                self.insert_real(
                    Site(key, effect.dim(), (), Support("real")), effect, self._real_scale
                )
            else:
                self._tree("offset").insert(key, nn.Parameter(effect.clone()))

    def natural_of(self, name: str, read: Read | None = None) -> Tensor:
        read = read or self._parameter
        shape = self.shapes[name]
        parts = {
            scope: read("loc" if self._is_random(scope) else "offset", f"{name}.{scope}")
            for scope in scope_shapes(shape, self.sharing)
        }
        if self.combine is not None:
            return self.combine.natural(name, parts, shape, read)
        total: Tensor | None = None
        for part in parts.values():  # coarse to fine: only the last sum is of full size
            part = self._aligned(name, part)
            total = part if total is None else total + part
        assert total is not None
        return total.expand(torch.broadcast_shapes(total.shape, shape))

    def _aligned(self, name: str, part: Tensor) -> Tensor:
        """A part without the empty axes of plates that a random effect has where it is drawn many times.

        The effect lies in no plate of the model: all of its own axes are one event. Those of its site are the
        axes of the site's plates and then its event, so that the draws come directly before the plates.
        """
        dims = len(self.shapes[name])
        extra, plates = part.dim() - dims, dims - self.sites[name].event_dim
        if extra <= 0 or plates == 0:
            return part
        return part.squeeze(tuple(range(extra - plates, extra)))

    def natural_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def offsets(self) -> Iterator[nn.Parameter]:
        """The offsets that add up to lambda, site by site and from the coarsest scope to the finest."""
        return (p for parameters in self.offsets_by_site().values() for p in parameters)

    def offsets_by_site(self) -> dict[str, list[nn.Parameter]]:
        """Binary site -> its offsets, for one parameter group each; empty for another ``combine``."""
        if self.combine is not None:
            return {}
        found = {
            name: [self._parameter("offset", f"{name}.{scope}") for scope in self._added(shape)]
            for name, shape in self.shapes.items()
        }
        return {name: parameters for name, parameters in found.items() if parameters}

    def training_groups(self) -> Iterator[TrainingGroup]:
        """The offsets, a group for each site, by their natural gradient; the rest by Adam."""
        for offsets in self.offsets_by_site().values():
            yield TrainingGroup(
                tuple(offsets), "natural-gradient", "offsets", self.natural_gradient, together=True
            )
        yield TrainingGroup(tuple(self.real_parameters()))

    def _added(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The scopes whose offsets are parameters, with their shapes."""
        shapes = scope_shapes(shape, self.sharing)
        return {scope: s for scope, s in shapes.items() if not self._is_random(scope)}

    def _is_random(self, scope: str) -> bool:
        return self.kind == "random-effects" and scope != "weight"

    def effects(self) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(
                f"{name}.{scope}"
                for scope in scope_shapes(shape, self.sharing)
                if self._is_random(scope)
            )
            for name, shape in self.shapes.items()
        }

    def effect_priors(self) -> dict[str, Any]:
        """Random-effect site -> its prior N(0, effect_scale^2)."""
        priors = {}
        for effects in self.effects().values():
            for name in effects:
                loc = torch.zeros_like(self._parameter("loc", name))
                distribution = dist.Normal(
                    loc, torch.full_like(loc, self.effect_scale), validate_args=False
                )
                priors[name] = distribution.to_event(loc.dim())
        return priors

    # The natural gradient

    def natural_gradient(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        r"""The natural gradients of the offsets, from their gradients, in the order of :meth:`offsets`.

        .. math:: (J^T F J + \epsilon\, \mathrm{diag}(J^T F J))\, x = J^T g

        with F the diagonal Fisher information in lambda, at the locations of random effects, and J the
        membership of weights in offsets. "joint": solved exactly, across the scopes of a site, in one
        pass over its weights. "diagonal": each scope by its own diagonal, divided by the number of
        scopes, whose steps in lambda add up.

        :raises ValueError: unless there is one gradient (or None) per offset.
        """
        given = list(gradients)
        expected = sum(1 for _ in self.offsets())
        if len(given) != expected:
            raise ValueError(
                f"Expected the gradients of all {expected} offsets, in the order of offsets(); got "
                f"{len(given)}. Give the optimizer guide.offsets() as one group, or "
                "offsets_by_site() as several in that order."
            )
        found: list[Tensor | None] = []
        for name, parameters in self.offsets_by_site().items():
            shapes = list(self._added(self.shapes[name]).values())
            own, given = given[: len(parameters)], given[len(parameters) :]
            finest = own[-1]
            if finest is None:
                found += [None] * len(own)
                continue
            # All weights that share a finest offset have the same lambda, and so the same information.
            members = math.prod(self.shapes[name]) // max(1, finest.numel())
            natural = self.natural_of(name).detach()
            shared = natural[tuple(slice(n) for n in finest.shape)]
            bound = numerics.BOUNDS[natural.dtype]
            information = members * numerics.variance(shared.clamp(-bound, bound))
            # Offsets of one scope alone do not overlap: their information has an inverse.
            damping = self.damping if len(shapes) > 1 else 0.0
            found += FISHERS[self.fisher](finest, information, shapes, damping)
        return found

    def summary(self, scores: Mapping[str, Any] | None = None) -> NestedSummary:
        """Parameters, entropy and share of lambda by scope, beside mean-field and real weights.

        :param scores: of ``diagnostics.evaluate``, to be printed with their 95 % intervals over draws.
        """
        return summarise(self, scores)

    def sign_distribution(self, natural: Tensor) -> SignBernoulli:
        return SignBernoulli(natural=natural, validate_args=False)


def nested_natural_gradient(
    gradient: Tensor, fisher: Tensor, shapes: Sequence[tuple[int, ...]], damping: float
) -> list[Tensor]:
    r"""Solve (J'FJ + damping diag(J'FJ)) x = J'g, where each scope's offsets divide the one above.

    Every finer offset belongs to one coarser offset, so that eliminating the finest scope leaves a
    system of the same form one scope up. With D the diagonal of J'FJ, q = F_r / D the share of it that
    is left after elimination (1 at the finest scope), and u the sum of the coarser steps,

    .. math::
        x = \frac{g / D - q u}{q + \epsilon}, \qquad
        g \to \sum \frac{\epsilon\, g}{q + \epsilon}, \qquad
        F_r \to \sum \frac{\epsilon\, q D}{q + \epsilon}

    and the step in lambda is (F^{-1} g + epsilon u) / (1 + epsilon) at the finest scope. Above it sums
    are kept in float64.

    :param gradient: of the finest scope; those of the others are its sums.
    :param fisher: D of the finest scope. :param shapes: of the scopes, from the coarsest; all have the
        same number of dimensions and broadcast to the last. :param damping: epsilon > 0.
    :return: x of each scope, from the coarsest.
    """
    # Going up. The finest scope stays in its own type: there q is 1.
    sums: list[tuple[Tensor, Tensor, Tensor | float]] = [(gradient, fisher, 1.0)]
    shrink = damping / (1.0 + damping)
    up_gradient, up_fisher = gradient, fisher
    for shape in reversed(shapes[:-1]):
        up_gradient = _sum_to(up_gradient, shape) * shrink
        left = _sum_to(up_fisher, shape) * shrink
        diagonal = _sum_to(fisher, shape)
        share = torch.where(diagonal > 0, left / diagonal, 0.0)
        sums.append((up_gradient, diagonal, share))
        factor = damping / (share + damping)
        up_gradient, up_fisher = up_gradient * factor, left * factor
        shrink = 1.0
    # Coming down.
    steps: list[Tensor] = []
    above: Tensor | float = 0.0
    for scope_gradient, diagonal, share in reversed(sums):
        over = torch.where(diagonal > 0, scope_gradient / diagonal, 0.0)
        step = (over - share * torch.as_tensor(above).to(over)) / (share + damping)
        steps.append(step.to(gradient.dtype))
        above = above + step
    return steps


def diagonal_natural_gradient(
    gradient: Tensor, fisher: Tensor, shapes: Sequence[tuple[int, ...]], damping: float
) -> list[Tensor]:
    """J'g / (L (1 + damping) diag(J'FJ)) for L scopes; arguments and result as of the joint solution.

    Each scope alone would take the whole step in lambda; their L steps add up, hence the division.
    """
    steps: list[Tensor] = []
    for shape in shapes:
        diagonal = _sum_to(fisher, shape) * ((1.0 + damping) * len(shapes))
        step = torch.where(diagonal > 0, _sum_to(gradient, shape) / diagonal, 0.0)
        steps.append(step.to(gradient.dtype))
    return steps


def _sum_to(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The sum over the dimensions that ``shape`` has not, kept, in float64."""
    dims = [i for i, (n, m) in enumerate(zip(tensor.shape, shape, strict=True)) if m == 1 != n]
    return tensor.sum(dims, keepdim=True, dtype=torch.float64) if dims else tensor.double()


FISHERS = {"joint": nested_natural_gradient, "diagonal": diagonal_natural_gradient}
