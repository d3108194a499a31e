"""One run of a model, to learn its sites from, that leaves no trace in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayesbin.core.networks import normalisation_kept
from bayesbin.distributions.wrappers import weight_distribution
from bayesbin.guides.announcing import LocalParameters

_OF_PRIOR = (init_to_feasible, init_to_mean, init_to_median, init_to_sample, init_to_uniform)
START = "bayesbin start"  # the key in a site's infer of the weights that it is to start at


class _Start(Messenger):
    """Sets real-valued sites to their start, and notes that of weights where the user gives it.

    :param init_loc_fn: of ``pyro.infer.autoguide.initialization``, or one like those.
    """

    def __init__(self, init_loc_fn: Callable[..., Any]) -> None:
        super().__init__()
        self.init_loc_fn = init_loc_fn

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        weights = weight_distribution(msg["fn"]) is not None
        if not weights and msg["fn"].support.is_discrete:
            return
        value = self._given(msg) if weights else self.init_loc_fn(msg)
        if value is None:
            return
        shape = tuple(msg["fn"].shape())
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            raise ValueError(
                f"expected init_loc_fn to give the site {msg['name']!r} a tensor of shape {shape}, got "
                f"{tuple(value.shape) if isinstance(value, Tensor) else value!r}."
            )
        if weights:
            msg["infer"] = {**msg["infer"], START: value.detach()}
        elif not bool(msg["fn"].support.check(value).all()):
            raise ValueError(
                f"expected init_loc_fn to give the site {msg['name']!r} values in {msg['fn'].support}; got "
                "others."
            )
        else:
            msg["value"] = value

    def _given(self, msg: Any) -> Any:
        """The weights that the user gives a site; None for what functions of Pyro choose themselves."""
        function = getattr(self.init_loc_fn, "func", self.init_loc_fn)
        if function in _OF_PRIOR:
            return None
        if function is init_to_value:
            return self.init_loc_fn.keywords["values"].get(msg["name"])  # type: ignore[attr-defined]
        before = torch.get_rng_state()
        try:
            value = self.init_loc_fn(msg)
        except NotImplementedError:  # a start in unconstrained space, which weights do not have
            value = None
        if getattr(value, "_pyro_custom_init", True) and value is not None:
            return value
        torch.set_rng_state(before)
        return None


def run_once(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    init_loc_fn: Callable[..., Any] = init_to_median,
) -> Any:
    # Pyro's store would keep the network's parameters, and mark them so that they cannot be pickled.
    with (
        torch.no_grad(),
        normalisation_kept(),
        poutine.block(),
        LocalParameters(),
        _Start(init_loc_fn),
    ):
        try:
            return poutine.trace(model).get_trace(*args, **kwargs)
        except TypeError as error:
            if args or kwargs:
                raise
            raise TypeError(
                f"Building the guide runs the model once, and it does not run without arguments "
                f"({error}). Pass some: args=(x, y)."
            ) from error
