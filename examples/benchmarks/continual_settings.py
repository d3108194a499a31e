"""What ``continual.py`` runs, and the published numbers beside it."""

from __future__ import annotations

from typing import Any

MAIN: dict[str, Any] = {
    "stream": "permuted", "dataset": "mnist", "tasks": 10, "epochs": 5, "initial_prior": "uniform",
}  # fmt: skip
ONLINE = MAIN | {"epochs": 1, "hidden": (100,)}
SPLIT: dict[str, Any] = {
    "stream": "split", "dataset": "mnist", "epochs": 5, "batch_size": 100, "binary_heads": True,
    "initial_prior": "random", "init_scale": 2.0,
}  # fmt: skip
WIDE = MAIN | {
    "hidden": (400, 400), "initial_prior": "random", "init_scale": 0.5, "kl_weight": 0.5, "lr": 0.2,
}  # fmt: skip
# In the order in which they are run. "train_size": the first so many images of each task only.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "posterior 2x100": MAIN,
    "posterior 2x400": WIDE,
    "posterior 2x100, random first prior": MAIN | {"initial_prior": "random"},
    "fine-tuning": MAIN | {"method": "fine-tuning"},
    "fixed prior": MAIN | {"method": "fixed-prior"},
    "straight-through": MAIN | {"method": "straight-through"},
    "metaplastic": MAIN | {"method": "metaplastic"},
    "online EWC, real weights": MAIN | {"method": "ewc"},
    "online, batch 100": ONLINE | {"batch_size": 100},
    "online, batch 1": ONLINE | {"batch_size": 1, "lr": 0.05, "train_size": 6000},
    "split, heads by task": SPLIT,
    "split, one head (domain)": SPLIT | {"scenario": "domain"},
    "split, all classes (class)": SPLIT | {"scenario": "class"},
    "batch norm, per task": MAIN | {"normalization": "per-task"},
    "batch norm, calibrated": MAIN | {"normalization": "calibrated"},
    "batch norm, batch at test": MAIN | {"normalization": "batch"},
    "joint training": MAIN | {"method": "joint"},
}  # fmt: skip
# Small enough for three seeds each: what the settings do.
PERMUTED_DIGITS: dict[str, Any] = {"stream": "permuted", "dataset": "digits", "epochs": 10}
SPLIT_DIGITS: dict[str, Any] = {"stream": "split", "dataset": "digits", "epochs": 10}
DIGITS: dict[str, dict[str, Any]] = {
    "posterior": {},
    "uniform first prior": {"initial_prior": "uniform"},
    "one layer of 200": {"hidden": (200,)},
    "kl_weight 0.3": {"kl_weight": 0.3},
    "kl_weight 3": {"kl_weight": 3.0},
    "relax, gamma 0.9": {"prior_policy": "relax", "gamma": 0.9},
    "cap 2": {"prior_policy": "cap", "cap": 2.0},
    "leak, window 10000 steps": {"prior_policy": "leak", "window": 10_000.0},
    "batch norm, per task": {"normalization": "per-task"},
    "batch norm, calibrated": {"normalization": "calibrated"},
    "batch norm, batch at test": {"normalization": "batch"},
    "fixed prior": {"method": "fixed-prior"},
    "fine-tuning": {"method": "fine-tuning"},
    "joint training": {"method": "joint"},
}
CONFIGURATIONS |= {f"digits, {name}": PERMUTED_DIGITS | more for name, more in DIGITS.items()}
CONFIGURATIONS |= {
    f"digits, split, {scenario}": SPLIT_DIGITS | {"scenario": scenario}
    for scenario in ("task", "domain", "class")
}
# What of these are settings of the method.
SETTINGS = ("init_scale", "kl_weight", "lr")
THREE_SEEDS = ("posterior 2x100", *(name for name in CONFIGURATIONS if name.startswith("digits")))
SHOWN = (1, 2, 3, 5, 10)  # numbers of tasks
PUBLISHED = (
    ("BayesBiNN 2x100 (published, 100 epochs)", (94.0, 92.2, 89.7, None, None)),
    ("VCL 2x100, real weights (published)", (98.2, 97.2, 96.3, 93.3, 90)),
    ("BayesBiNN online, batch 1 (published)", (None, None, None, None, 77.5)),
    ("BiMU online, batch 1 (published)", (None, None, None, None, 66.7)),
)
