"""The one training loop: epochs, several optimizers, validation, checkpoints, an exact resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from bayesbin.estimators import Estimator, LocalReparameterization
from bayesbin.infer.batches import length, require_batches
from bayesbin.infer.checkpoint import checkpoints, load_latest
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.infer.interruption import deferred_interrupt
from bayesbin.infer.setup import describe, resolve_dataset_size, resolve_optimizers
from bayesbin.infer.training_run import EpochReport, Run, training_modes

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
    progress: bool | None = None,
) -> FitResult:
    r"""Train a guide, and the real parameters of its model, on minibatches.

    .. math:: \text{loss} = E_q[-\log p(y \mid x, w)] + \beta\, KL(q \| p)

    in nats over all N data. Noise is a function of (seed, step), data order one of (seed, epoch):
    draws made elsewhere change nothing, the caller's generators are left as they were, and on the
    same machine and software 5 epochs + resume + 5 equal 10, bit for bit. Not covered is what
    ``data`` draws from other generators than torch's.

    Ctrl-C lets the step finish, writes a checkpoint and raises KeyboardInterrupt; the same call
    continues there. A second Ctrl-C stops at once.

    :param data: an iterable of batches that can be iterated anew at each epoch: tuples, lists are
        passed as ``model(*batch)``, dicts as keywords, a tensor as the one argument, all on the
        device of the parameters. A DataLoader's own generator is reseeded at each epoch.
    :param estimator: of the gradient; LocalReparameterization() by default.
    :param epochs: passes over ``data``, the ones before a resume included.
    :param kl_weight: beta, or a function of the epoch (1, 2, ...).
    :param dataset_size: N; by default ``model.dataset_size``. Never inferred from a batch.
    :param optimizers: by default ``BayesianLearningRule(lr=0.05, momentum=0.9, normalize=True)`` for
        the guide's natural parameters and Adam(lr=3e-3) for every other trainable parameter.
    :param schedulers: stepped once per epoch; ReduceLROnPlateau with the validation nll if any.
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
    for batches in (data, *([] if validation is None else [validation])):
        require_batches(batches)
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
    size = resolve_dataset_size(dataset_size, model)
    run = Run(
        module=module,
        elbo=elbo,
        models=(model, guide),
        data=data,
        validation=validation,
        validate_every=validate_every,
        dataset_size=size,
        kl_weight=weight,
        optimizers=resolve_optimizers(optimizers, module, guide),
        schedulers=[schedulers] if isinstance(schedulers, LRScheduler) else list(schedulers),
        callbacks=list(callbacks),
        checkpoint_dir=checkpoint_dir,
        seed=seed,
    )
    run.configuration = {
        "seed": str(seed),
        "dataset size": str(size),
        "KL weight": "a function" if callable(kl_weight) else str(float(kl_weight)),
        "particles": str(num_particles),
        "batches per epoch": str(length(data)),
        "estimator": repr(estimator),
        **describe(module, run.optimizers, run.schedulers),
    }
    if checkpoint_dir is not None and (state := load_latest(checkpoint_dir)) is not None:
        run.restore(state)
    stopped = patience is not None and run.progress.waited >= patience
    bar = tqdm(
        total=epochs,
        initial=run.progress.epoch,
        disable=None if progress is None else not progress,
        bar_format=_BAR,
    )
    with bar, training_modes(module), deferred_interrupt() as interrupt:
        while run.progress.epoch < epochs and not stopped:
            bar.set_description_str(f"epoch {run.progress.epoch + 1}/{epochs}", refresh=False)
            run.train_epoch(bar, interrupt)
            stopped = run.finish_epoch(bar)
            stopped |= patience is not None and run.progress.waited >= patience
        if interrupt.requested:
            raise KeyboardInterrupt("Interrupted at the end of an epoch.")
    done = run.progress
    return FitResult(done.history, done.epoch, done.step, stopped_early=stopped)
