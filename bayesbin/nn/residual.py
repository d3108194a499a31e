"""Residual blocks: what a few layers put out, added to what went in."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    r"""A body with a connection around it.

    .. math:: y = \mathrm{body}(x) + \mathrm{shortcut}(x)

    Signs lose what is added to them before the next sign; a real-valued sum around each binary layer
    keeps it. Blocks may stand anywhere in a ``Sequential``, and inside one another.

    :param body: any module.
    :param shortcut: another, whose outputs have the shape of the body's; None: the inputs themselves.
    :raises ValueError: for a body or a shortcut that begins by changing the inputs in place; in a
        forward pass, for outputs of different shapes, which are not broadcast.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Residual
        >>> block = Residual(torch.nn.Sequential(BinaryLinear(4, 4), torch.nn.ReLU()))
        >>> block(torch.ones(3, 4)).shape
        torch.Size([3, 4])

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385; in binary networks: Liu et al. 2018,
    arXiv 1808.00278 (Bi-Real net).
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        for part in (body, shortcut):
            if part is not None and getattr(_first(part), "inplace", False):
                raise ValueError(
                    f"The parts of a Residual leave its inputs as they are; got one that begins with "
                    f"{_first(part)}. Set inplace=False there."
                )
        self.body = body
        self.shortcut = shortcut

    def forward(self, input: Tensor) -> Tensor:
        found = self.body(input)
        other = input if self.shortcut is None else self.shortcut(input)
        if found.shape != other.shape:
            raise ValueError(
                f"A Residual adds outputs of one shape; its body's is {tuple(found.shape)}, that of its "
                f"{'inputs' if self.shortcut is None else 'shortcut'} {tuple(other.shape)}. Give it a "
                "shortcut that puts out what the body does."
            )
        return found + other


def _first(module: nn.Module) -> nn.Module:
    """The layer that sees the inputs first."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    return module
