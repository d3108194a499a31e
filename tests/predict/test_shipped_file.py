"""The container: whatever is wrong with a file is one error of one class, and nothing else happens."""

from __future__ import annotations

import hashlib
import json
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from shipped_examples import example
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.core.files import CorruptFileError
from bayesbin.nn import Scale, Sign, to_binary_
from bayesbin.predict import bbn_file, inspect, kernels, load, pack, unpack

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
FIXED = 56
X = np.random.default_rng(1).standard_normal((2, 1, 3, 3))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> bytes:
    """A file with a step of most kinds, as small as can be."""
    layers = [nn.Conv2d(1, 2, 2, padding=1), nn.MaxPool2d(2), nn.Hardtanh(), nn.Flatten(),
              nn.Linear(8, 3, bias=False), Sign(), nn.Linear(3, 2), Scale()]  # fmt: skip
    net = to_binary_(nn.Sequential(*layers)).float()
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (2, 1, 2, 2), "4.weight": (3, 8), "6.weight": (2, 3)}
    posterior = BinaryPosterior(
        {site: torch.randn(shape, generator=generator) for site, shape in shapes.items()}
    )
    path = tmp_path_factory.mktemp("file") / "model.bbn"
    return pack(net, posterior, path, 2, input_shape=(1, 3, 3), labels=["a", "b"]).read_bytes()


def signed(raw: bytes) -> bytes:
    """The same with a digest that fits: damage that only the other checks can find."""
    digest = hashlib.sha256(raw[:24] + raw[FIXED:]).digest()
    return raw[:24] + digest + raw[FIXED:]


def header_of(raw: bytes) -> dict:
    (length,) = struct.unpack_from("<I", raw, 12)
    return json.loads(raw[FIXED : FIXED + length])


def with_header(raw: bytes, change) -> bytes:
    """A sound container whose header ``change`` has changed; its arrays keep their places' contents."""
    header = header_of(raw)
    arrays = header["arrays"]
    chunks = [
        raw[a["offset"] : a["offset"] + int(np.prod(a["shape"])) * np.dtype(a["dtype"]).itemsize]
        for a in arrays
    ]
    changed = change(header)
    header = header if changed is None else changed
    text, body = b"", b""
    for _ in range(3):  # until the offsets have settled
        end, body = FIXED + len(text), b""
        for array, chunk in zip(arrays, chunks, strict=True):
            start = -(-end // 64) * 64
            body += bytes(start - end) + chunk
            array["offset"], end = start, start + len(chunk)
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
    whole = struct.pack("<8sIIQ32s", b"\x89BBN\r\n\x1a\n", 1, len(text), FIXED + len(text) + len(body),
                        bytes(32))  # fmt: skip
    return signed(whole + text + body)


def put(path: Path, raw: bytes) -> None:
    """The same file with other contents: making a new one takes longer than all that is tested here."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(raw)
        file.truncate()


def answer(path: Path) -> bytes:
    return load(path, threads=1).predict(X).log_probs.tobytes()


def refused(path: Path, raw: bytes, match: str | None = None) -> None:
    put(path, raw)
    for use in (load, inspect, unpack):
        with pytest.raises(CorruptFileError, match=match) as caught:
            use(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_header_written_again_is_read(raw, tmp_path):
    path = tmp_path / "model.bbn"
    put(path, raw)
    expected = answer(path)
    put(path, with_header(raw, lambda header: None))
    assert answer(path) == expected


def test_random_mutations_are_one_error_or_change_nothing(raw, tmp_path):
    path, generator = tmp_path / "model.bbn", np.random.default_rng(0)
    put(path, raw)
    expected, unchanged = answer(path), 0
    for _ in range(10_000):
        damaged = mutated(raw, generator)
        put(path, damaged)
        if damaged == raw:  # two equal bytes were exchanged, say
            assert answer(path) == expected
            unchanged += 1
        else:  # every byte counts
            with pytest.raises(CorruptFileError):
                load(path)
    assert unchanged < 1_000


def mutated(raw: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes overwritten, one bit flipped, a piece cut out, doubled or added, or two exchanged."""
    data = bytearray(raw)
    place = int(generator.integers(len(data)))
    size = int(generator.integers(1, 9))
    noise = generator.bytes(size)
    kind = generator.integers(6)
    if kind == 0:
        data[place] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        data[place : place + size] = noise[: len(data) - place]
    elif kind == 2:
        del data[place : place + size]
    elif kind == 3:
        data[place:place] = data[place : place + size]
    elif kind == 4:
        data[place:place] = noise
    else:
        other = int(generator.integers(len(data)))
        data[place], data[other] = data[other], data[place]
    return bytes(data)


def test_mutations_under_a_digest_that_fits_do_no_harm(raw, tmp_path):
    """Nothing but the checks of the contents stands before the kernels here; answers may differ."""
    path, generator = tmp_path / "model.bbn", np.random.default_rng(1)
    (length,) = struct.unpack_from("<I", raw, 12)
    text = raw[FIXED : FIXED + length]
    start, peak, read = time.perf_counter(), _megabytes(), 0
    for turn in range(4_000):
        if turn % 2:
            changed = _other_header(text, generator)
            whole = raw[:FIXED] + changed + raw[FIXED + length :]
        else:
            whole = raw[:FIXED] + mutated(raw[FIXED:], generator)
        whole = whole[:16] + struct.pack("<Q", len(whole)) + whole[24:]
        put(path, signed(whole))
        try:
            predictive = load(path, threads=1)
            assert predictive.outputs(np.zeros((1, *predictive.model.input))).shape[1] == 1
            read += 1
        except CorruptFileError:
            continue
    assert 50 < read < 3_950  # both happen
    assert time.perf_counter() - start < 60 and _megabytes() - peak < 500


def _other_header(text: bytes, generator: np.random.Generator) -> bytes:
    """The header of the same length with one digit, word or sign another."""
    data = bytearray(text)
    digits = [i for i, byte in enumerate(data) if chr(byte) in "0123456789"]
    for _ in range(int(generator.integers(1, 3))):
        place = int(generator.choice(digits))
        data[place] = ord(generator.choice(list("0123456789-.e")))
    return bytes(data)


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_random_bytes_are_refused(raw, tmp_path):
    path, generator = tmp_path / "model.bbn", np.random.default_rng(2)
    for turn in range(1_000):
        noise = generator.bytes(int(generator.integers(0, 300)))
        # As they are; behind the magic number; behind a preamble and a digest that fit.
        if turn % 3 == 1:
            noise = raw[:12] + noise
        elif turn % 3 == 2:
            sizes = struct.pack("<IQ", len(noise), FIXED + len(noise))
            noise = signed(raw[:12] + sizes + bytes(32) + noise)
        put(path, noise)
        with pytest.raises(CorruptFileError):
            load(path)


def test_truncation_anywhere_is_refused(raw, tmp_path):
    (length,) = struct.unpack_from("<I", raw, 12)
    path = tmp_path / "model.bbn"
    for size in [*range(FIXED + length + 1), *range(FIXED + length, len(raw), 7), len(raw) - 1]:
        put(path, raw[:size])
        with pytest.raises(CorruptFileError):
            load(path)
        # Even where what is left says that it is all.
        if size >= FIXED:
            put(path, signed(raw[:16] + struct.pack("<Q", size) + raw[24:size]))
            with pytest.raises(CorruptFileError):
                load(path)


def test_other_files_versions_and_what_follows(raw, tmp_path):
    path = tmp_path / "model.bbn"
    newer = signed(raw[:8] + struct.pack("<I", 2) + raw[12:])
    refused(path, newer, "expected version 1, got 2; update bayesbin")
    refused(path, signed(raw[:8] + struct.pack("<I", 0) + raw[12:]), "got 0; pack it again")
    refused(path, raw + b"\0", "expected .* bytes as it says")
    longer = raw[:16] + struct.pack("<Q", len(raw) + 64) + raw[24:] + bytes(64)
    refused(path, signed(longer), "end at byte")
    refused(path, raw.replace(b"\r\n", b"\n"), "another file")  # sent as text
    refused(path, b"", "another file")
    _, posterior, _ = example("tanh")
    posterior.save(tmp_path / "posterior.safetensors")
    refused(path, (tmp_path / "posterior.safetensors").read_bytes(), "another file; name a .bbn")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.bbn")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def _set(*keys, value):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


CHANGES = {
    "no key": lambda header: header.pop("seed") and None,
    "a key more": _set("more", value=1),
    "a list": lambda header: b"[]",
    "nothing": lambda header: b"",
    "a key twice": lambda header: b'{"seed":0,"seed":0}',
    "NaN": _set("seed", value=float("nan")),
    "deep": lambda header: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "another encoding": lambda header: json.dumps(header).encode("utf-16"),
    "contents": _set("contents", value="posterior"),
    "precision": _set("precision", value=["exact"]),
    "draws": _set("num_samples", value=3),
    "negative draws": _set("num_samples", value=-1),
    "many draws": _set("num_samples", value=10**30),
    "true draws": _set("num_samples", value=True),
    "none at once": _set("draws_at_once", value=0),
    "seed": _set("seed", value="0"),
    "outputs": _set("outputs", value=3),
    "noise": _set("noise_variance", value=1.0),
    "noise text": _set("noise_variance", value="1"),
    "labels": _set("labels", value=["a"]),
    "label numbers": _set("labels", value=[1, 2]),
    "label text": _set("labels", value="ab"),
    "preprocessing": _set("preprocessing", value={"divisor": 1.0}),
    "preprocessing by 0": _set("preprocessing", value={"divisor": 1, "mean": 0, "std": 1e-60}),
    "preprocessing 1e300": _set("preprocessing", value={"divisor": 1, "mean": 1e300, "std": 1}),
    "preprocessing per channel": _set(
        "preprocessing", value={"divisor": 1, "mean": [0.1, 0.2], "std": 1}
    ),
    "preprocessing of none": _set("preprocessing", value={"divisor": 1, "mean": 0, "std": []}),
    "preprocessing text": _set("preprocessing", value={"divisor": 1, "mean": ["0"], "std": 1}),
    "preprocessing list by 0": _set(
        "preprocessing", value={"divisor": 1, "mean": 0, "std": [1e-60]}
    ),
    "divisors": _set("preprocessing", value={"divisor": [1.0], "mean": 0, "std": 1}),
    "provenance": _set("provenance", value=[]),
    "steps": _set("steps", value={}),
    "no steps": _set("steps", value=[]),
    "a number": _set("steps", 0, value=1),
    "op": _set("steps", 0, "op", value="os.system"),
    "op list": _set("steps", 0, "op", value=["weights"]),
    "field": _set("steps", 0, "more", value=1),
    "site": _set("steps", 0, "site", value=1),
    "other site": _set("steps", 0, "site", value="1.weight"),
    "kind": _set("steps", 0, "kind", value=0),
    "shape": _set("steps", 0, "shape", value=[2, 1, 2]),
    "shape 0": _set("steps", 0, "shape", value=[0, 1, 2, 2]),
    "huge shape": _set("steps", 0, "shape", value=[2**31, 2**31, 2**31, 2**31]),
    "shape text": _set("steps", 0, "shape", value="2122"),
    "other shape": _set("steps", 0, "shape", value=[1, 1, 2, 2]),
    "stride": _set("steps", 0, "stride", value=[0, 1]),
    "no stride": _set("steps", 0, "stride", value=None),
    "true stride": _set("steps", 0, "stride", value=[True, True]),
    "padding": _set("steps", 0, "padding", value=[-1, 0]),
    "huge padding": _set("steps", 0, "padding", value=[2**30, 2**30]),
    "padding of three": _set("steps", 0, "padding", value=[1, 1, 1]),
    "linear stride": _set("steps", 5, "stride", value=[1, 1]),
    "pool": _set("steps", 2, "size", value=[9, 9]),
    "pool padding": _set("steps", 2, "padding", value=[2, 2]),
    "bounds": _set("steps", 3, "low", value=2.0),
    "bounds text": _set("steps", 3, "low", value="-1"),
    "add": _set("steps", 6, value={"op": "add"}),
    "swap": _set("steps", 6, value={"op": "swap"}),
    "push": _set("steps", 6, value={"op": "push"}),
    "not flattened": _set("steps", 4, value={"op": "relu"}),
    "input": _set("input", value=[2, 3, 3]),
    "input of two": _set("input", value=[3, 3]),
    "small input": _set("input", value=[1, 1, 1]),
    "huge input": _set("input", value=[1, 2**30, 2**30]),
    "array names": _set("arrays", 0, "name", value="other"),
    "array twice": lambda h: h["arrays"][1].update(name=h["arrays"][0]["name"]),
    "array type": _set("arrays", 0, "dtype", value="|O"),
    "array type list": _set("arrays", 0, "dtype", value=[]),
    "other array type": _set("arrays", 0, "dtype", value="<u2"),
    "array shape": _set("arrays", 0, "shape", value=[2, 2, 1]),
    "array without shape": _set("arrays", 0, "shape", value=[]),
    "huge array": _set("arrays", 0, "shape", value=[2**40]),
    "negative array": _set("arrays", 0, "shape", value=[-1, -4]),
    "array field": _set("arrays", 0, "more", value=0),
    "arrays": _set("arrays", value=None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_header_that_does_not_fit_is_refused(what, raw, tmp_path):
    changed = with_header(raw, CHANGES[what])
    assert changed != with_header(raw, lambda header: None)
    refused(tmp_path / "model.bbn", changed)


def test_arrays_out_of_their_range_are_refused(raw, tmp_path):
    for name, value, match in (
        ("line 1.slope", np.float32("nan"), "finite numbers in 'line 1.slope'"),
        ("line 1.shift", np.float32("-inf"), "finite"),
        ("6.weight.bits", np.uint8(0xFF), "zeros"),
    ):
        (entry,) = (e for e in header_of(raw)["arrays"] if e["name"] == name)
        start = entry["offset"]
        changed = raw[:start] + value.tobytes() + raw[start + value.nbytes :]
        refused(tmp_path / "model.bbn", signed(changed), match)
    gap = header_of(raw)["arrays"][1]["offset"] - 1
    refused(tmp_path / "model.bbn", signed(raw[:gap] + b"\1" + raw[gap + 1 :]), "zeros before")


def test_probabilities_above_a_half_are_refused(tmp_path):
    net, posterior, _ = example("tanh")
    path = pack(net, posterior, tmp_path / "model.bbn", 2, contents="posterior")
    raw = path.read_bytes()
    (entry,) = (e for e in header_of(raw)["arrays"] if e["name"] == "0.weight.flip")
    start = entry["offset"]
    whole = raw[:start] + struct.pack("<H", 32769) + raw[start + 2 :]
    refused(path, signed(whole), "at most a half")


def test_a_failed_save_leaves_the_old_file(raw, tmp_path, monkeypatch):
    path = tmp_path / "model.bbn"
    put(path, raw)
    net, posterior, _ = example("relu")

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        pack(net, posterior, path)
    assert path.read_bytes() == raw and list(tmp_path.iterdir()) == [path]


def test_arrays_come_back_as_they_were_and_cannot_be_changed(tmp_path):
    path = tmp_path / "any.bbn"
    arrays = {
        "a": np.arange(7, dtype=np.uint8), "b": np.arange(6.0, dtype=">f4").reshape(2, 3).T,
        "c": np.full((1, 1, 2), 2**63, dtype=np.uint64),
    }  # fmt: skip
    bbn_file.write(path, {"text": "µ", "number": 0.1}, arrays)
    found = bbn_file.read(path)
    assert found.header == {"text": "µ", "number": 0.1} and found.size == path.stat().st_size
    for name, array in arrays.items():
        assert np.array_equal(found.arrays[name], array)
        with pytest.raises(ValueError, match="read-only"):
            found.arrays[name][...] = 0
    with pytest.raises(ValueError, match="'d' is <f8"):
        bbn_file.write(path, {}, {"d": np.zeros(2)})
