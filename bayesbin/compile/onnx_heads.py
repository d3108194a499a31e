"""What the draws say together, in ONNX: one table, keyed by the kind of a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesbin.compile.onnx_graph import Graph
from bayesbin.runtime.class_heads import ClassesHead
from bayesbin.runtime.heads import MOST_LOG_NOISE, MOST_LOG_RATE, NormalHead
from bayesbin.runtime.model import Model
from bayesbin.runtime.program import Value

Together = dict[str, tuple[str, list[int]]]


def _number(graph: Graph, value: Any) -> str:
    return graph.constant(np.asarray(value, dtype=np.float64))


def _double(graph: Graph, name: str, value: Value) -> str:
    return name if value.dtype == "f8" else graph.cast(name, "f8")


def _classes(
    graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]
) -> Together:
    head, shape = model.averaging, list(values[0].shape)
    assert isinstance(head, ClassesHead)
    logits = _double(graph, stacked[0], values[0])
    axis = head.axis + 1  # after those of draws and of the batch
    if axis < len(shape) + 1:
        order = [place for place in range(len(shape) + 2) if place != axis]
        logits = graph.node("Transpose", logits, perm=[*order, axis])
    each = graph.node("LogSoftmax", logits, axis=-1)
    return _one_of_classes(graph, model, each, [*head.targets, head.labels])


def _ordinal(
    graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]
) -> Together:
    head = model.averaging
    scores = _numbers(graph, model, stacked, values)
    scores = graph.node("Unsqueeze", scores, graph.constant(np.array([-1], dtype=np.int64)))
    cuts = head.numbers["cutpoints"]
    cuts = cuts.reshape(len(cuts), *[1] * (len(head.targets) + 1), -1)
    above = graph.node("Sub", scores, _number(graph, cuts))
    # log P(y > k) and log P(y <= k); between two cut points as in the likelihood.
    beyond, at_most = (_log_sigmoid(graph, each) for each in (above, graph.node("Neg", above)))
    parts = [_part(graph, at_most, 0, 1)]
    if cuts.shape[-1] > 1:
        with np.errstate(divide="ignore"):
            apart = np.log(-np.expm1(-np.diff(cuts, axis=-1)))
        both = graph.node("Add", _part(graph, at_most, 1), _part(graph, beyond, 0, -1))
        parts.append(graph.node("Add", both, _number(graph, apart)))
    parts.append(_part(graph, beyond, -1))
    each = graph.node("Concat", *parts, axis=-1)
    return _one_of_classes(graph, model, each, [*head.targets, head.labels])


def _one_of_classes(graph: Graph, model: Model, each: str, shape: list[Any]) -> Together:
    """Averages of log-probabilities of each draw, (S, B, ..., C)."""
    mean = graph.node("ReduceLogSumExp", each, axes=[0], keepdims=0)
    mean = graph.node("Sub", mean, _number(graph, math.log(model.program.num_draws)))
    entropy, information = _entropies(graph, each, mean)
    return {
        "probs": (graph.node("Exp", mean), shape),
        "log_probs": (mean, shape),
        "entropy": (entropy, shape[:-1]),
        "mutual_information": (information, shape[:-1]),
    }


def _labels(
    graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]
) -> Together:
    logits, shape = _numbers(graph, model, stacked, values), list(model.averaging.targets)
    last = graph.constant(np.array([-1], dtype=np.int64))
    both = [_log_sigmoid(graph, each) for each in (logits, graph.node("Neg", logits))]
    each = graph.node("Concat", *(graph.node("Unsqueeze", one, last) for one in both), axis=-1)
    mean = graph.node("ReduceLogSumExp", each, axes=[0], keepdims=0)
    mean = graph.node("Sub", mean, _number(graph, math.log(model.program.num_draws)))
    entropy, information = _entropies(graph, each, mean)
    present = graph.node("Squeeze", _part(graph, mean, 0, 1), last)
    return {
        "probs": (graph.node("Exp", present), shape),
        "log_probs": (present, shape),
        "entropy": (entropy, shape),
        "mutual_information": (information, shape),
    }


def _entropies(graph: Graph, each: str, mean: str) -> tuple[str, str]:
    """Of the mean of log-probabilities, and how much less that of the draws is."""
    expected = graph.node("ReduceMean", _entropy(graph, each), axes=[0], keepdims=0)
    entropy = _entropy(graph, mean)
    information = graph.node("Sub", entropy, expected)
    return entropy, graph.node("Max", information, _number(graph, 0))


def _log_sigmoid(graph: Graph, logits: str) -> str:
    # log(1 + exp(-|x|)), by operators that runtimes have in float64
    small = graph.node("Exp", graph.node("Neg", graph.node("Abs", logits)))
    logs = graph.node("Log", graph.node("Add", small, _number(graph, 1.0)))
    return graph.node("Sub", graph.node("Min", logits, _number(graph, 0.0)), logs)


def _part(graph: Graph, name: str, first: int, end: int | None = None) -> str:
    """Some entries along the last axis."""
    ends = np.iinfo(np.int64).max if end is None else end
    places = (graph.constant(np.array([k], dtype=np.int64)) for k in (first, ends, -1))
    return graph.node("Slice", name, *places)


def _numbers(graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]) -> str:
    """The only output in float64, in the shape of the targets: an axis of one is left out."""
    outputs = _double(graph, stacked[0], values[0])
    if values[0].shape == (1,) and model.averaging.targets == ():
        return graph.node("Squeeze", outputs, graph.constant(np.array([2], dtype=np.int64)))
    return outputs


def _entropy(graph: Graph, log_probs: str) -> str:
    # A logarithm of -inf has the probability 0, and adds nothing.
    floor = graph.node("Max", log_probs, _number(graph, -1e4))
    terms = graph.node("Mul", graph.node("Exp", floor), floor)
    axis = graph.constant(np.array([-1], dtype=np.int64))
    return graph.node("Neg", graph.node("ReduceSum", terms, axis, keepdims=0))


def _moments(graph: Graph, outputs: str) -> tuple[str, str]:
    mean = graph.node("ReduceMean", outputs, axes=[0], keepdims=1)
    away = graph.node("Sub", outputs, mean)
    square = graph.node("Mul", away, away)
    axis = graph.constant(np.array([0], dtype=np.int64))
    return (
        graph.node("Squeeze", mean, axis),
        graph.node("ReduceMean", square, axes=[0], keepdims=0),
    )


def _normal(
    graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]
) -> Together:
    head, shape = model.averaging, list(model.averaging.targets)
    assert isinstance(head, NormalHead)
    if head.heteroscedastic:
        both = _double(graph, stacked[0], values[0])
        half = values[0].shape[0] // 2
        means, logs = _part(graph, both, 0, half), _part(graph, both, half)
        if half == 1:
            last = graph.constant(np.array([2], dtype=np.int64))
            means, logs = (graph.node("Squeeze", each, last) for each in (means, logs))
        low, high = (_number(graph, bound) for bound in (-MOST_LOG_NOISE, MOST_LOG_NOISE))
        logs = graph.node("Min", graph.node("Max", logs, low), high)
        variances = graph.node("Exp", graph.node("Mul", logs, _number(graph, 2.0)))
        return _three(graph, means, variances, shape)
    mean, variance = _moments(graph, _numbers(graph, model, stacked, values))
    aleatoric = np.broadcast_to(np.square(head.numbers["noise"]).mean(0), tuple(shape))
    like = graph.node("Shape", mean)
    return {
        "mean": (mean, shape),
        "aleatoric_variance": (graph.node("Expand", _number(graph, aleatoric), like), shape),
        "epistemic_variance": (variance, shape),
    }


def _counts(
    graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]
) -> Together:
    head = model.averaging
    logs, most = _numbers(graph, model, stacked, values), _number(graph, MOST_LOG_RATE)
    beyond = graph.node("Max", graph.node("Sub", logs, most), _number(graph, 0.0))
    means = graph.node("Exp", graph.node("Min", logs, most))
    means = graph.node("Mul", means, graph.node("Add", beyond, _number(graph, 1.0)))
    variances = means
    if "concentration" in head.numbers:
        given = head.numbers["concentration"]
        rank = len(head.targets) + 2
        given = given.reshape(len(given), *[1] * (rank - given.ndim), *given.shape[1:])
        square = graph.node("Mul", means, means)
        variances = graph.node("Add", means, graph.node("Div", square, _number(graph, given)))
    return _three(graph, means, variances, list(head.targets))


def _three(graph: Graph, means: str, variances: str, shape: list[Any]) -> Together:
    """Means and variances of each draw, averaged."""
    mean, variance = _moments(graph, means)
    aleatoric = graph.node("ReduceMean", variances, axes=[0], keepdims=0)
    return {
        "mean": (mean, shape),
        "aleatoric_variance": (aleatoric, shape),
        "epistemic_variance": (variance, shape),
    }


def _outputs(
    graph: Graph, model: Model, stacked: Sequence[str], values: Sequence[Value]
) -> Together:
    found: Together = {}
    for place, (name, value) in enumerate(zip(stacked, values, strict=True)):
        end = f"_{place}" if len(values) > 1 else ""
        mean, variance = _moments(graph, _double(graph, name, value))
        found[f"mean{end}"] = (mean, list(value.shape))
        found[f"variance{end}"] = (variance, list(value.shape))
    return found


HEADS = {
    "classes": _classes,
    "ordinal": _ordinal,
    "labels": _labels,
    "normal": _normal,
    "poisson": _counts,
    "negative_binomial": _counts,
    "outputs": _outputs,
}
