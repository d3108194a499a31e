"""Public entries take numbers of every kind, and refuse what is no number in a sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bayesbin import BinaryPosterior, data, diagnostics, estimators, nn
from bayesbin.distributions import RelaxedLowBit, equal_levels
from bayesbin.ensemble import Ensemble
from bayesbin.estimators.named import named_estimator
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.infer.noise import NoiseStream

POSTERIOR = BinaryPosterior({"weight": torch.linspace(-1, 1, 12).reshape(3, 4)})
NET = nn.BinaryLinear(4, 3)
X = torch.linspace(-1, 1, 20).reshape(5, 4)
Y = torch.tensor([0, 1, 2, 1, 0])
LOG_PROBS = X[:, :3].log_softmax(-1)
RIGHT = torch.tensor([True, False, True, True, False])
LOGITS = torch.zeros(2, 3)

# Each takes one whole number of at least 1, and gives what depends on it.
WHOLE = {
    "Batches": lambda n: data.Batches((X, Y), n).sizes(),
    "num_classes": lambda n: data.Dataset(X, [0] * 5, "five", n).num_classes,
    "two_moons": lambda n: data.two_moons(n).x,
    "regression_1d": lambda n: data.regression_1d(n).x,
    "padding": lambda n: data.RandomCropFlip(n).padding,
    "equal_levels": lambda n: equal_levels(n),
    "hidden": lambda n: [p.shape for p in nn.mlp(4, n, 2).parameters()],
    "mlp": lambda n: [p.shape for p in nn.mlp(n, [4], n).parameters()],
    "dataset_size": lambda n: nn.Classifier(NET, n).dataset_size,
    "DisARM": lambda n: repr(estimators.DisARM(n)),
    "REBAR": lambda n: repr(estimators.REBAR(num_samples=n)),
    "GumbelRao": lambda n: repr(estimators.GumbelRao(num_inner=n)),
    "Enumerate": lambda n: repr(estimators.Enumerate(n)),
    "LocalReparameterization": lambda n: repr(estimators.LocalReparameterization(n)),
    "Flipout": lambda n: repr(estimators.Flipout(n)),
    "FlipoutWhereShared": lambda n: repr(estimators.FlipoutWhereShared(n)),
    "named": lambda n: repr(named_estimator("concrete", n)),
    "num_particles": lambda n: (
        TraceBinary_ELBO(estimators.Concrete(), num_particles=n).num_particles
    ),
    "draw": lambda n: POSTERIOR.signs(n)["weight"],
    "seed of draws": lambda n: POSTERIOR.sample(seed=n)["weight"],
    "seed of noise": lambda n: NoiseStream(n, 0, 0).word,
    "ensemble": lambda n: len(Ensemble(NET, POSTERIOR, n)),
    "ensemble, seed": lambda n: Ensemble(NET, POSTERIOR, 2, n).digest,
    "ensemble, draw": lambda n: Ensemble(NET, POSTERIOR, 5).network(n).weight,
    "threads": lambda n: Ensemble(NET, POSTERIOR, 2).compile(threads=n).threads,
    "ece": lambda n: diagnostics.ece(torch.linspace(0, 1, 5), RIGHT, n),
    "bootstrap": lambda n: diagnostics.bootstrap(
        diagnostics.classification_scores, (LOG_PROBS, Y), num_bootstrap=n
    ),
}
# Each takes one number that is above 0 and below 1.
REAL = {
    "two_moons": lambda v: data.two_moons(9, noise=v).x,
    "regression_1d": lambda v: data.regression_1d(9, noise=v).y,
    "hold_out": lambda v: len(data.load("two-moons").hold_out(v)[1]),
    "Concrete": lambda v: repr(estimators.Concrete(v)),
    "RELAX": lambda v: repr(estimators.RELAX(temperature=v)),
    "PseudoReward": lambda v: repr(estimators.PseudoReward(v)),
    "ExpectedWeight": lambda v: repr(estimators.ExpectedWeight(v)),
    "RelaxedLowBit": lambda v: RelaxedLowBit(v, (-1, 0, 1), LOGITS).temperature,
    "kl_weight": lambda v: TraceBinary_ELBO(estimators.Concrete(), kl_weight=v).kl_weight,
    "noise": lambda v: nn.Regressor(nn.BinaryLinear(4, 1), 5, noise=v).noise,
    "head": lambda v: Ensemble(NET, POSTERIOR, 2, head={"kind": "normal", "noise": v}).kind,
    "temperature": lambda v: diagnostics.TemperatureScaling(v).temperature,
    "interval": lambda v: diagnostics.bootstrap(
        diagnostics.classification_scores, (LOG_PROBS, Y), num_bootstrap=3, interval=v
    ),
    "coverage": lambda v: diagnostics.risk_coverage(torch.linspace(0, 1, 5), RIGHT).risk_at(v),
}
WHOLE_KINDS = [
    np.int64,
    np.int8,
    np.uint8,
    np.array,
    torch.tensor,
    lambda n: torch.tensor(n).byte(),
]
REAL_KINDS = [np.float64, np.float32, np.float16, np.array, torch.tensor]
NO_NUMBERS = [True, np.bool_(True), "1", None, math.nan, [1], np.array([1, 1]), 1j]
no_numbers = pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


@pytest.mark.parametrize("entry", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_of_every_kind_are_those_of_python(entry):
    expected = entry(3)
    for kind in WHOLE_KINDS:
        assert same(entry(kind(3)), expected)


@pytest.mark.parametrize("entry", WHOLE.values(), ids=WHOLE)
@no_numbers
def test_what_is_no_whole_number_is_refused(entry, value):
    defaults = ("named", "draw", "num_classes", "threads")
    if value is None and entry in map(WHOLE.get, defaults):
        pytest.skip("a default, the mode, and targets that are no labels")
    if entry is WHOLE["hidden"] and isinstance(value, (list, np.ndarray)):
        pytest.skip("several widths")
    with pytest.raises(ValueError, match=r"^(\w+: )?expected .*; got .*\.$"):
        entry(value)


@pytest.mark.parametrize("entry", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize(
    "value", [2.0, np.float32(2), torch.tensor(2.0), -1, np.int8(-1)], ids=repr
)
def test_fractions_and_negative_numbers_are_refused(entry, value):
    with pytest.raises(ValueError, match=r"^expected .* to be a whole number .*; got -?\d.*\.$"):
        entry(value)


@pytest.mark.parametrize("entry", REAL.values(), ids=REAL)
def test_real_numbers_of_every_kind_are_those_of_python(entry):
    expected = entry(0.25)
    for kind in REAL_KINDS:
        assert same(entry(kind(0.25)), expected)


@pytest.mark.parametrize("entry", REAL.values(), ids=REAL)
@pytest.mark.parametrize("value", [*NO_NUMBERS, math.inf, -0.5, np.float32("nan")], ids=repr)
def test_what_is_no_real_number_is_refused(entry, value):
    if entry is REAL["noise"] and value is None:
        pytest.skip("the default prior")
    if entry in (REAL["head"], REAL["noise"]) and isinstance(value, (list, np.ndarray)):
        pytest.skip("a noise for each of several targets")
    with pytest.raises(ValueError, match=r"^(\S+: )?(expected|The posterior has) .*\.?"):
        entry(value)
