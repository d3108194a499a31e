"""From a network and its posterior to one file that predicts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bayesbin import __version__
from bayesbin.core.canonical import key_of
from bayesbin.core.checks import one_of, whole_number
from bayesbin.core.preprocessing import Preprocessing
from bayesbin.nn.state_norm import Statistics
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict import bbn_file, packed
from bayesbin.predict.folding import Folded, Operation, fold
from bayesbin.predict.packed_layers import PackedNetwork
from bayesbin.predict.predictive import checked_noise, mean_noise_variance
from bayesbin.predict.program import Activation, Pool, Weighted, steps_of
from bayesbin.predict.shipped_model import model_of
from bayesbin.predict.shipped_steps import CONTENTS, walk


def pack(
    net: nn.Module,
    posterior: BinaryPosterior,
    path: str | os.PathLike[str],
    num_samples: int = 32,
    seed: int = 0,
    *,
    statistics: Statistics | None = None,
    contents: str = "draws",
    precision: str = "exact",
    noise: float | str | None = None,
    input_shape: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | tuple[float, float, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write what prediction needs to one file, which :func:`bayesbin.predict.load` reads without torch.

    Of N weights and S draws, ``contents="draws"`` takes N S bits and ``contents="posterior"`` 17 N: the
    mode and the probability of the other sign, from which the same draws are made as they are used. The
    lines of normalisation come beside them, per draw where ``statistics`` are. The same arguments write
    the same bytes.

    :param net, posterior, num_samples, seed, statistics, precision, noise: as for
        :class:`bayesbin.predict.PackedPredictive`, whose answers the file gives.
    :param input_shape: (features,) or (channels, height, width) of one input; None: the inputs of the
        first layer, if it is linear.
    :param labels: a name for each class. :param preprocessing: of raw inputs, see
        :meth:`bayesbin.predict.ShippedPredictive.predict`.
    :param provenance: whatever JSON can hold, by name; the version of bayesbin is added.
    :returns: the path.
    :raises ValueError: for arguments that do not fit, as PackedPredictive raises; for the posterior of
        correlated weights with ``contents="posterior"``; for lines that are not finite.
    :raises OSError: if the file cannot be written; an old one is then what it was.

    Example: see :func:`bayesbin.predict.load`.
    """
    contents = one_of("contents", contents, CONTENTS)
    precision = one_of("precision", precision, packed.PRECISIONS)
    num_samples, seed = whole_number("num_samples", num_samples), whole_number("seed", seed)
    if noise is not None:
        noise = checked_noise(posterior, noise)
    draws: list[int | None] = list(range(num_samples)) or [None]
    operations = fold(net, steps_of(net), draws, seed, statistics)
    network = PackedNetwork(operations, posterior, draws, seed, precision == "fast")
    steps = [_entry(op, kind) for op, kind in zip(operations, network.kinds, strict=True)]
    shape = list(_input_shape(operations) if input_shape is None else input_shape)
    arrays: dict[str, np.ndarray] = {}
    for site in dict.fromkeys(step.site for step in operations if isinstance(step, Weighted)):
        arrays |= _site_arrays(posterior, site, draws, seed, contents)
    header: dict[str, Any] = {
        "contents": contents,
        "num_samples": num_samples,
        "seed": seed,
        "precision": precision,
        # The sums of floats depend on their order: the file says which one is meant.
        "draws_at_once": packed.DRAWS_AT_ONCE if posterior.effects else len(draws),
        "input": shape,
        "outputs": 0,
        "noise_variance": None,
        "labels": None if labels is None else list(labels),
        "preprocessing": None,
        "provenance": {**(provenance or {}), "bayesbin": __version__},
        "steps": steps,
    }
    if noise is not None:
        header["noise_variance"] = mean_noise_variance(posterior, noise, num_samples, seed).item()
    if preprocessing is not None:
        constants = Preprocessing(*preprocessing)._asdict()
        header["preprocessing"] = {
            name: list(map(float, constant)) if isinstance(constant, Sequence) else float(constant)
            for name, constant in constants.items()
        }
    try:
        shapes = walk(steps, shape, contents, num_samples)[1]
        header["outputs"] = shapes[-1][0]
        arrays |= _line_arrays(operations, [channels for channels, _, _ in shapes])
        model_of(header, arrays)  # a file that could not be read is not written
    except ValueError as error:
        raise ValueError(f"This network and posterior do not make a model file: {error}") from error
    bbn_file.write(path, header, arrays)
    return Path(path)


def _input_shape(operations: Sequence[Operation]) -> tuple[int, ...]:
    first = next((op for op in operations if isinstance(op, Weighted)), None)
    if first is None or first.stride is not None:
        raise ValueError(
            "A network that begins with a convolution does not say how large its images are; pass "
            "input_shape=(channels, height, width)."
        )
    return (first.shape[1],)


def _entry(op: Operation, kind: str) -> dict[str, Any]:
    """A step of the header."""
    if isinstance(op, Weighted):
        geometry = {"stride": _pair(op.stride), "padding": _pair(op.padding)}
        return {"op": "weights", "site": op.site, "shape": list(op.shape), "kind": kind, **geometry}
    if isinstance(op, Folded):
        return {"op": "line"}
    if isinstance(op, Activation):
        bounds = {"low": op.low, "high": op.high} if op.kind == "hardtanh" else {}
        return {"op": op.kind, **bounds}
    if isinstance(op, Pool):
        window = {"size": op.size, "stride": op.stride, "padding": op.padding}
        return {"op": f"{op.kind}_pool", **{name: _pair(pair) for name, pair in window.items()}}
    assert not fields(op), f"a step that a file does not know: {op}"
    return {"op": type(op).__name__.lower()}


def _pair(values: tuple[int, int] | None) -> list[int] | None:
    return None if values is None else list(values)


def _line_arrays(operations: Sequence[Operation], channels: Sequence[int]) -> dict[str, np.ndarray]:
    """Slopes and shifts, for each channel also where all have the same."""
    found = {}
    for place, op in enumerate(operations):
        if isinstance(op, Folded):
            for part, values in (("slope", op.slope), ("shift", op.shift)):
                whole = np.broadcast_to(values, (len(values), channels[place]))
                found[f"line {place}.{part}"] = np.ascontiguousarray(whole)
    return found


def _site_arrays(
    posterior: BinaryPosterior, site: str, draws: Sequence[int | None], seed: int, contents: str
) -> dict[str, np.ndarray]:
    """The bits of each draw, or the mode with the probabilities of the other sign, and keys."""
    if contents == "draws":
        rows = [_tight(_plus(posterior, site, index, seed)) for index in draws]
        return {f"{site}.bits": np.stack(rows)}
    if site in posterior.effects:
        raise ValueError(
            f"The weights of {site!r} are correlated, so that each draw has probabilities of its own; "
            'use contents="draws".'
        )
    thresholds = posterior.thresholds(site, 0, seed=seed)
    shape = thresholds.mode.shape
    flip = np.ascontiguousarray(thresholds.flip.reshape(shape[0], math.prod(shape[1:])))
    found = {f"{site}.mode": _tight(thresholds.mode), f"{site}.flip": flip}
    keys = [key_of(seed, index, site) for index in draws if index is not None]
    return found | ({f"{site}.keys": np.array(keys, dtype=np.uint64)} if keys else {})


def _plus(posterior: BinaryPosterior, site: str, index: int | None, seed: int) -> np.ndarray:
    """Which signs of a draw are +1."""
    if index is None:
        return (posterior.signs()[site] > 0).cpu().numpy()
    return posterior.thresholds(site, index, seed=seed).draw(key_of(seed, index, site))


def _tight(plus: np.ndarray) -> np.ndarray:
    return np.packbits(plus.reshape(-1), bitorder="little")
