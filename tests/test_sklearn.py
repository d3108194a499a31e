"""The scikit-learn interface: scikit-learn's own checks, and what they do not look at."""

from __future__ import annotations

import pickle

import numpy as np
import pyro
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import bayesbin
from bayesbin.estimators import RELAX
from bayesbin.recipes import settings_of
from bayesbin.sklearn import BinaryNetworkClassifier, BinaryNetworkRegressor

QUICK = {"epochs": 30, "num_samples": 4}


def random_by_row(estimator):
    """Checks of equal bits that no method has which draws noise for each row of a batch."""
    return {
        "check_sample_weight_equivalence_on_dense_data": "copies of a datum have noise of their own"
    }


@parametrize_with_checks(
    [BinaryNetworkClassifier(epochs=15, num_samples=4), BinaryNetworkRegressor(**QUICK)],
    expected_failed_checks=random_by_row,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [BinaryNetworkClassifier(), BinaryNetworkRegressor()], expected_failed_checks=random_by_row
)
def test_scikit_learns_checks_with_the_default_settings(estimator, check):
    check(estimator)


def blobs():
    x, y = make_blobs(n_samples=60, centers=3, random_state=0)
    return x, np.array(["zinc", "ash", "iron"])[y]


def line(scale=1.0, shift=0.0):
    generator = np.random.default_rng(0)
    x = generator.uniform(-1.0, 1.0, (80, 1))
    return x, shift + scale * (2.0 * x[:, 0] + 0.3 * generator.standard_normal(80))


FEW = {"hidden_layer_sizes": (8,), "epochs": 5, "random_state": 0}
KINDS = [(BinaryNetworkClassifier, blobs), (BinaryNetworkRegressor, line)]


def test_digits():
    x, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(x, y, random_state=0)
    classifier = BinaryNetworkClassifier(epochs=20, random_state=0).fit(train, y_train)
    assert classifier.score(test, y_test) > 0.95
    probs = classifier.predict_proba(test)
    assert -np.log(probs[np.arange(len(test)), y_test]).mean() < 0.2
    assert probs.shape == (len(test), 10)
    np.testing.assert_allclose(probs.sum(1), 1.0, rtol=1e-12)


@pytest.mark.parametrize(("num_bins", "least"), [(0, 0.3), (4, 0.3), (16, 0.2)])
def test_diabetes(num_bins, least):  # few data, nearly linear and noisy: bins cost a little
    x, y = load_diabetes(return_X_y=True)
    train, test, y_train, y_test = train_test_split(x, y, random_state=0)
    # Of 331 noisy rows the default KL weight of 0.03 makes too much: the variance below is 2 with bins.
    regressor = BinaryNetworkRegressor(num_bins=num_bins, kl_weight=0.1, random_state=0)
    regressor.fit(train, y_train)
    mean, std = regressor.predict(test, return_std=True)
    # A standardised residual of a calibrated prediction has variance 1, whose estimate from 111 of
    # them has a standard error of 0.13.
    assert abs(np.mean(((y_test - mean) / std) ** 2) - 1.0) < 5 * 0.13
    assert regressor.score(test, y_test) > least


@pytest.mark.parametrize("labels", [[3, 1, 7], ["c", "a", "b"], [True, False], [2.0, 5.0]])
def test_labels_of_any_kind(labels):
    x, y = make_blobs(n_samples=60, centers=len(labels), random_state=1)
    y = np.array(labels)[y]
    classifier = BinaryNetworkClassifier(epochs=40, random_state=0).fit(x, y)
    assert classifier.classes_.tolist() == sorted(labels)
    assert classifier.predict(x).dtype == y.dtype
    assert classifier.score(x, y) > 0.9


def test_predictions_are_those_of_the_posterior():
    x, y = blobs()
    classifier = BinaryNetworkClassifier(**FEW).fit(x, y)
    inputs = torch.from_numpy(classifier.transformer_.transform(x)).float()
    ensemble, posterior = classifier.ensemble_, classifier.posterior_
    probs = []
    for draw in range(32):  # those of seed_
        net = posterior.sample_network(ensemble.network(0), draw, classifier.seed_)
        probs.append(net(inputs).detach().double().softmax(-1))
    found = torch.stack(probs).mean(0).numpy()
    np.testing.assert_allclose(classifier.predict_proba(x), found, atol=1e-6)
    assert np.array_equal(classifier.predict_proba(x[:1]), classifier.predict_proba(x)[:1])
    x, y = line(scale=7.0, shift=100.0)
    regressor = BinaryNetworkRegressor(**FEW, num_bins=0, num_samples=6).fit(x, y)
    inputs = torch.from_numpy((x - x.mean(0)) / x.std(0)).float()
    layers, posterior = nn.Sequential(*regressor.ensemble_.network(0)), regressor.posterior_
    means, variances = [], []
    for draw in range(6):
        net = posterior.sample_network(layers, draw, regressor.seed_)
        means.append(net(inputs).detach().double()[:, 0])
        noise = posterior.sample_real("noise", draw, seed=regressor.seed_)  # in the units of y
        variances.append(noise.double().square())
    mean, std = regressor.predict(x, return_std=True)
    means = y.mean() + y.std() * torch.stack(means).numpy()
    variance = means.var(0) + torch.stack(variances).mean().item()
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-5)
    np.testing.assert_array_equal(regressor.predict(x), mean)


@pytest.mark.parametrize("num_bins", [0, 3, 16])
def test_what_ships_predicts_raw_rows(num_bins, tmp_path):
    """Fault E.5: a packed estimator lost its bins."""
    x, y = blobs()
    classifier = BinaryNetworkClassifier(**FEW, num_bins=num_bins).fit(x, y)
    classifier.compile().save(tmp_path / "classifier.bbn")
    shipped = bayesbin.load(tmp_path / "classifier.bbn")
    np.testing.assert_array_equal(shipped.predict(x).probs, classifier.predict_proba(x))
    assert shipped.labels == ("ash", "iron", "zinc")
    x, y = line(scale=7.0, shift=100.0)
    regressor = BinaryNetworkRegressor(**FEW, num_bins=num_bins, num_samples=0).fit(x, y)
    regressor.compile(backend="numpy").save(tmp_path / "regressor.bbn")
    shipped = bayesbin.load(tmp_path / "regressor.bbn").predict(x)
    mean, std = regressor.predict(x, return_std=True)
    np.testing.assert_array_equal(shipped.mean, mean)
    np.testing.assert_array_equal(shipped.std, std)


def test_units_of_inputs_and_targets_do_not_matter():
    x, y = line()
    mean, std = BinaryNetworkRegressor(**FEW).fit(x, y).predict(x, return_std=True)
    far = BinaryNetworkRegressor(**FEW).fit(50.0 * x - 8.0, 1e4 * y + 1e6)
    far_mean, far_std = far.predict(50.0 * x - 8.0, return_std=True)
    np.testing.assert_allclose((far_mean - 1e6) / 1e4, mean, atol=1e-4)
    np.testing.assert_allclose(far_std / 1e4, std, rtol=1e-4)


def test_bins_learn_a_wave_that_signs_of_one_feature_do_not():
    generator = np.random.default_rng(0)
    x = generator.uniform(-3.0, 3.0, (120, 1))
    y = np.sin(2.0 * x[:, 0]) + 0.1 * generator.standard_normal(120)
    grid = np.linspace(-2.9, 2.9, 200)[:, None]
    error = {}
    for bins in (0, 16):
        fitted = BinaryNetworkRegressor(num_bins=bins, epochs=150, random_state=0).fit(x, y)
        mean, std = fitted.predict(grid, return_std=True)
        error[bins] = np.sqrt(np.mean((mean - np.sin(2.0 * grid[:, 0])) ** 2))
    assert error[16] < 0.1 < 0.2 < error[0]
    # and it knows where the data end
    assert (fitted.predict([[-6.0], [6.0]], return_std=True)[1] > 3.0 * std.max()).all()


def test_targets_that_are_all_the_same():
    x, y = line()
    mean, std = BinaryNetworkRegressor(**FEW).fit(x, 0.0 * y + 3.0).predict(x, return_std=True)
    assert np.isfinite(mean).all() and np.isfinite(std).all()


@pytest.mark.parametrize(("kind", "data"), KINDS)
def test_random_state_decides_and_other_generators_are_left_alone(kind, data):
    x, y = data()
    torch.set_default_dtype(torch.float32)  # either will do
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = kind(**FEW).fit(x, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.rand(5)
    torch.set_default_dtype(torch.float64)
    assert not list(pyro.get_param_store().keys())
    again = kind(**FEW).fit(x, y)
    assert torch.get_default_dtype() == torch.float64
    assert first.posterior_.digest == again.posterior_.digest
    np.testing.assert_array_equal(first.predict(x), again.predict(x))
    other = kind(**FEW | {"random_state": 1}).fit(x, y)
    assert other.posterior_.digest != first.posterior_.digest


@pytest.mark.parametrize(("kind", "data"), KINDS)
def test_pickles_and_clones(kind, data):
    x, y = data()
    fitted = kind(**FEW).fit(x, y)
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict(x), fitted.predict(x))
    assert copied.posterior_.digest == fitted.posterior_.digest
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(x)


def test_within_scikit_learn():
    x, y = blobs()
    pipeline = make_pipeline(PolynomialFeatures(2), BinaryNetworkClassifier(**FEW))
    grid = {"binarynetworkclassifier__estimator": ["straight-through", "local-reparameterization"]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(x, y)
    assert set(search.cv_results_["param_binarynetworkclassifier__estimator"]) == set(
        grid["binarynetworkclassifier__estimator"]
    )
    search = GridSearchCV(BinaryNetworkRegressor(**FEW), {"num_bins": np.arange(0, 4, 2)}, cv=2)
    assert search.fit(*line()).best_params_["num_bins"] in (0, 2)
    assert len(cross_val_score(BinaryNetworkRegressor(**FEW), *line(), cv=3)) == 3


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_numbers_of_all_kinds(kind):
    x, y = blobs()
    numbers = {
        "hidden_layer_sizes": 8,
        "num_bins": 4,
        "batch_size": 20,
        "num_samples": 3,
        "epochs": 2,
    }
    plain = BinaryNetworkClassifier(**numbers, random_state=0).fit(x, y)
    other = {name: kind(number) for name, number in numbers.items()}
    found = BinaryNetworkClassifier(**other, random_state=0).fit(x, y)
    np.testing.assert_array_equal(plain.predict_proba(x), found.predict_proba(x))
    listed = BinaryNetworkClassifier(**numbers | {"hidden_layer_sizes": [kind(8)]}, random_state=0)
    np.testing.assert_array_equal(plain.predict_proba(x), listed.fit(x, y).predict_proba(x))
    assert BinaryNetworkClassifier((), epochs=1, random_state=0).fit(x, y).score(x, y) >= 0.0


def test_an_estimator_of_the_package_is_not_changed():
    x, y = line()
    estimator = RELAX()
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    BinaryNetworkRegressor(**FEW, estimator=estimator).fit(x, y)
    assert before
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())


def test_settings_are_those_of_the_recipe():
    x, y = blobs()
    plain = BinaryNetworkClassifier(**FEW).fit(x, y)
    assert plain.settings_ == settings_of("bayesbin")
    given = {
        "lr": 0.2,
        "real_lr": 0.02,
        "kl_weight": 0.5,
        "init_scale": 0.3,
        "estimator": "concrete",
    }
    further = {"temperature": 0.3, "num_samples": 2}
    fitted = BinaryNetworkClassifier(**FEW, **given, settings=further).fit(x, y)
    assert fitted.settings_ == settings_of("bayesbin", **given, **further)
    both = BinaryNetworkClassifier(**FEW, settings={**given, **further}).fit(x, y)
    assert both.settings_ == fitted.settings_
    assert both.posterior_.digest == fitted.posterior_.digest != plain.posterior_.digest
    nested = BinaryNetworkClassifier(**FEW, settings={"guide": "nested"}).fit(x, y)
    assert nested.settings_["sharing"] == ["layer", "filter", "kernel", "weight"]
    point = BinaryNetworkClassifier(**FEW, recipe="ste", lr=0.1).fit(x, y)
    assert point.settings_ == settings_of("ste", lr=0.1)
    assert (point.predict_proba(x) == point.predict_proba(x)).all()
    for settings, message in (
        ({"recipe": "ste", "kl_weight": 0.1}, "'ste' has the settings lr, .*; got kl_weight"),
        ({"lr": 0.1, "settings": {"lr": 0.2}}, "lr is given twice; leave it out of settings"),
        ({"recipe": "stee"}, "recipe to be one of .* Did you mean 'ste'"),
        ({"settings": {"sharing": ["filter"]}}, "guide 'mean-field' has no setting sharing"),
    ):
        with pytest.raises(ValueError, match=message):
            BinaryNetworkClassifier(**FEW | settings).fit(x, y)


def test_history_and_settings():
    x, y = blobs()
    fitted = BinaryNetworkClassifier(**FEW | {"hidden_layer_sizes": 5}, batch_size=20).fit(x, y)
    assert [row["epoch"] for row in fitted.history_] == [1, 2, 3, 4, 5]
    assert {
        name: tuple(distribution.natural.shape) for name, distribution in fitted.posterior_.items()
    } == {
        "0.weight": (5, 32),  # 16 bins of each of two features
        "2.weight": (3, 5),
    }
    assert fitted.history_[0]["loss"] > fitted.history_[-1]["loss"]
    modal = BinaryNetworkClassifier(**FEW, num_samples=0).fit(x, y)
    inputs = torch.from_numpy(modal.transformer_.transform(x)).float()
    logits = modal.ensemble_.network(0)(inputs).detach()
    assert modal.ensemble_.num_samples == 1
    np.testing.assert_allclose(modal.predict_proba(x), logits.softmax(1), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "expected epochs to be a whole number of at least 1; got 0"),
        ({"num_bins": -1}, "expected num_bins to be a whole number of at least 0; got -1"),
        ({"num_bins": None}, "num_bins to be .*; got None"),
        ({"num_samples": -1}, "num_samples to be a whole number of at least 0; got -1"),
        ({"num_samples": 2.5}, "got 2.5"),
        ({"estimator": "guess"}, "expected estimator to be one of"),
        ({"activation": "step"}, "activation"),
        (
            {"hidden_layer_sizes": (0,)},
            "hidden_layer_sizes to be a whole number of at least 1; got 0",
        ),
        ({"hidden_layer_sizes": "many"}, "hidden_layer_sizes to be whole numbers"),
        ({"batch_size": 0}, "batch_size to be a whole number of at least 1; got 0"),
        ({"kl_weight": -1.0}, "expected kl_weight to be a number of at least 0; got -1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        BinaryNetworkClassifier(**FEW | settings).fit(*blobs())


def test_a_weight_is_a_number_of_copies():
    """Two classes at each place, 3 to 1: weights of 1/3 make them equally likely, copies likewise."""
    x = np.repeat([[0.0], [1.0]], 40, axis=0)
    y = np.tile([0, 0, 0, 1], 20)
    settings = {"num_bins": 0, "hidden_layer_sizes": (), "epochs": 60, "random_state": 0}

    def share(sample_weight=None, rows=slice(None), **more):
        made = BinaryNetworkClassifier(**settings, **more)
        return made.fit(x[rows], y[rows], sample_weight).predict_proba([[0.0], [1.0]])[:, 1]

    plain = share()
    copies = share(rows=np.concatenate([np.arange(80), *[np.flatnonzero(y)] * 2]))
    weighted = share(np.where(y == 1, 3.0, 1.0))
    by_label = share(class_weight={1: 3.0})
    assert (plain < 0.35).all()
    for found in (copies, weighted):
        assert (np.abs(found - 0.5) < 0.1).all()
    assert np.array_equal(weighted, by_label)
    assert np.array_equal(share(np.ones(80)), plain)
    half = np.arange(80) // 4 % 2 == 0
    assert np.array_equal(share(half.astype(float)), share(rows=half))


def test_several_targets_in_units_of_their_own():
    x, y = line()
    both = np.stack([100.0 + 50.0 * y, -0.01 * y], axis=1)
    regressor = BinaryNetworkRegressor((32,), epochs=40, random_state=1).fit(x, both)
    mean, std = regressor.predict(x, return_std=True)
    assert mean.shape == std.shape == both.shape and regressor.score(x, both) > 0.85
    relative = std.mean(0) / both.std(0)
    assert (relative > 0.05).all() and (relative < 2.0).all()  # the wrong units: 50, or .01
    assert regressor.ensemble_.noise.shape == (32, 2)
    predictor = regressor.compile()
    assert np.array_equal(predictor.predict(x).mean, mean)
    with pytest.raises(ValueError, match="Negative"):
        regressor.fit(x, both, sample_weight=-np.ones(len(x)))
    with pytest.raises(ValueError, match=r"non-zero|above 0"):
        regressor.fit(x, both, sample_weight=np.zeros(len(x)))
