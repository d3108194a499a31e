"""The one training loop: epochs, several optimizers, validation, checkpoints, an exact resume."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from bayesbin.estimators import Estimator, LocalReparameterization
from bayesbin.infer.checkpoint import checkpoints, load_latest, save_checkpoint
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.infer.noise import STEP_NOISE, VALIDATION_NOISE, NoiseStream, ordered_batches
from bayesbin.optim import BayesianLearningRule

# The gradient of a loss in nats over N data grows with N, so the step is DEFAULT_LR / N.
DEFAULT_LR = 0.05
DEFAULT_MOMENTUM = 0.9
DEFAULT_ADAM_LR = 1e-3

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_TERMS = ("loss", "nll", "kl")


@dataclass(frozen=True)
class EpochReport:
    """What a callback is told: the epoch (from 1), its history row, the model and the guide."""

    epoch: int
    row: Mapping[str, Any]
    model: Any
    guide: Any


@dataclass(frozen=True)
class FitResult:
    """What a training run did; the trained state itself is in the model and the guide.

    :param history: a row per epoch: ``epoch`` (from 1), ``loss``, ``nll``, ``kl`` (means over the
        steps, nats per datum; loss = nll + kl_weight kl), ``kl_weight``, ``lr`` (a list: the first
        group of each optimizer), ``seconds`` and, where validated, ``validation_...``.
    :param epochs: finished epochs. :param steps: optimizer steps, both over all resumed runs.
    :param stopped_early: whether patience or a callback ended it before the last epoch.

    >>> FitResult([{"epoch": 1, "loss": 0.5}], epochs=1, steps=4, stopped_early=False).to_json()
    '{"history": [{"epoch": 1, "loss": 0.5}], "epochs": 1, "steps": 4, "stopped_early": false}'
    """

    history: list[dict[str, Any]]
    epochs: int
    steps: int
    stopped_early: bool

    def to_json(self) -> str:
        """One line of JSON; a number that is not finite, which JSON does not know, becomes null."""
        rows = [
            {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            }
            for row in self.history
        ]
        return json.dumps({**vars(self), "history": rows})


@dataclass
class _Progress:
    """How far training is: what a checkpoint holds beside the state of modules and optimizers."""

    epoch: int = 0  # finished
    batch: int = 0  # done in the epoch begun
    step: int = 0  # since the first epoch
    seconds: float = 0.0  # spent in the epoch begun
    sums: list[float] = field(default_factory=lambda: [0.0] * len(_TERMS))  # over its steps, nats
    best: float = math.inf  # validation nll
    waited: int = 0  # validations since then
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    model: Any,
    guide: Any,
    data: Iterable[Any],
    *,
    estimator: Estimator | None = None,
    epochs: int,
    kl_weight: float | Callable[[int], float] = 1.0,
    num_particles: int = 1,
    dataset_size: int | None = None,
    optimizers: Optimizer | Iterable[Optimizer] | None = None,
    schedulers: LRScheduler | Iterable[LRScheduler] = (),
    validation: Iterable[Any] | None = None,
    validate_every: int = 1,
    checkpoint_dir: str | PathLike[str] | None = None,
    resume: bool = True,
    seed: int = 0,
    callbacks: Iterable[Callable[[EpochReport], Any]] = (),
    patience: int | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Train a guide, and the real parameters of its model, on minibatches.

    .. math:: \text{loss} = E_q[-\log p(y \mid x, w)] + \beta\, KL(q \| p)

    in nats over all N data. Noise is a function of (seed, step) and data order one of (seed, epoch):
    draws made elsewhere change nothing, the caller's generators are left as they were, and on the
    same machine and software 5 epochs + resume + 5 equal 10, bit for bit. Not covered is what
    ``data`` draws from other generators than torch's.

    Ctrl-C lets the step finish, writes a checkpoint and raises KeyboardInterrupt; the same call
    continues there. A second Ctrl-C stops at once.

    :param data: an iterable of batches that can be iterated anew at each epoch: tuples and lists are
        passed as ``model(*batch)``, dicts as keywords, a tensor as the one argument, all on the
        device of the parameters. A DataLoader's own generator is reseeded at each epoch.
    :param estimator: of the gradient; LocalReparameterization() by default.
    :param epochs: passes over ``data``, the ones before a resume included.
    :param kl_weight: beta, or a function of the epoch (1, 2, ...).
    :param dataset_size: N; by default ``model.dataset_size``. Never inferred from a batch.
    :param optimizers: by default BayesianLearningRule(lr=0.05 / N, momentum=0.9) for the guide's
        natural parameters and Adam(lr=1e-3) for every other trainable parameter.
    :param schedulers: stepped once per epoch; ReduceLROnPlateau with the validation nll if any.
    :param validation: batches as ``data``, scored each ``validate_every`` epochs.
    :param checkpoint_dir: gets a checkpoint after every epoch; the newest two are kept.
    :param resume: continue from the newest valid checkpoint there; False refuses to mix runs.
    :param callbacks: called with an EpochReport after each epoch; True ends training.
    :param patience: end after so many validations in a row without a new lowest validation nll.
    :raises FloatingPointError: if the loss or a parameter is not finite; checkpoints stay valid.
    :raises ValueError: for contradicting settings, or a checkpoint of another configuration.
    :raises FileExistsError: if ``resume`` is False and there are checkpoints.

    Example::

        >>> import torch
        >>> from bayesbin import nn
        >>> from bayesbin.data import Batches, two_moons
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.infer import fit
        >>> net = nn.to_binary_(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 2)))
        >>> model = nn.Classifier(net, dataset_size=200)
        >>> guide, batches = AutoSignBernoulli(model), Batches(two_moons(), batch_size=50)
        >>> result = fit(model, guide, batches, epochs=2, progress=False)
        >>> result.epochs, result.steps
        (2, 8)

    Source: Khan and Rue 2023, arXiv 2107.04562 (natural gradients for the signs, others by Adam).
    """
    for batches in (data, *([] if validation is None else [validation])):
        _require_batches(batches)
    if min(epochs, validate_every) < 1:
        came = f"epochs={epochs}, validate_every={validate_every}"
        raise ValueError(
            f"expected epochs and validate_every of at least 1, got {came}; raise them."
        )
    if patience is not None and (validation is None or patience < 1):
        came = f"patience={patience} and {'no ' if validation is None else ''}validation data"
        raise ValueError(f"expected patience of at least 1 and validation data, got {came}.")
    if not resume and checkpoint_dir is not None and checkpoints(checkpoint_dir):
        came = f"those of another run in {checkpoint_dir}; delete them, or name another folder."
        raise FileExistsError(f"expected no checkpoints with resume=False, got {came}")
    weight = kl_weight if callable(kl_weight) else lambda epoch: kl_weight
    estimator = LocalReparameterization() if estimator is None else estimator
    elbo = TraceBinary_ELBO(estimator=estimator, kl_weight=weight(1), num_particles=num_particles)
    module = elbo(model, guide)
    size = _resolve_dataset_size(dataset_size, model)
    run = _Run(
        module=module,
        elbo=elbo,
        models=(model, guide),
        data=data,
        validation=validation,
        validate_every=validate_every,
        dataset_size=size,
        kl_weight=weight,
        optimizers=_resolve_optimizers(optimizers, module, guide, size),
        schedulers=[schedulers] if isinstance(schedulers, LRScheduler) else list(schedulers),
        callbacks=list(callbacks),
        checkpoint_dir=checkpoint_dir,
        seed=seed,
        devices=sorted({p.device for p in module.parameters() if p.is_cuda}, key=str),
    )
    run.configuration = {
        "seed": str(seed),
        "dataset size": str(size),
        "KL weight": "a function" if callable(kl_weight) else str(float(kl_weight)),
        "particles": str(num_particles),
        "estimator": repr(estimator),
        **_describe(module, run.optimizers, run.schedulers),
    }
    if checkpoint_dir is not None and (state := load_latest(checkpoint_dir)) is not None:
        run.restore(state)
    stopped = patience is not None and run.progress.waited >= patience
    bar = tqdm(total=epochs, initial=run.progress.epoch, disable=not progress, bar_format=_BAR)
    with bar, _training_modes(module), _deferred_interrupt() as interrupt:
        while run.progress.epoch < epochs and not stopped:
            bar.set_description_str(f"epoch {run.progress.epoch + 1}/{epochs}", refresh=False)
            run.train_epoch(bar, interrupt)
            stopped = run.finish_epoch(bar)
            stopped |= patience is not None and run.progress.waited >= patience
        if interrupt.requested:
            raise KeyboardInterrupt("Interrupted at the end of an epoch.")
    done = run.progress
    return FitResult(done.history, done.epoch, done.step, stopped_early=stopped)


@dataclass
class _Run:
    """One training run: its parts, how far it is, and the two halves of an epoch."""

    module: nn.Module
    elbo: Any
    models: tuple[Any, Any]
    data: Iterable[Any]
    validation: Iterable[Any] | None
    validate_every: int
    dataset_size: int
    kl_weight: Callable[[int], float]
    optimizers: list[Optimizer]
    schedulers: list[Any]
    callbacks: list[Callable[[EpochReport], Any]]
    checkpoint_dir: str | PathLike[str] | None
    seed: int
    devices: list[torch.device]
    configuration: dict[str, str] = field(default_factory=dict)
    progress: _Progress = field(default_factory=_Progress)

    def train_epoch(self, bar: tqdm[Any], interrupt: _Interrupt) -> None:
        """The steps of the epoch not done yet; Ctrl-C ends them with a checkpoint."""
        now, epoch = self.progress, self.progress.epoch + 1
        self.elbo.kl_weight = self.kl_weight(epoch)
        self.module.train()
        share = 1.0 / (_length(self.data) or math.inf)  # of the bar, which moves within epochs
        begin = time.perf_counter() - now.seconds
        batches = ordered_batches(self.data, self.seed, epoch, self.devices)
        for index, batch in enumerate(_until_interrupted(batches, interrupt)):
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
        args, kwargs = _arguments(batch, next(self.module.parameters()).device)
        self.module.zero_grad(set_to_none=True)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with NoiseStream(self.seed, STEP_NOISE, self.progress.step, self.devices).active():
            terms = self.module.terms(*args, **kwargs)  # type: ignore[operator]
            values = float(terms.loss.detach()), float(terms[1]), float(terms[2])
            if not all(map(math.isfinite, values)):
                came = ", ".join(f"{k} = {v}" for k, v in zip(_TERMS, values, strict=True))
                raise FloatingPointError(
                    f"expected a finite loss, got {came} in epoch {epoch} at step "
                    f"{self.progress.step + 1}; lower the learning rate, or look for NaN, infinite "
                    "or unscaled values in the data. Checkpoints written before are valid."
                )
            terms.loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
        return values

    def _require_finite_parameters(self, epoch: int) -> None:
        # The last step of an epoch may break a parameter that no loss has been computed from yet.
        for name, parameter in self.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise FloatingPointError(
                    f"expected finite parameters, got NaN or infinity in {name} in epoch {epoch}; "
                    "lower the learning rate. Checkpoints written before are valid."
                )

    def finish_epoch(self, bar: tqdm[Any]) -> bool:
        """Validation, history, schedulers, callbacks, checkpoint; whether a callback ends it."""
        now, epoch = self.progress, self.progress.epoch + 1
        means = [total / now.batch / self.dataset_size for total in now.sums]
        row: dict[str, Any] = {
            "epoch": epoch,
            **dict(zip(_TERMS, means, strict=True)),
            "kl_weight": float(self.elbo.kl_weight),
            "lr": [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers],
            "seconds": now.seconds,
        }
        if self.validation is not None and epoch % self.validate_every == 0:
            row |= {f"validation_{name}": value for name, value in self._validate(epoch).items()}
            better = row["validation_nll"] < now.best
            now.best = row["validation_nll"] if better else now.best
            now.waited = 0 if better else now.waited + 1
        for scheduler in self.schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif self.validation is None or "validation_nll" in row:
                scheduler.step(row.get("validation_nll", row["loss"]))
        self.progress = _Progress(
            epoch, step=now.step, best=now.best, waited=now.waited, history=[*now.history, row]
        )
        bar.n = epoch
        shown = ("loss", "nll", "kl", *(name for name in row if name.startswith("validation_")))
        bar.set_postfix({name: f"{row[name]:.4g}" for name in shown}, refresh=False)
        report = EpochReport(epoch, MappingProxyType(row), *self.models)
        try:
            return any([callback(report) is True for callback in self.callbacks])
        finally:  # after the callbacks, which may set a learning rate, and even if one fails
            if self.checkpoint_dir is not None:
                self.save()

    def _validate(self, epoch: int) -> dict[str, float]:
        from bayesbin.infer.validation import (
            validation_metrics,
        )  # not every run needs what it imports

        with NoiseStream(self.seed, VALIDATION_NOISE, epoch, self.devices).active():
            return validation_metrics(*self.models, self.validation, self.data, self.seed)

    def save(self) -> Any:
        assert self.checkpoint_dir is not None
        state = {
            **vars(self.progress),
            "configuration": self.configuration,
            "module": self.module.state_dict(),
            "other parameters": [p.detach() for p in self._other_parameters()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }
        return save_checkpoint(self.checkpoint_dir, state)

    def restore(self, state: dict[str, Any]) -> None:
        _require_configuration(state["configuration"], self.configuration)
        self.progress = _Progress(**{name: state[name] for name in vars(self.progress)})
        self.module.load_state_dict(state["module"])
        with torch.no_grad():
            for p, saved in zip(self._other_parameters(), state["other parameters"], strict=True):
                p.copy_(saved)
        for part, saved in zip(self.optimizers, state["optimizers"], strict=True):
            part.load_state_dict(saved)
        for part, saved in zip(self.schedulers, state["schedulers"], strict=True):
            part.load_state_dict(saved)

    def _other_parameters(self) -> list[Tensor]:
        """What an optimizer holds and no module owns: a model that is a function may use some."""
        owned = {id(p) for p in self.module.parameters()}
        return [p for p in _claimed(self.optimizers) if id(p) not in owned]


def _claimed(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def _resolve_dataset_size(argument: int | None, model: Any) -> int:
    own = getattr(model, "dataset_size", None)
    if argument is not None and own is not None and argument != own:
        came = (
            f"dataset_size={argument} and model.dataset_size={own}; correct one, or leave it out."
        )
        raise ValueError(f"expected one number of training data, got {came}")
    size = own if argument is None else argument
    if not isinstance(size, int) or size < 1:
        came = f"{size!r}; pass dataset_size=, at least 1 (a batch does not tell)."
        raise ValueError(f"expected the number of training data, got {came}")
    return size


def _resolve_optimizers(
    given: Optimizer | Iterable[Optimizer] | None, module: nn.Module, guide: Any, size: int
) -> list[Optimizer]:
    """The optimizers given, or the default ones; an error where two hold the same parameter."""
    trainable = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    if given is None:
        natural = [p for p in guide.natural_parameters() if p.requires_grad]
        taken = {id(p) for p in natural}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
        rule = BayesianLearningRule
        optimizers: list[Optimizer] = [
            *([rule(natural, lr=DEFAULT_LR / size, momentum=DEFAULT_MOMENTUM)] if natural else []),
            *([Adam(rest, lr=DEFAULT_ADAM_LR)] if rest else []),
        ]
    else:
        optimizers = [given] if isinstance(given, Optimizer) else list(given)
    if not optimizers or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        came = ", ".join(type(o).__name__ for o in optimizers) or "none, or nothing to train"
        raise TypeError(f"expected optimizers of torch.optim's kind, got {came}.")
    claimed = [id(p) for p in _claimed(optimizers)]
    twice = sorted({trainable.get(i, "a parameter") for i in claimed if claimed.count(i) > 1})
    if twice:
        raise ValueError(
            f"expected each parameter in one optimizer, got in several: {', '.join(twice[:5])}; "
            "give guide.natural_parameters() to one and guide.real_parameters() to another."
        )
    if left := [name for key, name in trainable.items() if key not in set(claimed)]:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        warnings.warn(
            f"No optimizer trains {', '.join(left[:5])}{more}; add them to one, or set "
            "requires_grad_(False) where that is meant.",
            stacklevel=3,
        )
    return optimizers


def _describe(
    module: nn.Module, optimizers: list[Optimizer], schedulers: list[Any]
) -> dict[str, str]:
    """What a checkpoint must agree on: parameters, optimizers with their initial lr, schedulers."""
    names = {id(p): name for name, p in module.named_parameters()}
    entries = {
        f"parameter {n}": f"{p.dtype} {tuple(p.shape)}" for n, p in module.named_parameters()
    }
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            what = f"optimizer {i} group {j}"
            lr = float(group.get("initial_lr", group["lr"]))  # a scheduler changes "lr" alone
            entries[what] = f"{type(optimizer).__name__}, lr {lr:.12g}"
            owned = [names.get(id(p), str(tuple(p.shape))) for p in group["params"]]
            entries[f"{what} parameters"] = ", ".join(owned)
    return entries | {f"scheduler {i}": type(s).__name__ for i, s in enumerate(schedulers)}


def _require_configuration(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to continue with another model or optimizer than the checkpoint was saved from."""
    different = [
        f"{name}: {saved.get(name, 'none')} in the checkpoint, {now.get(name, 'none')} now"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if different:
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(
            "expected the configuration that the checkpoint was saved with, but these differ: "
            f"{'; '.join(different[:5])}{more}. Use the same, or another checkpoint_dir."
        )


def _require_batches(data: Any) -> None:
    if isinstance(data, Iterator):
        came = f"a one-shot {type(data).__name__}; make it a list, or pass a DataLoader."
        raise TypeError(f"expected data that can be iterated anew at each epoch, got {came}")
    tensors = isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data)
    if not isinstance(data, Iterable) or isinstance(data, Tensor) or (data and tensors):
        came = f"{'tensors' if tensors else type(data).__name__}; a single batch is [(x, y)]."
        raise TypeError(f"expected an iterable of batches, got {came}")


def _arguments(batch: Any, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    """A batch as (arguments, keywords) of the model, tensors on ``device``."""

    def placed(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Tensor):
        return [placed(batch)], {}
    if isinstance(batch, Mapping):
        return [], {name: placed(value) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [placed(value) for value in batch], {}
    came = f"{type(batch).__name__}; let the loader give one of these."
    raise TypeError(f"expected a batch that is a tuple, list, dict or tensor, got {came}")


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # an iterable need not know
        return None


@contextmanager
def _training_modes(module: nn.Module) -> Iterator[None]:
    """Give every submodule back the mode, training or evaluation, that it came in."""
    before = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


@dataclass
class _Interrupt:
    requested: bool = False


@contextmanager
def _deferred_interrupt() -> Iterator[_Interrupt]:
    """Turn the first Ctrl-C into a request; the second raises KeyboardInterrupt at once."""
    interrupt, before = _Interrupt(), signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: Any) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt("Interrupted twice: the step begun is lost.")
        interrupt.requested = True

    # Only the main thread may set handlers; one that ignores Ctrl-C (nohup) or is C code stays.
    here = threading.current_thread() is threading.main_thread()
    if not here or before in (None, signal.SIG_IGN):
        yield interrupt
        return
    signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _until_interrupted(batches: Iterator[Any], interrupt: _Interrupt) -> Iterator[Any]:
    while not interrupt.requested:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError:  # Ctrl-C reaches a DataLoader's worker processes too, and ends them
            if not interrupt.requested:
                raise
        else:
            yield batch
