"""Heads against formulas written anew with scipy: mixtures over draws, of every kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
from model_examples import DRAWS, constant, perceptron
from scipy import stats
from scipy.special import expit, log_softmax

from bayesbin.core.files import CorruptFileError
from bayesbin.runtime import container, native_backend
from bayesbin.runtime.blocks import predict_blocks
from bayesbin.runtime.files import from_bytes, to_bytes
from bayesbin.runtime.heads import HEADS
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictions import (
    ClassPrediction,
    CountPrediction,
    LabelsPrediction,
    NormalPrediction,
    OutputsPrediction,
)
from bayesbin.runtime.predictor import Predictor, load
from bayesbin.runtime.program import Program, Step, Value

X = np.random.default_rng(0).standard_normal((7, 11)).astype(np.float32)
CUTS = np.array([-3.0, -0.5, 2.0])
RISING = (CUTS + np.arange(DRAWS)[:, None] / 7).tolist()
NUMBERS = (0.5 + np.arange(DRAWS)).tolist()

# Outputs of the network, head, class of the prediction, shape of a quantity.
CASES = {
    "classes": (3, {"kind": "classes"}, ClassPrediction, (7,)),
    "one noise": (1, {"kind": "normal", "noise": [0.3]}, NormalPrediction, (7,)),
    "noise of draws": (2, {"kind": "normal", "noise": NUMBERS}, NormalPrediction, (7, 2)),
    "noise of targets": (2, {"kind": "normal", "noise": [[0.3, 2.0]]}, NormalPrediction, (7, 2)),
    "two noises": (2, {"kind": "normal", "heteroscedastic": True}, NormalPrediction, (7,)),
    "four noises": (4, {"kind": "normal", "heteroscedastic": True}, NormalPrediction, (7, 2)),
    "labels": (3, {"kind": "labels"}, LabelsPrediction, (7, 3)),
    "one label": (1, {"kind": "labels"}, LabelsPrediction, (7,)),
    "poisson": (1, {"kind": "poisson"}, CountPrediction, (7,)),
    "two counts": (2, {"kind": "poisson"}, CountPrediction, (7, 2)),
    "negative binomial": (
        1, {"kind": "negative_binomial", "concentration": [1.5]}, CountPrediction, (7,),
    ),
    "concentration of draws": (
        2, {"kind": "negative_binomial", "concentration": NUMBERS}, CountPrediction, (7, 2),
    ),
    "ordinal": (1, {"kind": "ordinal", "cutpoints": [CUTS.tolist()]}, ClassPrediction, (7,)),
    "cut points of draws": (1, {"kind": "ordinal", "cutpoints": RISING}, ClassPrediction, (7,)),
    "outputs": (2, {"kind": "outputs"}, OutputsPrediction, (7, 2)),
}  # fmt: skip


def quieter(outputs: int) -> Program:
    """The example network with outputs of the order of 1, so that rates are not immense."""
    program = perceptron(outputs=outputs)
    small = {**program.constants, "small": constant(0.2)}
    steps = (*program.steps, Step("mul", ("y", "small"), ("z",)))
    return Program(program.inputs, small, program.sites, steps, ("z",), DRAWS)


def predictor_of(name: str, backend: str = "numpy") -> Predictor:
    outputs, head, _, _ = CASES[name]
    return Predictor(quieter(outputs), head, backend=backend)


def parameter(head, name: str, ndim: int) -> np.ndarray:
    """The numbers of a parameter, with an axis of draws and as many axes as the outputs."""
    given = np.asarray(head[name], dtype=float)
    given = given.reshape(-1, 1) if given.ndim == 1 else given
    given = given[:, None, :]
    return given[..., 0] if ndim == 2 else given


def probabilities(head, y: np.ndarray) -> np.ndarray:
    """Of the classes in each draw, (S, B, C)."""
    if head["kind"] == "classes":
        return np.exp(log_softmax(y, axis=-1))
    cuts = np.broadcast_to(np.asarray(head["cutpoints"]), (len(y), len(CUTS)))[:, None]
    below = stats.logistic.cdf(cuts, loc=y)  # y (S, B, 1)
    return np.diff(below, axis=-1, prepend=0.0, append=1.0)


def distributions(head, y: np.ndarray):
    """The distribution of the targets in each draw, of scipy."""
    if head["kind"] == "poisson":
        return stats.poisson(np.exp(y))
    if head["kind"] == "negative_binomial":
        r, mean = parameter(head, "concentration", y.ndim), np.exp(y)
        return stats.nbinom(r, r / (r + mean))
    if "heteroscedastic" in head:
        half = y.shape[-1] // 2
        means, stds = y[..., :half], np.exp(y[..., half:])
        return stats.norm(means[..., 0], stds[..., 0]) if half == 1 else stats.norm(means, stds)
    return stats.norm(y, parameter(head, "noise", y.ndim))


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_mixtures_over_draws(name):
    outputs, head, kind, shape = CASES[name]
    predictor = predictor_of(name)
    y = predictor.outputs(X).astype(float)
    assert np.ptp(y, axis=0).min() > 0.01  # the draws differ
    found = predictor.predict(X)
    assert type(found) is kind and found.num_samples == DRAWS
    if kind is ClassPrediction:
        probs = probabilities(head, y)
        mean = probs.mean(0)
        expected = {
            "probs": mean,
            "entropy": stats.entropy(mean, axis=-1),
            "expected_entropy": stats.entropy(probs, axis=-1).mean(0),
            "std": probs.std(0),
        }
        np.testing.assert_allclose(predictor.log_probs(X), np.log(probs), rtol=1e-7, atol=1e-12)
    elif kind is LabelsPrediction:
        y = y[..., 0] if outputs == 1 else y
        probs = expit(y)
        mean = probs.mean(0)
        expected = {
            "probs": mean,
            "entropy": stats.bernoulli(mean).entropy(),
            "expected_entropy": stats.bernoulli(probs).entropy().mean(0),
            "mutual_information": stats.bernoulli(mean).entropy()
            - stats.bernoulli(probs).entropy().mean(0),
            "std": probs.std(0),
        }
        np.testing.assert_allclose(np.exp(found.log_probs_absent), 1.0 - mean, rtol=1e-12)
    elif kind is OutputsPrediction:
        expected = {"mean": y.mean(0), "variance": y.var(0), "std": y.std(0)}
    else:
        y = y[..., 0] if outputs == 1 else y
        law = distributions(head, y)
        means, variances = law.mean(), law.var()
        expected = {
            "mean": means.mean(0),
            "aleatoric_variance": np.broadcast_to(variances.mean(0), shape),
            "epistemic_variance": means.var(0),
            "variance": np.broadcast_to(variances, means.shape).mean(0) + means.var(0),
        }
        draws = law.rvs((2_000, *means.shape), random_state=0)  # of the mixture: each draw alike
        drawn = draws.reshape(-1, *shape)
        error = drawn.std(0) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(0) - found.mean) < 5 * error).all()
    for quantity, value in expected.items():
        got = getattr(found, quantity)
        assert got.shape[: len(shape)] == shape and got.dtype == np.float64
        np.testing.assert_allclose(got, value, rtol=1e-9, atol=1e-12, err_msg=quantity)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_blocks_chunks_backends_and_files_change_no_bit(name, backend, tmp_path):
    if backend == "native" and not native_backend.available():
        pytest.skip(str(native_backend.why_not()))
    whole = predictor_of(name).predict(X)

    def same(found) -> None:
        assert type(found) is type(whole)
        for quantity in whole.__dataclass_fields__:
            assert np.array_equal(getattr(found, quantity), getattr(whole, quantity)), quantity

    for rows, draws in ((1, 5), (4, 2), (7, 1)):
        other = predictor_of(name, backend)
        other._network.rows, other._network.draws = rows, draws
        same(other.predict(X))
        if other.model.averaging.has_classes:
            assert np.array_equal(other.log_probs(X), predictor_of(name).log_probs(X))
    path = predictor_of(name).save(tmp_path / "model.bbn")
    same(load(path).predict(X))
    assert load(path).head == predictor_of(name).head
    np.save(tmp_path / "x.npy", X)
    found = predict_blocks(path, tmp_path / "x.npy", tmp_path / "found", rows_per_block=3)
    assert found.complete and list(found.arrays) == list(whole.quantities)
    for quantity, array in found.arrays.items():
        assert np.array_equal(array, getattr(whole, quantity)), quantity


@pytest.mark.parametrize("name", CASES)
def test_some_draws_have_their_own_parameters(name):
    outputs, head, _, _ = CASES[name]
    some = predictor_of(name).select([4, 1])
    few = {
        key: [value[4], value[1]] if isinstance(value, list) and len(value) == DRAWS else value
        for key, value in head.items()
    }
    other = Predictor(quieter(outputs).select([4, 1]), few, backend="numpy")
    for quantity in some.predict(X).quantities:
        assert np.array_equal(
            getattr(some.predict(X), quantity), getattr(other.predict(X), quantity)
        )


def of_rows(rows: np.ndarray) -> Program:
    """A program whose draws return rows of numbers, (draws, ...), for every input."""
    steps = (
        Step("mul", ("x", "zero"), ("none",), "f8"),
        Step("add", ("none", "rows"), ("y",), "f8"),
    )
    constants = {"zero": constant(0.0, "f8"), "rows": constant(rows, "f8", rows=range(len(rows)))}
    return Program({"x": Value((1,), "f8")}, constants, {}, steps, ("y",), len(rows))


@pytest.mark.parametrize("class_dim", [1, 2, 3, -1, -2, -3])
def test_classes_come_last_wherever_they_are(class_dim):
    logits = np.random.default_rng(0).standard_normal((4, 2, 3, 5))
    head = {"kind": "classes", "class_dim": class_dim}
    axis = class_dim if class_dim > 0 else class_dim + 4
    count = logits.shape[axis]
    predictor = Predictor(
        of_rows(logits), head, labels=[f"{k}" for k in range(count)], backend="numpy"
    )
    last = Predictor(of_rows(np.moveaxis(logits, axis, -1)), {"kind": "classes"}, backend="numpy")
    x = [[1.0], [2.0]]
    assert predictor.predict(x).probs.shape[-1] == count
    for quantity in ("probs", "entropy", "probs_std"):
        assert np.array_equal(
            getattr(predictor.predict(x), quantity), getattr(last.predict(x), quantity)
        )
    assert np.array_equal(predictor.log_probs(x), last.log_probs(x))
    assert predictor.head == (
        {"kind": "classes"} if axis == 3 else {"kind": "classes", "class_dim": axis}
    )


def test_beyond_the_range_of_float64_logarithms_stay():
    labels = Predictor(
        of_rows(np.array([[-2000.0], [-1000.0]])), {"kind": "labels"}, backend="numpy"
    )
    found = labels.predict([[1.0]])
    assert found.log_probs[0] == pytest.approx(-1000.0 - np.log(2.0), abs=1e-9)
    assert found.probs[0] == 0.0 and found.entropy[0] == 0.0
    head = {"kind": "ordinal", "cutpoints": [[-1.0, 1.0]]}
    found = Predictor(of_rows(np.array([[2000.0]])), head, backend="numpy").predict([[1.0]])
    np.testing.assert_allclose(
        found.log_probs[0], [-2001.0, -1999.0 + np.log(-np.expm1(-2.0)), 0.0], rtol=1e-12
    )
    counts = Predictor(of_rows(np.array([[1000.0]])), {"kind": "poisson"}, backend="numpy")
    assert counts.predict([[1.0]]).mean[0] == pytest.approx(np.exp(40.0) * 961.0)  # the tangent
    noise = {"kind": "normal", "heteroscedastic": True}
    found = Predictor(of_rows(np.array([[0.0, 1000.0]])), noise, backend="numpy").predict([[1.0]])
    assert found.aleatoric_variance[0] == pytest.approx(np.exp(40.0))


WRONG = {
    "concentration 0": (1, {"kind": "negative_binomial", "concentration": 0.0}, "above 0"),
    "no concentration": (1, {"kind": "negative_binomial"}, "exactly kind, concentration; got kind"),
    "concentration of 2 draws": (
        1, {"kind": "negative_binomial", "concentration": [1.0, 2.0]}, "one for each of 5 draws",
    ),
    "text": (1, {"kind": "negative_binomial", "concentration": "much"}, "a positive number"),
    "objects": (1, {"kind": "negative_binomial", "concentration": [{}]}, "a positive number"),
    "ragged": (1, {"kind": "ordinal", "cutpoints": [[1.0], [1.0, 2.0]]}, "ascending cut points"),
    "descending": (1, {"kind": "ordinal", "cutpoints": [1.0, 0.0]}, "cutpoints to ascend"),
    "infinite": (1, {"kind": "ordinal", "cutpoints": [0.0, np.inf]}, "finite number"),
    "cut points of 2 draws": (
        1, {"kind": "ordinal", "cutpoints": [[0.0, 1.0]] * 2}, "one for each of 5 draws",
    ),
    "no cut points": (1, {"kind": "ordinal", "cutpoints": []}, "ascending cut points"),
    "odd": (3, {"kind": "normal", "heteroscedastic": True}, r"\(2 targets,\), got outputs of \(3,\)"),
    "both": (2, {"kind": "normal", "heteroscedastic": True, "noise": 1.0}, "exactly kind"),
    "a number": (2, {"kind": "normal", "heteroscedastic": 1}, "heteroscedastic to be True or False"),
    "axis 0": (3, {"kind": "classes", "class_dim": 0}, "after that of the batch"),
    "axis 2": (3, {"kind": "classes", "class_dim": 2}, "class_dim to be a whole number from -1 to 1"),
    "axis of text": (3, {"kind": "classes", "class_dim": "last"}, "class_dim to be a whole number"),
    "labels with more": (3, {"kind": "labels", "noise": 1.0}, "exactly kind; got kind, noise"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_memory_and_in_a_file(name):
    outputs, head, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        Predictor(quieter(outputs), head, backend="numpy")
    if name != "infinite":  # which JSON cannot hold
        sound = to_bytes(Model(quieter(outputs), {"kind": "outputs"}))
        held = container.read_from(io.BytesIO(sound), len(sound), "model.bbn")
        forged = io.BytesIO()
        container.write_to(forged, {**held.header, "head": head}, held.arrays)
        with pytest.raises(CorruptFileError, match=words):
            from_bytes(forged.getvalue())


def test_names_of_labels():
    predictor = Predictor(quieter(3), {"kind": "labels"}, labels=["a", "b", "c"], backend="numpy")
    assert from_bytes(to_bytes(predictor.model)).model.labels == ("a", "b", "c")
    with pytest.raises(ValueError, match="each of 4 classes, got 3"):
        Model(quieter(1), {"kind": "ordinal", "cutpoints": CUTS.tolist()}, ("a", "b", "c"))
    for kind in HEADS:
        if kind not in ("classes", "ordinal", "labels"):
            head = {
                "kind": kind,
                **{"normal": {"noise": 1.0}, "negative_binomial": {"concentration": 1.0}}.get(
                    kind, {}
                ),
            }
            with pytest.raises(ValueError, match="classes or labels alone"):
                Model(quieter(1), head, ("a",))
            with pytest.raises(ValueError, match="use outputs"):
                Predictor(quieter(1), head, backend="numpy").log_probs(X)
