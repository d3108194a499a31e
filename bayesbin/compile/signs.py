"""Signs that a network writes in other words: a choice between 1 and -1, or twice a decision less 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesbin.compile.translation import Fixed, Traced, Translation, plain

_LEAST = float(np.nextafter(0.0, 1.0))
# x >= 0 and the like, as d (x - t) >= 0: the t and d of a threshold.
_AT_LEAST, _ABOVE, _AT_MOST, _BELOW = (0.0, 1.0), (_LEAST, 1.0), (0.0, -1.0), (-_LEAST, -1.0)
_OPPOSITE = {_AT_LEAST: _BELOW, _BELOW: _AT_LEAST, _ABOVE: _AT_MOST, _AT_MOST: _ABOVE}
Decision = tuple[str, tuple[float, float]]


def of_choice(t: Translation, condition: Any, yes: Any, no: Any) -> Traced | None:
    """The signs that ``where(condition, 1, -1)`` is, or None if it is something else."""
    values = (_number(t, yes), _number(t, no))
    if not isinstance(condition, Traced) or values not in ((1.0, -1.0), (-1.0, 1.0)):
        return None
    decision = _decided(t, condition.name)
    fits = t.dtype() in ("f4", "f8") and condition.layout.shape == t.shape()
    if decision is None or not fits:
        return None
    name, way = decision
    return _signs(t, name, way if values[0] == 1.0 else _OPPOSITE[way], condition)


def of_sum(t: Translation, x: Any, other: Any, sign: float) -> Traced | None:
    """The signs that ``2 * (x >= 0) - 1`` is, or None if it is something else."""
    if not isinstance(x, Traced) or not plain(x.factor) or not plain(other):
        return None
    number = other * sign
    cast = t.made_by(x.name)
    if (x.factor, number) not in ((2.0, -1.0), (-2.0, 1.0)) or cast is None or cast.kind != "cast":
        return None
    decision = _decided(t, cast.inputs[0])
    if decision is None or x.dtype != t.dtype() or x.layout.shape != t.shape():
        return None
    name, way = decision
    return _signs(t, name, way if number < 0 else _OPPOSITE[way], x)


def _number(t: Translation, value: Any) -> float | None:
    """The number that a tensor is everywhere."""
    if isinstance(value, Fixed):
        return _everywhere(value.tensor.detach().cpu().numpy())
    if isinstance(value, Traced):
        if value.name not in t.constants or not plain(value.factor):
            return None
        found = _everywhere(t.constants[value.name].data)
        return None if found is None else found * float(value.factor)
    return float(value) if plain(value) else None


def _everywhere(numbers: np.ndarray) -> float | None:
    same = numbers.size and bool((numbers == numbers.flat[0]).all())
    return float(numbers.flat[0]) if same else None


def _decided(t: Translation, name: str) -> Decision | None:
    """Which value is compared with 0, and how, where booleans are that."""
    step = t.made_by(name)
    if step is None:
        return None
    if step.kind == "logical_not":
        found = _decided(t, step.inputs[0])
        return None if found is None else (found[0], _OPPOSITE[found[1]])
    if step.kind not in ("greater", "greater_equal"):
        return None
    equal = step.kind == "greater_equal"
    first, second = step.inputs
    if _is_zero(t, second) and t.known(first).shape == t.known(name).shape:
        return first, _AT_LEAST if equal else _ABOVE
    if _is_zero(t, first) and t.known(second).shape == t.known(name).shape:
        return second, _AT_MOST if equal else _BELOW
    return None


def _is_zero(t: Translation, name: str) -> bool:
    constant = t.constants.get(name)
    return constant is not None and not constant.data.any()


def _signs(t: Translation, name: str, way: tuple[float, float], like: Traced) -> Traced:
    dtype = t.dtype()
    if way == _AT_LEAST:
        return Traced(t.emit("sign", (name,), dtype), like.layout, dtype)
    bound, direction = (t.constant(number, "f8") for number in way)
    found = t.emit("threshold", (name, bound, direction), dtype, axis=0)
    return Traced(found, like.layout, dtype)
