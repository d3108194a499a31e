"""Names of dimensions and their labels, and the variables of a group as one data set of xarray's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray

# Of a weight, by its number of dimensions.
_WEIGHT_AXES = {2: ("out", "in"), 3: ("out", "in", "offset"), 4: ("out", "in", "row", "column")}


@dataclass(frozen=True)
class Variable:
    """An array with the names of its first dimensions, and the site whose dimensions are the others.

    :param axes: the names of the others, where they are no site's.
    """

    group: str
    name: str
    site: str
    leading: tuple[str, ...]
    array: np.ndarray
    axes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Labels:
    """How the dimensions of sites are called, and what their entries are.

    :param coords: dimension -> labels. :param dims: variable or site -> names of its own dimensions.
    :param plates: site -> the plates of its dimensions. :param weights: the sites of signs.
    """

    coords: Mapping[str, Any]
    dims: Mapping[str, Sequence[str]]
    plates: Mapping[str, Sequence[str | None]]
    weights: Iterable[str]

    def datasets(
        self, variables: Sequence[Variable], attrs: Mapping[str, Any]
    ) -> dict[str, xarray.Dataset]:
        """Group -> its variables, named. :raises ValueError: for names that fit none of them."""
        known = {variable.name for variable in variables} | {v.site for v in variables}
        if unknown := [name for name in self.dims if name not in known]:
            raise ValueError(
                f"dims has names for {', '.join(unknown)}; the variables are {', '.join(sorted(known))}."
            )
        axes = [self._axes(variable) for variable in variables]
        sizes = {
            name: size
            for variable, names in zip(variables, axes, strict=True)
            for name, size in zip(names, variable.array.shape, strict=True)
        }
        for name, labels in self.coords.items():
            if name not in sizes or len(labels) != sizes[name]:
                came = f"{len(labels)} labels of {name!r}"
                raise ValueError(
                    f"Expected coords of the dimensions {sizes}, a label for each entry; got {came}."
                )
        groups: dict[str, dict[str, Any]] = {}
        for variable, names in zip(variables, axes, strict=True):
            groups.setdefault(variable.group, {})[variable.name] = (names, variable.array)
        return {
            group: xarray.Dataset(
                arrays,
                coords={
                    name: list(self.coords.get(name, range(sizes[name])))
                    for names, _ in arrays.values()
                    for name in names
                },
                attrs=dict(attrs),
            )
            for group, arrays in groups.items()
        }

    def _axes(self, variable: Variable) -> tuple[str, ...]:
        if variable.axes is not None:
            return variable.leading + variable.axes
        count = variable.array.ndim - len(variable.leading)
        given = self.dims.get(variable.name, self.dims.get(variable.site))
        if given is None:
            return variable.leading + self._default_axes(variable, count)
        # A density has no dimensions of its distribution's event.
        if len(given) != count and not (variable.group == "log_likelihood" and len(given) > count):
            shape = variable.array.shape[len(variable.leading) :]
            raise ValueError(
                f"Expected dims of {variable.name!r} for the shape {shape}; got {list(given)}."
            )
        return variable.leading + tuple(given)[:count]

    def _default_axes(self, variable: Variable, count: int) -> tuple[str, ...]:
        site = variable.site
        kinds = _WEIGHT_AXES.get(count) if site in self.weights else None
        names = [f"{site}_{kind}" for kind in kinds or (f"dim_{i}" for i in range(count))]
        for axis, plate in enumerate(self.plates.get(site, ())):
            # xarray takes a variable of its dimension's name for the labels of that dimension.
            if plate is not None and axis < count and plate != variable.name:
                names[axis] = plate
        return tuple(names)
