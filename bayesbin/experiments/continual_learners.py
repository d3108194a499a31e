"""The tasks and the learner that a configuration says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Adam, Optimizer

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
from bayesbin.optim import BayesianLearningRule
from bayesbin.optim.assembly import weight_groups, weight_optimizers
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
            "normalization": config.normalization,
            "seed": config.seed,
            "checkpoint_dir": checkpoint_dir,
            "progress": progress,
        }
        if config.method == "ewc":
            return OnlineEWC(net, strength=config.strength, lr=_lr(config), **common)
        if config.method in ("straight-through", "metaplastic"):
            plasticity = config.metaplasticity if config.method == "metaplastic" else 0.0
            return StraightThroughLearner(
                net,
                metaplasticity=plasticity,
                lr=_lr(config),
                init_scale=_init_scale(config),
                **common,
            )
        model = Classifier(net, dataset_size=1)
        guide = _guide(config, model)
        common |= {
            "kl_weight": config.kl_weight,
            "num_samples": config.num_samples,
            "optimizers": _optimizers(config),
            "schedulers": _no_schedulers,  # the optimizers have their own, by step
        }
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
        binary=config.method != "ewc",
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


def _optimizers(config: ContinualConfig) -> Any:
    def make(guide: SignGuide, model: Any, dataset_size: int) -> list[Optimizer]:
        natural = list(guide.natural_parameters())
        rest = [p for p in (*model.parameters(), *guide.real_parameters()) if p.requires_grad]
        if config.prior_policy == "leak":
            # Between boundaries lies one step of Bayes' rule, whose size is not to be adapted.
            made: list[Optimizer] = [BayesianLearningRule(natural, _lr(config))]
        elif config.optimizer == "adam":
            made = [Adam(natural, lr=_lr(config))]
        else:
            made = weight_optimizers(weight_groups(guide), "bayesian-learning-rule", lr=_lr(config))
        made = [Adam(rest, lr=_REAL_LR), *made] if rest else made
        assert config.batch_size is not None and config.epochs is not None
        if config.prior_policy != "leak":
            steps = math.ceil(dataset_size / config.batch_size) * config.epochs
            for optimizer in made:
                cosine_by_step_(optimizer, steps)
        return made

    return make


def cosine_by_step_(optimizer: Optimizer, steps: int) -> None:
    r"""Let an optimizer's learning rate fall to nearly 0 over its first ``steps`` steps.

    .. math:: \eta_k = \tfrac12 \eta_0 (1 + \cos(\pi k / K)), \qquad k = 0, ..., K - 1

    By the step, so that a task of one epoch anneals as well; k stands in the parameter groups, and is
    saved and restored with them.

    >>> parameter = torch.nn.Parameter(torch.zeros(()))
    >>> optimizer = torch.optim.SGD([parameter], lr=1.0)
    >>> cosine_by_step_(optimizer, 2)
    >>> optimizer.step(); optimizer.param_groups[0]["lr"]
    0.5
    """
    for group in optimizer.param_groups:
        group["initial_lr"], group["taken"] = group["lr"], 0

    def after_step(*_: Any) -> None:
        for group in optimizer.param_groups:
            group["taken"] += 1
            share = min(group["taken"] / steps, 1.0)
            group["lr"] = 0.5 * group["initial_lr"] * (1.0 + math.cos(math.pi * share))

    optimizer.register_step_post_hook(after_step)


def _no_schedulers(optimizers: Sequence[Optimizer], epochs: int) -> list[Any]:
    return []


def _lr(config: ContinualConfig) -> float:
    assert config.lr is not None
    return config.lr


def _init_scale(config: ContinualConfig) -> float:
    assert config.init_scale is not None
    return config.init_scale
