"""Sequences of tasks: of one data set, a user's own, and those that are found by name."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.continual.tasks import Task
from bayesbin.core.checks import one_of, real_number, shown, whole_number
from bayesbin.core.files import sha256
from bayesbin.core.names import SCENARIOS, STREAMS
from bayesbin.core.registry import Registry
from bayesbin.data import Dataset, Splits

__all__ = [
    "PermutedPixels",
    "RotatedPixels",
    "SplitClasses",
    "TaskSequence",
    "TaskStream",
    "make_stream",
    "names",
    "register",
]


class TaskStream(Sequence[Task]):
    """Tasks made when they are asked for: none is kept, and each is the same every time."""

    def __init__(self, splits: Splits, num_tasks: int) -> None:
        self.splits, self._length = splits, whole_number("num_tasks", num_tasks, at_least=1)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._task(i, self.splits) for i in range(*index.indices(len(self)))]
        return self._task(self._checked(index), self.splits)

    def exam(self, index: int) -> Task:
        """Task ``index`` without training data: made from the test set alone."""
        test = self.splits.test
        return self._task(self._checked(index), Splits(test, test)).exam()

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a task in 0 .. {len(self) - 1}, got {index}.")
        return index % len(self)

    @abstractmethod
    def _task(self, index: int, splits: Splits) -> Task: ...


class PermutedPixels(TaskStream):
    """The same data with their pixels in another order in each task; labels and head are shared.

    Permutation t is that of ``Generator(PCG64(SeedSequence([seed, t])))``: a function of seed and task
    alone, identical for training and test set; its SHA-256 is the task's digest.

    :param splits: inputs (N, ...), whose dimensions but the first are permuted together.
    :param num_tasks: T. :param seed: of the permutations, at least 0.
    :param identity_first: leave the pixels of the first task where they are.
    :raises ValueError: for less than one task or a negative seed.

    >>> from bayesbin.data import digits
    >>> stream = PermutedPixels(digits(), num_tasks=5, seed=0)
    >>> len(stream), stream[4].name, stream[4].digest[:8]
    (5, 'permutation 5', '95b5b175')

    Source: Goodfellow et al. 2014, arXiv 1312.6211.
    """

    def __init__(
        self, splits: Splits, num_tasks: int, seed: int, identity_first: bool = False
    ) -> None:
        super().__init__(splits, num_tasks)
        self.seed, self.identity_first = whole_number("seed", seed), identity_first

    def permutation(self, index: int) -> Tensor:
        """Where the pixels of task ``index`` come from, (D,)."""
        size = self.splits.train.x[0].numel()
        if self.identity_first and index == 0:
            return torch.arange(size)
        return torch.from_numpy(_generator(self.seed, index).permutation(size))

    def _task(self, index: int, splits: Splits) -> Task:
        order = self.permutation(index)

        def permuted(x: Tensor) -> Tensor:
            return x.flatten(1).index_select(1, order.to(x.device)).reshape(x.shape)

        train, test = _mapped(splits, permuted)
        return Task(f"permutation {index + 1}", train, test, digest=_digest(order))


class RotatedPixels(TaskStream):
    """The same images turned by another angle in each task; labels and head are shared.

    Without a seed the angles are evenly spaced from 0 to ``max_degrees``, both included; with one they
    are drawn uniformly from that range, by ``Generator(PCG64(SeedSequence([seed, t])))``. Turned with
    bilinear interpolation; what comes from outside the image is the pixel at its edge.

    :param splits: square images (N, side**2) or (N, channels, side, side).
    :param num_tasks: T. :param max_degrees: the largest angle, counter-clockwise.
    :raises ValueError: for less than one task, a negative seed, or inputs that are no square images.

    >>> from bayesbin.data import digits
    >>> [RotatedPixels(digits(), 3, max_degrees=90.0)[t].name for t in range(3)]
    ['rotation by 0', 'rotation by 45', 'rotation by 90']

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
    """

    def __init__(
        self, splits: Splits, num_tasks: int, max_degrees: float = 180.0, seed: int | None = None
    ) -> None:
        super().__init__(splits, num_tasks)
        self.max_degrees = real_number("max_degrees", max_degrees)
        self.seed = None if seed is None else whole_number("seed", seed)
        shape = tuple(splits.train.x.shape[1:])
        side = math.isqrt(math.prod(shape))
        if len(shape) == 1 and side**2 == shape[0]:
            self._image = (1, side, side)
        elif len(shape) == 3 and shape[1] == shape[2]:
            self._image = shape
        else:
            raise ValueError(
                f"expected square images, (side * side,) or (channels, side, side); got {shape}."
            )

    def degrees(self, index: int) -> float:
        """The angle of task ``index``."""
        if self.seed is not None:
            return float(_generator(self.seed, index).uniform(0.0, self.max_degrees))
        return self.max_degrees * index / max(len(self) - 1, 1)

    def _task(self, index: int, splits: Splits) -> Task:
        degrees = self.degrees(index)

        def rotated(x: Tensor) -> Tensor:
            return _rotate(x.reshape(-1, *self._image), degrees).reshape(x.shape)

        digest = _digest(torch.tensor(degrees, dtype=torch.float64))
        train, test = _mapped(splits, rotated)
        return Task(f"rotation by {degrees:.4g}", train, test, digest=digest)


class SplitClasses(TaskStream):
    """The classes of one data set in groups, a task each.

    :param classes_per_task: k; a remainder that does not fill a task is left out.
    :param scenario: "task": labels 0 .. k-1 and a head per task, which is known at test; "domain": the
        same labels through one head; "class": the original labels through one head that must tell all
        classes apart. The last is expected to fail with nothing but a prior to remember by: a posterior
        as prior, even an exact one, forgets classes that the new data do not contain.
    :param seed: shuffles the order of the classes; None: as they are numbered.
    :raises ValueError: for an unknown scenario, a data set without classes, or k out of range.

    >>> from bayesbin.data import digits
    >>> task = SplitClasses(digits())[1]
    >>> task.name, task.head, task.train.num_classes, sorted(set(task.train.y.tolist()))
    ('classes 2, 3', 1, 2, [0, 1])

    Source: van de Ven and Tolias 2019, arXiv 1904.07734 (scenarios); Farquhar and Gal 2018, arXiv
    1805.09733, and Kessler et al. 2023, arXiv 2301.01828 (why class-incremental learning fails).
    """

    def __init__(
        self,
        splits: Splits,
        classes_per_task: int = 2,
        scenario: str = "task",
        seed: int | None = None,
    ) -> None:
        one_of("scenario", scenario, SCENARIOS)
        count = splits.train.num_classes
        classes_per_task = whole_number("classes_per_task", classes_per_task, at_least=1)
        if count is None or classes_per_task > count:
            raise ValueError(
                f"expected 1 to {count or 0} classes per task, the number in {splits.train.name}; got "
                f"{classes_per_task}."
            )
        super().__init__(splits, count // classes_per_task)
        self.classes_per_task, self.scenario = classes_per_task, scenario
        order = np.arange(count)
        self._order = (
            order if seed is None else _generator(whole_number("seed", seed), 0).permutation(order)
        )

    def classes(self, index: int) -> list[int]:
        """The classes of task ``index``, in the order of their new labels."""
        start = index * self.classes_per_task
        return self._order[start : start + self.classes_per_task].tolist()

    def _task(self, index: int, splits: Splits) -> Task:
        classes = self.classes(index)
        name = f"classes {', '.join(map(str, classes))}"
        train, test = (self._part(part, classes) for part in (splits.train, splits.test))
        head = index if self.scenario == "task" else None
        return Task(name, train, test, head=head, digest=_digest(torch.tensor(classes)))

    def _part(self, dataset: Dataset, classes: list[int]) -> Dataset:
        chosen = torch.isin(dataset.y, torch.tensor(classes, device=dataset.y.device))
        x, y = dataset.x[chosen], dataset.y[chosen]
        if self.scenario == "class":
            return replace(dataset, x=x, y=y)
        labels = torch.full((int(dataset.num_classes or 0),), -1)
        labels[torch.tensor(classes)] = torch.arange(len(classes))
        y = labels.to(y.device)[y]
        return Dataset(x, y, dataset.name, num_classes=len(classes))


class TaskSequence(Sequence[Task]):
    """A user's own tasks in order, with heads and outputs as a scenario has them.

    :param tasks: each a :class:`Task`, or (name, training set, test set) as that class takes them.
    :param scenario: "task": a head for each task, in their order, whose outputs are the labels of the
        task; "domain": one head for all, whose output k stands for the k-th label of every task (or one
        target of a regression); "class": one head with an output for each label of all tasks, in the
        order in which the tasks bring them.
    :raises ValueError: for no tasks, an unknown scenario, tasks of both labels and regression, tasks that
        differ in the shape of their inputs, tasks of the same name, and for "domain" tasks with different
        numbers of labels.

    >>> x = [[0.0], [1.0]]
    >>> pets, farm = ("pets", (x, ["cat", "dog"])), ("farm", (x, ["dog", "horse"]))
    >>> for scenario in ("task", "domain", "class"):
    ...     tasks = TaskSequence([(name, data, data) for name, data in (pets, farm)], scenario)
    ...     print(tasks.num_outputs, tasks[1].head, tasks[1].labels, tasks[1].train.y.tolist())
    2 1 ('dog', 'horse') [0, 1]
    2 None ('dog', 'horse') [0, 1]
    3 None ('cat', 'dog', 'horse') [1, 2]

    Source: van de Ven and Tolias 2019, arXiv 1904.07734 (scenarios).
    """

    def __init__(self, tasks: Iterable[Any], scenario: str = "task") -> None:
        self.scenario = one_of("scenario", scenario, SCENARIOS)
        made = [each if isinstance(each, Task) else _task_of(each) for each in tasks]
        _require_alike(made)
        kinds = {task.regression for task in made}
        if scenario == "class" and kinds == {True}:
            raise ValueError("expected labels for the scenario 'class'; got tasks of regression.")
        sizes = [1 if task.labels is None else len(task.labels) for task in made]
        if scenario == "domain" and len(set(sizes)) > 1:
            raise ValueError(
                "expected tasks with the same number of labels for the scenario 'domain', which share "
                f"their outputs; got {', '.join(map(str, sizes))}."
            )
        union = tuple(dict.fromkeys(label for task in made for label in task.labels or ()))
        self.num_outputs = len(union) if scenario == "class" else max(sizes)
        self._tasks = tuple(
            _in_scenario(task, index, scenario, union) for index, task in enumerate(made)
        )

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: Any) -> Any:
        return self._tasks[index]


def _task_of(given: Any) -> Task:
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        raise ValueError(
            f"expected each task as a Task, or as (name, training set, test set); got {shown(given)}."
        )
    return Task(*given)


def _require_alike(tasks: Sequence[Task]) -> None:
    if not tasks:
        raise ValueError("expected at least one task; got none.")
    for what, found in (
        ("of labels, or of regression, but not of both", {task.regression for task in tasks}),
        ("with inputs of one shape", {tuple(task.test.x.shape[1:]) for task in tasks}),
    ):
        if len(found) > 1:
            raise ValueError(f"expected tasks {what}; got {', '.join(map(str, sorted(found)))}.")
    seen = [task.name for task in tasks]
    if twice := sorted({name for name in seen if seen.count(name) > 1}):
        raise ValueError(f"expected tasks of different names; got {', '.join(twice)} twice.")


def _in_scenario(task: Task, index: int, scenario: str, union: tuple[Any, ...]) -> Task:
    task = task.with_head(index if scenario == "task" else None)
    if task.labels is None:
        return task
    return task.with_outputs(union if scenario == "class" else task.labels)


# Streams by name


def _own(make: type[TaskStream]) -> Callable[..., TaskStream]:
    def factory(splits: Splits, **settings: Any) -> TaskStream:
        return make(splits, **settings)

    factory.__doc__ = make.__doc__
    return factory


def _check(name: str, factory: Any) -> None:
    if not callable(factory):
        raise ValueError(
            f"expected the stream {name!r} to be a function that returns a sequence of tasks; got "
            f"{shown(factory)}."
        )
    try:
        stream = factory()
    except TypeError:  # it takes settings: what it returns is checked when it is made
        return
    checked_stream(name, stream)


def checked_stream(name: str, stream: Any) -> Sequence[Task]:
    """Return a stream, after checking its contract.

    :raises ValueError: for a stream without a length, that gives something other than a :class:`Task`,
        more or fewer tasks than its length, or other tasks when it is read again.
    """
    try:
        count = len(stream)
        passes = [[_described(name, task) for task in stream] for _ in range(2)]
    except TypeError as error:
        raise ValueError(
            f"expected the stream {name!r} to be a sequence of tasks, with a length, that can be read more "
            f"than once; got {type(stream).__name__} ({error})."
        ) from error
    if count == 0 or len(passes[0]) != count:
        raise ValueError(
            f"expected the stream {name!r} to give as many tasks as its length says, at least one; got "
            f"{len(passes[0])} tasks and a length of {count}."
        )
    if passes[0] != passes[1]:
        raise ValueError(
            f"expected the stream {name!r} to give the same tasks each time it is read; got others the "
            "second time. Let what it draws be a function of a seed."
        )
    return stream


def _described(name: str, task: Any) -> tuple[Any, ...]:
    if not isinstance(task, Task):
        raise ValueError(
            f"expected the stream {name!r} to give bayesbin.continual.Task; got {type(task).__name__}."
        )
    return task.name, task.head, task.labels, task.data_digest()


_REGISTRY: Registry[Callable[..., Sequence[Task]]] = Registry(
    "stream",
    dict(zip(STREAMS, map(_own, (PermutedPixels, SplitClasses, RotatedPixels)), strict=True)),
    group="bayesbin.streams",
    check=_check,
)


def register(name: str, factory: Callable[..., Sequence[Task]]) -> None:
    """Give a sequence of tasks of your own a name, for :func:`make_stream`.

    The contract is checked at once where the factory needs no settings, and else when a stream is made:
    it gives Tasks, has a length, and gives the same tasks each time it is read. An installed package does
    the same by an entry point in the group ``bayesbin.streams``.

    :param factory: returns the sequence, from its settings.
    :raises ValueError: for a name that is taken, or a stream that breaks the contract.

    >>> from bayesbin.continual import Task, streams
    >>> data = [[0.0], [1.0]], ["cat", "dog"]
    >>> streams.register("pets", lambda: streams.TaskSequence([("first", data, data)]))
    >>> len(streams.make_stream("pets")), "pets" in streams.names()
    (1, True)
    """
    _REGISTRY.register(name, factory)


def names() -> tuple[str, ...]:
    """Return the names of all streams: the package's, those registered, and those of installed packages.

    >>> from bayesbin.continual import streams
    >>> streams.names()[:3]
    ('permuted', 'split', 'rotated')
    """
    return _REGISTRY.names()


def make_stream(name: str, *args: Any, **settings: Any) -> Sequence[Task]:
    """Make a stream by its name; of the package's own the first argument is a ``Splits``.

    :raises ValueError: for an unknown name, or a stream that breaks the contract of :func:`register`.

    >>> from bayesbin.continual import streams
    >>> from bayesbin.data import digits
    >>> len(streams.make_stream("permuted", digits(), num_tasks=3, seed=0))
    3
    """
    stream = _REGISTRY[name](*args, **settings)
    return stream if isinstance(stream, TaskStream) else checked_stream(name, stream)


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def _mapped(splits: Splits, change: Callable[[Tensor], Tensor]) -> list[Dataset]:
    if splits.train is splits.test:  # made for its test set only
        part = replace(splits.test, x=change(splits.test.x))
        return [part, part]
    return [replace(part, x=change(part.x)) for part in (splits.train, splits.test)]


def _digest(values: Tensor) -> str:
    return sha256(
        values.numpy().astype(f"<{'f' if values.is_floating_point() else 'i'}8").tobytes()
    )


def _rotate(images: Tensor, degrees: float) -> Tensor:
    if degrees == 0:
        return images.clone()
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).to(images)
    grid = F.affine_grid(matrix[None], [1, *images.shape[1:]], align_corners=False)
    pieces = [  # the grid is the same for all, but grid_sample wants one of each image
        F.grid_sample(
            piece, grid.expand(len(piece), -1, -1, -1), padding_mode="border", align_corners=False
        )
        for piece in images.split(10_000)
    ]
    return torch.cat(pieces)
