"""Recurrent layers and cells: one step for a layer and direction, or written out where a step is narrower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayesbin.compile.contraction import contract
from bayesbin.compile.layout import BATCH, Layout
from bayesbin.compile.operators import operator
from bayesbin.compile.operators_shape import dropped, joined, sliced, with_axis
from bayesbin.compile.translation import Held, Traced, Translation


@dataclass(frozen=True)
class _Cell:
    """A kind of recurrent step, and how many parameters and states it has.

    :param gates: units for each of the state's. :param states: h alone, or h and c.
    """

    kind: str
    gates: int
    states: int
    attributes: dict[str, Any]


_CELLS = {
    "lstm": _Cell("lstm", 4, 2, {}),
    "gru": _Cell("gru", 3, 1, {}),
    "rnn_tanh": _Cell("rnn", 1, 1, {"activation": "tanh"}),
    "rnn_relu": _Cell("rnn", 1, 1, {"activation": "relu"}),
}


def _layer(name: str) -> None:
    cell = _CELLS[name]

    @operator(name)
    def layer(
        t: Translation,
        input: Held,
        hx: Any,
        params: Sequence[Held],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Traced, ...]:
        if train and dropout:
            raise t.refuse("expected a function of the inputs alone, got dropout while predicting")
        x = t.settled(t.traced(input))
        time = 1 if batch_first else 0
        if x.layout.has_batch(time):
            raise t.mixes("the batch as the axis of time")
        if x.layout.has_batch(2):
            raise t.mixes("rows as features")
        states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
        directions = 2 if bidirectional else 1
        own = _Own.each(params, num_layers * directions, has_biases)
        return _layers(t, cell, x, states, own, time, directions)


for _name in _CELLS:
    _layer(_name)


def _layers(
    t: Translation,
    cell: _Cell,
    x: Traced,
    states: Sequence[Held],
    own: Sequence[_Own],
    time: int,
    directions: int,
) -> tuple[Traced, ...]:
    """What layers one on another make of a sequence, and the last states of all of them.

    :param own: the parameters of each layer and direction, which start in the states of the same place.
    """
    ends: list[list[Traced]] = [[] for _ in range(cell.states)]
    outputs: list[Traced] = []
    for place, parameters in enumerate(own):
        start = [dropped(sliced(t, each, 0, place, place + 1), 0) for each in states]
        made, last = _direction(t, cell, x, start, parameters, time, place % directions)
        for found, end in zip(ends, last, strict=True):
            found.append(with_axis(end, 0))
        outputs.append(made)
        if len(outputs) == directions:
            x, outputs = _joined(t, outputs, 2), []
    return x, *[_joined(t, each, 0) for each in ends]


def _joined(t: Translation, parts: list[Traced], axis: int) -> Traced:
    return parts[0] if len(parts) == 1 else joined(t, parts, axis)


@dataclass(frozen=True)
class _Own:
    """The parameters of one layer and direction."""

    inputs: Held
    states: Held
    biases: tuple[Held, ...]
    projection: Held | None

    @classmethod
    def each(cls, params: Sequence[Held], count: int, has_biases: bool) -> list[_Own]:
        """Those of ``count`` layers and directions, one after another as torch has them."""
        many = len(params) // count
        starts = range(0, many * count, many)
        return [cls.of(params[start : start + many], has_biases) for start in starts]

    @classmethod
    def of(cls, params: Sequence[Held], has_biases: bool) -> _Own:
        biases = tuple(params[2:4]) if has_biases else ()
        rest = params[2 + len(biases) :]
        return cls(params[0], params[1], biases, rest[0] if rest else None)


def _direction(
    t: Translation,
    cell: _Cell,
    x: Traced,
    start: list[Traced],
    own: _Own,
    time: int,
    direction: int,
) -> tuple[Traced, list[Traced]]:
    """What one direction of a layer makes of a sequence, and its last states."""
    rows = x.layout.axes[1 - time]
    if own.projection is not None or rows != (BATCH,):
        return _written_out(t, cell, x, start, own, time, direction)
    dtype = t.dtype()
    names = [
        t.arrange(x, [x.layout.axes[time], x.layout.axes[2]]),
        *[t.arrange(state, [state.layout.axes[1]]) for state in start],
        *_names(t, own),
    ]
    attributes = {"reverse": bool(direction), **cell.attributes}
    made, *ends = t.emit_all(cell.kind, names, dtype, **attributes)
    steps, width = t.known(made).shape
    axes: list[list[Any]] = [["steps"], [BATCH]] if time == 0 else [[BATCH], ["steps"]]
    layout = Layout.made([("steps", steps), ("width", width)], [*axes, ["width"]])
    state = Layout.made([("width", width)], [[BATCH], ["width"]])
    return Traced(made, layout, dtype), [Traced(end, state, dtype) for end in ends]


def _names(t: Translation, own: _Own) -> list[str]:
    return [t.arrange(each, each.layout.axes) for each in (own.inputs, own.states, *own.biases)]


def _written_out(
    t: Translation,
    cell: _Cell,
    x: Traced,
    start: list[Traced],
    own: _Own,
    time: int,
    direction: int,
) -> tuple[Traced, list[Traced]]:
    """The same, one moment after another: for a projected state, or several sequences in a row."""
    steps = x.layout.shape[time].count
    moments = list(range(steps))[:: -1 if direction else 1]
    states, made = list(start), []
    for moment in moments:
        now = dropped(sliced(t, x, time, moment, moment + 1), time)
        states = _moment(t, cell, now, states, own)
        made.append(with_axis(states[0], time))
    return joined(t, made[:: -1 if direction else 1], time), states


def _moment(
    t: Translation, cell: _Cell, x: Traced, states: list[Traced], own: _Own
) -> list[Traced]:
    biases: Sequence[Held | None] = own.biases or (None, None)
    given = _linear(t, x, own.inputs, biases[0])
    kept = _linear(t, states[0], own.states, biases[1])
    if cell.kind == "rnn":
        return [_one(t, cell.attributes["activation"], _two(t, "add", given, kept))]
    if cell.kind == "gru":
        return [_gru(t, given, kept, states[0])]
    width = given.layout.shape[1].count // 4
    total = _two(t, "add", given, kept)
    i, f, g, o = (sliced(t, total, 1, k * width, (k + 1) * width) for k in range(4))
    old = _two(t, "mul", _one(t, "sigmoid", f), states[1])
    new = _two(t, "mul", _one(t, "sigmoid", i), _one(t, "tanh", g))
    c = _two(t, "add", old, new)
    h = _two(t, "mul", _one(t, "sigmoid", o), _one(t, "tanh", c))
    return [h if own.projection is None else _linear(t, h, own.projection, None), c]


def _gru(t: Translation, given: Traced, kept: Traced, h: Traced) -> Traced:
    width = given.layout.shape[1].count // 3
    parts = [[sliced(t, x, 1, k * width, (k + 1) * width) for k in range(3)] for x in (given, kept)]
    reset = _one(t, "sigmoid", _two(t, "add", parts[0][0], parts[1][0]))
    update = _one(t, "sigmoid", _two(t, "add", parts[0][1], parts[1][1]))
    new = _one(t, "tanh", _two(t, "add", parts[0][2], _two(t, "mul", reset, parts[1][2])))
    return _two(t, "add", new, _two(t, "mul", update, _two(t, "sub", h, new)))


def _linear(t: Translation, x: Held, weight: Held, bias: Held | None) -> Traced:
    return contract(t, x, weight, (["row", "in"], ["out", "in"]), ["row", "out"], bias)


def _one(t: Translation, kind: str, x: Traced) -> Traced:
    x = t.settled(x)
    return replace(x, name=t.emit(kind, (x.name,), t.dtype()))


def _two(t: Translation, kind: str, a: Traced, b: Traced) -> Traced:
    names, layout = t.align((a, b), a.layout.shape, t.dtype())
    return Traced(t.emit(kind, names, t.dtype()), layout, t.dtype())


# Cells: a layer that sees one moment


def _cell(name: str) -> None:
    cell = _CELLS[name]

    @operator(f"{name}_cell")
    def one(
        t: Translation,
        input: Held,
        hx: Any,
        w_ih: Held,
        w_hh: Held,
        b_ih: Held | None = None,
        b_hh: Held | None = None,
    ) -> Any:
        biases = () if b_ih is None or b_hh is None else (b_ih, b_hh)
        own = _Own(w_ih, w_hh, biases, None)
        states = [t.traced(each) for each in (hx if isinstance(hx, (list, tuple)) else [hx])]
        x = with_axis(t.settled(t.traced(input)), 0)
        _, ends = _direction(t, cell, x, states, own, 0, 0)
        return tuple(ends) if cell.states > 1 else ends[0]


for _name in _CELLS:
    _cell(_name)
