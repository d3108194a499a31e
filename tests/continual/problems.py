"""Small sequences of tasks, and learners that are the same whenever they are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.continual import ContinualLearner, MultiHead, Task, continual_network
from bayesbin.data import Dataset
from bayesbin.guides import AutoSignBernoulli
from bayesbin.nn import Classifier

N, INPUTS = 40, 6


def dataset(seed: int, size: int = N, classes: int = 3) -> Dataset:
    """Labels that a plane, another for each seed, tells apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, INPUTS, generator=generator)
    planes = torch.randn(INPUTS, classes, generator=generator)
    return Dataset(x, (x @ planes).argmax(1), f"plane {seed}", num_classes=classes)


def tasks(count: int = 3, *, heads: bool = False) -> list[Task]:
    return [
        Task(f"task {i}", dataset(i), dataset(i, 30), head=i if heads else None)
        for i in range(count)
    ]


def network(**settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return continual_network(INPUTS, (7,), 3, **settings)


def learner(net: nn.Module | None = None, **settings: Any) -> ContinualLearner:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Classifier(network() if net is None else net, dataset_size=1)
        guide = AutoSignBernoulli(model)
    defaults: dict[str, Any] = {"epochs": 2, "batch_size": 16, "num_samples": 4, "progress": False}
    return ContinualLearner(model, guide, **{**defaults, **settings})


def multi_head(**settings: Any) -> MultiHead:
    net = network(heads=3, **settings)
    assert isinstance(net, MultiHead)
    return net


def naturals(made: ContinualLearner) -> list[Tensor]:
    return [p.detach().clone() for p in made.guide.natural_parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
