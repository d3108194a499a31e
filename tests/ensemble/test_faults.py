"""Things that belong together, on trained digits: what was lost before, with the scores that are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import bayesbin as bb
from bayesbin import Ensemble, data
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.posterior import load_posterior


def network():
    return to_binary_(mlp(64, [64, 64], 10, activation="sign"))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A network of signs with batch normalisation, and its posterior, in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = Classifier(network(), dataset_size=len(digits.train))
            recipe = bb.recipe("bayesbin", model, epochs=6)
            recipe.fit(data.Batches(digits.train, 100), seed=0, progress=False)
        return model, recipe.guide.posterior()
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def ensemble(trained, digits):
    return Ensemble(*trained, num_samples=16).calibrate(digits.train.x)


def test_normalisation_is_settled_before_anything_is_predicted(trained, digits, ensemble):
    """Fault E.1: running statistics were a mixture over draws, and the mode fell apart without a word."""
    test = digits.test
    with pytest.raises(RuntimeError, match="calibrate"):
        Ensemble(*trained, num_samples=16).evaluate(test.x, test.y)
    kept = Ensemble(*trained, num_samples=16).calibrate(None).evaluate(test.x, test.y)
    found = ensemble.evaluate(test.x, test.y)
    assert found["mode"]["accuracy"] > 0.9 and found["mean"]["accuracy"] > 0.92
    assert found["mode"]["nll"] < kept["mode"]["nll"] - 0.05
    assert found["mean"]["nll"] < kept["mean"]["nll"]
    assert (
        found["draws"]["low"]["nll"] < found["draws"]["mean"]["nll"] < found["draws"]["high"]["nll"]
    )
    assert found["mean"]["nll"] < found["draws"]["mean"]["nll"]  # averaging helps


SCRIPT = """
import json, sys, torch
import bayesbin as bb
from bayesbin.nn import mlp, to_binary_
torch.manual_seed(5)
ensemble = bb.Ensemble.load(sys.argv[1], to_binary_(mlp(64, [64, 64], 10, activation="sign")))
test = bb.data.load("digits").test
print(json.dumps(ensemble.evaluate(test.x, test.y)))
"""


def test_a_file_is_all_that_another_process_needs(digits, ensemble, tmp_path):
    """Fault E.2: of a posterior alone, biases, scale and statistics were lost."""
    test, path = digits.test, str(tmp_path / "ensemble.safetensors")
    ensemble.save(path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, path],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert json.loads(ran.stdout) == ensemble.evaluate(test.x, test.y)
    posterior = tmp_path / "posterior.safetensors"
    ensemble.posteriors[0].save(posterior)
    torch.set_default_dtype(torch.float32)
    other = Ensemble(network(), load_posterior(posterior), 16, head="classes")
    lost = other.calibrate(digits.train.x).evaluate(test.x, test.y)
    assert lost["mean"]["nll"] > ensemble.evaluate(test.x, test.y)["mean"]["nll"] + 0.02


def test_a_chosen_network_is_what_ships(digits, ensemble, tmp_path):
    """Fault E.4: it was the mode."""
    x = digits.test.x.numpy()
    path = ensemble.select(draws=[8]).compile().save(tmp_path / "chosen.bbn")
    found = bb.load(path).predict(x)
    np.testing.assert_array_equal(found.probs, ensemble.select(draws=[8]).predict(x).probs)
    chosen = ensemble.network(8)(digits.test.x).argmax(1).numpy()
    assert (found.probs.argmax(1) == chosen).mean() > 0.99  # torch decides near 0 in float32
    assert (ensemble.mode.predict(x).probs.argmax(1) != chosen).any()


@pytest.mark.filterwarnings("ignore:The inputs are whole numbers in floats")
def test_raw_pixels_of_any_type_are_preprocessed_or_refused(digits, ensemble, tmp_path):
    """Fault E.6: digits as scikit-learn has them were predicted as if they were preprocessed."""
    raw, labels = load_digits(return_X_y=True)
    assert raw.dtype == np.float64 and raw.max() == 16.0
    with pytest.raises(ValueError, match="raw pixels"):
        ensemble.predict(raw.astype(np.uint8))
    path = ensemble.compile().save(tmp_path / "m.bbn", preprocessing=digits.preprocessing)
    shipped = bb.load(path)
    probs = shipped.predict(raw).probs
    assert (probs.argmax(1) == labels).mean() > 0.92
    np.testing.assert_array_equal(shipped.predict(raw.astype(np.uint8)).probs, probs)
    x = digits.test.x.numpy()  # preprocessed already
    np.testing.assert_array_equal(shipped.predict(x).probs, ensemble.predict(x).probs)
