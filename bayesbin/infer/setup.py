"""What a training run is set up from: the size of the data, optimizers, and the configuration kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from bayesbin.core.checks import whole_number
from bayesbin.optim import make_optimizers, make_schedules, training_groups


def claimed(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def resolve_dataset_size(argument: int | None, model: Any) -> int:
    own = getattr(model, "dataset_size", None)
    if argument is not None:
        argument = whole_number("dataset_size", argument, at_least=1)
    if argument is not None and own is not None and argument != own:
        came = (
            f"dataset_size={argument} and model.dataset_size={own}; correct one, or leave it out."
        )
        raise ValueError(f"expected one number of training data, got {came}")
    size = own if argument is None else argument
    if size is None:
        raise ValueError(
            "expected the number of training data, which the model does not say; pass dataset_size=, at "
            "least 1 (a batch does not tell)."
        )
    return whole_number("dataset_size", size, at_least=1)


class PlateSizes(Messenger):
    """Finds out how many data a model scales its likelihood to, and refuses another number.

    Around a step of training. A model may have several plates: the number of data is that of one of them,
    their product where they cross, or their sum where they hold different data. Without a plate it is
    the number of rows, times the scale that ``pyro.poutine.scale`` gives.
    """

    def __init__(self, dataset_size: int) -> None:
        super().__init__()
        self.dataset_size = dataset_size
        self._plates: dict[str, int] = {}
        self._sites: dict[str, set[float]] = {}  # observed site -> numbers of data it may stand for
        self._unknown = False

    @classmethod
    def of(cls, module: nn.Module, dataset_size: int) -> PlateSizes | None:
        """One for a model; None for a model whose number of data changes from step to step."""
        changing = any(getattr(part, "scales_by_step", False) for part in module.modules())
        return None if changing else cls(dataset_size)

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or site_is_subsample(msg):
            return
        scale = msg["scale"]
        by_datum = isinstance(scale, Tensor) and scale.numel() > 1  # sample weights
        scale = None if by_datum else float(scale)
        plates = {each.name: each for each in msg["cond_indep_stack"]}
        sizes = {name: each.full_size or each.size for name, each in plates.items()}
        if not plates:
            self._unknown |= by_datum
            shape = msg["value"].shape
            counts = {1, *shape[:1], math.prod(shape), math.prod(msg["fn"].batch_shape)}
            factors = {scale or 1.0}
        else:
            own = math.prod(sizes[name] / each.size for name, each in plates.items())
            counts = _products(sizes.values())
            factors = {
                1.0,
                (scale or own) / own,
            }  # a power of the likelihood, or a scale beside the plates
        self._plates |= sizes
        self._sites[msg["name"]] = {count * factor for count in counts for factor in factors}

    def require(self) -> None:
        """Compare what was found with the number of data.

        :raises ValueError: if the model scales its likelihood to another number.
        """
        sums = {float(sum(self._plates.values())), sum(map(max, self._sites.values()))}
        found = {count for site in self._sites.values() for count in site} | sums
        close = (math.isclose(count, self.dataset_size, rel_tol=1e-5) for count in found)
        if self._unknown or not self._sites or any(close):
            return
        plates = ", ".join(f"{size} in the plate {name!r}" for name, size in self._plates.items())
        most = max(count for site in self._sites.values() for count in site)
        raise ValueError(
            "expected dataset_size to be the number of data that the model scales its likelihood to, "
            f"{plates or f'{most:g} by the rows of its observed sites'}; got {self.dataset_size}. Correct "
            "one of them: losses are reported per datum."
        )


def _products(sizes: Iterable[int]) -> set[int]:
    """The products of one or several of the sizes."""
    found = {1}
    for size in sizes:
        found |= {count * size for count in found}
    return found - {1} or {1}


def default_training(
    model: Any, guide: Any, estimator: Any, epochs: int
) -> tuple[list[Optimizer], list[Any]]:
    """The optimizers and schedules of the default recipe, for the parameters known so far."""
    optimizers = make_optimizers(training_groups(guide, model, estimator))
    return optimizers, list(make_schedules(optimizers, epochs))


def checked_optimizers(
    given: Optimizer | Iterable[Optimizer], module: nn.Module
) -> list[Optimizer]:
    """The optimizers given; an error where two hold the same parameter, a warning for those left out."""
    optimizers = [given] if isinstance(given, Optimizer) else list(given)
    if not optimizers or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        came = ", ".join(type(o).__name__ for o in optimizers) or "none"
        raise TypeError(f"expected optimizers of torch.optim's kind, got {came}.")
    trainable = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
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
            stacklevel=4,
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
    return entries | {f"scheduler {i}": _schedule(s) for i, s in enumerate(schedulers)}


def _schedule(scheduler: Any) -> str:
    # A cosine ends at the last epoch: a longer run has another one from its first epoch on.
    if isinstance(scheduler, CosineAnnealingLR):
        return f"CosineAnnealingLR over {scheduler.T_max} epochs"
    return type(scheduler).__name__


def require_configuration(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to continue with another model or optimizer than the checkpoint was saved from."""
    different = [
        f"{name}: {saved.get(name, 'none')} in the checkpoint, {now.get(name, 'none')} now"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if different:
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        remedy = "Use the same, or another checkpoint_dir."
        if all(line.startswith("scheduler ") and " epochs" in line for line in different):
            remedy = (
                "A schedule that ends with the training cannot be lengthened: give epochs as before, or "
                "begin with optimizers= and no schedule of a fixed length."
            )
        raise ValueError(
            "expected the configuration that the checkpoint was saved with, but these differ: "
            f"{'; '.join(different[:5])}{more}. {remedy}"
        )
