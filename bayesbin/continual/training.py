"""Training on one task, or on several together: ``fit`` with snapshots as priors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from bayesbin.continual.checkpoints import drop_if_all_damaged
from bayesbin.continual.priors import Boundary, Naturals, PriorPolicy
from bayesbin.continual.task_model import TaskModel
from bayesbin.data import Batches, Dataset
from bayesbin.estimators import Estimator
from bayesbin.guides.base import SignGuide
from bayesbin.infer import fit
from bayesbin.optim import make_optimizers, training_groups

MakeOptimizers = Callable[[Any, Any, int], Sequence[Optimizer]]
MakeSchedulers = Callable[[Sequence[Optimizer], int], Sequence[Any]]


class TaskBatches:
    """Minibatches of several data sets, each batch from one of them, in an order drawn per pass.

    :param parts: (data set, head) pairs; a batch is (x, y), or (x, y, head) where there is a head.
    """

    def __init__(self, parts: Sequence[tuple[Dataset, int | None]], batch_size: int) -> None:
        self.parts = [(Batches((data.x, data.y), batch_size), head) for data, head in parts]
        self.dataset_size = sum(batches.dataset_size for batches, _ in self.parts)

    def __len__(self) -> int:
        return sum(len(batches) for batches, _ in self.parts)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        # As in Batches, all that is random is drawn here, before the first batch.
        owners = torch.repeat_interleave(torch.tensor([len(batches) for batches, _ in self.parts]))
        if len(self.parts) > 1:
            owners = owners[torch.randperm(len(owners))]
        iterators = [iter(batches) for batches, _ in self.parts]
        return (self._batch(iterators, owner) for owner in owners.tolist())

    def _batch(self, iterators: list[Any], owner: int) -> tuple[Any, ...]:
        head = self.parts[owner][1]
        return (*next(iterators[owner]), *(() if head is None else (head,)))


def cosine(optimizers: Sequence[Optimizer], epochs: int) -> list[Any]:
    """From the first learning rate down to nearly 0 over the epochs of a task."""
    return [CosineAnnealingLR(optimizer, epochs) for optimizer in optimizers]


def default_optimizers(guide: Any, model: Any, estimator: Estimator) -> list[Optimizer]:
    """The Bayesian learning rule in relative steps for the signs, Adam for all that is real."""
    return make_optimizers(training_groups(guide, model, estimator))


@dataclass(frozen=True)
class Training:
    """How a task is trained on, the same for all: arguments as of ``ContinualLearner``."""

    estimator: Estimator | Callable[[], Estimator]
    prior_policy: PriorPolicy
    batch_size: int
    kl_weight: float | Callable[[int], float]
    optimizers: MakeOptimizers | None
    schedulers: MakeSchedulers

    def run(
        self,
        model: Any,
        guide: SignGuide,
        task_model: TaskModel,
        parts: Sequence[tuple[Dataset, int | None]],
        initial: Naturals,
        *,
        boundary: Boundary,
        epochs: int,
        seed: int,
        folder: Path | None,
        progress: bool | None,
    ) -> list[dict[str, Any]]:
        """Train a guide on (data set, head) pairs with the priors of ``task_model``; the history."""
        batches = TaskBatches(parts, self.batch_size)
        size = task_model.dataset_size = batches.dataset_size
        task_model.per_step = boundary.steps
        estimator, optimizers = self._start(model, guide, size)
        with_boundaries(optimizers, boundary, self.prior_policy, initial, task_model, guide)
        if folder is not None:
            drop_if_all_damaged(folder)
        result = fit(
            task_model,
            guide,
            batches,
            estimator=estimator,
            epochs=epochs,
            kl_weight=self.kl_weight if self.prior_policy.uses_kl else 0.0,
            optimizers=optimizers,
            schedulers=self.schedulers(optimizers, epochs),
            checkpoint_dir=folder,
            seed=seed,
            progress=progress,
        )
        return result.history

    def describe(self, model: Any, guide: SignGuide) -> str:
        """The optimizers and their learning rates, as they would be for a single datum."""
        _, optimizers = self._start(model, guide, 1)
        groups = [(type(o).__name__, group["lr"]) for o in optimizers for group in o.param_groups]
        return "; ".join(f"{name} lr {lr:.12g}" for name, lr in groups)

    def _start(self, model: Any, guide: SignGuide, size: int) -> tuple[Estimator, list[Optimizer]]:
        estimator = self.estimator
        if not isinstance(estimator, Estimator):
            estimator = estimator()
        if self.optimizers is None:
            return estimator, default_optimizers(guide, model, estimator)
        return estimator, list(self.optimizers(guide, model, size))


def with_boundaries(
    optimizers: Sequence[Optimizer],
    boundary: Boundary,
    policy: PriorPolicy,
    initial: Naturals,
    model: TaskModel,
    guide: SignGuide,
) -> None:
    """Let the boundaries within a task follow the steps of the last optimizer."""
    every = boundary.steps
    if every is None:
        return

    def after_step(*_: Any) -> None:
        model.steps += 1
        if int(model.steps) % every == 0:
            prior = policy.prior(naturals_of(guide), initial)
            model.set_priors_(prior)
            if policy.moves_posterior:
                move_(guide, prior)

    optimizers[-1].register_step_post_hook(after_step)


@torch.no_grad()
def naturals_of(guide: SignGuide) -> dict[str, Tensor]:
    """The natural parameters of every site of signs, by value."""
    return {
        name: guide.natural_of(name).detach().clone()
        for name, site in guide.sites.items()
        if site.is_binary
    }


@torch.no_grad()
def move_(guide: SignGuide, naturals: Mapping[str, Tensor]) -> None:
    """Set a mean-field guide's natural parameters."""
    for name, natural in naturals.items():
        guide.natural_of(name).copy_(natural)
