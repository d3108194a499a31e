"""A run on disk: written atomically, every file verified by its digest when it is read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from bayesbin import __version__
from bayesbin.core.files import CorruptFileError, sha256, write_atomically
from bayesbin.experiments.record_file import RecordFile
from bayesbin.experiments.settings import RunConfig
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import mlp, to_binary_
from bayesbin.posterior import BinaryPosterior, LowBitPosterior, load_posterior
from bayesbin.predict import kernel_isa

RECORD, POSTERIOR, NETWORK = "run.json", "posterior.safetensors", "network.safetensors"
RECORD_FILE = RecordFile(RECORD, "bayesbin run", 1, "a run", "train")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: the network, its posterior, and the record of how they came about.

    :param record: ``architecture``, ``data`` (digest, sizes), ``history`` (a row per epoch),
        ``validation`` (the last scores), ``seconds`` of training, ``environment``.
    """

    folder: Path
    config: RunConfig
    net: nn.Module
    posterior: BinaryPosterior | LowBitPosterior
    record: Mapping[str, Any]


def save_run(
    folder: str | os.PathLike[str],
    net: nn.Module,
    posterior: BinaryPosterior | LowBitPosterior,
    record: Mapping[str, Any],
) -> Run:
    """Write a finished run; ``run.json`` comes last, so that it is there only if all the rest is.

    :param record: with ``config`` and ``architecture``, the rest as in :class:`Run`.
    :raises OSError: if it cannot be written; an earlier ``run.json`` is then what it was.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().contiguous().clone() for name, tensor in net.state_dict().items()
    }
    posterior.save(folder / POSTERIOR)
    write_atomically(folder / NETWORK, safetensors.torch.save(state))
    digests = {name: sha256((folder / name).read_bytes()) for name in (POSTERIOR, NETWORK)}
    RECORD_FILE.write(folder, {**record, "files": digests, "finished": True})
    return load_run(folder)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The run in ``folder``, every file verified by its digest.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged or missing file.
    :raises ValueError: for a run that is not finished, or of a version that this one does not read.
    """
    folder = Path(folder)
    record = RECORD_FILE.read(folder)
    if not record["finished"]:
        remedy = "run the same training again to continue it"
        raise ValueError(
            f"expected a finished run, got one that was interrupted in {folder}; {remedy}."
        )
    payloads = {
        name: _read_verified(folder / name, digest) for name, digest in record["files"].items()
    }
    with seeded_float32(
        0
    ):  # the initial state, which is overwritten, costs no draw of the caller's
        net = build_network(record["architecture"])
    net.load_state_dict(safetensors.torch.load(payloads[NETWORK]))
    posterior = load_posterior(folder / POSTERIOR)
    return Run(folder, config_of(record), net.eval(), posterior, record)


def environment() -> dict[str, Any]:
    """Versions of this package and what it rests on, its kernels, and how many threads torch uses.

    >>> sorted(environment())
    ['bayesbin', 'kernels', 'numpy', 'platform', 'pyro-ppl', 'python', 'safetensors', 'threads', 'torch']
    """
    packages = ("numpy", "pyro-ppl", "safetensors", "torch")
    return {
        "bayesbin": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "kernels": kernel_isa(),
        "threads": torch.get_num_threads(),
    }


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    return to_binary_(mlp(**architecture))


def config_of(record: Mapping[str, Any]) -> RunConfig:
    known = {field.name for field in fields(RunConfig)}
    return RunConfig(**{name: value for name, value in record["config"].items() if name in known})


def _read_verified(path: Path, digest: str) -> bytes:
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptFileError(
            path, "it is missing from the run; restore it from a copy."
        ) from error
    if sha256(payload) != digest:
        raise CorruptFileError(
            path, "it does not match the digest in the run; restore it from a copy."
        )
    return payload
