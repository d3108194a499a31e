"""What inputs mean: raw or not, of which shape, and what is refused or warned of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from model_examples import convolution, perceptron, raw_inputs, varied

from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.preprocessing import bins_program, scaling_program
from bayesbin.runtime.program import Program, Step, Value

CLASSES = {"kind": "classes"}
DIVISOR, MEAN, STD = 255.0, 0.1306604762738429, 0.30810781717887855
X = np.random.default_rng(0).standard_normal((5, 11))
IMAGES = np.random.default_rng(1).standard_normal((4, 2, 5, 6))


def predictor_of(program: Program, preprocessing: Program | None = None) -> Predictor:
    return Predictor(program, CLASSES, preprocessing=preprocessing, backend="numpy")


@pytest.fixture
def plain() -> Predictor:
    return predictor_of(perceptron())


@pytest.fixture
def pixels() -> Predictor:
    return predictor_of(perceptron(), scaling_program((DIVISOR, MEAN, STD), (11,)))


@pytest.fixture
def images() -> Predictor:
    return predictor_of(convolution())


# Numbers


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", ">f4", "bool", "int8", "uint16"]
)
def test_numbers_of_any_type_go_in_as_they_are_without_preprocessing(plain, dtype):
    x = np.random.default_rng(0).integers(0, 2, (5, 11)).astype(dtype)
    expected = plain.predict(x.astype(np.float32)).probs
    for same in (x, np.asfortranarray(x), np.repeat(x, 2, 0)[::2], x.tolist(), list(x)):
        assert np.array_equal(plain.predict(same).probs, expected)


def test_tensors_are_arrays(plain):
    x = torch.from_numpy(X).float()
    expected = plain.predict(x.numpy()).probs
    for same in (x, x.double(), x.clone().requires_grad_(), torch.nn.Parameter(x)):
        assert np.array_equal(plain.predict(same).probs, expected)
    half = x.to(torch.bfloat16)  # a type that numpy does not have
    assert np.array_equal(plain.predict(half).probs, plain.predict(half.float()).probs)


def test_what_is_no_number_is_refused(plain):
    for wrong in (
        X.astype(str),
        X.astype(complex),
        X.astype(object),
        [["a"] * 11],
        [[1.0], [1.0, 2.0]],
        None,
    ):
        with pytest.raises(ValueError, match="expected inputs that are"):
            plain.predict(wrong)
    for bad in (np.nan, np.inf, -np.inf, 1e39):
        with pytest.raises(
            ValueError, match="finite inputs, got NaN, infinity or numbers beyond float32"
        ):
            plain.predict(np.where(np.arange(11) == 3, bad, X))


# Shapes


def test_shapes_that_differ_by_flattening_or_by_axes_of_one_are_reshaped(plain, images):
    expected = plain.predict(X).probs
    for shape in ((5, 11, 1), (5, 1, 11), (5, 1, 1, 11)):
        assert np.array_equal(plain.predict(X.reshape(shape)).probs, expected)
    expected = images.predict(IMAGES).probs
    for shape in ((4, 60), (4, 1, 2, 5, 6)):
        assert np.array_equal(images.predict(IMAGES.reshape(shape)).probs, expected)
    row = predictor_of(perceptron())
    assert np.array_equal(row.predict(X[:, None, :, None]).probs, row.predict(X).probs)


def test_a_datum_without_a_batch_is_refused_with_what_to_do(plain, images):
    for predictor, x in (
        (plain, X[0]),
        (images, IMAGES[0]),
        (images, IMAGES[0].reshape(-1)),
        (images, IMAGES[0][:, None]),
    ):
        with pytest.raises(ValueError, match=r"without a batch; pass x\[None\]"):
            predictor.predict(x)
    assert plain.predict(X[:1, :, None]).probs.shape == (1, 3)


def test_other_shapes_are_refused(plain, images):
    for wrong in (X[:, :9], X.T, np.zeros(()), np.zeros((2, 3, 4)), np.zeros(7)):
        with pytest.raises(ValueError, match=r"shape \(B, 11\), got"):
            plain.predict(wrong)
    for wrong in (IMAGES[:, :1], IMAGES.transpose(0, 1, 3, 2), IMAGES.reshape(4, 5, 12)):
        with pytest.raises(ValueError, match=r"shape \(B, 2, 5, 6\), got"):
            images.predict(wrong)


def colours(shape: tuple[int, ...]) -> Predictor:
    steps = (
        Step("reshape", ("x",), ("row",), attributes={"shape": (96,)}),
        Step("slice", ("row",), ("y",), attributes={"axis": 0, "start": 0, "stop": 9, "step": 1}),
    )
    return predictor_of(Program({"x": Value(shape, "f4")}, {}, {}, steps, ("y",)))


def test_images_with_their_channels_last_are_not_flattened_in_silence():
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 3))
    for predictor in (colours((3, 4, 8)), colours((96,))):
        with pytest.raises(ValueError, match=r"channels come last; .* np.moveaxis\(x, -1, 1\)"):
            predictor.predict(x)
        assert predictor.predict(np.moveaxis(x, -1, 1)).probs.shape == (2, 9)


def test_numbers_for_single_features_need_no_axis():
    predictor = predictor_of(
        Program({"x": Value((1,), "f4")}, {}, {}, (Step("neg", ("x",), ("y",)),), ("y",))
    )
    assert np.array_equal(predictor.outputs([1.0, 2.0])[0], [[-1.0], [-2.0]])


# Raw inputs


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16"])
def test_whole_numbers_are_raw_and_are_preprocessed_as_for_training(pixels, plain, dtype):
    raw = np.random.default_rng(0).integers(0, 256, (5, 11)).astype(dtype)
    divisor, mean, std = (torch.tensor(n, dtype=torch.float32) for n in (DIVISOR, MEAN, STD))
    inputs = (torch.from_numpy(raw.astype("int64")).float().div_(divisor) - mean).div_(std)
    expected = plain.outputs(inputs)
    assert np.array_equal(pixels.outputs(raw), expected)
    assert np.array_equal(pixels.outputs(raw.astype(float), preprocess=True), expected)
    as_is = plain.outputs(raw.astype("float32"))
    assert np.array_equal(pixels.outputs(raw, preprocess=False), as_is)
    assert not np.array_equal(as_is, expected)
    assert pixels.is_raw(raw) and not pixels.is_raw(X)


def test_whole_numbers_in_floats_are_raw_pixels_and_one_warning_says_so(pixels):
    """Digits come as floats from 0 to 16."""
    raw = np.random.default_rng(0).integers(0, 17, (5, 11)).astype(float)
    with pytest.warns(UserWarning, match="taken for raw pixels .* preprocess=True if") as caught:
        found = pixels.predict(raw)
    assert len(caught) == 1
    assert np.array_equal(found.probs, pixels.predict(raw.astype(int)).probs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels.predict(raw).probs, found.probs)  # it was said
        assert np.array_equal(pixels.predict(raw, preprocess=True).probs, found.probs)


def test_floats_that_have_been_preprocessed_go_in_as_they_are(pixels, plain):
    for x in (X, np.zeros((2, 11)), np.sign(X), np.abs(np.sign(X))):
        assert np.array_equal(pixels.predict(x).probs, plain.predict(x).probs)


def test_floats_far_outside_the_standardised_range_are_warned_of_once(pixels):
    x = np.abs(X) * 100.0
    with pytest.warns(UserWarning, match="far outside the standardised range") as caught:
        pixels.predict(x)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels.predict(x)
        pixels.predict(x, preprocess=True)


def test_every_number_of_a_table_is_raw(plain):
    edges = [[0.0, 1.0, 2.0]] * 5 + [[0.0, 4.0]]
    predictor = predictor_of(perceptron(), bins_program(edges))
    table = np.random.default_rng(0).standard_normal((3, 6))
    assert predictor.is_raw(table) and predictor.is_raw(table.round())
    bars = predictor.predict(table)
    assert bars.probs.shape == (3, 3)
    with pytest.raises(ValueError, match=r"shape \(B, 6\), got"):
        predictor.predict(X)
    assert np.array_equal(predictor.predict(X, preprocess=False).probs, plain.predict(X).probs)


def test_preprocessing_that_there_is_not_is_refused(plain):
    with pytest.raises(ValueError, match="has no preprocessing"):
        plain.predict(X, preprocess=True)
    with pytest.raises(ValueError, match="preprocess to be True or False"):
        plain.predict(X, preprocess=1)
    assert not plain.is_raw(np.ones((1, 11), int))


# Several inputs


def test_several_inputs_come_as_a_tuple_or_by_their_names():
    predictor = predictor_of(varied(), raw_inputs())
    x = np.random.default_rng(0).standard_normal((3, 2, 6, 6))
    tokens = np.random.default_rng(0).integers(0, 5, (3, 4))
    expected = predictor.predict((x, tokens)).probs
    for same in ([x, tokens], {"t": tokens, "x": x}, {"pixels": x, "tokens": tokens}):
        assert np.array_equal(predictor.predict(same).probs, expected)
    raw = (8 * np.abs(x)).astype(int)
    channels = np.array([2.0, 4.0]).reshape(2, 1, 1)
    assert np.array_equal(
        predictor.predict((raw, tokens)).probs, predictor.predict((raw / channels, tokens)).probs
    )
    for wrong, message in [
        (x, "a tuple of 2 inputs"),
        ((x,), "a tuple of 2 inputs"),
        ({"x": x}, "by the names x, t, got x"),
        ((x, tokens[:2]), "the same number of rows"),
        ((x, tokens.astype(float)), "whole numbers for the input 't'"),
        ((x, tokens > 2), "whole numbers for the input 't'"),
        ((x, np.full((3, 4), 2**64 - 1, dtype=np.uint64)), "64 bits"),
    ]:
        with pytest.raises(ValueError, match=message):
            predictor.predict(wrong)
    with pytest.raises(ValueError, match=r"indices of 0 to 4, got .* to 9"):
        predictor.predict((x, np.full((3, 4), 9)))
    with pytest.raises(ValueError, match="indices"):
        predictor.predict((x, np.full((3, 4), -1)))


def test_one_input_may_come_by_its_name(plain):
    assert np.array_equal(plain.predict({"x": X}).probs, plain.predict(X).probs)
