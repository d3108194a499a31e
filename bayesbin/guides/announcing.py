"""Telling Pyro about parameters by value, so that no global store sees, renames or shares them."""

from __future__ import annotations

import weakref
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import constraints


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


class LocalParameters(Messenger):
    """Answers a param message that carries an ``nn.Parameter`` with that very parameter.

    In Pyro's global parameter mode the store would otherwise answer with the parameter that was first
    registered under the name, and a second model or guide would be left silently untrained.
    """

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter):
            msg["value"] = local_alias(msg["args"][1])
