"""Variance against computation of gradient estimators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bayesbin.plots.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, YELLOW

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK)
_MARKERS = "osD^vPX"
# Of the largest variance: below it is nothing but the rounding of an exact gradient.
_ROUNDING = 1e-10


def plot_estimators(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    biased: Sequence[str] = (),
    computation: str = "computation, evaluations of the model",
) -> Figure:
    """Total variance against computation, log-log, a panel per setting and a line per estimator.

    Further left and further down is better; along a line, more draws trade one for the other. Exact
    gradients, whose variance is 0 or that of rounding, have no place on a logarithmic axis and are left
    out.

    :param panels: title -> estimator -> points (computation, total variance).
    :param biased: estimators whose markers stay hollow and whose lines are dashed.
    :param computation: label of the horizontal axis.
    :raises ValueError: if there is no panel.

    >>> figure = plot_estimators({"lambda 0": {"DisARM": [(2.0, 4.0), (4.0, 2.0)]}})
    >>> len(figure.axes)
    1
    """
    if not panels:
        raise ValueError("expected at least one panel of estimators, got none; measure some first.")
    least = _least(panels)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(panels) + 1.9, 3.6), layout="constrained")
        grid: Any = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
            for name, points in panel.items():
                points = sorted((x, y) for x, y in points if x > 0 and y > least)
                if not points:
                    continue
                place = names.index(name)
                colour = _COLOURS[place % len(_COLOURS)]
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker=_MARKERS[place // len(_COLOURS) % len(_MARKERS)],
                    markersize=4.5,
                    markerfacecolor="white" if name in biased else colour,
                    linestyle="--" if name in biased else "-",
                    linewidth=1.0,
                    label=f"{name} (biased)" if name in biased else name,
                )
            axes.set(xscale="log", yscale="log", title=title, xlabel=computation)
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(which="major", color="#dddddd", linewidth=0.5)
        grid[0][0].set_ylabel("total variance of the gradient")
        handles = {}
        for axes in grid[0]:
            handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def _least(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> float:
    """The variance below which there is nothing but rounding."""
    values = [y for panel in panels.values() for points in panel.values() for _, y in points]
    return _ROUNDING * max((y for y in values if math.isfinite(y)), default=0.0)
