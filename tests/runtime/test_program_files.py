"""Model files: every bit comes back, and whatever is wrong with a file is one error of one class."""

from __future__ import annotations

import copy
import hashlib
import json
import resource
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_examples import DRAWS, constant, convolution, perceptron, raw_inputs, varied

from bayesbin.core.canonical import num_words
from bayesbin.core.files import CorruptFileError
from bayesbin.runtime import files, native_backend
from bayesbin.runtime.effort import check_effort
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Program, Step, StoredSite, Value

FIXED = 56
X = np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32)
TOKENS = np.random.default_rng(0).integers(0, 5, (3, 4))


def model() -> Model:
    labels: Any = ["a", "b", "c"]
    return Model(varied(), {"kind": "classes"}, labels, raw_inputs(), {"from": "µ", "n": [1, 0.1]})


def predictor_of(found: Model, backend: str = "numpy") -> Predictor:
    return Predictor(
        found.program,
        found.head,
        labels=found.labels,
        preprocessing=found.preprocessing,
        provenance=found.provenance,
        precision=found.precision,
        backend=backend,
        threads=1,
    )


def answer(found: Model) -> np.ndarray:
    return predictor_of(found).outputs((X, TOKENS), preprocess=False)


@pytest.mark.parametrize("contents", ["draws", "posterior"])
def test_a_round_trip_keeps_every_bit(contents, tmp_path):
    before = model()
    path = files.save(tmp_path / "model.bbn", before, contents)
    found = files.read(path)
    assert np.array_equal(answer(found.model), answer(before))
    assert found.contents == contents and found.size == path.stat().st_size
    for name in ("head", "labels", "provenance", "precision"):
        assert getattr(found.model, name) == getattr(before, name)
    program, expected = found.model.program, before.program
    assert program.steps == expected.steps and program.inputs == expected.inputs
    for name, value in expected.constants.items():
        assert np.array_equal(program.constants[name].data, value.data)
        assert program.constants[name].levels == value.levels
        assert program.constants[name].dtype == value.dtype
    for name, site in expected.sites.items():
        for draw in range(DRAWS):
            assert np.array_equal(program.sites[name].words(draw), site.words(draw))
        drawn = type(program.sites[name]) is type(site)
        assert drawn == (contents == "posterior" or name == "last")
    raw = 2 * np.abs(X).astype(np.int64), TOKENS
    a, b = (predictor_of(each).predict(raw) for each in (found.model, before))
    assert np.array_equal(a.log_probs, b.log_probs)


@pytest.mark.parametrize("contents", ["draws", "posterior"])
def test_the_same_model_is_the_same_bytes_also_when_read_and_written_again(contents, tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    files.save(first, model(), contents)
    files.save(second, model(), contents)
    files.save(third, files.read(first).model, contents)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_a_bit_per_weight_and_draw_or_17_per_weight(tmp_path):
    rng, shape = np.random.default_rng(0), (30, 50)
    sites: dict = {
        "w": StoredSite(shape, np.zeros((1, 30, num_words(50)), dtype=np.uint64)),
    }
    steps = (Step("linear", ("x", "w"), ("y",)),)
    shared = Program({"x": Value((50,), "f4")}, {}, sites, steps, ("y",), 64)
    head = {"kind": "outputs"}
    path = files.save(tmp_path / "shared", Model(shared, head))
    assert files.read(path).array_bytes == {"program/w.bits": -(-1500 // 8)}
    from model_examples import drawn_site

    drawn = Program(shared.inputs, {}, {"w": drawn_site(rng, shape, 64)}, steps, ("y",), 64)
    path = files.save(tmp_path / "draws", Model(drawn, head))
    assert files.read(path).array_bytes == {"program/w.bits": 64 * -(-1500 // 8)}
    path = files.save(tmp_path / "posterior", Model(drawn, head), "posterior")
    sizes = {"mode": -(-1500 // 8), "flip": 3000, "keys": 8 * 64}
    assert files.read(path).array_bytes == {f"program/w.{k}": v for k, v in sizes.items()}


@pytest.mark.parametrize("inputs", [1, 3, 8, 24, 63, 64, 65, 100, 128])
def test_tight_bits_are_those_of_words(inputs):
    rng = np.random.default_rng(inputs)
    plus = rng.random((2, 5, inputs)) < 0.5
    from bayesbin.core.canonical import pack_words

    words = np.stack([pack_words(each) for each in plus])
    tight = np.stack([files.tight_of(each, (5, inputs)) for each in words])
    bits = np.unpackbits(tight, axis=1, bitorder="little")[:, : 5 * inputs]
    assert np.array_equal(bits.reshape(2, 5, inputs).astype(bool), plus)
    assert np.array_equal(files.words_of(tight, (5, inputs)), words)


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    stored = Model(perceptron(site="stored"), {"kind": "classes"})
    for found, contents, message in [
        (stored, "posterior", "signs of its draws alone"),
        (stored, "all", "contents to be one of draws, posterior"),
        (Model(perceptron(), {"kind": "classes"}, provenance={"x": object()}), "draws", "JSON"),
        (Model(not_a_number(), {"kind": "outputs"}), "draws", "numbers in 'c', got NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            files.save(tmp_path / "model.bbn", found, contents)
    assert not list(tmp_path.iterdir())


def not_a_number() -> Program:
    steps = (Step("add", ("x", "c"), ("y",)),)
    numbers = {"c": constant([0.0, np.nan])}
    return Program({"x": Value((2,), "f4")}, numbers, {}, steps, ("y",))


def test_infinity_is_a_threshold_that_no_value_reaches(tmp_path):
    steps = (Step("threshold", ("x", "t", "d"), ("y",), attributes={"axis": 0}),)
    numbers = {"t": constant([-np.inf, np.inf], "f8"), "d": constant([1.0, 1.0], "f8")}
    program = Program({"x": Value((2,), "f4")}, numbers, {}, steps, ("y",))
    path = files.save(tmp_path / "model.bbn", Model(program, {"kind": "outputs"}))
    found = predictor_of(files.read(path).model).outputs([[0.0, 0.0]])
    assert found.tolist() == [[[1.0, -1.0]]]


# Damage


def signed(raw: bytes) -> bytes:
    """The same with its length and a digest that fit: damage that only the other checks can find."""
    raw = raw[:16] + struct.pack("<Q", len(raw)) + raw[24:]
    return raw[:24] + hashlib.sha256(raw[:24] + raw[FIXED:]).digest() + raw[FIXED:]


def header_of(raw: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", raw, 12)
    return json.loads(raw[FIXED : FIXED + length])


def chunks_of(raw: bytes) -> list[bytes]:
    return [
        raw[a["offset"] : a["offset"] + int(np.prod(a["shape"])) * np.dtype(a["dtype"]).itemsize]
        for a in header_of(raw)["arrays"]
    ]


def rebuilt(header: Any, chunks: list[bytes]) -> bytes:
    """A sound container of a header, whatever is in it, and arrays where it would have them."""
    arrays = header.get("arrays") if isinstance(header, dict) else None
    entries = arrays if isinstance(arrays, list) else []
    text, body = b"", b""
    for _ in range(4):  # until the offsets have settled
        end, body = FIXED + len(text), b""
        for place, chunk in enumerate(chunks):
            start = -(-end // 64) * 64
            body += bytes(start - end) + chunk
            end = start + len(chunk)
            if place < len(entries) and isinstance(entries[place], dict):
                entries[place]["offset"] = start
        text = json.dumps(header).encode()
    return signed(
        struct.pack("<8sIIQ32s", b"\x89BBN\r\n\x1a\n", 2, len(text), 0, b"") + text + body
    )


def put(path: Path, raw: bytes) -> None:
    """The same file with other contents: making a new one takes longer than all that is tested here."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(raw)
        file.truncate()


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("files")
    normal = {"kind": "normal", "noise": [0.5] * DRAWS}
    return [
        files.save(folder / "a", model(), "posterior").read_bytes(),
        files.save(folder / "b", model(), "draws").read_bytes(),
        files.save(folder / "c", Model(perceptron(outputs=1), normal), "posterior").read_bytes(),
        files.save(folder / "d", Model(convolution(), {"kind": "outputs"})).read_bytes(),
    ]


def test_a_header_written_again_is_read(originals, tmp_path):
    for raw in originals:
        again = rebuilt(header_of(raw), chunks_of(raw))
        assert again != raw  # with spaces
        put(tmp_path / "file", again)
        assert files.read(tmp_path / "file").model.program.num_draws == DRAWS


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes overwritten, one bit flipped, a piece cut out, doubled or added, or two exchanged."""
    data = bytearray(raw)
    place, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
    noise = rng.bytes(size)
    kind = rng.integers(6)
    if kind == 0:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[place : place + size] = noise[: len(data) - place]
    elif kind == 2:
        del data[place : place + size]
    elif kind == 3:
        data[place:place] = data[place : place + size]
    elif kind == 4:
        data[place:place] = noise
    else:
        other = int(rng.integers(len(data)))
        data[place], data[other] = data[other], data[place]
    return bytes(data)


VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, -1, 64, 255, 1000, 65_536, 10**6, 2**24, 2**31, 10**18, 10**40,
    0.5, -1.5, 1e308, 1e-320, "", "x", "y", "first", "own", "listed", "f8", "i8", "b1", "levels", "\x00",
    "ü" * 50, [], {}, [0], [1, 1], [2, 2], [[1, 1], [1, 1]], [[0, 4096]] * 2, {"kind": "outputs"}, [[[]]],
]  # fmt: skip


def places_of(thing: Any) -> Iterator[tuple[Any, Any]]:
    """Every key or index in a header, with what it is in."""
    if isinstance(thing, (dict, list)):
        for key in list(thing) if isinstance(thing, dict) else range(len(thing)):
            yield thing, key
            yield from places_of(thing[key])


def another(header: dict[str, Any], rng: np.random.Generator) -> None:
    """Change a header in one or two places."""
    for _ in range(int(rng.integers(1, 3))):
        places = list(places_of(header))
        where, key = places[int(rng.integers(len(places)))]
        value, kind = where[key], rng.integers(6)
        if kind == 0 and isinstance(where, dict):
            where["more"] = where.pop(key)
        elif kind == 1:
            del where[key]
        elif kind == 2 and isinstance(where, list):
            where.insert(key, copy.deepcopy(value))
        elif kind == 3:
            other, name = places[int(rng.integers(len(places)))]
            where[key] = copy.deepcopy(other[name])
        elif isinstance(value, int):
            where[key] = [value + 1, value - 1, 2 * value, -value, value * 1000][
                int(rng.integers(5))
            ]
        else:
            where[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def digits(raw: bytes, rng: np.random.Generator) -> bytes:
    """The header of the same length with some digits, words or signs another."""
    data = bytearray(raw)
    (length,) = struct.unpack_from("<I", raw, 12)
    some = [i for i in range(FIXED, FIXED + length) if chr(data[i]) in "0123456789"]
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.choice(some))] = ord(rng.choice(list("0123456789-.e")))
    return bytes(data)


def damaged(raw: bytes, rng: np.random.Generator) -> bytes:
    """A file with a digest that fits, and something else that may not."""
    kind = rng.integers(4)
    if kind == 0:
        return signed(raw[:FIXED] + mutated(raw[FIXED:], rng))
    if kind == 1:
        return signed(digits(raw, rng))
    if kind == 2:
        header = header_of(raw)
        another(header, rng)
        return rebuilt(header, chunks_of(raw))
    chunks = chunks_of(raw)
    place = int(rng.integers(len(chunks)))
    chunks[place] = mutated(chunks[place], rng)
    return rebuilt(header_of(raw), chunks)


def use(path: Path) -> bool:
    """Read a file and predict one datum, in two seconds and 256 megabytes; whether it was accepted."""
    start, before = time.process_time(), largest_megabytes()
    try:
        found = files.read(path).model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predict_zeros(found)
        accepted = True
    except CorruptFileError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error), error
        accepted = False
    seconds = time.process_time() - start
    megabytes = largest_megabytes() - before
    assert seconds < 2.0 and megabytes < 256, f"{seconds} s, {megabytes} MB"
    return accepted


def predict_zeros(found: Model) -> None:
    """Predict one datum, also with the kernels: what passes the checks must not lead them astray."""
    types = {"f4": "f4", "f8": "f8", "i8": "i8", "b1": "?"}
    zeros = [np.zeros((1, *v.shape), types[v.dtype]) for v in found.program.inputs.values()]
    x = tuple(zeros) if len(zeros) > 1 else zeros[0]
    predictor_of(found).predict(x)
    if native_backend.available():
        outputs = [predictor_of(found, b).outputs(x, False) for b in ("numpy", "native")]
        one, other = (each if isinstance(each, tuple) else (each,) for each in outputs)
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def largest_megabytes() -> float:
    """The most memory that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "count", [400, pytest.param(10_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_mutated_files_are_one_error_or_an_answer(count, originals, tmp_path):
    path, rng = tmp_path / "model.bbn", np.random.default_rng(count)
    accepted, before = 0, largest_megabytes()
    for turn in range(count):
        raw = originals[int(rng.integers(len(originals)))]
        whole = damaged(raw, rng) if turn % 2 else mutated(raw, rng)
        put(path, whole)
        try:
            found = use(path)
        except Exception as error:
            raise AssertionError(f"turn {turn}: {error!r}") from error
        assert turn % 2 or found == (whole == raw)  # without a digest every byte counts
        accepted += found
    assert largest_megabytes() - before < 256
    assert 0.02 * count < accepted < 0.48 * count  # both happen


def test_random_bytes_are_refused(originals, tmp_path):
    path, rng = tmp_path / "model.bbn", np.random.default_rng(2)
    for turn in range(300):
        noise = rng.bytes(int(rng.integers(0, 300)))
        if turn % 3 == 1:  # behind the magic number
            noise = originals[0][:12] + noise
        elif turn % 3 == 2:  # behind a preamble and a digest that fit
            noise = signed(
                originals[0][:12] + struct.pack("<IQ", len(noise), 0) + bytes(32) + noise
            )
        put(path, noise)
        with pytest.raises(CorruptFileError):
            files.read(path)


def _set(*keys, value):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


PROGRAM = "program"
CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no key": (lambda h: h.pop("labels"), "a model with exactly"),
    "a key more": (_set("more", value=1), "a model with exactly"),
    "contents": (_set("contents", value="both"), "contents of"),
    "contents list": (_set("contents", value=[]), "contents of"),
    "precision": (_set("precision", value="half"), "precision to be one of"),
    "draws": (_set(PROGRAM, "num_draws", value=6), "each of 6 draws"),
    "many draws": (_set(PROGRAM, "num_draws", value=10**9), "each of 1000000000 draws"),
    "true draws": (_set(PROGRAM, "num_draws", value=True), "whole number of draws"),
    "labels": (_set("labels", value=["a"]), "each of 3 classes, got 1"),
    "label numbers": (_set("labels", value=[1, 2, 3]), "labels that are text"),
    "provenance": (_set("provenance", value=[]), "provenance by name"),
    "head": (_set("head", value="classes"), "a head by name"),
    "head kind": (_set("head", "kind", value=["classes"]), "kind of head to be one of"),
    "head of numbers": (_set("head", value={"kind": "normal", "noise": 1.0}), "labels for a head of"),
    "preprocessing": (_set("preprocessing", value=[]), "a program with exactly"),
    "no preprocessing": (_set("preprocessing", value=None), "no array that nothing uses"),
    "kind": (_set(PROGRAM, "steps", 0, "kind", value="os.system"), "a known kind of step"),
    "kind list": (_set(PROGRAM, "steps", 0, "kind", value=[]), "a text"),
    "type": (_set(PROGRAM, "steps", 0, "dtype", value="f2"), "a type of"),
    "input": (_set(PROGRAM, "steps", 0, "inputs", value=["z"]), "inputs that are known"),
    "input list": (_set(PROGRAM, "steps", 0, "inputs", value=[["x"]]), "a text"),
    "output twice": (_set(PROGRAM, "steps", 0, "outputs", value=["x"]), "a new name"),
    "attributes": (_set(PROGRAM, "steps", 0, "attributes", value=None), "attributes by name"),
    "attribute": (_set(PROGRAM, "steps", 0, "attributes", "axis", value="0"), "axis of 'slice'"),
    "NaN": (_set(PROGRAM, "steps", 12, "attributes", "low", value=1e999), "is no JSON"),
    "deep": (
        lambda h: h["program"]["steps"][0]["attributes"].update(axis=[[[[1]]]]),
        "axis of 'slice'",
    ),
    "groups": (_set(PROGRAM, "steps", 1, "attributes", "groups", value=0), "groups that divide"),
    "stride": (_set(PROGRAM, "steps", 1, "attributes", "stride", value=[0, 1]), "at least 1"),
    "output": (_set(PROGRAM, "outputs", value=["conv"]), "outputs to be values"),
    "no output": (_set(PROGRAM, "outputs", value=[]), "expected outputs"),
    "an output of numbers": (_set(PROGRAM, "outputs", value=["real"]), "depend on its inputs"),
    "input shape": (_set(PROGRAM, "inputs", 0, "shape", value=[2, 6, 5]), "step"),
    "input of nothing": (_set(PROGRAM, "inputs", 0, "shape", value=[0, 6, 6]), "at least 1"),
    "huge input": (_set(PROGRAM, "inputs", 0, "shape", value=[2**30] * 8), "at most"),
    "input shape text": (_set(PROGRAM, "inputs", 0, "shape", value="2"), "a list of sizes"),
    "input twice": (lambda h: h["program"]["inputs"].append(h["program"]["inputs"][0]), "twice"),
    "constant name": (_set(PROGRAM, "constants", 0, "name", value="other"), "an array"),
    "constant type": (_set(PROGRAM, "constants", 0, "type", value="f4"), "expected constants of"),
    "constant rows": (_set(PROGRAM, "constants", 0, "rows", value="own"), "each of 5 draws"),
    "rows of no array": (_set(PROGRAM, "constants", 0, "rows", value="listed"), "an array"),
    "levels": (_set(PROGRAM, "constants", 0, "levels", value=[0.5]), "numbers of 1 levels"),
    "level text": (_set(PROGRAM, "constants", 0, "levels", value=["0", "1", "2"]), "levels"),
    "large levels": (_set(PROGRAM, "constants", 0, "levels", value=[1e39, 0.0, 1.0]), "float32"),
    "site shape": (_set(PROGRAM, "sites", 0, "shape", value=[3, 1, 2, 3]), "18 bits in each row"),
    "site of nothing": (_set(PROGRAM, "sites", 0, "shape", value=[0]), "at least 1"),
    "site drawn": (_set(PROGRAM, "sites", 0, "drawn", value=False), "an array"),
    "site drawn 1": (_set(PROGRAM, "sites", 0, "drawn", value=1), "true or false"),
    "array names": (_set("arrays", 0, "name", value="other"), "an array"),
    "array type": (_set("arrays", 1, "dtype", value="|O"), "a type of"),
    "array shape": (_set("arrays", 1, "shape", value=[2**40]), "sizes that fit"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_header_that_does_not_fit_is_refused(what, originals, tmp_path):
    change, message = CHANGES[what]
    header = header_of(originals[0])
    change(header)
    path = tmp_path / "model.bbn"
    raw = rebuilt(header, chunks_of(originals[0]))
    put(path, signed(raw.replace(b"Infinity", b"Infinity")))
    with pytest.raises(CorruptFileError, match=message) as caught:
        files.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_array_bytes_out_of_their_range_are_refused(originals, tmp_path):
    names = [entry["name"] for entry in header_of(originals[0])["arrays"]]
    for name, raw, message in [
        ("program/shift.data", np.array(np.nan, "<f8").tobytes(), "numbers in 'shift', got NaN"),
        ("program/mask.data", b"\2", "booleans of 0 and 1"),
        ("program/table.data", b"\3", "numbers of 3 levels"),
        ("program/order.data", np.array(3, "<i8").tobytes(), "indices of 0 to 2"),
        ("program/slope.rows", np.array(2, "<i8").tobytes(), "below 2"),
        ("program/conv.flip", np.array(32769, "<u2").tobytes(), "at most a half"),
        ("program/last.bits", b"\xff" * 4, "zeros after the last weight"),
    ]:
        chunks = chunks_of(originals[0])
        place = names.index(name)
        chunks[place] = raw + chunks[place][len(raw) :]
        put(tmp_path / "file", rebuilt(header_of(originals[0]), chunks))
        with pytest.raises(CorruptFileError, match=message):
            files.read(tmp_path / "file")


# What a small file may ask for


def window(padding: int = 1, stride: int = 1) -> dict[str, Any]:
    pads = ((padding, padding),) * 2
    return {"stride": (stride,) * 2, "padding": pads, "dilation": (1, 1), "groups": 1}


def site(*shape: int) -> StoredSite:
    words = num_words(int(np.prod(shape[1:])))
    return StoredSite(shape, np.zeros((1, shape[0], words), dtype=np.uint64))


def one(
    kind: str, shape: tuple[int, ...], attributes: Any, *more: Any, outputs: int = 1
) -> Program:
    """A step of x and of sites or constants."""
    names = [f"w{place}" for place in range(len(more))]
    given = dict(zip(names, more, strict=True))
    sites = {name: each for name, each in given.items() if isinstance(each, StoredSite)}
    constants = {name: each for name, each in given.items() if name not in sites}
    out = tuple(f"y{place}" for place in range(outputs))
    steps = (Step(kind, ("x", *names), out, attributes=attributes),)
    return Program({"x": Value(shape, "f4")}, constants, sites, steps, out[:1])


def growing(times: int) -> Program:
    """Images that grow by a pixel on every side, one time after another."""
    steps = []
    for place in range(times):
        steps.append(Step("conv", (f"x{place}", "w"), (f"x{place + 1}",), attributes=window()))
    sites = {"w": site(1, 1, 1, 1)}
    return Program({"x0": Value((1, 1, 1), "f4")}, {}, sites, tuple(steps), (f"x{times}",))


def many_draws() -> Program:
    program = one("relu", (1,), {})
    return Program(program.inputs, {}, {}, program.steps, ("y0",), 2**31 - 1)


def constants(*shapes: tuple[int, ...]) -> list[Any]:
    return [constant(np.zeros(shape)) for shape in shapes]


POOL = {"ceil": False, "stride": (1, 1), "padding": (0, 0)}
GREEDY: dict[str, Callable[[], Program]] = {
    "images that grow": lambda: growing(300),
    "many draws": many_draws,
    "padding between strides": lambda: one(
        "conv", (1, 1, 1), window(2**28, 2**28), site(1, 1, 1, 1)
    ),
    "padding of a pool": lambda: one(
        "max_pool", (1, 1, 1),
        {**POOL, "size": (2**14, 2**14), "padding": (2**13, 2**13), "dilation": (1, 1)},
    ),
    "a window of many places": lambda: one(
        "avg_pool", (1, 2000, 2000), {**POOL, "size": (2000, 2000), "count_padding": True, "divisor": 0}
    ),
    "scores": lambda: Program(
        {"x": Value((2**16, 1), "f4")}, {}, {},
        (Step("attention", ("x", "x", "x"), ("y",), attributes={"scale": 1.0, "causal": False}),),
        ("y",),
    ),
    "a long sequence": lambda: one(
        "gru", (2**20, 1), {"reverse": False}, *constants((1,), (3, 1), (3, 1)), outputs=2
    ),
    "many units": lambda: one(
        "rnn", (2**12, 1), {"reverse": False, "activation": "tanh"},
        *constants((2**6,), (2**6, 1), (2**6, 2**6)), outputs=2,
    ),
    "a cropped image": lambda: one(
        "conv_transpose", (1, 2, 2),
        {**window(stride=2**20), "padding": (2**19,) * 2, "output_padding": (0, 0)},
        *constants((1, 1, 1, 1)),
    ),
    "one by one": lambda: one("max", (2**20,), {"axes": (0,), "keep": False}),
    "many windows": lambda: one("adaptive_max_pool", (1, 2, 2), {"size": (2**11, 2**11)}),
    "large values": lambda: one("gelu", (2**22,), {"approximate": "none"}),
}  # fmt: skip


@pytest.mark.parametrize("what", GREEDY)
def test_a_small_file_that_asks_for_much_is_refused(what, tmp_path):
    found = Model(GREEDY[what](), {"kind": "outputs"})
    with pytest.warns(UserWarning, match="read with trusted=True"):
        path = files.save(tmp_path / "model.bbn", found)
    assert path.stat().st_size < 100_000
    with pytest.raises(CorruptFileError, match=r"asks for about .* MB; if you trust it"):
        files.read(path)
    assert files.read(path, trusted=True).model.program.steps == found.program.steps


def test_what_is_just_accepted_takes_a_second(tmp_path):
    """The largest of each sort that is accepted."""
    accepted = {
        "images that grow": lambda: growing(100),
        "a long sequence": lambda: one(
            "gru", (4000, 1), {"reverse": False}, *constants((1,), (3, 1), (3, 1)), outputs=2
        ),
        "one by one": lambda: one("max", (100_000,), {"axes": (0,), "keep": False}),
        "large values": lambda: one("gelu", (2**20,), {"approximate": "none"}),
    }
    for make in accepted.values():
        assert use(files.save(tmp_path / "file", Model(make(), {"kind": "outputs"})))


def chain(
    layers: list[tuple[str, tuple[int, ...], dict[str, Any]]], shape: tuple[int, ...]
) -> Program:
    """Layers of binary weights with a relu after each; "pool" halves images, "flat" makes a row of them."""
    steps: list[Step] = []
    sites: dict[str, Any] = {}
    for place, (kind, sizes, attributes) in enumerate(layers):
        before, after = f"x{place}", (f"x{place + 1}",)
        if kind in ("conv", "linear"):
            sites[f"w{place}"] = site(*sizes)
            steps.append(Step(kind, (before, f"w{place}"), (f"a{place}",), attributes=attributes))
            steps.append(Step("relu", (f"a{place}",), after))
        else:
            steps.append(Step(kind, (before,), after, attributes=attributes))
    out = (f"x{len(layers)}",)
    return Program({"x0": Value(shape, "f4")}, {}, sites, tuple(steps), out)


def vgg() -> Program:
    layers, channels = [], 3
    half = {**POOL, "size": (2, 2), "stride": (2, 2), "dilation": (1, 1)}
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if wide:
            layers.append(("conv", (wide, channels, 3, 3), window()))
            channels = wide
        else:
            layers.append(("max_pool", (), half))
    layers.append(("reshape", (), {"shape": (25088,)}))
    layers += [("linear", (n, m), {}) for n, m in ((4096, 25088), (4096, 4096), (1000, 4096))]
    return chain(layers, (3, 224, 224))


def mobile() -> Program:
    """Widths and strides of MobileNet: a depthwise convolution and one of single pixels, 13 times."""
    layers: list[Any] = [("conv", (32, 3, 3, 3), window(stride=2))]
    wide = 32
    for after, stride in [
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)
    ]:  # fmt: skip
        layers.append(("conv", (wide, 1, 3, 3), {**window(stride=stride), "groups": wide}))
        layers.append(("conv", (after, wide, 1, 1), window(padding=0)))
        wide = after
    return chain(layers, (3, 224, 224))


def small_images() -> Program:
    """The widths of ResNet-20 on images of 32 pixels."""
    layers: list[Any] = [("conv", (16, 3, 3, 3), window())]
    for before, wide, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers.append(("conv", (wide, before, 3, 3), window(stride=stride)))
        layers += [("conv", (wide, wide, 3, 3), window())] * 5
    return chain(layers, (3, 32, 32))


@pytest.mark.parametrize(
    ("make", "draws", "bits"),
    [(vgg, 1, 1), (mobile, 1, 1), (mobile, 32, 32), (small_images, 1, 1), (small_images, 100, 17)],
)
def test_networks_of_the_usual_sizes_may_ask_for_what_they_need(make, draws, bits):
    program = make()
    rows = np.zeros(draws, dtype=np.int64)  # drawn, for all that is known
    sites = {name: StoredSite(each.shape, each.bits, rows) for name, each in program.sites.items()}
    program = Program(program.inputs, {}, sites, program.steps, program.outputs, draws)
    check_effort(Model(program, {"kind": "outputs"}), program.num_weights * bits // 8)


def test_draws_are_paid_for(tmp_path):
    program = perceptron(10**5)
    with pytest.raises(ValueError, match="asks for about"):
        check_effort(Model(program, {"kind": "classes"}), 2000)
    check_effort(Model(program, {"kind": "classes"}), 8 * 10**5)
