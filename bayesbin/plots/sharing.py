"""The natural parameters of a posterior, taken apart into layer, filter, kernel and weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bayesbin.core.nesting import SCOPES, scope_effects, scope_shapes, scope_shares
from bayesbin.distributions import SignBernoulli
from bayesbin.plots.figures import STYLE

_LARGEST = 48  # units, and inputs of a unit, that a panel shows


def plot_sharing(
    posterior: Mapping[str, SignBernoulli], sites: Sequence[str] | None = None
) -> Figure:
    """Lambda of each site, and what each scope contributes to it, as images; a row per site.

    A row of a panel is a unit, a column an input; kernels are shown as blocks, and where there is one
    input channel the filters fill a rectangle. The title gives the scope's share of the sum of squares
    of lambda. Of large layers the first 48 units and inputs are shown.

    :param sites: which sites, in which order; None: all.
    :raises ValueError: for a site that the posterior does not have.

    >>> import torch
    >>> from bayesbin import BinaryPosterior
    >>> len(plot_sharing(BinaryPosterior({"w": torch.randn(3, 4)})).axes)  # lambda, four scopes, a scale
    6
    """
    chosen = list(posterior) if sites is None else list(sites)
    if unknown := [site for site in chosen if site not in posterior]:
        raise ValueError(
            f"expected sites of the posterior ({', '.join(posterior)}), got {', '.join(unknown)}."
        )
    with matplotlib.rc_context(STYLE):
        columns = 1 + len(SCOPES)
        figure = Figure(figsize=(1.9 * columns, 1.75 * len(chosen)), layout="constrained")
        panels: Any = figure.subplots(len(chosen), columns, squeeze=False)
        for row, site in zip(panels, chosen, strict=True):
            _draw_site(figure, row, site, posterior[site].natural.detach().double().cpu())
    return figure


def _draw_site(figure: Figure, row: Any, site: str, natural: Tensor) -> None:
    shapes, shares = scope_shapes(tuple(natural.shape)), scope_shares(natural)
    parts = {scope: e.expand(natural.shape) for scope, e in scope_effects(natural, shapes).items()}
    largest = max(natural.abs().quantile(0.99).item(), 1e-12) if natural.numel() < 1e7 else 3.0
    image: Any = None
    for axes, scope in zip(row, ("", *SCOPES), strict=True):
        if scope and scope not in parts:
            axes.set_axis_off()
            continue
        values = _mosaic(parts[scope] if scope else natural).numpy()
        image = axes.imshow(
            values, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto", interpolation="none"
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{scope}: {shares[scope]:.0%}" if scope else "lambda", loc="left")
    row[0].set_ylabel(site)
    bar = figure.colorbar(image, ax=list(row), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=7)


def _mosaic(values: Tensor) -> Tensor:
    """A tensor over weights as a matrix."""
    if values.dim() < 2:
        return values.reshape(1, -1)[:, :_LARGEST]
    if values.dim() == 2:
        return values[:_LARGEST, :_LARGEST]
    values = values.flatten(3) if values.dim() > 4 else values
    values = values.unsqueeze(2) if values.dim() == 3 else values
    units, inputs, height, width = values.shape
    if inputs == 1:  # filters side by side, in a rectangle
        across = math.ceil(math.sqrt(units))
        down = math.ceil(units / across)
        filled = torch.full((down * across, 1, height, width), torch.nan, dtype=values.dtype)
        filled[:units] = values
        values = filled.view(down, across, height, width)
    else:
        values = values[: max(1, _LARGEST // height), : max(1, _LARGEST // width)]
    units, inputs, height, width = values.shape
    return values.permute(0, 2, 1, 3).reshape(units * height, inputs * width)
