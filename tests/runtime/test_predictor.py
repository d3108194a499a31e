"""The predictor: float64 formulas, and the same bits for any blocks, chunks, threads and files."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from model_examples import (
    DRAWS,
    constant,
    convolution,
    perceptron,
    perceptron_outputs,
)

from bayesbin.runtime import backends, native_backend, reference
from bayesbin.runtime.predictions import ClassPrediction, NormalPrediction, OutputsPrediction
from bayesbin.runtime.predictor import Predictor, load
from bayesbin.runtime.preprocessing import bins_program, standardising_program
from bayesbin.runtime.program import Program, Step, Value

X = np.random.default_rng(0).standard_normal((7, 11)).astype(np.float32)
CLASSES = {"kind": "classes"}
QUANTITIES = (
    "log_probs",
    "probs",
    "probs_std",
    "entropy",
    "expected_entropy",
    "mutual_information",
)


def numpy_predictor(program: Program, head=CLASSES, **arguments) -> Predictor:
    return Predictor(program, head, backend="numpy", **arguments)


def assert_same(a, b) -> None:
    """Bit for bit."""
    assert type(a) is type(b)
    for name, value in vars(a).items():
        assert np.array_equal(value, getattr(b, name)), name


@pytest.mark.parametrize("site", ["drawn", "listed", "stored", "shared"])
def test_outputs_are_those_of_the_formula(site):
    program = perceptron(site=site)
    found = numpy_predictor(program).outputs(X)
    expected = perceptron_outputs(program, X.astype(float))
    assert found.dtype == np.float32 and found.shape == (DRAWS, 7, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # the draws differ


def test_classes_are_averaged_as_the_formulas_say():
    predictor = numpy_predictor(perceptron())
    logits = predictor.outputs(X).astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = predictor.predict(X)
    assert isinstance(found, ClassPrediction) and found.num_samples == DRAWS
    mean = probs.mean(0)
    entropies = -(probs * np.log(probs)).sum(-1)
    expected = {
        "probs": mean,
        "log_probs": np.log(mean),
        "entropy": -(mean * np.log(mean)).sum(-1),
        "expected_entropy": entropies.mean(0),
        "mutual_information": -(mean * np.log(mean)).sum(-1) - entropies.mean(0),
        "probs_std": probs.std(0),
        "std": probs.std(0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-11, atol=1e-13)
        assert getattr(found, name).dtype == np.float64
    np.testing.assert_allclose(predictor.log_probs(X), np.log(probs), rtol=1e-11, atol=1e-13)


def logits_of(rows: np.ndarray, draws: int) -> Program:
    """A program whose draws return rows of numbers, (draws, ...), for every input."""
    numbers = constant(rows, "f8", rows=range(draws))
    steps = (
        Step("mul", ("x", "zero"), ("none",), "f8"),
        Step("add", ("none", "rows"), ("y",), "f8"),
    )
    constants = {"zero": constant(0.0, "f8"), "rows": numbers}
    return Program({"x": Value((1,), "f8")}, constants, {}, steps, ("y",), draws)


def test_probabilities_beyond_the_range_of_float64_keep_their_logarithm():
    logits = np.array([[0.0, -2000.0], [0.0, -1000.0]])
    found = numpy_predictor(logits_of(logits, 2)).predict([[1.0]])
    assert found.log_probs[0, 1] == pytest.approx(-1000.0 - math.log(2.0), abs=1e-9)
    assert found.probs[0].tolist() == [1.0, 0.0] and found.entropy[0] == 0.0
    masked = numpy_predictor(logits_of(np.array([[0.0, -np.inf]]), 1)).predict([[1.0]])
    assert masked.probs[0].tolist() == [1.0, 0.0] and masked.mutual_information[0] == 0.0


def test_draws_that_agree_have_no_spread_at_all():
    logits = np.tile([0.3, -0.2, 1.7], (9, 1))
    found = numpy_predictor(logits_of(logits, 9)).predict([[1.0], [2.0]])
    assert not found.probs_std.any() and np.abs(found.mutual_information).max() < 1e-15
    found = numpy_predictor(logits_of(logits, 9), {"kind": "outputs"}).predict([[1.0]])
    assert found.mean[0].tolist() == [0.3, -0.2, 1.7] and not found.variance.any()


def test_a_softmax_is_taken_along_the_last_axis():
    logits = np.random.default_rng(0).standard_normal((4, 2, 3, 5))
    predictor = numpy_predictor(logits_of(logits, 4), labels=list("abcde"))
    found = predictor.predict([[1.0], [2.0]])
    assert found.probs.shape == (2, 2, 3, 5) and found.entropy.shape == (2, 2, 3)
    np.testing.assert_allclose(found.probs.sum(-1), 1.0, rtol=1e-12)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.probs[1], expected.mean(0), rtol=1e-12)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("noise", ["one", "per draw"])
def test_normal_targets(outputs, noise):
    program = perceptron(outputs=outputs)
    stds = np.float64(0.5) if noise == "one" else np.arange(1, DRAWS + 1) / 4
    head = {"kind": "normal", "noise": stds if noise == "one" else stds.tolist()}
    predictor = numpy_predictor(program, head)
    found = predictor.predict(X)
    y = predictor.outputs(X).astype(np.float64)
    y = y[..., 0] if outputs == 1 else y
    assert isinstance(found, NormalPrediction)
    np.testing.assert_allclose(found.mean, y.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.epistemic_variance, y.var(0), rtol=1e-10)
    np.testing.assert_allclose(found.aleatoric_variance, np.full(y[0].shape, np.mean(stds**2)))
    np.testing.assert_allclose(found.std**2, y.var(0) + np.mean(stds**2), rtol=1e-10)
    one = predictor.select([3])
    assert one.predict(X).aleatoric_variance.flat[0] == (0.25 if noise == "one" else 1.0)
    with pytest.raises(ValueError, match="use outputs"):
        predictor.log_probs(X)


def test_noise_per_target():
    head = {"kind": "normal", "noise": [[0.5, 2.0]]}
    found = numpy_predictor(perceptron(outputs=2), head).predict(X)
    assert found.aleatoric_variance.tolist() == [[0.25, 4.0]] * 7


def test_several_outputs():
    rng = np.random.default_rng(0)
    program = perceptron()
    both = Program(
        program.inputs, program.constants, program.sites, program.steps, ("y", "c"), DRAWS
    )
    predictor = numpy_predictor(both, {"kind": "outputs"})
    logits, hidden = predictor.outputs(rng.standard_normal((4, 11)))
    assert logits.shape == (DRAWS, 4, 3) and hidden.shape == (DRAWS, 4, 9)
    found = predictor.predict(X)
    assert isinstance(found, OutputsPrediction)
    y, c = predictor.outputs(X)
    np.testing.assert_allclose(found.mean[1], c.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.std[0], y.astype(float).std(0), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="one output for a head of kind 'classes', got 2"):
        numpy_predictor(both)


HEADS = [CLASSES, {"kind": "outputs"}, {"kind": "normal", "noise": 0.3}]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["kind"])
@pytest.mark.parametrize("make", [perceptron, convolution])
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_blocks_chunks_batches_threads_and_backends_change_no_bit(backend, make, head):
    if backend == "native" and not native_backend.available():
        pytest.skip(str(native_backend.why_not()))
    program = make(9)
    x = np.random.default_rng(1).standard_normal((13, *next(iter(program.inputs.values())).shape))
    whole = numpy_predictor(program, head, threads=2).predict(x)
    for rows, draws in ((1, 9), (4, 2), (13, 1), (5, 4)):
        other = Predictor(program, head, threads=1, backend=backend)
        other._network.rows, other._network.draws = rows, draws
        assert_same(whole, other.predict(x))
        assert np.array_equal(other.outputs(x), numpy_predictor(program, head).outputs(x))
    alone = Predictor(program, head, threads=3, backend=backend)
    for name in type(whole).__dataclass_fields__:
        if name != "num_samples":
            rows = [getattr(alone.predict(row[None]), name) for row in x]
            assert np.array_equal(np.concatenate(rows), getattr(whole, name))


def test_one_target_and_one_row_are_added_in_the_same_order_as_many():
    """With one number in all, numpy's sums would take another order."""
    rows = (
        np.random.default_rng(0).standard_normal((200, 1)) * 10.0 ** np.arange(200)[:, None] / 1e99
    )
    program = logits_of(rows, 200)
    one = numpy_predictor(program, {"kind": "outputs"}).predict(np.ones((1, 1)))
    many = numpy_predictor(program, {"kind": "outputs"}).predict(np.ones((300, 1)))
    assert one.mean[0] == many.mean[0] and one.variance[0] == many.variance[0]
    total = 0.0
    for row in rows[:, 0]:
        total += row - rows[0, 0]
    assert one.mean[0, 0] == rows[0, 0] + total / 200


def test_no_rows_and_no_memory():
    predictor = numpy_predictor(perceptron())
    none = predictor.predict(X[:0])
    assert none.probs.shape == (0, 3) and none.entropy.shape == (0,)
    assert predictor.outputs(X[:0]).shape == (DRAWS, 0, 3)


def test_draws_are_selected():
    predictor = numpy_predictor(perceptron(), labels=list("abc"), provenance={"from": "here"})
    some = predictor.select(np.array([4, 0]))
    assert some.labels == ("a", "b", "c") and some.provenance == {"from": "here"}
    assert np.array_equal(some.outputs(X), predictor.outputs(X)[[4, 0]])
    for wrong in ([], [5], [-1], [0.5]):
        with pytest.raises(ValueError, match="draws"):
            predictor.select(wrong)


def test_fast_sums_are_nearly_those():
    exact, fast = (numpy_predictor(perceptron(), precision=p) for p in ("exact", "fast"))
    difference = np.abs(exact.outputs(X) - fast.outputs(X)).max()
    assert 0 < difference < 1e-2 and fast.select([0]).precision == "fast"


def test_what_does_not_fit_is_refused():
    program = perceptron()
    for arguments, message in [
        (dict(head={"kind": "clases"}), "Did you mean 'classes'"),
        (dict(head={}), "a head with a kind"),
        (
            dict(head={"kind": "classes", "noise": 1}),
            r"exactly kind \(and class_dim if wanted\); got kind, noise",
        ),
        (
            dict(head={"kind": "normal"}),
            r"exactly kind, noise \(and heteroscedastic if wanted\); got kind",
        ),
        (dict(head={"kind": "normal", "noise": -1.0}), "noise to be a number above 0"),
        (dict(head={"kind": "normal", "noise": float("nan")}), "above 0"),
        (dict(head={"kind": "normal", "noise": [1.0, 2.0]}), "one for each of 5 draws"),
        (dict(head={"kind": "normal", "noise": "x"}), "standard deviation"),
        (dict(labels=["a", "b"]), "each of 3 classes, got 2"),
        (dict(labels="abc"), "labels that are text"),
        (dict(labels=[1, 2, 3]), "labels that are text"),
        (dict(head={"kind": "outputs"}, labels=["a"]), "labels for a head of classes"),
        (dict(precision="half"), "precision to be one of exact, fast"),
        (dict(backend="gpu"), "backend to be one of auto, native, numpy"),
        (dict(threads=0), "threads to be a whole number of at least 1"),
        (dict(preprocessing=program), "a program of one draw"),
        (dict(preprocessing=program.select([0])), r"inputs of \[\(11,\)\], got \[\(3,\)\]"),
    ]:
        arguments = {"head": CLASSES, "backend": "numpy", **arguments}
        with pytest.raises(ValueError, match=message):
            Predictor(program, **arguments)
    still = Program({"x": Value((1,), "f4")}, {"c": constant([1.0])}, {}, (), ("c",))
    with pytest.raises(ValueError, match="depend on its inputs"):
        numpy_predictor(still)


def test_without_kernels_numpy_predicts_and_one_warning_says_so(monkeypatch, tmp_path):
    class NoKernels:
        @staticmethod
        def why_not() -> str:
            return "There was no compiler."

    monkeypatch.setattr(backends, "_native_backend", lambda: NoKernels)
    monkeypatch.setattr(backends, "_warned", False)
    program = perceptron()
    path = numpy_predictor(program).save(tmp_path / "model.bbn")
    with pytest.warns(UserWarning, match="numpy predicts: .* There was no compiler") as caught:
        loaded = load(path)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path).backend == "numpy"
    assert_same(loaded.predict(X), numpy_predictor(program).predict(X))
    with pytest.raises(RuntimeError, match="There was no compiler"):
        Predictor(program, CLASSES, backend="native")


def test_what_a_predictor_says():
    predictor = numpy_predictor(perceptron(), threads=1)
    assert repr(predictor) == (
        "Predictor(5 draws, 126 binary weights, inputs 11, outputs 3, head classes; numpy, 1 thread)"
    )


def test_labels_preprocessing_and_provenance_are_added_or_saved_with(tmp_path):
    predictor = numpy_predictor(perceptron(), provenance={"run": "a"})
    scaled = (255.0, 0.5, 0.25)
    told = predictor.annotated(
        labels=["x", "y", "z"], preprocessing=scaled, provenance={"data": "b"}
    )
    assert predictor.labels is None and predictor.preprocessing is None
    assert told.labels == ("x", "y", "z") and told.provenance == {"run": "a", "data": "b"}
    raw = np.random.default_rng(1).integers(0, 256, (5, 11), dtype=np.uint8)
    inputs = (raw.astype(np.float32) / np.float32(255.0) - np.float32(0.5)) / np.float32(0.25)
    assert_same(told.predict(raw), predictor.predict(inputs))
    assert told.annotated(provenance={"run": "c"}).labels == told.labels
    path = predictor.save(tmp_path / "model.bbn", labels=["x", "y", "z"], preprocessing=scaled)
    loaded = load(path)
    assert loaded.labels == ("x", "y", "z") and loaded.provenance["run"] == "a"
    assert_same(loaded.predict(raw), told.predict(raw))
    with pytest.raises(ValueError, match="a label for each of 3 classes"):
        predictor.annotated(labels=["x"])


@pytest.mark.parametrize("edges", [None, [[0.0, 2.0, 10.0], [0.0, 1.0]]])
def test_columns_of_a_table_are_standardised(edges):
    table = np.array([[1.0, 0.25], [18.0, -3.0]])
    wide = np.array([[0.5, 0.0, 0.25], [1.0, 2.0, -3.0]]) if edges else table
    mean, std = np.arange(wide.shape[1]) + 0.1, np.arange(wide.shape[1]) + 0.7
    program = bins_program(edges, mean, std) if edges else standardising_program(mean, std)
    (found,) = reference.run(program, [table], [0])
    assert np.array_equal(found[0], ((wide - mean) / std).astype(np.float32))
    with pytest.raises(ValueError, match="std"):
        standardising_program([0.0], [0.0])
    with pytest.raises(ValueError, match="neither"):
        bins_program([[0.0, 1.0]], mean=[0.0])
