"""What an export is made of: a program of the draws that were asked for, and what belongs to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesbin.runtime.program import Program


@dataclass(frozen=True)
class Shipped:
    """A network with its draws.

    :param head: what the outputs mean. :param preprocessing: from raw inputs to those of the program.
    :param about: what else is known: labels, where it comes from.
    """

    program: Program
    head: Mapping[str, Any]
    preprocessing: Program | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def shipped_of(predictor: Any, draws: Sequence[int] | None = None) -> Shipped:
    """A predictor, or what is in a ``.bbn`` file, with some of the draws or all of them.

    :raises ValueError: for draws that there are not.
    """
    if isinstance(predictor, str | os.PathLike):
        from bayesbin.runtime.predictor import load

        predictor = load(predictor)
    if draws is not None:
        predictor = predictor.select(list(draws))
    about = dict(predictor.provenance or {})
    if predictor.labels:
        about["labels"] = list(predictor.labels)
    return Shipped(predictor.program, predictor.head, predictor.preprocessing, about)
