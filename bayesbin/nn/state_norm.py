"""Batch normalisation with statistics per weight state: the mode, and each posterior draw.

Running statistics gathered while weights are drawn anew at every step are a mixture over weight
states and wrong for each of them. Here the statistics of a weight state are computed for that state,
from data, once training is over.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.core import networks
from bayesbin.core.arrays import network_batches
from bayesbin.core.checks import whole_number

Network = TypeVar("Network", bound=nn.Module)


class StateBatchNorm(_BatchNorm):
    r"""Batch normalisation that never mixes the statistics of different weight states.

    .. math:: y = \gamma\,\frac{x - m}{\sqrt{v + \epsilon}} + \beta

    In training, m and v are those of the batch, and nothing is accumulated. In evaluation they are the
    statistics computed for the network's current weights by :func:`recalibrate`; without them a
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
                "This StateBatchNorm has no statistics for the current weights. Compute them with "
                "bayesbin.nn.recalibrate(net, posterior, data) and pass the result as statistics=."
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


@dataclass(frozen=True)
class Statistics:
    """Normalisation statistics of each weight state: state-dict name -> tensor, per state.

    :param mode: those of the posterior mode. :param draws: those of draw 0, 1, ... of ``seed``.
    """

    mode: Mapping[str, Tensor]
    draws: tuple[Mapping[str, Tensor], ...]
    seed: int

    def of_draw(self, index: int, seed: int) -> Mapping[str, Tensor]:
        """The statistics of one draw, or an error if they were computed for other draws."""
        if seed != self.seed or not 0 <= index < len(self.draws):
            raise ValueError(
                f"Statistics were computed for draws 0..{len(self.draws) - 1} of seed {self.seed}; "
                f"asked for draw {index} of seed {seed}. Call recalibrate with that seed and at "
                "least as many num_samples."
            )
        return self.draws[index]


def recalibrate(
    net: nn.Module,
    posterior: Any,
    data: Any,
    num_samples: int = 32,
    seed: int = 0,
) -> Statistics:
    """Compute batch-normalisation statistics for the mode and for each of the first draws.

    For each weight state the network runs over ``data`` with batch statistics in its normalisation
    layers (dropout off); mean and variance of each layer's input over all the data are kept. The
    network itself is not touched.

    :param posterior: a ``BinaryPosterior`` or ``LowBitPosterior``.
    :param data: inputs as a tensor, an array or a data set, or an iterable of batches, each x or
        (x, y, ...). A few thousand inputs are enough.
    :param num_samples: draws 0 .. num_samples - 1 of ``seed``, the draws that prediction uses.
    :raises ValueError: if there is no data, or for data that are no numbers.

    Example: see :func:`bayesbin.predict.predict`.
    """
    num_samples = whole_number("num_samples", num_samples)
    batches = network_batches(net, data)
    if not batches:
        raise ValueError("recalibrate needs data; got no batch at all.")
    worker = copy.deepcopy(net).eval()
    # A layer without running statistics normalises by the batch in evaluation too: nothing to keep.
    norms = {
        name: module
        for name, module in worker.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    for norm in norms.values():
        norm.train()

    def of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _state_statistics(networks.write_(worker, values), norms, batches)

    draws = tuple(of(posterior.signs(index, seed=seed)) for index in range(num_samples))
    return Statistics(mode=of(posterior.signs()), draws=draws, seed=seed)


def _state_statistics(
    net: nn.Module, norms: Mapping[str, _BatchNorm], batches: list[Tensor]
) -> dict[str, Tensor]:
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def accumulate(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().to(torch.float64).transpose(0, 1).flatten(1)
            count, total, square = sums.get(name, (0, torch.zeros(()), torch.zeros(())))
            sums[name] = (count + x.shape[1], total + x.sum(1), square + x.square().sum(1))

        return hook

    handles = [norm.register_forward_pre_hook(accumulate(name)) for name, norm in norms.items()]
    try:
        with torch.no_grad():
            for x in batches:
                net(x)
    finally:
        for handle in handles:
            handle.remove()
    result = {}
    for name, (count, total, square) in sums.items():
        mean = total / count
        # The unbiased variance, as torch's own running statistics use.
        variance = ((square - count * mean.square()) / max(count - 1, 1)).clamp_(min=0.0)
        for buffer, value in (("running_mean", mean), ("running_var", variance)):
            result[f"{name}.{buffer}"] = value.to(norms[name].get_buffer(buffer))
    return result
