"""Prediction with a posterior: averages over draws, in torch, from packed bits, or from a file.

Names are resolved when first used: :func:`load` and what it returns need neither torch nor pyro.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the names below are, for type checkers and editors
    from bayesbin.predict.blocks import BlockPredictions, predict_blocks
    from bayesbin.predict.fused_op import FusedPredictive
    from bayesbin.predict.inspection import Inspection, inspect
    from bayesbin.predict.kernels import kernel_isa
    from bayesbin.predict.onnx_export import export_onnx
    from bayesbin.predict.packed import PackedPredictive
    from bayesbin.predict.predictive import (
        Prediction,
        RegressionPrediction,
        draw_log_probs,
        draw_outputs,
        predict,
        predict_regression,
    )
    from bayesbin.predict.shipped import (
        ShippedPrediction,
        ShippedPredictive,
        ShippedRegression,
        load,
    )
    from bayesbin.predict.shipping import pack
    from bayesbin.predict.unpacking import unpack

_NAMES = {
    "BlockPredictions": "blocks",
    "FusedPredictive": "fused_op",
    "Inspection": "inspection",
    "PackedPredictive": "packed",
    "Prediction": "predictive",
    "RegressionPrediction": "predictive",
    "ShippedPrediction": "shipped",
    "ShippedPredictive": "shipped",
    "ShippedRegression": "shipped",
    "draw_log_probs": "predictive",
    "draw_outputs": "predictive",
    "export_onnx": "onnx_export",
    "inspect": "inspection",
    "kernel_isa": "kernels",
    "load": "shipped",
    "pack": "shipping",
    "predict": "predictive",
    "predict_blocks": "blocks",
    "predict_regression": "predictive",
    "unpack": "unpacking",
}

__all__ = [
    "BlockPredictions",
    "FusedPredictive",
    "Inspection",
    "PackedPredictive",
    "Prediction",
    "RegressionPrediction",
    "ShippedPrediction",
    "ShippedPredictive",
    "ShippedRegression",
    "draw_log_probs",
    "draw_outputs",
    "export_onnx",
    "inspect",
    "kernel_isa",
    "load",
    "pack",
    "predict",
    "predict_blocks",
    "predict_regression",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"bayesbin.predict.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'bayesbin.predict' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
