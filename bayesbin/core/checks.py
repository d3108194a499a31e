"""Arguments of public functions: numbers, names and paths, taken in any usual form or refused.

A number may be Python's, numpy's, or a tensor or array without dimensions; what is returned is always
Python's, so that it can be stored, compared and written as JSON. Nothing here imports torch or numpy.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from numbers import Integral, Real
from pathlib import Path
from typing import Any

_LONGEST = 80  # characters of a value that a message repeats


def whole_number(name: str, value: Any, at_least: int = 0, at_most: int | None = None) -> int:
    """Return ``value`` as an ``int``, after checking that it is a whole number within the bounds.

    :param name: what the number is, as the message should call it.
    :raises ValueError: for a bool, a float (also 2.0), NaN, a string, or a number out of bounds.

    >>> import numpy as np
    >>> whole_number("epochs", np.int64(3), at_least=1)
    3
    >>> whole_number("epochs", 0, at_least=1)
    Traceback (most recent call last):
    ValueError: expected epochs to be a whole number of at least 1; got 0.
    """
    number = _plain(value)
    if isinstance(number, Integral) and not isinstance(number, bool):
        found = int(number)
        if found >= at_least and (at_most is None or found <= at_most):
            return found
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    raise ValueError(f"expected {name} to be a whole number {bounds}; got {shown(value)}.")


def real_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return ``value`` as a ``float``, after checking that it is a number within the bounds.

    An infinite number is accepted only where a bound that includes its end is infinite itself:
    ``at_most=math.inf`` accepts infinity, ``at_least=-math.inf`` its negative.

    :raises ValueError: for a bool, NaN, a complex number, a string, an infinite number, or a number out
        of bounds.

    >>> real_number("lr", 1, above=0.0)
    1.0
    >>> real_number("momentum", 1.0, at_least=0.0, below=1.0)
    Traceback (most recent call last):
    ValueError: expected momentum to be a number of at least 0 and below 1; got 1.0.
    """
    found = _float_of(value)
    limits = [
        (compare, words, limit)
        for compare, words, limit in (
            (operator.gt, "above", above),
            (operator.ge, "of at least", at_least),
            (operator.lt, "below", below),
            (operator.le, "at most", at_most),
        )
        if limit is not None
    ]
    if found is not None and all(compare(found, limit) for compare, _, limit in limits):
        if math.isfinite(found) or found in (at_least, at_most):
            return found
    bounds = " and ".join(
        f"{words} {limit:.12g}" for _, words, limit in limits if math.isfinite(limit)
    )
    finite = "finite " if not bounds or not math.isfinite(found or 0.0) else ""
    kind = f"{finite}number {bounds}".rstrip()
    raise ValueError(f"expected {name} to be a {kind}; got {shown(value)}.")


def whole_numbers(name: str, values: Any, at_least: int = 1) -> tuple[int, ...]:
    """Return whole numbers as a tuple of ``int``; a single number makes a tuple of one.

    :param values: a list, tuple, range, array or tensor of one dimension, or a single number.
    :raises ValueError: as :func:`whole_number`, and for no numbers at all.

    >>> whole_numbers("hidden", [16, 8])
    (16, 8)
    """
    expected = f"whole numbers of at least {at_least}"
    return tuple(
        whole_number(f"each of {name}", value, at_least)
        for value in _several(name, values, expected)
    )


def real_numbers(name: str, values: Any, **bounds: float | None) -> tuple[float, ...]:
    """Return numbers as a tuple of ``float``; a single number makes a tuple of one.

    :param bounds: ``above``, ``at_least``, ``below`` and ``at_most`` of :func:`real_number`.
    :raises ValueError: as :func:`real_number`, and for no numbers at all.

    >>> real_numbers("levels", (-1, 0, 1))
    (-1.0, 0.0, 1.0)
    """
    return tuple(
        real_number(f"each of {name}", value, **bounds)
        for value in _several(name, values, "numbers")
    )


def true_or_false(name: str, value: Any) -> bool:
    """Return ``value`` as a ``bool``: Python's, numpy's, or a bool tensor without dimensions.

    :raises ValueError: for anything else; 0 and 1 are numbers.

    >>> true_or_false("flatten", True)
    True
    """
    found = _plain(value)
    if isinstance(found, bool):
        return found
    raise ValueError(f"expected {name} to be True or False; got {shown(value)}.")


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Return ``value``, after checking that it is one of the known names.

    :param known: the names, in the order in which the message should list them.
    :raises ValueError: for another name, with the nearest known one if there is one.

    >>> one_of("dataset", "digit", ("digits", "usps"))
    Traceback (most recent call last):
    ValueError: expected dataset to be one of digits, usps; got 'digit'. Did you mean 'digits'?
    """
    names = [str(each) for each in known]
    if isinstance(value, str) and value in names:
        return str(value)
    near = difflib.get_close_matches(value, names, 1) if isinstance(value, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"expected {name} to be one of {', '.join(names)}; got {shown(value)}.{hint}")


def user_path(name: str, value: Any) -> Path:
    """Return a path, with a leading ``~`` or ``~user`` replaced by that home folder.

    :raises ValueError: for an empty path, one with a null character, something that is no path, or a
        ``~`` whose home folder is not known.

    >>> user_path("out", "runs/first").as_posix()
    'runs/first'
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"expected {name} to be a path; got {shown(value)}.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"expected {name} to be a path; got {text}, and the home folder of {Path(text).parts[0]} is "
            "not known. Write it out."
        ) from error


def is_number(value: Any) -> bool:
    """Whether a value is a number of one of the kinds accepted here, NaN and infinity included.

    >>> is_number(2.5), is_number(True), is_number("2")
    (True, False, False)
    """
    number = _plain(value)
    return isinstance(number, Real) and not isinstance(number, bool)


def shown(value: Any) -> str:
    """A value as a message repeats it: on one line, long ones cut, arrays by their shape and type."""
    shape = _shape(value)
    if shape:
        return f"an array of shape {shape} and type {getattr(value, 'dtype', type(value).__name__)}"
    plain = _plain(value) if shape == () else value
    text = " ".join(repr(plain).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of an array or tensor; None for everything else."""
    shape = getattr(value, "shape", None)
    if not hasattr(value, "item") or not isinstance(shape, tuple):
        return None
    return tuple(int(size) for size in shape)


def _plain(value: Any) -> Any:
    """The Python number that a number of numpy's, or an array or tensor without dimensions, holds."""
    if _shape(value) != ():
        return value
    try:
        found = value.item()
    except (RuntimeError, NotImplementedError):  # a tensor without data
        return value
    return float(found) if isinstance(found, Real) and _shape(found) == () else found


def _float_of(value: Any) -> float | None:
    """A number as a float, which may be NaN or infinite; None for what is no number."""
    if not is_number(value):
        return None
    number: Any = _plain(value)
    try:
        return float(number)
    except OverflowError:  # an int beyond the largest float
        return math.inf if number > 0 else -math.inf


def _several(name: str, values: Any, expected: str) -> list[Any]:
    """The members of a sequence, at least one; a single number is a sequence of one."""
    if is_number(values):
        return [values]
    unordered = isinstance(values, (str, bytes, Mapping, AbstractSet))
    shape = _shape(values)
    if not unordered and isinstance(values, Iterable) and (shape is None or len(shape) == 1):
        members = list(values)
        if members:
            return members
    got = "none" if isinstance(values, Collection) and len(values) == 0 else shown(values)
    raise ValueError(f"expected {name} to be {expected}, one or several; got {got}.")
