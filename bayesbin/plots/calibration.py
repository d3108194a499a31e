"""Whether confidences are frequencies, and what abstaining brings, in pictures."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesbin.diagnostics import Reliability, RiskCoverage
from bayesbin.plots.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, YELLOW

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK)
_NUM_BINS = 20  # of the confidences' histogram


def plot_reliability(
    reliability: Reliability,
    axes: Axes | None = None,
    *,
    title: str = "Reliability",
    color: str = BLUE,
) -> Axes:
    """How often confidences came true, the band of calibrated predictors, and the confidences above.

    Below the diagonal a predictor is too sure. The numbers are the parts of the Brier score.

    :param reliability: of :func:`bayesbin.diagnostics.reliability`.
    :param axes: to draw on; None: those of a new figure, reached by ``axes.figure``.

    >>> import torch
    >>> from bayesbin.diagnostics import reliability
    >>> found = reliability(torch.rand(50), torch.rand(50) < 0.5, num_simulations=10)
    >>> plot_reliability(found).get_xlabel()
    'confidence'
    """
    with matplotlib.rc_context(STYLE):
        if axes is None:
            axes = Figure(figsize=(3.4, 4.5), layout="constrained").subplots()
        values = np.asarray(reliability.confidence)
        axes.fill_between(
            np.asarray(reliability.band_confidence),
            np.asarray(reliability.low),
            np.asarray(reliability.high),
            color="#d9d9d9",
            lw=0,
            label=f"{100 * reliability.level:g} % if calibrated",
        )
        axes.plot([0, 1], [0, 1], color=BLACK, lw=0.8, ls="--")
        alone = len(values) == 1
        axes.plot(
            values,
            np.asarray(reliability.frequency),
            color=color,
            lw=1.5,
            marker="o" if alone else None,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="frequency of right answers")
        axes.set_box_aspect(1)
        axes.grid(color="#e5e5e5", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", frameon=False, borderaxespad=0.2)
        above = axes.inset_axes((0.0, 1.04, 1.0, 0.25), sharex=axes)
        counts = np.asarray(reliability.counts, dtype=float)
        share = 100.0 * counts / counts.sum()
        above.hist(
            values, bins=np.linspace(0, 1, _NUM_BINS + 1).tolist(), weights=share, color=color
        )
        parts = {
            "miscalibration": reliability.miscalibration,
            "discrimination": reliability.discrimination,
            "uncertainty": reliability.base_uncertainty,
        }
        text = "\n".join(f"{name} {value:.4f}" for name, value in parts.items())
        above.text(0.02, 0.98, text, transform=above.transAxes, va="top", fontsize=7)
        above.set_ylabel("data (%)", fontsize=7.5)
        above.tick_params(labelbottom=False, labelsize=7)
        above.spines[["top", "right"]].set_visible(False)
        above.set_title(title, loc="left")
    return axes


def plot_risk_coverage(
    curves: Mapping[str, RiskCoverage],
    axes: Axes | None = None,
    *,
    title: str = "Risk and coverage",
) -> Axes:
    """The error rate among the most confident answers, a line for each method, with its area.

    Dotted, in the same colour: what the best order of that method's own answers would give.

    :param curves: name -> of :func:`bayesbin.diagnostics.risk_coverage`; at least one.
    :param axes: to draw on; None: those of a new figure, reached by ``axes.figure``.
    :raises ValueError: if there is no curve.

    >>> import torch
    >>> from bayesbin.diagnostics import risk_coverage
    >>> curve = risk_coverage(torch.rand(9), torch.rand(9) < 0.5)
    >>> len(plot_risk_coverage({"mode": curve, "mean": curve}).lines)
    4
    """
    if not curves:
        raise ValueError("expected at least one curve, got none; see diagnostics.risk_coverage.")
    with matplotlib.rc_context(STYLE):
        if axes is None:
            axes = Figure(figsize=(4.2, 3.2), layout="constrained").subplots()
        for place, (name, curve) in enumerate(curves.items()):
            colour = _COLOURS[place % len(_COLOURS)]
            answered = 100.0 * np.asarray(curve.coverage)
            best = 100.0 * np.asarray(curve.best_risk)
            axes.plot(answered, best, color=colour, lw=0.9, ls=":")
            axes.plot(
                answered,
                100.0 * np.asarray(curve.risk),
                color=colour,
                lw=1.4,
                label=f"{name} ({100 * curve.aurc:.2f} %)",
            )
        axes.set(xlim=(0, 100), xlabel="inputs answered, most confident first (%)")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("wrong answers among them (%)")
        axes.set_title(title, loc="left")
        axes.grid(color="#e5e5e5", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", frameon=False, title="in brackets: area; dotted: best order")
    return axes
