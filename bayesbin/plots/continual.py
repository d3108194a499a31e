"""A sequence of tasks in pictures: accuracy over time, the matrix R, saturation, uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayesbin.continual import ContinualResult
from bayesbin.continual.metrics import average_accuracies
from bayesbin.plots.figures import BLACK, BLUE, ORANGE, SKY, STYLE, figure_of

_LABELLED = 12  # tasks up to which every cell of the matrix has room for its number


def plot_task_accuracies(result: ContinualResult, axes: Axes | None = None) -> Axes:
    """Draw the score on each task from when it was learned on, and the average over those seen so far.

    The score is the accuracy, or of regression the rmse.

    :param axes: to draw on; None: those of a new figure, reached by ``axes.figure``.

    >>> from bayesbin.continual import ContinualResult
    >>> R = np.array([[0.9, np.nan], [0.7, 0.8]])
    >>> result = ContinualResult(("a", "b"), ("", ""), {"accuracy": R}, {})
    >>> len(plot_task_accuracies(result).lines)  # two tasks, and the average
    3
    """
    R, _, label = _scores(result)
    steps = np.arange(1, len(R) + 1)
    with matplotlib.rc_context(STYLE):
        axes = _axes() if axes is None else axes
        colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(R)))
        for j, colour in enumerate(colours):
            axes.plot(steps[j:], R[j:, j], color=colour, lw=1.0, marker="o", ms=2.5)
        axes.plot(
            steps, average_accuracies(R), color=BLACK, lw=2.0, label="average over tasks seen"
        )
        axes.set(xlabel="tasks learned", ylabel=label)
        axes.set_title("Each task from when it was learned on", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.legend(loc="lower left", frameon=False)
    return axes


def plot_accuracy_matrix(result: ContinualResult, axes: Axes | None = None) -> Axes:
    """Draw the scores as a heat map: a row for each task learned, a column for each task scored.

    Cells of tasks that were not scored stay empty; up to 12 tasks, the numbers are written in.

    :param axes: as in :func:`plot_task_accuracies`.
    """
    R, digits, label = _scores(result)
    known = R[~np.isnan(R)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if result.score == "accuracy":
        low, high = min(low, 90.0), 100.0
    with matplotlib.rc_context(STYLE):
        axes = _axes() if axes is None else axes
        image = axes.imshow(R, cmap="viridis", vmin=low, vmax=high)
        if len(R) <= _LABELLED:
            for (i, j), value in np.ndenumerate(R):
                if not np.isnan(value):
                    colour = "white" if value < low + 0.6 * (high - low) else BLACK
                    text = f"{value:.{digits}f}"
                    axes.text(j, i, text, ha="center", va="center", color=colour, size=7)
        axes.set(xlabel="scored on task", ylabel="after learning task", aspect="equal")
        axes.set_title(label[0].upper() + label[1:], loc="left")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_major_formatter(lambda place, _: f"{place + 1:.0f}")
        figure_of(axes).colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    return axes


def plot_saturation(result: ContinualResult, axes: Axes | None = None) -> Axes:
    """What the posterior has left after each task: entropy per weight, and weights that are decided.

    A line for each site of signs, from dark to light by depth: solid the mean entropy in bits, dashed
    the fraction with |lambda| > 3. Where both reach their ends, nothing more can be learned.

    :param axes: as in :func:`plot_task_accuracies`.
    :raises ValueError: for the result of a learner without a posterior.
    """
    sites = list(dict.fromkeys(row.site for report in result.reports for row in report.layers))
    if not sites:
        raise ValueError("expected a learner with a posterior; this one has none to show.")
    with matplotlib.rc_context(STYLE):
        axes = _axes() if axes is None else axes
        colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(sites)))
        for site, colour in zip(sites, colours, strict=True):
            for name, style in (("entropy_bits", "-"), ("saturated", "--")):
                points = [
                    (i + 1, getattr(row, name))
                    for i, report in enumerate(result.reports)
                    for row in report.layers
                    if row.site == site
                ]
                label = site if style == "-" else None
                axes.plot(*zip(*points, strict=True), color=colour, ls=style, marker="o", ms=2.5,
                          lw=1.2, label=label)  # fmt: skip
        axes.plot([], [], color=BLACK, lw=1.2, label="entropy, bits per weight")
        axes.plot([], [], color=BLACK, lw=1.2, ls="--", label="fraction with |$\\lambda$| > 3")
        axes.set(xlabel="tasks learned", ylabel="bits, or fraction", ylim=(-0.03, 1.03))
        axes.set_title("What the posterior has left", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False)
    return axes


def plot_uncertainty(rows: Sequence[Mapping[str, Any]], axes: Axes | None = None) -> Axes:
    """Mutual information of prediction and weights after the last task, from the oldest to an unseen one.

    :param rows: for each task ``task``, ``learned`` and the mean ``mutual_information`` in nats, as
        :func:`bayesbin.experiments.uncertainty_rows` has them.
    :param axes: as in :func:`plot_task_accuracies`.
    :raises ValueError: if there is no row.

    >>> rows = [{"task": "a", "learned": True, "mutual_information": 0.1}]
    >>> len(plot_uncertainty(rows).patches)
    1
    """
    if not rows:
        raise ValueError("expected a row for at least one task, got none.")
    newest = max((i for i, row in enumerate(rows) if row["learned"]), default=-1)
    with matplotlib.rc_context(STYLE):
        axes = _axes() if axes is None else axes
        colours = [
            ORANGE if not row["learned"] else BLUE if i == newest else SKY
            for i, row in enumerate(rows)
        ]
        places = [i + (0.0 if row["learned"] else 0.5) for i, row in enumerate(rows)]
        axes.bar(places, [row["mutual_information"] for row in rows], color=colours)
        names = [str(i + 1) if row["learned"] else "unseen" for i, row in enumerate(rows)]
        axes.set_xticks(places, names)
        if len(rows) > 2 * _LABELLED:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="task, in the order learned", ylabel="mutual information, nats")
        axes.set_title("Uncertainty after the last task", loc="left")
        axes.grid(axis="y", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
    return axes


def plot_continual(
    result: ContinualResult, rows: Sequence[Mapping[str, Any]] | None = None
) -> Figure:
    """Draw a result as one figure: scores over time, their matrix, and of a posterior two panels more.

    :param rows: of :func:`plot_uncertainty`; None: without that panel.
    """
    draw = [plot_task_accuracies, plot_accuracy_matrix]
    if _has_posterior(result):
        draw.append(plot_saturation)
    count = len(draw) + (len(draw) == 3 and bool(rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.4 if count > 2 else 3.2), layout="constrained")
        panels: Any = figure.subplots((count + 1) // 2, 2, squeeze=False).ravel()
        for panel, function in zip(panels, draw, strict=False):
            function(result, panel)
        if rows and count == 4:
            plot_uncertainty(rows, panels[3])
        for panel in panels[count:]:
            panel.remove()
        for letter, axes in zip("abcd", panels[:count], strict=False):
            axes.set_title(f"({letter}) {axes.get_title('left')}", loc="left")
    return figure


def _scores(result: ContinualResult) -> tuple[np.ndarray, int, str]:
    """The matrix to draw, how many digits its numbers are written with, and its name."""
    if result.score == "accuracy":
        return 100.0 * result.R, 0, "accuracy, %"
    return result.R, 2, result.score


def _has_posterior(result: ContinualResult) -> bool:
    return any(report.layers for report in result.reports)


def _axes() -> Axes:
    return Figure(figsize=(5.4, 3.4), layout="constrained").subplots()
