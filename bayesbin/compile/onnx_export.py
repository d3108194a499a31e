"""A predictor as one ONNX graph: all of its draws, and what they say together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.compile.onnx_graph import Graph, OnnxCall, import_onnx
from bayesbin.compile.onnx_heads import HEADS
from bayesbin.compile.onnx_steps import EMIT
from bayesbin.compile.shipped import model_of
from bayesbin.core.canonical import unpack_words
from bayesbin.core.files import write_atomically
from bayesbin.runtime.model import Model
from bayesbin.runtime.program import Constant, DrawnSite, Program, Site, Step, Value

OPSET, IR_VERSION = 17, 8  # of 2022: what runtimes of the last years read
MOST_UNROLLED = 8  # draws that are written one after another; more of them are a loop
LARGEST_FILE = 2**31 - 1  # bytes that a protocol buffer may have
IN_DOUBLE = {"sign", "threshold", "greater", "greater_equal", "equal"}
LOGICAL = {"logical_not", "logical_and", "logical_or"}
# Inputs that keep their own type.
AS_THEY_ARE = {("embedding", 0), ("take", 1), ("where", 0)}


def export_onnx(
    predictor: Any,
    out: str | os.PathLike[str],
    draws: Sequence[int] | None = None,
    *,
    preprocessing: bool = True,
) -> Path:
    """Write all draws of a predictor, and their mean, as one ONNX graph (opset 17).

    The graph takes the inputs of the preprocessing, raw, where there is one, else those of the network,
    under their names and with a free size of the batch. It puts out float32, of each draw ``outputs``
    (draws, batch, ...), and over the draws,

    - of a classifier ``probs``, ``log_probs`` (batch, ..., classes), ``entropy`` and
      ``mutual_information`` (batch, ...), in nats; of labels the same, each (batch, labels, ...);
    - of a regressor and of counts ``mean``, ``aleatoric_variance`` and ``epistemic_variance``
      (batch, [targets]);
    - otherwise ``mean`` and ``variance`` of the outputs; of several outputs, the names end in _0, _1, ...

    What no draw changes is computed once. Up to 8 draws are written one after another, with weights as
    int8; more are a Scan over the draws, with eight weights to the byte. Sums that a decision hangs on
    are computed in float64, so that decisions are those of the predictor; other numbers agree up to
    rounding. Sums are exact for a predictor of precision "fast" too.

    :param predictor: a Predictor, or the path of a ``.bbn`` file.
    :param draws: which draws, None: all. :param preprocessing: False: the graph starts after it.
    :raises ImportError: without the package onnx. :raises ValueError: for draws that there are not, a
        step that ONNX cannot express, or a file of more than 2 GB. :raises OSError: if it cannot be
        written.

    Example::

        >>> import tempfile
        >>> import numpy as np
        >>> from bayesbin.compile.onnx_export import export_onnx
        >>> from bayesbin.runtime.predictor import Predictor
        >>> from bayesbin.runtime.program import Constant, Program, Step, Value
        >>> weight = Constant(np.array([[[1, 2]], [[3, 4]]], np.float32), np.arange(2))
        >>> step = Step("linear", ("x", "w"), ("y",))
        >>> program = Program({"x": Value((2,), "f4")}, {"w": weight}, {}, (step,), ("y",), 2)
        >>> predictor = Predictor(program, {"kind": "outputs"}, backend="numpy")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(predictor, f"{folder}/net.onnx").name
        'net.onnx'

    Source: the operators of ONNX, opset 17.
    """
    onnx = import_onnx()
    made = onnx_model(onnx, model_of(predictor, draws), preprocessing)
    payload = made.SerializeToString(deterministic=True)
    write_atomically(out, payload)
    return Path(out)


def onnx_model(onnx: Any, model: Model, preprocessing: bool = True) -> Any:
    """The checked ModelProto of a network with its draws."""
    program, before = model.program, model.preprocessing if preprocessing else None
    graph = Graph.empty(onnx)
    first = program if before is None else before
    inputs = _inputs(graph, first)
    found = dict(inputs)
    if before is not None:
        found = _preprocessed(graph, before, program, inputs)
    stacked = _all_draws(graph, program, found)
    outputs = []
    for name, (value, dtype, shape) in _ends(graph, model, stacked).items():
        graph.named(value, name)
        outputs.append(graph.info(name, dtype, shape))
    body = onnx.helper.make_graph(
        graph.nodes,
        "bayesbin",
        [graph.info(inputs[n], v.dtype, ["batch", *v.shape]) for n, v in first.inputs.items()],
        outputs,
        list(graph.shared.constants.values()),
    )
    made = onnx.helper.make_model(
        body,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bayesbin",
    )
    if made.ByteSize() > LARGEST_FILE:
        raise ValueError(
            f"ONNX export: expected a file of at most 2 GB, got {made.ByteSize():,} bytes; export "
            "fewer draws."
        )
    about: dict[str, Any] = {"draws": program.num_draws, **model.provenance}
    if model.labels:
        about["labels"] = list(model.labels)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    onnx.helper.set_model_props(made, texts)
    onnx.checker.check_model(made, full_check=True)
    return made


def _inputs(graph: Graph, program: Program) -> dict[str, str]:
    reserved = _output_names(len(program.outputs))
    graph.shared.names |= reserved  # an input may not be named as an output is
    return {name: graph.fresh(name) for name in program.inputs}


def _output_names(count: int) -> set[str]:
    names = {"outputs", "probs", "log_probs", "entropy", "mutual_information"}
    names |= {"mean", "variance", "aleatoric_variance", "epistemic_variance"}
    return names | {f"{each}_{k}" for each in ("outputs", "mean", "variance") for k in range(256)}


def _preprocessed(
    graph: Graph, before: Program, program: Program, inputs: dict[str, str]
) -> dict[str, str]:
    writer = Writer(graph, before, inputs, RowTables(graph, before, 0))
    for step in before.steps:
        writer.write(step)
    pairs = zip(program.inputs.items(), before.outputs, strict=True)
    return {name: writer.name(raw, value.dtype) for (name, value), raw in pairs}


def _all_draws(graph: Graph, program: Program, inputs: Mapping[str, str]) -> list[str]:
    """The program's outputs of all draws, each (draws, batch, ...)."""
    shared = Writer(graph, program, dict(inputs), RowTables(graph, program, 0))
    drawn = []
    for step in program.steps:
        if program.values[step.outputs[0]].drawn:
            drawn.append(step)
        else:
            shared.write(step)
    count = program.num_draws
    if count <= MOST_UNROLLED:
        writers = [
            Writer(graph, program, shared.found, RowTables(graph, program, draw))
            for draw in range(count)
        ]
        for writer in writers:
            for step in drawn:
                writer.write(step)
        return [_stack(graph, name, writers) for name in program.outputs]
    varying = [name for name in program.outputs if program.values[name].drawn]
    found = _loop(graph, program, shared, drawn, varying) if varying else {}
    for name in program.outputs:
        if name not in found:
            found[name] = _stack(graph, name, [shared] * count)
    return [found[name] for name in program.outputs]


def _stack(graph: Graph, name: str, writers: Sequence[Writer]) -> str:
    axis = graph.constant(np.array([0], dtype=np.int64))
    each = [graph.node("Unsqueeze", writer.name(name), axis) for writer in writers]
    return graph.node("Concat", *each, axis=0) if len(each) > 1 else each[0]


def _loop(
    graph: Graph,
    program: Program,
    shared: Writer,
    steps: Sequence[Step],
    outputs: Sequence[str],
) -> dict[str, str]:
    """The outputs of all draws by a Scan, whose body is one draw."""
    body = graph.inside()
    rows = ScannedRows(body, program)
    writer = Writer(body, program, shared.found, rows)
    for step in steps:
        writer.write(step)
    outs = [body.node("Identity", writer.name(name)) for name in outputs]
    values = [program.values[name] for name in outputs]
    made = graph.shared.onnx.helper.make_graph(
        body.nodes,
        "draw",
        [graph.info(name, "i8", []) for name in rows.scanned.values()],
        [
            graph.info(name, value.dtype, [None, *value.shape])
            for name, value in zip(outs, values, strict=True)
        ],
    )
    found = graph.nodes_of(
        "Scan", list(rows.scanned), len(outs), body=made, num_scan_inputs=len(rows.scanned)
    )
    return dict(zip(outputs, found, strict=True))


class RowTables:
    """Constants and sites as one draw has them, written as initialisers."""

    def __init__(self, graph: Graph, program: Program, draw: int) -> None:
        self.graph, self.program, self.draw = graph, program, draw

    def constant(self, name: str, constant: Constant) -> str:
        """The numbers of a constant, without a batch."""
        row = 0 if constant.rows is None else int(constant.rows[self.draw])
        label = name if constant.rows is None else f"{name} of draw {self.draw}"
        found = self.graph.constant(constant.data[row], label)
        return found if constant.levels is None else self.levelled(found, constant)

    def levelled(self, numbers: str, constant: Constant) -> str:
        """What the numbers of levels stand for."""
        levels = self.graph.constant(np.asarray(constant.levels, dtype=np.float32), "levels")
        kind = self.graph.shared.onnx.TensorProto.INT32
        return self.graph.node("Gather", levels, self.graph.node("Cast", numbers, to=kind), axis=0)

    def site(self, name: str, site: Site) -> str:
        """The signs of a site, float32."""
        same = not isinstance(site, DrawnSite) and site.rows is None
        label = name if same else f"{name} of draw {self.draw}"
        signs = _signs(site, site.words(self.draw))
        return self.graph.cast(self.graph.constant(signs, label), "f4")


def _signs(site: Site, words: np.ndarray) -> np.ndarray:
    return np.where(unpack_words(words, site.shape), 1, -1).astype(np.int8)


class ScannedRows(RowTables):
    """Constants and sites in the body of a Scan over draws: rows picked out of all of them."""

    def __init__(self, graph: Graph, program: Program) -> None:
        super().__init__(graph, program, 0)
        self.scanned: dict[str, str] = {}  # rows of all draws, outside -> of this draw, inside

    def row(self, rows: np.ndarray) -> str:
        """The row of this draw."""
        outside = self.graph.constant(rows.astype(np.int64), "rows")
        if outside not in self.scanned:
            self.scanned[outside] = self.graph.fresh("row")
        return self.scanned[outside]

    def constant(self, name: str, constant: Constant) -> str:
        if constant.rows is None:
            return super().constant(name, constant)
        row, numbers = self.row(constant.rows), self.graph.constant(constant.data, name)
        found = self.graph.node("Gather", numbers, row, axis=0)
        return found if constant.levels is None else self.levelled(found, constant)

    def site(self, name: str, site: Site) -> str:
        """The signs of a site: those of all draws in bits, those of this draw as float32."""
        if isinstance(site, DrawnSite):
            rows = np.arange(self.program.num_draws)
            words = np.stack([site.words(draw) for draw in range(self.program.num_draws)])
        elif site.rows is None:
            return super().site(name, site)
        else:
            rows, words = site.rows, site.bits
        units, inputs = site.shape[0], math.prod(site.shape[1:])
        octets = words.astype("<u8").view(np.uint8).reshape(*words.shape[:2], -1)
        octets = octets[:, :, : -(-inputs // 8), None]  # the last axis is for the bits of a byte
        g = self.graph
        found = g.node("Gather", g.constant(octets, name), self.row(rows), axis=0)
        places = g.constant(np.arange(8, dtype=np.uint8))
        found = g.node("BitShift", found, places, direction="RIGHT")
        bits = g.cast(g.node("Mod", found, g.constant(np.array(2, dtype=np.uint8))), "f4")
        bits = g.node("Reshape", bits, g.constant(np.array([units, -1], dtype=np.int64)))
        start, end, axis = (g.constant(np.array([n], dtype=np.int64)) for n in (0, inputs, 1))
        bits = g.node("Slice", bits, start, end, axis)
        two, one = (g.constant(np.array(n, dtype=np.float32)) for n in (2, 1))
        signs = g.node("Sub", g.node("Mul", bits, two), one)
        return g.node("Reshape", signs, g.constant(np.array(site.shape, dtype=np.int64)))


class Writer:
    """Writes steps of a program into a graph, and knows the name there of each value.

    :param found: names of the values that there are, each with the batch as its first axis.
    """

    def __init__(
        self, graph: Graph, program: Program, found: Mapping[str, str], rows: RowTables
    ) -> None:
        self.graph, self.program, self.rows = graph, program, rows
        self.found = dict(found)
        self._plain: dict[str, str] = {}

    def write(self, step: Step) -> None:
        """Write one step. :raises ValueError: for a kind that ONNX cannot express."""
        if step.kind not in EMIT:
            raise ValueError(
                f"ONNX export: the kind {step.kind!r} (output {step.outputs[0]!r}) has no operators in "
                "ONNX here; predict with bayesbin.load, or export C source."
            )
        values = self.program.values
        used: list[Value | None] = [values[name] if name else None for name in step.inputs]
        dtype, names = _computes_in(step), []
        for place, name in enumerate(step.inputs):
            keep = (step.kind, place) in AS_THEY_ARE or _is_mask(step, place, used)
            names.append(self.name(name, None if keep else dtype) if name else "")
        out = [values[name] for name in step.outputs]

        def plain(place: int) -> str:
            own = values[step.inputs[place]].dtype
            found = self.plain(step.inputs[place])
            keep = (step.kind, place) in AS_THEY_ARE
            return found if keep or own == dtype else self.graph.cast(found, dtype)

        call = OnnxCall(self.graph, step, names, used, out, dtype, plain)
        for name, made in zip(step.outputs, EMIT[step.kind](call), strict=True):
            self.found[name] = made

    def name(self, name: str, dtype: str | None = None) -> str:
        """The name of a value with its first axis, as a type."""
        value = self.program.values[name]
        if name not in self.found:
            shape = self.graph.constant(np.array([1, *value.shape], dtype=np.int64))
            self.found[name] = self.graph.node("Reshape", self.plain(name), shape)
        found = self.found[name]
        return found if dtype in (None, value.dtype) else self.graph.cast(found, str(dtype))

    def plain(self, name: str) -> str:
        """The name of a value that all data share, without the first axis."""
        if name not in self._plain:
            program = self.program
            if name in program.constants:
                self._plain[name] = self.rows.constant(name, program.constants[name])
            elif name in program.sites:
                self._plain[name] = self.rows.site(name, program.sites[name])
            else:
                shape = np.array(program.values[name].shape, dtype=np.int64)
                shape = self.graph.constant(shape)
                self._plain[name] = self.graph.node("Reshape", self.found[name], shape)
        return self._plain[name]


def _computes_in(step: Step) -> str:
    if step.kind in IN_DOUBLE:
        return "f8"
    return "b1" if step.kind in LOGICAL else step.dtype


def _is_mask(step: Step, place: int, used: Sequence[Value | None]) -> bool:
    value = used[place]
    return step.kind == "attention" and place == 3 and value is not None and value.dtype == "b1"


# What the draws say together

Ends = dict[str, tuple[str, str, list[Any]]]


def _ends(graph: Graph, model: Model, stacked: Sequence[str]) -> Ends:
    values = [model.program.values[name] for name in model.program.outputs]
    ends: Ends = {}
    several = len(values) > 1
    for place, (name, value) in enumerate(zip(stacked, values, strict=True)):
        label = f"outputs_{place}" if several else "outputs"
        shape = [model.program.num_draws, "batch", *value.shape]
        ends[label] = (name, value.dtype, shape)
    kind = model.head["kind"]
    if kind not in HEADS:
        raise ValueError(
            f"ONNX export: expected a head of kind {', '.join(sorted(HEADS))}, got {kind!r}."
        )
    for name, (value, shape) in HEADS[kind](graph, model, stacked, values).items():
        ends[name] = (graph.cast(value, "f4"), "f4", ["batch", *shape])
    return ends
