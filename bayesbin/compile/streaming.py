"""Prediction in torch, one draw after another: for networks that do not compile.

What decides the sign of a value is computed as a program computes it, so that the answers agree: the network
runs in float64, and normalisation subtracts the mean first. An exact zero then stays a zero, and a value that
equals the running mean is normalised to exactly the shift. A network that does not run in float64, since it
makes tensors of float32 itself, runs in its own type, with products and normalisation that round once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bayesbin.core import networks
from bayesbin.core.canonical import key_of
from bayesbin.core.checks import shown, whole_number
from bayesbin.core.copies import copy_network
from bayesbin.core.turns import in_turn
from bayesbin.nn.batch_statistics import NORMALISATIONS, arguments_of

Draw = tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]

_PRODUCTS: frozenset[Any] = frozenset(
    {
        *(F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, torch.einsum),
        *(torch.addmm, torch.addmv, torch.baddbmm, torch.addbmm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.mv),
        *(Tensor.dot, Tensor.addmm, Tensor.addmv, Tensor.baddbmm, Tensor.addbmm),
    }
)
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class ExactDecisions(TorchFunctionMode):
    """While it is entered, torch computes products and normalisation in float64 and rounds once.

    It concerns linear maps, convolutions, matrix products and ``einsum`` of float32 or less, and batch
    and instance normalisation by running statistics,

    .. math:: y = (x - m) \\frac{w}{\\sqrt{v + \\epsilon}} + b.

    A call inside a function of torch's own, such as multi-head attention, is computed as torch does.

    :param numbers: the type of a network that is run in float64: Python's numbers, such as the scale of a
        layer, are rounded to it as torch does in that type. None: they are not.

    Example::

        >>> import torch
        >>> x, mean = torch.tensor([[3.0]]), torch.tensor([3.0])
        >>> with ExactDecisions():
        ...     torch.nn.functional.batch_norm(x, mean, torch.tensor([0.7]))
        tensor([[0.]])
    """

    def __init__(self, numbers: torch.dtype | None = None) -> None:
        super().__init__()
        self._numbers = numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NORMALISATIONS:
            given = arguments_of(func, args, kwargs)
            if given["mean"] is not None and not given["by_batch"]:
                return _normalised(given)
        if self._numbers is not None:
            args = tuple(_rounded(each, self._numbers) for each in args)
            kwargs = {name: _rounded(each, self._numbers) for name, each in kwargs.items()}
        if func in _PRODUCTS:
            return _in_float64(func, args, kwargs)
        return func(*args, **kwargs)


def outputs(
    net: nn.Module,
    draws: Iterable[Draw],
    batches: Sequence[tuple[Tensor, ...]],
    *,
    seed: int = 0,
) -> Iterator[list[Tensor]]:
    """What a network returns for all rows, draw after draw: of each of its outputs a tensor (B, ...).

    One copy of the network, in evaluation mode, is written anew for each draw. The network itself, its
    buffers and torch's random numbers are left as they are; a network that draws random numbers in
    evaluation mode draws them from a seed of its own for each draw. Outputs have the types that the network
    gives them.

    :param draws: of each draw its signs by site, and its normalisation statistics by the names of buffers.
    :param batches: of each batch the inputs, on the network's device.
    :param seed: of random numbers that the network itself draws.
    :raises ValueError: if there is no batch, or an output has no row for each input.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear
        >>> net, x = BinaryLinear(4, 3, bias=False), torch.ones(2, 4)
        >>> draws = [({"weight": signs * torch.ones(3, 4)}, None) for signs in (-1.0, 1.0)]
        >>> [found.sum().item() for (found,) in outputs(net, draws, [(x,)])]
        [-12.0, 12.0]
    """
    seed = whole_number("seed", seed)
    if not batches:
        raise ValueError("expected at least one batch of inputs, got none.")
    return _draw_after_draw(copy_network(net).eval(), draws, batches, seed)


def _draw_after_draw(
    net: nn.Module, draws: Iterable[Draw], batches: Sequence[tuple[Tensor, ...]], seed: int
) -> Iterator[list[Tensor]]:
    worker, types, numbers = net, None, None
    for place, (signs, state) in enumerate(draws):
        key = key_of(seed, place, "") >> 1
        networks.write_(worker, signs, state)
        if types is None:
            trial = copy_network(net)
            types = [each.dtype for each in _run(trial, batches[:1], key)]
            wide, narrow = _in_doubles(batches), _narrow_type(net, batches)
            if _runs(copy_network(net).double(), wide[:1], key, narrow):
                worker, batches, numbers = net.double(), wide, narrow
        found = _run(worker, batches, key, numbers)
        yield [each.to(dtype) for each, dtype in zip(found, types, strict=True)]


def _narrow_type(net: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> torch.dtype | None:
    """The type of a network whose numbers are not all of float64."""
    tensors = [*net.parameters(), *net.buffers(), *batches[0]]
    found = {each.dtype for each in tensors if each.dtype in _NARROW}
    return functools.reduce(torch.promote_types, found) if found else None


def _in_doubles(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The batches in float64, but for numbers that are none and devices that do not have it."""
    return [
        tuple(x.double() if x.dtype in _NARROW and x.device.type != "mps" else x for x in batch)
        for batch in batches
    ]


def _runs(
    worker: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    key: int,
    numbers: torch.dtype | None,
) -> bool:
    try:
        _run(worker, batches, key, numbers)
    except Exception:  # whatever the network objects to
        return False
    return True


def _run(
    worker: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    key: int,
    numbers: torch.dtype | None = None,
) -> list[Tensor]:
    """The outputs for all batches, with random numbers of the key."""
    found = {x.device for batch in batches for x in batch if x.device.type == "cuda"}
    devices = sorted(found, key=str)
    with in_turn(), torch.random.fork_rng(devices), torch.no_grad(), ExactDecisions(numbers):
        torch.default_generator.manual_seed(key)
        for device in devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(key)
        parts = [_several(worker(*batch), len(batch[0])) for batch in batches]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _several(found: Any, rows: int) -> list[Tensor]:
    """The outputs of a network as a list of tensors with a row for each input."""
    if isinstance(found, Mapping):
        found = tuple(found.values())
    several = list(found) if isinstance(found, (tuple, list)) else [found]
    if not several or not all(isinstance(each, Tensor) for each in several):
        raise ValueError(
            "expected the network to return a tensor, or several in a tuple or a dictionary; got "
            f"{shown(found)}."
        )
    for each in several:
        if each.shape[:1] != (rows,):
            raise ValueError(
                f"expected outputs with a row for each of {rows} inputs, got one of shape "
                f"{tuple(each.shape)}."
            )
    return several


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """A number of Python's in a type; what it cannot hold, and all else, stays as it is."""
    if type(value) is not float or not abs(value) <= torch.finfo(dtype).max:
        return value
    return torch.tensor(value, dtype=dtype).item()


def _in_float64(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A product of tensors of float32 or less, computed in float64 and rounded to their type.

    Where some are of float64 already, the others are converted and the product stays in it.
    """
    types: list[torch.dtype] = []

    def widened(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            types.append(value.dtype)
            return value.double()
        if isinstance(value, (tuple, list)):  # the operands of an einsum
            return [widened(each) for each in value]
        return value

    wide_args, wide_kwargs = widened(args), {name: widened(v) for name, v in kwargs.items()}
    if not any(dtype in _NARROW for dtype in types) or kwargs.get("out") is not None:
        return func(*args, **kwargs)
    narrow = functools.reduce(torch.promote_types, types)
    return func(*wide_args, **wide_kwargs).to(narrow)


def _normalised(given: Mapping[str, Any]) -> Tensor:
    x = given["x"]

    def channels(numbers: Tensor) -> Tensor:
        return numbers.double().reshape(-1, *[1] * (x.dim() - 2))

    slope = (channels(given["variance"]) + given["eps"]).rsqrt()
    if given["weight"] is not None:
        slope = channels(given["weight"]) / (channels(given["variance"]) + given["eps"]).sqrt()
    found = (x.double() - channels(given["mean"])) * slope
    if given["bias"] is not None:
        found = found + channels(given["bias"])
    return found.to(x.dtype)
