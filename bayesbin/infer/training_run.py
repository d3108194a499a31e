"""One training run: how far it is, its steps and epochs, and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from bayesbin.core.checks import real_number
from bayesbin.core.turns import turn_given_up
from bayesbin.infer.batches import SINGLE, arguments, length
from bayesbin.infer.checkpoint import save_checkpoint
from bayesbin.infer.declared import DeclaredParameters
from bayesbin.infer.interruption import Interrupt, until_interrupted
from bayesbin.infer.noise import STEP_NOISE, VALIDATION_NOISE, NoiseStream, ordered_batches
from bayesbin.infer.setup import PlateSizes, claimed, require_configuration

TERMS = ("loss", "nll", "kl")


@dataclass(frozen=True)
class EpochReport:
    """What a callback is told: the epoch (from 1), its history row, the model and the guide."""

    epoch: int
    row: Mapping[str, Any]
    model: Any
    guide: Any


@dataclass
class Progress:
    """How far training is: what a checkpoint holds beside the state of modules and optimizers."""

    epoch: int = 0  # finished
    batch: int = 0  # done in the epoch begun
    step: int = 0  # since the first epoch
    seconds: float = 0.0  # spent in the epoch begun
    sums: list[float] = field(default_factory=lambda: [0.0] * len(TERMS))  # over its steps, nats
    best: float = math.inf  # validation nll
    waited: int = 0  # validations since then
    history: list[dict[str, Any]] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)  # weight -> how the estimator drew it


@dataclass
class TrainingRun:
    """One training run: its parts, how far it is, and the two halves of an epoch."""

    module: Any  # an nn.Module that also offers terms()
    elbo: Any
    models: tuple[Any, Any]
    data: Iterable[Any]
    validation: Iterable[Any] | None
    validate_every: int
    dataset_size: int
    kl_weight: Callable[[int], float]
    optimizers: list[Optimizer]
    schedulers: list[Any]
    declared: DeclaredParameters
    callbacks: list[Callable[[EpochReport], Any]]
    checkpoint_dir: str | PathLike[str] | None
    seed: int
    configuration: dict[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    plate_sizes: PlateSizes | None = None  # until the first step is done

    def train_epoch(self, bar: tqdm[Any], interrupt: Interrupt) -> None:
        """The steps of the epoch not done yet; Ctrl-C ends them with a checkpoint."""
        now, epoch = self.progress, self.progress.epoch + 1
        self.elbo.kl_weight = real_number(
            f"the KL weight of epoch {epoch}", self.kl_weight(epoch), at_least=0
        )
        self.module.train()
        share = 1.0 / (length(self.data) or math.inf)  # of the bar, which moves within epochs
        begin = time.perf_counter() - now.seconds
        batches = ordered_batches(self.data, self.seed, epoch)
        for index, batch in enumerate(until_interrupted(batches, interrupt)):
            # Those done before an interruption are drawn again: it keeps the order of the rest.
            if index >= now.batch:
                terms = self._step(batch, epoch)
                now.sums = [total + term for total, term in zip(now.sums, terms, strict=True)]
                now.batch, now.step = now.batch + 1, now.step + 1
            bar.update(share)
        now.seconds = time.perf_counter() - begin
        self._require_finite_parameters(epoch)
        if interrupt.requested:
            kept = (
                "" if self.checkpoint_dir is None else f"; the same call continues: {self.save()}"
            )
            raise KeyboardInterrupt(f"Interrupted after step {now.step}{kept}")
        if now.batch == 0:
            raise ValueError(
                f"expected at least one batch, got none in epoch {epoch}; pass data that can be "
                "iterated anew at each epoch, a list or a DataLoader."
            )

    def _step(self, batch: Any, epoch: int) -> tuple[float, float, float]:
        """One step of every optimizer; (loss, nll, kl) in nats over the data set."""
        args, kwargs = arguments(batch, self._device())
        self.module.zero_grad(set_to_none=True)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with NoiseStream(self.seed, STEP_NOISE, self.progress.step).active():
            with self.declared, self.plate_sizes or nullcontext():
                terms = self._terms(args, kwargs)
            if self.plate_sizes is not None:
                self.plate_sizes.require()
                self.plate_sizes = None  # the first step of a run tells
            self.declared.place(epoch)
            values = float(terms.loss.detach()), float(terms[1]), float(terms[2])
            if not all(map(math.isfinite, values)):
                came = ", ".join(f"{k} = {v}" for k, v in zip(TERMS, values, strict=True))
                raise FloatingPointError(
                    f"expected a finite loss, got {came} in epoch {epoch} at step "
                    f"{self.progress.step + 1}; lower the learning rate, or look for NaN, infinite "
                    "or unscaled values in the data. Checkpoints written before are valid."
                )
            terms.loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
        return values

    def _terms(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return self.module.terms(*args, **kwargs)
        except ValueError as error:  # with the shapes that Pyro adds; or torch's own
            if SINGLE in str(error) or "more than 1 value per channel" in str(error):
                raise ValueError(SINGLE) from error
            raise

    def _device(self) -> torch.device:
        """That of the parameters: of the modules, or else of what the optimizers hold."""
        for parameter in (*self.module.parameters(), *claimed(self.optimizers)):
            return parameter.device
        return torch.device("cpu")

    def _require_finite_parameters(self, epoch: int) -> None:
        # The last step of an epoch may break a parameter that no loss has been computed from yet.
        others = ((f"a parameter of shape {tuple(p.shape)}", p) for p in self._other_parameters())
        declared = self.declared.parameters.items()
        for name, parameter in (*self.module.named_parameters(), *declared, *others):
            if not bool(torch.isfinite(parameter).all()):
                raise FloatingPointError(
                    f"expected finite parameters, got NaN or infinity in {name} in epoch {epoch}; "
                    "lower the learning rate. Checkpoints written before are valid."
                )

    def finish_epoch(self, bar: tqdm[Any]) -> bool:
        """Validation, history, schedulers, callbacks, checkpoint; whether a callback ends it."""
        now, epoch = self.progress, self.progress.epoch + 1
        row = self._history_row(epoch)
        self._step_schedulers(row)
        self.progress = Progress(
            epoch, step=now.step, best=now.best, waited=now.waited, history=[*now.history, row],
            choices=dict(getattr(self.elbo.estimator, "choices", {})),
        )  # fmt: skip
        bar.n = epoch
        shown = ("loss", "nll", "kl", *(name for name in row if name.startswith("validation_")))
        bar.set_postfix({name: f"{row[name]:.4g}" for name in shown}, refresh=False)
        report = EpochReport(epoch, MappingProxyType(row), *self.models)
        try:
            with turn_given_up():
                return any([callback(report) is True for callback in self.callbacks])
        finally:  # after the callbacks, which may set a learning rate, and even if one fails
            if self.checkpoint_dir is not None:
                self.save()

    def _history_row(self, epoch: int) -> dict[str, Any]:
        """The terms of the epoch per datum, and validation scores where they are due."""
        now = self.progress
        means = [total / now.batch / self.dataset_size for total in now.sums]
        row: dict[str, Any] = {
            "epoch": epoch,
            **dict(zip(TERMS, means, strict=True)),
            "kl_weight": float(self.elbo.kl_weight),
            "lr": [_lr(optimizer) for optimizer in self.optimizers],
            "seconds": now.seconds,
        }
        if self.validation is not None and epoch % self.validate_every == 0:
            found = self._validate(self.validation, epoch)
            row |= {f"validation_{name}": value for name, value in found.items()}
            better = row["validation_nll"] < now.best
            now.best = row["validation_nll"] if better else now.best
            now.waited = 0 if better else now.waited + 1
        return row

    def _step_schedulers(self, row: Mapping[str, Any]) -> None:
        for scheduler in self.schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif self.validation is None or "validation_nll" in row:
                scheduler.step(row.get("validation_nll", row["loss"]))

    def _validate(self, validation: Iterable[Any], epoch: int) -> dict[str, float]:
        # Not every run needs what it imports.
        from bayesbin.infer.validation import validation_metrics

        self.module.eval()  # until the next epoch's first step
        with NoiseStream(self.seed, VALIDATION_NOISE, epoch).active():
            return validation_metrics(
                *self.models, validation, self.data, self.dataset_size, self.seed
            )

    def save(self) -> Any:
        assert self.checkpoint_dir is not None
        state = {
            **vars(self.progress),
            "configuration": self.configuration,
            "module": self.module.state_dict(),
            "declared": {n: p.detach() for n, p in self.declared.parameters.items()},
            "other parameters": [p.detach() for p in self._other_parameters()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }
        return save_checkpoint(self.checkpoint_dir, state)

    def restore(self, state: dict[str, Any]) -> None:
        require_configuration(state["configuration"], self.configuration)
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})
        self.module.load_state_dict(state["module"])
        self.declared.restore(state["declared"])
        with torch.no_grad():
            for p, saved in zip(self._other_parameters(), state["other parameters"], strict=True):
                p.copy_(saved)
        for part, saved in zip(self.optimizers, state["optimizers"], strict=True):
            part.load_state_dict(saved)
        for part, saved in zip(self.schedulers, state["schedulers"], strict=True):
            part.load_state_dict(saved)

    def _other_parameters(self) -> list[Tensor]:
        """What the user's optimizers hold and no module owns: a model that is a function may use some."""
        declared = self.declared.parameters.values()
        owned = {id(p) for p in (*self.module.parameters(), *declared)}
        return [p for p in claimed(self.optimizers) if id(p) not in owned]


def _lr(optimizer: Optimizer) -> float | None:
    lr = optimizer.param_groups[0].get("lr")  # a rule that flips signs has none
    return None if lr is None else float(lr)


@contextmanager
def training_modes(module: nn.Module) -> Iterator[None]:
    """Give every submodule back the mode, training or evaluation, that it came in."""
    before = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
