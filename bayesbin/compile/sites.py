"""Binary weights of a network as the sites of a program: the draws of a posterior, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.core.canonical import key_of, pack_words
from bayesbin.nn import binary_sites
from bayesbin.posterior import BinaryPosterior, LowBitPosterior
from bayesbin.runtime.program import Constant, DrawnSite, Site, StoredSite


def check_posterior(net: nn.Module, posterior: Any) -> None:
    """Whether a posterior is one over the binary weights of a network.

    :raises ValueError: for a site that one of them does not have, or that has another shape.
    """
    if not isinstance(posterior, (BinaryPosterior, LowBitPosterior, type(None))):
        raise ValueError(
            f"expected a posterior over signs or over a few levels, got a {type(posterior).__name__}, whose "
            "weights are other numbers; predict in torch."
        )
    shapes = {name: tuple(site.shape) for name, site in binary_sites(net).items()}
    mode = {} if posterior is None else posterior.signs()
    given = {name: tuple(each.shape) for name, each in mode.items()}
    origin = "A posterior is used with the network it was trained on, converted in the same way."
    if missing := [name for name in shapes if name not in given]:
        raise ValueError(
            f"expected the posterior to have the network's binary weights {_some(missing)}, got "
            f"{_some(given) if given else 'none'}. {origin}"
        )
    if foreign := [name for name in given if name not in shapes]:
        raise ValueError(
            f"expected the network to have the posterior's weights {_some(foreign)}, got "
            f"{_some(shapes) if shapes else 'none'}. {origin}"
        )
    for name, shape in shapes.items():
        if given[name] != shape:
            raise ValueError(
                f"expected {name!r} of shape {shape} as in the network, got {given[name]}. {origin}"
            )


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def drawn_sites(
    posterior: Any, draws: Sequence[int], seed: int
) -> tuple[dict[str, Site], dict[str, Constant]]:
    """The sites of signs, and the weights of a few levels, of some draws of a posterior.

    :param draws: indices of draws of ``seed``; none for the mode, as the one draw that there is.
    """
    if posterior is None:
        return {}, {}
    if isinstance(posterior, LowBitPosterior):
        return {}, _of_levels(posterior, draws, seed)
    if not draws:
        return {name: _stored([each > 0]) for name, each in posterior.signs().items()}, {}
    return {name: _of_signs(posterior, name, draws, seed) for name in posterior}, {}


def _of_signs(posterior: BinaryPosterior, name: str, draws: Sequence[int], seed: int) -> Site:
    keys = [key_of(seed, index, name) for index in draws]
    if name in posterior.effects:
        return _stored(
            [
                torch.from_numpy(posterior.thresholds(name, index, seed=seed).draw(key))
                for index, key in zip(draws, keys, strict=True)
            ]
        )
    found = posterior.thresholds(name, draws[0], seed=seed)
    if not found.flip.any():
        return _stored([torch.from_numpy(found.mode)])
    shape = found.mode.shape
    flip = found.flip.reshape(1, shape[0], -1)
    mode = pack_words(found.mode.reshape(shape[0], -1))[None]
    return DrawnSite(shape, mode, flip, np.array(keys, dtype=np.uint64))


def _stored(plus: Sequence[Tensor]) -> StoredSite:
    """Signs of each draw, or of all of them where there is one."""
    shape = tuple(plus[0].shape)
    bits = np.stack([pack_words(each.cpu().numpy().reshape(shape[0], -1)) for each in plus])
    rows = None if len(plus) == 1 else np.arange(len(plus), dtype=np.int64)
    return StoredSite(shape, bits, rows)


def _of_levels(posterior: LowBitPosterior, draws: Sequence[int], seed: int) -> dict[str, Constant]:
    """The levels of all sites in each draw, as numbers of levels."""
    values = [posterior.signs(index, seed=seed) for index in draws] or [posterior.signs()]
    rows = np.arange(len(draws), dtype=np.int64) if draws else None
    found = {}
    for name, distribution in posterior.items():
        levels = distribution.level_values.detach().cpu()
        data = np.stack([_codes(each[name].cpu(), levels) for each in values])
        found[name] = Constant(data, rows, tuple(map(float, levels)))
    return found


def _codes(values: Tensor, levels: Tensor) -> np.ndarray:
    return (values[..., None] == levels).to(torch.uint8).argmax(-1).numpy().astype(np.uint8)


def drawn_statistics(
    statistics: Mapping[str, Any] | None, draws: Sequence[int]
) -> dict[str, Constant]:
    """Normalisation statistics of each draw, by their names in the network's state.

    :param statistics: name -> numbers (S, ...) of each draw.
    """
    tables = {name: np.asarray(table) for name, table in (statistics or {}).items()}
    count = max(len(draws), 1)
    for name, table in tables.items():
        if len(table) != count:
            raise ValueError(f"expected {name!r} of {count} draws, got {len(table)}.")
    rows = np.arange(count, dtype=np.int64)
    return {name: Constant(np.ascontiguousarray(table), rows) for name, table in tables.items()}
