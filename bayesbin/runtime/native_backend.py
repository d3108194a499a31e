"""The native backend: programs run by the compiled kernels, and by numpy where these have no step.

It gives the same bits as :mod:`bayesbin.runtime.reference`, for every instruction set, batch and number of
threads. Every function takes ``isa``, the set of instructions to run on (None: the one that the environment
variable BAYESBIN_KERNEL names, or else the best there is), and ``threads``. Ctrl-C stops a call within a
tenth of a second. The C++ side is in bayesbin/runtime/native, from module.cpp on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesbin.core.checks import one_of, whole_number
from bayesbin.runtime import reference
from bayesbin.runtime.native_plan import Group, groups
from bayesbin.runtime.native_region import Region
from bayesbin.runtime.program import Program, Step, StoredSite, Value

_module: Any = None
_why_not: str | None = None
try:
    from bayesbin.runtime import _kernels as _module  # pyright: ignore

    if not hasattr(_module, "Program"):
        raise ImportError("they are of another version")
except ImportError as error:
    _module = None
    _why_not = (
        f"The compiled kernels are not there ({error}); install the package where there is a C++ "
        "compiler to have them built."
    )

KINDS = ("real", "fast", "sign")  # of sums
_MEMORY = 1 << 26  # bytes of values that pass between the kernels and numpy at once, about
Observe = reference.Observe


def available() -> bool:
    """Whether the kernels were built."""
    return _module is not None


def why_not() -> str | None:
    """Why they are not available, in a sentence; None if they are."""
    return _why_not


def isa() -> str:
    """The isa in use: "portable", "avx2", "avx512" or "neon"; "none" where the kernels were not built."""
    return _module.isa() if available() else "none"


def kernel_isa() -> str:
    """The isa in use, under the name by which it is imported from elsewhere."""
    return isa()


def isas() -> list[str]:
    """The isas that this machine can run, best last."""
    return _loaded().isas()


class GroupedStep(NamedTuple):
    """One step: its kind, its output, who runs it ("native" or "numpy"), and the number of its group."""

    kind: str
    output: str
    backend: str
    group: int


class NativeProgram:
    """A program made ready for the kernels, once, to be run for many calls.

    Steps that no draw changes are run once for each call. All others are run draw by draw in the kernels;
    where numpy has to run some of them, a few draws at a time.

    :param precision: "exact", or "fast": sums of real inputs under the signs of a ``linear`` step in
        float32 are formed from 16-bit numbers.
    :raises RuntimeError: where there are no kernels.

    Example::

        >>> import numpy as np
        >>> from bayesbin.runtime.program import Program, Step, Value
        >>> double = Step("add", ("x", "x"), ("y",))
        >>> program = Program({"x": Value((2,), "f4")}, {}, {}, (double,), ("y",))
        >>> NativeProgram(program).run([np.array([[1.0, 2.0]])], [0])
        [array([[[2., 4.]]], dtype=float32)]
    """

    def __init__(self, program: Program, precision: str = "exact") -> None:
        self.program = program
        self.precision = one_of("precision", precision, ("exact", "fast"))
        _loaded()
        self._plans: dict[bool, list[tuple[Group, Region | None]]] = {}
        self._plan(False)

    def run(
        self,
        inputs: Sequence[np.ndarray],
        draws: Sequence[int],
        *,
        threads: int = 1,
        isa: str | None = None,
        observe: Observe | None = None,
    ) -> list[np.ndarray]:
        """The outputs for some draws; arguments and errors as :func:`bayesbin.runtime.reference.run`.

        :param observe: is called for steps of normalisation (``batch_norm``) alone, with many draws at once.
        """
        program, draws = self.program, list(draws)
        threads = min(whole_number("threads", threads, at_least=1), 256)
        shared: dict[str, Any] = dict(reference.checked_inputs(program, inputs))
        rows = len(next(iter(shared.values()))) if shared else 1
        if any(not 0 <= draw < program.num_draws for draw in draws):
            raise ValueError(f"expected draws of 0 to {program.num_draws - 1}, got {draws[:10]}.")
        call = _Call(self, rows, threads, isa or "", observe)
        plan = self._plan(observe is not None)
        call.shared(plan, shared)
        drawn = [each for each in plan if each[0].drawn]
        many = self._draws_at_once(drawn, rows, len(draws))
        out = [
            np.empty((len(draws), rows, *program.values[name].shape), program.values[name].dtype)
            for name in program.outputs
        ]
        for first in range(0, len(draws), many):
            some = draws[first : first + many]
            found = call.drawn(drawn, shared, some)
            for array, name in zip(out, program.outputs, strict=True):
                call.fill(array[first : first + many], name, found, shared, some)
        return out

    def summary(self) -> list[GroupedStep]:
        """Which steps the kernels run, in the order of the groups in which all steps run."""
        return [
            GroupedStep(step.kind, step.outputs[0], "native" if group.native else "numpy", number)
            for number, (group, _) in enumerate(self._plan(False))
            for step in (self.program.steps[place] for place in group.places)
        ]

    def _plan(self, observing: bool) -> list[tuple[Group, Region | None]]:
        if observing not in self._plans:
            fast = self.precision == "fast"
            self._plans[observing] = [
                (group, Region(_module, self.program, group, fast) if group.native else None)
                for group in groups(self.program, ("batch_norm",) if observing else ())
            ]
        return self._plans[observing]

    def _draws_at_once(
        self, drawn: Sequence[tuple[Group, Region | None]], rows: int, draws: int
    ) -> int:
        if len(drawn) == 1 and drawn[0][0].native:
            return max(1, draws)
        values = self.program.values
        size = sum(8 * values[name].size for group, _ in drawn for name in group.gives)
        return max(1, min(draws, _MEMORY // max(1, size * rows)))


class _Call:
    """What one call of a program passes from group to group."""

    def __init__(
        self, native: NativeProgram, rows: int, threads: int, isa: str, observe: Observe | None
    ) -> None:
        self.program, self.precision = native.program, native.precision
        self.rows, self.threads, self.isa = rows, threads, isa
        self.observe = observe

    def shared(self, plan: Sequence[tuple[Group, Region | None]], env: dict[str, Any]) -> None:
        """Put the values that no draw changes into ``env``: (rows or 1, *shape)."""
        for group, region in plan:
            if group.drawn:
                continue
            if region is None:
                self._in_numpy(group, env, None)
                continue
            given = {name: self._value(name, env, 0)[None] for name in _needs(region)}
            found = region.run(given, [0], self.rows, self.threads, self.isa)
            env.update((name, array[0]) for name, array in found.items())

    def drawn(
        self,
        plan: Sequence[tuple[Group, Region | None]],
        shared: Mapping[str, Any],
        draws: Sequence[int],
    ) -> dict[str, np.ndarray]:
        """The values that others use and that differ between draws: (draws, rows or 1, *shape)."""
        found: dict[str, np.ndarray] = {}
        for group, region in plan:
            if region is not None:
                given = {name: self._stacked(name, found, shared, draws) for name in _needs(region)}
                found.update(region.run(given, draws, self.rows, self.threads, self.isa))
                continue
            if self.observe is not None and self._normalised(group, found, shared, draws):
                continue
            for place, draw in enumerate(draws):
                env: dict[str, Any] = dict(shared)
                env.update((name, found[name][place]) for name in group.needs if name in found)
                self._in_numpy(group, env, draw)
                for name in group.gives:
                    if name not in found:
                        shape, dtype = env[name].shape, env[name].dtype
                        found[name] = np.empty((len(draws), *shape), dtype)
                    found[name][place] = env[name]
        return found

    def fill(
        self,
        out: np.ndarray,
        name: str,
        found: Mapping[str, np.ndarray],
        shared: dict[str, Any],
        draws: Sequence[int],
    ) -> None:
        """An output of the program, (draws, rows, *shape)."""
        if name in found:
            out[:] = found[name]
            return
        for place, draw in enumerate(draws):
            out[place] = self._value(name, shared, draw)

    def _in_numpy(self, group: Group, env: dict[str, Any], draw: int | None) -> None:
        reference.evaluate(
            self.program, group.places, env, draw,
            keep={*env, *group.gives}, observe=self._observed, precision=self.precision,
        )  # fmt: skip

    def _normalised(
        self,
        group: Group,
        found: dict[str, np.ndarray],
        shared: Mapping[str, Any],
        draws: Sequence[int],
    ) -> bool:
        """Whether the group is of normalisation alone, and an observer has made all its values."""
        assert self.observe is not None
        steps = [self.program.steps[place] for place in group.places]
        if any(step.kind != "batch_norm" for step in steps):
            return False
        for step in steps:
            x = self._stacked(step.inputs[0], found, shared, draws)
            if step.inputs[0] not in found:
                x = np.broadcast_to(x, x.shape)  # not to be written to
            given = [x] + [
                self._stacked(name, found, shared, draws) if name else None
                for name in step.inputs[1:]
            ]
            made = self.observe(step, draws, given)
            if made is None:
                return False
            found.update(zip(step.outputs, made, strict=True))
        return True

    def _observed(self, step: Step, draws: Sequence[int] | None, arrays: Sequence[Any]) -> Any:
        if self.observe is None or step.kind != "batch_norm":
            return None
        return self.observe(step, draws, arrays)

    def _value(self, name: str, env: Any, draw: int) -> np.ndarray:
        found = reference.lookup(self.program, name, env, draw)
        return found.array() if isinstance(found, reference.PackedSigns) else found

    def _stacked(
        self,
        name: str,
        found: Mapping[str, np.ndarray],
        shared: Mapping[str, Any],
        draws: Sequence[int],
    ) -> np.ndarray:
        if name in found:
            return found[name]
        if self.program.values[name].drawn:
            return np.stack([self._value(name, shared, draw) for draw in draws])
        return self._value(name, shared, draws[0])[None]


def _needs(region: Region) -> list[str]:
    return [*region.inputs, *(argument.name for argument in region.arguments)]


def run(
    program: Program,
    inputs: Sequence[np.ndarray],
    draws: Sequence[int],
    *,
    threads: int = 1,
    isa: str | None = None,
    observe: Observe | None = None,
    precision: str = "exact",
) -> list[np.ndarray]:
    """:func:`bayesbin.runtime.reference.run`, by the kernels; :class:`NativeProgram` is for several calls."""
    native = NativeProgram(program, precision)
    return native.run(inputs, draws, threads=threads, isa=isa, observe=observe)


# Single layers, and draws


def draw_bits(
    mode: np.ndarray, flip: np.ndarray, key: int, *, isa: str | None = None, threads: int = 1
) -> np.ndarray:
    """The packed signs of a draw, as :func:`bayesbin.core.canonical.draw_words` has them.

    :param mode: packed, uint64 (N, words). :param flip: uint16 (N, K), of at most 32768.
    :raises ValueError: for arrays of other shapes. :raises TypeError: for arrays of other types.
    """
    out = np.empty(np.shape(mode), np.uint64)
    threads = min(whole_number("threads", threads, at_least=1), 256)
    arrays = np.ascontiguousarray(mode), np.ascontiguousarray(flip)
    _loaded().draw_bits(isa or "", *arrays, key % 2**64, out, threads)
    return out


def normalise_by_batch(
    cells: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    mean: np.ndarray,
    squares: np.ndarray,
    threads: int = 1,
    isa: str | None = None,
) -> None:
    """:func:`bayesbin.runtime.batch.normalise_by_batch` of cells (draws, rows, channels, places)."""
    threads = min(whole_number("threads", threads, at_least=1), 256)
    _loaded().normalise_by_batch(isa or "", cells, weight, bias, eps, mean, squares, threads)


def linear(
    x: np.ndarray, bits: np.ndarray, kind: str = "real", *, isa: str | None = None, threads: int = 1
) -> np.ndarray:
    """Real inputs under signs, (M, K) to (M, N): sums over k of w[n, k] x[m, k].

    :param x: float32 or float64. :param bits: packed, (N, words).
    :param kind: "real"; "fast" for inputs rounded to multiples of a row's own step; "sign" for the signs
        of x (+1 at 0), exact.
    """
    inputs = x.shape[1]
    return _layer(
        Step("linear", ("x", "w"), ("y",), _type(x)), x, bits, (inputs,), kind, isa, threads
    )


def conv(
    x: np.ndarray,
    bits: np.ndarray,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]] | None = None,
    kind: str = "real",
    *,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    isa: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Images (M, C, ...) under signs, with zeros around them; arguments as :func:`linear`.

    :param bits: packed rows of the weights (N, C / groups, *kernel).
    """
    once = (1,) * len(kernel)
    attributes = {
        "stride": tuple(stride or once),
        "padding": tuple(padding or [(0, 0)] * len(kernel)),
        "dilation": tuple(dilation or once),
        "groups": groups,
    }
    step = Step("conv", ("x", "w"), ("y",), _type(x), attributes)
    shape = (x.shape[1] // groups, *kernel)
    return _layer(step, x, bits, shape, kind, isa, threads)


def _type(x: np.ndarray) -> str:
    return x.dtype.str[1:]


def _layer(
    step: Step,
    x: np.ndarray,
    bits: np.ndarray,
    shape: tuple[int, ...],
    kind: str,
    isa: str | None,
    threads: int,
) -> np.ndarray:
    """One step over inputs that may be taken by their signs."""
    one_of("kind", kind, KINDS)
    steps, site = [step], StoredSite((len(bits), *shape), bits[None])
    if kind == "sign":
        steps = [Step("sign", ("x",), ("s",), step.dtype)]
        steps.append(Step(step.kind, ("s", "w"), ("y",), step.dtype, step.attributes))
    value = Value(x.shape[1:], step.dtype)
    program = Program({"x": value}, {}, {"w": site}, tuple(steps), ("y",))
    native = NativeProgram(program, "fast" if kind == "fast" else "exact")
    return native.run([x], [0], threads=threads, isa=isa)[0][0]


def _loaded() -> Any:
    """The extension module. :raises RuntimeError: with the reason, if it was not built."""
    if _module is None:
        raise RuntimeError(_why_not)
    return _module
