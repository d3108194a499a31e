"""Runs: what the command line trains, scores, reports and packs, as functions.

Public names are resolved when first used, so that ``bayesbin --help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Comparison": "bayesbin.experiments.comparison",
    "ComparisonSettings": "bayesbin.experiments.settings",
    "ContinualRun": "bayesbin.experiments.continual",
    "ContinualSettings": "bayesbin.experiments.continual_settings",
    "Run": "bayesbin.experiments.runs",
    "RunSettings": "bayesbin.experiments.settings",
    "choose_run": "bayesbin.experiments.any_run",
    "compare": "bayesbin.experiments.comparison",
    "comparison_table": "bayesbin.experiments.comparison",
    "continual_learner": "bayesbin.experiments.continual_learners",
    "continual_stream": "bayesbin.experiments.continual_learners",
    "environment": "bayesbin.experiments.machine",
    "evaluate_run": "bayesbin.experiments.any_run",
    "load_run": "bayesbin.experiments.runs",
    "open_run": "bayesbin.experiments.any_run",
    "pack_run": "bayesbin.experiments.runs",
    "predict_run": "bayesbin.experiments.runs",
    "rebuild": "bayesbin.experiments.any_run",
    "run_continual": "bayesbin.experiments.continual",
    "summary_rows": "bayesbin.experiments.comparison",
    "train_and_score": "bayesbin.experiments.comparison",
    "train_run": "bayesbin.experiments.train",
    "uncertainty_rows": "bayesbin.experiments.continual",
    "unseen_task": "bayesbin.experiments.continual_learners",
}

__all__ = [
    "Comparison",
    "ComparisonSettings",
    "ContinualRun",
    "ContinualSettings",
    "Run",
    "RunSettings",
    "choose_run",
    "compare",
    "comparison_table",
    "continual_learner",
    "continual_stream",
    "environment",
    "evaluate_run",
    "load_run",
    "open_run",
    "pack_run",
    "predict_run",
    "rebuild",
    "run_continual",
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
