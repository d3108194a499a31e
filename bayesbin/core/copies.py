"""Copies of networks that share nothing with the original, functions that refer to it included.

``copy.deepcopy`` takes functions as they are. A network whose ``forward`` was replaced by a function, or that
has a hook or a list of functions, then holds functions that still call the original: weights that are
written into the copy would not be those that it computes with.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from bayesbin.core.wrappers import unwrapped, wrapped

Network = TypeVar("Network", bound=nn.Module)

_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_NONE = object()


def copy_network(net: Network) -> Network:
    """A deep copy of a network in which functions, too, refer to the copy.

    Functions are those in attributes and hooks of its modules, whether they know the original by a variable
    of the scope that they were made in, by a global variable, as the object of a method, or by a default.
    Modules that only run another one, as those of ``torch.compile``, are left out.

    >>> net = nn.Sequential(nn.Linear(1, 1))
    >>> before = net.forward
    >>> net.forward = lambda x: 2.0 * before(x)
    >>> copied = copy_network(net)
    >>> _ = copied[0].requires_grad_(False).weight.fill_(1.0), copied[0].bias.fill_(0.0)
    >>> import torch
    >>> copied(torch.ones(1, 1)).item()
    2.0
    """
    memo: dict[int, Any] = {}
    made: Any = copy.deepcopy(unwrapped(net), memo)
    for module in list(made.modules()):
        for name, child in module._modules.items():
            if child is not None and wrapped(child) is not None:
                module._modules[name] = unwrapped(child)
    references = _References(memo)
    for each in [*memo.values()]:
        _rebind(each, references)
    return made


def _rebind(holder: Any, references: _References) -> None:
    """Replace the functions that an object or a container of a copy holds."""
    if isinstance(holder, dict):
        places: Any = list(holder.items())
    elif isinstance(holder, (list, deque)):
        places = list(enumerate(holder))
    elif isinstance(getattr(holder, "__dict__", None), dict) and not isinstance(holder, type):
        holder = vars(holder)
        places = list(holder.items())
    else:
        return
    for place, value in places:
        if _may_refer(value):
            found = references.of(value)
            if found is not value:
                holder[place] = found


def _may_refer(value: Any) -> bool:
    kinds = (types.FunctionType, types.MethodType, functools.partial, tuple)
    return isinstance(value, kinds)


class _References:
    """What stands in the copy for each thing that something of the original refers to.

    :param memo: of ``copy.deepcopy``: the identities of what was copied -> the copies.
    """

    def __init__(self, memo: dict[int, Any]) -> None:
        self.memo = memo
        self._functions: dict[
            int, tuple[Any, Any]
        ] = {}  # with the originals, which keeps them alive

    def of(self, value: Any) -> Any:
        """The copy of a value, a function that refers to the copy, or the value itself."""
        known = self.memo.get(id(value), _NONE)
        if known is not _NONE and isinstance(value, (nn.Module, Tensor, *_CONTAINERS)):
            return known
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            function, owner = self.of(value.__func__), self._owner(value.__self__)
            same = function is value.__func__ and owner is value.__self__
            return value if same else types.MethodType(function, owner)
        if isinstance(value, functools.partial):
            return self._partial(value)
        if isinstance(value, _CONTAINERS) and self._holds_known(value):
            return copy.deepcopy(value, self.memo)
        if isinstance(value, tuple):
            parts = [self.of(each) for each in value]
            if any(a is not b for a, b in zip(parts, value, strict=True)):
                return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    def _owner(self, value: Any) -> Any:
        return self.memo.get(id(value), value)

    def _partial(self, value: functools.partial[Any]) -> Any:
        parts = [self.of(each) for each in (value.func, *value.args)]
        names = {name: self.of(each) for name, each in value.keywords.items()}
        before = (value.func, *value.args, *value.keywords.values())
        if all(a is b for a, b in zip((*parts, *names.values()), before, strict=True)):
            return value
        return functools.partial(*parts, **names)

    def _holds_known(self, value: Any, depth: int = 0) -> bool:
        """Whether a container holds a module or a tensor that was copied."""
        for each in _elements(value):
            if isinstance(each, (nn.Module, Tensor)) and id(each) in self.memo:
                return True
            if isinstance(each, _CONTAINERS) and depth < 8 and self._holds_known(each, depth + 1):
                return True
        return False

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if id(function) in self._functions:
            return self._functions[id(function)][1]
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        variables = self._globals(function)
        new = types.FunctionType(
            function.__code__, variables, function.__name__, None, cells or None
        )
        # A function may refer to itself, or to one that refers to it.
        self._functions[id(function)] = (function, new)
        changed = variables is not function.__globals__
        for cell, made in zip(function.__closure__ or (), cells, strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
            made.cell_contents = self.of(content)
            changed |= made.cell_contents is not content and made.cell_contents is not new
        new.__defaults__ = self.of(function.__defaults__)
        new.__kwdefaults__ = self._named(function.__kwdefaults__)
        changed |= new.__defaults__ is not function.__defaults__
        changed |= new.__kwdefaults__ is not function.__kwdefaults__
        if not changed:
            self._functions[id(function)] = (function, function)
            return function
        new.__dict__.update(function.__dict__)
        new.__qualname__, new.__doc__ = function.__qualname__, function.__doc__
        return new

    def _named(self, values: dict[str, Any] | None) -> dict[str, Any] | None:
        found = {name: self.of(each) for name, each in (values or {}).items()}
        same = all(found[name] is each for name, each in (values or {}).items())
        return values if same else found

    def _globals(self, function: types.FunctionType) -> dict[str, Any]:
        """The global variables of a function; a dictionary of its own where it uses one that was copied."""
        found = {}
        for name in _names(function.__code__):
            value = function.__globals__.get(name, _NONE)
            if isinstance(value, (nn.Module, Tensor, types.MethodType)):
                found[name] = self.of(value)
            elif isinstance(value, (list, tuple, dict)) and self._holds_known(value):
                found[name] = self.of(value)
        if all(function.__globals__[name] is value for name, value in found.items()):
            return function.__globals__
        return function.__globals__ | found


def _names(code: types.CodeType) -> Iterator[str]:
    """The names of globals and attributes in a function and in those that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _elements(container: Any) -> Any:
    return list(container.values()) if isinstance(container, dict) else list(container)
