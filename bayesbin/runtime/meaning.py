"""What an input means: numbers of the right shape and type, raw or as the network has them.

Inputs that are certainly wrong are refused in a sentence, those that are probably meant otherwise are
understood or warned of: nothing is ever predicted from numbers that a user did not mean without a word.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayesbin.core.checks import shown
from bayesbin.runtime.kinds import Shape
from bayesbin.runtime.program import Program, Value

# An input of preprocessing whose name begins so is expected in whole numbers, as pixels are: floats are then
# taken for what preprocessing makes of them. Inputs of any other name are always raw.
PIXELS = "pixels"
_FAR = 10.0  # no pixel is so many standard deviations away
_NUMPY = {"f4": np.float32, "f8": np.float64, "i8": np.int64, "b1": np.bool_}


class Inputs:
    """Reads the inputs of a program, with or without preprocessing.

    :param program: of the network. :param preprocessing: from raw inputs to those of the network, or None.
    """

    def __init__(self, program: Program, preprocessing: Program | None) -> None:
        self.program, self.preprocessing = program, preprocessing
        self._warned: set[str] = set()

    def read(self, x: Any, preprocess: bool | None) -> tuple[list[np.ndarray], bool]:
        """Arrays (B, ...) of the types and shapes expected, and whether they are raw.

        :param x: an array, or what numpy makes one of; for a network with several inputs a tuple of
            arrays, or a dictionary of arrays by the names of the inputs.
        :param preprocess: whether ``x`` is raw; None: found out, see :meth:`is_raw`.
        :raises ValueError: for inputs of another number, shape or type, without a batch, or with NaN or
            infinity; for ``preprocess=True`` where there is no preprocessing.
        """
        if preprocess and self.preprocessing is None:
            raise ValueError(
                "expected inputs as the network was trained on them: the model has no preprocessing; "
                "leave preprocess out."
            )
        arrays = [_numbers(each) for each in self._several(x)]
        raw = self.preprocessing is not None and (
            self.is_raw(arrays) if preprocess is None else bool(preprocess)
        )
        expected = self.preprocessing.inputs if raw and self.preprocessing else self.program.inputs
        found = [
            _fitting(name, array, value)
            for array, (name, value) in zip(arrays, expected.items(), strict=True)
        ]
        if len({len(array) for array in found}) > 1:
            raise ValueError(
                f"expected inputs of the same number of rows, got {[len(array) for array in found]}."
            )
        if self.preprocessing is not None and preprocess is None and not raw:
            self._warn_of_range(found)
        return found, raw

    def is_raw(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether inputs are raw, if there is preprocessing.

        Inputs of preprocessing that has no pixels are raw. Where pixels are expected, whole numbers are
        raw and floats have been preprocessed, unless these are whole numbers of which some exceed 1:
        pixels that were read as floats, which a warning says.

        :raises ValueError: if some pixels are raw and others are not.
        """
        assert self.preprocessing is not None
        named = zip(self.preprocessing.inputs, arrays, strict=True)
        pixels = [array for name, array in named if name.startswith(PIXELS)]
        found = {array.dtype.kind in "iu" or _whole(array) for array in pixels}
        if len(found) > 1:
            raise ValueError(
                "expected pixels that are all raw or all preprocessed, got both; pass preprocess=True "
                "or preprocess=False."
            )
        if any(_whole(array) for array in pixels):
            self._warn(
                "The inputs are whole numbers in floats; they are taken for raw pixels and are "
                "preprocessed. Pass preprocess=True if that is right, False if not.",
            )
        return found != {False}

    def _several(self, x: Any) -> list[Any]:
        """One array-like for each input."""
        names = list(self.program.inputs)
        raw = list(self.preprocessing.inputs) if self.preprocessing is not None else names
        if isinstance(x, Mapping):
            for known in (names, raw):
                if set(x) == set(known):
                    return [x[name] for name in known]
            raise ValueError(
                f"expected inputs by the names {', '.join(names)}, got "
                f"{', '.join(map(str, x))[:200]}."
            )
        if len(raw) == 1:
            return [x]
        if not isinstance(x, (tuple, list)) or len(x) != len(raw):
            raise ValueError(
                f"expected a tuple of {len(raw)} inputs ({', '.join(names)}), got {shown(x)}."
            )
        return list(x)

    def _warn_of_range(self, arrays: Sequence[np.ndarray]) -> None:
        assert self.preprocessing is not None
        for name, array in zip(self.preprocessing.inputs, arrays, strict=True):
            if name.startswith(PIXELS) and array.size and max(-array.min(), array.max()) > _FAR:
                self._warn(
                    f"The inputs reach from {array.min():.4g} to {array.max():.4g}, far outside the "
                    "standardised range of the data that the network was trained on; if they are raw, "
                    "pass preprocess=True.",
                )

    def _warn(self, sentence: str) -> None:
        kind = sentence[:20]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(sentence, UserWarning, stacklevel=6)


def _numbers(x: Any) -> np.ndarray:
    """An array of numbers. :raises ValueError: for anything else."""
    if hasattr(x, "detach"):  # a tensor, which numpy refuses where it requires a gradient
        x = x.detach().cpu()
        if "bfloat16" in str(x.dtype):  # which numpy does not have
            x = x.float()
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"expected inputs that are an array of numbers: {error}.") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected inputs that are numbers, got an array of {array.dtype}.")
    return array


def _whole(array: np.ndarray) -> bool:
    if array.dtype.kind != "f" or not array.size:
        return False
    low, high = float(array.min()), float(array.max())
    if not 0.0 <= low <= high < math.inf or high <= 1.0:  # NaN is neither
        return False
    return bool((array == np.floor(array)).all())


def _fitting(name: str, array: np.ndarray, value: Value) -> np.ndarray:
    """An array (B, ...) of an input's shape and type, all of it finite."""
    if value.dtype == "i8" and array.dtype.kind not in "iu":
        raise ValueError(
            f"expected whole numbers for the input {name!r} (tokens, say), got {array.dtype}; convert "
            "them to integers."
        )
    if value.dtype == "b1" and array.dtype.kind != "b":
        raise ValueError(f"expected booleans for the input {name!r}, got {array.dtype}.")
    if value.dtype == "i8" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"expected whole numbers of 64 bits for the input {name!r}.")
    array = array.reshape(_batch_shape(name, array.shape, value.shape))
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, dtype=_NUMPY[value.dtype])
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError(
            "expected finite inputs, got NaN, infinity or numbers beyond "
            f"{np.dtype(_NUMPY[value.dtype]).name}; clean or impute them first."
        )
    return found


def _batch_shape(name: str, got: Shape, wanted: Shape) -> Shape:
    """The shape (B, *wanted) for an array of shape ``got``. :raises ValueError: if it is none."""
    if got and got[1:] == wanted:
        return got
    of_one = "one datum" if not wanted else f"one datum of shape {wanted}"
    expected = f"expected inputs of shape ({', '.join(['B', *map(str, wanted)])}), got {got}"
    if got and math.prod(got[1:]) == math.prod(wanted):
        if _last_channels(got[1:], wanted):
            raise ValueError(
                f"{expected}: the channels come last; move them first with np.moveaxis(x, -1, 1)."
            )
        if min(len(got) - 1, len(wanted)) == 1 or _core(got[1:]) == _core(wanted):
            return (got[0], *wanted)
    elif math.prod(got) == math.prod(wanted) and (
        _core(got) == _core(wanted) or min(len(got), len(wanted)) <= 1
    ):
        raise ValueError(f"{expected}: {of_one} without a batch; pass x[None] for a batch of one.")
    raise ValueError(f"{expected} for {name!r}; reshape them.")


def _core(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _last_channels(got: Shape, wanted: Shape) -> bool:
    """Whether images seem to have their channels last where they are expected first, or in one row."""
    if len(got) != 3 or got[-1] not in (3, 4) or got[0] == got[-1]:
        return False
    return len(wanted) == 1 or wanted == (got[2], got[0], got[1])
