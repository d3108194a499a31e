"""Optimizers and schedules from what a guide says of its parameters: the one place that makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from bayesbin.core.checks import one_of, real_number, whole_number
from bayesbin.core.names import OPTIMIZERS
from bayesbin.optim.bayesian_learning_rule import BayesianLearningRule, Preconditioner
from bayesbin.optim.clipping import clip_after_step

# The default recipe's numbers, for all that trains: `fit`, recipes, the command line, scikit-learn.
# Natural gradients of different models and layers differ by orders of magnitude (five, between a linear
# regression and the hidden layers of a perceptron), so that steps are relative: lr is the typical change of
# lambda in one step.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "guide": "mean-field",
        "estimator": "flipout-where-shared",
        "optimizer": "bayesian-learning-rule",
        "lr": 0.1,
        "momentum": 0.9,
        "real_lr": 0.01,
        "kl_weight": 0.03,
        "init_scale": 0.1,
    }
)
# SGD takes its lr per datum, and divides it by their number: the loss is in nats over all of them.
LEARNING_RATES: Mapping[str, float] = MappingProxyType(
    {"bayesian-learning-rule": DEFAULTS["lr"], "adam": 0.1, "sgd": 2000.0}
)
RULES = ("natural-gradient", "adam", "flips")


@dataclass(frozen=True, eq=False)
class TrainingGroup:
    """Parameters of a guide that are trained alike; ``guide.training_groups()`` yields them.

    :param parameters: the parameters.
    :param rule: "natural-gradient", the Bayesian learning rule; "adam"; or "flips", signs that only a rule
        that flips signs can move, such as ``Bop``.
    :param role: what they are, for messages: "natural", "offsets", "logits", "latents", "real".
    :param preconditioner: of the natural gradient, where the parameters are not natural ones. Groups with
        the same preconditioner make one optimizer, and it gets the gradients of all, in order.
    :param together: whether the parameters add up, as the offsets of a nested guide: their steps then have
        one size in common.
    :param lazy: whether the Bayesian learning rule leaves elements alone whose gradient is exactly 0: those
        of latents per datum that are in no batch.
    :param bound: the parameters are clipped to [-bound, bound] after each step of Adam.
    :raises ValueError: for an unknown rule, or something that is no parameter.

    Example::

        >>> import torch
        >>> from bayesbin.optim import TrainingGroup
        >>> TrainingGroup([torch.nn.Parameter(torch.zeros(3))], "adam", "scales").role
        'scales'
    """

    parameters: tuple[Tensor, ...]
    rule: str = "adam"
    role: str = "real"
    preconditioner: Preconditioner | None = None
    together: bool = False
    lazy: bool = False
    bound: float | None = None

    def __post_init__(self) -> None:
        one_of("rule", self.rule, RULES)
        object.__setattr__(self, "parameters", tuple(self.parameters))
        for parameter in self.parameters:
            if not isinstance(parameter, Tensor) or not parameter.is_leaf:
                raise ValueError(
                    f"expected a training group of parameters (leaf tensors); got "
                    f"{type(parameter).__name__} in the group of {self.role}."
                )

    @property
    def trainable(self) -> tuple[Tensor, ...]:
        """Those that require a gradient."""
        return tuple(p for p in self.parameters if p.requires_grad)


def training_groups(guide: Any, *others: Any) -> list[TrainingGroup]:
    """All that trains in a guide and in other modules, each parameter once.

    A guide that has ``training_groups()`` says it itself; a module made of guides, such as Pyro's
    ``AutoGuideList``, by those in it. Whatever no group holds, of any guide or module, is real and
    goes to Adam. What is not a module has no parameters that could be found.

    :param guide: the guide. :param others: the model, the estimator.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> from bayesbin.optim.assembly import training_groups
        >>> model = Classifier(BinaryLinear(4, 3), dataset_size=100)
        >>> [group.role for group in training_groups(AutoSignBernoulli(model), model)]
        ['natural', 'real']
    """
    groups = list(_groups_of(guide))
    held = {id(p) for group in groups for p in group.parameters}
    rest: dict[int, Tensor] = {}
    for part in (*others, guide):
        if isinstance(part, nn.Module):
            rest |= {id(p): p for p in part.parameters() if p.requires_grad and id(p) not in held}
    if rest:
        groups.append(TrainingGroup(tuple(rest.values())))
    return [group for group in groups if group.trainable]


def weight_groups(guide: Any) -> list[TrainingGroup]:
    """The groups of a guide that the distributions of its weights are computed from.

    >>> from bayesbin.guides import AutoNestedSignBernoulli
    >>> from bayesbin.nn import BinaryLinear, Classifier
    >>> guide = AutoNestedSignBernoulli(Classifier(BinaryLinear(4, 3), dataset_size=100))
    >>> [tuple(p.shape) for group in weight_groups(guide) for p in group.parameters]
    [(1, 1), (3, 1), (3, 4)]
    """
    return [group for group in training_groups(guide) if group.rule == "natural-gradient"]


def _groups_of(guide: Any) -> Iterable[TrainingGroup]:
    if callable(getattr(guide, "training_groups", None)):
        found = list(guide.training_groups())
        for group in found:
            if not isinstance(group, TrainingGroup):
                raise TypeError(
                    f"expected {type(guide).__name__}.training_groups() to yield "
                    f"bayesbin.optim.TrainingGroup; got {type(group).__name__}."
                )
        yield from found
    elif isinstance(guide, nn.Module):
        for part in guide.children():
            yield from _groups_of(part)


def make_optimizers(
    groups: Iterable[TrainingGroup],
    *,
    optimizer: str = DEFAULTS["optimizer"],
    lr: float | None = None,
    momentum: float | None = None,
    real_lr: float = DEFAULTS["real_lr"],
    dataset_size: int | None = None,
) -> list[Optimizer]:
    """Optimizers for training groups: those of the weights first, then Adam for all else.

    :param optimizer: for the groups of natural gradients: "bayesian-learning-rule" in relative steps, or
        "adam" or "sgd" on plain gradients.
    :param lr: its learning rate: the typical change of lambda in one step; of SGD for a loss per datum.
        None: the default of LEARNING_RATES.
    :param momentum: of the rule and of SGD; None: 0.9. Adam has its own.
    :param real_lr: of Adam for the other groups. :param dataset_size: needed for "sgd".
    :raises ValueError: for groups of signs, which need a rule that flips them, or numbers out of range.
    """
    groups = [group for group in groups if group.trainable]
    if flipped := next((group for group in groups if group.rule == "flips"), None):
        raise ValueError(
            f"The guide's {flipped.role} are signs that have to be flipped, by bayesbin.optim.Bop or "
            'SecondOrderBop: take recipe("bop", model), or pass optimizers=.'
        )
    weights = [group for group in groups if group.rule == "natural-gradient"]
    made: list[Optimizer] = []
    if weights:
        made += weight_optimizers(
            weights, optimizer, lr=lr, momentum=momentum, dataset_size=dataset_size
        )
    real = [group for group in groups if group.rule == "adam"]
    if real:
        made += weight_optimizers(real, "adam", lr=real_number("real_lr", real_lr, above=0))
    return made


def weight_optimizers(
    groups: Sequence[TrainingGroup],
    optimizer: str,
    *,
    lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    relative: bool = True,
    dataset_size: int | None = None,
) -> list[Optimizer]:
    """The named optimizer for groups, whatever their own rule; latents stay within their bounds.

    Arguments as of :func:`make_optimizers`.

    :param weight_decay: of SGD, for a loss per datum.
    :param relative: whether the Bayesian learning rule divides natural gradients by their running size, so
        that lr is the typical change of lambda in a step; else lr multiplies the natural gradient itself.
    """
    one_of("optimizer", optimizer, OPTIMIZERS)
    lr = LEARNING_RATES[optimizer] if lr is None else real_number("lr", lr, above=0)
    if momentum is None:
        momentum = DEFAULTS["momentum"]
    momentum = real_number("momentum", momentum, at_least=0, below=1)
    if optimizer == "bayesian-learning-rule":
        return _rules(groups, lr, momentum, relative)
    parameters = [p for group in groups for p in group.trainable]
    made: Optimizer
    if optimizer == "adam":
        made = Adam(parameters, lr=lr)
    else:
        size = whole_number("dataset_size", dataset_size, at_least=1)
        made = SGD(parameters, lr=lr / size, momentum=momentum, weight_decay=weight_decay * size)
    for group in groups:
        if group.bound is not None and group.trainable:
            clip_after_step(made, group.trainable, group.bound)
    return [made]


def make_schedules(optimizers: Iterable[Optimizer], epochs: int) -> list[LRScheduler]:
    """A cosine from each learning rate down to 0 at the last epoch, for the optimizers that have one."""
    return [
        CosineAnnealingLR(optimizer, epochs)
        for optimizer in optimizers
        if all("lr" in group for group in optimizer.param_groups)
    ]


def _rules(
    groups: Sequence[TrainingGroup], lr: float, momentum: float, relative: bool
) -> list[Optimizer]:
    """The Bayesian learning rule, one optimizer for each preconditioner."""
    by_preconditioner: list[tuple[Preconditioner | None, list[TrainingGroup]]] = []
    for group in groups:
        for preconditioner, members in by_preconditioner:
            if preconditioner == group.preconditioner:
                members.append(group)
                break
        else:
            by_preconditioner.append((group.preconditioner, [group]))
    return [
        BayesianLearningRule(
            [
                {
                    # A preconditioner gets all gradients, also of those that are held fixed.
                    "params": list(group.trainable if preconditioner is None else group.parameters),
                    "normalize": ("group" if group.together else True) if relative else False,
                    "lazy": group.lazy,
                }
                for group in members
            ],
            lr,
            momentum,
            preconditioner=preconditioner,
        )
        for preconditioner, members in by_preconditioner
    ]
