"""What a recipe is, and how the parts that all methods share are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from bayesbin.estimators import Estimator
from bayesbin.guides.base import SignGuide
from bayesbin.nn import Classifier, binary_sites, to_binary_
from bayesbin.nn.convert import linear_and_convolution_weights


@dataclass(frozen=True, eq=False)
class Recipe:
    """A method by its parts, ready for ``fit(recipe.model, recipe.guide, data, **recipe.arguments())``.

    :param model: the model given, or the classifier made of a plain network.
    :param schedules: stepped once per epoch; made for ``epochs`` epochs.
    :param kl_weight: what the method has before its KL term; point estimates have none to weigh.
    :param settings: every number that went in, overrides included.
    :param source: where it was published. :param note: what of it is ours.
    """

    name: str
    model: Any
    guide: SignGuide
    estimator: Estimator
    optimizers: tuple[Optimizer, ...]
    schedules: tuple[Any, ...]
    kl_weight: float
    epochs: int
    settings: Mapping[str, Any]
    source: str
    note: str

    def arguments(self) -> dict[str, Any]:
        """The keywords of ``fit``: estimator, optimizers, schedulers, kl_weight and epochs."""
        return {
            "estimator": self.estimator,
            "optimizers": self.optimizers,
            "schedulers": self.schedules,
            "kl_weight": self.kl_weight,
            "epochs": self.epochs,
        }


@dataclass(frozen=True)
class Parts:
    """What a method makes of a model; the real parameters are added to it."""

    guide: SignGuide
    estimator: Estimator
    optimizers: list[Optimizer]
    schedules: list[Any]


@dataclass(frozen=True)
class Method:
    """A published method: its settings, and how it is built from them.

    :param build: from (model, settings, dataset_size, epochs) to the parts.
    """

    build: Callable[[Any, dict[str, Any], int, int], Parts]
    settings: Mapping[str, Any]
    source: str
    note: str


# real_lr is of biases, normalisation and output scale; the others are the guide's.
SHARED: Mapping[str, Any] = {"real_lr": 3e-3, "init_scale": 0.1, "init": None, "args": ()}


def assemble(name: str, method: Method, model: Any, size: int, epochs: int, given: Any) -> Recipe:
    """The recipe of a method; ``given`` are overrides of its settings."""
    known = {"kl_weight": 0.0, **SHARED, **method.settings}
    if unknown := [key for key in given if key not in known]:
        raise ValueError(
            f"The recipe {name!r} has the settings {', '.join(known)}; got {', '.join(unknown)}."
        )
    settings = known | given
    parts = method.build(model, settings, size, epochs)
    taken = {id(p) for o in parts.optimizers for group in o.param_groups for p in group["params"]}
    rest = [p for p in _trainable(model, parts) if id(p) not in taken]
    optimizers, schedules = list(parts.optimizers), list(parts.schedules)
    if rest:
        optimizers.append(Adam(rest, lr=settings["real_lr"]))
        schedules.append(annealed(optimizers[-1], epochs))
    return Recipe(
        name=name,
        model=model,
        guide=parts.guide,
        estimator=parts.estimator,
        optimizers=tuple(optimizers),
        schedules=tuple(schedules),
        kl_weight=float(settings["kl_weight"]),
        epochs=epochs,
        settings=settings,
        source=method.source,
        note=method.note,
    )


def resolve_model(model: Any, dataset_size: int | None) -> tuple[Any, int]:
    """The Pyro model and its data-set size; a plain network becomes a binary classifier."""
    if isinstance(model, nn.Module):
        if not binary_sites(model) and _has_layers(model):
            to_binary_(model)
        if not isinstance(model, PyroModule):
            if dataset_size is None:
                raise ValueError(
                    "recipe takes a Pyro model, such as bayesbin.nn.Classifier(net, dataset_size), or a "
                    f"network and dataset_size=; got a {type(model).__name__} alone."
                )
            model = Classifier(model, dataset_size)
    own = getattr(model, "dataset_size", None)
    if own is not None and dataset_size not in (None, own):
        raise ValueError(
            f"expected one number of training data, got dataset_size={dataset_size} and "
            f"model.dataset_size={own}; leave the first out."
        )
    size = dataset_size if own is None else own
    if not isinstance(size, int) or size < 1:
        raise ValueError(
            f"expected the number of training data, at least 1, got {size!r}; pass dataset_size=."
        )
    return model, size


def annealed(optimizer: Optimizer, epochs: int) -> LRScheduler:
    """A cosine from the learning rate to 0, step by step over the epochs."""
    return CosineAnnealingLR(optimizer, epochs)


def guide_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("init_scale", "init", "args")}


def _trainable(model: Any, parts: Parts) -> Iterable[Tensor]:
    modules = [m for m in (model, parts.guide, parts.estimator) if isinstance(m, nn.Module)]
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return found.values()


def _has_layers(network: nn.Module) -> bool:
    return any(linear_and_convolution_weights("weight", module) for module in network.modules())
