"""The lists of names that the command line's parser needs before torch is loaded.

Each list stands here alone; the rooms that give the names their meaning import it, and a test compares
it with their tables.
"""

from __future__ import annotations

# Data sets that bayesbin.data.load knows, and those of them that are images a sequence of tasks is made of.
DATASETS = ("cifar", "digits", "fashion-mnist", "idx", "mnist", "two-moons", "usps")
CONTINUAL_DATASETS = ("digits", "fashion-mnist", "idx", "mnist", "usps")

# Published methods: bayesbin.recipes.recipe.
RECIPES = (
    "bayesbin",
    "bayesbinn",
    "lr-net",
    "snapquant",
    "ste",
    "binaryconnect",
    "binaryconnect-stochastic",
    "ternaryconnect",
    "bop",
    "bop2",
    "recu",
    "slb",
)

# Gradient estimators: bayesbin.estimators.named.
ESTIMATORS = (
    "local-reparameterization",
    "flipout",
    "flipout-where-shared",
    "straight-through",
    "concrete",
    "gumbel-rao",
    "pseudo-reward",
    "disarm",
    "arms",
    "score-function",
    "rebar",
    "relax",
    "arm",
    "local-expectation",
    "expected-weight",
    "enumerate",
)

# Guides of the recipe "bayesbin", what weights share in the nested ones, and the rules that train them.
GUIDES = ("mean-field", "nested", "random-effects")
SHARING = ("layer", "filter", "kernel", "weight")
OPTIMIZERS = ("bayesian-learning-rule", "adam", "sgd")

# Sequences of tasks: streams, scenarios, learners, priors and normalisation.
STREAMS = ("permuted", "split", "rotated")
SCENARIOS = ("task", "domain", "class")
LEARNERS = (
    "posterior",
    "fine-tuning",
    "fixed-prior",
    "joint",
    "straight-through",
    "metaplastic",
    "ewc",
)
PRIOR_POLICIES = ("exact", "none", "fixed", "relax", "cap", "leak")
INITIAL_PRIORS = ("random", "uniform")
NORMALIZATIONS = ("layer", "per-task", "calibrated", "batch")
ACTIVATIONS = ("relu", "tanh", "sign")

# Pictures: bayesbin demo NAME.
DEMOS = ("two-moons", "regression")
