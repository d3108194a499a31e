"""Streams: each task a function of (seed, task) alone, with a digest of what made it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from bayesbin.continual import PermutedPixels, RotatedPixels, SplitClasses, Task
from bayesbin.data import Dataset, Splits, digits


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits()


def test_permutations_are_known_for_good(splits: Splits) -> None:
    # Results are kept with these digests: they never change.
    digests = [task.digest[:12] for task in PermutedPixels(splits, 3, seed=0)]
    assert digests == ["890f2abea5df", "c2c76d946e07", "e327b56b1358"]
    other = PermutedPixels(splits, 1, seed=1)[0].digest
    assert other not in {task.digest for task in PermutedPixels(splits, 3, seed=0)}


def test_permutation_is_that_of_the_named_generator_and_shared_by_both_sets(splits: Splits) -> None:
    task = PermutedPixels(splits, 3, seed=4)[2]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([4, 2])))
    order = torch.from_numpy(rng.permutation(64))
    assert task.train is not None
    assert torch.equal(task.train.x, splits.train.x[:, order])
    assert torch.equal(task.test.x, splits.test.x[:, order])
    assert torch.equal(task.train.y, splits.train.y) and task.head is None


def test_streams_are_sequences_and_draw_from_no_global_generator(splits: Splits) -> None:
    stream = PermutedPixels(splits, 4, seed=0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    names = [task.name for task in stream]
    again = [stream[i].name for i in range(-4, 0)]
    assert names == again and len(stream) == 4 and [t.name for t in stream[1:3]] == names[1:3]
    for index in (4, -5):
        with pytest.raises(IndexError, match=r"expected a task in 0 \.\. 3"):
            stream[index]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_identity_first(splits: Splits) -> None:
    stream = PermutedPixels(splits, 2, seed=0, identity_first=True)
    assert torch.equal(stream[0].test.x, splits.test.x)
    assert stream[1].digest == PermutedPixels(splits, 2, seed=0)[1].digest


def test_images_keep_their_shape() -> None:
    images = Dataset(torch.randn(5, 2, 4, 4), torch.zeros(5).long(), "images", 1)
    task = PermutedPixels(Splits(images, images), 1, seed=0)[0]
    assert task.test.x.shape == (5, 2, 4, 4)
    assert torch.equal(task.test.x.flatten(1).sort(1)[0], images.x.flatten(1).sort(1)[0])


@pytest.mark.parametrize("kind", ["permuted", "rotated", "split"])
def test_exams_are_the_test_sets(splits: Splits, kind: str) -> None:
    stream = {
        "permuted": PermutedPixels(splits, 2, seed=0),
        "rotated": RotatedPixels(splits, 2, max_degrees=40.0),
        "split": SplitClasses(splits),
    }[kind]
    task, exam = stream[1], stream.exam(1)
    assert exam.train is None and exam.size == 0 and exam.name == task.name
    assert exam.digest == task.digest and exam.head == task.head
    assert torch.equal(exam.test.x, task.test.x) and torch.equal(exam.test.y, task.test.y)


def test_rotation_by_quarter_turns_is_exact() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    data = Dataset(image.flatten(1), torch.zeros(1).long(), "one", 1)
    stream = RotatedPixels(Splits(data, data), 3, max_degrees=180.0)
    quarter, half = (stream[i].test.x.reshape(4, 4) for i in (1, 2))
    torch.testing.assert_close(quarter, torch.rot90(image[0], 1))
    torch.testing.assert_close(half, torch.rot90(image[0], 2))
    assert torch.equal(stream[0].test.x, data.x)
    assert [stream.degrees(i) for i in range(3)] == [0.0, 90.0, 180.0]


def test_random_rotations_are_functions_of_seed_and_task(splits: Splits) -> None:
    short, long = (RotatedPixels(splits, count, 90.0, seed=3) for count in (2, 9))
    assert [short.degrees(i) for i in range(2)] == [long.degrees(i) for i in range(2)]
    assert all(0 <= long.degrees(i) <= 90 for i in range(9))
    assert len({task.digest for task in long}) == 9


@pytest.mark.parametrize(
    ("scenario", "head", "classes", "labels"),
    [("task", 2, 2, [0, 1]), ("domain", None, 2, [0, 1]), ("class", None, 10, [4, 5])],
)
def test_scenarios(
    splits: Splits, scenario: str, head: int | None, classes: int, labels: list[int]
) -> None:
    stream = SplitClasses(splits, scenario=scenario)
    task = stream[2]
    assert task.train is not None
    assert (len(stream), task.head, task.train.num_classes) == (5, head, classes)
    assert sorted(set(task.test.y.tolist())) == labels
    fours = task.train.x[task.train.y == labels[0]]
    assert torch.equal(fours, splits.train.x[splits.train.y == 4])


def test_split_covers_every_example_once(splits: Splits) -> None:
    stream = SplitClasses(splits, classes_per_task=2, seed=3)
    assert sum(task.size for task in stream) == len(splits.train)
    assert sorted(c for i in range(5) for c in stream.classes(i)) == list(range(10))
    assert stream.classes(0) != [0, 1]
    assert len(SplitClasses(splits, classes_per_task=3)) == 3  # one class is left out


def test_a_task_without_digest_is_known_by_its_data() -> None:
    data = Dataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]), "three", 2)
    moved = Dataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]), "three", 2)
    same, other = (Task("a", part, data) for part in (data, moved))
    assert same.fingerprint() == Task("b", data, data).fingerprint() != other.fingerprint()
    assert Task("a", data, data, digest="known").fingerprint() == "known"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: PermutedPixels(s, 0, seed=0),
            "num_tasks to be a whole number of at least 1; got 0",
        ),
        (
            lambda s: PermutedPixels(s, 2, seed=-1),
            "seed to be a whole number of at least 0; got -1",
        ),
        (lambda s: SplitClasses(s, 11), "1 to 10 classes per task.*got 11"),
        (lambda s: SplitClasses(s, scenario="other"), "task, domain, class; got 'other'"),
        (lambda s: Task("", s.train, s.test), "a name for the task"),
        (lambda s: Task("a", s.train, s.test, head=-1), "head to be a whole number of at least 0"),
    ],
)
def test_refuses(splits: Splits, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(splits)


def test_refuses_what_is_no_square_image() -> None:
    data = Dataset(torch.zeros(3, 5), torch.zeros(3).long(), "flat", 1)
    with pytest.raises(ValueError, match=r"expected square images.*got \(5,\)"):
        RotatedPixels(Splits(data, data), 2)
    square = Dataset(torch.zeros(3, 4), torch.zeros(3).long(), "flat", 1)
    with pytest.raises(ValueError, match="inputs of one shape"):
        Task("a", data, square)
