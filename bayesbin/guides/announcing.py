"""Telling Pyro about parameters by value, so that no global store renames or shares them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.weak import WeakTensorKeyDictionary

# Parameters that guides have registered in Pyro's store -> a weak reference to their guide.
_REGISTERED: Any = WeakTensorKeyDictionary()


def announce(name: str, parameter: Tensor) -> Tensor:
    """Issue a Pyro param message whose value is ``parameter`` itself; returns the (handled) value."""
    value = local_alias(parameter)
    return effectful(lambda *_, **__: value, type="param")(
        name, parameter, constraint=constraints.real, event_dim=None, name=name
    )


def local_alias(parameter: Tensor) -> Tensor:
    """A view that leads back to its parameter the way Pyro's own param values do.

    A view, because the attribute would keep the parameter itself from being pickled.
    """
    value: Any = parameter.view_as(parameter)
    value.unconstrained = weakref.ref(parameter)
    return value


def unconstrained(value: Any) -> Tensor:
    """The parameter behind the value of a param message."""
    back = getattr(value, "unconstrained", None)
    return value if back is None else back()


def collected() -> bool:
    """Whether somebody collects parameters in order to train them, as ``pyro.infer.SVI`` does."""
    return any(isinstance(each, TraceMessenger) and each.param_only for each in _PYRO_STACK)


def register(owner: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Enter a guide's parameters, themselves, in Pyro's store, so that ``pyro.optim`` knows their names.

    Guides of one process may have one name: the store then shows the parameters of the guide that ran last,
    and still knows the names of the others'.
    """
    store = pyro.get_param_store()
    for name, parameter in named:
        held: Any = store._params.get(name)
        if held is parameter:
            continue
        if held is not None and (guide := _REGISTERED.get(held)) is not None and guide() is None:
            store._param_to_name.pop(held, None)  # of a guide that is gone
        # As pyro.nn.module does it: the public way copies some tensors, and unfreezes all.
        store._params[name], store._param_to_name[parameter] = parameter, name
        store._constraints[name] = constraints.real
        _REGISTERED[parameter] = weakref.ref(owner)


def loaded(name: str, parameter: Tensor) -> None:
    """Take over the value that Pyro's store was loaded with under the name of a guide's parameter.

    :raises ValueError: if it has another shape.
    """
    store = pyro.get_param_store()
    held: Any = store._params.get(name)
    if held is None or held is parameter or held in _REGISTERED:
        return
    if held.shape != parameter.shape:
        raise ValueError(
            f"Pyro's store was loaded with {name!r} of shape {tuple(held.shape)}, the guide's is "
            f"{tuple(parameter.shape)}; load the store of this guide, or call pyro.clear_param_store()."
        )
    with torch.no_grad():
        parameter.copy_(held)
    del store._params[name], store._constraints[name]
    store._param_to_name.pop(held, None)


class LocalParameters(Messenger):
    """Answers a param message that carries an ``nn.Parameter`` with that very parameter.

    In Pyro's global parameter mode the store would otherwise answer with the parameter that was first
    registered under the name, and a second model or guide would be left silently untrained. Where somebody
    collects parameters, the store learns their names, and ``pyro.optim`` can save their state.

    What is compiled by ``torch.compile`` runs as it is written: weights are tensors of kinds, and sites have
    effects, that compiled code does not follow.
    """

    def __enter__(self) -> Any:
        self._eager: Any = nullcontext()
        if "torch._dynamo" in sys.modules:
            self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()
        self._named: dict[str, Tensor] | None = {} if collected() else None
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        # At the end: in Pyro's local mode each module has a store of its own while it runs.
        names = pyro.get_param_store()._param_to_name
        for name, parameter in (self._named or {}).items():
            names.setdefault(parameter, name)
        self._eager.__exit__(*error)
        return super().__exit__(*error)

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter):
            msg["value"] = local_alias(msg["args"][1])

    def _pyro_post_param(self, msg: Any) -> None:
        if self._named is not None and msg["value"] is not None:
            self._named[msg["name"]] = unconstrained(msg["value"])
