"""Schedules, what applies them, and the clipping of latents."""

# pyright: reportIndexIssue=false, reportArgumentType=false

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayesbin.estimators import ExpectedWeight
from bayesbin.nn.binarizers import SLB, ReCU
from bayesbin.optim import (
    Schedule,
    clip_,
    clip_after_step,
    cosine,
    exponential,
    linear,
    recu_tau,
    step_decay,
    warm_restarts,
)


def test_ends_and_held_parts():
    for build in (linear, exponential, cosine):
        move = build(1.0, 100.0, 50)
        assert move(0) == 1.0 and move(50) == pytest.approx(100.0) == move(70)
        values = [move(t) for t in range(51)]
        assert values == sorted(values)
        held = build(1.0, 100.0, 50, hold=(0.2, 0.8))
        assert held(10) == 1.0 and held(40) == pytest.approx(100.0) and 1.0 < held(11) < held(39)
    factors = [exponential(1.0, 9.0, 20)(t + 1) / exponential(1.0, 9.0, 20)(t) for t in range(20)]
    assert factors == pytest.approx([9.0 ** (1 / 20)] * 20)


def test_recu_tau_is_the_published_formula():
    start, end, epochs = 0.85, 0.99, 30
    for i in range(epochs + 1):
        published = (end - start) / (math.e - 1) * math.exp(i / epochs) + (math.e * start - end) / (
            math.e - 1
        )
        assert recu_tau(epochs)(i) == pytest.approx(published, rel=1e-14)
    assert recu_tau(epochs)(0) == pytest.approx(start) and recu_tau(epochs)(30) == pytest.approx(
        end
    )


def test_warm_restarts_agree_with_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, 2, eta_min=0.1)
    ours = warm_restarts(1.0, 0.1, 3)
    for t in range(25):
        assert ours(t) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()


def test_a_schedule_moves_what_it_owns_and_resumes():
    binarizer, estimator = SLB(), ExpectedWeight()
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}], lr=1.0)
    for owner, name in ((binarizer, "sharpness"), (estimator, "sharpness"), (optimizer, "lr")):
        read = lambda owner=owner, name=name: (
            owner.param_groups[0][name] if owner is optimizer else getattr(owner, name)
        )
        schedule = Schedule(owner, name, exponential(1.0, 16.0, 4))
        seen = [read()]
        for _ in range(3):
            schedule.step()
            seen.append(read())
        assert seen == pytest.approx([1.0, 2.0, 4.0, 8.0])
        state = schedule.state_dict()
        fresh = Schedule(owner, name, exponential(1.0, 16.0, 4))
        assert read() == 1.0
        fresh.load_state_dict(state)
        assert read() == pytest.approx(8.0)
    Schedule(recu := ReCU(), "tau", recu_tau(10)).step()
    assert 0.85 < recu.tau < 0.87


def test_clipping_is_a_step_of_its_own_that_can_be_taken_away():
    latent = nn.Parameter(torch.tensor([0.9, -0.9]))
    optimizer = torch.optim.SGD([latent], lr=1.0)
    handle = clip_after_step(optimizer, [latent], bound=1.5)
    latent.grad = torch.tensor([-3.0, 0.1])
    optimizer.step()
    torch.testing.assert_close(latent.detach(), torch.tensor([1.5, -1.0]))
    handle.remove()
    optimizer.step()
    torch.testing.assert_close(latent.detach(), torch.tensor([4.5, -1.1]))
    clip_([latent], 0.5)
    assert latent.tolist() == [0.5, -0.5]
    clip_after_step(optimizer, [latent], None)
    optimizer.step()
    assert latent.tolist() == [3.5, -0.6]


def test_what_is_refused():
    with pytest.raises(ValueError, match="SLB has no number 'tau' to schedule; it has sharpness"):
        Schedule(SLB(), "tau", linear(0.0, 1.0, 3))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="no number 'threshold'"):
        Schedule(optimizer, "threshold", linear(0.0, 1.0, 3))
    for build, message in [
        (lambda: linear(0.0, 1.0, 0), "at least one epoch"),
        (lambda: cosine(0.0, 1.0, 5, hold=(0.9, 0.2)), "begin < finish"),
        (lambda: exponential(0.0, 1.0, 5), "positive ends"),
        (lambda: warm_restarts(0.0, 1.0, 0), "at least 1"),
        (lambda: step_decay(1.0, 0.1, 0), "at least 1"),
        (lambda: clip_after_step(optimizer, []), "got no parameters"),
        (lambda: clip_after_step(optimizer, [torch.zeros(1)], 0.0), "bound is a positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
