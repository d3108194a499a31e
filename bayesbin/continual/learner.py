"""Variational continual learning: each task's posterior is the next one's prior."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayesbin.continual.answers import network_of
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
from bayesbin.continual.task_model import TaskModel, own_priors
from bayesbin.continual.tasks import Task
from bayesbin.continual.training import (
    MakeOptimizers,
    MakeSchedulers,
    Training,
    move_,
    naturals_of,
    start_at_,
)
from bayesbin.core.checks import real_number, true_or_false, whole_number
from bayesbin.core.names import PRIOR_POLICIES
from bayesbin.data import Dataset
from bayesbin.guides.base import SignGuide
from bayesbin.posterior import BinaryPosterior
from bayesbin.posterior.summary import SummaryRow
from bayesbin.recipes import METHODS


class ContinualLearner(Learner):
    r"""A posterior over binary weights that learns tasks in turn, each with the last one as its prior.

    .. math:: \mathcal L_t = E_q[-\log p(D_t | w)] + \beta\, \mathrm{KL}(q \,\|\, p_t), \qquad
        p_t = q_{t-1} \text{ or what the prior policy makes of it}

    in nats over the data of task t. A task starts at the previous posterior; its prior is a copy, so
    that nothing can move it; optimizers, their momentum and schedulers, start anew.

    :param model: a ``Classifier`` or ``Regressor``, whose ``dataset_size`` is set to each task's; or any
        Pyro model, which then scales its own likelihood and can be trained, but not scored.
    :param guide: of that model, or its name in the recipe; continued from task to task. None: that of the
        recipe. A guide of independent signs: without random effects.
    :param estimator: of the gradient, its name in the recipe, or a function that makes one for each
        task, where it has a schedule or something to learn. None: that of the recipe.
    :param prior_policy: one of ``core.names.PRIOR_POLICIES``, or a policy such as ``RelaxedPrior(0.9)``.
    :param boundary: when the posterior becomes the prior; ``AtTaskEnd()``, or for a LeakyPrior
        ``Continuous()``.
    :param epochs: passes over each task. :param batch_size: of its minibatches.
    :param kl_weight: beta, or a function of the epoch in a task; 1 is Bayes' rule, and the default.
    :param recipe: the name of a recipe, see :func:`bayesbin.recipe`: guide, estimator and optimizers. Its
        learning rates fall by a cosine over the steps of each task.
    :param settings: those of the recipe that are not its defaults; also as keywords, ``lr=0.05``, but for
        those that this class has itself. Or the name of a preset, "published".
    :param optimizers: ``optimizers(guide, model, dataset_size)`` makes those of a task, in place of the
        recipe's. :param schedulers: ``schedulers(optimizers, epochs)`` makes those of a task, stepped once
        per epoch, in place of the cosine.
    :param coreset: data of each task to set aside, and to fine-tune a copy on for prediction alone.
    :param coreset_epochs: of that fine-tuning; as many as ``epochs`` by default.
    :param joint: train from the start on all tasks seen so far instead, with the model's own prior:
        the ceiling that continual learning is measured against. Keeps all data.
    :param normalization: and num_samples, seed, checkpoint_dir and progress, as :class:`Learner`.
    :raises ValueError: for settings that do not fit together, by name.

    Example::

        >>> from bayesbin.continual import ContinualLearner, PermutedPixels, continual_network
        >>> from bayesbin.data import digits
        >>> from bayesbin.nn import Classifier
        >>> stream = PermutedPixels(digits(), num_tasks=2, seed=0)
        >>> model = Classifier(continual_network(64, (16,)), dataset_size=1)
        >>> learner = ContinualLearner(model, epochs=1, progress=False)
        >>> [learner.observe(task).dataset_size for task in stream]
        [1437, 1437]
        >>> learner.evaluate(stream)["accuracy"].shape
        (2,)
        >>> x, y = [[0.0, 1.0], [1.0, 0.0]], ["cat", "dog"]
        >>> from bayesbin.continual import Task
        >>> pets = ContinualLearner(Classifier(continual_network(2, (8,), 2), 1), progress=False)
        >>> pets.observe(Task("pets", (x, y), (x, y))).dataset_size
        2
        >>> set(pets.predict_labels(x, Task("pets", None, (x, y)))) <= {"cat", "dog"}
        True

    Source: Nguyen et al. 2018, arXiv 1710.10628 (VCL); Meng et al. 2020, arXiv 2002.10778 (binary weights).
    """

    def __init__(
        self,
        model: Any,
        guide: Any = None,
        estimator: Any = None,
        *,
        prior_policy: str | PriorPolicy = "exact",
        boundary: Boundary | None = None,
        epochs: int = 10,
        batch_size: int = 100,
        kl_weight: float | Callable[[int], float] | None = None,
        recipe: str = "bayesbin",
        settings: Mapping[str, Any] | str | None = None,
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
        **overrides: Any,
    ) -> None:
        super().__init__(
            model,
            epochs=epochs,
            batch_size=batch_size,
            normalization=normalization,
            num_samples=num_samples,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            progress=progress,
        )
        policy = named_prior_policy(prior_policy) if isinstance(prior_policy, str) else prior_policy
        if not isinstance(policy, PriorPolicy):
            raise ValueError(
                f"expected prior_policy to be one of {', '.join(PRIOR_POLICIES)}, or a PriorPolicy; got "
                f"{policy!r}."
            )
        _check_model(model, policy, joint)
        leaks = isinstance(policy, LeakyPrior)
        given = isinstance(guide, str) or guide is None
        self.prior_policy = policy
        self.boundary = boundary or (Continuous() if leaks else AtTaskEnd())
        self._training = Training(
            name=recipe,
            method=METHODS[recipe],
            overrides=_overrides(settings, overrides, guide=guide, estimator=estimator),
            batch_size=self.batch_size,
            kl_weight=_kl_weight(kl_weight, policy, recipe),
            given_guide=not given,
            estimator=None if isinstance(estimator, str) else estimator,
            optimizers=optimizers,
            schedulers=schedulers,
            policy=policy,
        )
        self.kl_weight = self._training.kl_weight
        if not given:
            _check_guide(guide, policy)
        start = self._training.assembled(model, None if given else guide, 1, self.epochs, self.seed)
        self.guide, self.estimator = start.guide, start.estimator
        _check_guide(self.guide, policy)
        self._described = self._training.describe(model, self.guide)
        self.coreset, self.joint = coreset, true_or_false("joint", joint)
        self.coreset_epochs = (
            self.epochs
            if coreset_epochs is None
            else whole_number("coreset_epochs", coreset_epochs, at_least=1)
        )
        self._initial: dict[str, Tensor] = {}  # the model's own prior, known from the first data on
        self._posterior = self.guide.posterior()  # the last one at a boundary
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
            batch = (
                ()
                if self.net is not None
                else (data.x[: self.batch_size], data.y[: self.batch_size])
            )
            self._initial = own_priors(self.model, naturals_of(self.guide), batch)
        first = self.joint or not any(report.dataset_size for report in self.reports)
        signs, real = self._next_priors(first)
        self.guide, history = self._training.run(
            self.model, self.guide, lambda _: TaskModel(self.model, signs, real), parts,
            initial=self._initial, boundary=self.boundary, epochs=self.epochs, seed=seed,
            folder=folder, progress=self.progress,
        )  # fmt: skip
        if held is not None:
            self._coresets.append((held, task.head))
        previous = BinaryPosterior(self._initial) if first else self._posterior
        self._posterior = self.guide.posterior()
        return history, self._posterior.summary(previous).rows

    def grown(self) -> None:
        """Give the binary weights of a new head a posterior, which is their prior before any data."""
        if self._training.given_guide:
            self.guide.add_sites_(self.model)
        else:
            made = self._training.assembled(self.model, self.guide, 1, self.epochs, self.seed)
            self.guide = made.guide
        naturals = naturals_of(self.guide)
        own = own_priors(self.model, naturals, ())
        new = {site: own[site] for site in naturals.keys() - self._posterior.keys()}
        start_at_(self.guide, new)
        before = {site: q.natural for site, q in self._posterior.items()}
        both = before | new
        self._posterior = BinaryPosterior(
            {site: both[site] for site in naturals}, self._posterior.real
        )
        if self._initial:
            self._initial = self._initial | new
        for name, state in self._trained().items() if self.joint else ():
            self._begin[name] = state | self._begin[name]  # the new head's, as it starts

    def _next_priors(self, first: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The priors of a task; a site that neither names has the model's own."""
        policy = self.prior_policy
        own = first or not policy.keeps_real
        before = {site: q.natural for site, q in self._posterior.items()}
        signs = dict(self._initial if own else policy.prior(before, self._initial))
        if policy.moves_posterior and not first:
            move_(self.guide, signs)
        if own and self.boundary.steps is None:
            signs = {}  # the model's own, which may depend on other sites
        return signs, {} if own else dict(self._posterior.real)

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
            guide, _ = self._training.run(
                model, guide, lambda _: TaskModel(model, signs, self._posterior.real), parts,
                initial=self._initial, epochs=self.coreset_epochs, seed=self.seed, folder=None,
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
        parts = {"guide": self.guide, "model": self.model}
        if isinstance(self._training.estimator, nn.Module):  # the caller's own, which goes on
            parts["estimator"] = self._training.estimator
        return {
            name: {key: value.detach().clone() for key, value in part.state_dict().items()}
            for name, part in parts.items()
            if isinstance(part, nn.Module)
        }

    def _load_trained(self, state: Mapping[str, Any]) -> None:
        self.guide.load_state_dict(state["guide"])
        for name, part in (("model", self.model), ("estimator", self._training.estimator)):
            if isinstance(part, nn.Module):
                part.load_state_dict(state[name])

    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""
        coreset = f"{self.coreset!r}, {self.coreset_epochs} epochs" if self.coreset else "none"
        return {
            "prior policy": repr(self.prior_policy),
            "boundary": repr(self.boundary),
            "coreset": coreset,
            "joint": str(self.joint),
            **self._described,
        }


def fine_tuning(model: Any, *args: Any, **settings: Any) -> ContinualLearner:
    """Learn without memory: each task starts where the last ended, and its likelihood is all there is.

    :param args, settings: of :class:`ContinualLearner`, but for ``prior_policy``; without a KL term there
        is no ``kl_weight``.
    """
    return _preset("fine_tuning", model, args, settings, prior_policy="none")


def fixed_prior(model: Any, *args: Any, **settings: Any) -> ContinualLearner:
    """Learn with the model's own prior at every task, which regularises and remembers nothing.

    :param args, settings: of :class:`ContinualLearner`, but for ``prior_policy``.
    """
    return _preset("fixed_prior", model, args, settings, prior_policy="fixed")


def joint_training(model: Any, *args: Any, **settings: Any) -> ContinualLearner:
    """Train from the start on all tasks seen so far: the ceiling, at the price of keeping all data.

    :param args, settings: of :class:`ContinualLearner`, but for ``prior_policy`` and ``joint``.
    """
    return _preset("joint_training", model, args, settings, prior_policy="fixed", joint=True)


def _preset(name: str, model: Any, args: Any, settings: Any, **decided: Any) -> ContinualLearner:
    if twice := [key for key in decided if key in settings]:
        raise ValueError(
            f"expected {name} without {', '.join(twice)}, which it decides; use ContinualLearner for others."
        )
    return ContinualLearner(model, *args, **settings, **decided)


def _overrides(
    settings: Mapping[str, Any] | str | None, keywords: Mapping[str, Any], **parts: Any
) -> dict[str, Any]:
    """The overrides of a recipe's settings, with guide and estimator where they are given by name."""
    given = {"settings": settings} if isinstance(settings, str) else dict(settings or {})
    if "kl_weight" in given:
        raise ValueError(
            "expected kl_weight as an argument of its own, as of every learner; got it among settings."
        )
    named = {key: part for key, part in parts.items() if isinstance(part, str)}
    for more in (keywords, named):
        if twice := [key for key in more if key in given]:
            raise ValueError(f"expected each setting once; got {', '.join(twice)} twice.")
        given |= more
    return given


def _kl_weight(given: Any, policy: PriorPolicy, recipe: str) -> float | Callable[[int], float]:
    """The weight of the KL: 1, Bayes' rule, where there is one and none is given."""
    has_one = "kl_weight" in METHODS[recipe].all_settings()
    if given is not None and not (has_one and policy.uses_kl):
        who = f"prior_policy {policy!r}" if has_one else f"the recipe {recipe!r}"
        raise ValueError(f"expected no kl_weight with {who}, which has no KL term; leave it out.")
    if given is None:
        return 1.0 if has_one else 0.0
    if isinstance(given, Callable):
        return given
    return real_number("kl_weight", given, at_least=0.0)


def _check_model(model: Any, policy: PriorPolicy, joint: bool) -> None:
    if network_of(model) is not None and model.hyperpriors:
        raise ValueError(
            "expected a model without hyperprior: after the first task the prior is a posterior, and "
            "there is nothing to learn about it."
        )
    if joint and policy.keeps_real:
        raise ValueError(
            f"expected prior_policy='fixed' with joint=True, which starts from the model's own prior "
            f"each time; got {policy!r}."
        )


def _check_guide(guide: Any, policy: PriorPolicy) -> None:
    """Refuse a guide whose posterior cannot be the next prior."""
    if not isinstance(guide, SignGuide):
        raise ValueError(
            "expected a guide over binary weights, such as AutoSignBernoulli(model), which takes real-valued "
            f"sites as well; got {type(guide).__name__}, whose posterior cannot be the next prior."
        )
    if any(guide.effects().values()):
        raise ValueError(
            "expected a guide without random effects, whose posterior is not a prior of independent "
            "signs; use AutoSignBernoulli, or a nested guide of kind 'shared'."
        )
    if not isinstance(guide.posterior(), BinaryPosterior):
        raise ValueError(
            f"expected a guide over signs; got {type(guide).__name__} with weights of other levels."
        )
    if guide.is_point and policy.uses_kl and policy.keeps_real:
        raise ValueError(
            f"expected a guide with a posterior for {policy!r}; got {type(guide).__name__}, a single "
            "network. Use prior_policy='none', or StraightThroughLearner."
        )
    if policy.moves_posterior and not list(guide.natural_parameters()):
        raise ValueError(
            f"expected a mean-field guide for {policy!r}, which moves natural parameters; got "
            f"{type(guide).__name__}, whose are computed from others."
        )
