"""The one training loop: epochs, several optimizers, validation, checkpoints, an exact resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from bayesbin.core.checks import real_number, whole_number
from bayesbin.core.turns import in_turn
from bayesbin.estimators import Estimator, named_estimator
from bayesbin.infer.batches import joined, length, require_batches, single_refused
from bayesbin.infer.checkpoint import checkpoints, load_latest
from bayesbin.infer.declared import DeclaredParameters, made_at_first_call
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.infer.interruption import deferred_interrupt
from bayesbin.infer.noise import ordered_batches
from bayesbin.infer.setup import (
    PlateSizes,
    checked_optimizers,
    default_training,
    describe,
    resolve_dataset_size,
)
from bayesbin.infer.training_run import EpochReport, TrainingRun, training_modes
from bayesbin.optim import DEFAULTS

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


@dataclass(frozen=True)
class FitResult:
    """What a training run did; the trained state itself is in the model and the guide.

    :param history: a row per epoch: ``epoch`` (from 1), ``loss``, ``nll``, ``kl`` (means over the
        steps, nats per datum; loss = nll + kl_weight kl), ``kl_weight``, ``lr`` (a list: the first
        group of each optimizer, None where it has no lr), ``seconds`` and, where validated,
        ``validation_...``.
    :param epochs: finished epochs. :param steps: optimizer steps, both over all resumed runs.
    :param stopped_early: whether patience or a callback ended it before the last epoch.
    :param choices: weight -> how it was drawn, where the estimator chose it weight by weight.

    >>> FitResult([{"epoch": 1, "loss": 0.5}], epochs=1, steps=4, stopped_early=False).to_json()
    '{"history": [{"epoch": 1, "loss": 0.5}], "epochs": 1, "steps": 4, "stopped_early": false, "choices": {}}'
    """

    history: list[dict[str, Any]]
    epochs: int
    steps: int
    stopped_early: bool
    choices: Mapping[str, str] = field(default_factory=dict)

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


def fit(
    model: Any,
    guide: Any,
    data: Iterable[Any],
    *,
    estimator: Estimator | None = None,
    epochs: int,
    kl_weight: float | Callable[[int], float] | None = None,
    num_particles: int = 1,
    dataset_size: int | None = None,
    optimizers: Optimizer | Iterable[Optimizer] | None = None,
    schedulers: LRScheduler | Iterable[LRScheduler] = (),
    declared_lr: float | None = None,
    validation: Iterable[Any] | None = None,
    validate_every: int = 1,
    checkpoint_dir: str | PathLike[str] | None = None,
    resume: bool = True,
    seed: int = 0,
    callbacks: Iterable[Callable[[EpochReport], Any]] = (),
    patience: int | None = None,
    progress: bool | None = None,
) -> FitResult:
    r"""Train a guide, and the real parameters of its model, on minibatches.

    .. math:: \text{loss} = E_q[-\log p(y \mid x, w)] + \beta\, KL(q \| p)

    in nats over all N data. Noise is a function of (seed, step), data order one of (seed, epoch):
    draws made elsewhere change nothing, the caller's generators are left as they were, and on the
    same machine and software 5 epochs + resume + 5 equal 10, bit for bit. What ``data`` draws from the
    global generators of torch, NumPy and Python is a function of (seed, epoch) too, in workers and without;
    persistent workers are started anew at each epoch for it. Not covered is a generator that ``data`` keeps
    to itself.

    Several threads may call it: they train one after another, for Pyro's handlers and torch's generators
    belong to the whole process. While callbacks run, other threads may train.

    Ctrl-C lets the step finish, writes a checkpoint and raises KeyboardInterrupt; the same call
    continues there. A second Ctrl-C stops at once.

    :param data: an iterable of batches that can be iterated anew at each epoch: tuples, lists are
        passed as ``model(*batch)``, dicts as keywords, a tensor as the one argument, all on the
        device of the parameters, and numpy arrays become tensors. A DataLoader's own generator is
        reseeded at each epoch. Where the network normalises by the batch, a last batch of one example of
        :class:`bayesbin.data.Batches` joins the batch before; other data with one are refused.
    Without ``optimizers`` it trains as ``recipe("bayesbin", model, epochs=epochs)`` does, to the bit, with
    any guide: the Bayesian learning rule in relative steps for what the guide's ``training_groups()`` give
    it, Adam for every other parameter, and a cosine for both. What model and guide declare while they run
    (``pyro.param``, constrained or not, also in a branch that is first taken in a later epoch) goes to Adam
    as well, and into checkpoints; with ``optimizers`` and no ``declared_lr`` a warning names what none of
    them trains.

    :param estimator: of the gradient. By default FlipoutWhereShared(), whose ``choices`` say which weight it
        draws by Flipout; ``result.choices`` are these.
    :param epochs: passes over ``data``, the ones before a resume included.
    :param kl_weight: beta, or a function of the epoch (1, 2, ...); 1 is the ELBO. The default is that of the
        recipe, ``bayesbin.optim.DEFAULTS["kl_weight"]``.
    :param dataset_size: N; by default ``model.dataset_size``. Never inferred from a batch, and compared
        with the number that the plates of the model, or ``pyro.poutine.scale``, scale a batch to.
    :param optimizers: by default those of the recipe "bayesbin", with its cosine schedules.
    :param schedulers: stepped once per epoch; ReduceLROnPlateau with the validation nll if any. Without
        ``optimizers`` they are stepped beside the cosines.
    :param declared_lr: with ``optimizers``: train what model and guide declare while they run, by the Adam
        among the optimizers, or by a new one with this learning rate. Recipes give their ``real_lr``.
    :param validation: batches as ``data``, scored each ``validate_every`` epochs.
    :param checkpoint_dir: gets a checkpoint after every epoch; the newest two are kept.
    :param resume: continue from the newest valid checkpoint there; False refuses to mix runs.
    :param callbacks: called with an EpochReport after each epoch; True ends training.
    :param progress: whether to show a progress bar; None: where standard error is a terminal.
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
    _check(data, validation, patience, checkpoint_dir, resume)
    epochs = whole_number("epochs", epochs, at_least=1)
    validate_every = whole_number("validate_every", validate_every, at_least=1)
    seed = whole_number("seed", seed)
    estimator = named_estimator(DEFAULTS["estimator"]) if estimator is None else estimator
    weight = _kl_weights(kl_weight)
    if declared_lr is None and optimizers is None:
        declared_lr = DEFAULTS["real_lr"]
    elif declared_lr is not None:
        declared_lr = real_number("declared_lr", declared_lr, above=0)
    with in_turn():
        elbo = TraceBinary_ELBO(
            estimator=estimator, kl_weight=weight(1), num_particles=num_particles
        )
        module = elbo(model, guide)
        data = joined(data, module)
        size = resolve_dataset_size(dataset_size, model)
        schedules = [schedulers] if isinstance(schedulers, LRScheduler) else list(schedulers)
        if optimizers is None:
            stepped, cosines = default_training(model, guide, estimator, epochs)
            schedules = [*cosines, *schedules]
        else:
            stepped = checked_optimizers(optimizers, module)
        run = TrainingRun(
            module=module,
            elbo=elbo,
            models=(model, guide),
            data=data,
            validation=validation,
            validate_every=validate_every,
            dataset_size=size,
            kl_weight=weight,
            optimizers=stepped,
            schedulers=schedules,
            declared=DeclaredParameters(
                module,
                stepped,
                schedules,
                declared_lr,
                epochs if schedules or optimizers is None else None,
            ),
            callbacks=list(callbacks),
            checkpoint_dir=checkpoint_dir,
            seed=seed,
            plate_sizes=PlateSizes.of(module, size),
        )
        run.configuration = {
            "seed": str(seed),
            "dataset size": str(size),
            "KL weight": "a function" if callable(kl_weight) else str(weight(1)),
            "particles": str(num_particles),
            "batches per epoch": str(length(data)),
            "estimator": repr(estimator),
            **describe(module, run.optimizers, run.schedulers),
        }
        saved = None if checkpoint_dir is None else load_latest(checkpoint_dir)
        _start(run, saved)
        return _train(run, epochs, patience, progress)


def _train(run: TrainingRun, epochs: int, patience: int | None, progress: bool | None) -> FitResult:
    """The epochs that are left, until the last one, a callback or patience ends it."""
    stopped = patience is not None and run.progress.waited >= patience
    bar = tqdm(
        total=epochs,
        initial=run.progress.epoch,
        disable=None if progress is None else not progress,
        bar_format=_BAR,
    )
    refusing = single_refused(run.module, run.data)
    with bar, training_modes(run.module), refusing, deferred_interrupt() as interrupt:
        while run.progress.epoch < epochs and not stopped:
            bar.set_description_str(f"epoch {run.progress.epoch + 1}/{epochs}", refresh=False)
            run.train_epoch(bar, interrupt)
            stopped = run.finish_epoch(bar)
            stopped |= patience is not None and run.progress.waited >= patience
        if interrupt.requested:
            raise KeyboardInterrupt("Interrupted at the end of an epoch.")
    done = run.progress
    return FitResult(done.history, done.epoch, done.step, stopped, done.choices)


def _start(run: TrainingRun, state: dict[str, Any] | None) -> None:
    """Find the parameters that a call of model and guide declares, and go back to a checkpoint."""
    unknown = made_at_first_call(*run.models)
    if unknown:
        _discover(run)
    if state is not None:
        run.restore(state)
        if run.declared.pending:
            _discover(run)
    if unknown:
        run.declared.place(run.progress.epoch + 1)


def _discover(run: TrainingRun) -> None:
    for batch in ordered_batches(run.data, run.seed, 1):
        return run.declared.discover(batch)


def _kl_weights(given: float | Callable[[int], float] | None) -> Callable[[int], float]:
    """The KL weight as a function of the epoch; a number, once checked, is the same in every epoch."""
    if given is not None and callable(given):
        return given
    weight = DEFAULTS["kl_weight"] if given is None else given
    weight = real_number("kl_weight", weight, at_least=0)
    return lambda epoch: weight


def _check(
    data: Any,
    validation: Any,
    patience: int | None,
    checkpoint_dir: str | PathLike[str] | None,
    resume: bool,
) -> None:
    """Refuse what cannot be trained, before anything is built."""
    for batches in (data, *([] if validation is None else [validation])):
        require_batches(batches)
    if patience is not None:
        whole_number("patience", patience, at_least=1)
        if validation is None:
            raise ValueError(
                f"patience={patience} waits for a better validation score; pass validation=."
            )
    if not resume and checkpoint_dir is not None and checkpoints(checkpoint_dir):
        came = f"those of another run in {checkpoint_dir}; delete them, or name another folder."
        raise FileExistsError(f"expected no checkpoints with resume=False, got {came}")
