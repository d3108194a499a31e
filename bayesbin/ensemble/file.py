"""The file of an ensemble: everything but the code, in the safetensors format, with digests.

The header is JSON under the metadata key "bayesbin":

    format, version     "bayesbin ensemble", 1
    example             shape and type of one input, for each argument of the network, or null
    members             for each: seed, draws (null: the mode), head, scales (numbers, in hexadecimal),
                        posterior (its own header), origin and digest, statistics (a list of draws, or
                        null), buffers (the names of those of the statistics)

and the tensors of member m are "m.state.NAME", "m.likelihood.NAME" (of the likelihood itself, where it has
any), "m.posterior.NAME" and "m.statistics.NAME", the last with a row for each of the listed draws.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.checks import shown
from bayesbin.core.files import CorruptFileError
from bayesbin.core.wrappers import unwrapped
from bayesbin.ensemble.inputs import Signature
from bayesbin.ensemble.members import Draw, Member, Statistics, checked_head
from bayesbin.ensemble.state import (
    described,
    own_copy,
    require_same,
    require_sites,
    scales_of,
    tensors_of,
    write_state_,
)
from bayesbin.nn.likelihoods import Likelihood
from bayesbin.posterior import Posterior, file
from bayesbin.posterior.loading import posterior_of_contents

FORMAT = file.Format("bayesbin ensemble", 1, "an ensemble")
_MOST_DRAWS = 1 << 24


def write(
    path: str | os.PathLike[str], members: Sequence[Member], example: Signature | None
) -> None:
    """Write members to a file, atomically.

    :raises OSError: if it cannot be written; an old file is then what it was.
    """
    tensors: dict[str, Tensor] = {}
    entries = []
    for place, member in enumerate(members):
        found, entry = _written(member)
        tensors |= {f"{place}.{name}": tensor for name, tensor in found.items()}
        entries.append(entry)
    header = {
        "example": None
        if example is None
        else [[list(shape), str(dtype).removeprefix("torch.")] for shape, dtype in example],
        "members": entries,
    }
    file.write(path, tensors, header, FORMAT)


def _written(member: Member) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"state.{name}": tensor for name, tensor in tensors_of(member.net).items()}
    weights, header = member.posterior.contents()
    tensors |= {f"posterior.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"likelihood.{name}": each for name, each in member.likelihood_tensors().items()}
    draws: list[Draw] | None = None
    buffers: list[str] = []
    if member.statistics is not None:
        draws = list(member.statistics.values)
        buffers = sorted(member.statistics.values[draws[0]])
        for name in buffers:
            rows = [member.statistics.values[draw][name] for draw in draws]
            tensors[f"statistics.{name}"] = torch.stack(rows)
    return tensors, {
        "seed": member.seed,
        "draws": list(member.draws),
        "head": dict(member.head),
        "scales": {name: scale.hex() for name, scale in scales_of(member.net).items()},
        "posterior": header,
        "posterior digest": member.posterior.digest,
        "origin": member.origin,
        "digest": member.digest,
        "statistics": draws,
        "buffers": buffers,
    }


def read(path: str | os.PathLike[str], model: nn.Module) -> tuple[list[Member], Signature | None]:
    """Read members from a file, for a model of their architecture.

    :raises CorruptFileError: for a damaged or foreign file. :raises ValueError: for another architecture.
    """
    tensors, header = file.read(path, FORMAT)
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    inner = model.net if isinstance(model, Likelihood) else model
    if not isinstance(inner, nn.Module):
        raise ValueError(f"expected a model or a network; got {type(model).__name__}.")
    try:
        parts = [_Part(entry, _of_member(tensors, k)) for k, entry in enumerate(header["members"])]
        if not parts:
            raise ValueError("no members")
        example = _example(header["example"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise CorruptFileError(
            path, f"its contents are not those of an ensemble ({type(error).__name__}: {error})."
        ) from error
    if isinstance(model, Likelihood) and model.prediction_head["kind"] != parts[0].head["kind"]:
        raise ValueError(
            f"expected a model whose outputs are of kind {parts[0].head['kind']!r}, as those of the ensemble "
            f"in {path}; got a {type(model).__name__}."
        )
    return [_made(path, part, model) for part in parts], example


def _of_member(tensors: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    start = f"{place}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


class _Part:
    """One member as a file has it, its entries checked, before it meets a network."""

    def __init__(self, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.state = _named(tensors, "state.")
        self.likelihood = _named(tensors, "likelihood.")
        self.posterior: Posterior[Any] = posterior_of_contents(
            _named(tensors, "posterior."), entry["posterior"]
        )
        if self.posterior.digest != entry["posterior digest"]:
            raise ValueError("the posterior is not that of its digest")
        self.seed = _whole(entry["seed"])
        self.draws = _draws(entry["draws"])
        self.head = checked_head(entry["head"], self.posterior)
        self.scales = {str(n): float.fromhex(scale) for n, scale in entry["scales"].items()}
        self.origin, self.digest = str(entry["origin"]), str(entry["digest"])
        self.statistics: Statistics | None = None
        if entry["statistics"] is not None:
            rows = _named(tensors, "statistics.")
            listed = _draws(entry["statistics"])
            if sorted(rows) != list(entry["buffers"]):
                raise ValueError("statistics of other buffers than listed")
            if any(len(tensor) != len(listed) for tensor in rows.values()):
                raise ValueError("statistics of other draws than listed")
            values = {
                draw: {name: tensor[place] for name, tensor in rows.items()}
                for place, draw in enumerate(listed)
            }
            if not {*self.draws, None} <= values.keys():
                raise ValueError("statistics that lack a draw")
            self.statistics = Statistics(values, self.origin)


def _made(path: str | os.PathLike[str], part: _Part, model: nn.Module) -> Member:
    shapes = {site: tuple(w.shape) for site, w in part.posterior.signs().items()}
    made = own_copy(model)
    own = made.net if isinstance(made, Likelihood) else made
    likelihood = made if isinstance(made, Likelihood) else None
    require_sites(own, shapes, part.posterior.kind)
    write_state_(own, part.state, part.scales)
    networks.write_(own, part.posterior.signs())
    member = Member(
        own, part.posterior, part.seed, part.draws, part.head, part.statistics, likelihood
    )
    if likelihood is not None:
        _write_likelihood_(path, member, part)
    if member.origin != part.origin or member.digest != part.digest:
        raise CorruptFileError(
            path, "the network, posterior and statistics in it do not match their digests."
        )
    for name in {} if part.statistics is None else part.statistics.values[None]:
        if name not in dict(own.named_buffers()):
            raise ValueError(
                f"The ensemble in {path} has normalisation statistics of {name!r}, which is no buffer of the "
                "network; it is of another architecture."
            )
    return member


def _write_likelihood_(path: str | os.PathLike[str], member: Member, part: _Part) -> None:
    """Put the likelihood's own numbers into a member that was just made; refuse another likelihood."""
    assert member.likelihood is not None
    model = type(member.likelihood).__name__
    own = member.likelihood_tensors()
    require_same(
        f"The likelihood has other parameters and buffers than that of the ensemble in {path}: ",
        {name: described(tensor) for name, tensor in own.items()},
        {name: described(tensor) for name, tensor in part.likelihood.items()},
    )
    with torch.no_grad():
        for name, tensor in part.likelihood.items():
            own[name].copy_(tensor)
    asked = checked_head(member.likelihood.prediction_head, part.posterior)
    for name in sorted({*asked, *part.head}):
        if asked.get(name) != part.head.get(name):
            raise ValueError(
                f"expected a model whose {name} is {shown(part.head.get(name))}, as that of the ensemble in "
                f"{path}; got a {model} with {shown(asked.get(name))}."
            )
    for name in member.likelihood.latents():
        if name not in part.posterior.real:
            raise ValueError(
                f"The posterior in {path} has no real-valued site {name!r}, which the {model} draws; use the "
                "model that the ensemble was made of."
            )


def _named(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number, got {str(value)[:40]!r}")
    return value


def _draws(values: Any) -> tuple[Draw, ...]:
    if not isinstance(values, list) or not 0 < len(values) <= _MOST_DRAWS:
        raise ValueError("expected a list of draws")
    return tuple(None if value is None else _whole(value) for value in values)


def _example(value: Any) -> Signature | None:
    if value is None:
        return None
    found = []
    for shape, name in value:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"expected a type of torch's, got {str(name)[:40]!r}")
        found.append((tuple(map(_whole, shape)), dtype))
    return tuple(found)
