"""Learning curves of several methods on the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bayesbin.plots.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, YELLOW

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK)
_LINES = ("-", "--", ":")
_PANELS = (
    ("validation_accuracy", "validation error (%)"),
    ("validation_nll", "validation negative log-likelihood (nats)"),
)


def plot_learning_curves(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
) -> Figure:
    """Validation error and negative log-likelihood after each epoch, on logarithmic axes.

    A line is the mean over the seeds of a method; with several, a band shows the least and the largest.

    :param histories: name -> seeds -> rows of ``FitResult.history`` with validation scores.
    :raises ValueError: if there is no method, or a row without validation scores.

    >>> rows = [{"epoch": 1, "validation_accuracy": 0.9, "validation_nll": 0.3}]
    >>> len(plot_learning_curves({"bop": [rows]}).axes)
    2
    """
    if not histories:
        raise ValueError("expected the history of at least one method, got none; train some first.")
    for name, runs in histories.items():
        if not runs or any(key not in row for rows in runs for row in rows for key, _ in _PANELS):
            raise ValueError(
                f"expected validation scores in each epoch of {name!r}; train with some."
            )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        grid: Any = figure.subplots(1, 2, squeeze=False)
        for axes, (key, label) in zip(grid[0], _PANELS, strict=True):
            for place, (name, runs) in enumerate(histories.items()):
                _draw(axes, name, runs, key, place)
            axes.set(yscale="log", xlabel="epoch", ylabel=label)
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(which="major", color="#dddddd", linewidth=0.5)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _draw(axes: Any, name: str, runs: Sequence[Any], key: str, place: int) -> None:
    shared = min(map(len, runs))
    epochs = [row["epoch"] for row in runs[0][:shared]]
    values = np.array([[row[key] for row in rows[:shared]] for rows in runs], dtype=float)
    if key == "validation_accuracy":
        values = 100.0 * (1.0 - values)
        values = np.where(values > 0, values, np.nan)  # no place on a logarithmic axis
    colour = _COLOURS[place % len(_COLOURS)]
    line = _LINES[place // len(_COLOURS) % len(_LINES)]
    marker = "o" if shared == 1 else None
    axes.plot(
        epochs,
        values.mean(0),
        color=colour,
        linestyle=line,
        linewidth=1.1,
        marker=marker,
        label=name,
    )
    if len(runs) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
