"""Which weights of a network can be binary, which are by default, and which a caller asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from bayesbin.core.checks import shown
from bayesbin.core.wrappers import module_at, named_modules
from bayesbin.nn.effective import walk_binary
from bayesbin.nn.scales import known_use

Predicate = Callable[[str, nn.Module], bool]
Where = Predicate | type | str | nn.Module | Iterable[Any] | None
Member = tuple[nn.Module, str]


@dataclass(frozen=True)
class Candidate:
    """A parameter of a network that is not binary: under its first name, with every module that holds it.

    :param members: the modules that hold the parameter, and their names for it; several where it is tied.
    :param names: its dotted names, one for each way to a module that holds it.
    :param is_weight: whether it is a weight in the sense of a matrix, a kernel or a table.
    :param reason: why it stays real by default; "" if it does not.
    :param wish: whether somebody wished that (by freezing it, say), so that no warning is due.
    """

    members: list[Member]
    names: list[str]
    parameter: Tensor
    is_weight: bool
    reason: str
    wish: bool

    @property
    def name(self) -> str:
        return self.names[0]


def candidates(net: nn.Module) -> list[Candidate]:
    """The real parameters of a network, tied ones once, in the order of ``net.named_parameters()``."""
    found: dict[int, tuple[Tensor, list[Member], list[str]]] = {}
    for path, owner in named_modules(net):
        prefix = f"{path}." if path else ""
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            _, members, names = found.setdefault(id(parameter), (parameter, [], []))
            names.append(f"{prefix}{leaf}")
            if not any(owner is other and leaf == name for other, name in members):
                members.append((owner, leaf))
    return [_candidate(*each) for each in found.values()]


def _candidate(parameter: Tensor, members: list[Member], names: list[str]) -> Candidate:
    judged = [_judge(owner, leaf, parameter) for owner, leaf in members]
    # Where one of several uses is of a kind that is converted, all are: they are one weight.
    is_weight, reason, wish = min(judged, key=lambda each: (not each[0], each[1] != ""))
    if not parameter.requires_grad:
        reason, wish = "frozen: requires_grad is False", True
    for owner, _ in members:
        if (told := getattr(owner, "stays_real", "")) and is_weight:
            reason, wish = str(told), True
    return Candidate(members, names, parameter, is_weight, reason, wish)


def _judge(owner: nn.Module, leaf: str, parameter: Tensor) -> tuple[bool, str, bool]:
    """Whether a parameter is a weight, why it stays real by default ("" if not), and whether by a wish."""
    if leaf in getattr(type(owner), "binary_leaves", ()):
        return False, "latents behind a binarizer", True
    if isinstance(owner, ParametrizationList):
        reason = "behind a parametrization: torch's remove_parametrizations first, or name it"
        return parameter.dim() > 1, reason, False
    shape = torch.Size() if is_lazy(parameter) else parameter.shape
    if leaf.removesuffix("_orig") != leaf and hasattr(owner, leaf.removesuffix("_orig")):
        return (
            True,
            "pruned or normalised by a hook of torch's: remove that first, or name it",
            False,
        )
    if leaf.removesuffix("_v") != leaf and hasattr(owner, leaf.removesuffix("v") + "g"):
        return True, "weight-normalised: torch.nn.utils.remove_weight_norm first, or name it", False
    if is_lazy(parameter):
        return leaf == "weight" and isinstance(owner, (nn.Linear, _ConvNd)), "", False
    use = known_use(owner, leaf, shape)
    if use is None and not shape:
        return False, "no weight: a single number", True
    if use is None:
        kind = type(owner).__name__
        return (
            parameter.dim() > 1,
            f"a parameter of {kind} itself, whose use is not known: name it, with inputs=",
            False,
        )
    if use.inputs == ():
        return False, "no weight: a bias or a factor of its own for each output", True
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return True, "a table to look up, not a product: name it in where=", False
    return True, "", False


def chosen(net: nn.Module, where: Where, caller: str = "to_binary_") -> list[Candidate]:
    """The parameters that ``where`` asks for, by default all that need no guess, or an error."""
    every = candidates(net)
    already = [name for name, _, _ in walk_binary(net)]
    if where is None:
        found = [c for c in every if c.is_weight and not c.reason]
    else:
        wanted: set[int] = set()
        for each in _parts(where):
            wanted |= _asked_for(net, each, every, caller)
        found = [c for c in every if id(c) in wanted]
    if not found:
        raise ValueError(_nothing(every, already, caller))
    for candidate in found:
        _check(candidate, caller)
    return found


def _parts(where: Where) -> list[Any]:
    if isinstance(where, (str, type, nn.Module)) or callable(where):
        return [where]
    if isinstance(where, Iterable):
        return list(where)
    raise ValueError(
        "expected where= to be a predicate (name, owner) -> bool, a module class, a name, or a list of "
        f"these; got {shown(where)}."
    )


def _asked_for(net: nn.Module, where: Any, every: list[Candidate], caller: str) -> set[int]:
    if isinstance(where, str):
        return _named(net, where, every, caller)
    if isinstance(where, nn.Module):
        return {id(c) for c in _inside(where, every)}
    if isinstance(where, type):
        if not issubclass(where, nn.Module):
            raise ValueError(f"expected a subclass of torch.nn.Module in where=; got {where!r}.")
        inside = [c for m in net.modules() if isinstance(m, where) for c in _inside(m, every)]
        return {id(c) for c in inside if not c.wish}
    if callable(where):
        accepts: Any = where
        _refuse_twice(net, accepts, caller)
        return {
            id(c)
            for c in every
            if c.parameter.requires_grad and any(accepts(n, o) for n, o in _by_name(net, c))
        }
    raise ValueError(
        "expected each part of where= to be a predicate (name, owner) -> bool, a module class or a name; got "
        f"{shown(where)}."
    )


def _by_name(net: nn.Module, candidate: Candidate) -> list[tuple[str, nn.Module]]:
    return [
        (name, owner)
        for name in candidate.names
        if (owner := module_at(net, name.rpartition(".")[0])) is not None
    ]


def _inside(module: nn.Module, every: list[Candidate]) -> list[Candidate]:
    """The weights in a module and its children."""
    owners = {id(each) for each in module.modules()}
    return [c for c in every if c.is_weight and any(id(owner) in owners for owner, _ in c.members)]


def _named(net: nn.Module, name: str, every: list[Candidate], caller: str) -> set[int]:
    found = {id(c) for c in every if name in c.names}
    if found:
        return found
    paths = dict(named_modules(net))
    if name in paths:
        return {id(c) for c in _inside(paths[name], every)}
    path, _, leaf = name.rpartition(".")
    if leaf in getattr(type(paths.get(path)), "binary_leaves", ()):
        raise ValueError(_twice(name, caller))
    known = [n for c in every for n in c.names]
    near = difflib.get_close_matches(name, [*known, *filter(None, paths)], 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"expected the name of a parameter or a module in where=; the network has none named {name!r} (its "
        f"parameters are {', '.join(known) or 'none'}).{hint}"
    )


def _refuse_twice(net: nn.Module, where: Predicate, caller: str) -> None:
    for name, module, _ in walk_binary(net):
        if where(name, module):
            raise ValueError(_twice(name, caller))


def _twice(name: str, caller: str) -> str:
    return f"{name} is binary already; {caller} converts a network once. Leave it out of `where`."


def _nothing(every: list[Candidate], already: list[str], caller: str) -> str:
    known = ", ".join(c.name for c in every) or "none"
    frozen = [c.name for c in every if not c.parameter.requires_grad]
    hint = f"; already binary: {', '.join(already)}" if already else ""
    hint += f"; frozen, and converted only by name: {', '.join(frozen)}" if frozen else ""
    return (
        f"{caller} found no parameter to convert: `where` accepted none of this network's parameters "
        f"({known}{hint})."
    )


def _check(candidate: Candidate, caller: str) -> None:
    name, parameter = candidate.name, candidate.parameter
    for owner, leaf in candidate.members:
        if is_lazy(parameter):
            raise ValueError(
                f"{name} of a {type(owner).__name__} has no shape yet; run the network on one batch before "
                f"{caller}."
            )
        if isinstance(owner, torch.jit.ScriptModule):
            raise ValueError(
                f"{name} is in a module compiled by torch.jit, which cannot be changed; convert the network "
                "before compiling it."
            )
        taken = [
            f"{leaf}_{end}"
            for end in ("prior", "scale", "binarizer")
            if hasattr(owner, f"{leaf}_{end}")
        ]
        if taken:
            raise ValueError(
                f"{name} cannot be converted: its {type(owner).__name__} has an attribute {taken[0]!r}, "
                "where the conversion keeps what belongs to the weight. Rename that."
            )
    if not parameter.is_floating_point():
        raise ValueError(f"{name} is of type {parameter.dtype}, of which there are no signs.")
    if not parameter.is_meta and bool(parameter.isnan().any()):
        raise ValueError(f"{name} contains NaN, of which there is no sign.")
