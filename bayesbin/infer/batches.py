"""Batches that a training loop takes: their kinds, how a model is called with one, and batches of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader

from bayesbin.core.arrays import as_tensor
from bayesbin.data import Batches, Dataset

SINGLE = (
    "expected batches of at least 2 examples, since the network normalises by the batch; got one of 1 "
    "example. Pass drop_last=True to the loader, or another batch size."
)


def require_batches(data: Any) -> None:
    """Refuse data that are no iterable of batches, or can be iterated only once.

    :raises TypeError: with the kind of data that came, and what makes batches of it.
    """
    if isinstance(data, Iterator):
        came = f"a one-shot {type(data).__name__}; make it a list, or pass a DataLoader."
        raise TypeError(f"expected data that can be iterated anew at each epoch, got {came}")
    arrays = (Tensor, np.ndarray)
    pair = isinstance(data, tuple) and data and all(isinstance(part, arrays) for part in data)
    remedies: tuple[tuple[bool, str], ...] = (
        (isinstance(data, Dataset), "bayesbin.data.Batches(data, batch_size) makes batches of it"),
        (
            isinstance(data, torch.utils.data.Dataset),
            "torch.utils.data.DataLoader(data, batch_size) makes batches of it",
        ),
        (bool(pair), "a single batch is [(x, y)], and Batches((x, y), batch_size) makes several"),
        (isinstance(data, (*arrays, str, bytes, Mapping)), "a single batch is [(x, y)]"),
        (not isinstance(data, Iterable), "pass a list of batches, Batches, or a DataLoader"),
    )
    for refused, remedy in remedies:
        if refused:
            came = "tensors" if pair else type(data).__name__
            raise TypeError(f"expected an iterable of batches, got {came}; {remedy}.")


def arguments(batch: Any, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    """A batch as (arguments, keywords) of the model: arrays as tensors, and tensors on ``device``.

    An argument may itself be a tuple, list or dict of arrays: the inputs of a network that has several.
    """

    def placed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = as_tensor("a batch", value)
        if isinstance(value, Mapping):
            return {name: placed(each) for name, each in value.items()}
        if type(value) in (tuple, list) and any(isinstance(v, (Tensor, np.ndarray)) for v in value):
            return type(value)(map(placed, value))
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, (Tensor, np.ndarray)):
        return [placed(batch)], {}
    if isinstance(batch, Mapping):
        return [], {name: placed(value) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [placed(value) for value in batch], {}
    came = f"{type(batch).__name__}; let the loader give one of these."
    raise TypeError(
        f"expected a batch that is a tuple, list, dict, tensor or numpy array, got {came}"
    )


def length(data: Any) -> int | None:
    """The number of batches; None if the data do not know it."""
    try:
        return len(data)
    except TypeError:  # an iterable need not know
        return None


def joined(data: Any, module: nn.Module) -> Any:
    """The data, with a last batch of one example joined to the batch before where that is needed.

    Needed is it for :class:`bayesbin.data.Batches` and a module that normalises by the batch: one example
    has no variance.
    """
    if isinstance(data, Batches) and _norms(module):
        return data.without_single()
    return data


@contextmanager
def single_refused(module: nn.Module, data: Any) -> Iterator[None]:
    """Refuse, in the first step, data that will give a batch of one example to batch normalisation.

    Not refused are images and sequences, whose positions give a single example a variance.

    :raises ValueError: inside, when the first step reaches a normalisation of one number per example.
    """

    def check(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        for handle in handles:
            handle.remove()
        if isinstance(x, Tensor) and x.dim() > 1 and x.numel() == x.shape[0] * x.shape[1]:
            raise ValueError(SINGLE)

    norms = _norms(module) if _gives_single(data) else []
    handles = [norm.register_forward_pre_hook(check) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def _gives_single(data: Any) -> bool:
    """Whether a batch of one example will come, as far as that can be told without iterating."""
    if isinstance(data, Batches):
        return 1 in data.sizes()
    if isinstance(data, DataLoader):
        sampler = data.batch_sampler
        if not isinstance(sampler, BatchSampler):
            return False
        count = length(sampler.sampler)
        if count is None:
            return False
        return sampler.batch_size == 1 or (
            count % sampler.batch_size == 1 and not sampler.drop_last
        )
    if isinstance(data, Sequence):
        return any(rows_of(batch) == 1 for batch in data)
    return False


def rows_of(batch: Any) -> int | None:
    """The number of examples in a batch: the length of its first array."""
    first = batch
    while isinstance(first, (Mapping, tuple, list)) and first:
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    return len(first) if isinstance(first, (Tensor, np.ndarray)) and first.ndim else None
