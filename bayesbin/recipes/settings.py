"""The settings of a method: their defaults, what they may be, and how they are read from text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import (
    one_of,
    real_number,
    real_numbers,
    shown,
    true_or_false,
    whole_number,
)


@dataclass(frozen=True)
class Setting:
    """One setting of a method: a number, name, truth value, or a list of numbers or names.

    :param default: its default; None where it depends on other settings.
    :param check: from (name, value) to the value as plain JSON, or a ValueError in a sentence.
    :param optional: whether it may be None, for "none" or "not applicable".
    """

    default: Any
    check: Callable[[str, Any], Any]
    optional: bool = False

    def checked(self, name: str, value: Any) -> Any:
        """The value as plain JSON. :raises ValueError: if the setting cannot be that."""
        if value is None:
            if self.optional:
                return None
            raise ValueError(
                f"The setting {name!r} cannot be None; leave it out for {self.default!r}."
            )
        return self.check(name, value)

    @staticmethod
    def like(default: Any) -> Setting:
        """The setting of any value of the default's type, for methods of a user's own.

        >>> Setting.like(0.5).checked("rate", 2), Setting.like("a").checked("name", "b")
        (2.0, 'b')
        """
        if isinstance(default, Setting):
            return default
        if isinstance(default, bool):
            return flag(default)
        if isinstance(default, int):
            return Setting(default, whole_number)
        if isinstance(default, float):
            return Setting(default, real_number)
        if isinstance(default, str):
            return Setting(default, _text)
        if isinstance(default, (list, tuple)):
            return Setting(list(default), _list)
        if default is None:
            return Setting(None, lambda name, value: value, optional=True)
        raise ValueError(
            f"expected a setting's default to be a number, a string, a list of these or None; got "
            f"{shown(default)}. Networks and tensors are arguments of recipe(), not settings."
        )


def number(default: float | None, *, optional: bool = False, **bounds: float) -> Setting:
    """A real number within bounds, as of ``real_number``."""
    return Setting(default, lambda name, value: real_number(name, value, **bounds), optional)


def positive(default: float | None, *, optional: bool = False) -> Setting:
    """A number above 0."""
    return number(default, optional=optional, above=0)


def count(default: int | None, *, optional: bool = False) -> Setting:
    """A whole number of at least 1."""
    return Setting(default, lambda name, value: whole_number(name, value, 1), optional)


def flag(default: bool) -> Setting:
    """True or False."""
    return Setting(default, true_or_false)


def choice(default: str, known: Callable[[], Iterable[str]]) -> Setting:
    """One of some names, which are asked for when they are needed."""
    return Setting(default, lambda name, value: one_of(name, value, known()))


def names(
    default: Iterable[str] | None, known: Iterable[str], *, optional: bool = False
) -> Setting:
    """Some of a few names, each at most once."""
    known = tuple(known)

    def check(name: str, value: Any) -> list[str]:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)) or not given or len(set(given)) < len(given):
            raise ValueError(
                f"expected {name} to be some of {', '.join(known)}, each at most once; got {shown(value)}."
            )
        for each in given:
            one_of(f"each of {name}", each, known)
        return [each for each in known if each in given]

    return Setting(None if default is None else list(default), check, optional)


def numbers(default: Iterable[float], *, length: int | None = None, **bounds: float) -> Setting:
    """Several real numbers; as many as ``length``, if it is given."""

    def check(name: str, value: Any) -> list[float]:
        found = list(real_numbers(name, value, **bounds))
        if length is not None and len(found) != length:
            raise ValueError(f"expected {name} to be {length} numbers; got {shown(value)}.")
        return found

    return Setting(list(default), check)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected {name} to be a string; got {shown(value)}.")
    return value


def _list(name: str, value: Any) -> list[Any]:
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(each, (str, int, float)) for each in given):
        raise ValueError(f"expected {name} to be a list of numbers or strings; got {shown(value)}.")
    return given


def parse(text: str) -> Any:
    """The value that a text after ``name=`` stands for: a number, true, false, none, a list or a word.

    >>> [parse(t) for t in ("0.2", "1e-3", "nested", "layer,filter", "-1,0,1", "none", "true")]
    [0.2, 0.001, 'nested', ['layer', 'filter'], [-1, 0, 1], None, True]
    """
    text = text.strip()
    if "," in text:
        return [parse(part) for part in text.strip("[]()").split(",") if part.strip()]
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def digest_of(value: Any) -> str:
    """A line about a value that is no setting, for records: its class, and a digest of its numbers.

    >>> import torch
    >>> digest_of({"w": torch.zeros(2)})[:12]
    'dict sha256:'
    """
    known = getattr(value, "digest", None)
    if isinstance(known, str):
        return f"{type(value).__name__} sha256:{known[:16]}"
    sha = hashlib.sha256()
    _feed(sha, value)
    return f"{type(value).__name__} sha256:{sha.hexdigest()[:16]}"


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found = value.detach().cpu().contiguous()
        sha.update(f"{found.dtype} {tuple(found.shape)}".encode())
        sha.update(found.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, nn.Module):
        sha.update(repr(value).encode())
        _feed(sha, value.state_dict())
    elif isinstance(value, Mapping):
        for key in value:
            sha.update(str(key).encode())
            _feed(sha, value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            _feed(sha, each)
    elif hasattr(value, "__array__"):
        _feed(sha, torch.as_tensor(value))
    else:
        sha.update(repr(value).encode())


def require_json(settings: Mapping[str, Any]) -> None:
    """Refuse settings that would not come back from JSON as they are."""
    try:
        kept = json.loads(json.dumps(settings, allow_nan=False)) == dict(settings)
    except (TypeError, ValueError):
        kept = False
    if not kept:
        raise ValueError(
            "expected settings that JSON can keep: numbers, strings, lists of these, None; got "
            f"{shown(dict(settings))}."
        )
