"""The C source of a program: compiled without a warning, it computes what the numpy backend does."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from kind_cases import DRAWS, data_of, joined, kinds_of, named_cases, program_of
from small_networks import layers

from bayesbin.compile.c_source import c_files, export_c
from bayesbin.compile.c_steps import EMIT
from bayesbin.runtime import reference
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Constant, Program, Step, Value

CC = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="there is no C compiler")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off"]
# Kinds whose numbers are the same bits in all backends, see bayesbin.runtime.reference.
EXACT = set(
    "linear conv conv_transpose affine sign threshold relu clamp leaky_relu prelu abs neg floor round "
    "logical_not logical_and logical_or cast add sub mul maximum minimum greater greater_equal equal where "
    "max min max_pool avg_pool adaptive_max_pool reshape permute slice concat pad expand flip take "
    "embedding".split()
)


def compiled(
    folder: Path, files: dict[str, str], more: str = "", optimise: str = "-O2"
) -> ctypes.CDLL:
    folder.mkdir(exist_ok=True)
    for name, text in {**files, "more.c": '#include "model.h"\n' + more}.items():
        (folder / name).write_text(text)
    command = [str(CC), *STRICT, optimise, "-shared", "-fPIC", "model.c", "more.c"]
    command += ["-o", "model.so", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "model.so"))


def pointers(arrays) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def outputs_of(library: ctypes.CDLL, program: Program, inputs, draws) -> list[np.ndarray]:
    """As reference.run gives them."""
    rows = len(inputs[0])
    values = [program.values[name] for name in program.outputs]
    found = [np.full((len(draws), rows, *v.shape), 7, v.dtype) for v in values]
    for place, draw in enumerate(draws):
        for row in range(rows):
            given = [np.ascontiguousarray(array[row]) for array in inputs]
            arrays = [np.empty(v.shape, v.dtype) for v in values]
            assert library.bayesbin_outputs(draw, *pointers([*given, *arrays])) == 0
            for into, array in zip(found, arrays, strict=True):
                into[place, row] = array
    return found


def predicted(library: ctypes.CDLL, inputs, shapes) -> list[np.ndarray]:
    """Each result for each row."""
    rows = []
    for row in range(len(inputs[0])):
        given = [np.ascontiguousarray(array[row]) for array in inputs]
        arrays = [np.empty(shape) for shape in shapes]
        assert library.bayesbin_predict(*pointers([*given, *arrays])) == 0
        rows.append(arrays)
    return [np.stack(each) for each in zip(*rows, strict=True)]


TOGETHER = 30  # cases that are compiled as one program


@pytest.fixture(scope="module")
def outputs_of_case(tmp_path_factory):
    """A function from a case's name to what C and the numpy backend make of it."""
    named, known = named_cases(), {}
    places = {name: place for place, (name, _, _) in enumerate(named)}

    def outputs(name: str, output: str):
        if f"{name}.{output}" not in known:
            first = places[name] // TOGETHER * TOGETHER
            some = named[first : first + TOGETHER]
            programs = {each: program_of(case, dtype) for each, case, dtype in some}
            program = joined(programs)
            x = [x for each, case, _ in some for x in data_of(case, programs[each], 2)]
            files = c_files(Model(program, {"kind": "outputs"}))
            library = compiled(tmp_path_factory.mktemp("kinds"), files, optimise="-O1")
            found = outputs_of(library, program, x, range(DRAWS))
            expected = reference.run(program, x, range(DRAWS))
            pairs = zip(found, expected, strict=True)
            known.update(zip(program.outputs, pairs, strict=True))
        return known[f"{name}.{output}"]

    return outputs


def test_every_kind_is_in_c_and_has_a_case():
    assert set(EMIT) == set(KINDS) == kinds_of()


@pytest.mark.parametrize(
    "name, case, dtype", [pytest.param(*each, id=each[0]) for each in named_cases()]
)
def test_a_kind_is_the_same_step(outputs_of_case, name, case, dtype):
    for place in range(case.outputs):
        found, expected = outputs_of_case(name, f"out{place}")
        if case.kind in EXACT or (case.kind, dtype) == ("tanh", "f4"):
            np.testing.assert_array_equal(found, expected)
        else:
            rounding = 1e-6 if dtype == "f4" else 1e-13
            np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("draws", [1, 3, 12])
def test_a_classifier_predicts_as_the_predictor_does(draws, tmp_path):
    predictor = Predictor(layers(draws), {"kind": "classes"}, labels=list("abcde"), backend="numpy")
    files = c_files(predictor.model)
    library = compiled(tmp_path / "c", files)
    x = np.random.default_rng(1).normal(size=(6, 20)).astype(np.float32)
    (found,) = outputs_of(library, predictor.program, [x], range(draws))
    np.testing.assert_array_equal(found, predictor.outputs(x))
    expected = predictor.predict(x)
    probs, entropy, information = predicted(library, [x], [(5,), (), ()])
    np.testing.assert_allclose(probs, expected.probs, rtol=1e-12)
    np.testing.assert_allclose(entropy, expected.entropy, rtol=1e-12)
    np.testing.assert_allclose(information, expected.mutual_information, rtol=1e-9, atol=1e-12)
    if draws > 1:
        assert information.max() > 0.01  # the draws are different networks
    assert library.bayesbin_outputs(draws, *pointers([x, found])) == 1  # no such draw
    assert "a, b, c, d, e" in files["model.h"]


def test_signs_are_stored_or_drawn_again_whichever_is_smaller():
    few, many = (c_files(Model(layers(n), {"kind": "classes"}))["model.c"] for n in (2, 40))
    assert "drawn_words(" not in few and "drawn_words(" in many
    assert len(many) - len(c_files(Model(layers(39), {"kind": "classes"}))["model.c"]) < 4000


def test_a_regressor_has_the_bits_of_the_predictor(tmp_path):
    rng = np.random.default_rng(0)
    weight = Constant(rng.normal(size=(4, 2, 3)).astype(np.float32), np.arange(4))
    step = Step("linear", ("x", "w"), ("y",))
    program = Program({"x": Value((3,), "f4")}, {"w": weight}, {}, (step,), ("y",), 4)
    head = {"kind": "normal", "noise": [0.1, 0.3, 0.2, 0.7]}
    predictor = Predictor(program, head, backend="numpy")
    library = compiled(tmp_path / "c", c_files(predictor.model))
    x = rng.normal(size=(5, 3)).astype(np.float32)
    expected = predictor.predict(x)
    mean, aleatoric, epistemic = predicted(library, [x], [(2,)] * 3)
    np.testing.assert_array_equal(mean, expected.mean)
    np.testing.assert_array_equal(aleatoric, expected.aleatoric_variance)
    np.testing.assert_array_equal(epistemic, expected.epistemic_variance)


def test_several_inputs_and_outputs_and_tokens_out_of_range(tmp_path):
    rng = np.random.default_rng(0)
    inputs = {"tokens": Value((3,), "i8"), "keep": Value((2,), "b1"), "class": Value((2,), "f8")}
    constants = {"table": Constant(rng.normal(size=(1, 4, 2)).astype(np.float32))}
    steps = (
        Step("embedding", ("tokens", "table"), ("found",)),
        Step("where", ("keep", "found", "class"), ("kept",)),
        Step("sum", ("class",), ("total",), "f8", {"axes": (0,), "keep": False}),
    )
    program = Program(inputs, constants, {}, steps, ("kept", "total"), 1)
    predictor = Predictor(program, {"kind": "outputs"}, backend="numpy")
    library = compiled(tmp_path / "c", c_files(predictor.model))
    x = [rng.integers(0, 4, (5, 3)), rng.random((5, 2)) < 0.5, rng.normal(size=(5, 2))]
    expected = predictor.predict(tuple(x))
    found = predicted(library, x, [(3, 2), (3, 2), (), ()])
    for have, want in zip(found[::2], expected.mean, strict=True):
        np.testing.assert_array_equal(have, want)
    outside = [np.array([0, 1, 4]), x[1][0].copy(), x[2][0].copy()]
    assert library.bayesbin_predict(*pointers(outside), None, None, None, None) == 1
    outside[0][2] = -1
    assert library.bayesbin_predict(*pointers(outside), None, None, None, None) == 1
    outside[0][2] = 3
    assert library.bayesbin_predict(*pointers(outside), None, None, None, None) == 0


def with_pixels(draws: int = DRAWS) -> Predictor:
    constants = {"k": Constant(np.array([1 / 16], np.float32))}
    step = Step("mul", ("pixels", "k"), ("x",))
    before = Program({"pixels": Value((20,), "i8")}, constants, {}, (step,), ("x",), 1)
    return Predictor(layers(draws), {"kind": "classes"}, preprocessing=before, backend="numpy")


def test_preprocessing_stands_in_front_unless_it_is_left_out(tmp_path):
    predictor = with_pixels()
    pixels = np.random.default_rng(0).integers(-16, 17, (4, 20))
    expected = predictor.predict(pixels).probs
    for name, whether, x in (("raw", True, pixels), ("net", False, np.float32(pixels / 16))):
        library = compiled(tmp_path / name, c_files(predictor.model, preprocessing=whether))
        np.testing.assert_allclose(predicted(library, [x], [(5,), (), ()])[0], expected, rtol=1e-12)


def test_the_example_reads_numbers_and_prints_predictions(tmp_path):
    predictor = with_pixels()
    predictor.save(tmp_path / "model.bbn")
    folder = export_c(tmp_path / "model.bbn", tmp_path / "deep" / "c", draws=[2, 1])
    command = [str(CC), *STRICT, "-O2", "model.c", "main.c", "-o", "predict", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    pixels = np.random.default_rng(0).integers(-16, 17, (3, 20))
    numbers = " ".join(map(str, pixels.ravel()))
    printed = subprocess.run(
        [folder / "predict"], input=numbers, capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines] == ["probs", "entropy", "mutual_information"] * 3
    expected = predictor.select([2, 1]).predict(pixels)
    probs = np.array([line[1:] for line in lines[::3]], dtype=float)
    np.testing.assert_allclose(probs, expected.probs, rtol=1e-12)


@pytest.mark.parametrize(
    "numbers, said", [("1 2 3", "got 3"), ("1 " * 25, "got 5"), ("1 x", "got 1")]
)
def test_the_example_says_when_numbers_are_missing(numbers, said, tmp_path):
    folder = export_c(with_pixels(1), tmp_path / "c")
    command = [str(CC), *STRICT, "model.c", "main.c", "-o", "predict", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    run = subprocess.run([folder / "predict"], input=numbers, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == f"expected 20 numbers for a datum, {said}\n"


def test_names_are_no_danger_to_comments_and_identifiers(tmp_path):
    step = Step("neg", ("*/ int \n/* x",), ("**//",))
    program = Program({"*/ int \n/* x": Value((2, 3), "f4")}, {}, {}, (step,), ("**//",), 1)
    model = Model(program, {"kind": "classes"}, ("*/ #error", "/* é", "??/\n"))
    library = compiled(tmp_path / "c", c_files(model))
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    np.testing.assert_array_equal(outputs_of(library, program, [x], [0])[0][0], -x)


def test_a_workspace_of_ones_own_is_all_that_is_written(tmp_path):
    predictor = with_pixels()
    library = compiled(
        tmp_path / "c",
        c_files(predictor.model),
        "int64_t size_of_workspace(void);\n"
        "int64_t size_of_workspace(void) { return (int64_t)sizeof(bayesbin_workspace); }\n",
    )
    library.size_of_workspace.restype = ctypes.c_int64
    size = library.size_of_workspace()
    pixels = np.random.default_rng(0).integers(-16, 17, (2, 20))
    expected = predictor.predict(pixels).probs
    for row in range(2):
        room, probs = np.full(size + 64, 85, np.uint8), np.empty(5)
        assert library.bayesbin_predict_in(*pointers([room, pixels[row], probs]), None, None) == 0
        np.testing.assert_allclose(probs, expected[row], rtol=1e-12)
        assert (room[size:] == 85).all() and (room[:size] != 85).any()


def test_values_that_are_not_needed_at_once_share_their_place(tmp_path):
    names = ["x", *(f"h{k}" for k in range(30))]
    steps = [Step("abs" if k % 2 else "neg", (a,), (b,))
             for k, (a, b) in enumerate(pairwise(names))]  # fmt: skip
    steps.append(Step("add", ("h0", "h29"), ("y",)))  # the first stays to the end
    program = Program({"x": Value((1000,), "f4")}, {}, {}, tuple(steps), ("y",), 1)
    files = c_files(Model(program, {"kind": "outputs"}))
    (room,) = [int(line.split("[")[1].split("]")[0]) for line in files["model.h"].splitlines()
               if "float f4" in line]  # fmt: skip
    assert room == 3000  # the first, and two at a time
    x = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    (found,) = outputs_of(compiled(tmp_path / "c", files), program, [x], [0])
    np.testing.assert_array_equal(found, reference.run(program, [x], [0])[0])


def test_what_is_shared_by_draws_stays_while_they_are_computed(tmp_path):
    """A value of the shared steps that the last step of a draw reads must survive all draws."""
    rows = np.arange(5, dtype=np.int64)
    constants = {"k": Constant(np.arange(5, dtype=np.float32).reshape(5, 1), rows)}
    steps = (
        Step("neg", ("x",), ("shared",)),
        Step("mul", ("x", "k"), ("a",)),
        Step("exp", ("a",), ("b",)),
        Step("sub", ("b", "a"), ("c",)),
        Step("add", ("c", "shared"), ("y",)),
    )
    program = Program({"x": Value((50,), "f4")}, constants, {}, steps, ("y",), 5)
    predictor = Predictor(program, {"kind": "outputs"}, backend="numpy")
    library = compiled(tmp_path / "c", c_files(predictor.model))
    x = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    mean, variance = predicted(library, [x], [(50,), (50,)])
    np.testing.assert_allclose(mean, predictor.predict(x).mean, rtol=1e-6)
    np.testing.assert_allclose(variance, predictor.predict(x).variance, rtol=1e-5)


def test_numbers_are_the_same_bits_in_c(tmp_path):
    """Constants with digits to the last, subnormal, huge, infinite and NaN."""
    for dtype in (np.float32, np.float64):
        info = np.finfo(dtype)
        numbers = np.array(
            [math.pi, -1 / 3, info.max, info.tiny, info.smallest_subnormal, 1e22, 123456.789, -0.0,
             np.inf, -np.inf, np.nan, 5e-5, 16777217.0],
            dtype,
        )  # fmt: skip
        kind = np.dtype(dtype).str[1:]
        steps = (Step("where", ("all", "k", "x"), ("y",), kind),)
        constants = {"k": Constant(numbers[None]), "all": Constant(np.ones((1, 1), bool))}
        program = Program({"x": Value((13,), kind)}, constants, {}, steps, ("y",), 1)
        library = compiled(tmp_path / kind, c_files(Model(program, {"kind": "outputs"})))
        (found,) = outputs_of(library, program, [np.zeros((1, 13), dtype)], [0])
        bits = np.uint32 if kind == "f4" else np.uint64
        np.testing.assert_array_equal(found[0, 0].view(bits), numbers.view(bits))


def test_a_kind_that_is_not_in_c_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(EMIT, "threshold")
    with pytest.raises(ValueError, match=r"the step 'threshold' \(output 'signs'\) has no C"):
        c_files(Model(layers(), {"kind": "classes"}))
