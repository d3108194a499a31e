"""Run the scripts of examples/ in this process, as their own would: importing torch takes seconds."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_script(path: Path, *arguments: str, cwd: Path) -> str:
    """What the script prints, run in ``cwd`` with these arguments; it raises what the script raises.

    The script finds the defaults of a new process (float32, an empty parameter store) and leaves none
    of its own.
    """
    printed = io.StringIO()
    with as_a_new_process(cwd, [str(path), *arguments]), contextlib.redirect_stdout(printed):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, f"{path.name} exits with {stop.code}"
    return printed.getvalue()


@contextlib.contextmanager
def as_a_new_process(cwd: Path, argv: list[str]) -> Iterator[None]:
    before = sys.argv, list(sys.path)
    settings = [
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
    ]
    sys.argv, sys.path[:0] = argv, [str(Path(argv[0]).parent)]
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(torch.initial_seed())
    pyro.clear_param_store()
    try:
        with contextlib.chdir(cwd), pyro.validation_enabled(__debug__):
            yield
    finally:
        sys.argv, sys.path[:] = before[0], before[1]
        for restore, value in settings:
            restore(value)
        pyro.clear_param_store()
        plt.close("all")


def environment() -> dict[str, str]:
    """For a script in a process of its own, which finds the package beside it."""
    return os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONDONTWRITEBYTECODE": "1"}
