"""What the draws say together, in ONNX: one table, keyed by the kind of a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesbin.compile.onnx_graph import Graph
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
    shape, count = list(values[0].shape), model.program.num_draws
    logits = _double(graph, stacked[0], values[0])
    each = graph.node("LogSoftmax", logits, axis=-1)
    mean = graph.node("ReduceLogSumExp", each, axes=[0], keepdims=0)
    mean = graph.node("Sub", mean, _number(graph, math.log(count)))
    expected = graph.node("ReduceMean", _entropy(graph, each), axes=[0], keepdims=0)
    entropy = _entropy(graph, mean)
    information = graph.node("Sub", entropy, expected)
    information = graph.node("Max", information, _number(graph, 0))
    return {
        "probs": (graph.node("Exp", mean), shape),
        "log_probs": (mean, shape),
        "entropy": (entropy, shape[:-1]),
        "mutual_information": (information, shape[:-1]),
    }


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
    outputs, shape = _double(graph, stacked[0], values[0]), list(values[0].shape)
    if shape == [1]:
        axis = graph.constant(np.array([2], dtype=np.int64))
        outputs, shape = graph.node("Squeeze", outputs, axis), []
    mean, variance = _moments(graph, outputs)
    noise = np.atleast_1d(np.asarray(model.head["noise"], dtype=np.float64))
    aleatoric = np.broadcast_to(np.square(noise).mean(0), tuple(shape))
    like = graph.node("Shape", mean)
    return {
        "mean": (mean, shape),
        "aleatoric_variance": (graph.node("Expand", _number(graph, aleatoric), like), shape),
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


HEADS = {"classes": _classes, "normal": _normal, "outputs": _outputs}
