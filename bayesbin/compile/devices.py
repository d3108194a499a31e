"""Programs on a device of torch: which backend runs them, and why another cannot."""

from __future__ import annotations

import importlib.util
import os

import torch

from bayesbin.compile.torch_backend import TorchProgram
from bayesbin.core.checks import one_of
from bayesbin.runtime.program import Program

BACKENDS = ("auto", "torch", "triton")
_TRITON = (3, 5)  # the oldest that the kernels were tested with
_CAPABILITY = (8, 0)  # of NVIDIA's tensor cores, from where on they take bfloat16


def program_on(
    program: Program,
    device: torch.device | str,
    backend: str = "auto",
    precision: str = "exact",
) -> TorchProgram:
    """A program as a module of torch on a device.

    :param backend: "torch"; "triton", whose kernels are not differentiated; or "auto": Triton on GPUs that
        it runs on, torch elsewhere.
    :param precision: "fast" rounds the inputs of linear maps under signs to 16 bits, in Triton alone.
    :raises ValueError: for an unknown backend.
    :raises RuntimeError: for Triton where it does not run, with the reason.
    """
    device = torch.device(device)
    backend = one_of("backend", backend, BACKENDS)
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return TorchProgram(program).to(device)
    reason = why_no_triton(device)
    if reason is not None:
        if backend == "triton":
            raise RuntimeError(reason)
        return TorchProgram(program).to(device)
    from bayesbin.compile.triton_backend import (
        TritonProgram,
    )  # so that the rest does without Triton

    return TritonProgram(program, precision).to(device)


def triton_device() -> torch.device:
    """Where the Triton kernels run unless another device is named: the GPU, or in its interpreter the CPU."""
    return torch.device("cpu" if interpreted() else "cuda")


def interpreted() -> bool:
    """Whether Triton's kernels are interpreted, on the CPU: ``TRITON_INTERPRET=1``, set before its import."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "y", "yes")


def why_no_triton(device: torch.device | None = None) -> str | None:
    """Why the Triton kernels do not run on a device, in a sentence; None if they do.

    It imports Triton, where that is installed.
    """
    instead = 'use backend="auto" or "torch"'
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: pip install triton (on Linux), or {instead}."
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _TRITON:
        wanted = ".".join(map(str, _TRITON))
        return f"Triton is {triton.__version__}, and {wanted} or newer is needed: update it, or {instead}."
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return f"The Triton kernels need a GPU, and torch finds none here: {instead}."
    device = device or triton_device()
    if device.type != "cuda":
        return f"The Triton kernels run on a GPU, not on {device}: {instead}."
    found = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and found < _CAPABILITY:
        return (
            f"The Triton kernels need a GPU of compute capability {'.'.join(map(str, _CAPABILITY))} or more, "
            f"and this one has {'.'.join(map(str, found))}: {instead}."
        )
    return None
