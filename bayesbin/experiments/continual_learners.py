"""The tasks and the learner that a configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from bayesbin.continual import (
    ContinualLearner,
    Learner,
    OnlineEWC,
    PermutedPixels,
    RotatedPixels,
    SplitClasses,
    StraightThroughLearner,
    Task,
    TaskStream,
    continual_network,
    fine_tuning,
    fixed_prior,
    joint_training,
)
from bayesbin.continual.priors import named_prior_policy
from bayesbin.data import Splits
from bayesbin.experiments.continual_settings import BASELINES, ContinualSettings
from bayesbin.guides import AutoSignBernoulli
from bayesbin.guides.base import SignGuide
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import Classifier, binary_sites
from bayesbin.optim import BayesianLearningRule, make_optimizers, training_groups
from bayesbin.posterior import BinaryPosterior

_VARIATIONAL = {"fine-tuning": fine_tuning, "fixed-prior": fixed_prior, "joint": joint_training}


def continual_stream(settings: ContinualSettings, splits: Splits) -> TaskStream:
    """The tasks of the settings.

    :raises ValueError: if the data do not have them.

    >>> from bayesbin.data import digits
    >>> [task.name for task in continual_stream(ContinualSettings("split"), digits())][:2]
    ['classes 0, 1', 'classes 2, 3']
    """
    if settings.validation:
        held, validation = splits.hold_out(settings.validation)
        splits = Splits(held.train, validation, splits.preprocessing)
    return _stream(settings, splits, settings.tasks or 0)


def unseen_task(settings: ContinualSettings, stream: TaskStream) -> Task | None:
    """A task of the same kind that the stream does not contain, to be tested on; None: there is none."""
    tasks = len(stream)
    if settings.stream == "split":
        return None
    if settings.stream == "permuted":
        return _stream(settings, stream.splits, tasks + 1).exam(tasks)
    step = settings.max_degrees / max(tasks - 1, 1)
    return RotatedPixels(stream.splits, tasks + 1, step * tasks).exam(tasks)


def _stream(settings: ContinualSettings, splits: Splits, tasks: int) -> TaskStream:
    seed = settings.stream_seed
    if settings.stream == "permuted":
        assert seed is not None
        return PermutedPixels(splits, tasks, seed, settings.identity_first)
    if settings.stream == "rotated":
        return RotatedPixels(splits, tasks, settings.max_degrees, seed)
    stream = SplitClasses(splits, settings.classes_per_task, settings.scenario, seed)
    if tasks not in (0, len(stream)):
        raise ValueError(
            f"expected {len(stream)} tasks of {settings.classes_per_task} classes, all there are; got "
            f"{tasks}. Leave the number out, or change the classes per task."
        )
    return stream


def continual_learner(
    settings: ContinualSettings,
    stream: TaskStream,
    checkpoint_dir: Path | None = None,
    progress: bool | None = None,
) -> Learner:
    """The learner of the settings, which has not learned anything yet.

    :param stream: of :func:`continual_stream`, for the sizes of inputs and outputs.

    >>> from bayesbin.data import digits
    >>> settings = ContinualSettings("permuted", method="ewc")
    >>> type(continual_learner(settings, continual_stream(settings, digits()))).__name__
    'OnlineEWC'
    """
    with seeded_float32(settings.seed):
        net = _network(settings, stream)
        common: dict[str, Any] = {
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "num_samples": settings.num_samples,
            "normalization": settings.normalization,
            "seed": settings.seed,
            "checkpoint_dir": checkpoint_dir,
            "progress": progress,
        }
        model = Classifier(net, dataset_size=1)
        chosen = dict(settings.method_settings)
        if settings.method == "ewc":
            return OnlineEWC(model, **chosen, **common)
        if settings.method in BASELINES:
            return StraightThroughLearner(model, settings=chosen, **common)
        guide, weight = _guide(settings, model), chosen.pop("kl_weight")
        if settings.method != "fine-tuning" and settings.prior_policy != "none":
            common["kl_weight"] = weight
        if settings.prior_policy == "leak":
            # Between boundaries lies one step of Bayes' rule, whose size is not to be adapted.
            common["optimizers"] = _plain_steps(settings)
        if settings.prior_policy == "leak" or chosen["schedule"] == "constant":
            common["schedulers"] = _no_schedulers
        if settings.method == "posterior":
            policy = named_prior_policy(settings.prior_policy, **settings.policy_settings())
            common["prior_policy"] = policy
        names = ("guide", "sharing", "init_scale")  # which the guide has
        common["settings"] = {k: v for k, v in chosen.items() if k not in names and v is not None}
        learner = _VARIATIONAL.get(settings.method, ContinualLearner)
        return learner(model, guide, **common)


def _network(settings: ContinualSettings, stream: TaskStream) -> Any:
    first = stream.splits.train
    classes = first.num_classes
    assert classes is not None
    by_task = settings.stream == "split" and settings.scenario != "class"

    def prior(name: str, weight: torch.Tensor) -> Any:
        if (
            settings.initial_prior == "uniform" or settings.method == "ewc"
        ):  # whose weights are real
            return 0.0
        return settings.method_settings["init_scale"] * torch.randn_like(weight)

    return continual_network(
        first.x[0].numel(),
        settings.hidden,
        settings.classes_per_task if by_task else classes,
        heads=len(stream) if settings.stream == "split" and settings.scenario == "task" else None,
        binary_heads=settings.binary_heads,
        normalization=settings.normalization,
        activation=settings.activation,
        output_scale=settings.output_scale,
        prior=prior,
    )


def _guide(settings: ContinualSettings, model: Classifier) -> AutoSignBernoulli:
    if settings.initial_prior == "uniform":
        return AutoSignBernoulli(model, init_scale=settings.method_settings["init_scale"])
    sites = binary_sites(model.net)
    return AutoSignBernoulli(model, init=BinaryPosterior({n: s.prior for n, s in sites.items()}))


def _plain_steps(settings: ContinualSettings) -> Any:
    def make(guide: SignGuide, model: Any, dataset_size: int) -> list[Optimizer]:
        rules = [BayesianLearningRule(guide.natural_parameters(), settings.method_settings["lr"])]
        groups = [g for g in training_groups(guide, model) if g.rule == "adam"]
        return [*make_optimizers(groups, real_lr=settings.method_settings["real_lr"]), *rules]

    return make


def _no_schedulers(optimizers: Sequence[Optimizer], epochs: int) -> list[Any]:
    return []
