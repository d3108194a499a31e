"""The factor between a relaxed sign's gradient and the straight-through one, as the temperature falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bayesbin.plots.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, STYLE

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def plot_small_temperature(
    temperatures: Sequence[float], factors: Mapping[str, Sequence[Mapping[str, float]]]
) -> Figure:
    """Mean and standard deviation of the factor s against the temperature; and how many are near 1.

    :param temperatures: positive. :param factors: label of a lambda -> for each temperature the numbers
        "mean", "std" and "near", the fraction of draws with s in (1/2, 3/2).
    :raises ValueError: if there is no lambda, or not one entry for each temperature.

    >>> rows = [{"mean": 1.0, "std": 3.0, "near": 0.1}]
    >>> len(plot_small_temperature([0.1], {"lambda 0": rows}).axes)
    2
    """
    if not factors or any(len(rows) != len(temperatures) for rows in factors.values()):
        raise ValueError(
            f"expected at least one lambda, with {len(temperatures)} entries as there are temperatures; got "
            f"{', '.join(f'{len(rows)} for {name}' for name, rows in factors.items()) or 'none'}."
        )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        grid: Any = figure.subplots(1, 2)
        size, near = grid
        for colour, (label, rows) in zip(_COLOURS, factors.items(), strict=False):
            size.plot(temperatures, [r["mean"] for r in rows], color=colour, marker="o",
                      markersize=3, linewidth=1.1, label=f"mean, {label}")  # fmt: skip
            size.plot(temperatures, [r["std"] for r in rows], color=colour, linestyle="--",
                      linewidth=1.1, label=f"standard deviation, {label}")  # fmt: skip
            near.plot(temperatures, [100 * r["near"] for r in rows], color=colour, marker="o",
                      markersize=3, linewidth=1.1)  # fmt: skip
        size.axhline(1.0, color=BLACK, linewidth=0.7)
        size.set(xscale="log", yscale="log", xlabel="temperature tau", ylabel="factor s")
        size.set_title("straight-through has s = 1 at every draw")
        size.legend(frameon=False)
        near.set(xscale="log", ylim=(0, None), xlabel="temperature tau")
        near.set(ylabel="draws (%)", title="draws with s between 1/2 and 3/2")
        for axes in grid:
            axes.grid(which="major", color="#dddddd", linewidth=0.5)
    return figure
