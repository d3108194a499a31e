"""Programs for the kernels from the steps of a model file."""

from __future__ import annotations

import math

import numpy as np

from bayesbin.predict import kernels
from bayesbin.predict.kernel_program import Program
from bayesbin.predict.packing import WORD, num_words
from bayesbin.predict.shipped_model import ShippedModel


def program_of(model: ShippedModel, first: int, last: int) -> Program:
    """The whole network for draws ``first`` to ``last``."""
    program = Program(model.shapes[0], last - first)
    for place in range(len(model.steps)):
        add_step(program, model, place, first, last)
    return program


def add_step(program: Program, model: ShippedModel, place: int, first: int, last: int) -> None:
    """Add one step to a program of draws ``first`` to ``last``."""
    step = model.steps[place]
    op = step["op"]
    if op == "weights":
        _add_weights(program, model, place, first, last)
    elif op == "line":
        slope, shift = (model.arrays[f"line {place}.{part}"] for part in ("slope", "shift"))
        program.affine(_of(slope, first, last), _of(shift, first, last))
    elif op == "hardtanh":
        program.activation(op, step["low"], step["high"])
    elif op in ("relu", "tanh", "sign"):
        program.activation(op)
    elif op in ("max_pool", "avg_pool"):
        program.pool(op.removesuffix("_pool"), step["size"], step["stride"], step["padding"])
    else:  # flatten, push, swap, add
        getattr(program, op)()


def words_of(tight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Packed rows (draws, N, words), uint64, of weights that are bits of ``tight`` (draws, bytes).

    Weight i of a draw, in C order, is bit i mod 8 of byte i // 8; rows are filled up to whole words.

    >>> words_of(np.array([[0b110101]], dtype=np.uint8), (2, 3)).tolist()
    [[[5], [6]]]
    """
    units, inputs = shape[0], math.prod(shape[1:])
    words = num_words(inputs)
    if inputs % WORD == 0:  # as they are in the file
        whole = tight.view("<u8").reshape(len(tight), units, words)
        return whole.astype(np.uint64, copy=False)
    rows = np.zeros((len(tight), units, words * WORD // 8), dtype=np.uint8)
    if inputs % 8 == 0:
        rows[:, :, : inputs // 8] = tight.reshape(len(tight), units, inputs // 8)
    else:
        for row, packed in zip(
            rows, tight, strict=True
        ):  # one draw at a time: eight times the room
            bits = np.unpackbits(packed, count=units * inputs, bitorder="little")
            row[:, : -(-inputs // 8)] = np.packbits(
                bits.reshape(units, inputs), axis=1, bitorder="little"
            )
    return rows.view("<u8").astype(np.uint64, copy=False)


def bits_of_draw(model: ShippedModel, site: str, draw: int | None) -> np.ndarray:
    """Packed rows (N, words) of one draw of a site, or of the mode.

    :raises ValueError: for the mode of a file of draws, unless it is all that the file has.
    """
    shape = next(each.shape for each in model.sites if each.name == site)
    if model.contents == "draws":
        if (draw is None) != (model.num_samples == 0):
            raise ValueError(
                "The file holds draws and not the mode; pack the posterior, or 0 draws for the mode."
                if draw is None
                else "The file holds the mode and no draws."
            )
        return words_of(model.arrays[f"{site}.bits"][(draw or 0), None], shape)[0]
    mode = words_of(model.arrays[f"{site}.mode"][None], shape)[0]
    if draw is None:
        return mode
    key = int(model.arrays[f"{site}.keys"][draw])
    return kernels.draw_bits(mode, native(model.arrays[f"{site}.flip"]), key)


def native(array: np.ndarray) -> np.ndarray:
    """In this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _add_weights(program: Program, model: ShippedModel, place: int, first: int, last: int) -> None:
    step = model.steps[place]
    site, shape = step["site"], step["shape"]
    where = (shape, step["stride"] or (1, 1), step["padding"] or (0, 0), step["kind"])
    if model.contents == "draws":
        program.given(words_of(model.arrays[f"{site}.bits"][first:last], shape), *where)
    elif not model.num_samples:
        program.given(words_of(model.arrays[f"{site}.mode"][None], shape), *where)
    else:
        mode = words_of(model.arrays[f"{site}.mode"][None], shape)[0]
        flip, keys = (native(model.arrays[f"{site}.{part}"]) for part in ("flip", "keys"))
        program.drawn(mode, flip, keys[first:last], *where)


def _of(values: np.ndarray, first: int, last: int) -> np.ndarray:
    return native(values if len(values) == 1 else values[first:last])
