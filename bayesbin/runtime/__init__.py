"""Prediction with numpy and the compiled kernels alone: programs, model files, predictors.

Names are resolved when first used, so that reading a file loads neither the kernels nor the tables of steps.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the names below are, for type checkers and editors
    from bayesbin.runtime.blocks import BlockPredictions, predict_blocks
    from bayesbin.runtime.inspection import Inspection, inspect
    from bayesbin.runtime.native_backend import kernel_isa
    from bayesbin.runtime.predictions import ClassPrediction, NormalPrediction, OutputsPrediction
    from bayesbin.runtime.predictor import Predictor, load
    from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, StoredSite, Value
    from bayesbin.runtime.unpacking import unpack

_NAMES = {
    "BlockPredictions": "blocks",
    "ClassPrediction": "predictions",
    "Constant": "program",
    "DrawnSite": "program",
    "Inspection": "inspection",
    "NormalPrediction": "predictions",
    "OutputsPrediction": "predictions",
    "Predictor": "predictor",
    "Program": "program",
    "Step": "program",
    "StoredSite": "program",
    "Value": "program",
    "inspect": "inspection",
    "kernel_isa": "native_backend",
    "load": "predictor",
    "predict_blocks": "blocks",
    "unpack": "unpacking",
}

__all__ = [
    "BlockPredictions",
    "ClassPrediction",
    "Constant",
    "DrawnSite",
    "Inspection",
    "NormalPrediction",
    "OutputsPrediction",
    "Predictor",
    "Program",
    "Step",
    "StoredSite",
    "Value",
    "inspect",
    "kernel_isa",
    "load",
    "predict_blocks",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'bayesbin.runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bayesbin.runtime.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
