"""Where and about what a posterior is unsure: over the plane, and on data of another kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bayesbin.diagnostics import ood_scores
from bayesbin.plots.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, STYLE
from bayesbin.plots.predictions import PROBABILITY, Grid, plot_boundary, plot_classes, plot_field
from bayesbin.runtime.predictions import ClassPrediction

_OUTER = (ORANGE, GREEN, PURPLE)
_NUM_BINS = 30


def plot_uncertainty_panel(
    predictions: Mapping[str, ClassPrediction],
    area: Grid,
    x: Tensor,
    y: Tensor,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Mean probability, total, aleatoric and epistemic uncertainty over a plane; a row per guide.

    Entropies are in nats. Colours mean the same in all rows, so that guides can be compared; total and
    aleatoric share a scale that ends at ln 2, the epistemic one ends at its largest value. The line is
    p = 1/2.

    :param predictions: name of a guide -> prediction of two classes at the points of ``area``.
    :param area: of :func:`grid`. :param x: training points (N, 2). :param y: their classes (N,).
    :param figure: to draw in, empty; None: a new one, 8.6 inches wide.
    :raises ValueError: for no prediction, or one that is not for two classes at these points.
    """
    expected = (len(area.points), 2)
    came = [tuple(prediction.log_probs.shape) for prediction in predictions.values()]
    if not came or any(shape != expected for shape in came):
        raise ValueError(
            f"expected predictions {expected} on the grid, got {came or 'none'}; predict there."
        )
    # A scale that ends at rounding errors would show them.
    top = max(float(p.mutual_information.max()) for p in predictions.values())
    columns: list[tuple[str, str, float, Any]] = [
        ("mean probability", "probability of class 1", 1.0, PROBABILITY),
        ("total uncertainty", "entropy (nats)", math.log(2.0), "cividis"),
        ("aleatoric", "expected entropy (nats)", math.log(2.0), "cividis"),
        ("epistemic", "mutual information (nats)", max(top, 1e-3), "cividis"),
    ]
    with matplotlib.rc_context(STYLE):
        if figure is None:
            height = 2.05 * len(predictions) + 0.75
            figure = Figure(figsize=(8.6, height), layout="constrained")
        panels: Any = figure.subplots(len(predictions), 4, squeeze=False, sharex=True, sharey=True)
        meshes: list[Any] = []
        for number, (name, p) in enumerate(predictions.items()):
            row = panels[number]
            probs = p.probs[:, 1]
            fields = [probs, p.entropy, p.expected_entropy, p.mutual_information]
            meshes = []
            for axes, field, (title, _, high, colors) in zip(row, fields, columns, strict=True):
                title = "" if number else title
                meshes.append(plot_field(axes, field, area, title=title, high=high, colors=colors))
                plot_boundary(axes, probs, area, BLACK if axes is row[0] else "white")
                plot_classes(axes, x, y)
                axes.label_outer()
            row[0].set(
                ylabel=f"{name}\n$x_2$",
                xlim=(float(area.first[0]), float(area.first[-1])),
                ylim=(float(area.second[0]), float(area.second[-1])),
            )
        for place, (_, label, _, _) in enumerate(columns):
            bar = figure.colorbar(
                meshes[place], ax=list(panels[:, place]), location="bottom", fraction=0.06, pad=0.02
            )
            bar.set_label(label)
    return figure


def plot_in_vs_out(
    inner: Tensor,
    outer: Tensor | Mapping[str, Tensor],
    axes: Axes | None = None,
    *,
    quantity: str = "mutual information (nats)",
    inner_name: str = "in distribution",
    title: str = "Inputs of the training kind and others",
) -> Axes:
    """Histograms of an uncertainty for inputs of the training kind and of others, with AUROCs.

    A bar is the share of its own inputs, so that few and many can be compared.

    :param inner: uncertainty, (N,). :param outer: the same of others, (M,); or name -> (M,).
    :param axes: to draw on; None: those of a new figure, reached by ``axes.figure``.
    :param quantity: what it is and its unit.
    :raises ValueError: for no outer inputs, or numbers that are not finite.

    >>> import torch
    >>> plot_in_vs_out(torch.rand(50), {"noise": 1 + torch.rand(20)}).get_ylabel()
    'share of inputs (%)'
    """
    others = dict(outer) if isinstance(outer, Mapping) else {"out of distribution": outer}
    samples = {inner_name: inner} | others
    if not others or not all(bool(s.isfinite().all()) and len(s) for s in samples.values()):
        raise ValueError(
            "expected finite uncertainties of inner and outer inputs, got none of a kind, NaN or "
            "infinity; predict some."
        )
    ends = [(float(s.min()), float(s.max())) for s in samples.values()]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    edges = np.linspace(low, max(high, low + 1e-9), _NUM_BINS + 1)
    with matplotlib.rc_context(STYLE):
        if axes is None:
            axes = Figure(figsize=(4.6, 3.0), layout="constrained").subplots()
        for place, (name, sample) in enumerate(samples.items()):
            label, colour = name, BLUE
            if place:
                colour = _OUTER[(place - 1) % len(_OUTER)]
                label = f"{name}: AUROC {ood_scores(inner, sample)['auroc']:.3f}"
            values = sample.detach().double().cpu().numpy()
            share = np.full(len(values), 100.0 / len(values))
            drawn: Any = {"bins": edges.tolist(), "weights": share, "color": colour}
            axes.hist(values, **drawn, alpha=0.25)
            axes.hist(values, **drawn, histtype="step", lw=1.3, label=label)
        axes.set(xlabel=quantity, ylabel="share of inputs (%)")
        axes.set_title(title, loc="left")
        axes.legend(frameon=False)
    return axes
