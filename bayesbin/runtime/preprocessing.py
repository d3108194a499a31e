"""Preprocessing as programs: from raw pixels, or the columns of a table, to a network's inputs.

A program reads its raw input by name: an input ``pixels`` is expected in whole numbers, an input
``table`` in any; see :meth:`bayesbin.runtime.meaning.Inputs.is_raw`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayesbin.core.checks import real_number, real_numbers, whole_numbers
from bayesbin.core.preprocessing import Preprocessing
from bayesbin.runtime.meaning import PIXELS
from bayesbin.runtime.program import Constant, Program, Step, Value

TABLE = "table"


def scaling_program(
    preprocessing: Preprocessing | tuple[float, float, float],
    shape: Sequence[int],
    pixels: bool = True,
) -> Program:
    """The program of (raw / divisor - mean) / std, in float32 and in this order.

    :param preprocessing: mean and std are numbers, or a number for each channel.
    :param shape: of one input: (channels, ...), or the same in a row, (channels * ...,).
    :param pixels: whether raw inputs are pixels, which come in whole numbers; if not, floats are raw too.
    :raises ValueError: for numbers that are not finite in float32, for a divisor or std of 0, and for
        another number of channels.

    >>> scaling_program((255.0, 0.5, 0.25), (1, 28, 28)).outputs
    ('inputs',)
    """
    sizes = whole_numbers("shape", shape)
    divisor, mean, std = preprocessing
    numbers = {
        "divisor": np.array(_nonzero("divisor", real_number("divisor", divisor))),
        "mean": _per_channel("mean", mean, sizes),
        "std": _nonzero("std", _per_channel("std", std, sizes)),
    }
    name = PIXELS if pixels else TABLE
    steps = (
        Step("div", (name, "divisor"), ("divided",)),
        Step("sub", ("divided", "mean"), ("centered",)),
        Step("div", ("centered", "std"), ("inputs",)),
    )
    return Program({name: Value(sizes, "f4")}, _constants(numbers, "f4"), {}, steps, ("inputs",))


def bins_program(
    edges: Sequence[Sequence[float] | np.ndarray],
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
) -> Program:
    """The program of piecewise linear bins: each column of a table as a bar that fills from left to right.

    With edges b_0 < ... < b_K of a column x, output k = 1..K is (x - b_(k-1)) / (b_k - b_(k-1)), at least
    0 and at most 1, but the first goes below 0 and the last above 1; in float64. Then outputs are
    standardised, (output - mean) / std, where these are given, and rounded to float32.

    :param edges: of each column, rising; the outputs of a column stand side by side.
    :param mean, std: of each output; both or none.
    :raises ValueError: for edges that do not rise, or fewer than two; for other numbers of means.

    >>> bins_program([[0.0, 2.0, 10.0], [0.0, 1.0]]).values["inputs"].shape
    (3,)
    """
    columns = [np.array(real_numbers("edges", each), dtype=np.float64) for each in edges]
    if not columns or any(len(each) < 2 or (np.diff(each) <= 0.0).any() for each in columns):
        raise ValueError("expected at least two rising edges for each column.")
    places = [np.full(len(each) - 1, column) for column, each in enumerate(columns)]
    least = [np.zeros(len(each) - 1) for each in columns]
    most = [np.ones(len(each) - 1) for each in columns]
    for low, high in zip(least, most, strict=True):
        low[0], high[-1] = -np.inf, np.inf
    numbers = {
        "left": np.concatenate([each[:-1] for each in columns]),
        "width": np.concatenate([np.diff(each) for each in columns]),
        "least": np.concatenate(least),
        "most": np.concatenate(most),
    }
    constants = _constants(numbers, "f8") | _constants({"column": np.concatenate(places)}, "i8")
    steps = (
        Step("take", (TABLE, "column"), ("taken",), "f8", {"axis": 0}),
        Step("sub", ("taken", "left"), ("above",), "f8"),
        Step("div", ("above", "width"), ("share",), "f8"),
        Step("maximum", ("share", "least"), ("bar",), "f8"),
        Step("minimum", ("bar", "most"), ("bars",), "f8"),
    )
    return _table(len(columns), steps, constants, "bars", mean, std)


def standardising_program(
    mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray
) -> Program:
    """The program of (x - mean) / std for each column of a table, in float64 and then rounded to float32.

    :raises ValueError: for a std of 0, or as many means as there are not stds.

    >>> standardising_program([1.0, 2.0], [1.0, 0.5]).outputs
    ('inputs',)
    """
    return _table(len(mean), (), {}, TABLE, mean, std)


def _table(
    columns: int,
    steps: tuple[Step, ...],
    constants: dict[str, Constant],
    last: str,
    mean: Sequence[float] | np.ndarray | None,
    std: Sequence[float] | np.ndarray | None,
) -> Program:
    """The program of a table with the last steps that all have: standardised, in float32."""
    if (mean is None) != (std is None):
        raise ValueError("expected a mean and a std of each column, or neither.")
    if mean is not None and std is not None:
        numbers = {
            "mean": np.array(real_numbers("mean", mean)),
            "std": np.asarray(_nonzero("std", np.array(real_numbers("std", std)))),
        }
        if numbers["mean"].shape != numbers["std"].shape:
            raise ValueError("expected as many means as standard deviations.")
        constants = constants | _constants(numbers, "f8")
        steps = (
            *steps,
            Step("sub", (last, "mean"), ("centered",), "f8"),
            Step("div", ("centered", "std"), ("standardised",), "f8"),
        )
        last = "standardised"
    steps = (*steps, Step("cast", (last,), ("inputs",), "f4"))
    return Program({TABLE: Value((columns,), "f8")}, constants, {}, steps, ("inputs",))


def _constants(numbers: dict[str, np.ndarray], dtype: str) -> dict[str, Constant]:
    return {name: Constant(each.astype(dtype)[None]) for name, each in numbers.items()}


def _per_channel(name: str, given: float | Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    """A number, or one for each channel, in a shape that fits inputs of ``shape`` at their last axes."""
    numbers = np.array(real_numbers(name, given))
    if not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise ValueError(f"expected numbers of float32 as the {name} of preprocessing.")
    if len(numbers) == 1:
        return numbers.reshape(())
    if len(shape) == 1 and shape[0] % len(numbers) == 0:  # a row does not say how many it has
        return np.repeat(numbers, shape[0] // len(numbers))
    if len(shape) > 1 and len(numbers) == shape[0]:
        return numbers.reshape(-1, *[1] * (len(shape) - 1))
    raise ValueError(
        f"expected a number for each channel of inputs {shape} as the {name} of preprocessing, got "
        f"{len(numbers)}."
    )


def _nonzero(name: str, numbers: np.ndarray | float) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        small = np.float32(numbers)
    if not (np.all(small) and np.isfinite(small).all()):
        raise ValueError(f"expected a {name} of preprocessing other than 0.")
    return np.asarray(numbers)
