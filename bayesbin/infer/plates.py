"""Whether a guide and a model mean the same rows of their plates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor


def subsamples_of(trace: Any) -> dict[str, Tensor]:
    """The indices of the plates of a trace, such as a guide's, for the model to use."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site_is_subsample(site)
    }


def checked_indices(message: Any, known: Tensor) -> Tensor:
    """The indices that a plate of the model takes: those of the guide.

    :param message: of the model's plate. :param known: the guide's, or of an earlier run of the same step.
    :raises ValueError: where the model gives other indices.
    """
    given = message["value"]
    if given is not None and not _equal(torch.as_tensor(given), torch.as_tensor(known)):
        name, size = message["name"], message["fn"].size
        raise ValueError(
            f"The plate {name!r} has the rows {_shown(given)} in the model and {_shown(known)} in the guide, "
            f"whose latents would be those of other data; write pyro.plate({name!r}, {size}, "
            "subsample=indices) with the same indices in both."
        )
    return known


def checked_value(
    message: Any, value: Any, rows: Mapping[str, Tensor], guided: frozenset[str]
) -> Any:
    """The value that a latent site of the model takes, where it fits.

    :param message: of the model's site. :param rows: plate -> indices of the call.
    :param guided: the plates whose indices are the guide's.
    :raises ValueError: for a value of another shape, which would be broadcast, or one that is not known to
        be of the rows that the model takes.
    """
    name, fn = message["name"], message["fn"]
    shape, came = _without_ones(fn.shape()), _without_ones(value.shape)
    if came != shape:
        raise ValueError(
            f"At {name!r} the guide has shape {tuple(value.shape)} and the model {tuple(fn.shape())}; build "
            f"the guide from this model{_hint(message)}."
        )
    for frame in message["cond_indep_stack"]:
        if frame.name not in rows or frame.name in guided or not frame.vectorized:
            continue
        indices, size = torch.as_tensor(rows[frame.name]), _full_size(frame)
        if not _equal(indices, torch.arange(size, device=indices.device)):
            raise ValueError(
                f"The model has {name!r} in the plate {frame.name!r} of the rows {_shown(indices)}; its "
                f"value comes from outside of that plate, for unknown rows. Sample it inside "
                f"pyro.plate({frame.name!r}, {size}, subsample=indices), or take all {size} rows in order."
            )
    return value


def check_plates(guided: Mapping[str, Any], latents: Mapping[str, Any]) -> None:
    """Compare the plates of the sites that a guide and a model share.

    A guide may sample a site outside a plate of which the model takes all rows, as a vector of its own.

    :param guided: the guide's sites. :param latents: the model's, of the same call.
    :raises ValueError: for a plate of another size or dim, or one with a part of its rows in one of the two.
    """
    for name in sorted(guided.keys() & latents.keys()):
        own = {frame.name: frame for frame in guided[name]["cond_indep_stack"]}
        theirs = {frame.name: frame for frame in latents[name]["cond_indep_stack"]}
        for plate in {**theirs, **own}:
            if plate in own and plate in theirs:
                _check_frames(name, own[plate], theirs[plate])
                continue
            alone = own.get(plate) or theirs[plate]
            if alone.size != _full_size(alone):
                where, other = ("guide", "model") if plate in own else ("model", "guide")
                raise ValueError(
                    f"The {where} has {name!r} in the plate {plate!r}, with {alone.size} of "
                    f"{_full_size(alone)} rows, the {other} outside of it; use the same plates in both."
                )


def _check_frames(name: str, own: Any, theirs: Any) -> None:
    for what, guided, modelled in (
        ("dim", own.dim, theirs.dim),
        ("size", _full_size(own), _full_size(theirs)),
        ("number of rows", own.size, theirs.size),
    ):
        if guided != modelled:
            raise ValueError(
                f"The plate {own.name!r} of {name!r} has the {what} {guided} in the guide and {modelled} in "
                "the model; use the same plates in both."
            )


def _full_size(frame: Any) -> int:
    return frame.size if frame.full_size is None else frame.full_size


def _hint(message: Any) -> str:
    plates = [frame for frame in message["cond_indep_stack"] if frame.vectorized]
    if not plates:
        return ""
    names = ", ".join(repr(frame.name) for frame in plates)
    return f", with a value for each row of {names}"


def _without_ones(shape: Any) -> tuple[int, ...]:
    """A shape without the leading dimensions of size 1."""
    sizes = list(shape)
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.shape == other.shape and torch.equal(one, other.to(one.device, one.dtype))
    )


def _shown(indices: Any) -> str:
    """The first few of a plate's indices."""
    found = torch.as_tensor(indices).tolist()
    return f"[{', '.join(map(str, found[:5]))}{', ...' if len(found) > 5 else ''}]"
