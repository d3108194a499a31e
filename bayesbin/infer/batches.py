"""What a training loop may be fed with: batches, and how a model takes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def require_batches(data: Any) -> None:
    if isinstance(data, Iterator):
        came = f"a one-shot {type(data).__name__}; make it a list, or pass a DataLoader."
        raise TypeError(f"expected data that can be iterated anew at each epoch, got {came}")
    tensors = isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data)
    if not isinstance(data, Iterable) or isinstance(data, Tensor) or (data and tensors):
        came = f"{'tensors' if tensors else type(data).__name__}; a single batch is [(x, y)]."
        raise TypeError(f"expected an iterable of batches, got {came}")


def arguments(batch: Any, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    """A batch as (arguments, keywords) of the model, tensors on ``device``."""

    def placed(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Tensor):
        return [placed(batch)], {}
    if isinstance(batch, Mapping):
        return [], {name: placed(value) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [placed(value) for value in batch], {}
    came = f"{type(batch).__name__}; let the loader give one of these."
    raise TypeError(f"expected a batch that is a tuple, list, dict or tensor, got {came}")


def length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # an iterable need not know
        return None
