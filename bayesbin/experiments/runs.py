"""A finished run of one network: loaded with every file verified, its data, its scores, its model file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor, nn

from bayesbin import data
from bayesbin.core.checks import whole_number
from bayesbin.core.files import sha256, write_atomically
from bayesbin.ensemble import Ensemble
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
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.posterior import BinaryPosterior, LowBitPosterior, load_posterior
from bayesbin.posterior.file import to_bytes
from bayesbin.runtime import reference
from bayesbin.runtime.meaning import Inputs
from bayesbin.runtime.preprocessing import scaling_program
from bayesbin.runtime.program import Program, Value

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

    def digest_of(self, name: str) -> str | None:
        """SHA-256 of a file of the run; None if it has no such file."""
        return self.record["files"].get(name)

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

    def ensemble(
        self, num_samples: int = 32, seed: int = 0, *, splits: data.Splits | None = None
    ) -> Ensemble:
        """Networks drawn from the posterior, calibrated with training data: what predicts, scores and packs.

        :param num_samples: draws; 0: the mode alone. :param seed: of the draws.
        :param splits: of :meth:`splits`; None: the data are looked for where they were.
        :raises DataError: if the data cannot be read, or are not those of the run.
        """
        num_samples = whole_number("num_samples", num_samples)
        splits = self.splits() if splits is None else splits
        model = Classifier(self.net, dataset_size=len(splits.train))
        ensemble = Ensemble(model, self.posterior, max(num_samples, 1), seed)
        ensemble.calibrate(self.calibration_data(splits), progress=False)
        return ensemble if num_samples else ensemble.mode

    def calibration_data(self, splits: data.Splits) -> Tensor:
        """The inputs that normalisation statistics are computed from: a part of the training data."""
        train = splits.hold_out(self.settings.validation, self.settings.data_seed)[0].train
        return train.x[:CALIBRATION_DATA]

    def require_one_network(self) -> None:
        """Refuse a run that does not say which of its networks predicts, in a sentence."""


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
    """Test scores of the mode, of the mean of draws and of single draws: :meth:`Ensemble.evaluate`.

    Normalisation statistics of each draw are computed from training data first.

    :raises ValueError: for fewer than 1 draw. :raises DataError: if the data cannot be read or are not
        those of the run.
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    splits = run.splits(data_folder)
    return run.ensemble(num_samples, seed, splits=splits).evaluate(splits.test.x, splits.test.y)


def predict_run(
    run: Run,
    inputs: np.ndarray,
    *,
    preprocess: bool | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    num_samples: int = 32,
    seed: int = 0,
) -> Any:
    """Predict inputs of the user's own with a run: what its packed file predicts, in torch where it cannot
    be packed.

    :param inputs: (B, features) or (B, ...) with as many numbers each, in the order of the run's data.
    :param preprocess: whether they are raw, as the data's source has them. None: whole numbers are.
    :param num_samples: draws; 0: the mode.
    :returns: a ``ClassPrediction`` of arrays.
    :raises ValueError: for inputs of another size, NaN or infinity, or ``preprocess=True`` where the data
        had no preprocessing. :raises DataError: if the data cannot be read or are not those of the run.
    """
    run.require_one_network()
    splits = run.splits(data_folder)
    before = _preprocessing(splits)
    expected: Any = SimpleNamespace(inputs={"x": Value(_shape(splits), "f4")})
    arrays, raw = Inputs(expected, before).read(inputs, preprocess)
    if raw and before is not None:
        arrays = [found[0] for found in reference.run(before, arrays, [0])]
    return run.ensemble(num_samples, seed, splits=splits).predict(arrays[0])


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
    """Write a run's draws, or its posterior, to a file for :func:`bayesbin.load`.

    Normalisation statistics of each draw are computed from training data first, as for
    :func:`bayesbin.experiments.evaluate_run`. The file says what its pixels are put through, and where it
    came from: the data set, the digests of data, network and posterior, the seed, and the name of the run's
    folder.

    :param num_samples: draws; 0: the mode alone.
    :param contents: "draws" or "posterior", as for :meth:`bayesbin.runtime.predictor.Predictor.save`.
    :param precision: "exact" or "fast", as for :meth:`bayesbin.Ensemble.compile`.
    :returns: the path.
    :raises bayesbin.compile.refusal.NotCompiled: (a ValueError) for a network that cannot be packed.
    :raises DataError: if the data cannot be read or are not those of the run.
    :raises OSError: if the file cannot be written.
    """
    run.require_one_network()
    splits = run.splits(data_folder)
    ensemble = run.ensemble(num_samples, seed, splits=splits)
    predictor = ensemble.compile(precision, input_shape=_shape(splits))
    return predictor.save(
        path,
        contents,
        labels=run.labels,
        preprocessing=_preprocessing(splits),
        provenance={
            "data set": run.settings.dataset,
            "data sha256": run.record["data"]["sha256"],
            "network sha256": run.digest_of(NETWORK),
            "posterior sha256": run.digest_of(POSTERIOR),
            "run": run.name,
            "seed": seed,
        },
    )


def _shape(splits: data.Splits) -> tuple[int, ...]:
    """The shape of one input."""
    return tuple(splits.train.x.shape[1:])


def _preprocessing(splits: data.Splits) -> Program | None:
    """What raw inputs are put through, as a program; None where the data have no preprocessing."""
    known = splits.preprocessing
    return None if known is None else scaling_program(known, _shape(splits))
