"""Batch normalisation that keeps no running statistics.

Running statistics gathered while weights are drawn anew at every step are a mixture over weight
states and wrong for each of them. An ensemble computes the statistics of each of its draws from data,
once training is over.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Network = TypeVar("Network", bound=nn.Module)


class StateBatchNorm(_BatchNorm):
    r"""Batch normalisation that never mixes the statistics of different weight states.

    .. math:: y = \gamma\,\frac{x - m}{\sqrt{v + \epsilon}} + \beta

    In training, m and v are those of the batch, and nothing is accumulated. In evaluation they are the
    statistics that ``Ensemble.calibrate`` computed for the network's current weights; without them a
    forward pass is an error rather than a wrong answer. Input (B, C) or (B, C, ...).

    :param num_features: C. :param eps: epsilon. :param affine: whether gamma and beta are learned.

    Example::

        >>> import torch
        >>> from bayesbin.nn import StateBatchNorm
        >>> StateBatchNorm(3)(torch.randn(8, 3)).shape
        torch.Size([8, 3])

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167; per-state statistics: Yang et al. 2020 (SLB),
    arXiv 2009.08695.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, affine: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=0.0, affine=affine, **kwargs)
        assert self.running_mean is not None
        self.running_mean.fill_(torch.nan)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"StateBatchNorm takes (B, C, ...); got shape {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self._check_input_dim(input)
            return nn.functional.batch_norm(
                input, None, None, self.weight, self.bias, training=True, eps=self.eps
            )
        if self.running_mean is None or torch.isnan(self.running_mean[0]):
            raise RuntimeError(
                "This StateBatchNorm has no statistics for the current weights. Predict with an ensemble: "
                "bayesbin.Ensemble(model, posterior).calibrate(training inputs)."
            )
        return super().forward(input)


def to_state_batch_norm_(module: Network) -> Network:
    """Replace every BatchNorm1d/2d/3d of a network by a StateBatchNorm with the same affine parameters.

    In place; returns the network. :raises ValueError: if there is none to replace.

    Example::

        >>> import torch
        >>> from bayesbin.nn import to_state_batch_norm_
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> type(to_state_batch_norm_(net)[1]).__name__
        'StateBatchNorm'
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent._modules.items()  # named_children leaves out a layer's second name
        if isinstance(child, _BatchNorm) and not isinstance(child, StateBatchNorm)
    ]
    if not found:
        raise ValueError("to_state_batch_norm_ found no BatchNorm layer inside the network.")
    replaced: dict[nn.Module, nn.Module] = {}
    for parent, name, child in found:
        if child in replaced:
            setattr(parent, name, replaced[child])
            continue
        norm = StateBatchNorm(child.num_features, child.eps, child.affine)
        if child.affine:
            norm.weight, norm.bias = child.weight, child.bias
        for like in (*child.parameters(), *child.buffers()):
            if like.is_floating_point():
                norm.to(device=like.device, dtype=like.dtype)
                break
        norm.train(child.training)
        replaced[child] = norm
        setattr(parent, name, norm)
    return module
