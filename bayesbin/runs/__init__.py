"""A run directory: what training leaves behind, and all that evaluation needs beside the data.

``run.json`` says what was trained, how and with what outcome; ``posterior.safetensors`` holds the
posterior, ``network.safetensors`` the network's real parameters and buffers, ``checkpoints/`` what an
interrupted training continues from.
"""

from bayesbin.runs.config import RunConfig
from bayesbin.runs.record import Run, environment, load_run, save_run
from bayesbin.runs.shipping import pack_run
from bayesbin.runs.training import evaluate_run, train_run

__all__ = [
    "Run",
    "RunConfig",
    "environment",
    "evaluate_run",
    "load_run",
    "pack_run",
    "save_run",
    "train_run",
]
