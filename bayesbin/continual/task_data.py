"""Reads the data of a task from what a user has: arrays, tensors, lists, data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import Dataset as TorchDataset

from bayesbin.core.checks import shown
from bayesbin.core.turns import in_turn
from bayesbin.data import Batches, Dataset

_SHOWN = 5  # labels that a message lists
_MANY = 20  # data from which labels that hardly ever repeat are taken for numbers
_ACCEPTED = (
    "a pair (x, y) of arrays, tensors or lists, a Dataset, a list of examples or of batches, or a "
    "DataLoader"
)


@dataclass(frozen=True)
class Targets:
    """The targets of one data set: labels as Python values, or numbers as a tensor of floats."""

    labels: tuple[Any, ...] | None
    numbers: Tensor | None

    @property
    def plain(self) -> Tensor | None:
        """Numbers that are whole, of which nobody can tell whether they are labels."""
        if self.numbers is None or not bool(self.numbers.isfinite().all()):
            return None
        return self.numbers if bool((self.numbers == self.numbers.round()).all()) else None


def read_pair(data: Any, what: str) -> tuple[Tensor, Targets]:
    """Return the inputs of a data set as floats (N, ...) and its targets, one for each input.

    :param data: what the user has. :param what: how messages call it.
    :raises ValueError: for data of another kind, empty data, rows of unequal shapes, inputs that are
        no real numbers, and targets that are missing or of mixed types.
    """
    x, y = _pair(data, what)
    inputs, targets = _inputs(x, what), _targets(y, what)
    count = len(targets.labels) if targets.labels is not None else len(_numbers(targets))
    if len(inputs) != count or count == 0:
        raise ValueError(
            f"expected at least one input and one target for each in {what}; got {len(inputs)} inputs "
            f"and {count} targets."
        )
    return inputs, targets


def known_labels(train: Targets | None, test: Targets, what: str) -> tuple[Any, ...]:
    """Return the labels of a task, sorted: those of its training set, or of its test set alone.

    :raises ValueError: for labels of the test set that the training set lacks, labels that cannot be
        sorted, and whole numbers that hardly ever repeat.
    """
    found = _labels(test if train is None else train)
    unique = set(found)
    whole = all(isinstance(label, int) and not isinstance(label, bool) for label in unique)
    if whole and len(found) >= _MANY and 2 * len(unique) > len(found):
        raise ValueError(
            f"expected labels of {what}, or numbers to predict; got {len(unique)} different whole numbers "
            f"among {len(found)} targets, which could be either. Say regression=True for numbers, or name "
            "the labels with labels=."
        )
    if train is not None and (strange := set(_labels(test)) - unique):
        raise ValueError(
            f"expected the test set of {what} to have labels of its training set, {listed(unique)}; got "
            f"{listed(strange)} as well. Name all labels of the task with labels=, or leave these out."
        )
    return tuple(sorted(unique))


def positions(targets: Targets, labels: tuple[Any, ...], what: str) -> Tensor:
    """Return the place of each label in ``labels``, (N,).

    :raises ValueError: for a label that is not there, or numbers in place of labels.
    """
    if targets.labels is None:
        raise ValueError(
            f"expected labels among {listed(labels)} in {what}; got numbers with fractions. Say "
            "regression=True for numbers to predict."
        )
    place = {label: index for index, label in enumerate(labels)}
    if strange := set(targets.labels) - place.keys():
        raise ValueError(
            f"expected labels among {listed(labels)} in {what}; got {listed(strange)}."
        )
    return torch.tensor([place[label] for label in targets.labels])


def listed(labels: Iterable[Any]) -> str:
    """Return labels as a message names them: sorted, a few of them."""
    known = list(labels)
    try:
        known = sorted(known)
    except TypeError:
        known = sorted(known, key=repr)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(map(repr, known[:_SHOWN])) + more


def as_labels(targets: Targets, what: str) -> Targets:
    """Return whole numbers given as floats as labels; labels stay as they are.

    :raises ValueError: for numbers with fractions.
    """
    if targets.labels is not None:
        return targets
    plain = targets.plain
    if plain is None or plain.ndim != 1:
        raise ValueError(
            f"expected one label for each input of {what}; got {shown(targets.numbers)} of numbers."
        )
    return Targets(tuple(int(value) for value in plain.tolist()), None)


def as_numbers(targets: Targets, what: str) -> Tensor:
    """Return the targets of a regression as floats.

    :raises ValueError: for labels that are no numbers.
    """
    if targets.numbers is not None:
        return targets.numbers
    labels = _labels(targets)
    if any(isinstance(label, (bool, str)) for label in labels):
        raise ValueError(
            f"expected numbers to predict in {what}; got labels, {listed(set(labels))}."
        )
    return torch.tensor(labels, dtype=torch.get_default_dtype())


def _labels(targets: Targets) -> tuple[Any, ...]:
    assert targets.labels is not None
    return targets.labels


def _numbers(targets: Targets) -> Tensor:
    assert targets.numbers is not None
    return targets.numbers


# Where inputs and targets are


def _pair(data: Any, what: str) -> tuple[Any, Any]:
    if isinstance(data, Dataset):
        return data.x, data.y
    if isinstance(data, Batches):
        if data.transform is not None:
            raise ValueError(
                f"expected {what} as it is stored; got Batches with a transform, which would be applied "
                "once and for all. Give the data without it."
            )
        return data.x, data.y
    if isinstance(data, DataLoader):
        return _of_loader(data, what)
    if isinstance(data, TorchDataset):
        return _of_rows(_examples(data), what)
    if isinstance(data, tuple) and len(data) == 2:
        return data[0], data[1]
    if isinstance(data, list) and len(data) == 2 and not isinstance(data[0], tuple):
        return data[0], data[1]
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _of_rows(data, what)
    raise ValueError(f"expected {what} to be {_ACCEPTED}; got {_kind(data)}.")


def _kind(data: Any) -> str:
    if data is None or isinstance(data, (str, int, float)):
        return shown(data)
    return f"{'an' if type(data).__name__[0] in 'AEIOUaeiou' else 'a'} {type(data).__name__}"


def _examples(data: Any) -> list[Any]:
    # Whatever a data set draws is drawn once, and the same in every process.
    with in_turn(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(data, IterableDataset):
            return list(data)
        return [data[index] for index in range(len(data))]


def _of_loader(loader: Any, what: str) -> tuple[Any, Any]:
    """The data of a loader, in the order of its data set: a shuffled one gives the same each time."""
    sampler, data = loader.sampler, loader.dataset
    if isinstance(data, IterableDataset):
        return _of_rows(_examples(data), what)
    own_batches = loader.batch_size is None and loader.batch_sampler is not None
    shuffled = (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    if own_batches or not (shuffled or isinstance(sampler, SequentialSampler)):
        drawer = loader.batch_sampler if own_batches else sampler
        raise ValueError(
            f"expected a DataLoader that gives each of its data once, in order or shuffled, as {what}; "
            f"got one with {type(drawer).__name__}. Give the data that you mean as arrays, or as a "
            "torch.utils.data.Subset."
        )
    rows, size = _examples(data), loader.batch_size
    if size is None:
        return _of_rows(rows, what)
    batches = [loader.collate_fn(rows[i : i + size]) for i in range(0, len(rows), size)]
    return _of_rows(batches, what)


def _of_rows(rows: Sequence[Any], what: str) -> tuple[Any, Any]:
    """Inputs and targets of a list of examples, or of batches, whose targets have a dimension."""
    if not len(rows):
        raise ValueError(f"expected at least one example in {what}; got none.")
    for row in rows:
        _require_pair(row, what)
    first = rows[0][1]
    batched = isinstance(first, (tuple, list)) or getattr(first, "ndim", 0) > 0
    if not batched:
        return [row[0] for row in rows], [row[1] for row in rows]
    if any(len(row[0]) != len(row[1]) for row in rows):
        raise ValueError(
            f"expected as many targets as inputs in each batch of {what}; got a batch with others."
        )
    x = [part for row in rows for part in row[0]]
    return x, [part for row in rows for part in row[1]]


def _require_pair(row: Any, what: str) -> None:
    listed_parts = isinstance(row, (tuple, list))
    if listed_parts and len(row) == 2:
        return
    came = f"{len(row)} parts" if listed_parts else _kind(row)
    named = " Name the entries of a mapping yourself." if isinstance(row, Mapping) else ""
    raise ValueError(
        f"expected an input and a target, (x, y), in each example or batch of {what}; got {came}.{named}"
    )


# Inputs and targets as tensors


def _inputs(x: Any, what: str) -> Tensor:
    if isinstance(x, (list, tuple)) and len(x) and isinstance(x[0], Tensor):
        x = _stacked(x, what)
    if not isinstance(x, Tensor):
        x = torch.from_numpy(_numeric(x, what))
        if x.dtype != torch.get_default_dtype():
            x = x.to(torch.get_default_dtype())
    if x.is_complex():
        raise ValueError(f"expected real numbers as inputs of {what}; got {x.dtype}.")
    x = x.detach() if x.is_floating_point() else x.detach().to(torch.get_default_dtype())
    if x.ndim == 0:
        raise ValueError(f"expected inputs of shape (N, ...) in {what}; got a single number.")
    return x


def _stacked(rows: Sequence[Tensor], what: str) -> Tensor:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"expected inputs of one shape in {what}; got {listed(shapes)}. Pad or crop them."
        )
    return torch.stack(list(rows))


def _numeric(x: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(x)
        if array.dtype == object:
            array = array.astype(float)
    except (ValueError, TypeError):
        shapes = {np.shape(row) for row in x} if isinstance(x, (list, tuple)) else set()
        came = f"the shapes {listed(shapes)}" if len(shapes) > 1 else _kind(x)
        raise ValueError(
            f"expected numbers as inputs of {what}, of one shape for all; got {came}."
        ) from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected real numbers as inputs of {what}; got {array.dtype}.")
    return np.ascontiguousarray(array)


def _targets(y: Any, what: str) -> Targets:
    if isinstance(y, (list, tuple)):
        if not y:
            return Targets((), None)
        y = _of_list(y, what)
    array = y.detach().cpu() if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:  # a column
        array = array[:, 0]
    if array.ndim == 0:
        raise ValueError(f"expected a target for each input of {what}; got {shown(y)}.")
    if isinstance(array, Tensor):
        if array.is_floating_point():
            return Targets(None, y.detach().reshape(array.shape))
        array = array.numpy()
    if array.dtype == object:
        array = _of_objects(array, what)
    if array.dtype.kind == "f":
        return Targets(None, torch.from_numpy(array).to(torch.get_default_dtype()))
    if array.dtype.kind not in "biuU":
        raise ValueError(f"expected labels or numbers as targets of {what}; got {array.dtype}.")
    if array.ndim != 1:
        raise ValueError(
            f"expected one label for each input of {what}; got an array of shape {array.shape}. Labels "
            "in one column each (one-hot): give y.argmax(1)."
        )
    return Targets(tuple(array.tolist()), None)


def _of_list(y: Sequence[Any], what: str) -> Any:
    if all(isinstance(value, Tensor) for value in y):
        return _stacked(y, what)
    array = np.empty(len(y), dtype=object)
    array[:] = [value.item() if getattr(value, "ndim", 1) == 0 else value for value in y]
    if any(isinstance(value, (list, tuple, np.ndarray, Tensor)) for value in array):
        return _numeric([np.asarray(value) for value in y], what)
    return array


def _of_objects(array: np.ndarray, what: str) -> np.ndarray:
    """An array of Python's values in the type that they share."""
    values = array.ravel().tolist()
    kinds = {type(value) for value in values}
    missing = any(value is None or value != value for value in values)
    if kinds <= {float, int} and kinds & {float}:
        return array.astype(float)
    if len(kinds) != 1 or not kinds <= {str, int, bool} or missing:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        came = "missing ones" if missing else f"values of the types {found}"
        raise ValueError(
            f"expected targets of one type in {what}, all strings, all whole numbers or all floats; got "
            f"{came}."
        )
    return np.array(values, dtype=kinds.pop()).reshape(array.shape)
