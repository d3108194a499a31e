"""What batch normalisation normalises by, found by the calls that compute it, for the weights at hand.

A network's normalisation is recognised by torch's functions, whichever module calls them. Statistics are
those of the batch while a network runs over data; mean and variance over all the data are what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bayesbin.core.wrappers import named_buffers
from bayesbin.nn.state_norm import StateBatchNorm

Batches = Sequence[tuple[Tensor, ...]]
Buffers = tuple[
    str, str
]  # the names of the running mean and the running variance of a normalisation

# The names of the arguments that count here, in the order of each of torch's functions.
NORMALISATIONS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("x", "mean", "variance", "weight", "bias", "by_batch", "", "eps"),
    F.instance_norm: ("x", "mean", "variance", "weight", "bias", "by_batch", "", "eps"),
    torch.batch_norm: ("x", "weight", "bias", "mean", "variance", "by_batch", "", "eps"),
    torch.instance_norm: ("x", "weight", "bias", "mean", "variance", "by_batch", "", "eps"),
}
_NAMES = {
    "input": "x",
    "running_mean": "mean",
    "running_var": "variance",
    "training": "by_batch",
    "use_input_stats": "by_batch",
}


def arguments_of(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one of ``NORMALISATIONS`` by their names there."""
    given: dict[str, Any] = {"weight": None, "bias": None, "mean": None, "variance": None}
    given |= {"by_batch": func is F.instance_norm, "eps": 1e-5}
    given |= dict(zip(NORMALISATIONS[func], args, strict=False))
    return given | {_NAMES.get(name, name): value for name, value in kwargs.items()}


class _Answers(TorchFunctionMode):
    """Hands every normalisation by running statistics to a function that may answer in its place."""

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

    :param net: in evaluation mode. :param batch: of inputs; two rows of it are used.
    :param by_batch: whether they are to be those of a batch.
    :raises ValueError: for running statistics that are no buffers of the network, or not those of a batch.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    >>> normalisations(net, (torch.zeros(2, 3),))
    (('1.running_mean', '1.running_var'),)
    """
    names = {id(buffer): name for name, buffer in named_buffers(net)}
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

    with torch.no_grad(), _awake(net), _Answers(note):
        net(*(x[:2] for x in batch))
    return tuple(found)


def batch_statistics(net: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Run a network over data with the statistics of each batch; those of all the data, by name of buffer.

    Variances are unbiased, as those of torch's running statistics. The network is left as it is.

    :param net: in evaluation mode. :param batches: of each batch the inputs.
    :raises ValueError: for a batch with one value in a channel, which has no variance.

    >>> net = nn.BatchNorm1d(1).eval()
    >>> found = batch_statistics(net, [(torch.tensor([[1.0], [3.0]]),), (torch.tensor([[5.0], [7.0]]),)])
    >>> found["running_mean"].item(), round(found["running_var"].item(), 3)
    (4.0, 6.667)
    """
    names = {id(buffer): name for name, buffer in named_buffers(net)}
    sums: dict[Buffers, ChannelMoments] = {}

    def by_batch(func: Any, given: dict[str, Any]) -> Tensor:
        x = given["x"]
        values = x.double().transpose(0, 1).flatten(1)
        require_several(values.shape[1])
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        pair = (names[id(given["mean"])], names[id(given["variance"])])
        sums.setdefault(pair, ChannelMoments()).add(values.shape[1], mean, squares)
        return F.batch_norm(
            x, None, None, given["weight"], given["bias"], training=True, eps=given["eps"]
        )

    with torch.no_grad(), _awake(net), _Answers(by_batch):
        for batch in batches:
            net(*batch)
    return in_buffers(net, sums)


@contextmanager
def _awake(net: nn.Module) -> Iterator[None]:
    """Give layers that refuse to run without statistics some: all 0."""
    asleep = [
        module.running_mean
        for module in net.modules()
        if isinstance(module, StateBatchNorm) and module.running_mean is not None
    ]
    before = [mean.clone() for mean in asleep]
    for mean in asleep:
        mean.nan_to_num_()
    try:
        yield
    finally:
        for mean, old in zip(asleep, before, strict=True):
            mean.copy_(old)


class ChannelMoments:
    """Mean and variance of what a normalisation sees, of several blocks of data, by channel in float64.

    Blocks are put together by their means and sums of squares about them: no large numbers are subtracted.

    Source: Chan, Golub and LeVeque 1983, The American Statistician 37.
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


def require_several(count: int) -> None:
    """Refuse a batch of which a channel has one value: it has no variance."""
    if count < 2:
        raise ValueError(
            "expected several rows to calibrate by; got one, whose values have no variance. Pass a few "
            "thousand inputs of the training data."
        )


def in_buffers(net: nn.Module, sums: Mapping[Buffers, ChannelMoments]) -> dict[str, Tensor]:
    """Moments as the buffers that hold them, in their types."""
    found = {}
    for (mean, variance), moments in sums.items():
        for name, value in ((mean, moments.mean), (variance, moments.variance)):
            found[name] = torch.as_tensor(value).to(net.get_buffer(name))
    return found
