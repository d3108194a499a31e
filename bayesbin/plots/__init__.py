"""Figures fit for a paper: data and axes in, axes or a figure out. The only importer of matplotlib.

Figures are matplotlib's own objects, made without ``pyplot``: no window opens, and no global figure
list grows. Colours stay apart for colour-blind readers and in print.
"""

from matplotlib.figure import Figure

from bayesbin.plots.estimators import plot_estimators
from bayesbin.plots.figures import figure_of, save_figure
from bayesbin.plots.levels import plot_levels
from bayesbin.plots.predictions import (
    Grid,
    grid,
    plot_boundary,
    plot_classes,
    plot_field,
    plot_regression,
    plot_two_moons,
)

__all__ = [
    "Figure",
    "Grid",
    "figure_of",
    "grid",
    "plot_boundary",
    "plot_classes",
    "plot_estimators",
    "plot_field",
    "plot_levels",
    "plot_regression",
    "plot_two_moons",
    "save_figure",
]
