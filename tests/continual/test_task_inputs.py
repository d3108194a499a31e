"""Tasks from whatever a user has: what is accepted means one thing, the rest is refused in a sentence."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bayesbin.continual import Task
from bayesbin.data import Batches, Dataset

N = 6
X = np.random.default_rng(0).normal(size=(N, 4))
T = torch.from_numpy(X)
Y = ["cat", "dog", "dog", "cat", "dog", "cat"]
K = [3, 5, 5, 3, 5, 3]
PLACES = [0, 1, 1, 0, 1, 0]
PAIRS = TensorDataset(T, torch.tensor(K))


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Examples with an augmentation, whose labels are strings."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return T[index] + 0.0 * torch.rand(()), Y[index]


STRINGS: dict[str, Any] = {
    "arrays": (X, np.array(Y)),
    "arrays of objects": (X, np.array(Y, dtype=object)),
    "lists": (X.tolist(), Y),
    "tensor and list": (T, Y),
    "tuples": (tuple(map(tuple, X.tolist())), tuple(Y)),
    "a list of x and y": [X, Y],
    "examples": list(zip(X, Y, strict=True)),
    "examples of tensors": list(zip(T, Y, strict=True)),
    "examples as lists": [[x, y] for x, y in zip(X, Y, strict=True)],
    "batches": [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "a torch data set": Images(),
    "an iterable data set": Stream(),
    "a loader of strings": DataLoader(Images(), batch_size=4),
    "a column": (X, np.array(Y)[:, None]),
    "numpy strings": (X, [np.str_(y) for y in Y]),
}
NUMBERS: dict[str, Any] = {
    "arrays": (X, np.array(K)),
    "bytes": (X, np.array(K, dtype=np.uint8)),
    "tensors": (T, torch.tensor(K)),
    "int32": (T, torch.tensor(K, dtype=torch.int32)),
    "list of numpy numbers": (X, [np.int64(k) for k in K]),
    "list of tensors": (list(T), [torch.tensor(k) for k in K]),
    "a torch data set": PAIRS,
    "a loader": DataLoader(PAIRS, batch_size=4),
    "a shuffled loader": DataLoader(PAIRS, batch_size=4, shuffle=True, drop_last=True),
    "a loader without batches": DataLoader(PAIRS, batch_size=None),
    "batches": [(T[:4], torch.tensor(K[:4])), (T[4:], torch.tensor(K[4:]))],
    "our batches": Batches((T, torch.tensor(K)), 4),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_strings_are_labels(kind: str) -> None:
    task = Task("pets", STRINGS[kind], (X[:2], Y[:2]))
    assert task.train is not None and task.labels == ("cat", "dog") and not task.regression
    assert task.train.y.tolist() == PLACES and task.test.y.tolist() == [0, 1]
    torch.testing.assert_close(task.train.x, T)
    assert {type(label) for label in task.labels or ()} == {str}
    assert task.fingerprint() == Task("pets", (X, Y), (X[:2], Y[:2])).fingerprint()


@pytest.mark.parametrize("kind", NUMBERS)
def test_whole_numbers_are_labels(kind: str) -> None:
    before = torch.get_rng_state()
    task = Task("numbers", NUMBERS[kind], (X[:2], K[:2]))
    assert torch.equal(before, torch.get_rng_state())
    assert task.train is not None and task.labels == (3, 5)
    assert task.train.y.tolist() == PLACES and task.train.num_classes == 2
    torch.testing.assert_close(task.train.x, T)
    assert {type(label) for label in task.labels or ()} == {int}
    assert task.fingerprint() == Task("n", (X, K), (X[:2], K[:2])).fingerprint()


@pytest.mark.parametrize(
    ("y", "shape"),
    [
        (np.linspace(0.1, 2.0, N), (N,)),
        (np.linspace(0.1, 2.0, N)[:, None], (N,)),
        (np.linspace(0.1, 2.0, N).tolist(), (N,)),
        (torch.linspace(0.1, 2.0, N), (N,)),
        ([1, 2.5, 3, 4, 5, 6], (N,)),
        (X[:, :2], (N, 2)),
        (X[:, :2].tolist(), (N, 2)),
    ],
)
def test_numbers_with_fractions_are_regression(y: Any, shape: tuple[int, ...]) -> None:
    task = Task("r", (X, y), (X, y))
    assert task.regression and task.labels is None and task.train is not None
    assert task.train.y.shape == shape and task.train.num_classes is None
    assert task.train.y.is_floating_point()


def test_what_could_be_either_is_what_the_user_says() -> None:
    whole = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    numbers = Task("a", (X, whole), (X, whole), regression=True)
    labels = Task("a", (X, whole), (X, whole), regression=False)
    assert numbers.regression and labels.labels == (0, 1)
    counts = Task("a", (X, K), (X, K), regression=True)
    assert counts.train is not None and counts.train.y.tolist() == list(map(float, K))
    assert Task("a", (X, [0.5, *K[1:]]), (X, K)).regression  # the training set tells
    named = Task("a", (X, Y), (X, ["fox"] * N), labels=["fox", "cat", "dog"])
    assert named.by_place and named.test.y.tolist() == [0] * N
    assert named.train is not None and named.train.y.tolist() == [1, 2, 2, 1, 2, 1]


def test_a_data_set_says_itself_what_it_is() -> None:
    data = Dataset(T, torch.tensor(PLACES), "d", num_classes=10)
    task = Task("d", data, data)
    assert task.labels == tuple(range(10)) and task.by_place
    floats = Dataset(T, torch.ones(N), "d", num_classes=None)
    assert Task("d", floats, floats).regression
    mixed = Task("d", data, (X, PLACES))
    assert mixed.labels == tuple(range(10))
    pets = Task("d", data, data, labels=[f"pet {k}" for k in range(10)])
    assert pets.labels is not None and pets.labels[0] == "pet 0"


def test_a_loader_gives_the_same_task_however_often_it_is_read() -> None:
    class Augmented(Images):
        def __getitem__(self, index: int) -> Any:
            return T[index] + torch.rand(()), Y[index]

    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    first, again = (Task("a", loader, (X, Y)).fingerprint() for _ in range(2))
    assert first == again
    part = DataLoader(Subset(PAIRS, [5, 0, 1]), batch_size=2, sampler=None)
    task = Task("part", part, PAIRS)
    assert task.train is not None and task.train.y.tolist() == [0, 0, 1]


def test_pandas_frames_are_arrays() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    for y in (pandas.Series(Y), pandas.Series(Y, dtype="category")):
        assert Task("a", (frame, y), (frame, y)).labels == ("cat", "dog")
    with pytest.raises(ValueError, match="numbers as inputs"):
        Task("a", (frame.assign(e="text"), Y), (frame, Y))


def test_float64_stays_what_it_is_where_torch_would_have_it() -> None:
    torch.set_default_dtype(torch.float32)
    task = Task("a", (X, Y), (X.astype(np.float16), Y))
    assert task.train is not None
    assert task.train.x.dtype == task.test.x.dtype == torch.float32
    image = Task("a", (np.zeros((N, 2, 2), dtype=np.uint8), Y), (torch.zeros(N, 2, 2).bool(), Y))
    assert image.test.x.dtype == torch.float32 and image.test.x.shape == (N, 2, 2)


ONE_HOT = np.eye(3)[[0, 1, 2, 0, 1, 2]]
TEST = (X, Y)
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "labels as floats": ((X, [0.0, 1.0] * 3), (X, [0.0, 1.0] * 3), {}, "could be either"),
    "signs as floats": ((X, [-1.0, 1.0] * 3), (X, [-1.0, 1.0] * 3), {}, "could be either"),
    "floats and ints": ((X, [0.0, 1.0] * 3), (X, [0, 1] * 3), {}, "could be either"),
    "one-hot floats": ((X, ONE_HOT), (X, ONE_HOT), {}, "could be either"),
    "one-hot ints": ((X, ONE_HOT.astype(int)), (X, ONE_HOT.astype(int)), {}, r"y\.argmax\(1\)"),
    "probabilities": ((X, ONE_HOT * 0.7 + 0.1), (X, ONE_HOT * 0.7 + 0.1), {}, "add up to 1"),
    "numbers as ids": (
        (np.zeros((40, 2)), np.arange(40)), (np.zeros((2, 2)), [0, 1]), {},
        "40 different whole numbers among 40 targets",
    ),
    "unknown labels": ((X, Y), (X, ["cat", "fox"] * 3), {}, "got 'fox' as well"),
    "other type of labels": ((X, ["1", "2"] * 3), (X, [1, 2] * 3), {}, "got 1, 2 as well"),
    "labels left out": ((X, Y), (X, Y), {"labels": ["cat"]}, "among 'cat' in .*; got 'dog'"),
    "labels twice": ((X, Y), (X, Y), {"labels": ["cat", "cat"]}, "each label of 'a' once"),
    "no labels": ((X, Y), (X, Y), {"labels": []}, "a list of at least one"),
    "a label": ((X, Y), (X, Y), {"labels": "cat"}, "a list of at least one; got 'cat'"),
    "labels and numbers": (TEST, TEST, {"labels": ["a"], "regression": True}, "either labels or"),
    "strings to predict": (TEST, TEST, {"regression": True}, "got labels, 'cat', 'dog'"),
    "fractions as labels": ((X, X[:, 0]), (X, X[:, 0]), {"regression": False}, "one label for each"),
    "labels of numbers": ((X, X[:, 0]), (X, X[:, 0]), {"labels": [0, 1]}, "one label for each"),
    "shapes that differ": (TEST, (X[:, :3], Y), {}, r"got \(4,\) to train on and \(3,\)"),
    "targets that differ": ((X, X[:, :2]), (X, X[:, 0]), {}, "targets of one shape"),
    "ragged": (([[1.0, 2.0], [1.0]], ["a", "b"]), TEST, {}, r"the shapes \(1,\), \(2,\)"),
    "ragged tensors": (([T[0], T[0, :2]], ["a", "b"]), TEST, {}, "inputs of one shape"),
    "empty": ((X[:0], []), TEST, {}, "got 0 inputs and 0 targets"),
    "empty list": ([], TEST, {}, "at least one example in the training set; got none|got none"),
    "lengths that differ": ((X, Y[:3]), TEST, {}, "got 6 inputs and 3 targets"),
    "NaN": ((X * np.nan, Y), TEST, {}, "24 of them NaN or infinite"),
    "infinity": ((X, X[:, 0] * np.inf), (X, X[:, 0]), {}, "NaN or infinite"),
    "a missing label": ((X, ["cat", None] * 3), TEST, {}, "got missing ones"),
    "a NaN label": ((X, ["cat", float("nan")] * 3), TEST, {}, "targets of one type"),
    "mixed labels": ((X, ["cat", 1] * 3), TEST, {}, "values of the types int, str"),
    "dates": ((X, np.zeros(N, "M8[s]")), TEST, {}, "got datetime64"),
    "complex": ((X.astype(complex), Y), TEST, {}, "real numbers as inputs.*complex128"),
    "complex tensor": ((T.to(torch.complex64), Y), TEST, {}, "real numbers as inputs"),
    "words": ((Y, Y), TEST, {}, "real numbers as inputs"),
    "an array": (X, TEST, {}, r"expected the training set of 'a' to be a pair"),
    "a mapping": ({"x": X, "y": Y}, TEST, {}, "got a dict"),
    "examples as mappings": ([{"x": X[0], "y": 1}], TEST, {}, "Name the entries"),
    "three parts": ([(X[0], 1, 2)], TEST, {}, "got 3 parts"),
    "an iterator": (iter([(X[0], "cat")]), TEST, {}, "expected the training set"),
    "no test set": (TEST, None, {}, "expected the test set of 'a'.*got None"),
    "a path": ("folder", TEST, {}, "got 'folder'"),
    "a number": ((X, 5), TEST, {}, "a target for each input"),
    "with replacement": (
        DataLoader(PAIRS, sampler=RandomSampler(PAIRS, replacement=True)), PAIRS, {},
        "each of its data once.*RandomSampler",
    ),
    "weighted": (
        DataLoader(PAIRS, sampler=WeightedRandomSampler([1.0] * N, N)), PAIRS, {},
        "WeightedRandomSampler",
    ),
    "a part of the data": (
        DataLoader(PAIRS, sampler=SubsetRandomSampler([0, 1])), PAIRS, {}, "SubsetRandomSampler"),
    "batches drawn": (
        DataLoader(PAIRS, batch_sampler=BatchSampler(SubsetRandomSampler([0]), 1, False)), PAIRS,
        {}, "each of its data once",
    ),
    "a transform": (Batches((T, torch.tensor(K)), 4, transform=lambda x, g: x), PAIRS, {}, "transform"),
    "classes that differ": (
        Dataset(T, torch.tensor(PLACES), "d", 2), Dataset(T, torch.tensor(PLACES), "d", 3), {},
        "2 and 3 classes",
    ),
    "labels for other classes": (
        Dataset(T, torch.tensor(PLACES), "d", 2), Dataset(T, torch.tensor(PLACES), "d", 2),
        {"labels": ["a", "b", "c"]}, "as many labels as the data of 'a' have classes, 2; got 3",
    ),
    "a flag as head": (TEST, TEST, {"head": True}, "head to be a whole number"),
    "a half head": (TEST, TEST, {"head": 0.5}, "head to be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_a_sentence(kind: str) -> None:
    train, test, settings, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        Task("a", train, test, **settings)
    assert str(caught.value)[0].islower() and " got " in str(caught.value)


def test_names_are_strings() -> None:
    for name in ("", None, 3):
        with pytest.raises(ValueError, match="a name for the task, a string"):
            Task(name, TEST, TEST)  # type: ignore[arg-type]


def test_copies_keep_what_a_task_is() -> None:
    task = Task("pets", TEST, (X[:2], Y[:2]), head=1)
    for other in (copy.deepcopy(task), task.exam(), task.with_head(int(np.int64(1)))):
        assert other.labels == ("cat", "dog") and other.head == 1 and not other.by_place
        assert torch.equal(other.test.y, task.test.y)
    assert task.exam().train is None and task.with_head(None).head is None
    wider = task.with_outputs(["fox", "dog", "cat"])
    assert wider.train is not None and wider.train.y.tolist() == [2, 1, 1, 2, 1, 2]
    assert wider.by_place and wider.test.num_classes == 3
    with pytest.raises(ValueError, match="got none for 'dog'"):
        task.with_outputs(["cat", "fox"])
    with pytest.raises(ValueError, match="a task with labels"):
        Task("r", (X, X[:, 0]), (X, X[:, 0])).with_outputs(["cat"])


def test_labels_are_part_of_the_fingerprint() -> None:
    digests = {
        Task("a", (X, y), (X, y)).fingerprint() for y in (Y, K, ["a", "b", "b", "a", "b", "a"])
    }
    assert len(digests) == 3
