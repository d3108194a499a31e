"""Recipes side by side: the same network, data and epochs, one file per run, one table."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin import data
from bayesbin.core.files import write_atomically
from bayesbin.core.names import DATASETS
from bayesbin.core.names import RECIPES as NAMES
from bayesbin.diagnostics import evaluate, scores
from bayesbin.experiments.flips import FlipCounter
from bayesbin.experiments.record import environment
from bayesbin.experiments.settings import EPOCHS
from bayesbin.experiments.train import data_digest
from bayesbin.infer import fit
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import mlp, recalibrate
from bayesbin.predict import draw_log_probs
from bayesbin.recipes import Recipe, recipe

_CALIBRATION_DATA = 5000


@dataclass(frozen=True)
class ComparisonConfig:
    """Which recipes, on what: one multilayer perceptron on one of ``bayesbin.core.names.DATASETS``.

    :param recipes: names; "all" alone: every one. :param seeds: how many, from 0.
    :param epochs: None: those of a run on that data. :param num_samples: draws of a posterior.
    :raises ValueError: for an unknown name, or a number out of range.

    >>> len(ComparisonConfig(("all",), "digits").recipes), ComparisonConfig(("bop",), "digits").epochs
    (12, 60)
    """

    recipes: tuple[str, ...]
    dataset: str
    epochs: int | None = None
    seeds: int = 1
    width: int = 512
    depth: int = 2
    batch_size: int = 100
    num_samples: int = 32
    validation: float = 0.1
    data_seed: int = 0

    def __post_init__(self) -> None:
        chosen = NAMES if tuple(self.recipes) == ("all",) else tuple(dict.fromkeys(self.recipes))
        if unknown := [name for name in chosen if name not in NAMES]:
            raise ValueError(f"expected recipes from all, {', '.join(NAMES)}; got {unknown[0]!r}.")
        if not chosen:
            raise ValueError("expected at least one recipe, or all; got none.")
        if self.dataset not in DATASETS:
            known = ", ".join(DATASETS)
            raise ValueError(f"expected dataset to be one of {known}; got {self.dataset!r}.")
        object.__setattr__(self, "recipes", chosen)
        if self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS.get(self.dataset, 20))
        for name in ("epochs", "seeds", "width", "depth", "batch_size", "num_samples"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(
                    f"expected {name} to be a whole number of at least 1; got {value}."
                )
        if not 0 < self.validation < 1:
            raise ValueError(f"expected validation in (0, 1); got {self.validation}.")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` found. :param runs: a record per recipe and seed. :param rows: one per recipe."""

    config: ComparisonConfig
    runs: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {"config": asdict(self.config), "rows": self.rows}

    def curves(self) -> dict[str, list[list[dict[str, Any]]]]:
        """Recipe -> the histories of its seeds, for ``plots.plot_learning_curves``."""
        found: dict[str, list[list[dict[str, Any]]]] = {}
        for run in self.runs:
            found.setdefault(run["recipe"], []).append(run["history"])
        return found

    def __str__(self) -> str:
        return comparison_table(self.rows)


def compare(
    config: ComparisonConfig,
    folder: str | os.PathLike[str],
    *,
    data_folder: str | os.PathLike[str] | None = None,
    progress: bool | None = False,
) -> Comparison:
    """Train and score every recipe with every seed; runs that are in ``folder`` are not repeated.

    Validation scores while training are those of data held out; the test set is looked at once, after it.

    :raises ValueError: if ``folder`` holds a run of another configuration.
    :raises DataError: if the data cannot be read. :raises KeyboardInterrupt: after a checkpoint.
    """
    folder = Path(folder)
    splits = data.load(
        config.dataset, None if data_folder is None else Path(data_folder), config.data_seed
    )
    if splits.train.x.dim() != 2 or splits.train.num_classes is None:
        raise ValueError(
            f"expected vectors with labels for a perceptron, got {config.dataset} of shape "
            f"{tuple(splits.train.x.shape[1:])}; compare on digits or mnist, or loop over recipes in Python."
        )
    held, validation = splits.hold_out(config.validation, config.data_seed)
    common = {k: v for k, v in asdict(config).items() if k not in ("recipes", "seeds")}
    common["data_sha256"] = data_digest(splits)
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in range(config.seeds):
        for name in config.recipes:
            path = folder / f"{name}_seed{seed}.json"
            if path.is_file():
                runs.append(_finished(path, common))
                continue
            with seeded_float32(seed):
                train, hidden = held.train, [config.width] * config.depth
                net = mlp(train.x.shape[1], hidden, train.num_classes or 0)
                assert config.epochs is not None
                parts = recipe(name, net, dataset_size=len(train), epochs=config.epochs)
                record = train_and_score(
                    parts, held, validation, seed=seed, batch_size=config.batch_size,
                    num_samples=config.num_samples, progress=progress,
                    checkpoint_dir=folder / "checkpoints" / f"{name}_seed{seed}",
                )  # fmt: skip
            record |= {"configuration": common, "environment": environment()}
            write_atomically(path, json.dumps(record, indent=1).encode())
            runs.append(record)
    return Comparison(config, runs, summary_rows(runs))


def train_and_score(
    parts: Recipe,
    splits: data.Splits,
    validation: data.Dataset | None = None,
    *,
    seed: int = 0,
    batch_size: int = 100,
    num_samples: int = 32,
    checkpoint_dir: Path | None = None,
    progress: bool | None = False,
) -> dict[str, Any]:
    """Train one recipe on a classification data set; its history, test scores and costs.

    ``scores`` are those of :func:`diagnostics.evaluate`, with statistics of batch normalisation computed
    for each weight state; ``running`` those of the mode with the running statistics instead.
    """
    path = None if checkpoint_dir is None else checkpoint_dir / "flips.json"
    if checkpoint_dir is not None:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
    counter = FlipCounter(parts.guide, parts.optimizers[0], path)
    train, test = splits.train, splits.test
    _reset_peak()
    result = fit(
        parts.model, parts.guide, data.Batches(train, batch_size), seed=seed, progress=progress,
        validation=None if validation is None else data.Batches(validation, 1000, shuffle=False),
        checkpoint_dir=checkpoint_dir, callbacks=[counter.finish_epoch], **parts.arguments(),
    )  # fmt: skip
    peak = _peak_megabytes()
    net, posterior = parts.model.net, parts.guide.posterior()
    draws = 1 if parts.guide.is_point else num_samples
    statistics_ = None
    if any(isinstance(module, _BatchNorm) for module in net.modules()):
        statistics_ = recalibrate(net, posterior, train.x[:_CALIBRATION_DATA], draws, seed)
    (running,) = draw_log_probs(net, posterior, test.x, 0, seed)
    entropy = sum(float(distribution.entropy().sum()) for distribution in posterior.values())
    history = json.loads(result.to_json())["history"]
    return {
        "recipe": parts.name,
        "seed": seed,
        "settings": parts.settings,
        "history": history,
        "scores": evaluate(net, posterior, test.x, test.y, draws, seed, statistics_),
        "running": scores(running, test.y),
        "bits_per_weight": entropy / math.log(2.0) / posterior.num_weights,
        "flips": counter.rates,
        "seconds": sum(row["seconds"] for row in history),
        "peak_megabytes": peak,
        "parameters": sum(p.numel() for p in parts.guide.parameters()),
    }


def summary_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per recipe, in order of appearance: mean and standard deviation over its seeds.

    Scores are those of the mean of draws; ``draws`` are their deviations over single draws, averaged.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["recipe"], []).append(run)
    rows = []
    for name, members in groups.items():
        row: dict[str, Any] = {"recipe": name, "seeds": len(members)}
        for score in ("accuracy", "nll", "ece"):
            row[score] = _spread([run["scores"]["mean"][score] for run in members])
        row["draws"] = {
            score: statistics.mean(run["scores"]["draws"]["std"][score] for run in members)
            for score in ("accuracy", "nll", "ece")
        }
        row["num_samples"] = members[0]["scores"]["num_samples"]
        row["bits_per_weight"] = _spread([run["bits_per_weight"] for run in members])
        row["flips_per_step"] = _spread([statistics.mean(run["flips"]) for run in members])
        row["seconds"] = _spread([run["seconds"] for run in members])
        row["peak_megabytes"] = _spread([run["peak_megabytes"] for run in members])
        rows.append(row)
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown: +- over seeds, and in brackets over single draws."""
    heads = ("recipe", "accuracy %", "NLL (nats)", "ECE", "bits/weight", "flips/step", "s", "MB")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        several = row["num_samples"] > 1
        cells = [row["recipe"]]
        for score, factor, digits in (("accuracy", 100.0, 2), ("nll", 1.0, 4), ("ece", 1.0, 4)):
            cell = _text(row[score], row["seeds"], factor, digits)
            cells.append(
                cell + (f" [{factor * row['draws'][score]:.{digits}f}]" if several else "")
            )
        cells.append(f"{row['bits_per_weight']['mean']:.2f}")
        cells.append(f"{row['flips_per_step']['mean']:.1e}")
        cells.append(_text(row["seconds"], row["seeds"], 1.0, 0))
        cells.append(f"{row['peak_megabytes']['mean']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _finished(path: Path, common: Mapping[str, Any]) -> dict[str, Any]:
    record = json.loads(path.read_text())
    found = record.get("configuration", {})
    different = [
        f"{k} {found.get(k)} there, {v} now" for k, v in common.items() if found.get(k) != v
    ]
    if different:
        raise ValueError(
            f"expected {path} to be a run of this comparison, but these differ: {'; '.join(different)}. "
            "Use the same settings to continue it, or name another folder."
        )
    return record


def _spread(values: Sequence[float]) -> dict[str, float]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": std}


def _text(value: Mapping[str, float], seeds: int, factor: float, digits: int) -> str:
    text = f"{factor * value['mean']:.{digits}f}"
    return f"{text} +- {factor * value['std']:.{digits}f}" if seeds > 1 else text


def _reset_peak() -> None:
    # Linux alone can forget a peak; elsewhere it is that of the process so far.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_megabytes() -> float:
    """Peak resident memory of this process since ``_reset_peak``, torch and data included; 0: unknown."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
