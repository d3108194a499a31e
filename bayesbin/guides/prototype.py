"""One run of a model, to learn its sites from, that leaves no trace in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from bayesbin.core.networks import normalisation_kept
from bayesbin.distributions.wrappers import sign_distribution
from bayesbin.guides.announcing import LocalParameters


class _StartFeasible(Messenger):
    """Real-valued sites start at the median of their prior."""

    def _pyro_sample(self, msg: Any) -> None:
        if (
            msg["is_observed"]
            or msg["done"]
            or site_is_subsample(msg)
            or sign_distribution(msg["fn"])
        ):
            return
        if not msg["fn"].support.is_discrete:
            msg["value"] = init_to_median(msg)


def run_once(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Pyro's store would keep the network's parameters, and mark them so that they cannot be pickled.
    with (
        torch.no_grad(),
        normalisation_kept(),
        poutine.block(),
        LocalParameters(),
        _StartFeasible(),
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
