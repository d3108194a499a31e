"""Ensembles in torch, for networks that do not compile, and what batch normalisation sees there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bayesbin.compile import streaming
from bayesbin.compile.streaming import NORMALISATIONS, ExactDecisions, arguments_of
from bayesbin.core import networks
from bayesbin.ensemble.members import Member
from bayesbin.nn.state_norm import StateBatchNorm

Batches = Sequence[tuple[Tensor, ...]]
Buffers = tuple[
    str, str
]  # the names of the running mean and the running variance of a normalisation


class _Normalisations(TorchFunctionMode):
    """Hands every normalisation by running statistics to a function that may answer in its place.

    They are recognised by the call that computes them, whichever module makes it.
    """

    def __init__(self, answer: Callable[[Any, dict[str, Any]], Tensor | None]) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NORMALISATIONS:
            given = arguments_of(func, args, kwargs)
            if given["mean"] is not None and not given["by_batch"]:
                found = self._answer(func, given)
                if found is not None:
                    return found
        return func(*args, **kwargs)


def normalisations(
    net: nn.Module, batch: tuple[Tensor, ...], *, by_batch: bool = False
) -> tuple[Buffers, ...]:
    """The buffers of running statistics that a network normalises by, in the order of their use.

    :param net: a copy of the caller's. :param batch: a few rows are enough.
    :param by_batch: whether they are to be those of a batch.
    :raises ValueError: for running statistics that are no buffers of the network, or not those of a batch.
    """
    names = {id(buffer): name for name, buffer in net.named_buffers()}
    found: dict[Buffers, None] = {}

    def note(func: Any, given: dict[str, Any]) -> None:
        pair = tuple(names.get(id(given[name])) for name in ("mean", "variance"))
        if None in pair:
            raise ValueError(
                "The network normalises by running statistics that are not among its buffers, so that they "
                "cannot be computed for each draw; register them as buffers."
            )
        if by_batch and func in (F.instance_norm, torch.instance_norm):
            raise ValueError(
                f"The network has instance normalisation with running statistics ({pair[0]!r}), which are "
                "not those of a batch and cannot be computed for each draw; keep them by calibrate(None)."
            )
        found[(str(pair[0]), str(pair[1]))] = None

    with torch.no_grad(), _Normalisations(note), awake(net):
        net(*(x[:2] for x in batch))
    return tuple(found)


class awake:
    """Context in which layers that refuse to run without statistics have some: all 0."""

    def __init__(self, net: nn.Module) -> None:
        self._asleep = [
            module.running_mean
            for module in net.modules()
            if isinstance(module, StateBatchNorm) and module.running_mean is not None
        ]

    def __enter__(self) -> None:
        self._before = [mean.clone() for mean in self._asleep]
        for mean in self._asleep:
            mean.nan_to_num_()

    def __exit__(self, *_: Any) -> None:
        for mean, before in zip(self._asleep, self._before, strict=True):
            mean.copy_(before)


class Moments:
    """Mean and variance of what a normalisation sees, of several blocks of data, in float64.

    Blocks are put together by means and sums of squares about them: no large numbers are subtracted.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, count: int, mean: Any, squares: Any) -> None:
        """Take in a block: how many values, their mean, and their sum of squares about it, per channel."""
        total = self.count + count
        step = mean - self.mean
        self.squares = self.squares + squares + step * step * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def variance(self) -> Any:
        """The unbiased variance, as torch's own running statistics have it."""
        return self.squares / max(self.count - 1, 1)


def calibrated(member: Member, batches: Batches, draw: Any, worker: nn.Module) -> dict[str, Tensor]:
    """The statistics of one draw, by its network run in torch with the statistics of each batch.

    :param worker: a copy of the member's network, which is written over.
    """
    networks.write_(worker, member.weights(draw))
    names = {id(buffer): name for name, buffer in worker.named_buffers()}
    sums: dict[Buffers, Moments] = {}

    def by_batch(func: Any, given: dict[str, Any]) -> Tensor:
        x = given["x"]
        values = x.double().transpose(0, 1).flatten(1)
        require_several(values.shape[1])
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        pair = (names[id(given["mean"])], names[id(given["variance"])])
        sums.setdefault(pair, Moments()).add(values.shape[1], mean, squares)
        return F.batch_norm(
            x, None, None, given["weight"], given["bias"], training=True, eps=given["eps"]
        )

    with torch.no_grad(), awake(worker), ExactDecisions(), _Normalisations(by_batch):
        for batch in batches:
            worker(*batch)
    return in_buffers(worker, sums)


def require_several(count: int) -> None:
    """Refuse a batch of which a channel has one value: it has no variance."""
    if count < 2:
        raise ValueError(
            "expected several rows to calibrate by; got one, whose values have no variance. Pass a few "
            "thousand inputs of the training data."
        )


def in_buffers(net: nn.Module, sums: Mapping[Buffers, Moments]) -> dict[str, Tensor]:
    """Moments as the buffers that hold them, in their types."""
    found = {}
    for (mean, variance), moments in sums.items():
        for name, value in ((mean, moments.mean), (variance, moments.variance)):
            found[name] = torch.as_tensor(value).to(net.get_buffer(name))
    return found


def draw_outputs(member: Member, batches: Batches) -> Iterator[list[Tensor]]:
    """All outputs of the network for all rows, draw after draw."""
    draws = ((member.weights(draw), member.state(draw)) for draw in member.draws)
    return streaming.outputs(member.net, draws, batches, seed=member.seed)


def worker_of(member: Member) -> nn.Module:
    """A copy of a member's network to write draws into."""
    return copy.deepcopy(member.net)
