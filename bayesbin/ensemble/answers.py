"""Answers of an ensemble: averages over draws that were computed in torch, and predictions as tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from bayesbin.ensemble.members import Member
from bayesbin.runtime.head import Head
from bayesbin.runtime.heads import HEADS, head_of

Prediction = TypeVar("Prediction")


def description(members: Sequence[Member]) -> dict[str, Any]:
    """The head as a predictor takes it: its parameters in each of the draws."""
    head = members[0].head
    parameters = HEADS[head["kind"]].parameters_of(head)
    settings = {name: value for name, value in head.items() if name not in parameters}
    return settings | {
        name: [value for member in members for value in member.parameter(name)]
        for name in parameters
    }


def averaged(members: Sequence[Member], draws: Iterable[list[np.ndarray]]) -> Any:
    """The prediction from the outputs of each draw, (B, ...) each."""
    head, sums = None, {}
    for outputs in draws:
        head = head or _head(members, outputs)
        head.add(sums, [output[None] for output in outputs])
    assert head is not None
    return head.finish(sums)


def log_probs_of(members: Sequence[Member], outputs: list[np.ndarray]) -> np.ndarray:
    """Log-probabilities of the classes in each draw from the outputs of all, (S, B, ..., C)."""
    return _head(members, [output[0] for output in outputs]).log_probs(outputs)


def _head(members: Sequence[Member], outputs: list[np.ndarray]) -> Head:
    values = {str(k): SimpleNamespace(shape=out.shape[1:]) for k, out in enumerate(outputs)}
    count = sum(len(member.draws) for member in members)
    program: Any = SimpleNamespace(num_draws=count, values=values, outputs=list(values))
    return head_of(description(members), program)


def in_tensors(prediction: Prediction) -> Prediction:
    """A prediction with tensors in place of arrays, quantities that are computed among them."""
    kind: Any = type(prediction)
    computed = [
        name for name, _ in inspect.getmembers(kind, lambda each: isinstance(each, cached_property))
    ]
    made = object.__new__(kind)
    for name in (*kind.__dataclass_fields__, *computed):
        made.__dict__[name] = _tensor(getattr(prediction, name))
    return made


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return tuple(map(_tensor, value)) if isinstance(value, tuple) else value
