"""A finished run of one network: loaded with every file verified, its data, its scores, its model file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from bayesbin import data
from bayesbin.core.checks import whole_number
from bayesbin.core.files import sha256, write_atomically
from bayesbin.diagnostics import evaluate
from bayesbin.experiments.record import (
    NETWORK,
    POSTERIOR,
    data_record,
    read_record,
    read_verified,
    require_kind,
    write_record,
)
from bayesbin.experiments.settings import RunSettings
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import Statistics, mlp, recalibrate, to_binary_
from bayesbin.posterior import BinaryPosterior, LowBitPosterior, load_posterior
from bayesbin.posterior.file import to_bytes
from bayesbin.predict import Prediction, pack, predict

CALIBRATION_DATA = 5000


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run of one network: the network, its posterior, and the record of how they came about.

    :param record: ``settings``, ``recipe`` (name, settings, which of them were given), ``architecture``,
        ``data`` (name, folder, digest, sizes), ``history`` (a row per epoch), ``validation`` (the last
        scores), ``seconds`` of training, ``environment``, ``files`` (their digests).
    """

    folder: Path
    settings: Any
    net: nn.Module
    posterior: BinaryPosterior | LowBitPosterior
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What a reader would call it: its folder's name."""
        return self.folder.resolve().name

    @property
    def posterior_digest(self) -> str:
        """SHA-256 of the posterior's file."""
        return self.record["files"][POSTERIOR]

    @property
    def labels(self) -> list[str]:
        """What the outputs of the network stand for."""
        return [str(k) for k in range(self.record["architecture"]["num_outputs"])]

    def splits(self, data_folder: str | os.PathLike[str] | None = None) -> data.Splits:
        """The data of the run.

        :param data_folder: where they are now; None: where they were.
        :raises DataError: if they cannot be read, or are not those of the run.
        """
        return verified_splits(self.settings, self.record, data_folder)

    def statistics(self, splits: data.Splits, num_samples: int, seed: int) -> Statistics | None:
        """Normalisation statistics of the mode and of the draws, from training data."""
        train = splits.hold_out(self.settings.validation, self.settings.data_seed)[0].train
        inputs = train.x[:CALIBRATION_DATA]
        return recalibrate(self.net, self.posterior, inputs, num_samples=num_samples, seed=seed)

    def require_use(self, verb: str) -> None:
        """Refuse what a verb, "pack" or "predict", cannot do with this run, in a sentence."""
        if verb == "pack" and not isinstance(self.posterior, BinaryPosterior):
            kind = getattr(self.posterior, "kind", "real")
            raise ValueError(
                f"expected a run with signs, got {kind} weights in {self.folder}; a packed file holds one "
                "bit for each. Use `bayesbin predict` with the run itself, which draws in torch."
            )


# On disk


def save_run(
    folder: str | os.PathLike[str],
    net: nn.Module,
    posterior: BinaryPosterior | LowBitPosterior,
    record: Mapping[str, Any],
) -> Run:
    """Write a finished run. The record says so last; until then it says that the run is not finished.

    :raises OSError: if it cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, {**record, "finished": False})
    posterior.save(folder / POSTERIOR)
    write_atomically(folder / NETWORK, to_bytes(net.state_dict()))
    digests = {name: sha256((folder / name).read_bytes()) for name in (POSTERIOR, NETWORK)}
    write_record(folder, {**record, "files": digests, "finished": True})
    return load_run(folder)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The run of one network in ``folder``, every file verified by its digest.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged or missing file.
    :raises ValueError: for another kind of run, one that is not finished, or one of a version that this one
        does not read.
    """
    folder = Path(folder)
    record = read_record(folder)
    require_kind(folder, record, "network")
    payloads = {
        name: read_verified(folder / name, digest) for name, digest in record["files"].items()
    }
    # The initial state, which is overwritten, costs no draw of the caller's.
    with seeded_float32(0):
        net = build_network(record["architecture"])
    net.load_state_dict(safetensors.torch.load(payloads[NETWORK]))
    posterior = load_posterior(folder / POSTERIOR)
    return Run(folder, settings_from(record), net.eval(), posterior, record)


def settings_from(record: Mapping[str, Any]) -> RunSettings:
    """The settings of a run of one network, complete, from its record."""
    recipe = record["recipe"]
    return RunSettings(
        **record["settings"],
        recipe=recipe["name"],
        recipe_settings=recipe["settings"],
        given=tuple(recipe["given"]),
        data_folder=record["data"]["folder"],
    )


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """The network of a record's entry ``architecture``, in the initial state of torch's generator."""
    return to_binary_(mlp(**architecture))


# Data


def load_splits(settings: Any) -> data.Splits:
    """The data set that settings name. :raises DataError: if it cannot be read."""
    folder = None if settings.data_folder is None else Path(settings.data_folder)
    return data.load(settings.dataset, folder, getattr(settings, "data_seed", 0))


def verified_splits(
    settings: Any, record: Mapping[str, Any], data_folder: str | os.PathLike[str] | None
) -> data.Splits:
    """The data of a run, from a folder that is named, the one in the record, or the environment's.

    :raises DataError: if they cannot be read, or are not those that the run was trained on.
    """
    kept = record["data"]["folder"]
    if data_folder is not None:
        folder: Path | None = Path(data_folder)
    else:
        folder = Path(kept) if kept is not None and Path(kept).is_dir() else None
    splits = data.load(settings.dataset, folder, getattr(settings, "data_seed", 0))
    digest = data_record(splits, None)["sha256"]
    if digest != record["data"]["sha256"]:
        wanted = f"the {settings.dataset} data that the run was trained on"
        came = f"others (SHA-256 {digest[:12]}...); name their folder"
        raise data.DataError(f"expected {wanted}, got {came}.")
    return splits


# What a run is for


def evaluate_network(
    run: Run,
    *,
    data_folder: str | os.PathLike[str] | None = None,
    num_samples: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Test scores of the mode, of the mean of draws and of single draws: :func:`diagnostics.evaluate`.

    Normalisation statistics of each weight state are computed from training data first.

    :raises ValueError: for fewer than 1 draw. :raises DataError: if the data cannot be read or are not
        those of the run.
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    splits = run.splits(data_folder)
    statistics = run.statistics(splits, num_samples, seed)
    x, y = splits.test.x, splits.test.y
    return evaluate(run.net, run.posterior, x, y, num_samples, seed, statistics)


def predict_run(
    run: Run,
    inputs: np.ndarray,
    *,
    preprocess: bool | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    num_samples: int = 32,
    seed: int = 0,
) -> Prediction:
    """Predict inputs of the user's own with a run: what its packed file would predict, but in torch.

    :param inputs: (B, features) or (B, ...) with as many numbers each, in the order of the run's data.
    :param preprocess: whether they are raw, as the data's source has them. None: whole numbers are.
    :param num_samples: draws; 0: the mode.
    :raises ValueError: for inputs of another size, NaN or infinity, or ``preprocess=True`` where the data
        had no preprocessing. :raises DataError: if the data cannot be read or are not those of the run.
    """
    num_samples = whole_number("num_samples", num_samples)
    run.require_use("predict")
    splits = run.splits(data_folder)
    x = _rows(inputs, splits, preprocess)
    statistics = run.statistics(splits, max(num_samples, 1), seed)
    return predict(run.net, run.posterior, x, num_samples, seed, statistics)


def pack_run(
    run: Run,
    path: str | os.PathLike[str],
    *,
    num_samples: int = 32,
    seed: int = 0,
    contents: str = "draws",
    precision: str = "exact",
    data_folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a run's draws, or its posterior, to a file for :func:`bayesbin.predict.load`.

    Normalisation statistics of each draw are computed from training data first, as for
    :func:`bayesbin.experiments.evaluate_run`. The file says what its pixels were put through, and where it
    came from: the data set, the digests of data and posterior, and the name of the run's folder.

    :param contents: "draws" or "posterior", as for :func:`bayesbin.predict.pack`.
    :returns: the path.
    :raises ValueError: for weights that are not signs, a network that cannot be packed, and as
        :func:`bayesbin.predict.pack`. :raises DataError: if the data cannot be read or are not those of the
        run. :raises OSError: if the file cannot be written.
    """
    num_samples = whole_number("num_samples", num_samples)
    run.require_use("pack")
    assert isinstance(run.posterior, BinaryPosterior)
    splits = run.splits(data_folder)
    train = splits.train
    return pack(
        run.net,
        run.posterior,
        path,
        num_samples,
        seed,
        statistics=run.statistics(splits, num_samples, seed),
        contents=contents,
        precision=precision,
        input_shape=tuple(train.x.shape[1:]),
        labels=run.labels,
        preprocessing=splits.preprocessing,
        provenance={
            "data set": run.settings.dataset,
            "data sha256": run.record["data"]["sha256"],
            "posterior sha256": run.posterior_digest,
            "run": run.name,
        },
    )


def _rows(inputs: np.ndarray, splits: data.Splits, preprocess: bool | None) -> Tensor:
    """Inputs as the network takes them, in float32."""
    wanted, size = splits.train.x.shape[1:], splits.train.x[0].numel()
    if inputs.dtype.kind not in "fiub" or inputs.ndim < 2 or not len(inputs):
        raise ValueError(
            f"expected numbers of shape (B, {size}), got {inputs.dtype} of shape {inputs.shape}; reshape "
            "or convert them."
        )
    if inputs[0].size != size:
        raise ValueError(
            f"expected inputs of {size} numbers each, as the network takes them, got {inputs[0].size}; "
            "bring them to that size."
        )
    raw = inputs.dtype.kind in "iu" if preprocess is None else preprocess
    constants = splits.preprocessing
    if preprocess and constants is None:
        raise ValueError(
            "The data of this run have no preprocessing; pass inputs as it was trained on them."
        )
    x = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).reshape(-1, size)
    if raw and constants is not None:
        # Of a channel's constant each of its pixels has a copy.
        divisor, mean, std = (
            torch.as_tensor(c, dtype=torch.float32)
            .reshape(-1)
            .repeat_interleave(size // np.size(c))
            for c in constants
        )
        x = (x / divisor - mean) / std
    if not bool(x.isfinite().all()):
        raise ValueError(
            "The inputs contain NaN, infinity or numbers beyond float32; clean or impute them first."
        )
    return x.reshape(-1, *wanted)
