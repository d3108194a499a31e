"""Runs: what the command line trains, scores and reports, as functions.

Public names are resolved when first used, so that ``bayesbin --help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Comparison": "bayesbin.experiments.comparison",
    "ComparisonConfig": "bayesbin.experiments.comparison",
    "ContinualConfig": "bayesbin.experiments.continual_settings",
    "ContinualRun": "bayesbin.experiments.continual",
    "FlipCounter": "bayesbin.experiments.flips",
    "Run": "bayesbin.experiments.record",
    "RunConfig": "bayesbin.experiments.settings",
    "compare": "bayesbin.experiments.comparison",
    "comparison_table": "bayesbin.experiments.comparison",
    "continual_learner": "bayesbin.experiments.continual_learners",
    "continual_report": "bayesbin.experiments.continual",
    "continual_stream": "bayesbin.experiments.continual_learners",
    "environment": "bayesbin.experiments.record",
    "evaluate_run": "bayesbin.experiments.train",
    "load_run": "bayesbin.experiments.record",
    "pack_run": "bayesbin.experiments.shipping",
    "run_continual": "bayesbin.experiments.continual",
    "save_run": "bayesbin.experiments.record",
    "summary_rows": "bayesbin.experiments.comparison",
    "train_and_score": "bayesbin.experiments.comparison",
    "train_run": "bayesbin.experiments.train",
    "uncertainty_rows": "bayesbin.experiments.continual",
    "unseen_task": "bayesbin.experiments.continual_learners",
}

__all__ = [
    "Comparison",
    "ComparisonConfig",
    "ContinualConfig",
    "ContinualRun",
    "FlipCounter",
    "Run",
    "RunConfig",
    "compare",
    "comparison_table",
    "continual_learner",
    "continual_report",
    "continual_stream",
    "environment",
    "evaluate_run",
    "load_run",
    "pack_run",
    "run_continual",
    "save_run",
    "summary_rows",
    "train_and_score",
    "train_run",
    "uncertainty_rows",
    "unseen_task",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'bayesbin.experiments' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
