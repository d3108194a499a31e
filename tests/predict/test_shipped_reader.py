"""A second reader of model files, written from docs/reference/format.md alone: plain numpy, no kernels."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
from shipped_examples import DRAWS, NETWORKS, SEED, example, statistics_of

from bayesbin.predict import kernels, load, pack

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def read(path):
    raw = path.read_bytes()
    magic, version, length, whole, digest = struct.unpack_from("<8sIIQ32s", raw)
    assert magic == bytes.fromhex("8942424E0D0A1A0A") and version == 1 and whole == len(raw)
    assert digest == hashlib.sha256(raw[:24] + raw[56:]).digest()
    header = json.loads(raw[56 : 56 + length])
    arrays = {
        a["name"]: np.frombuffer(raw, a["dtype"], int(np.prod(a["shape"])), a["offset"])
        .reshape(a["shape"])
        for a in header["arrays"]
    }  # fmt: skip
    return header, arrays


def signs(header, arrays, site, shape, draw):
    count = int(np.prod(shape))
    if header["contents"] == "draws":
        bits = np.unpackbits(arrays[f"{site}.bits"][draw], bitorder="little")[:count]
    else:
        units, inputs = shape[0], count // shape[0]
        words = -(-inputs // 4)
        z = np.arange(1, units * words + 1, dtype=np.uint64) * np.uint64(GAMMA)
        z += arrays[f"{site}.keys"][draw]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
        z ^= z >> np.uint64(31)
        u = z.astype("<u8").view("<u2").reshape(units, 4 * words)[:, :inputs]
        mode = np.unpackbits(arrays[f"{site}.mode"], bitorder="little")[:count]
        bits = mode ^ (u < arrays[f"{site}.flip"]).reshape(-1)
    return 2.0 * bits.reshape(shape) - 1.0


def windows(x, size, stride, padding, filling):
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    padded = np.pad(x, around, constant_values=filling)
    views = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
    return views[:, :, :: stride[0], :: stride[1]]


def run(header, arrays, x, draw):
    stack = []
    for place, step in enumerate(header["steps"]):
        op = step["op"]
        if op == "weights":
            w = signs(header, arrays, step["site"], step["shape"], draw)
            if w.ndim == 2:
                x = x @ w.T
            else:
                views = windows(x, w.shape[2:], step["stride"], step["padding"], 0.0)
                x = np.einsum("bchwij,ocij->bohw", views, w)
        elif op == "line":
            slope, shift = (arrays[f"line {place}.{part}"] for part in ("slope", "shift"))
            shape = (1, -1, *(1,) * (x.ndim - 2))
            x = slope[min(draw, len(slope) - 1)].reshape(shape) * x
            x = x + shift[min(draw, len(shift) - 1)].reshape(shape)
        elif op in ("max_pool", "avg_pool"):
            filling = -np.inf if op == "max_pool" else 0.0
            views = windows(x, step["size"], step["stride"], step["padding"], filling)
            x = views.max((4, 5)) if op == "max_pool" else views.mean((4, 5))
        elif op == "flatten":
            x = x.reshape(len(x), -1)
        elif op == "push":
            stack.append(x)
        elif op == "swap":
            x, stack[-1] = stack[-1], x
        elif op == "add":
            x = x + stack.pop()
        else:
            low, high = step.get("low"), step.get("high")
            functions = {
                "relu": lambda x: np.maximum(x, 0.0), "tanh": np.tanh,
                "sign": lambda x: np.where(x >= 0.0, 1.0, -1.0),
                "hardtanh": lambda x, low=low, high=high: x.clip(low, high),
            }  # fmt: skip
            x = functions[op](x)
    return x


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("contents", ["draws", "posterior"])
def test_a_second_reader_gives_the_same_answers(name, contents, tmp_path):
    net, posterior, x = example(name)
    statistics = statistics_of(net, posterior, x)
    path = pack(net, posterior, tmp_path / "model.bbn", DRAWS, SEED, statistics=statistics,
                contents=contents, input_shape=NETWORKS[name][1])  # fmt: skip
    header, arrays = read(path)
    outputs = np.stack([run(header, arrays, x.double().numpy(), draw) for draw in range(DRAWS)])
    np.testing.assert_allclose(load(path).outputs(x.numpy()), outputs, rtol=2e-5, atol=2e-5)
    probs = np.exp(outputs - outputs.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    found = load(path).predict(x.numpy())
    np.testing.assert_allclose(found.probs, probs.mean(0), atol=2e-5)
    entropies = -(probs * np.log(probs)).sum(-1).mean(0)
    np.testing.assert_allclose(found.expected_entropy, entropies, atol=5e-5)
