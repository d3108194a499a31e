"""The posterior over single weights: how decided layers are, and what filters look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesbin.distributions import LowBitCategorical, SignBernoulli
from bayesbin.plots.figures import BLUE, STYLE, figure_of
from bayesbin.plots.predictions import PROBABILITY

_NUM_BINS = 40
_COLUMNS = 4
_LABELLED_LEVELS = 4


def plot_sign_probabilities(
    posterior: Mapping[str, SignBernoulli], sites: Sequence[str] | None = None
) -> Figure:
    """A histogram of P(w = +1) for each site: bars at 0 and 1 are decided weights, at 1/2 free ones.

    The title has the number of signs and their mean entropy.

    :param sites: which sites, in which order; None: all.
    :raises ValueError: for no site, or one that the posterior does not have.

    >>> import torch
    >>> from bayesbin import BinaryPosterior
    >>> len(plot_sign_probabilities(BinaryPosterior({"w": torch.randn(30, 4)})).axes)
    1
    """

    def draw(axes: Any, distribution: SignBernoulli) -> None:
        probs = distribution.probs.detach().double().cpu().flatten().numpy()
        share = np.full(len(probs), 100.0 / len(probs))
        axes.hist(probs, bins=np.linspace(0, 1, _NUM_BINS + 1), weights=share, color=BLUE)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])

    return _panel_per_site(posterior, sites, draw, ("signs", "P(w = +1)", "weights (%)"))


def plot_level_probabilities(
    posterior: Mapping[str, LowBitCategorical], sites: Sequence[str] | None = None
) -> Figure:
    """The mean probability of each level, for each site of weights with a few levels.

    The title has the number of weights and their mean entropy.

    :param sites: which sites, in which order; None: all.
    :raises ValueError: for no site, or one that the posterior does not have.

    >>> import torch
    >>> from bayesbin.distributions import LowBitCategorical
    >>> from bayesbin.posterior import LowBitPosterior
    >>> distribution = LowBitCategorical((-1, 0, 1), torch.randn(30, 4, 3))
    >>> len(plot_level_probabilities(LowBitPosterior({"w": distribution})).axes)
    1
    """

    def draw(axes: Any, distribution: LowBitCategorical) -> None:
        share = 100.0 * distribution.probs.detach().double().flatten(0, -2).mean(0).cpu()
        gap = min(high - low for low, high in pairwise(distribution.levels))
        axes.bar(distribution.levels, share.numpy(), width=0.8 * gap, color=BLUE)
        if len(distribution.levels) <= _LABELLED_LEVELS:
            axes.set_xticks(distribution.levels, [f"{level:g}" for level in distribution.levels])

    return _panel_per_site(posterior, sites, draw, ("weights", "level", "probability (%)"))


def _panel_per_site(
    posterior: Mapping[str, Any],
    sites: Sequence[str] | None,
    draw: Callable[[Any, Any], None],
    words: tuple[str, str, str],
) -> Figure:
    """A grid of panels, one for each site. :param words: for the weights, and below and beside the axes."""
    chosen = list(posterior) if sites is None else list(sites)
    unknown = [site for site in chosen if site not in posterior]
    if unknown or not chosen:
        raise ValueError(
            f"expected sites of the posterior ({', '.join(posterior)}), got "
            f"{', '.join(unknown) or 'none'}."
        )
    weights, below, beside = words
    columns = min(len(chosen), _COLUMNS)
    rows = math.ceil(len(chosen) / columns)
    with matplotlib.rc_context(STYLE):
        size = (max(2.1 * columns, 3.2), 1.9 * rows + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        panels: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat[len(chosen) :]:
            axes.set_axis_off()
        for place, (axes, site) in enumerate(zip(panels.flat, chosen, strict=False)):
            distribution = posterior[site]
            draw(axes, distribution)
            entropy = distribution.entropy().detach().double()
            bits = entropy.mean().item() / math.log(2.0)
            axes.set_title(
                f"{site}\n{entropy.numel():,} {weights}, {bits:.2f} bits", loc="left", fontsize=8.5
            )
            if place + columns >= len(chosen):
                axes.set_xlabel(below)
                axes.tick_params(labelbottom=True)
        for row in panels:
            row[0].set_ylabel(beside)
    return figure


def plot_filters(
    distribution: SignBernoulli,
    axes: Axes | None = None,
    *,
    shape: tuple[int, int] | None = None,
    channel: int = 0,
    num_filters: int = 64,
    title: str = "Posterior over filters",
) -> Axes:
    """Filters as images of P(w = +1): blue is -1, orange +1, white undecided.

    :param distribution: of one site: a convolution's (out, in, height, width); or a linear layer's,
        (out, in), whose rows are images of ``shape``; ``posterior["0.weight"]``, say.
    :param axes: to draw on; None: those of a new figure, reached by ``axes.figure``.
    :param shape: (height, width) of a row; None: a square. :param channel: input channel that is shown.
    :param num_filters: how many, at most, from the first on.
    :raises ValueError: for a site that is no stack of images, or a channel that there is not.

    >>> import torch
    >>> from bayesbin.distributions import LowBitCategorical, SignBernoulli
    >>> plot_filters(SignBernoulli(natural=torch.randn(8, 1, 3, 3))).images[0].get_array().shape
    (11, 11)
    """
    probs = distribution.probs.detach().double().cpu()
    if probs.dim() == 2:
        side = math.isqrt(probs.shape[1])
        height, width = shape or (side, side)
        if height * width != probs.shape[1]:
            raise ValueError(
                f"expected rows of {height} x {width} weights, got rows of {probs.shape[1]}; pass shape."
            )
        probs = probs.reshape(-1, 1, height, width)
    if probs.dim() != 4 or not 0 <= channel < probs.shape[1]:
        raise ValueError(
            f"expected weights (out, in, height, width) or (out, in) with input channel {channel}, got "
            f"{tuple(probs.shape)}; choose another site or channel."
        )
    images = probs[:num_filters, channel]
    count, height, width = images.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    # One pixel between filters, and none around them.
    filled = torch.full((down * across, height + 1, width + 1), torch.nan, dtype=images.dtype)
    filled[:count, :height, :width] = images
    mosaic = filled.view(down, across, height + 1, width + 1).permute(0, 2, 1, 3)
    mosaic = mosaic.reshape(down * (height + 1), across * (width + 1))[:-1, :-1]
    with matplotlib.rc_context(STYLE):
        if axes is None:
            axes = Figure(figsize=(4.2, 3.6), layout="constrained").subplots()
        image = axes.imshow(
            np.ma.masked_invalid(mosaic.numpy()),
            cmap=PROBABILITY.with_extremes(bad="#555555"),
            vmin=0.0,
            vmax=1.0,
            interpolation="none",
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, loc="left")
        bar = figure_of(axes).colorbar(image, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label("P(w = +1)")
    return axes
