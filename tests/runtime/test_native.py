"""The native backend against the numpy backend: the same bits, whatever the batch, isa and threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from kind_cases import data_of, named_cases, program_of
from random_programs import RandomProgram, data_for, random_program

from bayesbin.core.canonical import pack_words
from bayesbin.runtime import native_backend, reference
from bayesbin.runtime.native_backend import NativeProgram
from bayesbin.runtime.native_plan import threshold_of
from bayesbin.runtime.program import Constant, Program, Step, StoredSite, Value

pytestmark = pytest.mark.skipif(
    not native_backend.available(), reason=str(native_backend.why_not())
)
ISAS = native_backend.isas() if native_backend.available() else []
CASES = named_cases()


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def check(program, inputs, draws, **options):
    """On every isa, in some number of threads."""
    expected = reference.run(program, inputs, draws, **options)
    native = NativeProgram(program, **options)
    for threads, isa in enumerate(ISAS, 1):
        same(native.run(inputs, draws, isa=isa, threads=threads), expected)
    return native


@pytest.mark.parametrize(("name", "case", "dtype"), CASES, ids=[name for name, *_ in CASES])
def test_every_kind_of_step(name, case, dtype):
    program = program_of(case, dtype)
    for rows in (1, 3, 20, 37):
        check(program, data_of(case, program, rows), [2, 0])


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed):
    program = random_program(seed)
    for rows in (1, 6, 35):
        check(program, data_for(program, rows, seed), range(3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 400))
def test_many_random_networks(seed):
    test_random_networks(seed)


@pytest.mark.parametrize("seed", range(4))
def test_fast_sums(seed):
    program = random_program(seed)
    native = check(program, data_for(program, 40), range(3), precision="fast")
    exact = NativeProgram(program).run(data_for(program, 40), range(3))
    assert any(region and "fast" in region.kinds.values() for _, region in native._plan(False))
    found = native.run(data_for(program, 40), range(3))
    assert not np.array_equal(found[0], exact[0])
    np.testing.assert_allclose(found[0], exact[0], atol=0.05 * np.abs(exact[0]).max())


def kinds_of_sums(native):
    return [kind for _, region in native._plan(False) if region for kind in region.kinds.values()]


def summary(native):
    return [(row.kind, row.backend, row.group) for row in native.summary()]


# Groups


def test_what_no_draw_changes_is_apart_and_the_rest_in_one_group():
    p = RandomProgram(0)
    x = p.step("relu", (p.input((6,)),))
    y = p.elementwise(p.linear(x, 5), [("relu", {})])
    native = check(p.program(y), data_for(p.program(y), 9), range(3))
    assert summary(native) == [
        ("relu", "native", 0),
        ("linear", "native", 1),
        ("relu", "native", 1),
    ]


def test_numpy_runs_what_the_kernels_do_not_and_detours_stay_in_order():
    p = RandomProgram(0)
    a = p.linear(p.input((6,)), 5)
    b = p.step("silu", (a,))
    y = p.step("add", (p.step("neg", (a,)), p.step("relu", (b,))))
    program = p.program(y, b)
    native = check(program, data_for(program, 9), range(3))
    assert summary(native) == [
        ("linear", "native", 0), ("neg", "native", 0), ("silu", "numpy", 1), ("relu", "native", 2),
        ("add", "native", 2),
    ]  # fmt: skip


def test_draws_pass_to_numpy_a_few_at_a_time(monkeypatch):
    p = RandomProgram(3, draws=7)
    y = p.linear(p.step("silu", (p.linear(p.input((6,)), 50),)), 4)
    program = p.program(y)
    x = data_for(program, 9)
    expected = reference.run(program, x, range(7))
    monkeypatch.setattr(native_backend, "_MEMORY", 2 * 8 * 100 * 9)
    same(NativeProgram(program).run(x, range(7)), expected)
    same(NativeProgram(program).run(x, [6, 0, 3]), [each[[6, 0, 3]] for each in expected])


def test_weights_that_are_computed():
    p = RandomProgram(5)
    scaled = p.step("mul", (p.site((8, 6)), p.constant((8, 1))))
    whole = p.step("exp", (p.constant((8,), drawn=False),))
    y = p.step("linear", (p.input((6,)), scaled, whole))
    images = p.input((2, 5, 5))
    kernel = p.step("mul", (p.site((3, 2, 3, 3)), p.constant((3, 1, 1, 1))))
    z = p.step(
        "conv", (images, kernel), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1
    )
    slope = p.step("exp", (p.constant(()),))
    z = p.step("affine", (z, slope, p.constant((3,))), axis=0)
    program = p.program(y, z)
    native = check(program, data_for(program, 19), range(3))
    assert ("linear", "native", 2) in summary(native)


@pytest.mark.parametrize("drawn", [False, True])
def test_weights_of_a_few_levels(drawn):
    p = RandomProgram(7)
    rows = np.array([1, 0, 1]) if drawn else None
    data = p.rng.integers(0, 3, (2 if drawn else 1, 5, 6)).astype(np.uint8)
    p.constants["w"] = Constant(data, rows, (-1.5, 0.0, 0.75))
    p.shapes["w"] = (5, 6)
    program = p.program(p.step("linear", (p.input((6,)), "w", p.constant((5,)))))
    native = check(program, data_for(program, 21), range(3))
    assert summary(native)[0][:2] == ("linear", "native")


def test_outputs_that_are_inputs_constants_or_the_same_for_all_draws():
    p = RandomProgram(1)
    x, c = p.input((3,)), p.constant((2,), drawn=True)
    y = p.step("neg", (x,))
    z = p.step("abs", (c,))
    program = p.program(x, y, c, z)
    check(program, data_for(program, 5), [1, 2, 0])


@pytest.mark.parametrize("drawn", [False, True])
def test_steps_whose_values_nobody_uses(drawn):
    rows = np.arange(2) if drawn else None
    numbers = Constant(np.ones((2, 2), dtype=np.float32), rows)
    steps = (
        Step("add", ("x", "c"), ("a",)),
        Step("abs", ("a",), ("unused",)),
        Step("neg", ("x",), ("y",)),
    )
    program = Program({"x": Value((2,), "f4")}, {"c": numbers}, {}, steps, ("y",), 2)
    check(program, [np.ones((3, 2), dtype=np.float32)], [0, 1])


def test_one_input_per_row_and_two_with_one_row_for_all():
    p = RandomProgram(2)
    table = p.constant((4, 6), drawn=True)
    row = p.step("slice", (table,), axis=0, start=0, stop=1, step=1)
    x = p.step("mul", (p.input((1, 6)), p.step("reshape", (row,), shape=(1, 6))))
    program = p.program(p.linear(x, 3))
    check(program, data_for(program, 7), range(3))


# Decisions


@pytest.mark.parametrize("inputs", [1, 31, 70, 784])
def test_decisions_about_real_sums_are_those_of_float64(inputs):
    """Thresholds at the very sums, and the smallest step to either side of them."""
    rng = np.random.default_rng(0)
    p = RandomProgram(inputs, draws=2)
    x, units = p.input((inputs,)), 40
    weight = p.site((units, inputs))
    sums = p.step("linear", (x, weight), "f8")
    data = rng.standard_normal((9, inputs)).astype(np.float32)
    (exact,) = reference.run(p.program(sums), [data], [0])
    at = np.stack(
        [exact[0, 4], np.nextafter(exact[0, 4], np.inf), np.nextafter(exact[0, 4], -np.inf)]
    )
    for t in at:
        for sign in (1.0, -1.0):
            p.constants.update(t=Constant(t[None]), d=Constant(np.full((1, units), sign)))
            step = Step("threshold", (sums, "t", "d"), ("s",), "f4", {"axis": 0})
            program = Program(p.inputs, p.constants, p.sites, (*p.steps, step), ("s",), 2)
            native = check(program, [data], [0, 1])
            assert kinds_of_sums(native) == ["decide"]
    assert inputs == 1 or not np.array_equal(exact[0], exact[0].astype(np.float32))


def test_decisions_of_zeros_infinities_and_nan():
    p = RandomProgram(0)
    x = np.array(
        [[0, 0, 0], [np.inf, 1, 2], [np.nan, 0, 0], [np.inf, -np.inf, 0], [1e38, 3e38, 3e38]]
    )
    sums = p.step("linear", (p.input((3,)), p.site((6, 3))), "f8")
    numbers = {
        "t": np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e39]),
        "d": np.array([1.0, -1, 1, -1, 1, 0]),
    }
    p.constants.update({name: Constant(array[None]) for name, array in numbers.items()})
    step = Step("threshold", (sums, "t", "d"), ("s",), "f4", {"axis": 0})
    program = Program(p.inputs, p.constants, p.sites, (*p.steps, step), ("s",), 3)
    native = check(program, [np.concatenate([x, -x]).astype(np.float32)], range(3))
    assert kinds_of_sums(native) == ["decide"]


def test_thresholds_of_whole_numbers_that_float32_has_not():
    """Sums are kept in float32; thresholds between its numbers decide as in float64."""
    p = RandomProgram(0)
    s = p.step("sign", (p.input((64,)),))
    sums = p.step("linear", (s, p.site((40, 64))), "f8")
    t = np.rint(np.random.default_rng(0).standard_normal(40) * 6) * 2
    t = t + np.resize([0.0, 1e-13, -1e-13, 1e-300], 40)
    for sign in (1.0, -1.0):
        p.constants.update(t=Constant(t[None]), d=Constant(np.full((1, 40), sign)))
        step = Step("threshold", (sums, "t", "d"), ("b",), "f4", {"axis": 0})
        program = Program(p.inputs, p.constants, p.sites, (*p.steps, step), ("b",), 3)
        native = check(program, data_for(program, 50), range(3))
        assert kinds_of_sums(native) == ["decide_sign"]


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("shape", [(3, 9, 8), (2, 17)])
@pytest.mark.parametrize("ceil", [False, True])
def test_decisions_about_maxima(shape, signs, ceil):
    p = RandomProgram(len(shape))
    x = p.input(shape)
    x = p.step("sign", (x,)) if signs else x
    ones = (1,) * (len(shape) - 1)
    x = p.conv(x, 6, "f8")
    x = p.step(
        "max_pool", (x,), "f8", size=tuple(3 * each for each in ones),
        stride=tuple(2 * each for each in ones), padding=ones, ceil=ceil, dilation=ones,
    )  # fmt: skip
    p.constants["t"] = Constant(np.array([[0, 1, -np.inf, np.inf, 2, -1.0]]))
    p.constants["d"] = Constant(np.array([[1, -1, -1, 1, 0, 1.0]]))
    p.shapes["t"] = p.shapes["d"] = (6,)
    x = p.step("threshold", (x, "t", "d"), axis=0)
    program = p.program(p.linear(p.step("reshape", (x,), shape=(int(np.prod(p.shapes[x])),)), 4))
    for rows in (1, 5, 40):
        data = data_for(program, rows)
        if not signs:
            data[0].flat[3::97], data[0].flat[40::211] = np.nan, np.inf
        native = check(program, data, range(3))
    assert kinds_of_sums(native)[0] == ("decide_sign" if signs else "decide")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_threshold_of_an_affine_map(dtype):
    """The map decides otherwise one float64 number further on; where it never does, there is none."""
    rng = np.random.default_rng(0)
    slope = (rng.standard_normal(500) * 10.0 ** rng.integers(-30, 30, 500)).astype(dtype)
    shift = (rng.standard_normal(500) * 10.0 ** rng.integers(-30, 30, 500)).astype(dtype)
    slope[:4], shift[:4] = [1, -1, 1e-30, -1e-30], [0, 0, -1e30, 1e30]
    shift[4:8] = [1e-44, -1e-44, 0, 3]

    def reached(x):
        with np.errstate(all="ignore"):
            return x.astype(dtype) * slope + shift >= 0

    with np.errstate(all="ignore"):
        t = threshold_of(slope, shift)
        outward = np.where(slope < 0, np.inf, -np.inf)
        assert reached(t).all() and not reached(np.nextafter(t, outward))[np.isfinite(t)].any()
    assert np.isfinite(t).sum() > 300


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_decisions_behind_affine_maps(signs, pooled):
    p = RandomProgram(1)
    x = p.input((3, 8, 8))
    x = p.affine(p.conv(p.step("sign", (x,)) if signs else x, 40, "f8"), 0, "f8")
    if pooled:
        x = p.step(
            "max_pool", (x,), "f8", size=(2, 2), stride=(2, 2), padding=(0, 0), ceil=False, dilation=(1, 1)
        )  # fmt: skip
    program = p.program(p.step("sign", (x,)))
    data = data_for(program, 40)
    if not signs:
        data[0].flat[3::97], data[0].flat[40::211] = np.nan, np.inf
    native = check(program, data, range(3))
    assert kinds_of_sums(native) == ["decide_sign" if signs else "decide"]


def test_signs_at_the_limits_of_narrow_sums():
    """All signs alike, over as many inputs as a 16-bit sum holds, and over more."""
    for inputs in (32704, 32705):
        p = RandomProgram(0)
        weight = p.site((4, inputs))
        p.sites[weight] = StoredSite(
            (4, inputs), pack_words(np.repeat([[True], [False]] * 2, inputs, 1))[None]
        )
        sums = p.step("linear", (p.step("sign", (p.input((inputs,)),)), weight), "f8")
        p.constants["t"] = Constant(np.array([[inputs, -inputs, inputs + 1e-9, -inputs - 1e-9]]))
        p.constants["d"] = Constant(np.array([[1, 1, 1, -1.0]]))
        p.shapes["t"] = p.shapes["d"] = (4,)
        y = p.step("threshold", (sums, "t", "d"), axis=0)
        program = p.program(y)
        native = check(program, [np.ones((2, inputs), np.float32)], [0])
        assert kinds_of_sums(native) == (["decide_sign"] if inputs == 32704 else ["sign"])


# Batches, threads, draws


def test_a_row_is_the_same_alone_and_in_any_batch():
    for seed in range(6):
        program = random_program(seed)
        x = data_for(program, 70)
        native = NativeProgram(program)
        whole = native.run(x, range(3))
        for rows in (1, 2, 8, 9, 16, 17, 33):
            same(
                native.run([each[:rows] for each in x], range(3)),
                [each[:, :rows] for each in whole],
            )
            same(
                native.run([each[-rows:] for each in x], range(3)),
                [each[:, -rows:] for each in whole],
            )


def test_rows_beyond_a_segment_and_more_threads_than_draws():
    p = RandomProgram(0)
    program = p.program(p.linear(p.step("relu", (p.input((20,)),)), 3))
    x = data_for(program, 2100)
    expected = reference.run(program, x, [1])
    native = NativeProgram(program)
    for threads in (1, 2, 8):
        same(native.run(x, [1], threads=threads), expected)


def test_no_rows():
    program = random_program(1)
    check(program, data_for(program, 0), range(3))


def test_calls_from_several_threads():
    program = random_program(2)
    x, native = data_for(program, 40), NativeProgram(program)
    expected = native.run(x, range(3))
    results: list = [None] * 6

    def call(i):
        results[i] = [native.run(x, range(3), threads=1 + i % 3) for _ in range(3)]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for found in results:
        for each in found:
            same(each, expected)


# Calibration


def test_an_observer_normalises_in_the_middle():
    p = RandomProgram(4)
    x = p.conv(p.input((2, 9, 9)), 4)
    numbers = [p.constant((4,), drawn=False) for _ in range(2)]
    x = p.step("batch_norm", (x, *numbers), axis=0, eps=1e-3)
    x = p.step("batch_norm", (p.conv(p.step("relu", (x,)), 4), *numbers), axis=0, eps=1e-3)
    program = p.program(p.step("relu", (x,)))
    seen: list = []

    def observe(step, draws, arrays):
        if step.kind != "batch_norm":
            return None
        seen.extend((step.outputs[0], draw, arrays[0].shape[1:]) for draw in draws)
        # Each draw by itself: sums of several at once may be in another order.
        return [np.stack([x - x.mean((0, 2, 3), keepdims=True) for x in arrays[0]])]

    data = data_for(program, 30)
    expected = reference.run(program, data, range(3), observe=observe)
    calls, seen = seen, []
    native = NativeProgram(program)
    same(native.run(data, range(3), observe=observe, threads=2), expected)
    assert sorted(map(str, seen)) == sorted(map(str, calls)) and len(seen) == 6
    assert not any(row.backend == "numpy" for row in native.summary())  # without an observer


# Processes, signals


def python(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, env=os.environ | environment, timeout=120,
    )  # fmt: skip


CHILD = """
import os, sys
import numpy as np
from bayesbin.runtime import native_backend
x, bits = np.ones((100, 64), np.float32), np.zeros((9, 1), np.uint64)
before = native_backend.linear(x, bits, threads=3)
child = os.fork()
after = native_backend.linear(x, bits, threads=3)
if child == 0:
    os._exit(0 if np.array_equal(before, after) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_computes_on():
    child = python(CHILD)
    assert child.returncode == 0, child.stderr


DRAWS = """
import sys, time
import numpy as np
from bayesbin.runtime.native_backend import NativeProgram
from bayesbin.runtime.program import DrawnSite, Program, Step, Value
def program(sizes, draws):
    sites, steps = {}, []
    for i, (inputs, units) in enumerate(zip(sizes, sizes[1:])):
        mode = np.zeros((1, units, -(-inputs // 64)), np.uint64)
        flip = np.full((1, units, inputs), 9000, np.uint16)
        sites[f"w{i}"] = DrawnSite((units, inputs), mode, flip, np.arange(draws, dtype=np.uint64))
        steps.append(Step("linear", (f"x{i}", f"w{i}"), (f"x{i + 1}",)))
    value = Value((sizes[0],), "f4")
    return NativeProgram(Program({"x0": value}, {}, sites, tuple(steps), (f"x{i + 1}",), draws))
"""
INTERRUPTED = f"""{DRAWS}
native = program((1024, 1024, 1), 100_000)
print("running", flush=True)
try:
    native.run([np.ones((32, 1024), np.float32)], range(100_000), threads=int(sys.argv[1]))
except KeyboardInterrupt:
    print(time.time(), flush=True)
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_an_interrupt_stops_a_call(threads):
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, threads], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "running\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        sent = time.time()
        stopped = float(child.communicate(timeout=60)[0])
    assert child.returncode == 0
    assert stopped - sent < 2.0  # a tenth of a second on a machine with nothing else to do


def test_memory_does_not_grow_with_the_number_of_draws():
    """The process's peak for many draws is that for few."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads ru_maxrss in kilobytes")
    program = f"""{DRAWS}
import resource
native = program((784, 1024, 1024, 10), 40)
x = [np.ones((100, 784), np.float32)]
native.run(x, [0])
first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
native.run(x, range(40))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first)
"""
    assert int(python(program).stdout) < 2_000


def test_the_environment_names_the_isa():
    isa = "from bayesbin.runtime import native_backend; print(native_backend.isa())"
    assert python(isa, BAYESBIN_KERNEL="portable").stdout == "portable\n"
    assert "is one of portable, avx2" in python(isa, BAYESBIN_KERNEL="fastest").stderr
    other = next(name for name in ("neon", "avx512", "avx2") if name not in ISAS)
    assert "does not run on this machine" in python(isa, BAYESBIN_KERNEL=other).stderr


def test_the_backend_imports_no_torch():
    program = (
        "import sys, bayesbin.runtime.native_backend; print({'torch', 'scipy'} & set(sys.modules))"
    )
    assert python(program).stdout == "set()\n"


# Errors


def test_errors():
    p = RandomProgram(0)
    program = p.program(p.linear(p.input((6,)), 5))
    native, x = NativeProgram(program), data_for(program, 4)
    with pytest.raises(ValueError, match="draws of 0 to 2"):
        native.run(x, [3])
    with pytest.raises(ValueError, match=r"rows of shape \(6,\)"):
        native.run([x[0][:, :5]], [0])
    with pytest.raises(ValueError, match="'sse'"):
        native.run(x, [0], isa="sse")
    with pytest.raises(ValueError, match="threads to be a whole number of at least 1"):
        native.run(x, [0], threads=0)
    with pytest.raises(ValueError, match="precision"):
        NativeProgram(program, "exactly")


def test_arrays_of_other_layouts_and_types():
    p = RandomProgram(0)
    program = p.program(p.linear(p.input((6,)), 5), p.step("neg", (p.input((3, 2), "f8"),)))
    x, y = data_for(program, 8)
    expected = reference.run(program, [x, y], range(3))
    native = NativeProgram(program)
    same(native.run([np.asfortranarray(x), np.asfortranarray(y)], range(3)), expected)
    same(native.run([x.astype(np.float64), y], range(3)), expected)
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    same(native.run([wide, y[::-1][::-1]], range(3)), expected)
