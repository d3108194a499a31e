"""What was trained, on what, with what: the rows of a run's record that a reader asks for."""

from __future__ import annotations

from bayesbin.experiments import Run

# What a recipe brings along: a run's own settings of these names were not used.
_OF_RECIPES = {
    "guide", "levels", "estimator", "temperature", "optimizer", "lr", "momentum", "kl_weight",
    "num_samples", "init_scale",
}  # fmt: skip


def origin_rows(run: Run) -> list[tuple[str, str]]:
    """Names and values: the settings that were used, sizes, digests, versions."""
    return [*_settings(run), *_origin(run)]


def _settings(run: Run) -> list[tuple[str, str]]:
    config = run.config
    left_out = _OF_RECIPES if config.recipe else {"recipe"}
    if config.guide == "mean-field":
        left_out = left_out | {"levels"}
    rows = []
    for name, value in run.record["config"].items():
        if name not in left_out:
            shown = ", ".join(value) if isinstance(value, (list, tuple)) else value
            rows.append((name.replace("_", " "), "its own" if shown is None else str(shown)))
    return rows


def _origin(run: Run) -> list[tuple[str, str]]:
    data, record = run.record["data"], run.record
    sizes = (
        f"{data['training']:,} training, {data['validation']:,} validation, {data['test']:,} test"
    )
    return [
        (f"{run.posterior.kind} weights", f"{run.posterior.num_weights:,}"),
        ("examples", sizes),
        ("SHA-256 of the data", data["sha256"]),
        ("SHA-256 of the posterior", record["files"]["posterior.safetensors"]),
        ("seconds of training", f"{record['seconds']:.0f}"),
        ("versions", ", ".join(f"{name} {v}" for name, v in record["environment"].items())),
    ]
