"""Which latents' distributions depend on the draws of binary sites, found out while a program runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Functions that return something else than tensors, and tell nothing of their values.
_METADATA = frozenset(
    """size dim ndimension numel nelement stride storage_offset element_size get_device type __len__ __hash__
    is_floating_point is_complex is_signed is_contiguous is_pinned is_inference is_conj is_neg is_same_size
    is_tensor result_type can_cast register_hook backward __repr__ __format__ __get__ __set__ __delete__
    __deepcopy__ __reduce_ex__ _is_view is_shared has_names _make_subclass""".split()
)


class DependenceOnSigns(TorchFunctionMode):
    """Follows the draws of binary sites through the operations of torch that a run of a program does.

    A latent depends on them if a tensor of its distribution, its mask or its scale was computed from one.
    What leaves torch (``if w.sum() > 0``, ``w.tolist()``) or is written into a tensor of the program's can
    turn up anywhere, so that every later latent then counts as dependent: a KL that is averaged over the
    draws although it need not be is right, the other way round it is not. Following ends with the last
    latent, before most networks do any work. Functions of ``torch.jit.script`` cannot be followed.

    :param signs: the binary sites whose draws are followed. :param latents: all latents that may come; None:
        that is not known, and following ends with the run.
    """

    def __init__(self, signs: Iterable[str] = (), latents: Iterable[str] | None = None) -> None:
        super().__init__()
        self.signs = frozenset(signs)
        self.dependent: set[str] = set()
        self._coming = None if latents is None else set(latents)
        self._computed: dict[int, Any] = {}  # by identity, and held so that identities stay unique
        self._anything = self._ended = False

    def __enter__(self) -> DependenceOnSigns:
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if not self._ended:
            self._ended = True
            super().__exit__(*exception)

    def at_site(self, message: Any) -> None:
        """Note whether a latent's distribution depends on draws; before it gets its value."""
        parts = (message["fn"], message["mask"], message["scale"])
        if self._anything or any(id(t) in self._computed for t in _tensors_in(parts, set())):
            self.dependent.add(message["name"])

    def follow(self, value: Any) -> None:
        """Follow a value."""
        if not self._ended:
            self._computed[id(value)] = value

    def after_site(self, name: str, value: Any) -> None:
        """Follow the value of a latent, if it is one of the binary sites."""
        if name in self.signs:
            self.follow(value)
        if self._coming is not None:
            self._coming.discard(name)
            if not self._coming and torch.overrides._get_current_function_mode() is self:
                self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._computed and not self._anything:
            self._follow(func, args, kwargs, result)
        return result

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        if not any(id(tensor) in self._computed for tensor in _flat((args, kwargs))):
            return
        name = getattr(func, "__name__", "")
        results = list(_flat(result))
        if _writes(name, kwargs):
            written = args[0] if "out" not in kwargs else kwargs["out"]
            # Another tensor may be a view of it.
            self._anything = any(id(tensor) not in self._computed for tensor in _flat(written))
        elif not results and name not in _METADATA and not _validates():
            self._anything = True
        self._computed.update((id(tensor), tensor) for tensor in results)


def _writes(name: str, kwargs: Any) -> bool:
    """Whether a function writes into its first argument, or into ``out``."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or "out" in kwargs or name == "__setitem__" or name in _IN_PLACE


_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in "add sub mul div truediv floordiv mod pow and or xor lshift rshift matmul".split()
)


def _validates() -> bool:
    """Whether a distribution is being made, which looks at its parameters to refuse them at most."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "torch.distributions.distribution"


def _flat(value: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments of a function."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors that a distribution is made of, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, set, frozenset, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(part, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        if id(value) not in seen:
            seen.add(id(value))
            yield from _tensors_in(vars(value), seen)
