"""The machine and the versions that a run is made with; torch is not imported for it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from bayesbin import __version__
from bayesbin.runtime import native_backend


def environment() -> dict[str, Any]:
    """Versions of this package and of what it rests on, the machine, its kernels, and the threads in use.

    Threads are torch's where torch is loaded, and otherwise the processors that the process may use.

    >>> sorted(environment())  # doctest: +NORMALIZE_WHITESPACE
    ['bayesbin', 'kernels', 'numpy', 'platform', 'processor', 'pyro-ppl', 'python', 'safetensors',
     'threads', 'torch']
    """
    packages = ("numpy", "pyro-ppl", "safetensors", "torch")
    return {
        "bayesbin": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "kernels": native_backend.isa(),
        "threads": _threads(),
    }


def _threads() -> int:
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:  # Linux, where the platform module knows the architecture at most
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
