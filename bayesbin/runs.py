"""A run directory: what training leaves behind, and all that evaluation needs beside the data.

``run.json`` says what was trained, how and with what outcome; ``posterior.safetensors`` holds the
posterior, ``network.safetensors`` the network's real parameters and buffers, ``checkpoints/`` what an
interrupted training continues from.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from bayesbin import __version__, data
from bayesbin._files import CorruptFileError, sha256, write_atomically
from bayesbin.diagnostics import evaluate
from bayesbin.estimators import Concrete, Estimator, LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import Classifier, mlp, recalibrate, to_binary_
from bayesbin.optim import BayesianLearningRule
from bayesbin.posterior import BinaryPosterior

FORMAT, VERSION = "bayesbin run", 1
RECORD, POSTERIOR, NETWORK = "run.json", "posterior.safetensors", "network.safetensors"
CHECKPOINTS = "checkpoints"

GUIDES = {"mean-field": AutoSignBernoulli}
ESTIMATORS = ("local-reparameterization", "straight-through", "concrete")
# Default learning rates. Those of the rule and of SGD are divided by the number of training data, for
# the loss is a sum over these; Adam's steps do not grow with it.
LEARNING_RATES = {"bayesian-learning-rule": 2000.0, "adam": 0.1, "sgd": 2000.0}
# Default passes over the data, 20 where not named: small sets need more to take as many steps.
EPOCHS = {"digits": 60, "two-moons": 300}
_ADAM_LR = 1e-2  # of biases, normalisation and output scale
_CALIBRATION_DATA = 5000


@dataclass(frozen=True)
class RunConfig:
    """What to train, and how: one binary multilayer perceptron on one of ``bayesbin.data.NAMES``.

    :param lr: learning rate of the natural parameters; None: that of LEARNING_RATES.
    :param width: units per hidden layer. :param depth: number of hidden layers.
    :param epochs: passes over the training data; None: that of EPOCHS, or 20.
    :param num_samples: draws per training step. :param temperature: of the Concrete estimator.
    :param momentum: of the rule and of SGD. :param init_scale: of the initial natural parameters.
    :param validation: fraction of the training data held out; the test set is left alone.
    :raises ValueError: for a name that is not known or a number out of range.

    >>> RunConfig("digits").epochs
    60
    """

    dataset: str
    guide: str = "mean-field"
    estimator: str = "local-reparameterization"
    temperature: float = 0.5
    optimizer: str = "bayesian-learning-rule"
    lr: float | None = None
    momentum: float = 0.9
    width: int = 512
    depth: int = 2
    kl_weight: float = 0.03
    epochs: int | None = None
    batch_size: int = 100
    num_samples: int = 1
    init_scale: float = 0.1
    validation: float = 0.1
    seed: int = 0
    data_seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("dataset", data.NAMES),
            ("guide", GUIDES),
            ("estimator", ESTIMATORS),
            ("optimizer", LEARNING_RATES),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}; got {value!r}.")
        # Filled in here, so that a saved configuration does not change with the defaults.
        if self.lr is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        if self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS.get(self.dataset, 20))
        for name in ("width", "depth", "epochs", "batch_size", "num_samples"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(
                    f"expected {name} to be a whole number of at least 1; got {value}."
                )
        for name in ("lr", "temperature"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"expected {name} to be a positive number; got {value}.")
        for name, value in (("kl_weight", self.kl_weight), ("init_scale", self.init_scale)):
            if not 0 <= value < math.inf:
                raise ValueError(f"expected {name} to be at least 0; got {value}.")
        for name, value in (("momentum", self.momentum), ("validation", self.validation)):
            if not 0 <= value < 1:
                raise ValueError(f"expected {name} in [0, 1); got {value}.")
        if not self.validation:
            raise ValueError("expected validation to be a positive fraction; got 0.")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: the network, its posterior, and the record of how they came about.

    :param record: ``architecture``, ``data`` (digest, sizes), ``history`` (a row per epoch),
        ``validation`` (the last scores), ``seconds`` of training, ``environment``.
    """

    folder: Path
    config: RunConfig
    net: nn.Module
    posterior: BinaryPosterior
    record: Mapping[str, Any]


def train_run(
    config: RunConfig,
    folder: str | os.PathLike[str],
    *,
    data_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Run:
    """Train what ``config`` says and save it to ``folder``; continues there if it was interrupted.

    The natural parameters get the optimizer of the configuration, everything real Adam, both with a
    cosine schedule. A run that is finished is loaded and returned.

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
            "sha256": _data_digest(splits),
            "training": len(train),
            "validation": len(validation),
            "test": len(splits.test),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).exists():
        _write_record(folder, record | {"finished": False})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = _network(record["architecture"])
        model = Classifier(net, dataset_size=len(train))
        guide = GUIDES[config.guide](model, init_scale=config.init_scale)
    optimizers = _optimizers(config, guide, model, len(train))
    assert config.epochs is not None
    result = fit(
        model,
        guide,
        data.Batches(train, config.batch_size),
        estimator=_estimator(config),
        epochs=config.epochs,
        kl_weight=config.kl_weight,
        optimizers=optimizers,
        schedulers=[CosineAnnealingLR(optimizer, config.epochs) for optimizer in optimizers],
        validation=data.Batches(validation, 1000, shuffle=False),
        # About ten times in all, and after the last epoch in any case.
        validate_every=next(
            d for d in range(max(config.epochs // 10, 1), 0, -1) if config.epochs % d == 0
        ),
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
    config = run.config
    splits = data.load(
        config.dataset, None if data_folder is None else Path(data_folder), config.data_seed
    )
    if (digest := _data_digest(splits)) != run.record["data"]["sha256"]:
        wanted = f"the {config.dataset} data that the run was trained on"
        came = f"others (SHA-256 {digest[:12]}...); name their folder"
        raise data.DataError(f"expected {wanted}, got {came}.")
    if num_samples < 1:
        raise ValueError(f"expected num_samples of at least 1; got {num_samples}.")
    train = splits.hold_out(config.validation, config.data_seed)[0].train
    statistics = recalibrate(
        run.net, run.posterior, train.x[:_CALIBRATION_DATA], num_samples=num_samples, seed=seed
    )
    x, y = splits.test.x, splits.test.y
    return evaluate(run.net, run.posterior, x, y, num_samples, seed, statistics)


def save_run(
    folder: str | os.PathLike[str],
    net: nn.Module,
    posterior: BinaryPosterior,
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
    _write_record(folder, {**record, "files": digests, "finished": True})
    return load_run(folder)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The run in ``folder``, every file verified by its digest.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged or missing file.
    :raises ValueError: for a run that is not finished, or of a version that this one does not read.
    """
    folder = Path(folder)
    record = _read_record(folder)
    if not record["finished"]:
        remedy = "run the same training again to continue it"
        raise ValueError(
            f"expected a finished run, got one that was interrupted in {folder}; {remedy}."
        )
    payloads = {
        name: _read_verified(folder / name, digest) for name, digest in record["files"].items()
    }
    net = _network(record["architecture"])
    net.load_state_dict(safetensors.torch.load(payloads[NETWORK]))
    posterior = BinaryPosterior.load(folder / POSTERIOR)
    return Run(folder, _config(record), net.eval(), posterior, record)


def environment() -> dict[str, Any]:
    """Versions of this package and what it rests on, and how many threads torch uses.

    >>> sorted(environment())
    ['bayesbin', 'numpy', 'platform', 'pyro-ppl', 'python', 'safetensors', 'threads', 'torch']
    """
    packages = ("numpy", "pyro-ppl", "safetensors", "torch")
    return {
        "bayesbin": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def _network(architecture: Mapping[str, Any]) -> nn.Module:
    return to_binary_(mlp(**architecture).float())  # whatever the ambient default


def _estimator(config: RunConfig) -> Estimator:
    if config.estimator == "concrete":
        return Concrete(config.temperature, num_samples=config.num_samples)
    if config.estimator == "straight-through":
        return StraightThrough(config.num_samples)
    return LocalReparameterization(config.num_samples)


def _optimizers(config: RunConfig, guide: Any, model: nn.Module, size: int) -> list[Optimizer]:
    natural, lr = list(guide.natural_parameters()), config.lr
    assert lr is not None
    if config.optimizer == "adam":
        first: Optimizer = Adam(natural, lr=lr)
    elif config.optimizer == "sgd":
        first = SGD(natural, lr=lr / size, momentum=config.momentum)
    else:
        first = BayesianLearningRule(natural, lr=lr / size, momentum=config.momentum)
    return [first, Adam([*model.parameters(), *guide.real_parameters()], lr=_ADAM_LR)]


def _begun(folder: Path, config: RunConfig) -> Run | None:
    """The run in ``folder`` if it is this one and finished; an error if it is another one."""
    if not (folder / RECORD).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            remedy = "name another one"
            raise ValueError(f"expected {folder} to be a new or empty folder, or a run; {remedy}.")
        return None
    record = _read_record(folder)
    saved = asdict(_config(record))
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


def _config(record: Mapping[str, Any]) -> RunConfig:
    known = {field.name for field in fields(RunConfig)}
    return RunConfig(**{name: value for name, value in record["config"].items() if name in known})


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    content = {"format": FORMAT, "version": VERSION, **record}
    content["sha256"] = sha256(_canonical(content))
    write_atomically(
        folder / RECORD, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
    )


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        remedy = "name a folder that `bayesbin train ... --out FOLDER` wrote"
        raise FileNotFoundError(f"expected a run in {folder}, but there is no {RECORD}; {remedy}.")
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptFileError(path, f"expected JSON, got other bytes ({error}).") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CorruptFileError(path, f"expected the format {FORMAT!r}, got another; not a run.")
    if record.get("version") != VERSION:
        came = f"version {record.get('version')}; read it with the bayesbin that wrote it"
        raise ValueError(f"{path}: expected version {VERSION} of a run, got {came}.")
    if record.pop("sha256", None) != sha256(_canonical(record)):
        raise CorruptFileError(
            path, "its contents do not match their digest; restore it from a copy."
        )
    return record


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()


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


def _data_digest(splits: data.Splits) -> str:
    parts: list[Tensor] = [splits.train.x, splits.train.y, splits.test.x, splits.test.y]
    return sha256("".join(sha256(part.contiguous().numpy().tobytes()) for part in parts).encode())
