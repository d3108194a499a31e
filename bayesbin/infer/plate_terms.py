"""The terms of a model's run, kept apart by the plates that its binary latents lie in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayesbin.estimators.base import SitePlates, Term


class TermKey(NamedTuple):
    """Which terms of a run are added up: those of the same plates, after the same binary sites."""

    plates: tuple[str, ...] = ()
    steps: tuple[tuple[str, int], ...] = ()
    after: frozenset[str] | None = None


class TermSums:
    """Adds up the terms of one run of a model.

    A plate declares that its elements are independent given what lies outside of it; so a term is kept
    by the elements of those plates in which a binary latent lies, and summed over all others. Without
    such plates there is one sum.

    :param trace: the run. :param signs: the names of the binary latents.
    """

    def __init__(self, trace: Any, signs: Iterable[str]) -> None:
        self.plates = {name: _plates_of(trace.nodes[name]) for name in signs if name in trace.nodes}
        self.axes = {plate for own in self.plates.values() for plate in own.axes}
        self.steps = {plate for own in self.plates.values() for plate in own.steps}
        self.sums: dict[TermKey, Tensor] = {}
        self._after = self._binary_sites_before(trace) if self.is_split else {}

    @property
    def is_split(self) -> bool:
        """Whether some binary latent lies in a plate."""
        return bool(self.axes or self.steps)

    def _binary_sites_before(self, trace: Any) -> dict[str, frozenset[str]]:
        seen: frozenset[str] = frozenset()
        found = {}
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not site_is_subsample(site):
                found[name] = seen
                if name in self.plates:
                    seen = seen | {name}
        return found

    def add(self, values: Tensor, site: Any) -> None:
        """Add a term.

        :param values: scaled and masked, of the site's batch shape; or their sum.
        :param site: the message of the model's site that it belongs to.
        """
        key, kept = TermKey(), []
        if self.is_split:
            frames = [f for f in site["cond_indep_stack"] if _is_along(f, values, site["name"])]
            kept = sorted((f.dim, f.name) for f in frames if f.name in self.axes)
            steps = tuple((n, c) for n, c in _steps(site) if n in self.steps)
            key = TermKey(tuple(name for _, name in kept), steps, self._after[site["name"]])
        dims = {dim for dim, _ in kept}
        others = [dim for dim in range(-values.dim(), 0) if dim not in dims]
        total = (values.sum(others) if others else values) if dims else values.sum()
        self.sums[key] = self.sums[key] + total if key in self.sums else total


def joined(draws: Sequence[Mapping[TermKey, Tensor]]) -> dict[TermKey, Tensor]:
    """The sums of several draws, each (S, *sizes).

    Draws of a model that branches on its signs may lack a term, which is then 0, or have plates of
    other sizes; then nothing is known by element, and there is one sum.
    """
    like = {key: values for draw in draws for key, values in draw.items()}
    if any(draw[key].shape != like[key].shape for draw in draws for key in draw):
        whole = [torch.stack([values.sum() for values in draw.values()]).sum() for draw in draws]
        return {TermKey(): torch.stack(whole)}
    zeros = {key: torch.zeros_like(values) for key, values in like.items()}
    return {key: torch.stack([draw.get(key, zeros[key]) for draw in draws]) for key in like}


def terms_of(sums: Mapping[TermKey, Tensor]) -> list[Term]:
    """The sums of several draws as an estimator takes them."""
    return [Term(values, key.plates, dict(key.steps), key.after) for key, values in sums.items()]


def _plates_of(site: Any) -> SitePlates:
    shape, event_dim = site["value"].shape, site["fn"].event_dim
    frames = sorted((f for f in site["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    axes = {f.name: f.dim - event_dim for f in frames if -(f.dim - event_dim) <= len(shape)}
    frames = [f for f in frames if f.name in axes]
    sizes = {f.name: (shape[axes[f.name]], f.full_size or f.size) for f in frames}
    return SitePlates(axes, dict(_steps(site)), sizes)


def _steps(site: Any) -> list[tuple[str, int]]:
    """The sequential plates of a site, each with its step."""
    return sorted((f.name, f.counter) for f in site["cond_indep_stack"] if not f.vectorized)


def _is_along(frame: Any, values: Tensor, name: str) -> bool:
    """Whether a term has an axis for a plate."""
    if not frame.vectorized or -frame.dim > values.dim():
        return False
    size = values.shape[frame.dim]
    if size not in (1, frame.size) and frame.size != -1:
        raise ValueError(
            f"The term of {name!r} has {size} elements along the plate {frame.name!r} of size {frame.size}. "
            "Give the site a batch shape with the size of the plate at its dim, or move it out of the plate."
        )
    return size == frame.size or frame.size == -1
