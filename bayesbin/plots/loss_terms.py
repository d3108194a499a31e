"""How a training went: the two terms of its loss, apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bayesbin.plots.figures import BLUE, ORANGE, STYLE


def plot_loss_terms(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Negative log-likelihood after each epoch, of training and validation data, and the KL term.

    All in nats per datum. The training's is an average over the epoch, at weights drawn anew in each
    step; the KL is drawn without its weight.

    :param history: rows of ``FitResult.history``.
    :raises ValueError: if there is none.

    >>> rows = [{"epoch": 1, "nll": 2.0, "kl": 0.3, "validation_nll": 1.5}]
    >>> len(plot_loss_terms(rows).axes)
    2
    """
    if not history:
        raise ValueError("expected at least one epoch, got none; pass FitResult.history.")
    epochs = [row["epoch"] for row in history]
    checked = [row for row in history if "validation_nll" in row]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.7), layout="constrained")
        panels: Any = figure.subplots(1, 2)
        fits, costs = panels
        marker = "o" if len(history) == 1 else None
        nll = [row["nll"] for row in history]
        fits.plot(epochs, nll, color=BLUE, lw=1.3, marker=marker, label="training")
        if checked:
            fits.plot(
                [row["epoch"] for row in checked],
                [row["validation_nll"] for row in checked],
                color=ORANGE, lw=1.3, ls="--", marker="o", markersize=3, label="validation",
            )  # fmt: skip
        fits.set_title("Fit", loc="left")
        fits.set_ylabel("negative log-likelihood\n(nats per datum)")
        fits.legend(frameon=False)
        costs.plot(epochs, [row["kl"] for row in history], color=BLUE, lw=1.3, marker=marker)
        costs.set_title("Distance from the prior", loc="left")
        costs.set_ylabel("KL term (nats per datum)")
        for axes in panels:
            axes.set_xlabel("epoch")
            axes.set_ylim(bottom=0)
            axes.grid(color="#e5e5e5", linewidth=0.5)
            axes.set_axisbelow(True)
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
