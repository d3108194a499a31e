"""What to train, and how: the configuration of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from bayesbin.core.names import DATASETS, RECIPES
from bayesbin.core.nesting import SCOPES
from bayesbin.estimators.named import NAMED, named_estimator

GUIDES = ("mean-field", "nested", "random-effects")
ESTIMATORS = tuple(NAMED)
# Default learning rates: the typical change of lambda in one step, except for SGD, which divides its
# own by the number of training data.
LEARNING_RATES = {"bayesian-learning-rule": 0.05, "adam": 0.1, "sgd": 2000.0}
# Default passes over the data, 20 where not named: small sets need more to take as many steps.
EPOCHS = {"digits": 60, "two-moons": 300}
# What a recipe brings along.
_OF_RECIPES = (
    "guide", "sharing", "estimator", "temperature", "optimizer", "lr", "momentum", "kl_weight",
    "num_samples", "init_scale",
)  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """What to train, and how: one binary multilayer perceptron on one of ``bayesbin.core.names.DATASETS``.

    :param guide: one of GUIDES. :param sharing: of a nested guide: layer, filter, kernel, weight.
    :param lr: learning rate of the natural parameters; None: that of LEARNING_RATES.
    :param width: units per hidden layer. :param depth: number of hidden layers.
    :param epochs: passes over the training data; None: that of EPOCHS, or 20.
    :param num_samples: draws per training step; None: the estimator's own number.
    :param temperature: of the relaxed estimators.
    :param momentum: of the rule and of SGD. :param init_scale: of the initial natural parameters.
    :param validation: fraction of the training data held out; the test set is left alone.
    :param recipe: a method of ``bayesbin.recipes.NAMES`` in place of guide, estimator, optimizer and their
        settings, which are then its own.
    :raises ValueError: for a name that is not known or a number out of range.

    >>> RunConfig("digits").epochs
    60
    """

    dataset: str
    guide: str = "mean-field"
    sharing: tuple[str, ...] = SCOPES
    estimator: str = "local-reparameterization"
    temperature: float = 0.5
    optimizer: str = "bayesian-learning-rule"
    lr: float | None = None
    momentum: float = 0.9
    width: int = 512
    depth: int = 2
    kl_weight: float = 0.03
    epochs: int | None = None
    batch_size: int = 100
    num_samples: int | None = None
    init_scale: float = 0.1
    validation: float = 0.1
    seed: int = 0
    data_seed: int = 0
    recipe: str | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("dataset", DATASETS),
            ("guide", GUIDES),
            ("estimator", ESTIMATORS),
            ("optimizer", LEARNING_RATES),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}; got {value!r}.")
        object.__setattr__(self, "sharing", tuple(self.sharing))  # JSON gives a list back
        chosen = set(self.sharing)
        if not chosen or not chosen <= set(SCOPES) or len(chosen) < len(self.sharing):
            raise ValueError(
                f"expected scopes from {', '.join(SCOPES)}, each at most once; got "
                f"{', '.join(self.sharing) or 'none'}."
            )
        if self.guide == "mean-field" and chosen != set(SCOPES):
            raise ValueError("expected scopes with a nested guide only; add --guide nested.")
        if self.guide == "random-effects" and not chosen & {"layer", "filter"}:
            raise ValueError("expected scopes above weight for random effects; add filter, say.")
        if chosen == {"kernel"}:
            raise ValueError(
                "expected scopes of linear layers, which have no kernels; add filter or weight."
            )
        if self.recipe is not None:
            self._check_recipe()
        # Filled in here, so that a saved configuration does not change with the defaults.
        if self.lr is None and self.recipe is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        if self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS.get(self.dataset, 20))
        for name in ("width", "depth", "epochs", "batch_size"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(
                    f"expected {name} to be a whole number of at least 1; got {value}."
                )
        for name in ("lr", "temperature"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"expected {name} to be a positive number; got {value}.")
        for name, value in (("kl_weight", self.kl_weight), ("init_scale", self.init_scale)):
            if not 0 <= value < math.inf:
                raise ValueError(f"expected {name} to be at least 0; got {value}.")
        for name, value in (("momentum", self.momentum), ("validation", self.validation)):
            if not 0 <= value < 1:
                raise ValueError(f"expected {name} in [0, 1); got {value}.")
        named_estimator(self.estimator, self.num_samples)  # refuses what it would
        if not self.validation:
            raise ValueError("expected validation to be a positive fraction; got 0.")

    def _check_recipe(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(
                f"expected recipe to be one of {', '.join(RECIPES)}; got {self.recipe!r}."
            )
        defaults = {field.name: field.default for field in fields(self)}
        if given := [name for name in _OF_RECIPES if getattr(self, name) != defaults[name]]:
            raise ValueError(
                f"expected a recipe alone, got {', '.join(given)} beside {self.recipe}; leave them out, or "
                "override its settings in Python: bayesbin.recipes.recipe(name, model, lr=...)."
            )
