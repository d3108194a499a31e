"""A whole network as a program for the compiled kernels, averaged over draws that are never stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bayesbin.predict.kernels import (
    Pair,
    address,
    checked,
    kind_number,
    loaded,
    pixels_of,
    thread_count,
    window_of,
)
from bayesbin.predict.packing import num_words
from bayesbin.predict.program_rows import (
    ADD,
    AFFINE,
    AVG_POOL,
    CLAMP,
    FLATTEN,
    MAX_POOL,
    PUSH,
    SIMPLE,
    SWAP,
    WEIGHTS,
    rows_of,
    with_addresses,
)


@dataclass(frozen=True)
class ClassSums:
    """Sums over S draws, float64: of probabilities and their squares (M, C), of entropies in nats (M,).

    ``log_probs`` is the logarithm of the first, also where that is too small for a number of its own.
    ``outputs`` are the logits of each draw, float32 (S, M, C), if they were asked for.
    """

    probs: np.ndarray
    squares: np.ndarray
    entropies: np.ndarray
    log_probs: np.ndarray
    outputs: np.ndarray | None


@dataclass(frozen=True)
class RegressionSums:
    """Mean over draws, and sum of squared deviations from it, float64 (M, C); outputs as ClassSums."""

    mean: np.ndarray
    deviations: np.ndarray
    outputs: np.ndarray | None


class Program:
    """A network as steps in a row, to be run for S draws; all methods but those named run add a step.

    Arrays that differ by draw have S as their first dimension, or 1 where all draws share them. They
    are kept by the program, not copied. It can be made without the compiled kernels, but not run.

    :param shape: of one input, (C, H, W); a vector of n inputs is (n, 1, 1).
    :param draws: S, at least 1.
    :raises ValueError: for a shape or a number below 1.

    Example::

        >>> import numpy as np
        >>> from bayesbin.predict.kernel_program import Program
        >>> program = Program((3, 1, 1), draws=1)
        >>> program.given(np.full((1, 2, 1), 7, dtype=np.uint64), (2, 3))
        >>> program.shape
        (2, 1, 1)
    """

    def __init__(self, shape: tuple[int, int, int], draws: int) -> None:
        if len(shape) != 3 or min(shape) < 1 or draws < 1:
            raise ValueError(
                f"A program is for inputs (C, H, W) of at least 1 each, and for at least 1 draw; got "
                f"{shape} and {draws}."
            )
        self.input = shape
        self.shape = shape  # of one input to the next step
        self.draws = draws
        self._steps: list[list[int]] = []
        self._kept: list[np.ndarray] = []
        self._stack: list[tuple[int, int, int]] = []  # the shapes of values put aside

    def drawn(
        self,
        mode: np.ndarray,
        thresholds: np.ndarray,
        keys: np.ndarray,
        shape: tuple[int, ...],
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        kind: str = "real",
    ) -> None:
        """Weights of ``shape``, (N, K) or (N, C, height, width), drawn anew for each draw.

        :param mode: packed, (N, words). :param thresholds: uint16 (N, K), K all inputs of a unit.
        :param keys: uint64 (S,). :param kind: as :func:`bayesbin.predict.kernels.linear`.
        """
        units, inputs = shape[0], math.prod(shape[1:])
        arrays = (
            checked("mode", mode, np.uint64, (units, num_words(inputs))),
            checked("thresholds", thresholds, np.uint16, (units, inputs)),
            checked("keys", keys, np.uint64, (self.draws,)),
        )
        self._weights(shape, stride, padding, kind, [*self._keep(*arrays), 0, 0])

    def given(
        self,
        bits: np.ndarray,
        shape: tuple[int, ...],
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        kind: str = "real",
    ) -> None:
        """Weights of ``shape`` from packed bits, (S or 1, N, words)."""
        bits = checked("bits", bits, np.uint64, (None, shape[0], num_words(math.prod(shape[1:]))))
        step = self._step("bits", bits)
        self._weights(shape, stride, padding, kind, [0, 0, 0, *self._keep(bits), step])

    def affine(self, slope: np.ndarray, shift: np.ndarray) -> None:
        """slope x + shift for each channel; float32 (S or 1, channels or 1)."""
        numbers, steps = [], []
        for name, array in (("slope", slope), ("shift", shift)):
            if isinstance(array, np.ndarray) and array.ndim == 2 and array.shape[1] == 1:
                array = np.repeat(array, self.shape[0], axis=1)
            array = checked(name, array, np.float32, (None, self.shape[0]))
            numbers += self._keep(array)
            steps.append(self._step(name, array))
        self._add([AFFINE, *numbers, *steps], self.shape)

    def activation(self, kind: str, low: float = -1.0, high: float = 1.0) -> None:
        """ "relu", "tanh", "sign" (+1 at 0), or "hardtanh" between ``low`` and ``high``."""
        if kind == "hardtanh":
            bounds = np.array([low, high], dtype=np.float32)
            self._add([CLAMP, *self._keep(bounds)], self.shape)
        elif kind in SIMPLE:
            self._add([SIMPLE[kind]], self.shape)
        else:
            raise ValueError(f"An activation is one of relu, tanh, sign, hardtanh; got {kind!r}.")

    def pool(
        self,
        kind: str,
        size: Pair,
        stride: Pair,
        padding: Pair = (0, 0),
        count_include_pad: bool = True,
    ) -> None:
        """The maximum ("max") or mean ("avg") over windows of images, as torch's without ceil_mode."""
        if kind not in ("max", "avg"):
            raise ValueError(f'Pooling is "max" or "avg"; got {kind!r}.')
        op = MAX_POOL if kind == "max" else AVG_POOL
        window = window_of(size, stride, padding)
        if 2 * padding[0] > size[0] or 2 * padding[1] > size[1]:
            raise ValueError(
                f"The padding of a pool is at most half its size; got {padding} for a size of {size}."
            )
        shape = (self.shape[0], *pixels_of(self.shape[1:], window))
        self._add([op, int(count_include_pad), 0, 0, *window], shape)

    def flatten(self) -> None:
        """(C, H, W) to (C H W, 1, 1), in that order."""
        self._add([FLATTEN], (math.prod(self.shape), 1, 1))

    def push(self) -> None:
        """Put a copy of the values on the stack, for a later swap or add."""
        self._add([PUSH], self.shape)
        self._stack.append(self.shape)

    def swap(self) -> None:
        """Exchange the values with those on top of the stack."""
        top = self._pop()
        self._stack.append(self.shape)
        self._add([SWAP], top)

    def add(self) -> None:
        """Take the values on top off the stack and add them to the current ones, of the same shape."""
        top = self._pop()
        if top != self.shape:
            raise ValueError(
                f"An addition is of values of one shape; got {self.shape} and {top}. Give the shortcut "
                "the outputs of the body."
            )
        self._add([ADD], self.shape)

    @property
    def rows(self) -> np.ndarray:
        """The steps as csrc/program.h has them, int64 (steps, 16), but arrays by their numbers from 1 on."""
        return rows_of(self._steps)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the numbers in the rows stand for."""
        return tuple(self._kept)

    def run_classes(
        self, x: np.ndarray, *, threads: int = 1, isa: str | None = None, outputs: bool = False
    ) -> ClassSums:
        """Run all draws over x, float32 (M, C H W), the outputs being logits.

        :param outputs: whether to return the logits of each draw as well.
        """
        first, second, entropies, tiny, each = self._run(x, 0, threads, isa, outputs)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_probs = np.logaddexp(np.log(first), tiny)
        return ClassSums(first, second, entropies, log_probs, each)

    def run_regression(
        self, x: np.ndarray, *, threads: int = 1, isa: str | None = None, outputs: bool = False
    ) -> RegressionSums:
        """Run all draws over x, float32 (M, C H W), the outputs being means."""
        first, second, _, _, each = self._run(x, 1, threads, isa, outputs)
        return RegressionSums(first, second, each)

    def _run(
        self, x: np.ndarray, head: int, threads: int, isa: str | None, outputs: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        x = checked("x", x, np.float32, (None, math.prod(self.input)))
        rows, size = len(x), math.prod(self.shape)
        sums = [np.empty(shape) for shape in ((rows, size), (rows, size), (rows,), (rows, size))]
        each = np.empty((self.draws, rows, size), dtype=np.float32) if outputs else None
        program = with_addresses(self.rows, self._kept)
        loaded().fused(
            isa or "", address(program), len(program), self.input, address(x), rows, self.draws, head,
            *map(address, sums), 0 if each is None else address(each), thread_count(threads),
        )  # fmt: skip
        return sums[0], sums[1], sums[2], sums[3], each

    def _weights(
        self, shape: tuple[int, ...], stride: Pair, padding: Pair, kind: str, source: list[int]
    ) -> None:
        if len(shape) not in (2, 4) or min(shape) < 1:
            raise ValueError(
                f"Weights are (units, inputs) or (units, channels, height, width); got {shape}."
            )
        if len(shape) == 2 and self.shape[1:] != (1, 1):
            raise ValueError(f"A linear layer follows flatten(); got images {self.shape}.")
        if shape[1] != self.shape[0]:
            raise ValueError(
                f"A layer has weights for {shape[1]} channels, but gets {self.shape[0]}; it is used with "
                "inputs as the network was trained on."
            )
        window = window_of(shape[2:] if len(shape) == 4 else (1, 1), stride, padding)  # pyright: ignore
        step = [WEIGHTS, kind_number(kind), shape[0], shape[1], *window, *source]
        self._add(step, (shape[0], *pixels_of(self.shape[1:], window)))

    def _add(self, step: list[int], shape: tuple[int, int, int]) -> None:
        """Add a step, and what comes out of it."""
        self._steps.append(step)
        self.shape = shape

    def _pop(self) -> tuple[int, int, int]:
        if not self._stack:
            raise ValueError("The stack is empty; push values before they are swapped or added.")
        return self._stack.pop()

    def _keep(self, *arrays: np.ndarray) -> list[int]:
        """The numbers, from 1 on, of arrays in ``self.arrays``."""
        self._kept += arrays
        return list(range(len(self._kept) - len(arrays) + 1, len(self._kept) + 1))

    def _step(self, name: str, array: np.ndarray) -> int:
        """Elements from one draw to the next: 0 for values that all draws share."""
        if len(array) not in (1, self.draws):
            raise ValueError(
                f"{name} is for {self.draws} draws, or for one that all share; got {len(array)}."
            )
        return 0 if len(array) == 1 else array[0].size
