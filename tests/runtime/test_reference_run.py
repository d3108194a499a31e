"""How the numpy backend runs a program: draws, what is computed once, what is kept, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from step_cases import CASES

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, StoredSite, Value
from bayesbin.runtime.reference import compute, evaluate, run
from bayesbin.runtime.reference_sums import fast_sums, signed_sums


def x_of(rows: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, size)).astype(np.float32)


def network(draws: int = 4) -> Program:
    """A real layer that all draws share, a drawn one, a shift per draw, and a step of constants alone."""
    rng = np.random.default_rng(7)
    keys = np.array([key_of(0, draw, "w") for draw in range(draws)], dtype=np.uint64)
    flip = np.full((1, 3, 5), 20_000, dtype=np.uint16)
    mode = pack_words(rng.random((3, 5)) < 0.5)[None]
    shifts = rng.standard_normal((2, 3)).astype(np.float32)
    rows = np.arange(draws, dtype=np.int64) % 2
    return Program(
        {"x": Value((6,), "f4")},
        {
            "real": Constant(rng.standard_normal((1, 5, 6)).astype(np.float32)),
            "one": Constant(np.ones((1, 3), np.float32)),
            "shift": Constant(shifts, rows),
        },
        {"w": DrawnSite((3, 5), mode, flip, keys)},
        (
            Step("linear", ("x", "real"), ("h",)),
            Step("tanh", ("h",), ("a",)),
            Step("linear", ("a", "w"), ("s",)),
            Step("neg", ("one",), ("minus",)),
            Step("affine", ("s", "minus", "shift"), ("y",), attributes={"axis": 0}),
        ),
        ("y", "a", "minus", "shift"),
        draws,
    )


def test_draws_differ_and_come_in_the_order_asked_for():
    program, x = network(), x_of(5)
    y, a, minus, shift = run(program, [x], [2, 0, 3, 2])
    assert y.shape == (4, 5, 3) and a.shape == (4, 5, 5) and minus.shape == (4, 5, 3)
    assert y.dtype == np.float32
    each = [run(program, [x], [draw])[0][0] for draw in range(4)]
    assert all(np.array_equal(y[place], each[draw]) for place, draw in enumerate((2, 0, 3, 2)))
    assert len({found.tobytes() for found in each}) == 4
    assert np.array_equal(a[0], a[1]) and (minus == -1).all()
    chosen = run(program.select([2, 0, 3, 2]), [x], range(4))
    assert all(
        np.array_equal(one, two) for one, two in zip((y, a, minus, shift), chosen, strict=True)
    )
    words = program.sites["w"].words(3)
    sums = signed_sums(a[0].T, words).T
    assert np.array_equal(y[2], -sums + program.constants["shift"].data[1])
    assert np.array_equal(shift[2], np.broadcast_to(program.constants["shift"].data[1], (5, 3)))


def test_what_no_draw_changes_is_computed_once():
    seen = []
    run(
        network(),
        [x_of(2)],
        [1, 3, 0],
        observe=lambda step, draws, arrays: seen.append((step.outputs[0], draws)),
    )
    shared = [("h", None), ("a", None), ("minus", None)]
    assert seen == shared + [(name, [draw]) for draw in (1, 3, 0) for name in ("s", "y")]


def test_an_observer_sees_inputs_and_may_replace_outputs():
    program, x = network(), x_of(3)

    def double(step, draws, arrays):
        if step.kind != "tanh":
            return None
        assert arrays[0].shape == (1, 3, 5)
        return [2 * each[None] for each in compute(step, [arrays[0][0]])]

    _, a, _, _ = run(program, [x], [0])
    y, doubled, _, _ = run(program, [x], [0], observe=double)
    assert np.array_equal(doubled, 2 * a)
    assert np.array_equal(y, run(program, [x], [0], observe=double)[0])
    assert not np.array_equal(y, run(program, [x], [0])[0])


def test_some_steps_are_run_from_an_environment_of_arrays():
    program, x = network(), x_of(4)
    env = {"x": x}
    evaluate(program, [0, 1], env, None)
    assert set(env) == {"x", "h", "a"}
    evaluate(program, [2, 3, 4], env, 1, keep={"y"})
    # What is not used here stays: another step may need it.
    assert set(env) == {"x", "h", "y"}
    assert np.array_equal(env["y"], run(program, [x], [1])[0][0])
    with pytest.raises(ValueError, match="expected a value named 'a' to be there"):
        evaluate(program, [2], {"x": x}, 1)


def test_values_are_dropped_after_their_last_use():
    """A long chain holds two values at a time."""
    steps = tuple(Step("neg", (f"v{place}",), (f"v{place + 1}",)) for place in range(20))
    program = Program({"v0": Value((6,), "f4")}, {}, {}, steps, ("v20",))
    held = []

    class Watched(dict):
        def update(self, *args, **kwargs):
            super().update(*args, **kwargs)
            held.append(len(self))

    env = Watched(v0=x_of(2))
    evaluate(program, range(20), env, None, keep={"v20"})
    assert max(held) == 2 and list(env) == ["v20"]


def test_few_levels_and_stored_rows():
    levels = Constant(
        np.array([[[0, 1], [2, 1]], [[2, 2], [0, 0]]], np.uint8), np.array([1, 0]), (-1.0, 0.0, 0.5)
    )
    stored = StoredSite(
        (1, 2), pack_words(np.array([[True, False], [False, True]]))[:, None], np.array([1, 0])
    )
    program = Program(
        {"x": Value((2,), "f4")}, {"l": levels}, {"w": stored},
        (Step("linear", ("x", "l"), ("h",)), Step("linear", ("h", "w"), ("y",))), ("h", "y"), 2,
    )  # fmt: skip
    h, y = run(program, [np.array([[1.0, 3.0]])], [0, 1])
    assert h.tolist() == [[[2.0, -4.0]], [[-1.0, 0.5]]]
    assert y.tolist() == [[[-6.0]], [[-1.5]]]


def test_inputs_are_converted_and_checked():
    program = network()
    whole = np.arange(12).reshape(2, 6)
    assert np.array_equal(run(program, [whole], [0])[0], run(program, [whole.astype("f4")], [0])[0])
    for inputs, draws, words in (
        ([], [0], "expected 1 inputs, got 0"),
        ([x_of(2, 5)], [0], r"expected rows of shape \(6,\) for 'x', got an array \(2, 5\)"),
        ([x_of(2)[0]], [0], "expected rows of shape"),
        ([x_of(2)], [4], "expected draws of 0 to 3"),
        ([x_of(2)], [-1], "expected draws of 0 to 3"),
    ):
        with pytest.raises(ValueError, match=words):
            run(program, inputs, draws)
    two = Program(
        {"a": Value((2,), "f4"), "b": Value((2,), "f4")},
        {},
        {},
        (Step("add", ("a", "b"), ("y",)),),
        ("y",),
    )
    with pytest.raises(ValueError, match="expected as many rows of each input"):
        run(two, [np.zeros((3, 2)), np.zeros((1, 2))], [0])


def test_tokens_that_there_are_not_are_refused():
    table = Constant(np.ones((1, 4, 2), np.float32))
    program = Program(
        {"t": Value((3,), "i8")},
        {"table": table},
        {},
        (Step("embedding", ("t", "table"), ("y",)),),
        ("y",),
    )
    for tokens in ([0, 4, 1], [-1, 0, 0]):
        with pytest.raises(ValueError, match="expected indices of 0 to 3"):
            run(program, [np.array([tokens])], [0])


def test_a_program_that_gives_back_its_inputs():
    program = Program({"x": Value((6,), "f4")}, {}, {}, (), ("x",), 2)
    x = x_of(3)
    assert np.array_equal(run(program, [x], [0, 1])[0], np.stack([x, x]))


def test_no_rows_give_no_rows():
    for case in CASES:
        arrays = case.arrays(2)
        for some, none in zip(
            run(case.program(), arrays, [0]),
            run(case.program(), [x[:0] for x in arrays], [0]),
            strict=True,
        ):
            assert not arrays or none.shape == (1, 0, *some.shape[2:])


def test_inputs_are_not_written_to():
    for case in CASES:
        arrays = case.arrays(2)
        for array in arrays:
            array.flags.writeable = False
        run(case.program(), arrays, [0])
        run(case.program("f8"), arrays, [0])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("signs", [False, True])
def test_fast_sums_are_for_real_inputs_in_float32(dtype, signs):
    words = pack_words(np.random.default_rng(0).random((40, 50)) < 0.5)
    steps = [Step("linear", ("v", "w"), ("y",), dtype)]
    steps.insert(0, Step("sign" if signs else "neg", ("x",), ("v",)))
    site = StoredSite((40, 50), words[None])
    program = Program({"x": Value((50,), "f4")}, {}, {"w": site}, tuple(steps), ("y", "v"))
    x = x_of(9, 50)
    exact, v = run(program, [x], [0])
    fast = run(program, [x], [0], precision="fast")[0]
    if dtype == "f4" and not signs:
        assert np.array_equal(fast[0], fast_sums(v[0].T, words).T)
        assert not np.array_equal(fast, exact)
        np.testing.assert_allclose(fast, exact, atol=2e-3 * np.abs(exact).max())
    else:
        assert np.array_equal(fast, exact)
