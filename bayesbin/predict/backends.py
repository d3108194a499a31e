"""Which backend computes a packed prediction, and why another cannot."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch

from bayesbin.predict import kernels

BACKENDS = ("auto", "cpu", "torch", "triton")
_TRITON = (3, 5)  # the oldest that the kernels were tested with
_CAPABILITY = (8, 0)  # of NVIDIA's tensor cores, from where on they take bfloat16


def chosen(backend: str, device: torch.device) -> str:
    """The backend to use on a device: the one that was named, or for "auto" the first that is there.

    :raises ValueError: for an unknown backend, or "cpu" on another device.
    :raises RuntimeError: for one that was named and is not available, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}; got {backend!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "torch finds no GPU here; predict on the CPU, or install a build of torch for it."
        )
    if backend == "auto":
        if device.type == "cpu":
            _warn_without_kernels()
            return "cpu" if kernels.available() else "torch"
        return "triton" if device.type == "cuda" and why_no_triton(device) is None else "torch"
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f'backend="cpu" has no kernels for {device}; use "auto" or "triton".')
        if not kernels.available():
            raise RuntimeError(kernels.why_not())
    if backend == "triton" and (reason := why_no_triton(device)) is not None:
        raise RuntimeError(reason)
    return backend


@functools.cache
def _warn_without_kernels() -> None:
    """Warn, once in a process, that packed prediction is computed in torch."""
    if (reason := kernels.why_not()) is not None:
        warnings.warn(
            f'{reason} Until then packed prediction runs in torch, many times slower; backend="torch" asks '
            "for that without this warning.",
            stacklevel=4,  # of chosen, PackedPredictive and its caller
        )


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
