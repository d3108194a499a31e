"""Figures fit for a paper: data and axes in, axes or a figure out. The only importer of matplotlib.

Figures are matplotlib's own objects, made without ``pyplot``: no window opens, and no global figure
list grows. Colours stay apart for colour-blind readers and in print.
"""

# Not public, and used by those who draw on axes of their own: Figure, Grid, figure_of.
from matplotlib.figure import Figure as Figure

from bayesbin.plots.calibration import plot_reliability, plot_risk_coverage
from bayesbin.plots.continual import (
    plot_accuracy_matrix,
    plot_continual,
    plot_saturation,
    plot_task_accuracies,
    plot_uncertainty,
)
from bayesbin.plots.estimators import plot_estimators
from bayesbin.plots.figures import figure_of as figure_of
from bayesbin.plots.figures import save_figure
from bayesbin.plots.learning_curves import plot_learning_curves
from bayesbin.plots.limits import plot_small_temperature
from bayesbin.plots.loss_terms import plot_loss_terms
from bayesbin.plots.predictions import Grid as Grid
from bayesbin.plots.predictions import (
    grid,
    plot_boundary,
    plot_classes,
    plot_field,
    plot_regression,
    plot_two_moons,
)
from bayesbin.plots.sharing import plot_sharing
from bayesbin.plots.uncertainty import plot_in_vs_out, plot_uncertainty_panel
from bayesbin.plots.weights import plot_filters, plot_level_probabilities, plot_sign_probabilities

__all__ = [
    "grid",
    "plot_accuracy_matrix",
    "plot_boundary",
    "plot_classes",
    "plot_continual",
    "plot_estimators",
    "plot_field",
    "plot_filters",
    "plot_in_vs_out",
    "plot_learning_curves",
    "plot_level_probabilities",
    "plot_loss_terms",
    "plot_regression",
    "plot_reliability",
    "plot_risk_coverage",
    "plot_saturation",
    "plot_sharing",
    "plot_sign_probabilities",
    "plot_small_temperature",
    "plot_task_accuracies",
    "plot_two_moons",
    "plot_uncertainty",
    "plot_uncertainty_panel",
    "save_figure",
]
