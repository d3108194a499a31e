"""Predictions in the plane and along a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from bayesbin.plots.figures import BLACK, BLUE, GREEN, ORANGE, STYLE, figure_of, numbers
from bayesbin.runtime.predictions import ClassPrediction, NormalPrediction

# The classes' own colours: white is where a prediction is undecided.
PROBABILITY = LinearSegmentedColormap.from_list("classes", ["#0072B2", "#f7f7f7", "#D55E00"])
_UNCERTAINTY = "cividis"


class Grid(NamedTuple):
    """The points of a rectangular grid: their coordinates (R * C, 2), and the two axes (C,), (R,)."""

    points: Tensor
    first: Tensor
    second: Tensor


def grid(low: Sequence[float], high: Sequence[float], num_points: int = 120) -> Grid:
    """A grid over the rectangle from ``low`` to ``high``, with ``num_points`` in each direction.

    >>> grid((-1.0, -1.0), (1.0, 1.0), num_points=3).points.shape
    torch.Size([9, 2])
    """
    first = torch.linspace(low[0], high[0], num_points, dtype=torch.float32)
    second = torch.linspace(low[1], high[1], num_points, dtype=torch.float32)
    return Grid(torch.cartesian_prod(second, first).flip(-1), first, second)


def plot_field(
    axes: Axes,
    field: Any,
    area: Grid,
    *,
    title: str,
    low: float = 0.0,
    high: float | None = None,
    colors: Any = _UNCERTAINTY,
) -> Any:
    """Colour the plane by a function of it, (R * C,), on ``axes``; returns the coloured mesh.

    :param low: value of the first colour. :param high: of the last one; None: the largest value.
    """
    values = numbers(field).reshape(len(area.second), len(area.first))
    high = max(float(values.max()), low + 1e-12) if high is None else high
    mesh = axes.pcolormesh(
        area.first.numpy(),
        area.second.numpy(),
        values,
        cmap=colors,
        vmin=low,
        vmax=high,
        shading="gouraud",
        rasterized=True,
    )
    axes.set(xlabel="$x_1$", aspect="equal")
    axes.set_title(title, loc="left")
    return mesh


def plot_boundary(axes: Axes, probs: Any, area: Grid, color: str = BLACK) -> Axes:
    """The line on which the probability of class 1, (R * C,), is one half."""
    values = numbers(probs).reshape(len(area.second), len(area.first))
    if values.min() < 0.5 < values.max():
        first, second = area.first.numpy(), area.second.numpy()
        axes.contour(first, second, values, levels=[0.5], colors=color, linewidths=1.1)
    return axes


def plot_classes(axes: Axes, x: Tensor, y: Tensor) -> Axes:
    """Points (N, 2) of two classes: circles in blue, triangles in orange."""
    for label, color, marker in ((0, BLUE, "o"), (1, ORANGE, "^")):
        chosen = x[y == label].numpy()
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=13,
            c=color,
            marker=marker,
            edgecolors="white",
            linewidths=0.5,
            label=f"class {label}",
            zorder=3,
        )
    return axes


def plot_two_moons(
    straight_through: Any,
    mode: Any,
    mean: ClassPrediction,
    area: Grid,
    x: Tensor,
    y: Tensor,
    figure: Figure | None = None,
) -> Figure:
    """Five panels over one plane: what a point estimate, the mode and the mean of draws predict.

    Straight-through decisions, the posterior's mode, the mean of its draws; then the mean's entropy and
    the mutual information of prediction and weights, both in nats. The line is p = 1/2.

    :param straight_through: probability of class 1 at each point of ``area``, (R * C,).
    :param mode: the same at the posterior's mode.
    :param mean: the prediction averaged over draws, of R * C points and two classes.
    :param area: of :func:`grid`. :param x: training points (N, 2). :param y: their classes (N,).
    :param figure: to draw in, empty; None: a new one, 12.6 inches wide.
    :raises ValueError: for a prediction that is not one for two classes at these points.
    """
    expected = (len(area.points), 2)
    if (
        tuple(mean.log_probs.shape) != expected
        or not len(straight_through) == len(mode) == expected[0]
    ):
        came = f"{tuple(mean.log_probs.shape)}, {len(straight_through)} and {len(mode)} points"
        raise ValueError(f"expected predictions {expected} on the grid, got {came}; predict there.")
    with matplotlib.rc_context(STYLE):
        if figure is None:
            figure = Figure(figsize=(12.6, 2.6), layout=ConstrainedLayoutEngine(wspace=0.06))
        panels: list[Axes] = list(figure.subplots(1, 5, sharex=True, sharey=True))
        average = mean.probs[:, 1]
        probabilities = [
            ("straight-through (STE)", straight_through),
            ("posterior mode", mode),
            (f"mean of {mean.num_samples} draws", average),
        ]
        for axes, (title, probs) in zip(panels[:3], probabilities, strict=True):
            mesh = plot_field(axes, probs, area, title=title, high=1.0, colors=PROBABILITY)
            plot_boundary(axes, probs, area)
        _colour_bar(panels[2], mesh, "probability of class 1")
        uncertainties = [
            ("predictive entropy", mean.entropy, math.log(2.0)),
            ("mutual information", mean.mutual_information, None),
        ]
        for axes, (title, field, high) in zip(panels[3:], uncertainties, strict=True):
            mesh = plot_field(axes, field, area, title=title, high=high)
            plot_boundary(axes, average, area, color="white")
            _colour_bar(axes, mesh, "nats")
        for letter, axes in zip("abcde", panels, strict=True):
            plot_classes(axes, x, y)
            axes.set_title(f"({letter}) {axes.get_title('left')}", loc="left")
        panels[0].set(
            ylabel="$x_2$",
            xlim=(float(area.first[0]), float(area.first[-1])),
            ylim=(float(area.second[0]), float(area.second[-1])),
        )
    return figure


def plot_regression(
    x: Tensor,
    prediction: NormalPrediction,
    *,
    data: tuple[Tensor, Tensor],
    truth: Tensor | None = None,
    mode: Any = None,
    axes: Axes | None = None,
    title: str = "Posterior over binary weights",
) -> Axes:
    """A regressor's prediction along a line: mean, +-1 and +-2 standard deviations, data, truth.

    The inner shades are the weights' uncertainty alone (epistemic), the outer ones noise and weights
    together (total). All in the units of the targets.

    :param x: inputs (P,), ascending. :param prediction: there. :param data: training (x, y), (N,) each.
    :param truth: noiseless function values (P,). :param mode: the mode network's outputs (P,).
    :param axes: to draw on; None: those of a new figure, reached by ``axes.figure``.
    """
    if len(x) != len(prediction.mean):
        came = f"{len(x)} and {len(prediction.mean)}"
        raise ValueError(f"expected one prediction per input, got {came}; predict at these inputs.")
    with matplotlib.rc_context(STYLE):
        if axes is None:
            axes = Figure(figsize=(6.6, 3.8), layout="constrained").subplots()
        line, mean = np.asarray(x.flatten()), numbers(prediction.mean).reshape(-1)
        weights = np.sqrt(numbers(prediction.epistemic_variance))
        bands = [
            (prediction.std, 2, "#dbe9f4", "total, $\\pm$2 sd"),
            (prediction.std, 1, "#b9d4ea", "total, $\\pm$1 sd"),
            (weights, 2, "#f6cfae", "epistemic, $\\pm$2 sd"),
            (weights, 1, "#eda873", "epistemic, $\\pm$1 sd"),
        ]
        for spread, factor, color, label in bands:
            half = factor * numbers(spread).reshape(-1)
            axes.fill_between(line, mean - half, mean + half, color=color, lw=0, label=label)
        if truth is not None:
            axes.plot(line, np.asarray(truth), color=BLACK, lw=1.0, ls="--", label="true function")
        if mode is not None:
            axes.plot(
                line, numbers(mode).reshape(-1), color=GREEN, lw=1.2, ls=":", label="posterior mode"
            )
        label = f"mean of {prediction.num_samples} draws"
        axes.plot(line, mean, color=BLUE, lw=1.6, label=label)
        points, targets = (np.asarray(part.flatten()) for part in data)
        axes.scatter(points, targets, s=9, color=BLACK, lw=0, alpha=0.7, label="data", zorder=3)
        axes.set(title=title, xlabel="x", ylabel="y", xlim=(line[0], line[-1]))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return axes


def _colour_bar(axes: Axes, mesh: Any, label: str) -> None:
    """Exactly as high as its axes, which a fixed aspect makes smaller than their place."""
    place = axes.inset_axes((1.04, 0.0, 0.05, 1.0))
    figure_of(axes).colorbar(mesh, cax=place).set_label(label)
