"""A task of a sequence: its data, its labels, the head that answers it, and a digest of what made it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from bayesbin.continual.task_data import (
    Targets,
    as_labels,
    as_numbers,
    known_labels,
    listed,
    positions,
    read_pair,
)
from bayesbin.core.checks import shown, whole_number
from bayesbin.core.files import sha256
from bayesbin.data import Dataset


@dataclass(frozen=True, eq=False, init=False)
class Task:
    """One task of a sequence: what it is learned from, and what it is scored on.

    Data are a :class:`~bayesbin.data.Dataset`, a pair (x, y) of arrays, tensors or lists, a list of
    examples or of batches (x, y), a torch ``Dataset`` or a ``DataLoader`` (whose data are taken in the
    order of its data set). Inputs become floats. Strings, whole numbers and bools are labels; numbers
    with fractions are the targets of a regression.

    ``train.y`` and ``test.y`` hold the place of each label in ``labels``. Which output of a network
    stands for a label is decided by ``labels``:

    * not given: a learner counts the labels of all tasks that share a head, in the order in which it
      meets them, so that "dog" of one task and "dog" of the next are one output;
    * given, or from a ``Dataset`` with classes: output k stands for ``labels[k]`` in this task.

    :param name: the name of the task in results.
    :param train: the training set; None for a task that is only tested (learning it changes nothing).
    :param test: the test set.
    :param head: which head of a :class:`MultiHead` network answers the task, from 0; None: there is one.
    :param digest: SHA-256 of what made the task (a permutation, say), kept with results; None: that of
        the data themselves, computed when it is asked for.
    :param labels: the labels in the order of the network's outputs.
    :param regression: True if the targets are numbers to predict, False if they are labels; None: as
        their type says.
    :raises ValueError: for an empty name, a negative head, empty data, NaN, input shapes that differ,
        labels of the test set that the training set lacks, targets of mixed types, and targets that
        could be labels or numbers.

    >>> x = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    >>> task = Task("pets", (x, ["cat", "dog", "dog"]), (x[:2], ["cat", "dog"]))
    >>> task.size, task.labels, task.train.y.tolist()
    (3, ('cat', 'dog'), [0, 1, 1])
    >>> Task("heights", (x, [1.2, 0.3, 2.5]), (x[:1], [1.1])).regression
    True
    """

    name: str
    train: Dataset | None
    test: Dataset
    head: int | None
    digest: str | None
    labels: tuple[Any, ...] | None
    by_place: bool  # whether output k stands for labels[k]

    def __init__(
        self,
        name: str,
        train: Any,
        test: Any,
        head: int | None = None,
        digest: str | None = None,
        *,
        labels: Any = None,
        regression: bool | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"expected a name for the task, a string; got {shown(name)}.")
        if head is not None:
            head = whole_number("head", head)
        sets = {"training": train, "test": test}
        parts = {kind: data for kind, data in sets.items() if data is not None or kind == "test"}
        chosen = _chosen_labels(name, parts.values(), labels, regression)
        read = {
            kind: read_pair(data, f"the {kind} set of {name!r}") for kind, data in parts.items()
        }
        targets = {kind: target for kind, (_, target) in read.items()}
        numeric = _is_regression(name, targets, parts.values(), chosen, regression)
        found: tuple[Any, ...] | None = None
        if not numeric:
            targets = {
                kind: as_labels(target, f"the {kind} set of {name!r}")
                for kind, target in targets.items()
            }
            found = chosen or known_labels(
                targets.get("training"), targets["test"], f"the task {name!r}"
            )
        made = {
            kind: data
            if isinstance(data, Dataset) and data.num_classes is not None
            else _dataset(read[kind][0], targets[kind], found, name, f"the {kind} set of {name!r}")
            for kind, data in parts.items()
        }
        _require_one_shape(name, made)
        self._fill(
            name, made.get("training"), made["test"], head, digest, found, chosen is not None
        )

    def _fill(self, *values: Any) -> None:
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    def _but(self, **changes: Any) -> Task:
        made = object.__new__(Task)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        made._fill(*(values | changes).values())
        return made

    @property
    def size(self) -> int:
        """The number of training data, 0 where there are none."""
        return 0 if self.train is None else len(self.train.x)

    @property
    def regression(self) -> bool:
        """Whether the targets are numbers to predict, rather than labels."""
        return self.labels is None

    def exam(self) -> Task:
        """The task without its training data, which are large: what is needed to score it."""
        return self._but(train=None)

    def with_head(self, head: int | None) -> Task:
        """The task for another head."""
        return self._but(head=None if head is None else whole_number("head", head))

    def with_outputs(self, labels: Any) -> Task:
        """The task with output k standing for ``labels[k]``, all of its own labels among them.

        :raises ValueError: for a task of regression, labels that repeat, or a label that is missing.

        >>> task = Task("a", ([[0.0], [1.0]], ["dog", "horse"]), ([[0.5]], ["dog"]))
        >>> task.with_outputs(("cat", "dog", "horse")).train.y.tolist()
        [1, 2]
        """
        if self.labels is None:
            raise ValueError(f"expected a task with labels; {self.name!r} is one of regression.")
        wanted = _unique(self.name, labels)
        if missing := set(self.labels) - set(wanted):
            raise ValueError(
                f"expected outputs for the labels {listed(self.labels)} of {self.name!r}; got none for "
                f"{listed(missing)}."
            )
        place = torch.tensor([wanted.index(label) for label in self.labels])

        def mapped(data: Dataset | None) -> Dataset | None:
            if data is None:
                return None
            return Dataset(data.x, place.to(data.y.device)[data.y], data.name, len(wanted))

        return self._but(
            train=mapped(self.train), test=mapped(self.test), labels=wanted, by_place=True
        )

    def in_type(self, dtype: torch.dtype) -> Task:
        """The task with its inputs, and the targets of a regression, as floats of a type."""

        def cast(data: Dataset | None) -> Dataset | None:
            if data is None or (data.x.dtype == dtype and data.y.dtype in (dtype, torch.int64)):
                return data
            y = data.y if data.num_classes is not None else data.y.to(dtype)
            return Dataset(data.x.to(dtype), y, data.name, data.num_classes)

        return self._but(train=cast(self.train), test=cast(self.test))

    def fingerprint(self) -> str:
        """The digest, or that of all its data and labels where none was given."""
        return self.data_digest() if self.digest is None else self.digest

    def data_digest(self) -> str:
        """The SHA-256 of the data and labels themselves."""
        parts = [] if self.train is None else [self.train.x, self.train.y]
        parts += [self.test.x, self.test.y]
        arrays = [
            (part.float() if part.dtype == torch.bfloat16 else part).detach().cpu().contiguous()
            for part in parts
        ]
        digests = [sha256(array.numpy().tobytes()) for array in arrays]
        if self.labels is not None and self.labels != tuple(range(len(self.labels))):
            digests.append(sha256(repr(self.labels).encode()))
        return sha256("".join(digests).encode())


def _chosen_labels(
    name: str, parts: Any, labels: Any, regression: bool | None
) -> tuple[Any, ...] | None:
    """The labels by output where they are given, or known from a data set with classes."""
    classes = {
        data.num_classes
        for data in parts
        if isinstance(data, Dataset) and data.num_classes is not None
    }
    if regression and (labels is not None or classes):
        raise ValueError(
            f"expected either labels or regression=True in {name!r}; got both. Leave one out."
        )
    if len(classes) > 1:
        raise ValueError(
            f"expected a training and a test set of the same classes in {name!r}; got "
            f"{' and '.join(map(str, sorted(classes)))} classes."
        )
    if labels is None:
        return tuple(range(classes.pop())) if classes else None
    wanted = _unique(name, labels)
    if classes and classes != {len(wanted)}:
        raise ValueError(
            f"expected as many labels as the data of {name!r} have classes, {classes.pop()}; got "
            f"{len(wanted)}."
        )
    return wanted


def _unique(name: str, labels: Any) -> tuple[Any, ...]:
    wanted = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(wanted, str) or not hasattr(wanted, "__len__") or not len(wanted):
        raise ValueError(
            f"expected labels of {name!r} as a list of at least one; got {shown(labels)}."
        )
    found = tuple(value.item() if hasattr(value, "item") else value for value in wanted)
    if len(set(found)) != len(found):
        raise ValueError(f"expected each label of {name!r} once; got {shown(labels)}.")
    return found


def _is_regression(
    name: str, targets: dict[str, Targets], parts: Any, chosen: Any, regression: bool | None
) -> bool:
    """Whether the targets are numbers; an error where they could be labels as well."""
    if chosen is not None or regression is not None:
        return bool(regression) and chosen is None
    if any(isinstance(data, Dataset) and data.num_classes is None for data in parts):
        return True
    if all(target.numbers is None for target in targets.values()):
        return False
    if all(target.numbers is None or target.plain is not None for target in targets.values()):
        raise ValueError(
            f"expected labels or numbers to predict in {name!r}; got whole numbers stored as floats, which "
            "could be either. Say regression=True for numbers, or regression=False for labels (one label "
            "for each input, not one column for each label)."
        )
    for target in targets.values():
        _refuse_probabilities(name, target)
    return True


def _refuse_probabilities(name: str, targets: Targets) -> None:
    values = targets.numbers
    if values is None or values.ndim != 2 or not bool((values >= 0).all()):
        return
    sums = values.double().sum(1)
    if bool(torch.allclose(sums, torch.ones_like(sums))):
        raise ValueError(
            f"expected a label or numbers to predict for each input in {name!r}; got rows that add up "
            "to 1, as probabilities of labels do. Give y.argmax(1) for labels, or say regression=True."
        )


def _dataset(
    x: torch.Tensor, targets: Targets, labels: tuple[Any, ...] | None, name: str, what: str
) -> Dataset:
    if labels is None:
        return Dataset(x, as_numbers(targets, what), name, num_classes=None)
    return Dataset(x, positions(targets, labels, what).to(x.device), name, num_classes=len(labels))


def _require_one_shape(name: str, made: dict[str, Dataset]) -> None:
    if len(made) < 2:
        return
    train, test = made["training"], made["test"]
    for what, left, right in (
        ("inputs", train.x, test.x),
        ("targets", train.y, test.y),
    ):
        if left.shape[1:] != right.shape[1:]:
            raise ValueError(
                f"expected {what} of one shape in task {name!r}; got {tuple(left.shape[1:])} to train on "
                f"and {tuple(right.shape[1:])} to test on."
            )
