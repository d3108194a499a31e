"""What an ensemble is asked about: inputs in any usual form, as batches for a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.arrays import as_tensor, network_batches, network_inputs

ROWS = 1000  # of a batch, at most
Signature = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True, eq=False)
class NetworkInputs:
    """NetworkInputs of a network, checked, in batches.

    :param batches: each a tuple with a tensor for each argument of the network.
    :param in_numpy: whether they came as numpy arrays, so that answers are to be such too.
    """

    batches: list[tuple[Tensor, ...]]
    in_numpy: bool

    @property
    def signature(self) -> Signature:
        """Shape and type of one datum, for each argument of the network."""
        return tuple((tuple(x.shape[1:]), x.dtype) for x in self.batches[0])

    @property
    def arrays(self) -> list[np.ndarray]:
        """All rows of each argument as a numpy array."""
        columns = zip(*self.batches, strict=True)
        return [(c[0] if len(c) == 1 else torch.cat(c)).contiguous().numpy() for c in columns]

    def __len__(self) -> int:
        return sum(len(batch[0]) for batch in self.batches)


def inputs_of(net: nn.Module, x: Any) -> NetworkInputs:
    """Check inputs and convert them to the type of a network.

    :param x: a tensor, an array, nested lists of numbers, a data set, or an iterable of batches, each x or
        (x, y, ...). For a network with several arguments a tuple of one tensor or array for each, or a
        mapping from their names. Whole numbers and truth values stay such where the network takes them.
    :raises ValueError: for anything else, no rows, NaN or infinity, and as
        :func:`bayesbin.core.arrays.network_inputs`.
    """
    names, _, any_number = networks.inputs_of(net)
    if isinstance(x, Mapping):
        given = [x[name] for name in networks.named_inputs(names, x)]
        columns = _converted(net, given)
    elif isinstance(x, tuple) and len(x) > 1 and (len(names) > 1 or any_number):
        given = list(x)
        columns = _converted(net, given)
    else:
        given = [x]
        columns = (
            _converted(net, given) if _is_whole(x) else [_joined(network_batches(net, x, ROWS))]
        )
    columns = [column.detach().cpu() for column in columns]
    _check(columns)
    # In equal parts: a last batch of one row would have no batch statistics.
    count = math.ceil(len(columns[0]) / ROWS)
    batches = list(zip(*(column.tensor_split(count) for column in columns), strict=True))
    return NetworkInputs(batches, isinstance(given[0], np.ndarray))


def _converted(net: nn.Module, given: list[Any]) -> list[Tensor]:
    """One tensor for each argument: whole numbers and truth values stay such where the network takes them."""
    columns = [as_tensor("inputs", each) for each in given]
    whole = [not column.is_floating_point() for column in columns]
    if any(whole) and all(column.dtype != torch.uint8 and len(column) for column in columns):
        kept = [
            column if stays else network_inputs(net, column)
            for column, stays in zip(columns, whole, strict=True)
        ]
        if _runs(net, kept):
            return kept
    return [network_inputs(net, each) for each in given]


def _is_whole(x: Any) -> bool:
    """Whether x is a tensor or an array of whole numbers or truth values, with rows."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "biu" and x.ndim > 0
    return isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()) and x.dim() > 0


def _runs(net: nn.Module, columns: list[Tensor]) -> bool:
    """Whether a network takes tensors of these types, tried on one row."""
    worker = copy.deepcopy(net).eval()
    try:
        with torch.no_grad():
            worker(*(column[:1] for column in columns))
    except Exception:  # whatever the network raises, it does not take them
        return False
    return True


def _joined(batches: list[Tensor]) -> Tensor:
    if not batches:
        raise ValueError("expected at least one batch of inputs; got none.")
    first = batches[0]
    for batch in batches:
        if batch.dim() == 0 or batch.shape[1:] != first.shape[1:] or batch.dtype != first.dtype:
            raise ValueError(
                f"expected batches (B, ...) of one shape and type; got {tuple(first.shape)} of {first.dtype} "
                f"and {tuple(batch.shape)} of {batch.dtype}."
            )
    return first if len(batches) == 1 else torch.cat(batches)


def _check(columns: list[Tensor]) -> None:
    if any(column.dim() == 0 for column in columns) or len({len(c) for c in columns}) != 1:
        shapes = ", ".join(str(tuple(column.shape)) for column in columns)
        raise ValueError(f"expected as many rows (B, ...) of each input; got {shapes}.")
    if not len(columns[0]):
        raise ValueError("expected at least one row of inputs; got none.")
    for column in columns:
        if column.is_floating_point() and not bool(torch.isfinite(column).all()):
            raise ValueError("The inputs contain NaN or infinity; clean or impute them first.")
