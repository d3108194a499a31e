"""What sequence of tasks to learn, and how: the configuration of a continual run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from bayesbin.continual.priors import named_prior_policy
from bayesbin.core.names import NORMALIZATIONS, SCENARIOS

DATASETS = ("digits", "fashion-mnist", "idx", "mnist", "usps")  # images as rows of pixels
STREAMS = ("permuted", "split", "rotated")
METHODS = (
    "posterior",
    "fine-tuning",
    "fixed-prior",
    "joint",
    "straight-through",
    "metaplastic",
    "ewc",
)
INITIAL_PRIORS = ("random", "uniform")
OPTIMIZERS = ("adam", "bayesian-learning-rule")
# Of the natural parameters with Adam where not named here; latent and real weights take smaller steps.
LEARNING_RATE = 0.1
LEARNING_RATES = {"straight-through": 5e-3, "metaplastic": 5e-3, "ewc": 1e-3}
# Small sets need more passes and smaller batches to take as many steps.
EPOCHS, BATCH_SIZES = {"digits": 15}, {"digits": 50}


@dataclass(frozen=True)
class ContinualConfig:
    """A sequence of tasks from one of DATASETS, a network, and a way to learn.

    :param stream: one of STREAMS. :param method: one of METHODS.
    :param tasks: how many; None: 5 for digits and 10 else, or as many as the classes give.
    :param scenario: of split classes: "task", "domain" or "class". :param classes_per_task: of those.
    :param max_degrees: the largest rotation. :param stream_seed: of permutations, class order (None: as
        numbered) and rotations (None: evenly spaced); None for permutations: ``seed``.
    :param prior_policy: of the method "posterior"; with "relax" ``gamma``, "cap" ``cap``, "leak"
        ``window``, and with the others none of these.
    :param initial_prior: of the first task: "random", the random initial posterior itself, or
        "uniform", every sign equally likely. :param init_scale: standard deviation of the initial
        natural parameters; None: 1 with the random prior, else 0.1. Range of initial latent weights.
    :param hidden: widths of the hidden layers. :param normalization: one of NORMALIZATIONS.
    :param activation: "relu", "tanh" or "sign". :param output_scale: of the logits.
    :param binary_heads: whether heads have binary weights, in the scenario "task".
    :param optimizer: of the natural parameters; "bayesian-learning-rule" takes steps relative to the
        gradient's size, and after a "leak" plain natural-gradient steps.
    :param lr: at the start of each task, falling to 0 by a cosine over its steps (not for baselines
        without posterior, nor with "leak"); None: what the method needs.
    :param metaplasticity: of the method "metaplastic". :param strength: of "ewc".
    :param num_samples: draws per prediction. :param validation: fraction of the training data that is
        held out and scored in place of the test set; 0: the test set is scored.
    :raises ValueError: for a name that is not known, a number out of range, or settings that do not
        go together.

    >>> ContinualConfig("permuted").tasks
    5
    """

    stream: str
    dataset: str = "digits"
    method: str = "posterior"
    tasks: int | None = None
    scenario: str = "task"
    classes_per_task: int = 2
    max_degrees: float = 180.0
    stream_seed: int | None = None
    identity_first: bool = False
    prior_policy: str = "exact"
    gamma: float | None = None
    cap: float | None = None
    window: float | None = None
    initial_prior: str = "random"
    init_scale: float | None = None
    hidden: tuple[int, ...] = (100, 100)
    normalization: str = "layer"
    activation: str = "relu"
    output_scale: float = 3.0
    binary_heads: bool = False
    optimizer: str = "adam"
    lr: float | None = None
    kl_weight: float = 1.0
    metaplasticity: float = 1.35
    strength: float = 1.0
    epochs: int | None = None
    batch_size: int | None = None
    num_samples: int = 32
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))  # JSON gives a list back
        for name, known in (
            ("stream", STREAMS),
            ("dataset", DATASETS),
            ("method", METHODS),
            ("scenario", SCENARIOS),
            ("initial_prior", INITIAL_PRIORS),
            ("normalization", NORMALIZATIONS),
            ("activation", ("relu", "tanh", "sign")),
            ("optimizer", OPTIMIZERS),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}; got {value!r}.")
        if self.method != "posterior" and self.prior_policy != "exact":
            raise ValueError(
                f"expected a prior policy with the method 'posterior' only; got "
                f"{self.prior_policy!r} with {self.method!r}, leave it out."
            )
        named_prior_policy(self.prior_policy, **self.policy_settings())  # refuses what it would
        self._fill_in()
        self._check_numbers()

    def policy_settings(self) -> dict[str, float | None]:
        """The settings of the prior policy, by name."""
        return {"gamma": self.gamma, "cap": self.cap, "window": self.window}

    def _fill_in(self) -> None:
        # Filled in here, so that a saved configuration does not change with the defaults.
        small = 5 if self.dataset == "digits" else 10
        chosen: dict[str, Any] = {
            "tasks": (0 if self.stream == "split" else small) if self.tasks is None else self.tasks,
            "epochs": EPOCHS.get(self.dataset, 5) if self.epochs is None else self.epochs,
            "batch_size": BATCH_SIZES.get(self.dataset, 250)
            if self.batch_size is None
            else self.batch_size,
            "lr": self._default_lr() if self.lr is None else self.lr,
            "init_scale": self._default_scale() if self.init_scale is None else self.init_scale,
        }
        if self.stream == "permuted" and self.stream_seed is None:
            chosen["stream_seed"] = self.seed
        for name, value in chosen.items():
            object.__setattr__(self, name, value)

    def _default_lr(self) -> float:
        if self.prior_policy == "leak":
            return 1.0
        return LEARNING_RATES.get(self.method, LEARNING_RATE)

    def _default_scale(self) -> float:
        latent = self.method in ("straight-through", "metaplastic")
        return 1.0 if self.initial_prior == "random" and not latent else 0.1

    def _check_numbers(self) -> None:
        whole = ["epochs", "batch_size", "classes_per_task"]
        if self.stream != "split":
            whole.append("tasks")
        for name in whole:
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(
                    f"expected {name} to be a whole number of at least 1; got {value}."
                )
        for name in ("lr", "output_scale", "init_scale", "max_degrees"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"expected {name} to be a positive number; got {value}.")
        for name in ("kl_weight", "metaplasticity", "strength"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"expected {name} to be at least 0; got {value}.")
        if not 0 <= self.validation < 1:
            raise ValueError(f"expected validation in [0, 1); got {self.validation}.")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"expected widths of at least 1; got hidden {self.hidden}.")
        if not isinstance(self.num_samples, int) or self.num_samples < 0:
            raise ValueError(f"expected num_samples of at least 0; got {self.num_samples}.")


def config_from(content: dict[str, Any]) -> ContinualConfig:
    """The configuration that a record holds; what this version does not know is passed over."""
    known = {field.name for field in fields(ContinualConfig)}
    return ContinualConfig(**{name: value for name, value in content.items() if name in known})
