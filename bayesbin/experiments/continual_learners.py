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
from bayesbin.experiments.continual_settings import ContinualConfig
from bayesbin.guides import AutoSignBernoulli
from bayesbin.guides.base import SignGuide
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import Classifier, binary_sites
from bayesbin.optim import BayesianLearningRule, make_optimizers, training_groups
from bayesbin.posterior import BinaryPosterior

_REAL_LR = 3e-3  # of Adam for what is real: heads, and a learned scale
_VARIATIONAL = {"fine-tuning": fine_tuning, "fixed-prior": fixed_prior, "joint": joint_training}


def continual_stream(config: ContinualConfig, splits: Splits) -> TaskStream:
    """The tasks of a configuration.

    :raises ValueError: if the data do not have them.

    >>> from bayesbin.data import digits
    >>> [task.name for task in continual_stream(ContinualConfig("split"), digits())][:2]
    ['classes 0, 1', 'classes 2, 3']
    """
    if config.validation:
        held, validation = splits.hold_out(config.validation)
        splits = Splits(held.train, validation, splits.preprocessing)
    return _stream(config, splits, config.tasks or 0)


def unseen_task(config: ContinualConfig, stream: TaskStream) -> Task | None:
    """A task of the same kind that the stream does not contain, to be tested on; None: there is none."""
    tasks = len(stream)
    if config.stream == "split":
        return None
    if config.stream == "permuted":
        return _stream(config, stream.splits, tasks + 1).exam(tasks)
    step = config.max_degrees / max(tasks - 1, 1)
    return RotatedPixels(stream.splits, tasks + 1, step * tasks).exam(tasks)


def _stream(config: ContinualConfig, splits: Splits, tasks: int) -> TaskStream:
    seed = config.stream_seed
    if config.stream == "permuted":
        assert seed is not None
        return PermutedPixels(splits, tasks, seed, config.identity_first)
    if config.stream == "rotated":
        return RotatedPixels(splits, tasks, config.max_degrees, seed)
    stream = SplitClasses(splits, config.classes_per_task, config.scenario, seed)
    if tasks not in (0, len(stream)):
        raise ValueError(
            f"expected {len(stream)} tasks of {config.classes_per_task} classes, all there are; got "
            f"{tasks}. Leave the number out, or change the classes per task."
        )
    return stream


def continual_learner(
    config: ContinualConfig,
    stream: TaskStream,
    checkpoint_dir: Path | None = None,
    progress: bool | None = None,
) -> Learner:
    """The learner of a configuration, which has not learned anything yet.

    :param stream: of :func:`continual_stream`, for the sizes of inputs and outputs.

    >>> from bayesbin.data import digits
    >>> config = ContinualConfig("permuted", method="ewc")
    >>> type(continual_learner(config, continual_stream(config, digits()))).__name__
    'OnlineEWC'
    """
    with seeded_float32(config.seed):
        net = _network(config, stream)
        common: dict[str, Any] = {
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "num_samples": config.num_samples,
            "normalization": config.normalization,
            "seed": config.seed,
            "checkpoint_dir": checkpoint_dir,
            "progress": progress,
        }
        model = Classifier(net, dataset_size=1)
        if config.method == "ewc":
            return OnlineEWC(model, strength=config.strength, lr=_lr(config), **common)
        if config.method in ("straight-through", "metaplastic"):
            plasticity = config.metaplasticity if config.method == "metaplastic" else 0.0
            settings = {"lr": _lr(config), "init_scale": _init_scale(config)}
            return StraightThroughLearner(
                model, metaplasticity=plasticity, settings=settings, **common
            )
        guide = _guide(config, model)
        if config.method != "fine-tuning" and config.prior_policy != "none":
            common["kl_weight"] = config.kl_weight
        if config.prior_policy == "leak":
            # Between boundaries lies one step of Bayes' rule, whose size is not to be adapted.
            common |= {"optimizers": _plain_steps(config), "schedulers": _no_schedulers}
        else:
            optimizer = config.optimizer
            common["settings"] = {"optimizer": optimizer, "lr": _lr(config), "real_lr": _REAL_LR}
        if config.method == "posterior":
            policy = named_prior_policy(config.prior_policy, **config.policy_settings())
            return ContinualLearner(model, guide, prior_policy=policy, **common)
        return _VARIATIONAL[config.method](model, guide, **common)


def _network(config: ContinualConfig, stream: TaskStream) -> Any:
    first = stream.splits.train
    classes = first.num_classes
    assert classes is not None
    by_task = config.stream == "split" and config.scenario != "class"

    def prior(name: str, weight: torch.Tensor) -> Any:
        if config.initial_prior == "uniform":
            return 0.0
        return _init_scale(config) * torch.randn_like(weight)

    return continual_network(
        first.x[0].numel(),
        config.hidden,
        config.classes_per_task if by_task else classes,
        heads=len(stream) if config.stream == "split" and config.scenario == "task" else None,
        binary_heads=config.binary_heads,
        normalization=config.normalization,
        activation=config.activation,
        output_scale=config.output_scale,
        prior=prior,
    )


def _guide(config: ContinualConfig, model: Classifier) -> AutoSignBernoulli:
    if config.initial_prior == "uniform":
        return AutoSignBernoulli(model, init_scale=_init_scale(config))
    sites = binary_sites(model.net)
    return AutoSignBernoulli(model, init=BinaryPosterior({n: s.prior for n, s in sites.items()}))


def _plain_steps(config: ContinualConfig) -> Any:
    def make(guide: SignGuide, model: Any, dataset_size: int) -> list[Optimizer]:
        rules = [BayesianLearningRule(guide.natural_parameters(), _lr(config))]
        groups = [g for g in training_groups(guide, model) if g.rule == "adam"]
        return [*make_optimizers(groups, real_lr=_REAL_LR), *rules]

    return make


def _no_schedulers(optimizers: Sequence[Optimizer], epochs: int) -> list[Any]:
    return []


def _lr(config: ContinualConfig) -> float:
    assert config.lr is not None
    return config.lr


def _init_scale(config: ContinualConfig) -> float:
    assert config.init_scale is not None
    return config.init_scale
