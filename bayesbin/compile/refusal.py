"""NotCompiled: why a network has no program, in a sentence, with the line of the user's own code."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path
from typing import Any

import torch

REMEDY = "An ensemble predicts with it in torch all the same, without a program."
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')
# Frames in these are not the user's own: torch, and what of this package wraps torch's modules.
_FOREIGN = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "nn" / "effective.py"),
)


class NotCompiled(ValueError):
    """A network that cannot be written as a program; ``str`` says why, where and what to do.

    :param problem: what stands in the way, a sentence without its full stop.
    :param operator: torch's operator, as ``aten.sort.default``, or "". :param line: file, line and code
        of the user's that it came from, or the module, or "". :param remedy: what to do.
    """

    def __init__(
        self, problem: str, operator: str = "", line: str = "", remedy: str = REMEDY
    ) -> None:
        self.problem, self.operator, self.line, self.remedy = problem, operator, line, remedy
        where = f" ({line})" if line else ""
        super().__init__(f"{problem}{where}. {remedy}")

    def __reduce__(self) -> Any:
        return type(self), (self.problem, self.operator, self.line, self.remedy)


def line_of(node: torch.fx.Node | None) -> str:
    """The line of the user's code that a node of an exported graph came from, or else its module."""
    if node is None:
        return ""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    for frame in reversed(frames):
        if not frame["file"].startswith(_FOREIGN):
            return f"{Path(frame['file']).name}:{frame['line']}: {frame['code'].strip()}"
    return _module_of(node)


def _module_of(node: torch.fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = getattr(kind, "__name__", str(kind).rpartition(".")[2])
    return f"module {path!r}, {name}" if path else f"module {name}"


def line_of_error(error: BaseException) -> str:
    """The innermost line of the user's code that an error passed through."""
    found = ""
    cause: BaseException | None = error
    while cause is not None:
        for frame in traceback.extract_tb(cause.__traceback__):
            if not frame.filename.startswith((*_FOREIGN, "<")):
                code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
                found = f"{Path(frame.filename).name}:{frame.lineno}: {code}"
        cause = cause.__cause__
    return found
