"""Coresets: what is chosen, that it is set aside, and that fine-tuning on it is thrown away."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from problems import learner, multi_head, naturals, same, tasks

from bayesbin.continual.coresets import KCenterCoreset, RandomCoreset


def test_random_coresets_are_functions_of_the_seed() -> None:
    x = torch.randn(30, 2)
    first, again, other = (RandomCoreset(6).choose(x, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(set(first.tolist())) == 6


def test_k_center_against_brute_force() -> None:
    x = torch.randn(25, 3)
    chosen = KCenterCoreset(7).choose(x, seed=2).tolist()
    points = x.numpy()
    for count in range(1, 7):
        nearest = [
            min(float(np.linalg.norm(p - points[c])) for c in chosen[:count]) for p in points
        ]
        assert chosen[count] == int(np.argmax(nearest))


def test_k_center_covers_within_twice_the_optimum() -> None:
    x = torch.randn(12, 2)

    def radius(centers: list[int]) -> float:
        return torch.cdist(x, x[centers]).amin(1).max().item()

    best = min(radius(list(c)) for c in itertools.combinations(range(12), 3))
    assert radius(KCenterCoreset(3).choose(x, seed=0).tolist()) <= 2 * best


def test_k_center_of_copies_chooses_no_datum_twice() -> None:
    x = torch.zeros(6, 2)
    assert len(set(KCenterCoreset(4).choose(x, seed=0).tolist())) == 4


def test_the_data_are_set_aside() -> None:
    made = learner(coreset=RandomCoreset(8))
    task = tasks(1)[0]
    report = made.observe(task)
    assert task.train is not None and len(task.train) == 40  # the task itself is left alone
    (held, head), = made._coresets  # fmt: skip
    assert len(held) == 8 and head is None
    assert made.model.dataset_size == 32 and report.dataset_size == 40
    rows = {tuple(row) for row in held.x.tolist()}
    assert rows < {tuple(row) for row in task.train.x.tolist()}


def test_fine_tuning_changes_predictions_and_nothing_else() -> None:
    stream = tasks(2)
    made, plain = learner(coreset=RandomCoreset(8), coreset_epochs=20), learner()
    for task in stream:
        made.observe(task)
        before = naturals(made)
        scores = made.evaluate(stream)
        assert same(naturals(made), before)
        made.model.dataset_size = 1
        assert np.array_equal(made.evaluate(stream)["nll"], scores["nll"])
    propagated = made.posterior
    net, tuned = made.answering(stream[0])
    assert any(not torch.equal(tuned[s].natural, propagated[s].natural) for s in tuned)
    assert net is not made.net and made.answering(stream[1])[1] is tuned  # shared: one for all
    assert plain.answering(stream[0])[0] is plain.net


def test_heads_are_tuned_on_their_own_coreset() -> None:
    stream = tasks(3, heads=True)
    made = learner(multi_head(), coreset=KCenterCoreset(5))
    for task in stream[:2]:
        made.observe(task)
    tuned = [made.answering(task)[1] for task in stream]
    assert tuned[0] is not tuned[1] and tuned[0] is not made.posterior
    assert tuned[2] is made.posterior  # nothing was set aside for it yet


def test_refuses() -> None:
    with pytest.raises(ValueError, match="size to be a whole number of at least 1; got 0"):
        RandomCoreset(0)
    with pytest.raises(ValueError, match="smaller than the 40 data of the task; got 40"):
        learner(coreset=RandomCoreset(40)).observe(tasks(1)[0])
