"""The table of torch's operators: one small function for each writes its steps.

A function takes the translation and the arguments of the operator under the names of torch's schema: known
tensors (:class:`Fixed`), computed ones (:class:`Traced`), numbers, sizes. Arguments that a function does not
take must have their defaults, but for those that change nothing here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bayesbin.compile.layout import Size, size_of
from bayesbin.compile.translation import Fixed, Refused, Rows, Traced, Translation

Function = Callable[..., Any]
TABLE: dict[str, Function] = {}
_BY_SHAPE: set[Function] = set()
# Where a result lies, how it lies there, and which library computes it.
_IDLE = {
    "layout",
    "device",
    "pin_memory",
    "memory_format",
    "non_blocking",
    "copy",
    "cudnn_enabled",
    "cudnn_enable",
    "generator",
    "implicit",
    "momentum",
}
# Their random numbers are for training alone, and their functions refuse them there.
_RANDOM_IN_TRAINING = {
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "rrelu",
    "native_dropout",
    "scaled_dot_product_attention",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
}
_BY_ROW = {"index", "embedding_bag"}  # they know what to do with the numbers of the rows


def operator(*names: str, by_shape: bool = False) -> Callable[[Function], Function]:
    """Decorator: a function that writes the steps of operators, by their names without "aten::".

    :param by_shape: whether the shape of the result says all that arguments say which it does not take.
    """

    def register(function: Function) -> Function:
        for name in names:
            assert name not in TABLE, name
            TABLE[name] = function
        if by_shape:
            _BY_SHAPE.add(function)
        return function

    return register


def name_of(target: Any) -> str:
    """The name in the table of a node's target."""
    return target._schema.name.removeprefix("aten::")


def translate(t: Translation, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What an operator makes of its arguments; tensors that are known at once where all of its are."""
    name = name_of(target)
    used = list(_leaves((args, kwargs)))
    for value in used:
        if isinstance(value, Refused) and not (isinstance(value, Rows) and name in _BY_ROW):
            raise t.refuse(value.problem)
    random = torch.Tag.nondeterministic_seeded in target.tags
    if random and name not in _RANDOM_IN_TRAINING:
        raise t.refuse("expected a function of the inputs alone, got random numbers")
    if not any(isinstance(value, (Traced, Size, Refused)) for value in used) and not random:
        return _folded(t, target, args, kwargs)
    function = function_of(target)
    if function is None:
        raise t.refuse(
            "there is no step for this operator", "Write the line in other operators of torch."
        )
    return function(t, **_by_name(t, target, function, args, kwargs))


def function_of(target: Any) -> Function | None:
    """The function of an operator, or for one that changes its first argument, of that which does not."""
    name = name_of(target)
    if target._schema.is_mutable and name not in TABLE:
        name = name.removesuffix("_")
    return TABLE.get(name)


def _leaves(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not isinstance(value, Size):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _folded(t: Translation, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of an operator on known tensors."""
    given = [value for value in _leaves((args, kwargs)) if isinstance(value, Fixed)]

    def known(value: Any) -> Any:
        if isinstance(value, Fixed):  # an operator may change its argument, and that is the user's
            return value.tensor.clone() if target._schema.is_mutable else value.tensor
        if isinstance(value, (list, tuple)):
            return [known(each) for each in value]
        return value

    with torch.no_grad():
        found = target(*map(known, args), **{name: known(each) for name, each in kwargs.items()})
    return _held(t, found, given)


def _held(t: Translation, found: Any, given: list[Fixed]) -> Any:
    if isinstance(found, Tensor):
        t.dtype_of(found.dtype)
        for value in given:  # the same numbers keep their name
            same = value.tensor.data_ptr() == found.data_ptr() and value.tensor.dtype == found.dtype
            if same and value.tensor.shape == found.shape and found.is_contiguous():
                return Fixed(found, value.name)
        return Fixed(found)
    if isinstance(found, (list, tuple)):
        return tuple(_held(t, each, given) for each in found)
    return found


@cache
def _taken(function: Function) -> tuple[frozenset[str], frozenset[str]]:
    """The arguments that a function takes, and those of them that it needs."""
    own = list(inspect.signature(function).parameters.values())[1:]
    return (
        frozenset(each.name for each in own),
        frozenset(each.name for each in own if each.default is inspect.Parameter.empty),
    )


def _by_name(
    t: Translation, target: Any, function: Function, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of an operator by name, those that a function takes."""
    taken, needed = _taken(function)
    found: dict[str, Any] = {}
    for place, argument in enumerate(target._schema.arguments):
        if place < len(args):
            value = args[place]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
        elif argument.has_default_value():
            value = argument.default_value
        else:
            continue
        if argument.name in taken:
            found[argument.name] = value
        elif argument.name not in _IDLE and function not in _BY_SHAPE:
            default = argument.default_value if argument.has_default_value() else False
            if value is not None and value != default:
                raise t.refuse(f"expected {argument.name}={default}, got {str(value)[:60]}")
    if not needed <= found.keys():
        raise t.refuse("there is no step for this form of the operator")
    return found


def symbolic(value: Any, rows: int | None = None) -> Any:
    """A size or number that torch knows by symbols: an int or float, a :class:`Size`, or refused.

    :param rows: as for :func:`bayesbin.compile.layout.size_of`.
    """
    if isinstance(value, (bool, float)) or (isinstance(value, int) and not rows):
        return value
    if isinstance(value, (torch.SymInt, int)):
        try:
            size = size_of(value, rows)
        except ValueError as error:
            return Refused(f"expected sizes that are multiples of the batch's, got {error}")
        return size if size.batch else size.count
    return Refused("expected numbers that do not depend on the number of rows of the batch")
