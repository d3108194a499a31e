"""Plates of automatic guides: the rows of a call, and the parameters that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayesbin.distributions.wrappers import sign_distribution
from bayesbin.guides.announcing import LocalParameters
from bayesbin.guides.prototype import normalisation_kept

Plate = pyro.plate


@dataclass(frozen=True)
class PlateAxis:
    """A plate that a site lies in.

    :param dim: as in Pyro, counted from the right of the batch shape; None of a plate that is a loop.
    :param size: of the whole plate. :param axis: of the site's value, counted from the left.
    """

    name: str
    dim: int | None
    size: int
    axis: int = 0


@dataclass(frozen=True)
class DeclaredPlate:
    """A plate as a call of the model makes it.

    :param size: of the whole plate. :param count: how many rows the call sees.
    :param indices: those that the model gives; None where it leaves the choice to Pyro.
    """

    size: int
    count: int
    indices: Tensor | None

    @classmethod
    def of(cls, message: Any) -> DeclaredPlate:
        """The plate behind the message by which Pyro asks for its indices, before it is answered."""
        size, given = message["fn"].size, message["value"]
        asked = message["fn"].subsample_size
        if given is not None:
            given = torch.as_tensor(given)
            return cls(size, len(given), given)
        return cls(size, size if asked is None else min(asked, size), None)


class _Found(BaseException):
    """Ends the run of a model in which all plates in question have been found."""


class _PlateSearch(Messenger):
    """Notes the plates that a program makes, and ends its run as soon as those named are known."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.found: dict[str, DeclaredPlate] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"]:
            return
        if site_is_subsample(msg):
            plate = self.found[msg["name"]] = DeclaredPlate.of(msg)
            if self.names <= self.found.keys():
                raise _Found
            if msg["value"] is None:
                msg["value"] = torch.arange(plate.count, device=msg["fn"].device)
        elif not msg["is_observed"] and (signs := sign_distribution(msg["fn"])) is not None:
            # Spares the drawing of millions of weights: plates do not depend on them.
            msg["value"], msg["done"] = signs.natural.new_ones(()).expand(msg["fn"].shape()), True


def declared_plates(
    model: Callable[..., Any], names: Iterable[str], args: Any, kwargs: Any
) -> dict[str, DeclaredPlate]:
    """The plates of these names that a call of the model makes.

    The model runs up to the last of them, without gradients and without a trace in generators,
    normalisation layers or the caller's handlers.
    """
    search = _PlateSearch(names)
    with (
        torch.no_grad(), torch.random.fork_rng(), normalisation_kept(), poutine.block(),
        LocalParameters(), search,
    ):  # fmt: skip
        try:
            model(*args, **kwargs)
        except _Found:
            pass
        except TypeError:
            # A guide may be called by itself, without the arguments of its model: for all rows.
            if args or kwargs:
                raise
    return {name: search.found[name] for name in search.names & search.found.keys()}


def made_plate(axis: PlateAxis, declared: DeclaredPlate | None) -> Plate:
    """A plate of the guide for one of the model, with its indices, or with as many that Pyro draws."""
    if axis.size < 0:  # the model does not say its size
        return pyro.plate(axis.name, dim=axis.dim)
    if declared is None:
        return pyro.plate(axis.name, axis.size, dim=axis.dim)
    require_size(axis, declared)
    if declared.indices is not None:
        return pyro.plate(axis.name, axis.size, subsample=declared.indices, dim=axis.dim)
    if declared.count < axis.size and poutine.get_mask() is False:
        raise ValueError(
            f"The plate {axis.name!r} draws {declared.count} of its {axis.size} rows, and without densities, "
            "as in pyro.infer.Predictive, guide and model would draw different ones; predict with a plate "
            "of all rows, or with subsample=indices."
        )
    return pyro.plate(axis.name, axis.size, subsample_size=declared.count, dim=axis.dim)


def given_plates(plates: Any, axes: Mapping[str, PlateAxis]) -> dict[str, Plate]:
    """What ``create_plates`` returned, by name.

    :raises ValueError: for something that is no plate, or a plate of another size or dim than the model's.
    """
    plates = [plates] if isinstance(plates, pyro.plate) else plates
    if not isinstance(plates, Iterable):
        plates = [plates]
    found: dict[str, Plate] = {}
    for plate in plates:
        if not isinstance(plate, pyro.plate):
            raise ValueError(
                f"create_plates returns a pyro.plate or several; got {type(plate).__name__}."
            )
        found[plate.name] = plate
        if (axis := axes.get(plate.name)) is None:
            continue
        if plate.size != axis.size:
            raise ValueError(
                f"create_plates returned a plate {plate.name!r} of size {plate.size}; the model's is of size "
                f"{axis.size}: write pyro.plate({plate.name!r}, {axis.size}, subsample=indices)."
            )
        if plate.dim is None:
            plate.dim = axis.dim
        elif plate.dim != axis.dim:
            raise ValueError(
                f"create_plates returned the plate {plate.name!r} with dim={plate.dim}; in the model it has "
                f"dim={axis.dim}."
            )
    return found


def require_size(axis: PlateAxis, declared: DeclaredPlate) -> None:
    """Refuse a plate that has another size than when the guide was built."""
    if declared.size != axis.size:
        raise ValueError(
            f"The plate {axis.name!r} has the size {declared.size} in this call and had {axis.size} when the "
            "guide was built, which has parameters for each row of it; give the plate its full size and "
            f"the rows of a batch as indices: pyro.plate({axis.name!r}, {axis.size}, subsample=indices)."
        )
    if axis.dim is None and declared.count != axis.size:
        raise ValueError(
            f"The plate {axis.name!r} is a loop over {declared.count} of {axis.size} rows, each with latent "
            "sites of its own; write it as a vectorised plate: with pyro.plate(...) as indices."
        )


def rows_of(plate: Plate) -> Tensor | None:
    """The rows of a plate that a call sees, checked; None for all of them in order.

    :raises ValueError: for indices that are not whole numbers from 0 to the size of the plate - 1.
    """
    if plate.size < 0:
        return None
    indices = torch.as_tensor(plate.indices)
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.dim() != 1:
        raise ValueError(
            f"The indices of the plate {plate.name!r} are a vector of whole numbers; got {indices.dtype} of "
            f"shape {tuple(indices.shape)}."
        )
    if len(indices) == plate.size and torch.equal(
        indices, torch.arange(plate.size, device=indices.device, dtype=indices.dtype)
    ):
        return None
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
    if low < 0 or high >= plate.size:
        raise ValueError(
            f"The indices of the plate {plate.name!r} are from 0 to {plate.size - 1}; got {low} to {high}."
        )
    return indices


def at_rows(
    parameter: Tensor, axes: Iterable[PlateAxis], rows: Mapping[str, Tensor | None]
) -> Tensor:
    """The part of a site's parameter that belongs to the rows of a call.

    :param parameter: of the full size of each plate; axes after those of the site are kept.
    """
    for axis in axes:
        if (indices := rows.get(axis.name)) is not None:
            parameter = parameter.index_select(axis.axis, indices.to(parameter.device))
    return parameter


def repeated(value: Tensor, axes: Iterable[PlateAxis]) -> Tensor:
    """A value that was seen for some rows of its plates, repeated until it has all of them."""
    for axis in axes:
        if axis.dim is not None and 0 < value.shape[axis.axis] != axis.size > 0:
            rows = torch.arange(axis.size, device=value.device) % value.shape[axis.axis]
            value = value.index_select(axis.axis, rows)
    return value


def axes_of(message: Any) -> tuple[PlateAxis, ...]:
    """The plates that a site lies in, the outermost first.

    :raises ValueError: for a loop over some of its rows, whose other sites cannot be known.
    """
    found = []
    dims = message["value"].dim() - message["fn"].event_dim
    for frame in message["cond_indep_stack"]:
        size = frame.size if frame.full_size is None else frame.full_size
        if frame.vectorized:
            found.append(PlateAxis(frame.name, frame.dim, size, dims + frame.dim))
            continue
        if size != frame.size:
            raise ValueError(
                f"The latent site {message['name']!r} lies in the plate {frame.name!r}, a loop over "
                f"{frame.size} of {size} rows; a guide cannot know the sites of the others. Write it as a "
                "vectorised plate: with pyro.plate(...) as indices."
            )
        found.append(PlateAxis(frame.name, None, size))
    return tuple(found)
