"""A run directory: what training leaves behind, and all that evaluation needs beside the data.

``run.json`` says what was trained, how and with what outcome; ``posterior.safetensors`` holds the
posterior, ``network.safetensors`` the network's real parameters and buffers, ``checkpoints/`` what an
interrupted training continues from. A sequence of tasks leaves ``continual.json`` and a checkpoint of each
task instead.
"""

from bayesbin.runs.comparison import (
    Comparison,
    ComparisonConfig,
    compare,
    comparison_table,
    summary_rows,
    train_and_score,
)
from bayesbin.runs.config import RunConfig
from bayesbin.runs.continual import (
    ContinualRun,
    continual_report,
    run_continual,
    uncertainty_rows,
)
from bayesbin.runs.continual_config import ContinualConfig
from bayesbin.runs.continual_learners import continual_learner, continual_stream, unseen_task
from bayesbin.runs.flips import FlipCounter
from bayesbin.runs.record import Run, environment, load_run, save_run
from bayesbin.runs.shipping import pack_run
from bayesbin.runs.training import evaluate_run, train_run

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
