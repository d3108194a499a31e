"""One draw of a model file, or its mode, as an ONNX graph. The only importer of onnx."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.core.files import write_atomically
from bayesbin.predict.shipped_model import ShippedModel, read_model
from bayesbin.predict.unpacking import checked_draw, signs_of_draw

OPSET, IR_VERSION = 17, 8  # of 2022: what runtimes of the last years read


class _Graph:
    """Nodes and constants so far, and the name of the current values."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.current = "input"
        self.stack: list[str] = []

    def node(self, kind: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        out = out or f"value_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [out], **attributes))
        return out

    def constant(self, name: str, array: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name


def export_onnx(
    path: str | os.PathLike[str], out: str | os.PathLike[str], draw: int | str = 0
) -> Path:
    """Write one network of a model file as ONNX.

    The graph takes float32 ``input`` (batch, ...) as the network has it, without preprocessing, and puts
    out ``outputs`` (batch, classes), of a classifier also ``probs``, their softmax. Weights are int8. It
    is one network: average the ``probs`` of several for a prediction.

    :param draw: the index of a draw, or "mode".
    :raises ImportError: without the package onnx. :raises ValueError: for a draw that the file does not
        have; for a mode whose normalisation it does not have. :raises CorruptFileError: as
        :func:`bayesbin.predict.load`. :raises OSError: if it cannot be written.

    Example::

        >>> import tempfile, torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import export_onnx, pack
        >>> posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pack(BinaryLinear(4, 3), posterior, f"{folder}/model.bbn")
        ...     export_onnx(path, f"{folder}/draw_3.onnx", draw=3).name
        'draw_3.onnx'

    Source: the operators of ONNX, opset 17.
    """
    onnx = _onnx()
    model, container = read_model(path)
    index = checked_draw(model, draw)
    graph = _Graph(onnx)
    weights = signs_of_draw(model, index)
    for place, step in enumerate(model.steps):
        if step["op"] == "weights":
            _weights(graph, step, weights[step["site"]])
        elif step["op"] == "line":
            _line(graph, model, place, index)
        else:
            _STEPS[step["op"]](graph, step)
    written = _finished(graph, model)
    about = {"draw": str(draw), "packed": container.digest, **model.provenance}
    onnx.helper.set_model_props(
        written,
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()},
    )
    onnx.checker.check_model(written, full_check=True)
    write_atomically(out, written.SerializeToString(deterministic=True))
    return Path(out)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            "ONNX export needs the package onnx: pip install 'bayesbin[onnx]'."
        ) from error
    return onnx


def _finished(graph: _Graph, model: ShippedModel) -> Any:
    helper, real = graph.onnx.helper, graph.onnx.TensorProto.FLOAT
    outputs = {"outputs": graph.node("Identity", [graph.current], "outputs")}
    if model.noise_variance is None:
        outputs["probs"] = graph.node("Softmax", ["outputs"], "probs", axis=1)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "bayesbin",
        [value("input", real, ["batch", *model.input])],
        [value(name, real, ["batch", model.outputs]) for name in outputs],
        list(graph.constants.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        made, opset_imports=opset, ir_version=IR_VERSION, producer_name="bayesbin"
    )


def _weights(graph: _Graph, step: dict[str, Any], signs: np.ndarray) -> None:
    name = graph.constant(step["site"], signs)
    real = graph.node("Cast", [name], to=graph.onnx.TensorProto.FLOAT)
    if signs.ndim == 2:
        graph.current = graph.node("Gemm", [graph.current, real], transB=1)
    else:
        graph.current = graph.node(
            "Conv", [graph.current, real], strides=step["stride"], pads=2 * step["padding"]
        )


def _line(graph: _Graph, model: ShippedModel, place: int, index: int | None) -> None:
    # Vectors are (batch, features) in the graph, images (batch, channels, height, width).
    wide = (1, -1) if _is_vector(model, place) else (1, -1, 1, 1)
    for kind, part in (("Mul", "slope"), ("Add", "shift")):
        lines = model.arrays[f"line {place}.{part}"]
        if index is None and len(lines) > 1:
            raise ValueError(
                "The file has the normalisation of its draws and not of the mode; pack 0 draws, or "
                "export a draw."
            )
        row = lines[min(index or 0, len(lines) - 1)].astype(np.float32)
        name = graph.constant(f"line {place}.{part}", row.reshape(wide))
        graph.current = graph.node(kind, [graph.current, name])


def _is_vector(model: ShippedModel, place: int) -> bool:
    """Whether the values before a step are vectors: an image of one pixel is another thing."""
    vector, stack = len(model.input) == 1, []
    for step in model.steps[:place]:
        op = step["op"]
        if op == "weights":
            vector = len(step["shape"]) == 2
        elif op == "flatten":
            vector = True
        elif op == "push":
            stack.append(vector)
        elif op == "swap":
            vector, stack[-1] = stack[-1], vector
        elif op == "add":
            stack.pop()
    return vector


def _sign(graph: _Graph, _: dict[str, Any]) -> None:
    """+1 at 0, where ONNX's Sign is 0."""
    zero, one, minus = (
        graph.constant(f"the number {n}", np.array(n, dtype=np.float32)) for n in (0, 1, -1)
    )
    at_least = graph.node("GreaterOrEqual", [graph.current, zero])
    graph.current = graph.node("Where", [at_least, one, minus])


def _clip(graph: _Graph, step: dict[str, Any]) -> None:
    bounds = [
        graph.constant(f"the number {step[name]!r}", np.array(step[name], dtype=np.float32))
        for name in ("low", "high")
    ]
    graph.current = graph.node("Clip", [graph.current, *bounds])


def _pool(kind: str, **attributes: Any) -> Callable[[_Graph, dict[str, Any]], None]:
    def add(graph: _Graph, step: dict[str, Any]) -> None:
        graph.current = graph.node(
            kind,
            [graph.current],
            kernel_shape=step["size"],
            strides=step["stride"],
            pads=2 * step["padding"],
            **attributes,
        )

    return add


def _simple(kind: str, **attributes: Any) -> Callable[[_Graph, dict[str, Any]], None]:
    def add(graph: _Graph, _: dict[str, Any]) -> None:
        graph.current = graph.node(kind, [graph.current], **attributes)

    return add


def _push(graph: _Graph, _: dict[str, Any]) -> None:
    graph.stack.append(graph.current)


def _swap(graph: _Graph, _: dict[str, Any]) -> None:
    graph.current, graph.stack[-1] = graph.stack[-1], graph.current


def _add(graph: _Graph, _: dict[str, Any]) -> None:
    graph.current = graph.node("Add", [graph.current, graph.stack.pop()])


_STEPS: dict[str, Callable[[_Graph, dict[str, Any]], None]] = {
    "relu": _simple("Relu"),
    "tanh": _simple("Tanh"),
    "sign": _sign,
    "hardtanh": _clip,
    "max_pool": _pool("MaxPool"),
    "avg_pool": _pool("AveragePool", count_include_pad=1),
    "flatten": _simple("Flatten", axis=1),
    "push": _push,
    "swap": _swap,
    "add": _add,
}
