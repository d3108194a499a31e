"""Telling Pyro about parameters by value, so that no global store sees, renames or shares them."""

from __future__ import annotations

import weakref
from typing import Any

from pyro.poutine.runtime import effectful
from torch import Tensor
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
