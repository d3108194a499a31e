"""The ONNX graph of a program: what onnxruntime makes of it, against the numpy backend."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from kind_cases import DRAWS, data_of, kinds_of, named_cases, program_of
from small_networks import layers

from bayesbin.compile import onnx_export
from bayesbin.compile.onnx_export import export_onnx, onnx_model
from bayesbin.compile.onnx_steps import EMIT
from bayesbin.core.canonical import pack_words
from bayesbin.runtime import reference
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Constant, Program, Step, StoredSite, Value

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")


def run(model, inputs) -> dict[str, np.ndarray]:
    session = runtime.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    names = [each.name for each in session.get_outputs()]
    given = dict(zip([each.name for each in session.get_inputs()], inputs, strict=True))
    return dict(zip(names, session.run(None, given), strict=True))


def test_every_kind_has_operators_and_a_case():
    assert set(EMIT) == set(KINDS) == kinds_of()


def is_drawn(case) -> bool:
    return bool({letter for letter, _ in filter(None, case.inputs)} & {"s", "d", "c", "pc"})


@pytest.mark.parametrize(
    "case, dtype, loop",
    [
        pytest.param(case, dtype, loop, id=f"{name}-{'loop' if loop else 'unrolled'}")
        for name, case, dtype in named_cases()
        for loop in (False, True)[: 1 + is_drawn(case)]
    ],
)
def test_a_kind_is_the_same_step(case, dtype, loop, monkeypatch):
    if loop:
        monkeypatch.setattr(onnx_export, "MOST_UNROLLED", 1)
    program = program_of(case, dtype)
    x = data_of(case, program, 3)
    expected = reference.run(program, x, range(DRAWS))
    found = run(onnx_model(onnx, Model(program, {"kind": "outputs"})), x)
    for place, want in enumerate(expected):
        have = found["outputs" if len(expected) == 1 else f"outputs_{place}"]
        assert have.dtype == want.dtype and have.shape == want.shape
        rounding = 2e-5 if dtype == "f4" else 1e-11
        np.testing.assert_allclose(have, want, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("draws", [1, 3, 12])
def test_draws_and_their_mean(draws):
    program = layers(draws)
    x = np.random.default_rng(1).normal(size=(6, 20)).astype(np.float32)
    (outputs,) = reference.run(program, [x], range(draws))
    found = run(onnx_model(onnx, Model(program, {"kind": "classes"})), [x])
    np.testing.assert_array_equal(found["outputs"], outputs)  # decisions, and exact sums after them
    logits = outputs.astype(np.float64)
    each = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    probs = each.mean(0)
    entropy = -(probs * np.log(probs)).sum(-1)
    information = entropy + (each * np.log(each)).sum(-1).mean(0)
    np.testing.assert_allclose(found["probs"], probs, rtol=1e-6)
    np.testing.assert_allclose(found["log_probs"], np.log(probs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["entropy"], entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["mutual_information"], information, rtol=1e-5, atol=1e-6)
    if draws > 1:
        assert information.max() > 0.01  # the draws are different networks


def test_what_no_draw_changes_is_there_once():
    model = onnx_model(onnx, Model(layers(3), {"kind": "classes"}))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Gemm") == 2 * 3  # two linear steps of each draw
    assert [w.name for w in model.graph.initializer].count("scale") == 1
    inputs = [node.input[0] for node in model.graph.node if node.op_type == "Mul"]
    assert inputs.count("x") == 1


def test_many_draws_of_weights_stay_small():
    """32 draws of 64 x 256 signs: 64 KiB of bits, where float32 would be 2 MiB."""
    rng = np.random.default_rng(0)
    bits = np.stack([pack_words(rng.random((64, 256)) < 0.5) for _ in range(32)])
    site = StoredSite((64, 256), bits, np.arange(32, dtype=np.int64))
    step = Step("linear", ("x", "w"), ("y",))
    program = Program({"x": Value((256,), "f4")}, {}, {"w": site}, (step,), ("y",), 32)
    model = onnx_model(onnx, Model(program, {"kind": "outputs"}))
    assert model.ByteSize() < 64 * 1024 + 4000
    few = onnx_model(onnx, Model(program.select([0, 1]), {"kind": "outputs"}))
    weights = [w for w in few.graph.initializer if w.name.startswith("w of draw")]
    assert [w.data_type for w in weights] == [onnx.TensorProto.INT8] * 2


def test_a_regressor_and_a_network_with_two_outputs():
    rng = np.random.default_rng(0)
    weight = Constant(rng.normal(size=(2, 1, 3)).astype(np.float32), np.arange(2))
    offset = Constant(np.array([[4.0]], np.float32))
    steps = (
        Step("linear", ("x", "w"), ("y",)),
        Step("sub", ("x", "x"), ("none",)),
        Step("add", ("none", "offset"), ("z",)),
    )
    constants = {"w": weight, "offset": offset}
    program = Program({"x": Value((3,), "f4")}, constants, {}, steps, ("y",), 2)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    (y,) = reference.run(program, [x], range(2))
    head = {"kind": "normal", "noise": np.array([0.1, 0.3])}
    found = run(onnx_model(onnx, Model(program, head)), [x])
    np.testing.assert_allclose(found["mean"], y[..., 0].mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["epistemic_variance"], y[..., 0].var(0), rtol=1e-5)
    np.testing.assert_allclose(found["aleatoric_variance"], np.full(5, 0.05), rtol=1e-6)
    two = Program({"x": Value((3,), "f4")}, constants, {}, steps, ("y", "z"), 2)
    found = run(onnx_model(onnx, Model(two, {"kind": "outputs"})), [x])
    assert found["outputs_1"].shape == (2, 5, 3) and (found["outputs_1"] == 4).all()
    np.testing.assert_allclose(found["variance_0"], y.var(0), rtol=1e-5)


def test_preprocessing_stands_in_front_unless_it_is_left_out():
    raw = {"pixels": Value((20,), "i8")}
    constants = {"k": Constant(np.array([1 / 16], np.float32))}
    before = Program(raw, constants, {}, (Step("mul", ("pixels", "k"), ("x",)),), ("x",), 1)
    model = Model(
        layers(), {"kind": "classes"}, ("a", "b", "c", "d", "e"), before, {"from": "a test"}
    )
    pixels = np.random.default_rng(0).integers(-16, 17, (4, 20))
    made = onnx_model(onnx, model)
    scaled = (pixels / 16).astype(np.float32)
    (expected,) = reference.run(model.program, [scaled], range(DRAWS))
    np.testing.assert_array_equal(run(made, [pixels])["outputs"], expected)
    bare = onnx_model(onnx, model, preprocessing=False)
    np.testing.assert_array_equal(run(bare, [scaled])["outputs"], expected)
    about = {each.key: each.value for each in made.metadata_props}
    assert about == {"draws": "3", "from": "a test", "labels": '["a", "b", "c", "d", "e"]'}


def test_a_predictor_and_its_file_are_the_same_graph(tmp_path):
    predictor = Predictor(layers(), {"kind": "classes"}, backend="numpy")
    predictor.save(tmp_path / "model.bbn")
    first = export_onnx(predictor, tmp_path / "first.onnx", draws=[2, 0])
    second = export_onnx(tmp_path / "model.bbn", tmp_path / "second.onnx", draws=[2, 0])
    assert first.read_bytes() == second.read_bytes()
    x = np.random.default_rng(1).normal(size=(6, 20)).astype(np.float32)
    expected = predictor.select([2, 0]).predict(x)
    found = run(str(first), [x])
    np.testing.assert_allclose(found["probs"], expected.probs, rtol=1e-6)
    np.testing.assert_allclose(found["entropy"], expected.entropy, rtol=1e-6)
    information = expected.mutual_information
    np.testing.assert_allclose(found["mutual_information"], information, rtol=1e-5, atol=1e-7)


def test_the_sign_of_0_is_plus_1_and_decisions_are_in_double():
    steps = (Step("linear", ("x", "w"), ("y",), "f8"), Step("sign", ("y",), ("z",)))
    weight = StoredSite((1, 3), pack_words(np.ones((1, 3), bool))[None])
    program = Program({"x": Value((3,), "f4")}, {}, {"w": weight}, steps, ("z",), 1)
    x = np.array([[0, 0, 0], [-0.0, -0.0, -0.0], [1e3, -1e-9, -1e3], [1, -2, 0]], np.float32)
    found = run(onnx_model(onnx, Model(program, {"kind": "outputs"})), [x])
    assert found["outputs"][0, :, 0].tolist() == [1, 1, -1, -1]


@pytest.mark.parametrize("kind", ["gelu", "mul", "softplus", "leaky_relu", "elu"])
def test_a_product_of_matrices_and_a_number_stay_in_double(kind):
    """onnxruntime fuses the two with the number in float32, unless it is kept from it."""
    attributes = {
        "gelu": {"approximate": "none"},
        "softplus": {"beta": 0.3, "threshold": 20.0},
        "leaky_relu": {"slope": 0.3},
        "elu": {"alpha": 1.0, "scale": 0.3, "input_scale": 0.3},
    }
    rng = np.random.default_rng(0)
    constants = {"w": Constant(rng.normal(size=(1, 4, 3))), "k": Constant(np.array([0.3]))}
    inputs = ("y", "k") if kind == "mul" else ("y",)
    steps = (
        Step("linear", ("x", "w"), ("y",), "f8"),
        Step(kind, inputs, ("z",), "f8", attributes.get(kind, {})),
    )
    for shape in ((3,), (2, 3)):
        program = Program({"x": Value(shape, "f8")}, constants, {}, steps, ("z",), 1)
        x = rng.normal(size=(5, *shape))
        (expected,) = reference.run(program, [x], [0])
        found = run(onnx_model(onnx, Model(program, {"kind": "outputs"})), [x])
        np.testing.assert_allclose(found["outputs"], expected, rtol=1e-13, atol=1e-14)


def test_a_kind_without_operators_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(EMIT, "threshold")
    with pytest.raises(ValueError, match=r"the kind 'threshold' .output 'signs'. has no operators"):
        onnx_model(onnx, Model(layers(), {"kind": "classes"}))


def test_weights_that_depend_on_the_data_are_refused():
    inputs = {"x": Value((3,), "f4"), "w": Value((3,), "f4")}
    steps = (Step("layer_norm", ("x", "w"), ("y",), "f4", {"axes": 1, "eps": 1e-5}),)
    program = Program(inputs, {}, {}, steps, ("y",), 1)
    with pytest.raises(
        ValueError, match=r"input 1 of 'layer_norm' .output 'y'. to be the same for"
    ):
        onnx_model(onnx, Model(program, {"kind": "outputs"}))


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'bayesbin\[onnx\]'"):
        export_onnx(tmp_path / "model.bbn", tmp_path / "model.onnx")
