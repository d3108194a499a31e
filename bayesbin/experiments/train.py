"""Train one network as its settings say; continue, lengthen and rebuild a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bayesbin import data
from bayesbin.experiments.machine import environment
from bayesbin.experiments.record import (
    CHECKPOINTS,
    data_record,
    existing_record,
    require_same,
    write_record,
    writing,
)
from bayesbin.experiments.runs import (
    Run,
    build_network,
    load_run,
    load_splits,
    save_run,
)
from bayesbin.experiments.settings import RunSettings
from bayesbin.infer import EpochReport, fit
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import Classifier
from bayesbin.recipes import Recipe, recipe

# Told of each epoch of a training; gives what it adds to the record in the end.
Watch = Callable[[Recipe, Path], "Watcher"]


class Watcher:
    """Measures a training for the record; see :class:`bayesbin.experiments.comparison.Measurement`."""

    def finish_epoch(self, report: EpochReport) -> None:
        """Told of each epoch."""

    def entries(self, splits: data.Splits) -> dict[str, Any]:
        """What the record gets, when training has ended."""
        return {}


def train_run(
    settings: RunSettings,
    folder: str | os.PathLike[str],
    *,
    progress: bool | None = False,
    device: torch.device | str = "cpu",
) -> Run:
    """Train what the settings say and save it to ``folder``; continues there if it was interrupted.

    A run that is finished is loaded and returned. With more epochs than before it is lengthened, where the
    longer run begins as the shorter one: where no schedule depends on the number of epochs. The finished
    run stays as it is until the longer one is.

    One process at a time writes to a folder. Whenever the process is killed, the same call continues, to
    the same posterior.

    :param device: that is trained on. What is saved is on the CPU, and may be continued on another device.
    :raises ValueError: if the folder holds a run of other settings or other data, with what differs, or
        something else; for fewer epochs than before, or more where they cannot be added.
    :raises FolderInUseError: if another process is writing to the folder, with who it is.
    :raises DataError: if the data cannot be read. :raises KeyboardInterrupt: after a checkpoint.
    :raises OSError: if the folder cannot be written to.
    """
    return train_on(settings, folder, load_splits(settings), progress=progress, device=device)


def train_on(
    settings: RunSettings,
    folder: str | os.PathLike[str],
    splits: data.Splits,
    *,
    watch: Watch | None = None,
    progress: bool | None = False,
    device: torch.device | str = "cpu",
) -> Run:
    """:func:`train_run` on data that are loaded; ``watch`` measures the training for the record."""
    folder = Path(folder)
    begun = beginning(settings, splits)
    found = existing_record(folder, "network")
    if found is not None and _is_done(folder, found, begun):
        return load_run(folder)
    with writing(folder, "network") as found:
        if found is not None and _is_done(folder, found, begun):  # by another process, just now
            return load_run(folder)
        if found is None:
            write_record(folder, begun | {"finished": False})
        else:
            # The machine that a run was begun on stays in its record.
            begun["environment"] = found["environment"]
            _lengthen(folder, settings, found, begun)
        return _train(settings, folder, splits, begun, watch, progress, device)


def beginning(settings: RunSettings, splits: data.Splits) -> dict[str, Any]:
    """The record of a run that has just begun."""
    held, validation = splits.hold_out(settings.validation, settings.data_seed)
    train = held.train
    if train.x.dim() != 2 or train.num_classes is None:
        raise ValueError(
            f"expected vectors with labels for a perceptron, got {settings.dataset} of shape "
            f"{tuple(train.x.shape[1:])}; use digits or mnist, or bayesbin.fit with a network of your own."
        )
    sizes = {"training": len(train), "validation": len(validation), "test": len(splits.test)}
    return {
        "kind": "network",
        "settings": settings.to_dict(),
        "recipe": {
            "name": settings.recipe,
            "settings": dict(settings.recipe_settings),
            "given": list(settings.given or ()),
        },
        "architecture": {
            "num_inputs": train.x.shape[1],
            "hidden": [settings.width] * settings.depth,
            "num_outputs": train.num_classes,
        },
        "data": data_record(splits, settings.data_folder, **sizes),
        "environment": environment(),
    }


def _is_done(folder: Path, found: Mapping[str, Any], begun: Mapping[str, Any]) -> bool:
    """Whether the run in the folder is this one and finished; an error if it is another one."""
    there, here = (
        {**record, "settings": {k: v for k, v in record["settings"].items() if k != "epochs"}}
        for record in (found, begun)
    )
    require_same(folder, there, here)
    before, now = found["settings"]["epochs"], begun["settings"]["epochs"]
    if found["finished"] and now == before:
        return True
    least = max(before, found.get("lengthened_to", 0))
    if now < least:
        raise ValueError(
            f"expected at least {least} epochs, those of the run in {folder}; got {now}. A run cannot be "
            "shortened: train one of fewer epochs in another folder."
        )
    return False


def _train(
    settings: RunSettings,
    folder: Path,
    splits: data.Splits,
    record: dict[str, Any],
    watch: Watch | None,
    progress: bool | None,
    device: torch.device | str,
) -> Run:
    held, validation = splits.hold_out(settings.validation, settings.data_seed)
    epochs = settings.epochs
    assert epochs is not None
    with seeded_float32(settings.seed):
        net, parts = _assembled(settings, record["architecture"], len(held.train), epochs, device)
        watcher = Watcher() if watch is None else watch(parts, folder / CHECKPOINTS)
        result = fit(
            parts.model,
            parts.guide,
            data.Batches(held.train, settings.batch_size),
            **parts.arguments(),
            validation=data.Batches(validation, 1000, shuffle=False),
            # About ten times in all, and after the last epoch in any case.
            validate_every=next(d for d in range(max(epochs // 10, 1), 0, -1) if epochs % d == 0),
            checkpoint_dir=folder / CHECKPOINTS,
            callbacks=[watcher.finish_epoch],
            seed=settings.seed,
            progress=progress,
        )
        last = result.history[-1]
        record |= {
            "history": result.history,
            "validation": {
                name.removeprefix("validation_"): value
                for name, value in last.items()
                if name.startswith("validation_")
            },
            "seconds": sum(row["seconds"] for row in result.history),
            **watcher.entries(held),
        }
        record["recipe"] |= {"source": parts.source, "note": parts.note}
    return save_run(folder, net.cpu(), parts.guide.cpu().posterior(), record)


def _assembled(
    settings: RunSettings,
    architecture: Mapping[str, Any],
    size: int,
    epochs: int,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Recipe]:
    """The network in its initial state, and the recipe made for it."""
    net = build_network(architecture).to(device)
    model = Classifier(net, dataset_size=size)
    return net, recipe(settings.recipe, model, epochs=epochs, **settings.recipe_settings)


# Lengthening


def _lengthen(
    folder: Path, settings: RunSettings, found: Mapping[str, Any], begun: Mapping[str, Any]
) -> None:
    """Note that a run gets more epochs than it was begun with; where the longer run would have begun
    otherwise, refuse them."""
    before, now = found["settings"]["epochs"], settings.epochs
    assert now is not None
    if before == now:
        return
    _require_same_schedule(folder, settings, found, before, now)
    # A finished run stays what it is until the longer one is finished as well. From here on there may be
    # checkpoints of later epochs, so that neither can be continued with fewer.
    noted = {**found, "lengthened_to": now} if found["finished"] else {**begun, "finished": False}
    write_record(folder, noted)


def _require_same_schedule(
    folder: Path, settings: RunSettings, found: Mapping[str, Any], before: int, now: int
) -> None:
    """Refuse to lengthen a run whose longer version would have begun otherwise."""
    size = found["data"]["training"]
    for epoch, (short, long) in enumerate(
        zip(*(_schedule(settings, found["architecture"], size, n, before) for n in (before, now)),
            strict=True)
    ):  # fmt: skip
        if changed := [name for name in short if short[name] != long[name]]:
            name = changed[0]
            raise ValueError(
                f"expected {before} epochs, for which the run in {folder} was begun; got {now}. In the "
                f"recipe {settings.recipe!r} {name} depends on their number: in epoch {epoch + 1} it is "
                f"{short[name]:.6g} of {before} epochs, and {long[name]:.6g} of {now}. The longer run is "
                "another one; train it from its beginning in another folder. Where more epochs may be wanted "
                "later, begin with --set schedule=constant."
            )


def _schedule(
    settings: RunSettings, architecture: Mapping[str, Any], size: int, epochs: int, count: int
) -> list[dict[str, float]]:
    """Every number that a recipe's schedules move, in each of the first ``count`` epochs of ``epochs``."""
    with seeded_float32(settings.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers are stepped without their optimizers
        _, parts = _assembled(settings, architecture, size, epochs)
        rows = [_numbers(parts)]
        for _ in range(count - 1):
            for schedule in parts.schedules:
                schedule.step()
            rows.append(_numbers(parts))
    return rows


def _numbers(parts: Recipe) -> dict[str, float]:
    owners = [getattr(schedule, "owner", None) for schedule in parts.schedules]
    tables = [
        ("", vars(owner))
        for owner in owners
        if owner is not None and not isinstance(owner, Optimizer)
    ]
    tables += [
        (f" of {type(o).__name__}", group) for o in parts.optimizers for group in o.param_groups
    ]
    return {
        f"{name}{where}": value
        for where, table in tables
        for name, value in table.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
