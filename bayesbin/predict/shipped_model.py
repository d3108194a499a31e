"""What a model file says, checked: steps, shapes and arrays that fit one another, in numpy alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesbin.core.files import CorruptFileError
from bayesbin.core.preprocessing import Preprocessing
from bayesbin.predict import bbn_file
from bayesbin.predict.shipped_steps import CONTENTS, Shape, ShippedSite, Step, is_whole, walk

PRECISIONS = ("exact", "fast")
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_KEYS = {
    "contents", "draws_at_once", "input", "labels", "noise_variance", "num_samples", "outputs",
    "precision", "preprocessing", "provenance", "seed", "steps",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ShippedModel:
    """A network and its draws as a file has them.

    :param contents: "draws" or "posterior". :param num_samples: S; 0: the mode.
    :param draws_at_once: how many draws are added up before they are added to the others.
    :param input: (features,) or (channels, height, width).
    :param outputs: classes, or 1 of a regressor, whose ``noise_variance`` is not None.
    :param shapes: (C, H, W) that goes into each step, and what comes out of the last.
    :param sites: of the weights, in the order of their first use.
    """

    contents: str
    num_samples: int
    seed: int
    precision: str
    draws_at_once: int
    input: tuple[int, ...]
    outputs: int
    noise_variance: float | None
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    provenance: dict[str, Any]
    steps: tuple[Step, ...]
    shapes: tuple[Shape, ...]
    sites: tuple[ShippedSite, ...]
    arrays: Mapping[str, np.ndarray]

    @property
    def num_weights(self) -> int:
        """The number of binary weights."""
        return sum(site.weights for site in self.sites)


def read_model(path: str | os.PathLike[str]) -> tuple[ShippedModel, bbn_file.Container]:
    """The model in a file, and the container it came in.

    :raises CorruptFileError: for whatever is wrong with the file. :raises OSError: if it cannot be read.
    """
    container = bbn_file.read(path)
    try:
        return model_of(container.header, container.arrays), container
    except ValueError as error:
        raise CorruptFileError(path, f"its header does not fit: {error}") from error


def model_of(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ShippedModel:
    """The model that a header and its arrays stand for. :raises ValueError: if they are not one."""
    if set(header) != _KEYS:
        raise ValueError(f"expected the keys {', '.join(sorted(_KEYS))}.")
    contents, draws, seed = (header[key] for key in ("contents", "num_samples", "seed"))
    if contents not in CONTENTS or header["precision"] not in PRECISIONS:
        raise ValueError(f"expected contents of {CONTENTS} and a precision of {PRECISIONS}.")
    at_once = header["draws_at_once"]
    if not is_whole(draws, 0) or not is_whole(at_once, 1) or type(seed) is not int:
        raise ValueError("expected whole numbers of draws, and a whole seed.")
    steps, shapes, sites, expected = walk(header["steps"], header["input"], contents, draws)
    outputs, noise = header["outputs"], _noise(header["noise_variance"])
    if shapes[-1] != (outputs, 1, 1) or (noise is not None and outputs != 1):
        raise ValueError(f"expected the outputs {shapes[-1]} of the last step, got {outputs!r}.")
    _check_arrays(arrays, expected)
    for site in sites:
        _check_spare_bits(site, arrays)
    return ShippedModel(
        contents, draws, seed, header["precision"], at_once, tuple(header["input"]), outputs, noise,
        _labels(header["labels"], outputs if noise is None else 0),
        _preprocessing(header["preprocessing"], shapes[0]), _provenance(header["provenance"]),
        steps, shapes, sites, arrays,
    )  # fmt: skip


def _check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    if set(arrays) != set(expected):
        raise ValueError("expected the arrays of the steps, no more and no less.")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        # A line may be one for all draws.
        shared = dtype == "<f4" and array.ndim == 2 and len(array) == 1
        wanted = (1, *shape[1:]) if shared else shape
        if array.dtype != np.dtype(dtype) or array.shape != wanted:
            came = f"{array.dtype} {array.shape}"
            raise ValueError(f"expected {dtype} {shape} of {name!r}, got {came}.")
        if dtype == "<f4" and not np.isfinite(array).all():
            raise ValueError(f"expected finite numbers in {name!r}.")
        if name.endswith(".flip") and int(array.max()) > 1 << 15:
            raise ValueError(f"expected probabilities of at most a half in {name!r}.")


def _check_spare_bits(site: ShippedSite, arrays: Mapping[str, np.ndarray]) -> None:
    """The bits of a last byte that stand for no weight are 0."""
    for name in (f"{site.name}.bits", f"{site.name}.mode"):
        if name in arrays and site.weights % 8:
            if (arrays[name][..., -1] >> site.weights % 8).any():
                raise ValueError(f"expected zeros after the last weight in {name!r}.")


def _noise(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0.0 <= value < math.inf:
        raise ValueError(f"expected a noise variance of at least 0, or null; got {value!r}.")
    return float(value)


def _labels(value: Any, classes: int) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or any(not isinstance(label, str) for label in value):
        raise ValueError("expected labels that are text, or null.")
    if len(value) != classes:
        raise ValueError(f"expected a label for each of {classes} classes, got {len(value)}.")
    return tuple(value)


def _preprocessing(value: Any, image: Shape) -> Preprocessing | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(Preprocessing._fields):
        raise ValueError(f"expected preprocessing of {Preprocessing._fields}, or null.")
    found: dict[str, Any] = {}
    for name, constant in value.items():
        per_channel = name != "divisor" and isinstance(constant, list)
        numbers: list[Any] = constant if per_channel else [constant]
        for number in numbers:
            if type(number) not in (int, float) or not abs(number) <= _LARGEST_FLOAT:
                raise ValueError(
                    f"expected a number as the {name} of preprocessing, got {number!r}."
                )
        if per_channel and not _one_per_channel(len(numbers), image):
            raise ValueError(
                f"expected a number per channel of inputs {image} as the {name} of preprocessing, got "
                f"{len(numbers)}."
            )
        found[name] = tuple(map(float, numbers)) if per_channel else float(numbers[0])
    if not all(np.float32(found[name]).all() for name in ("divisor", "std")):
        raise ValueError("expected a divisor and a std of preprocessing other than 0.")
    return Preprocessing(**found)


def _one_per_channel(count: int, image: Shape) -> bool:
    channels, height, width = image
    if height * width > 1:
        return count == channels
    return count > 0 and channels % count == 0  # images in a row do not say how many they have


def _provenance(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected provenance by name.")
    return value
