"""One run of a model, to learn its sites from, that leaves no trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from bayesbin.distributions.wrappers import sign_distribution
from bayesbin.guides.announcing import LocalParameters


@contextmanager
def normalisation_kept(on_error: bool = False) -> Iterator[None]:
    """Restore on leaving the statistics of every normalisation layer that ran, in a closure too.

    :param on_error: restore them only if an error ends the block.
    """
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _BatchNorm):
            kept.extend((buffer, buffer.clone()) for buffer in module.buffers())

    handle = register_module_forward_pre_hook(keep)
    try:
        yield
        if on_error:
            kept.clear()
    finally:
        handle.remove()
        with torch.no_grad():
            for buffer, old in reversed(kept):  # the first copy of a layer that ran twice counts
                # Past autograd's version counter: a graph may hold these statistics, but one recorded
                # in training mode, the only one in which they have changed, does not use them.
                buffer.data.copy_(old)


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
