"""What every figure here shares: colours, type sizes, and how a file is written."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bayesbin.core.files import write_atomically

# Okabe and Ito, Color Universal Design, 2008.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#E69F00"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.linewidth": 0.7,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
}


def numbers(values: Any) -> np.ndarray:
    """Numbers to draw, as a float64 array: of a tensor, an array or a list."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def figure_of(axes: Axes) -> Figure:
    """The figure that ``axes`` are part of."""
    figure: Any = axes.figure
    while not isinstance(figure, Figure):  # axes in a subfigure
        figure = figure.figure
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 200) -> None:
    """Write a figure to a .png, .pdf or .svg file, whole or not at all.

    :raises ValueError: for another ending. :raises OSError: if the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "pdf", "svg"):
        raise ValueError(f"expected a file name ending in .png, .pdf or .svg, got {path.name!r}.")
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=dpi)
    write_atomically(path, buffer.getvalue())
