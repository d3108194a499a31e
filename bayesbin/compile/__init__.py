"""From torch networks to programs, and from programs to torch, ONNX and C.

Names are resolved when first used: what writes C and ONNX needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the names below are, for type checkers and editors
    from bayesbin.compile.c_source import export_c
    from bayesbin.compile.export import export_program
    from bayesbin.compile.folding import fold
    from bayesbin.compile.onnx_export import export_onnx
    from bayesbin.compile.operator import PredictModule, module
    from bayesbin.compile.refusal import NotCompiled
    from bayesbin.compile.torch_backend import TorchProgram

_NAMES = {
    "NotCompiled": "refusal",
    "PredictModule": "operator",
    "TorchProgram": "torch_backend",
    "export_c": "c_source",
    "export_onnx": "onnx_export",
    "export_program": "export",
    "fold": "folding",
    "module": "operator",
}

__all__ = [
    "NotCompiled",
    "PredictModule",
    "TorchProgram",
    "export_c",
    "export_onnx",
    "export_program",
    "fold",
    "module",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'bayesbin.compile' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bayesbin.compile.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
