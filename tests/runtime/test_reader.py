"""A second reader of model files, written from docs/reference/format.md alone, in plain numpy."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from model_examples import DRAWS, convolution, perceptron

from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.predictor import Predictor, load

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "format.md"


def read(path):
    raw = path.read_bytes()
    magic, version, length, whole, digest = struct.unpack_from("<8sIIQ32s", raw)
    assert magic == bytes.fromhex("8942424E0D0A1A0A") and version == 2 and whole == len(raw)
    assert digest == hashlib.sha256(raw[:24] + raw[56:]).digest()
    header = json.loads(raw[56 : 56 + length])
    arrays = {
        a["name"]: np.frombuffer(raw, a["dtype"], int(np.prod(a["shape"])), a["offset"])
        .reshape(a["shape"])
        for a in header["arrays"]
    }  # fmt: skip
    return header["program"], header["head"], arrays


def row_of(entry, arrays, draw):
    if entry["rows"] == "listed":
        return arrays[f"program/{entry['name']}.rows"][draw]
    return draw if entry["rows"] == "own" else 0


def signs(entry, arrays, draw):
    name, shape = f"program/{entry['name']}", entry["shape"]
    count, row = int(np.prod(shape)), row_of(entry, arrays, draw)
    if not entry["drawn"]:
        bits = np.unpackbits(arrays[f"{name}.bits"][row], bitorder="little")[:count]
        return 2.0 * bits.reshape(shape) - 1.0
    units, inputs = shape[0], count // shape[0]
    words = -(-inputs // 4)
    z = np.arange(1, units * words + 1, dtype=np.uint64) * np.uint64(GAMMA)
    z += arrays[f"{name}.keys"][draw]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    z ^= z >> np.uint64(31)
    u = z.astype("<u8").view("<u2").reshape(units, 4 * words)[:, :inputs]
    mode = np.unpackbits(arrays[f"{name}.mode"][row], bitorder="little")[:count]
    bits = mode ^ (u < arrays[f"{name}.flip"][row]).reshape(-1)
    return 2.0 * bits.reshape(shape) - 1.0


def per_channel(numbers, x, axis):
    return numbers.reshape(-1, *[1] * (x.ndim - 2 - axis))


def conv(x, w, stride, padding, **_):
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    views = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", views[:, :, :: stride[0], :: stride[1]], w)


STEPS = {
    "linear": lambda x, w, b=0.0: x @ w.T + b,
    "conv": conv,
    "affine": lambda x, a, b, axis: per_channel(a, x, axis) * x + per_channel(b, x, axis),
    "relu": lambda x: np.maximum(x, 0.0),
    "sign": lambda x: np.where(x >= 0.0, 1.0, -1.0),
    "reshape": lambda x, shape: x.reshape(len(x), *shape),
}


def run(program, arrays, x, draw):
    values = {program["inputs"][0]["name"]: x}
    for entry in program["constants"]:
        data = arrays[f"program/{entry['name']}.data"]
        values[entry["name"]] = data[row_of(entry, arrays, draw)].astype(float)
    for entry in program["sites"]:
        values[entry["name"]] = signs(entry, arrays, draw)
    for step in program["steps"]:
        given = [values[name] for name in step["inputs"]]
        values[step["outputs"][0]] = STEPS[step["kind"]](*given, **step["attributes"])
    return values[program["outputs"][0]]


@pytest.mark.parametrize("site", ["drawn", "listed", "stored", "shared", "conv"])
@pytest.mark.parametrize("contents", ["draws", "posterior"])
def test_a_second_reader_gives_the_same_answers(site, contents, tmp_path):
    network = convolution() if site == "conv" else perceptron(site=site)
    contents = "draws" if site in ("stored", "shared") else contents
    predictor = Predictor(network, {"kind": "classes"}, backend="numpy")
    path = predictor.save(tmp_path / "model.bbn", contents)
    x = np.random.default_rng(0).standard_normal((4, *network.values["x"].shape)).astype("f4")
    program, head, arrays = read(path)
    assert head == {"kind": "classes"} and program["num_draws"] == DRAWS
    outputs = np.stack([run(program, arrays, x.astype(float), draw) for draw in range(DRAWS)])
    np.testing.assert_allclose(load(path).outputs(x), outputs, rtol=2e-5, atol=2e-5)
    probs = np.exp(outputs - outputs.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    found = load(path).predict(x)
    np.testing.assert_allclose(found.probs, probs.mean(0), atol=2e-5)
    entropies = -(probs * np.log(probs)).sum(-1).mean(0)
    np.testing.assert_allclose(found.expected_entropy, entropies, atol=5e-5)


def test_the_page_has_every_kind_with_its_attributes():
    if not PAGE.exists():
        pytest.skip("this is an installed package, without its documentation")
    steps = PAGE.read_text().split("\n## Steps\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:4] for line in steps.splitlines() if line.startswith("| `")]
    found = {
        kind: set(re.findall(r"`(\w+)`", attributes))
        for kinds, _, attributes in rows
        for kind in re.findall(r"`(\w+)`", kinds)
    }
    assert found == {name: set(kind.attributes) for name, kind in KINDS.items()}
