"""What likelihoods accept and refuse: extreme outputs, networks of several inputs, wrong arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from bayesbin.data import Batches
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import (
    BinaryLinear,
    Classifier,
    Likelihood,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Regressor,
)

N, B = 30, 5
X = torch.zeros(B, 2)


def net(outputs: int = 1) -> nn.Module:
    return BinaryLinear(2, outputs)


@pytest.mark.parametrize(
    ("model", "outputs", "y"),
    [
        (Classifier(net(3), N), (B, 3), torch.tensor([0, 1, 2, 0, 1])),
        (Regressor(net(), N, noise=1e-3), (B, 1), torch.linspace(-1, 1, B)),
        (Regressor(net(4), N, noise="heteroscedastic"), (B, 4), torch.randn(B, 2)),
        (MultiLabel(net(2), N), (B, 2), torch.tensor([[0, 1]] * B)),
        (Poisson(net(), N), (B, 1), torch.tensor([0, 1, 7, 1000, 10**6])),
        (
            NegativeBinomial(net(), N, concentration=1e-3),
            (B, 1),
            torch.tensor([0, 1, 7, 1000, 10**6]),
        ),
        (
            NegativeBinomial(net(), N, concentration=1e6),
            (B, 1),
            torch.tensor([0, 1, 7, 1000, 10**6]),
        ),
        (
            Ordinal(net(), N, levels=4, cutpoints=[-1, 0, 1e-6]),
            (B, 1),
            torch.tensor([0, 1, 2, 3, 0]),
        ),
    ],
)
@pytest.mark.parametrize("size", [0.0, 1.0, 60.0, 1e4])
def test_extreme_outputs_are_finite_in_float32_and_say_where_to_go(model, outputs, y, size):
    signs = torch.where(torch.arange(math.prod(outputs)) % 3 < 2, 1.0, -1.0).reshape(outputs)
    for sign in (1.0, -1.0):
        f = (sign * size * signs).float().requires_grad_()
        value = model.log_prob(f, y)
        assert value.shape == (B,) and bool(value.isfinite().all())
        value.sum().backward()
        assert f.grad is not None and bool(f.grad.isfinite().all())
        sampled = model.distribution(f.detach()).sample()
        assert bool(sampled.isfinite().all())


def test_counts_are_as_exact_in_float32_as_their_numbers():
    """In float32 the terms of a large count cancel to nothing but rounding."""
    y, f = torch.tensor([10.0**6]), torch.tensor([[math.log(10.0**6) + 1e-3]])
    for model in (Poisson(net(), N), NegativeBinomial(net(), N, concentration=1e8)):
        exact = model.log_prob(f.float().double(), y)
        torch.testing.assert_close(model.log_prob(f.float(), y).double(), exact, rtol=1e-6, atol=0)


class Several(nn.Module):
    """A network with three inputs, of which the last may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)
        self.dense = BinaryLinear(2, 1)

    def forward(self, x, code, exposure=None):
        rate = self.dense(x + self.embedding(code))[:, 0]
        return rate if exposure is None else rate + exposure.log()


def test_networks_of_several_inputs():
    model = Poisson(Several(), N)
    x, code, y = torch.randn(B, 2), torch.arange(B) % 4, torch.arange(B)
    torch.manual_seed(0)
    expected = observed(model, (x, code), y)
    same: list[Any] = [
        [x, code],
        {"code": code, "x": x},
        (x.numpy(), code.numpy()),
        {"x": x.numpy().astype(np.float32), "code": code},
        (x, code, torch.ones(B)),
    ]
    for inputs in same:
        torch.manual_seed(0)
        torch.testing.assert_close(observed(model, inputs, y), expected, rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    assert abs(observed(model, (x, code, torch.full((B,), 2.0)), y) - expected) > 0.1


def test_batches_of_several_inputs_reach_training_and_validation():
    x, code, y = torch.randn(20, 2), torch.arange(20) % 4, torch.arange(20) % 3
    histories = []
    for inputs in ((x, code), {"code": code, "x": x.numpy()}):
        torch.manual_seed(0)
        model = Poisson(Several().double(), 20)
        batches = Batches((inputs, y), 8)
        assert [len(target) for _, target in batches] == [8, 8, 4]
        guide = AutoSignBernoulli(model)
        fitted = fit(model, guide, batches, epochs=2, validation=batches, progress=False)
        histories.append(
            [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history]
        )
    assert histories[0] == histories[1] and histories[0][1]["validation_rmse"] > 0
    with pytest.raises(ValueError, match="one target for each"):
        Batches(((x, code[:7]), y), 8)


def observed(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace.nodes["y"]["log_prob_sum"]


@pytest.mark.parametrize("noise", [0.3, [0.3, 0.4]])
def test_a_column_of_targets_is_that_of_a_network_with_one_output(noise):
    model = Regressor(net(1 if noise == 0.3 else 2), N, noise=noise)
    y = torch.randn(B, 1 if noise == 0.3 else 2)
    torch.manual_seed(0)
    expected = observed(model, X, y)
    torch.manual_seed(0)
    torch.testing.assert_close(observed(model, X, y.squeeze(-1)), expected)


class Vector(Likelihood):
    def distribution(self, outputs):
        return dist.MultivariateNormal(outputs, torch.eye(2))


class OfRows(Likelihood):
    def distribution(self, outputs):
        return dist.Normal(outputs, 1.0).to_event(2)


class OfTorch(Likelihood):
    def distribution(self, outputs):
        return torch.distributions.Normal(outputs, 1.0)


TWO, COUNTS, LABELS = torch.zeros(B, 2), torch.ones(B), torch.ones(B, dtype=torch.long)
SKEWED = torch.tensor([[True, False]] * B)


# Who is called, with which arguments, and what is said.
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Classifier(net(3), N), {"y": LABELS + 2}, r"labels in 0 \.\. 2, the network's classes; got 3 \.\. 3"),
    (Classifier(net(3), N), {"y": LABELS - 2}, r"labels in 0 \.\. 2"),
    (Classifier(net(3), N), {"y": LABELS.double()}, "labels as whole numbers"),
    (Classifier(net(3), N, class_dim=1), {"y": TWO.long()}, r"targets of shape \(5,\).*of shape \(5, 2\)"),
    (Classifier(net(3), N, class_weights=[1, 2]), {"y": LABELS}, "weight for each of 3 classes; got 2"),
    (Classifier(net(3), N, ignore_index=None), {"y": LABELS - 101}, r"labels in 0 \.\. 2"),
    (Regressor(net(2), N), {"y": torch.zeros(B)}, r"targets of shape \(5, 2\).*of shape \(5,\)"),
    (Regressor(net(2), N, noise=[1, 2, 3]), {"y": TWO}, "noise to be one number.* 2 targets; got 3"),
    (Regressor(net(), N, noise=[1, 2]), {"y": COUNTS}, "noise to be one number.* 1 targets; got 2"),
    (Regressor(net(3), N, noise="heteroscedastic"), {"y": TWO}, "an even number of outputs.*got 3"),
    (Regressor(nn.Sequential(net(4), nn.Unflatten(1, (2, 2))), N), {"y": TWO}, r"got \(5, 2, 2\)"),
    (Regressor(net(2), N), {"y": TWO / 0}, "finite targets; got some with NaN or infinity"),
    (MultiLabel(net(2), N), {"y": TWO + 2}, "labels 0 and 1, one for each output"),
    (MultiLabel(net(2), N), {"y": TWO + 0.5}, "labels 0 and 1"),
    (Poisson(net(), N), {"y": -COUNTS}, "whole numbers of at least 0; got negative numbers or fractions"),
    (Poisson(net(), N), {"y": COUNTS / 2}, "whole numbers of at least 0"),
    (NegativeBinomial(net(), N), {"y": COUNTS / 2}, "whole numbers of at least 0"),
    (Ordinal(net(), N, levels=3), {"y": LABELS + 2}, r"levels in 0 \.\. 2, of 3 levels; got 3"),
    (Ordinal(net(), N, levels=3), {"y": COUNTS}, "levels as whole numbers"),
    (Ordinal(net(2), N, levels=3), {"y": LABELS}, r"one number per input.*got \(5, 2\)"),
    (Regressor(net(2), N), {"y": TWO, "mask": torch.ones(B) > 0}, r"a mask .* of shape \(5, 2\).*\(5,\)"),
    (Regressor(net(2), N), {"y": TWO, "mask": TWO}, "a mask of truth values .* got torch.float32"),
    (Vector(net(2), N), {"y": TWO, "mask": SKEWED}, r"a mask of truth values of shape \(5,\)"),
    (Regressor(net(2), N), {"y": TWO, "weight": torch.ones(B, 2)}, r"a weight for each of 5 inputs"),
    (Regressor(net(2), N), {"y": TWO, "weight": torch.ones(B) > 0}, "Which targets count is a mask"),
    (Regressor(net(2), N), {"y": TWO, "weight": -torch.ones(B)}, "finite weights of at least 0"),
    (Regressor(net(2), N), {"y": TWO, "weight": torch.full((B,), math.nan)}, "finite weights of at least 0"),
    (Regressor(net(2), N), {"weight": torch.ones(B)}, "targets y with a weight or a mask; got none"),
    (Regressor(net(2), N), {"mask": torch.ones(B) > 0}, "targets y with a weight or a mask; got none"),
    (OfRows(net(2), N), {"y": TWO}, r"batch shape \(5, \.\.\.\).*got \(\) from OfRows.distribution"),
    (OfTorch(net(2), N), {"y": TWO}, r"of pyro\.distributions from OfTorch\.distribution"),
    (Poisson(Several(), N), {"y": COUNTS}, "inputs x, code, exposure, which the network takes; got 1"),
    (Poisson(Several(), N), {"x": (X, LABELS, COUNTS, COUNTS), "y": COUNTS}, "got 4"),
    (Poisson(Several(), N), {"x": {"x": X, "exposure": COUNTS}, "y": COUNTS}, "between; got x, exposure"),
    (Poisson(Several(), N), {"x": {"x": X, "codes": LABELS}, "y": COUNTS}, "between; got x, codes"),
    (Poisson(Several(), N), {"x": (X, LABELS[:4]), "y": COUNTS}, r"as many rows .*got \(5, 2\), \(4,\)"),
    (Poisson(Several(), N), {"x": (X / 0, LABELS), "y": COUNTS}, "inputs contain NaN or infinity"),
    (Regressor(nn.Sequential(net(2), nn.Flatten(0)), N), {"y": TWO}, r"a first axis of 5, the batch"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "given", "message"), REFUSED)
def test_calls_that_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        model(**{"x": X, **given})
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(net(), N, class_dim=0), "class_dim to be -1 or 1; got 0"),
        (lambda: Classifier(net(), N, class_weights=[1, -1]), "each of class_weights to be a .*at least 0"),
        (lambda: Classifier(net(), N, ignore_index=math.nan), "ignore_index to be a whole number"),  # pyright: ignore
        (lambda: Regressor(net(), N, noise=0), "noise to be a .*number above 0"),
        (lambda: Regressor(net(), N, noise=[1, math.nan]), "each of noise to be a finite number above 0"),
        (lambda: Regressor(net(), N, noise="learned"), "noise to be one of heteroscedastic; got 'learned'"),
        (lambda: Regressor(net(), N, noise=dist.Normal(0.0, 1.0)), "prior on the positive numbers"),
        (lambda: Regressor(net(), N, noise=dist.Poisson(1.0)), "prior on the positive numbers"),
        (lambda: Regressor(net(), N, noise=dist.Gamma(1.0, 1.0).expand([2, 2])), "prior of one number"),
        (lambda: Regressor(net(), N, noise=object()), "noise to be a positive number, one for each target"),
        (lambda: NegativeBinomial(net(), N, concentration=-1), "concentration to be a .*number above 0"),
        (lambda: Ordinal(net(), N, levels=1), "levels to be a whole number of at least 2"),
        (lambda: Ordinal(net(), N, levels=3, cutpoints=[1, 1]), "2 increasing cutpoints for 3 levels"),
        (lambda: Ordinal(net(), N, levels=3, cutpoints=[1, 2, 3]), "2 increasing cutpoints for 3 levels"),
        (lambda: Ordinal(net(), N, levels=3, cutpoints=dist.Normal(0.0, 1.0)), "increasing numbers"),
        (lambda: Likelihood(net(), N)(X, COUNTS), "Likelihood defines no distribution"),
    ],
)  # fmt: skip
def test_likelihoods_that_are_refused(make, message):
    with pytest.raises((ValueError, NotImplementedError), match=message) as caught:
        make()
    assert str(caught.value).endswith(".")
