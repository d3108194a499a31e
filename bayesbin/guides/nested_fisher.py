"""The natural gradient of offsets that add up, scope by scope, to natural parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
