"""Binary weights out of a predictor and a model file."""

from __future__ import annotations

import numpy as np
import pytest

from bayesbin.core.canonical import half_words, key_of, pack_words
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import DrawnSite, Program, Step, StoredSite, Value
from bayesbin.runtime.unpacking import save_arrays, unpack

DRAWS = 3
KEYS = np.array([key_of(5, draw, "b") for draw in range(DRAWS)], dtype=np.uint64)


def network(stored: bool = True) -> tuple[Program, np.ndarray, DrawnSite]:
    """Two layers, the first with the signs of each draw, the second drawn; and what is in them."""
    rng = np.random.default_rng(0)
    plus = rng.random((DRAWS, 4, 70)) < 0.5
    bits = np.stack([pack_words(each) for each in plus])
    mode = pack_words(rng.random((2, 4)) < 0.5)[None]
    drawn = DrawnSite((2, 4), mode, rng.integers(0, 1 << 15, (1, 2, 4)).astype(np.uint16), KEYS)
    sites = {"a": StoredSite((4, 70), bits, np.arange(DRAWS)), "b": drawn}
    steps = (Step("linear", ("x", "a"), ("h",)), Step("linear", ("h", "b"), ("y",)))
    inputs = {"x": Value((70,), "f4")}
    if not stored:
        del sites["a"]
        inputs, steps = {"h": Value((4,), "f4")}, steps[1:]
    return Program(inputs, {}, sites, steps, ("y",), DRAWS), np.where(plus, 1, -1), drawn


def right_signs(site: DrawnSite, draw: int) -> np.ndarray:
    """By the formula, weight by weight."""
    flips = half_words(int(KEYS[draw]), (2, 4)) < site.flip[0]
    mode = np.array(
        [[1 if int(word[0]) >> k & 1 else -1 for k in range(4)] for word in site.mode[0]]
    )
    return np.where(flips, -mode, mode)


def test_draws_and_all_of_them(tmp_path):
    program, signs, drawn = network()
    path = Predictor(program, {"kind": "outputs"}, backend="numpy").save(tmp_path / "model.bbn")
    for source in (program, path):
        for draw in range(DRAWS):
            found = unpack(source, draw=np.int64(draw))
            assert found["a"].dtype == np.int8
            np.testing.assert_array_equal(found["a"], signs[draw])
            np.testing.assert_array_equal(found["b"], right_signs(drawn, draw))
        every = unpack(source, draw="all")
        np.testing.assert_array_equal(every["a"], signs)
        np.testing.assert_array_equal(every["b"], [right_signs(drawn, d) for d in range(DRAWS)])
    assert len(np.unique(signs[:, 0, :8], axis=0)) > 1


def test_the_mode_is_that_of_the_posterior():
    program, _, drawn = network(stored=False)
    no_flips = DrawnSite(drawn.shape, drawn.mode, np.zeros_like(drawn.flip), drawn.keys)
    expected = unpack(Program(program.inputs, {}, {"b": no_flips}, program.steps, ("y",), DRAWS))
    np.testing.assert_array_equal(unpack(program, draw="mode")["b"], expected["b"])
    with pytest.raises(ValueError, match="the signs of draws: name a draw"):
        unpack(network()[0], draw="mode")


@pytest.mark.parametrize("draw", [3, -1, "first", 0.5, None])
def test_draws_that_there_are_not_are_refused(draw):
    with pytest.raises(ValueError, match="draw"):
        unpack(network()[0], draw=draw)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_arrays_are_written_and_read_back(ending, tmp_path):
    arrays = unpack(network()[0], draw=1)
    path = save_arrays(tmp_path / f"weights.{ending}", arrays)
    if ending == "npz":
        found = dict(np.load(path))
    else:
        from safetensors.numpy import load_file

        found = load_file(path)
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["a"], arrays["a"])
    with pytest.raises(ValueError, match=r"ends in \.npz or \.safetensors, got 'weights.txt'"):
        save_arrays(tmp_path / "weights.txt", arrays)
