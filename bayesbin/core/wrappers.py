"""Modules that only run another one: those of ``torch.compile`` and of data parallelism.

What they hold is called by the names that it has without them, so that a posterior of a network is one of the
compiled network too.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def wrapped(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper runs; None for any other module."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return _child(module, "_orig_mod")  # of torch.compile


def unwrapped(module: nn.Module) -> nn.Module:
    """A module without the wrappers around it.

    >>> import torch
    >>> net = nn.Linear(2, 1)
    >>> unwrapped(torch.compile(net, backend="eager")) is net
    True
    """
    while (inner := wrapped(module)) is not None:
        module = inner
    return module


def named_modules(
    net: nn.Module, prefix: str = "", seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """``net.named_modules()`` by the names without wrappers.

    :param seen: modules to leave out, and those that were found; None: modules in several places come by
        each of their names.

    >>> net = nn.Sequential(nn.DataParallel(nn.Linear(2, 1)))
    >>> [name for name, _ in named_modules(net)]
    ['', '0']
    """
    net = unwrapped(net)
    if seen is not None:
        if net in seen:
            return
        seen.add(net)
    yield prefix, net
    for name, child in net._modules.items():
        if child is not None:
            yield from named_modules(child, f"{prefix}.{name}" if prefix else name, seen)


def named_buffers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """``net.named_buffers()`` by the names without wrappers."""
    for path, module in named_modules(net, seen=set()):
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                yield f"{path}.{leaf}" if path else leaf, buffer


def module_at(net: nn.Module, path: str) -> nn.Module | None:
    """``net.get_submodule(path)`` by the names without wrappers; None where there is none."""
    module: nn.Module | None = unwrapped(net)
    for name in path.split(".") if path else ():
        module = None if module is None else _child(module, name)
        module = None if module is None else unwrapped(module)
    return module


def _child(module: nn.Module, name: str) -> nn.Module | None:
    # The children of a module that torch.jit has compiled are in no dictionary.
    return module._modules[name] if name in module._modules else None
