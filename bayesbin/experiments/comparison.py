"""Recipes side by side: the same network, data and epochs; a folder of runs, and a table."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesbin import data
from bayesbin.core.files import write_atomically
from bayesbin.ensemble import Ensemble
from bayesbin.experiments.record import (
    RECORD,
    existing_record,
    read_record,
    require_kind,
    require_same,
    write_record,
    writing,
)
from bayesbin.experiments.runs import CALIBRATION_DATA, Run, load_run, load_splits
from bayesbin.experiments.settings import ComparisonSettings, RunSettings
from bayesbin.experiments.train import Watcher, beginning, train_on
from bayesbin.infer import EpochReport, fit
from bayesbin.recipes import Recipe

TABLE, FIGURE = "comparison.md", "learning_curves.png"
FLIPS_EVERY = 10  # steps; one of these is compared with the step before it


@dataclass(frozen=True, eq=False)
class Comparison:
    """A finished comparison: a folder of runs, and a table of them.

    :param record: ``settings``, ``recipes``, ``runs`` (their names; each is a folder with a run of its own),
        ``rows`` of the table, ``data``, ``environment``.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return list(self.record["runs"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table, one per recipe: see :func:`summary_rows`."""
        return self.record["rows"]

    def run(self, name: str | None = None) -> Run:
        """One of the runs. :param name: None: the one with the lowest validation NLL, :attr:`best`.

        :raises ValueError: if there is none of that name.
        """
        chosen = self.best if name is None else name
        if chosen not in self.names:
            raise ValueError(
                f"expected the name of a run in {self.folder}, one of {', '.join(self.names)}; got {name!r}."
            )
        return load_run(self.folder / chosen)

    @property
    def best(self) -> str:
        """The name of the run with the lowest negative log-likelihood on the validation data."""
        found = {name: self._validation(name) for name in self.names}
        return min(found, key=lambda name: (math.isnan(found[name]), found[name]))

    def _validation(self, name: str) -> float:
        return read_record(self.folder / name)["validation"]["nll"]

    def curves(self) -> dict[str, list[list[dict[str, Any]]]]:
        """Recipe -> the histories of its seeds, for ``plots.plot_learning_curves``."""
        found: dict[str, list[list[dict[str, Any]]]] = {}
        for name in self.names:
            record = read_record(self.folder / name)
            found.setdefault(record["recipe"]["name"], []).append(record["history"])
        return found

    def to_dict(self) -> dict[str, Any]:
        """The record, and the folder."""
        return {"folder": str(self.folder), **self.record, "best": self.best}

    def __str__(self) -> str:
        return comparison_table(self.rows)


def compare(
    settings: ComparisonSettings,
    folder: str | os.PathLike[str],
    *,
    progress: bool | None = False,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Train and score every recipe with every seed; runs that are in ``folder`` are not repeated.

    ``folder`` gets a folder for each run, which is a run as :func:`train_run` makes it, with test scores in
    its record; a record of its own with the table of all runs in it; the table in Markdown, and the
    learning curves. Recipes and seeds can be added later. Validation scores while training are those of
    data held out; the test set is looked at once, after it.

    :param device: that is trained on.
    :raises ValueError: if ``folder`` holds another kind of run, or a comparison of other settings or data.
    :raises FolderInUseError: if another process is writing to it. :raises DataError: if the data cannot be
        read. :raises KeyboardInterrupt: after a checkpoint.
    """
    return compare_runs(
        settings.runs(),
        folder,
        num_samples=settings.num_samples,
        progress=progress,
        device=device,
    )


def compare_runs(
    runs: Mapping[str, RunSettings],
    folder: str | os.PathLike[str],
    *,
    num_samples: int = 32,
    progress: bool | None = False,
    device: torch.device | str = "cpu",
) -> Comparison:
    """:func:`compare` for runs by name, which share data, network, epochs and batch size."""
    folder, first = Path(folder), next(iter(runs.values()))
    splits = load_splits(first)
    begun = beginning(first, splits)
    common = {name: value for name, value in begun["settings"].items() if name != "seed"}
    record = {
        "kind": "comparison",
        "settings": {**common, "num_samples": num_samples},
        **{name: begun[name] for name in ("architecture", "data", "environment")},
    }
    existing = existing_record(folder, "comparison")
    if existing is not None:
        require_same(folder, existing, record)
    with writing(folder, "comparison") as found:
        done: list[str] = []
        if found is None:
            write_record(folder, record | {"runs": done, "rows": [], "finished": False})
        else:
            require_same(folder, found, record)
            record["environment"], done = found["environment"], found["runs"]
        for name, settings in runs.items():
            _require_ours(folder / name)
            train_on(
                settings, folder / name, splits, progress=progress, device=device,
                watch=lambda parts, place: Measurement(parts, place, num_samples),
            )  # fmt: skip
        record["runs"] = list(dict.fromkeys([*done, *runs]))
        members = [read_record(folder / name) for name in record["runs"]]
        members = [member | {"recipe": member["recipe"]["name"]} for member in members]
        record |= {"rows": summary_rows(members), "finished": True}
        _draw(Comparison(folder, record))
        write_record(folder, record)
    return load_comparison(folder)


def load_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """The comparison in ``folder``, read from its record.

    :raises FileNotFoundError: if there is none. :raises CorruptFileError: for a damaged record.
    :raises ValueError: for another kind of run, or one that is not finished.
    """
    folder = Path(folder)
    record = read_record(folder)
    require_kind(folder, record, "comparison")
    return Comparison(folder, record)


def _require_ours(folder: Path) -> None:
    """Refuse a run that was trained without being scored: the table would have a gap."""
    found = existing_record(folder, "network") if (folder / RECORD).is_file() else None
    if found is not None and found["finished"] and "scores" not in found:
        raise ValueError(
            f"expected {folder} to be a run of this comparison, got one of `bayesbin train`, without scores "
            "on the test set; move it away."
        )


def _draw(comparison: Comparison) -> None:
    """The table in Markdown, and the learning curves."""
    from bayesbin import plots

    write_atomically(comparison.folder / TABLE, f"{comparison}\n".encode())
    figure = plots.plot_learning_curves(comparison.curves())
    plots.save_figure(figure, comparison.folder / FIGURE)


# Measuring


class Measurement(Watcher):
    """What a comparison records of a training: test scores, flips of weights, time and memory.

    ``scores`` are those of :meth:`Ensemble.evaluate`, with statistics of batch normalisation computed for
    each draw; ``running`` those of the mode with the running statistics instead; ``flips`` the
    fraction of the guide's likeliest weights that a step changes, a mean for each epoch over one step in ten.

    :param parts: the recipe, before training. :param folder: of the checkpoints: there the rates of flips
        survive an interruption. None: nowhere. :param num_samples: draws to score a posterior with, of
        ``seed``.
    """

    def __init__(self, parts: Recipe, folder: Path | None, num_samples: int, seed: int = 0) -> None:
        self.parts, self.num_samples, self.seed = parts, num_samples, seed
        self.path = None if folder is None else folder / "flips.json"
        self.rates: list[float] = []
        if self.path is not None and self.path.is_file():
            self.rates = json.loads(self.path.read_bytes())
        self._step = self._flips = self._weights = 0
        self._before: list[Tensor] = []
        # The first optimizer is the one that moves the weights.
        parts.optimizers[0].register_step_pre_hook(lambda *_: self._remember())
        parts.optimizers[0].register_step_post_hook(lambda *_: self._count())
        _reset_peak()

    def finish_epoch(self, report: EpochReport) -> None:
        """Keep the rate of the epoch that has ended."""
        rate = self._flips / max(1, self._weights)
        self.rates[report.epoch - 1 :] = [rate]
        self._step = self._flips = self._weights = 0
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self.rates).encode())

    def entries(self, splits: data.Splits) -> dict[str, Any]:
        """The measurements, by name."""
        peak = _peak_megabytes()
        parts, test = self.parts, splits.test
        posterior = parts.guide.posterior()
        draws = 1 if getattr(parts.guide, "is_point", False) else self.num_samples
        ensemble = Ensemble(parts.model, posterior, draws, self.seed)
        # As a point estimate is usually scored: by the statistics that training kept.
        running = ensemble.mode.calibrate(None).evaluate(test.x, test.y)["mode"]
        ensemble.calibrate(splits.train.x[:CALIBRATION_DATA], progress=False)
        entropy = sum(float(distribution.entropy().sum()) for distribution in posterior.values())
        return {
            "scores": ensemble.evaluate(test.x, test.y),
            "running": running,
            "bits_per_weight": entropy / math.log(2.0) / posterior.num_weights,
            "flips": self.rates,
            "peak_megabytes": peak,
            "parameters": sum(p.numel() for p in parts.guide.parameters()),
        }

    def _likeliest(self) -> list[Tensor]:
        """The likeliest sign or level of each weight, site by site."""
        return [distribution.mode for distribution in self.parts.guide.posterior().values()]

    def _remember(self) -> None:
        if self._step % FLIPS_EVERY == 0:
            self._before = self._likeliest()

    def _count(self) -> None:
        if self._step % FLIPS_EVERY == 0:
            pairs = zip(self._before, self._likeliest(), strict=True)
            self._flips += sum(int((old != new).sum()) for old, new in pairs)
            self._weights += sum(old.numel() for old in self._before)
            self._before = []
        self._step += 1


def train_and_score(
    parts: Recipe,
    splits: data.Splits,
    *,
    seed: int = 0,
    batch_size: int = 100,
    num_samples: int = 32,
    checkpoint_dir: Path | None = None,
    progress: bool | None = False,
) -> dict[str, Any]:
    """Train one recipe on a classification data set; its history, test scores and costs.

    The scores and costs are those of :class:`Measurement`.
    """
    measurement = Measurement(parts, checkpoint_dir, num_samples, seed)
    result = fit(
        parts.model, parts.guide, data.Batches(splits.train, batch_size), seed=seed, progress=progress,
        checkpoint_dir=checkpoint_dir, callbacks=[measurement.finish_epoch], **parts.arguments(),
    )  # fmt: skip
    history = json.loads(result.to_json())["history"]
    return {
        "recipe": parts.name,
        "seed": seed,
        "settings": dict(parts.settings),
        "history": history,
        "seconds": sum(row["seconds"] for row in history),
        **measurement.entries(splits),
    }


def summary_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per recipe, in order of appearance: mean and standard deviation over its seeds.

    Scores are those of the mean of draws; ``draws`` are their deviations over single draws, averaged.

    :param runs: what :func:`train_and_score` returned, or records with the name of the recipe in its place.
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
