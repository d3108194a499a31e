"""Two hundred tasks: nothing overflows, nothing grows."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from problems import INPUTS, N, learner, naturals

from bayesbin.continual import Task
from bayesbin.continual.priors import LeakyPrior, RelaxedPrior
from bayesbin.data import Dataset


def agreeing(index: int) -> Task:
    """The same plane in every task: confidence adds up over all of them."""
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(N, INPUTS, generator=generator)
    data = Dataset(x, (x[:, 0] > 0).long(), "plane", num_classes=3)
    return Task(f"task {index}", data, data)


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.slow
def test_two_hundred_tasks() -> None:
    made = learner(epochs=1, batch_size=N)
    alive: list[int] = []
    for index in range(200):
        made.observe(agreeing(index))
        if index in (50, 199):
            alive.append(tensors_alive())
    largest = max(natural.abs().max().item() for natural in naturals(made))
    assert math.isfinite(largest) and largest > 3.0  # it does saturate: that is what is tested
    assert alive[1] <= alive[0]
    kl = [report.kl_bits for report in made.reports]
    assert all(math.isfinite(bits) and bits >= 0 for bits in kl)
    assert made.reports[-1].saturated > made.reports[0].saturated
    assert all(math.isfinite(row["loss"]) for report in made.reports for row in report.history)


def test_saturated_priors_stay_finite_in_float32() -> None:
    torch.set_default_dtype(torch.float32)
    made = learner(epochs=1, batch_size=N, prior_policy="exact")
    with torch.no_grad():
        for parameter in made.guide.natural_parameters():
            parameter.copy_(39.0 * torch.sign(parameter))
    made._posterior = made.guide.posterior()
    task = agreeing(0)
    data = task.test
    made.observe(Task("first", type(data)(0.0 * data.x, data.y, "silent", 3), data))
    for index in range(5):
        report = made.observe(agreeing(index))
        assert math.isfinite(report.kl_bits)
    assert max(natural.abs().max().item() for natural in naturals(made)) <= 40.0


@pytest.mark.slow
def test_relaxation_and_leak_keep_weights_plastic() -> None:
    def largest(policy: Any) -> float:
        made = learner(epochs=1, batch_size=N, prior_policy=policy)
        for index in range(40):
            made.observe(agreeing(index))
        return max(natural.abs().max().item() for natural in naturals(made))

    exact, relaxed, leaky = (largest(p) for p in ("exact", RelaxedPrior(0.7), LeakyPrior(5.0)))
    assert relaxed < exact and leaky < exact
