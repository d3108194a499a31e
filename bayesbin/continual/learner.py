"""Variational continual learning: each task's posterior is the next one's prior."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayesbin.continual.base import Learner
from bayesbin.continual.coresets import Coreset
from bayesbin.continual.networks import MultiHead
from bayesbin.continual.priors import (
    AtTaskEnd,
    Boundary,
    Continuous,
    LeakyPrior,
    PriorPolicy,
    named_prior_policy,
)
from bayesbin.continual.task_model import TaskModel, network_of, own_priors
from bayesbin.continual.tasks import Task
from bayesbin.continual.training import (
    MakeOptimizers,
    MakeSchedulers,
    Training,
    cosine,
    move_,
    naturals_of,
)
from bayesbin.data import Dataset
from bayesbin.estimators import Estimator, LocalReparameterization
from bayesbin.guides.base import SignGuide
from bayesbin.nn import Classifier, Regressor
from bayesbin.posterior import BinaryPosterior
from bayesbin.posterior.summary import SummaryRow


class ContinualLearner(Learner):
    r"""A posterior over binary weights that learns tasks in turn, each with the last one as its prior.

    .. math:: \mathcal L_t = E_q[-\log p(D_t | w)] + \beta\, \mathrm{KL}(q \,\|\, p_t), \qquad
        p_t = q_{t-1} \text{ or what the prior policy makes of it}

    in nats over the data of task t. A task starts at the previous posterior; its prior is a copy, so
    that nothing can move it; optimizers, their momentum and schedulers, start anew.

    :param model: a ``Classifier`` (or any Pyro model, which then scales its own likelihood and can be
        trained, but not scored). Its ``dataset_size`` is set to each task's.
    :param guide: of that model; continued from task to task. Without random effects.
    :param estimator: of the gradient, or a function that makes one for each task, where it has a
        schedule or something to learn. LocalReparameterization() by default.
    :param prior_policy: "exact", "none", "fixed", or a policy such as ``RelaxedPrior(0.9)``.
    :param boundary: when the posterior becomes the prior; ``AtTaskEnd()``, or for a LeakyPrior
        ``Continuous()``.
    :param epochs: passes over each task. :param batch_size: of its minibatches.
    :param kl_weight: beta, or a function of the epoch in a task.
    :param optimizers: ``optimizers(guide, model, dataset_size)`` makes those of a task. By default the
        Bayesian learning rule in relative steps, lr 0.1, for the signs and Adam for what is real.
    :param schedulers: ``schedulers(optimizers, epochs)`` makes those of a task; cosine by default.
    :param coreset: data of each task to set aside, and to fine-tune a copy on for prediction alone.
    :param coreset_epochs: of that fine-tuning; as many as ``epochs`` by default.
    :param joint: train from the start on all tasks seen so far instead, with the model's own prior:
        the ceiling that continual learning is measured against. Keeps all data.
    :param normalization: and the others, as :class:`Learner`.
    :raises ValueError: for settings that do not fit together; what it is, and what to do.

    Example::

        >>> from bayesbin.continual import ContinualLearner, PermutedPixels, continual_network
        >>> from bayesbin.data import digits
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> stream = PermutedPixels(digits(), num_tasks=2, seed=0)
        >>> model = Classifier(continual_network(64, (16,)), dataset_size=1)
        >>> learner = ContinualLearner(model, AutoSignBernoulli(model), epochs=1, progress=False)
        >>> [learner.observe(task).dataset_size for task in stream]
        [1437, 1437]
        >>> learner.evaluate(stream)["accuracy"].shape
        (2,)

    Source: Nguyen et al. 2018, arXiv 1710.10628 (VCL); Meng et al. 2020, arXiv 2002.10778 (binary weights).
    """

    def __init__(
        self,
        model: Any,
        guide: SignGuide,
        estimator: Estimator | Callable[[], Estimator] | None = None,
        *,
        prior_policy: str | PriorPolicy = "exact",
        boundary: Boundary | None = None,
        epochs: int = 10,
        batch_size: int = 100,
        kl_weight: float | Callable[[int], float] = 1.0,
        optimizers: MakeOptimizers | None = None,
        schedulers: MakeSchedulers | None = None,
        coreset: Coreset | None = None,
        coreset_epochs: int | None = None,
        joint: bool = False,
        normalization: str = "layer",
        num_samples: int = 32,
        seed: int = 0,
        checkpoint_dir: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            network_of(model) if isinstance(model, Classifier) else None,
            normalization=normalization,
            num_samples=num_samples,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            progress=progress,
        )
        policy = named_prior_policy(prior_policy) if isinstance(prior_policy, str) else prior_policy
        leaks = isinstance(policy, LeakyPrior)
        _check(model, guide, policy, joint)
        self.model, self.guide = model, guide
        self.estimator = LocalReparameterization() if estimator is None else estimator
        self.prior_policy = policy
        self.boundary = boundary or (Continuous() if leaks else AtTaskEnd())
        self.epochs, self.batch_size, self.kl_weight = epochs, batch_size, kl_weight
        self._training = Training(
            self.estimator, policy, batch_size, kl_weight, optimizers, schedulers or cosine
        )
        self.coreset, self.coreset_epochs, self.joint = coreset, coreset_epochs or epochs, joint
        self._initial: dict[str, Tensor] = {}  # the model's own prior, known from the first data on
        self._posterior = guide.posterior()  # the last one at a boundary
        self._begin = self._trained() if joint else {}
        self._past: list[Task] = []
        self._coresets: list[tuple[Dataset, int | None]] = []
        self._tuned: dict[int | None, tuple[nn.Module, BinaryPosterior]] = {}

    @property
    def posterior(self) -> BinaryPosterior:
        """The posterior after the last task."""
        return self._posterior

    # Learning

    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on one task; see :meth:`Learner.learn_task`."""
        assert task.train is not None
        data, held = task.train, None
        if self.coreset is not None:
            data, held = self.coreset.set_aside(data, seed)
        parts = [(data, task.head)]
        if self.joint:
            parts = [(t.train, t.head) for t in self._past if t.train is not None] + parts
            self._load_trained(self._begin)
        if not self._initial:
            # A model of ours declares its sites without data.
            ours = isinstance(self.model, (Classifier, Regressor))
            batch = () if ours else (data.x[: self.batch_size], data.y[: self.batch_size])
            self._initial = own_priors(self.model, naturals_of(self.guide), batch)
        first = self.joint or not any(report.dataset_size for report in self.reports)
        own = first or not self.prior_policy.keeps_real
        before = {site: q.natural for site, q in self._posterior.items()}
        signs = self._initial if own else self.prior_policy.prior(before, self._initial)
        if self.prior_policy.moves_posterior and not first:
            move_(self.guide, signs)
        if own and self.boundary.steps is None:
            signs = {}  # the model's own, which may depend on other sites
        real = {} if own else self._posterior.real
        history = self._training.run(
            self.model, self.guide, TaskModel(self.model, signs, real), parts, self._initial,
            boundary=self.boundary, epochs=self.epochs, seed=seed, folder=folder,
            progress=self.progress,
        )  # fmt: skip
        if held is not None:
            self._coresets.append((held, task.head))
        previous = BinaryPosterior(self._initial) if first else self._posterior
        self._posterior = self.guide.posterior()
        return history, self._posterior.summary(previous).rows

    def at_rest(self) -> tuple[SummaryRow, ...]:
        """The posterior as it is: nothing has moved."""
        return self._posterior.summary(self._posterior).rows

    # Prediction

    def predictive(self, task: Task) -> tuple[nn.Module, BinaryPosterior]:
        """The network and the posterior, or those fine-tuned on the coresets."""
        assert self.net is not None
        head = task.head if isinstance(self.net, MultiHead) else None
        parts = [part for part in self._coresets if part[1] == head]
        if not parts:
            return self.net, self._posterior
        if head not in self._tuned:
            model, guide = copy.deepcopy(self.model), copy.deepcopy(self.guide)
            signs = {site: q.natural for site, q in self._posterior.items()}
            self._training.run(
                model, guide, TaskModel(model, signs, self._posterior.real), parts, self._initial,
                boundary=AtTaskEnd(), epochs=self.coreset_epochs, seed=self.seed, folder=None,
                progress=False,
            )  # fmt: skip
            self._tuned[head] = model.net, guide.posterior()
        return self._tuned[head]

    def _changed(self) -> None:
        super()._changed()
        self._tuned = {}

    # State

    def remember(self, task: Task) -> None:
        """Keep the data of a task where all are to be learned together."""
        if self.joint:
            self._past.append(task)

    def state(self) -> dict[str, Any]:
        """Guide, model, the model's own prior, and the coresets."""
        coresets = [
            {"x": data.x, "y": data.y, "classes": data.num_classes, "head": head}
            for data, head in self._coresets
        ]
        return {**self._trained(), "initial": self._initial, "coresets": coresets}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self._load_trained(state)
        self._initial = dict(state["initial"])
        self._coresets = [
            (Dataset(part["x"], part["y"], "coreset", part["classes"]), part["head"])
            for part in state["coresets"]
        ]
        self._posterior = self.guide.posterior()

    def _trained(self) -> dict[str, Any]:
        parts = {"guide": self.guide, "model": self.model, "estimator": self.estimator}
        return {
            name: {key: value.detach().clone() for key, value in part.state_dict().items()}
            for name, part in parts.items()
            if isinstance(part, nn.Module)
        }

    def _load_trained(self, state: Mapping[str, Any]) -> None:
        self.guide.load_state_dict(state["guide"])
        for name, part in (("model", self.model), ("estimator", self.estimator)):
            if isinstance(part, nn.Module):
                part.load_state_dict(state[name])

    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""
        weight = "a function" if callable(self.kl_weight) else str(float(self.kl_weight))
        shapes = [tuple(q.natural.shape) for q in self._posterior.values()]
        made = repr(self.estimator) if isinstance(self.estimator, Estimator) else "made per task"
        coreset = f"{self.coreset!r}, {self.coreset_epochs} epochs" if self.coreset else "none"
        return {
            "prior policy": repr(self.prior_policy),
            "boundary": repr(self.boundary),
            "epochs": str(self.epochs),
            "batch size": str(self.batch_size),
            "KL weight": weight,
            "estimator": made,
            "optimizers": self._training.describe(self.model, self.guide),
            "coreset": coreset,
            "joint": str(self.joint),
            "weights": ", ".join(map(str, shapes)),
        }


def fine_tuning(model: Any, guide: SignGuide, *args: Any, **settings: Any) -> ContinualLearner:
    """No regularisation: each task starts where the last ended, and its likelihood is all there is.

    :param settings: of :class:`ContinualLearner`, but for ``prior_policy``.
    """
    return ContinualLearner(model, guide, *args, prior_policy="none", **settings)


def fixed_prior(model: Any, guide: SignGuide, *args: Any, **settings: Any) -> ContinualLearner:
    """The model's own prior at every task, which regularises and remembers nothing.

    :param settings: of :class:`ContinualLearner`, but for ``prior_policy``.
    """
    return ContinualLearner(model, guide, *args, prior_policy="fixed", **settings)


def joint_training(model: Any, guide: SignGuide, *args: Any, **settings: Any) -> ContinualLearner:
    """Training from the start on all tasks seen so far: the ceiling, at the price of keeping all data.

    :param settings: of :class:`ContinualLearner`, but for ``prior_policy`` and ``joint``.
    """
    return ContinualLearner(model, guide, *args, prior_policy="fixed", joint=True, **settings)


def _check(model: Any, guide: SignGuide, policy: PriorPolicy, joint: bool) -> None:
    if any(guide.effects().values()):
        raise ValueError(
            "expected a guide without random effects, whose posterior is not a prior of independent "
            "signs; use AutoSignBernoulli, or a nested guide of kind 'shared'."
        )
    if isinstance(model, (Classifier, Regressor)) and model.hyperpriors:
        raise ValueError(
            "expected a model without hyperprior: after the first task the prior is a posterior, and "
            "there is nothing to learn about it."
        )
    if policy.moves_posterior and not list(guide.natural_parameters()):
        raise ValueError(
            f"expected a mean-field guide for {policy!r}, which moves natural parameters; got "
            f"{type(guide).__name__}, whose are computed from others."
        )
    if joint and policy.keeps_real:
        raise ValueError(
            f"expected prior_policy='fixed' with joint=True, which starts from the model's own prior "
            f"each time; got {policy!r}."
        )
