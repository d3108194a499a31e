"""An ONNX graph while it is written: nodes, constants, names, and the step that is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesbin.runtime.program import Step, Value

NUMPY = {"f4": np.float32, "f8": np.float64, "i8": np.int64, "b1": np.bool_}


def import_onnx() -> Any:
    """The package onnx. :raises ImportError: with what to install, where it is missing."""
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


@dataclass
class _Shared:
    """What a graph and the bodies inside it have in common: names are of all, constants of the outermost."""

    onnx: Any
    names: set[str] = field(default_factory=set)
    constants: dict[str, Any] = field(default_factory=dict)
    known: dict[Any, str] = field(default_factory=dict)


class Graph:
    """Nodes in order, and the constants that they use."""

    def __init__(self, shared: _Shared) -> None:
        self.shared = shared
        self.nodes: list[Any] = []
        self._casts: dict[tuple[str, str], str] = {}

    @classmethod
    def empty(cls, onnx: Any) -> Graph:
        """A graph of no nodes."""
        return cls(_Shared(onnx))

    def inside(self) -> Graph:
        """The body of a loop in this graph, which may use what is already here."""
        return Graph(self.shared)

    def fresh(self, name: str) -> str:
        """``name``, or one like it that nothing has yet."""
        found, count = name, 1
        while found in self.shared.names:
            count += 1
            found = f"{name}_{count}"
        self.shared.names.add(found)
        return found

    def nodes_of(
        self, kind: str, inputs: Sequence[str], count: int, **attributes: Any
    ) -> list[str]:
        """Add a node of several outputs; their names."""
        outs = [self.fresh(kind.lower()) for _ in range(count)]
        self.nodes.append(self.shared.onnx.helper.make_node(kind, list(inputs), outs, **attributes))
        return outs

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; its name."""
        return self.nodes_of(kind, inputs, 1, **attributes)[0]

    def named(self, value: str, name: str) -> None:
        """Give a value the very name ``name``, which must be new: that of an output."""
        self.nodes.append(self.shared.onnx.helper.make_node("Identity", [value], [name]))

    def constant(self, array: Any, name: str = "") -> str:
        """An array as an initialiser; equal arrays are there once."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.shared.known:
            if not name:
                name = "number" if array.ndim == 0 else "numbers"
            found = self.fresh(name)
            self.shared.constants[found] = self.shared.onnx.numpy_helper.from_array(array, found)
            self.shared.known[key] = found
        return self.shared.known[key]

    def type_of(self, dtype: str) -> int:
        """ONNX's number for a type of the program."""
        kinds = self.shared.onnx.TensorProto
        return {"f4": kinds.FLOAT, "f8": kinds.DOUBLE, "i8": kinds.INT64, "b1": kinds.BOOL}[dtype]

    def cast(self, name: str, dtype: str) -> str:
        """A value as another type."""
        if (name, dtype) not in self._casts:
            self._casts[name, dtype] = self.node("Cast", name, to=self.type_of(dtype))
        return self._casts[name, dtype]

    def info(self, name: str, dtype: str, shape: Sequence[Any] | None) -> Any:
        """The declaration of an input or an output."""
        return self.shared.onnx.helper.make_tensor_value_info(name, self.type_of(dtype), shape)


@dataclass
class OnnxCall:
    """One step that is being written.

    Every value has the batch as its first axis, of size 1 where it does not depend on the data.

    :param names: of the inputs in ``graph``, "" for one that is absent; already of the type that the
        step computes in. :param used: what is known of them. :param out: what is known of the outputs.
    :param plain_name: the name of an input without its first axis, for weights.
    """

    graph: Graph
    step: Step
    names: list[str]
    used: list[Value | None]
    out: list[Value]
    dtype: str
    plain_name: Callable[[int], str]

    def __getitem__(self, attribute: str) -> Any:
        return self.step.attributes[attribute]

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.graph.node(kind, *inputs, **attributes)

    @property
    def x(self) -> str:
        """The first input."""
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input, of one datum."""
        return self.known(0).shape

    def known(self, place: int) -> Value:
        """What is known of an input that is there."""
        value = self.used[place]
        assert value is not None
        return value

    def has(self, place: int) -> bool:
        """Whether an input is there."""
        return place < len(self.names) and self.names[place] != ""

    def plain(self, place: int) -> str:
        """An input that all data share, without the axis of the batch.

        :raises ValueError: for one that differs between data.
        """
        if self.known(place).batched:
            raise ValueError(
                f"ONNX export: expected input {place} of {self.step.kind!r} (output "
                f"{self.step.outputs[0]!r}) to be the same for all data; weights that depend on the "
                "data have no ONNX operator here."
            )
        return self.plain_name(place)

    def number(self, value: Any) -> str:
        """A constant of the type that the step computes in."""
        return self.graph.constant(np.asarray(value, dtype=NUMPY[self.dtype]))

    def whole(self, values: Any) -> str:
        """A constant of whole numbers."""
        return self.graph.constant(np.asarray(values, dtype=np.int64))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """``x`` with another shape; 0 in the first place keeps the batch."""
        return self("Reshape", x, self.whole(list(shape)))

    def aligned(self, place: int, rank: int) -> str:
        """An input with ones after the batch, so that its last axes meet those of ``rank`` axes."""
        have = len(self.known(place).shape)
        if have >= rank:
            return self.names[place]
        return self("Unsqueeze", self.names[place], self.whole(range(1, 1 + rank - have)))

    def per_channel(self, place: int, axis: int | None = None) -> str:
        """Numbers, one or one for each channel, so that they meet the channels of the first input."""
        shape, rank = self.known(place).shape, len(self.shape)
        axis = int(self["axis"] if axis is None else axis)
        if not shape:
            return self.aligned(place, rank) if self.known(place).batched else self.names[place]
        if axis == rank - 1 and not self.known(place).batched:
            return self.names[place]
        sizes = [1] * rank
        sizes[axis] = shape[0]
        return self.reshape(self.names[place], [0, *sizes])

    def reduce(self, kind: str, x: str, axes: Sequence[int], keep: bool = True) -> str:
        """Reduce over axes, the batch being axis 0."""
        if kind == "ReduceSum":
            return self(kind, x, self.whole(list(axes)), keepdims=int(keep))
        return self(kind, x, axes=list(axes), keepdims=int(keep))
