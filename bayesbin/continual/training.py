"""Training on one task, or on several together: a recipe and ``fit``, with snapshots as priors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from bayesbin.continual.checkpoints import drop_if_all_damaged
from bayesbin.continual.priors import AtTaskEnd, Boundary, ExactPrior, Naturals, PriorPolicy
from bayesbin.continual.task_model import TaskModel
from bayesbin.core.turns import in_turn
from bayesbin.data import Batches, Dataset
from bayesbin.estimators import Estimator
from bayesbin.guides.base import SignGuide
from bayesbin.infer import fit
from bayesbin.infer.batches import SINGLE, joined
from bayesbin.optim import cosine_by_step_
from bayesbin.recipes.base import Method, Recipe, assemble

MakeOptimizers = Callable[[Any, Any, int], Sequence[Optimizer]]
MakeSchedulers = Callable[[Sequence[Optimizer], int], Sequence[Any]]
Parts = Sequence[tuple[Dataset, int | None]]


class TaskBatches:
    """Minibatches of several data sets, each batch from one of them, in an order drawn per pass.

    :param parts: (data set, head) pairs; a batch is (x, y), or (x, y, head) where there is a head.
    :param model: joins a last batch of one to the one before, where it normalises by the batch.
    :raises ValueError: for batches of one where the model normalises by the batch.
    """

    def __init__(self, parts: Parts, batch_size: int, model: Any = None) -> None:
        self.parts = [(_batches(data, batch_size, model), head) for data, head in parts]
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


def _batches(data: Dataset, batch_size: int, model: Any) -> Batches:
    batches = Batches((data.x, data.y), batch_size)
    if not isinstance(model, nn.Module):
        return batches
    found = joined(batches, model)
    if found is not batches and 1 in found.sizes() and data.x.ndim == 2:
        raise ValueError(SINGLE)
    return found


@dataclass(frozen=True)
class Start:
    """What one task is trained with, made anew for it."""

    guide: Any
    estimator: Estimator
    optimizers: list[Optimizer]
    schedules: list[Any]
    settings: Mapping[str, Any]  # of the recipe


@dataclass(frozen=True)
class Training:
    """How each task is trained: a recipe with its overrides, or parts that the caller makes.

    :param name: of the recipe. :param method: the recipe itself.
    :param overrides: its settings, and objects in their place.
    :param given_guide: whether the guide is the caller's own, and goes on from task to task.
    :param estimator: of the caller's own, or a function that makes one for each task.
    :param kl_weight: or a function of the epoch in a task.
    :param optimizers: makes those of a task, in place of the recipe's.
    :param schedulers: makes those of a task; None: a cosine by the step.
    """

    name: str
    method: Method
    overrides: Mapping[str, Any]
    batch_size: int
    kl_weight: float | Callable[[int], float]
    given_guide: bool = False
    estimator: Estimator | Callable[[], Estimator] | None = None
    optimizers: MakeOptimizers | None = None
    schedulers: MakeSchedulers | None = None
    policy: PriorPolicy = field(default_factory=ExactPrior)

    def assembled(self, model: Any, guide: Any, size: int, epochs: int, seed: int) -> Recipe:
        """The recipe for a model as it is now, going on from ``guide`` (None: from the start)."""
        overrides = dict(self.overrides)
        if self.given_guide:
            overrides["guide"] = guide
        if self.estimator is not None:
            made = self.estimator
            overrides["estimator"] = made if isinstance(made, Estimator) else made()
        with in_turn(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            recipe = assemble(self.name, self.method, model, size, epochs, overrides)
        if guide is not None and recipe.guide is not guide:
            # A state of fewer sites is that of a network with fewer heads: the new ones stay as made.
            recipe.guide.load_state_dict({**recipe.guide.state_dict(), **guide.state_dict()})
        return recipe

    def run(
        self,
        model: Any,
        guide: Any,
        task_model: Callable[[Any], nn.Module],
        parts: Parts,
        *,
        epochs: int,
        seed: int,
        folder: Path | None,
        progress: bool | None,
        boundary: Boundary = AtTaskEnd(),  # noqa: B008  immutable
        initial: Naturals | None = None,
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Train on (data set, head) pairs; the guide that holds the result, and the history.

        :param task_model: makes, for the guide that is trained, a :class:`TaskModel` around ``model``, or a
            module around such a one.
        """
        batches = TaskBatches(parts, self.batch_size, model)
        size = batches.dataset_size
        start = self._start(model, guide, size, epochs, seed)
        trained = task_model(start.guide)
        inner = next(part for part in trained.modules() if isinstance(part, TaskModel))
        inner.dataset_size, inner.per_step = size, boundary.steps
        with_boundaries(start.optimizers, boundary, self.policy, initial or {}, inner, start.guide)
        schedules = start.schedules
        if self.schedulers is not None:
            schedules = list(self.schedulers(start.optimizers, epochs))
        elif start.settings.get("schedule") != "constant":
            for optimizer in start.optimizers:
                cosine_by_step_(optimizer, len(batches) * epochs)
        if folder is not None:
            drop_if_all_damaged(folder)
        result = fit(
            trained,
            start.guide,
            batches,
            estimator=start.estimator,
            epochs=epochs,
            kl_weight=self.kl_weight if self.policy.uses_kl else 0.0,
            dataset_size=size,
            optimizers=start.optimizers,
            schedulers=schedules,
            checkpoint_dir=folder,
            seed=seed,
            progress=progress,
        )
        return start.guide, result.history

    def describe(self, model: Any, guide: Any) -> dict[str, str]:
        """What a resumed run has to agree on."""
        start = self._start(model, guide, 1, 1, 0)
        groups = [
            (type(optimizer).__name__, group.get("initial_lr", group.get("lr")))
            for optimizer in start.optimizers
            for group in optimizer.param_groups
        ]
        weight = "a function" if callable(self.kl_weight) else str(self.kl_weight)
        settings = {name: value for name, value in start.settings.items() if name != "kl_weight"}
        estimator = self.estimator
        return {
            "recipe": self.name,
            "settings": json.dumps(settings, sort_keys=True),
            "guide": type(start.guide).__name__,
            "estimator": "made per task"
            if estimator is not None and not isinstance(estimator, Estimator)
            else repr(start.estimator),
            "KL weight": weight,
            "optimizers": "; ".join(
                name if lr is None else f"{name} lr {float(lr):.12g}" for name, lr in groups
            ),
        }

    def _start(self, model: Any, guide: Any, size: int, epochs: int, seed: int) -> Start:
        recipe = self.assembled(model, guide, size, epochs, seed)
        if self.optimizers is not None:
            made = list(self.optimizers(recipe.guide, model, size))
            return Start(recipe.guide, recipe.estimator, made, [], recipe.settings)
        # The recipe's cosine falls by the epoch; that of a task by the step, as it may have one epoch.
        schedules = [each for each in recipe.schedules if not isinstance(each, CosineAnnealingLR)]
        return Start(
            recipe.guide, recipe.estimator, list(recipe.optimizers), schedules, recipe.settings
        )


def with_boundaries(
    optimizers: Sequence[Optimizer],
    boundary: Boundary,
    policy: PriorPolicy,
    initial: Naturals,
    model: TaskModel,
    guide: Any,
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


@torch.no_grad()
def start_at_(guide: SignGuide, naturals: Mapping[str, Tensor]) -> None:
    """Move sites that have just been made from around 0 to around other natural parameters."""
    own = {id(parameter) for parameter in guide.natural_parameters()}
    for name, natural in naturals.items():
        if id(start := guide.natural_of(name)) in own:
            start.add_(natural)
