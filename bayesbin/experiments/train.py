"""Train what a configuration says, and score what was trained."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayesbin import data
from bayesbin.core.files import sha256
from bayesbin.diagnostics import evaluate
from bayesbin.estimators.named import estimator_settings
from bayesbin.experiments.record import (
    RECORD,
    RECORD_FILE,
    Run,
    build_network,
    config_of,
    environment,
    load_run,
    save_run,
)
from bayesbin.experiments.settings import RunConfig
from bayesbin.guides.base import SignGuide
from bayesbin.infer import fit
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import Classifier, Statistics, recalibrate
from bayesbin.recipes import recipe

CHECKPOINTS = "checkpoints"
_CALIBRATION_DATA = 5000


def train_run(
    config: RunConfig,
    folder: str | os.PathLike[str],
    *,
    data_folder: str | os.PathLike[str] | None = None,
    progress: bool | None = False,
) -> Run:
    """Train what ``config`` says and save it to ``folder``; continues there if it was interrupted.

    The natural parameters get the optimizer of the configuration, everything real Adam, both with a
    cosine schedule; a recipe brings its own. A run that is finished is loaded and returned.

    :param data_folder: where idx files are, see :func:`bayesbin.data.data_folder`.
    :raises ValueError: if the folder holds a run of another configuration, or something else.
    :raises DataError: if the data cannot be read. :raises KeyboardInterrupt: after a checkpoint.
    """
    folder = Path(folder)
    if finished := _begun(folder, config):
        return finished
    splits = data.load(
        config.dataset, None if data_folder is None else Path(data_folder), config.data_seed
    )
    held, validation = splits.hold_out(config.validation, config.data_seed)
    train = held.train
    record: dict[str, Any] = {
        "config": asdict(config),
        "architecture": {
            "num_inputs": train.x.shape[1],
            "hidden": [config.width] * config.depth,
            "num_outputs": train.num_classes,
        },
        "data": {
            "name": train.name,
            "sha256": data_digest(splits),
            "training": len(train),
            "validation": len(validation),
            "test": len(splits.test),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).exists():
        RECORD_FILE.write(folder, record | {"finished": False})
    with seeded_float32(config.seed):
        net = build_network(record["architecture"])
        model = Classifier(net, dataset_size=len(train))
        epochs = config.epochs
        assert epochs is not None
        guide, arguments = _method(config, model)
        result = fit(
            model,
            guide,
            data.Batches(train, config.batch_size),
            **arguments,
            validation=data.Batches(validation, 1000, shuffle=False),
            # About ten times in all, and after the last epoch in any case.
            validate_every=next(d for d in range(max(epochs // 10, 1), 0, -1) if epochs % d == 0),
            checkpoint_dir=folder / CHECKPOINTS,
            seed=config.seed,
            progress=progress,
        )
    history = json.loads(result.to_json())["history"]
    scored = {
        k.removeprefix("validation_"): v for k, v in history[-1].items() if "validation_" in k
    }
    record |= {
        "history": history,
        "validation": scored,
        "seconds": sum(row["seconds"] for row in history),
        "environment": environment(),
    }
    return save_run(folder, net, guide.posterior(), record)


def evaluate_run(
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
    splits = splits_of(run, data_folder)
    if num_samples < 1:
        raise ValueError(f"expected num_samples of at least 1; got {num_samples}.")
    statistics = calibrated(run, splits, num_samples, seed)
    x, y = splits.test.x, splits.test.y
    return evaluate(run.net, run.posterior, x, y, num_samples, seed, statistics)


def splits_of(run: Run, data_folder: str | os.PathLike[str] | None) -> data.Splits:
    """The data of a run. :raises DataError: if they cannot be read or are others."""
    config = run.config
    splits = data.load(
        config.dataset, None if data_folder is None else Path(data_folder), config.data_seed
    )
    if (digest := data_digest(splits)) != run.record["data"]["sha256"]:
        wanted = f"the {config.dataset} data that the run was trained on"
        came = f"others (SHA-256 {digest[:12]}...); name their folder"
        raise data.DataError(f"expected {wanted}, got {came}.")
    return splits


def calibrated(run: Run, splits: data.Splits, num_samples: int, seed: int) -> Statistics:
    """Normalisation statistics of the mode and of the draws, from training data."""
    train = splits.hold_out(run.config.validation, run.config.data_seed)[0].train
    inputs = train.x[:_CALIBRATION_DATA]
    return recalibrate(run.net, run.posterior, inputs, num_samples=num_samples, seed=seed)


def _method(config: RunConfig, model: nn.Module) -> tuple[SignGuide, dict[str, Any]]:
    """The guide, and what ``fit`` takes beside it: of a recipe, or of the configuration's own triple."""
    assert config.epochs is not None
    if config.recipe is not None:
        parts = recipe(config.recipe, model, epochs=config.epochs)
        return parts.guide, parts.arguments()
    nested = config.guide != "mean-field"
    parts = recipe(
        "bayesbin", model, epochs=config.epochs, guide=config.guide,
        sharing=config.sharing if nested else None, estimator=config.estimator,
        temperature=config.temperature if estimator_settings(config.estimator)["temperature"] else None,
        num_samples=config.num_samples, optimizer=config.optimizer, lr=config.lr,
        momentum=None if config.optimizer == "adam" else config.momentum,
        kl_weight=config.kl_weight, init_scale=config.init_scale,
    )  # fmt: skip
    return parts.guide, parts.arguments()


def _begun(folder: Path, config: RunConfig) -> Run | None:
    """The run in ``folder`` if it is this one and finished; an error if it is another one."""
    if not (folder / RECORD).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            remedy = "name another one"
            raise ValueError(f"expected {folder} to be a new or empty folder, or a run; {remedy}.")
        return None
    record = RECORD_FILE.read(folder)
    saved = asdict(config_of(record))
    different = [
        f"{name} {saved[name]} there, {now} now"
        for name, now in asdict(config).items()
        if saved[name] != now
    ]
    if different:
        remedy = "use the same settings to continue it, or name another folder"
        raise ValueError(
            f"expected {folder} to hold a run of this configuration, but these differ: "
            f"{'; '.join(different)}. To go on, {remedy}."
        )
    return load_run(folder) if record["finished"] else None


def data_digest(splits: data.Splits) -> str:
    parts: list[Tensor] = [splits.train.x, splits.train.y, splits.test.x, splits.test.y]
    return sha256("".join(sha256(part.contiguous().numpy().tobytes()) for part in parts).encode())
