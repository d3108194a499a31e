"""The parameters that a model and a guide declare while they run, as by ``pyro.param``."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from bayesbin.guides.announcing import LocalParameters, unconstrained
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.batches import arguments
from bayesbin.infer.setup import claimed
from bayesbin.optim import TrainingGroup, make_optimizers, make_schedules

# Parameters of Pyro's store that a fit has trained -> weak references to its model and guide.
_TRAINED: Any = WeakTensorKeyDictionary()


class DeclaredParameters(Messenger):
    """Collects the parameters that no optimizer of a fit holds, and gives them to one.

    It is active around each step, so that it also finds a parameter of a branch that is first taken later.
    A parameter of a checkpoint gets its value and its optimizer's state when it is first declared.

    :param module: model and guide. :param optimizers: of the fit; an Adam is added where there is none.
    :param schedulers: of the fit. :param lr: of an Adam that is added; None: what the optimizers do not
        train is named in a warning. :param epochs: the length of the schedule of such an Adam; None: none.
    """

    def __init__(
        self,
        module: Any,
        optimizers: list[Optimizer],
        schedulers: list[Any],
        lr: float | None,
        epochs: int | None,
    ) -> None:
        super().__init__()
        self.module, self.optimizers, self.schedulers = module, optimizers, schedulers
        self.lr, self.epochs = lr, epochs
        self.parameters: dict[str, Tensor] = {}  # that an optimizer was given, in order
        self._seen: set[str] = set()  # names in Pyro's store
        self._shared: list[str] = []  # those of them that another fit has trained
        self._resumed = False
        self._pending: dict[str, Tensor] = {}  # of a checkpoint, not declared so far
        self._new: dict[str, Tensor] = {}
        self._known: dict[int, Tensor] = {}  # by identity
        for parameter in (*module.parameters(), *claimed(optimizers)):
            self._known[id(parameter)] = parameter

    def discover(self, batch: Any) -> None:
        """Run model and guide once, without a trace in generators, normalisation or the caller."""
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        args, kwargs = arguments(batch, device)
        model, guide = self.module.model, self.module.guide
        with (
            torch.no_grad(), torch.random.fork_rng(), normalisation_kept(), poutine.block(), self,
            LocalParameters(),
        ):  # fmt: skip
            guided = poutine.trace(guide).get_trace(*args, **kwargs)
            poutine.replay(model, trace=guided)(*args, **kwargs)

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["value"] is None:
            return
        name, parameter = msg["name"], unconstrained(msg["value"])
        if name not in self._seen and pyro.get_param_store()._params.get(name) is parameter:
            self._seen.add(name)
            self._note_fit(name, parameter)
        if name in self._pending:
            self._restore(name, parameter)
            if not any(isinstance(each, nn.Parameter) for each in msg["args"][1:]):
                # The value was computed from what the parameter was before.
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        elif id(parameter) not in self._known and parameter.requires_grad:
            self._new[name] = self._known[id(parameter)] = parameter

    def place(self, epoch: int) -> None:
        """Give what was found to an optimizer, before it steps; or name what none trains.

        :raises ValueError: for the first such parameter of a fit where it is declared after the first epoch.
        """
        found, self._new = self._new, {}
        self._warn_of_another_fit()
        if found and self.lr is None:
            warnings.warn(
                f"No optimizer trains {', '.join(found)}, which model or guide declares while it runs; add "
                'pyro.param("...").unconstrained() to one, or leave optimizers= out.',
                stacklevel=6,
            )
            return
        for name, parameter in found.items():
            if self._adam() is None and epoch > 1:
                raise ValueError(
                    f"expected the parameters that the model declares while it runs in its first epoch, got "
                    f"{name!r} as the first of them in epoch {epoch}; declare it in every call."
                )
            self._add(name, parameter)
        if not self.optimizers:
            raise TypeError(
                "expected a guide with parameters to train, found none in the guide, the model and the "
                "estimator; pass optimizers= that hold them."
            )

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Give the parameters of a checkpoint to the optimizers, in its order, before their state is loaded.

        Those not declared yet are kept until they are: :attr:`pending`.
        """
        self._resumed = True
        for name, value in saved.items():
            parameter = self._new.pop(name, None)
            if parameter is None:
                parameter = self._pending[name] = value.clone().requires_grad_()
            else:
                _copy(name, value, parameter)
            self._add(name, parameter)

    @property
    def pending(self) -> bool:
        """Whether parameters of a checkpoint have not been declared so far."""
        return bool(self._pending)

    def _restore(self, name: str, parameter: Tensor) -> None:
        """Let a parameter take the place of what a checkpoint knows of it."""
        kept = self._pending.pop(name)
        _copy(name, kept, parameter)
        adam = self._adam()
        assert adam is not None
        members = adam.param_groups[0]["params"]
        index = next(i for i, each in enumerate(members) if each is kept)
        members[index : index + 1] = (
            [] if any(each is parameter for each in members) else [parameter]
        )
        if kept in adam.state:
            adam.state[parameter] = adam.state.pop(kept)
        self.parameters[name] = self._known[id(parameter)] = parameter

    def _add(self, name: str, parameter: Tensor) -> None:
        adam = self._adam()
        if adam is not None:
            adam.param_groups[0]["params"].append(parameter)
        else:
            assert self.lr is not None
            made = make_optimizers([TrainingGroup((parameter,))], real_lr=self.lr)
            self.optimizers += made
            self.schedulers += [] if self.epochs is None else make_schedules(made, self.epochs)
        self.parameters[name] = parameter

    def _adam(self) -> Optimizer | None:
        """The optimizer of the real parameters, where there is one."""
        return next((each for each in reversed(self.optimizers) if isinstance(each, Adam)), None)

    def _note_fit(self, name: str, parameter: Tensor) -> None:
        before = _TRAINED.get(parameter)
        now = (self.module.model, self.module.guide)
        _TRAINED[parameter] = tuple(map(_reference, now))
        if before and not any(a() is _owner(b) for a, b in zip(before, now, strict=True)):
            self._shared.append(name)

    def _warn_of_another_fit(self) -> None:
        """Say that parameters are shared with another fit, through Pyro's store."""
        shared, self._shared = self._shared, []
        if shared and not self._resumed:  # a fit that is resumed starts from its checkpoint
            warnings.warn(
                f"A fit of another model and guide trained {', '.join(shared)} of Pyro's store, from where "
                "this one goes on; pyro.clear_param_store() before it, or another name, makes a new one.",
                stacklevel=6,
            )


def _copy(name: str, value: Tensor, parameter: Tensor) -> None:
    if value.shape != parameter.shape:
        raise ValueError(
            f"expected the parameter {name!r} to be of shape {tuple(value.shape)}, as in the checkpoint, got "
            f"{tuple(parameter.shape)}. Use the same model, or another checkpoint_dir."
        )
    with torch.no_grad():
        parameter.copy_(value)


def _owner(program: Any) -> Any:
    """The object of a bound method, which is made anew each time; any other program itself."""
    return getattr(program, "__self__", program)


def _reference(program: Any) -> Any:
    owner = _owner(program)
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


def made_at_first_call(model: Any, guide: Any) -> bool:
    """Whether parameters are known only after a call: those of functions, and of Pyro's own guides."""
    if not (isinstance(model, nn.Module) and isinstance(guide, nn.Module)):
        return True
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    return any(part.prototype_trace is None and not hasattr(part, "sites") for part in parts)
