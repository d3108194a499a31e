"""What a training run is set up from: the size of the data, optimizers, and the configuration kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from bayesbin.guides.low_bit import AutoLowBit
from bayesbin.guides.nested import AutoNestedSignBernoulli
from bayesbin.optim import BayesianLearningRule

# Natural gradients of different models and layers differ by orders of magnitude (five, between a linear
# regression and the hidden layers of an MLP), so the default steps are relative: lr is the typical
# change of lambda in one step.
DEFAULT_LR = 0.05
DEFAULT_MOMENTUM = 0.9
DEFAULT_ADAM_LR = 3e-3


def claimed(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def resolve_dataset_size(argument: int | None, model: Any) -> int:
    own = getattr(model, "dataset_size", None)
    if argument is not None and own is not None and argument != own:
        came = (
            f"dataset_size={argument} and model.dataset_size={own}; correct one, or leave it out."
        )
        raise ValueError(f"expected one number of training data, got {came}")
    size = own if argument is None else argument
    if not isinstance(size, int) or size < 1:
        came = f"{size!r}; pass dataset_size=, at least 1 (a batch does not tell)."
        raise ValueError(f"expected the number of training data, got {came}")
    return size


def natural_rules(guide: Any, lr: float, momentum: float = 0.9) -> list[Optimizer]:
    """The Bayesian learning rule for what a guide computes its signs' distributions from, in relative steps.

    One rule for natural parameters, or for the offsets of a nested guide or the logits of weights with a
    few levels, with their natural gradient; none for a guide that has neither.

    :param lr: the typical change of lambda in one step, see ``normalize`` of the rule.
    """
    rules: list[Optimizer] = []
    if natural := [p for p in guide.natural_parameters() if p.requires_grad]:
        rules.append(BayesianLearningRule(natural, lr, momentum, normalize=True))
    if isinstance(guide, AutoNestedSignBernoulli) and (by_site := guide.offsets_by_site()):
        # Offsets of a site add up: they share one size, and their step in lambda stays natural.
        groups = [{"params": offsets} for offsets in by_site.values()]
        gradient = guide.natural_gradient
        rules.append(
            BayesianLearningRule(groups, lr, momentum, normalize="group", preconditioner=gradient)
        )
    if isinstance(guide, AutoLowBit):
        gradient = guide.natural_gradient
        rules.append(
            BayesianLearningRule(
                guide.logits(), lr, momentum, normalize=True, preconditioner=gradient
            )
        )
    return rules


def resolve_optimizers(
    given: Optimizer | Iterable[Optimizer] | None, module: nn.Module, guide: Any
) -> list[Optimizer]:
    """The optimizers given, or the default ones; an error where two hold the same parameter."""
    trainable = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    if given is None:
        rules = natural_rules(guide, DEFAULT_LR, DEFAULT_MOMENTUM)
        taken = {id(p) for p in claimed(rules)}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
        optimizers: list[Optimizer] = [
            *rules,
            *([Adam(rest, lr=DEFAULT_ADAM_LR)] if rest else []),
        ]
    else:
        optimizers = [given] if isinstance(given, Optimizer) else list(given)
    if not optimizers or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        came = ", ".join(type(o).__name__ for o in optimizers) or "none, or nothing to train"
        raise TypeError(f"expected optimizers of torch.optim's kind, got {came}.")
    held = [id(p) for p in claimed(optimizers)]
    twice = sorted({trainable.get(i, "a parameter") for i in held if held.count(i) > 1})
    if twice:
        raise ValueError(
            f"expected each parameter in one optimizer, got in several: {', '.join(twice[:5])}; "
            "give guide.natural_parameters() to one and guide.real_parameters() to another."
        )
    if left := [name for key, name in trainable.items() if key not in set(held)]:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        warnings.warn(
            f"No optimizer trains {', '.join(left[:5])}{more}; add them to one, or set "
            "requires_grad_(False) where that is meant.",
            stacklevel=3,
        )
    return optimizers


def describe(
    module: nn.Module, optimizers: list[Optimizer], schedulers: list[Any]
) -> dict[str, str]:
    """What a checkpoint must agree on: parameters, optimizers with their initial lr, schedulers."""
    names = {id(p): name for name, p in module.named_parameters()}
    entries = {
        f"parameter {n}": f"{p.dtype} {tuple(p.shape)}" for n, p in module.named_parameters()
    }
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            what = f"optimizer {i} group {j}"
            # A scheduler changes "lr" alone; rules that flip signs have none.
            lr = float(group.get("initial_lr", group.get("lr", math.nan)))
            entries[what] = f"{type(optimizer).__name__}, lr {lr:.12g}"
            owned = [names.get(id(p), str(tuple(p.shape))) for p in group["params"]]
            entries[f"{what} parameters"] = ", ".join(owned)
    return entries | {f"scheduler {i}": type(s).__name__ for i, s in enumerate(schedulers)}


def require_configuration(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to continue with another model or optimizer than the checkpoint was saved from."""
    different = [
        f"{name}: {saved.get(name, 'none')} in the checkpoint, {now.get(name, 'none')} now"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if different:
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(
            "expected the configuration that the checkpoint was saved with, but these differ: "
            f"{'; '.join(different[:5])}{more}. Use the same, or another checkpoint_dir."
        )
