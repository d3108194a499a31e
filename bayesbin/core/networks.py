"""The one place where drawn weights enter a torch network: by value, for one call or in a copy.

A call leaves the network as it found it. What a module keeps of a call beside its buffers (the weights that
pruning and weight normalisation compute, cached activations) would be of the drawn weights, with their
graph: it is put back. Buffers that a forward pass changes, such as running statistics, are the network's
own state and stay changed.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bayesbin.core.copies import copy_network
from bayesbin.core.turns import in_turn
from bayesbin.core.wrappers import module_at

Member = tuple[nn.Module, str]

_TORCHS = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: none of them an attribute
_CONTAINERS = (list, dict, deque)
_NONE = object()


def ties_of(module: nn.Module, leaf: str) -> list[Member]:
    """Every module and name under which a binary tensor is held: itself alone, or all that are tied to it."""
    ties = module.__dict__.get("_binary_ties")
    return [(module, leaf)] if ties is None or leaf not in ties else ties[leaf]


def call(
    net: nn.Module, values: Mapping[str, Tensor], x: Any, state: Mapping[str, Tensor] | None = None
) -> Any:
    """``net(x)`` with the signs of each site replaced for this one call; the network stays what it is.

    :param values: site name -> signs (relaxed signs and moments of weights are welcome too).
    :param x: a tuple is the arguments of the network, anything else the one argument.
    :param state: further buffers or parameters to replace, by state-dict name: normalisation statistics.
    :raises KeyError: for a site or a state-dict name that the network does not have.
    :raises ValueError: for weights of another shape, as those of many draws at once.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    for site, value in values.items():
        members = _members(net, site)
        _require_one_draw(site, value, members[0])
        for module, leaf in members:
            replaced.append((module._buffers, leaf, value))
    for key, value in (state or {}).items():
        replaced.append((*_place(net, key), value))
    with _kept(net):
        before = [(place, leaf, place[leaf]) for place, leaf, _ in replaced]
        try:
            for place, leaf, value in replaced:
                place[leaf] = value
            return net(*x) if isinstance(x, tuple) else net(x)
        finally:
            # Backwards: where a tensor was replaced twice, the first entry has the one that was there.
            for place, leaf, value in reversed(before):
                place[leaf] = value


def inputs_of(net: nn.Module) -> tuple[list[str], int, bool]:
    """The names of a network's inputs, how many it cannot be called without, and whether it takes any number.

    >>> inputs_of(nn.Linear(2, 1)), inputs_of(nn.Bilinear(2, 2, 1))[:2]
    ((['input'], 1, False), (['input1', 'input2'], 2))
    """
    try:
        found = inspect.signature(net.forward).parameters.values()
    except (ValueError, TypeError):
        return [], 0, True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [each for each in found if each.kind in positional]
    several = any(each.kind is each.VAR_POSITIONAL for each in found)
    return [each.name for each in named], sum(p.default is p.empty for p in named), several


def named_inputs(names: list[str], given: Mapping[str, Any]) -> list[str]:
    """The names of the inputs that are given, in the order of the network's.

    :raises ValueError: for a name that is none of the network's, or one left out before another.
    """
    found = [name for name in names if name in given]
    if len(found) < len(given) or found != names[: len(found)]:
        raise ValueError(
            f"expected inputs named as the network's arguments, {', '.join(names)}, with none left out "
            f"between; got {', '.join(map(str, given))}."
        )
    return found


def write_(
    net: nn.Module, values: Mapping[str, Tensor], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Write signs (and buffers) into ``net``, which the caller owns; returns it."""
    with torch.no_grad():
        for site, value in values.items():
            module, leaf = _members(net, site)[0]
            weight = module._buffers[leaf]
            assert weight is not None
            if weight.shape != value.shape:  # copy_ would broadcast
                raise ValueError(
                    f"The network's weight {site!r} has shape {tuple(weight.shape)}, the posterior's "
                    f"{tuple(value.shape)}. A posterior is used with the network it was trained on."
                )
            weight.copy_(value)
            for member, _ in _members(net, site):
                recompute(member)
        for key, value in (state or {}).items():
            place, leaf = _place(net, key)
            place[leaf].copy_(value)
    return net


def copy_with(
    net: nn.Module, values: Mapping[str, Tensor], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy of ``net`` in evaluation mode whose weights are the given signs."""
    return write_(copy_network(net), values, state).eval()


@torch.no_grad()
def recompute(module: nn.Module) -> None:
    """Bring a tensor up to date that a hook of torch's pruning or weight normalisation computes.

    The hook would do so at the next call; until then ``module.weight`` would be that of other signs.
    """
    for hook in module._forward_pre_hooks.values():
        known: Any = hook
        if isinstance(hook, BasePruningMethod):
            setattr(module, known._tensor_name, known.apply_mask(module))
        elif isinstance(hook, WeightNorm):
            setattr(module, known.name, known.compute_weight(module))
        elif isinstance(hook, SpectralNorm):
            weight = known.compute_weight(module, do_power_iteration=False)
            setattr(module, known.name, weight)


def _members(net: nn.Module, site: str) -> list[Member]:
    """The modules that hold the signs of a site, and their names for them."""
    path, _, leaf = site.rpartition(".")
    module = module_at(net, path)
    if module is None or module._buffers.get(leaf) is None:
        raise KeyError(
            f"The network has no weight named {site!r}. A posterior is used with the network it was trained "
            "on, converted by to_binary_ in the same way."
        )
    return ties_of(module, leaf)


def _require_one_draw(site: str, value: Tensor, member: Member) -> None:
    shape = member[0]._buffers[member[1]].shape  # type: ignore[union-attr]
    if value.shape == shape:
        return
    if value.shape[value.dim() - len(shape) :] == shape:
        raise ValueError(
            f"expected one draw of the weight {site!r}, of shape {tuple(shape)}, got {tuple(value.shape)}: "
            "layers of torch take no batch of weights. Leave out vectorize_particles=True, or parallel=True."
        )
    raise ValueError(
        f"expected the weight {site!r} to be of shape {tuple(shape)}, got {tuple(value.shape)}. A posterior "
        "is used with the network it was trained on."
    )


def _place(net: nn.Module, key: str) -> tuple[dict[str, Any], str]:
    """Where a network holds the tensor of a state-dict name."""
    path, _, leaf = key.rpartition(".")
    module = module_at(net, path)
    for place in () if module is None else (module._buffers, module._parameters):
        if place.get(leaf) is not None:
            return place, leaf
    raise KeyError(f"The network has no buffer or parameter named {key!r}.")


@contextmanager
def _kept(net: nn.Module) -> Iterator[None]:
    """Put back, at the end, tensors in attributes of a network's modules that the body left there."""
    before = []
    for module in net.modules():
        own = vars(module)
        kept = [(name, value) for name, value in own.items() if name not in _TORCHS]
        contents = [
            (container, copy.copy(container))
            for _, value in kept
            if isinstance(value, _CONTAINERS)
            for container in _containers(value)
        ]
        before.append((module, dict(kept), dict(module._buffers), contents))
    try:
        yield
    finally:
        for module, attributes, buffers, contents in before:
            _put_back(module, attributes)
            for container, old in contents:
                _restore_contents(container, old)
            _settle_buffers(module, buffers)


def _put_back(module: nn.Module, before: dict[str, Any]) -> None:
    own = vars(module)
    for name, value in list(own.items()):
        old = before.get(name, _NONE)
        if value is old or name in _TORCHS or not (_holds_tensor(value) or _holds_tensor(old)):
            continue
        if old is _NONE:
            del own[name]
        else:
            own[name] = old
    for name, old in before.items():
        if name not in own and _holds_tensor(old):
            own[name] = old


def _restore_contents(container: Any, before: Any) -> None:
    """Undo changes of tensors in a list, a dictionary or a deque."""
    same = len(container) == len(before) and all(
        a is b for a, b in zip(_elements(container), _elements(before), strict=True)
    )
    if same or not (_holds_tensor(container) or _holds_tensor(before)):
        return
    container.clear()
    if isinstance(container, dict):
        container.update(before)
    else:
        container.extend(before)


def _containers(value: Any) -> Iterator[Any]:
    """A list, dictionary or deque, and those inside it."""
    yield value
    for each in _elements(value):
        if isinstance(each, _CONTAINERS):
            yield from _containers(each)


def _elements(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (*_CONTAINERS, tuple, set)):
        return any(_holds_tensor(each) for each in _elements(value))
    return False


def _settle_buffers(module: nn.Module, before: dict[str, Any]) -> None:
    """Buffers that were assigned anew stay, as state does, but hold no graph and no tensor of ``vmap``'s."""
    functorch: Any = torch._C
    for name, value in list(module._buffers.items()):
        old = before.get(name, _NONE)
        if value is old or not isinstance(value, Tensor):
            continue
        if functorch._functorch.is_functorch_wrapped_tensor(value):
            if old is _NONE:
                del module._buffers[name]
            else:
                module._buffers[name] = old
        elif value.requires_grad:
            module._buffers[name] = value.detach()


@contextmanager
def normalisation_kept(*, on_error: bool = False) -> Iterator[None]:
    """Restore on leaving the statistics of every normalisation layer that ran, in a closure too.

    :param on_error: restore them only if an error leaves the block.
    """
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _BatchNorm):
            kept.extend((buffer, buffer.clone()) for buffer in module.buffers())

    with in_turn():  # the hook sees the layers of every thread
        handle = register_module_forward_pre_hook(keep)
        try:
            with warnings.catch_warnings():
                # Of a hook that runs twice for a compiled module: a second copy changes nothing.
                warnings.filterwarnings(
                    "ignore", "Using `torch.compile.module.` when there are global hooks"
                )
                yield
            if on_error:
                kept.clear()
        finally:
            handle.remove()
            with torch.no_grad():
                for buffer, old in reversed(kept):  # the first copy of a layer counts
                    # Past autograd's version counter: a graph may hold these statistics, but one
                    # recorded in training mode, the only one in which they changed, does not use them.
                    buffer.data.copy_(old)
