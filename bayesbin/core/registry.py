"""Things that are found by name: the package's own, those a program registers, and those of plug-ins."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from bayesbin.core.checks import one_of, shown

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for, of one kind, such as estimators.

    There are three sources: the package's own names, names given to :meth:`register`, and entry points of
    installed packages. The first two are checked when they come in, an entry point when its name is asked
    for: until then it is only listed, so that a broken plug-in breaks neither an import nor a listing.

    :param kind: what one of them is, for messages: "estimator".
    :param own: the package's own.
    :param group: of the entry points: "bayesbin.estimators".
    :param check: called with (name, thing); raises ValueError where the thing breaks its contract.

    Example::

        >>> from bayesbin.core.registry import Registry
        >>> greetings = Registry("greeting", {"polite": "Good day"}, group="bayesbin.greetings")
        >>> greetings.register("short", "Hi")
        >>> greetings.names(), greetings["short"]
        (('polite', 'short'), 'Hi')
    """

    def __init__(
        self,
        kind: str,
        own: Mapping[str, T],
        *,
        group: str,
        check: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.kind, self.own, self.group = kind, own, group
        self._check = check
        self._registered: dict[str, T] = {}
        self._loaded: dict[tuple[str, str], T] = {}  # by name and "module:attribute"

    def register(self, name: str, thing: T) -> None:
        """Add a thing under a new name, for as long as the program runs.

        :raises ValueError: for a name that is taken, that is no name (empty, or with spaces), or where
            the thing breaks the contract of its kind.
        """
        if not isinstance(name, str) or not name or name != "".join(name.split()):
            raise ValueError(
                f"expected the {self.kind} to have a name without spaces; got {shown(name)}."
            )
        if name in self.names():
            raise ValueError(
                f"The name {name!r} is taken by {self._origin(name)}; register the {self.kind} under "
                "another one."
            )
        if self._check is not None:
            self._check(name, thing)
        self._registered[name] = thing

    def unregister(self, name: str) -> None:
        """Take back what :meth:`register` did. :raises ValueError: for a name that was not registered."""
        one_of(f"the registered {self.kind}", name, self._registered)
        del self._registered[name]

    @property
    def registered(self) -> tuple[str, ...]:
        """The names that were registered."""
        return tuple(self._registered)

    def names(self) -> tuple[str, ...]:
        """All names: the package's own, the registered ones, those of entry points. Loads nothing."""
        return tuple(dict.fromkeys((*self.own, *self._registered, *self._entry_points())))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __getitem__(self, name: str) -> T:
        """What a name stands for; an entry point is loaded and checked now.

        :raises ValueError: for an unknown name, or an entry point that cannot be loaded, that two
            packages define, or that breaks its contract; the message names the package.
        """
        one_of(self.kind, name, self.names())
        if name in self.own:
            return self.own[name]
        if name in self._registered:
            return self._registered[name]
        points = self._entry_points()[name]
        if len(points) > 1:
            packages = ", ".join(sorted(_package(point) for point in points))
            raise ValueError(
                f"Several packages define the {self.kind} {name!r}: {packages}. Uninstall all but one, "
                "or import the one you mean and pass it itself."
            )
        return self._load(name, points[0])

    def _load(self, name: str, point: importlib.metadata.EntryPoint) -> T:
        key = name, point.value
        if key not in self._loaded:
            try:
                thing = point.load()
                if self._check is not None:
                    self._check(name, thing)
            except Exception as error:  # whatever a foreign module raises when it is imported
                raise ValueError(
                    f"The {self.kind} {name!r} comes from {_package(point)} (entry point {point.value}), "
                    f"which cannot be used: {type(error).__name__}: {error}"
                ) from error
            self._loaded[key] = thing
        return self._loaded[key]

    def _entry_points(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            same = found.setdefault(point.name, [])
            # One package seen twice on the path, as an installed and an editable copy, is one package.
            if all((_package(point), point.value) != (_package(p), p.value) for p in same):
                same.append(point)
        return found

    def _origin(self, name: str) -> str:
        if name in self.own:
            return f"the package's own {self.kind}"
        if name in self._registered:
            return f"a {self.kind} registered before"
        return f"a {self.kind} of {_package(self._entry_points()[name][0])}"


def _package(point: importlib.metadata.EntryPoint) -> str:
    return "an unknown package" if point.dist is None else str(point.dist.name)
