"""The numpy backend: what each kind of step computes, and how a program is run.

It is the specification. Every other backend is compared with it, and those on CPUs give the same bits. A
datum's numbers do not depend on the other rows of its batch.

1. Linear maps and convolutions of binary weights add in panels (:mod:`~bayesbin.runtime.reference_sums`);
   those of real weights, and products of matrices, add products in float64, in order, and round once.
2. Steps marked ``_own`` compute in the type of the output, each operation rounded.
3. Steps marked ``_wide`` compute in float64 and round once.
4. Steps marked ``_decide`` compare in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence
from typing import Any

import numpy as np

from bayesbin.runtime import reference_axes as axes
from bayesbin.runtime import reference_elementwise as elementwise
from bayesbin.runtime import reference_products as products
from bayesbin.runtime import reference_sequences as sequences
from bayesbin.runtime import reference_windows as windows
from bayesbin.runtime.program import Program, Step
from bayesbin.runtime.reference_products import PackedSigns

Array = np.ndarray | PackedSigns
Compute = Callable[[Step, Sequence[Array | None]], Sequence[np.ndarray]]
Observe = Callable[
    [Step, "Sequence[int] | None", Sequence[np.ndarray | None]], "Sequence[np.ndarray] | None"
]
Environment = MutableMapping[str, Array]


def run(
    program: Program,
    inputs: Sequence[np.ndarray],
    draws: Sequence[int],
    *,
    observe: Observe | None = None,
    precision: str = "exact",
) -> list[np.ndarray]:
    """The outputs of a program for some of its draws.

    :param inputs: an array (B, *shape) for each input. :param draws: which draws, each 0 to S - 1.
    :param observe: called before each step with the step, some draws (None for a step that all draws share)
        and its inputs, (len(draws) or 1, B or 1, *shape) each. The outputs that it returns, (len(draws) or
        1, B, *shape), replace the step's own; None leaves them. Inputs that can be written to are nobody
        else's, but for other steps.
    :param precision: "exact", or "fast": sums of real inputs under the signs of a ``linear`` step in float32
        are those of :func:`~bayesbin.runtime.reference_sums.fast_sums`.
    :returns: an array (len(draws), B, *shape) for each output, of its type.
    :raises ValueError: for inputs that do not fit, or draws or tokens that there are not.

    Example::

        >>> import numpy as np
        >>> from bayesbin.runtime.program import Program, Step, Value
        >>> double = Step("add", ("x", "x"), ("y",))
        >>> program = Program({"x": Value((2,), "f4")}, {}, {}, (double,), ("y",))
        >>> run(program, [np.array([[1.0, 2.0]])], [0])
        [array([[[2., 4.]]], dtype=float32)]
    """
    arrays = checked_inputs(program, inputs)
    rows = len(next(iter(arrays.values()))) if arrays else 1
    if any(not 0 <= draw < program.num_draws for draw in draws):
        raise ValueError(f"expected draws of 0 to {program.num_draws - 1}, got {list(draws)[:10]}.")
    shared: dict[str, Array] = {**arrays}
    drawn = [program.values[step.outputs[0]].drawn for step in program.steps]
    once = [place for place, differs in enumerate(drawn) if not differs]
    each = [place for place, differs in enumerate(drawn) if differs]
    options: dict[str, Any] = {"observe": observe, "precision": precision}
    later = {name for place in each for name in program.steps[place].inputs}
    evaluate(program, once, shared, None, keep=later | set(program.outputs), **options)
    out = []
    for name in program.outputs:
        value = program.values[name]
        out.append(np.empty((len(draws), rows, *value.shape), value.dtype))
    for place, draw in enumerate(draws):
        found = dict(shared)
        evaluate(program, each, found, draw, keep=program.outputs, **options)
        for array, name in zip(out, program.outputs, strict=True):
            array[place] = lookup(program, name, found, draw)
    return out


def evaluate(
    program: Program,
    places: Iterable[int],
    env: Environment,
    draw: int | None,
    *,
    keep: Collection[str] | None = None,
    observe: Observe | None = None,
    precision: str = "exact",
) -> None:
    """Run some steps of a program, in the order given, and put their outputs into ``env``.

    :param env: arrays by name, each with an axis for the batch, of size 1 where all data share the value.
        Constants and sites that are not there are looked up.
    :param draw: which draw; None where no step depends on it.
    :param keep: names to keep; others are dropped after their last use here. None keeps all.
    """
    places = list(places)
    last = {name: place for place in places for name in program.steps[place].inputs}
    for place in places:
        step = program.steps[place]
        given = [lookup(program, name, env, draw) if name else None for name in step.inputs]
        found = None if observe is None else _observed(observe, step, draw, given)
        if found is None:
            # Sums of signs are exact; nothing is gained by rounding them.
            signs = step.kind == "linear" and program.values[step.inputs[0]].signs
            found = compute(step, given, precision="exact" if signs else precision)
        del given
        env.update(zip(step.outputs, found, strict=True))
        if keep is not None:
            for name in {*step.inputs, *step.outputs} - set(keep):
                if last.get(name, place) <= place:
                    env.pop(name, None)


def _observed(
    observe: Observe, step: Step, draw: int | None, given: Sequence[Array | None]
) -> list[np.ndarray] | None:
    """What an observer returns for one draw."""
    arrays = [each.array() if isinstance(each, PackedSigns) else each for each in given]
    stacked = [None if each is None else each[None] for each in arrays]
    for each in stacked:
        if each is not None:  # it may be a part of something else, the inputs say
            each.flags.writeable = False
    found = observe(step, None if draw is None else [draw], stacked)
    return None if found is None else [each[0] for each in found]


def compute(
    step: Step, arrays: Sequence[Array | None], *, precision: str = "exact"
) -> list[np.ndarray]:
    """The outputs of one step, from its inputs (None for one that is absent)."""
    with np.errstate(all="ignore"):  # infinities and NaN are values like others
        if precision == "fast" and step.kind == "linear":
            return [products.linear(*arrays, dtype=np.dtype(step.dtype), fast=True)]  # pyright: ignore
        return list(COMPUTE[step.kind](step, arrays))


def lookup(program: Program, name: str, env: Environment, draw: int | None) -> Array:
    if name in env:
        return env[name]
    if name in program.constants:
        constant = program.constants[name]
        return constant.at(0 if draw is None else draw)[None]
    if name in program.sites:
        site = program.sites[name]
        return PackedSigns(site.words(0 if draw is None else draw), tuple(site.shape))
    raise ValueError(f"expected a value named {name!r} to be there.")


def checked_inputs(program: Program, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    if len(inputs) != len(program.inputs):
        raise ValueError(f"expected {len(program.inputs)} inputs, got {len(inputs)}.")
    found: dict[str, np.ndarray] = {}
    for (name, value), array in zip(program.inputs.items(), inputs, strict=True):
        array = np.asarray(array)
        if array.shape[1:] != value.shape or array.ndim != len(value.shape) + 1:
            raise ValueError(
                f"expected rows of shape {value.shape} for {name!r}, got an array {array.shape}."
            )
        found[name] = array.astype(value.dtype, copy=False)
    if len({len(array) for array in found.values()}) > 1:
        raise ValueError("expected as many rows of each input.")
    return found


# How a step's inputs are converted


def _numbers(array: Array | None, dtype: Any) -> np.ndarray | None:
    if isinstance(array, PackedSigns):
        array = array.array()
    return None if array is None else array.astype(dtype, copy=False)


def _rounded(step: Step, found: Any) -> list[np.ndarray]:
    many = found if isinstance(found, tuple) else (found,)
    return [array.astype(step.dtype, copy=False) for array in many]


def _own(function: Callable[..., Any]) -> Compute:
    """Computed in the type of the output."""

    def compute_own(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
        given = [_numbers(array, step.dtype) for array in arrays]
        return _rounded(step, function(*given, **step.attributes))

    return compute_own


def _wide(function: Callable[..., Any]) -> Compute:
    """Computed in float64, or in whole numbers, and rounded once."""

    def compute_wide(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
        dtype = np.int64 if step.dtype == "i8" else np.float64
        # numpy's exponentials may differ in the last bit between arrays in C order and reversed views.
        given = [None if a is None else np.ascontiguousarray(_numbers(a, dtype)) for a in arrays]
        return _rounded(step, function(*given, **step.attributes))

    return compute_wide


def _decide(function: Callable[..., Any]) -> Compute:
    """Computed from float64, whatever the type of the output."""

    def compute_decision(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
        given = [_numbers(array, np.float64) for array in arrays]
        return _rounded(step, function(*given, **step.attributes))

    return compute_decision


def _aligned(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of arrays that are aligned at their last axes."""
    return lambda *arrays, **attributes: function(*axes.aligned(*arrays), **attributes)


def _product(function: Callable[..., Any]) -> Compute:
    """With weights that may be packed, in the order of sums that the function knows."""

    def compute_product(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
        x, weight, *bias = arrays
        x = x.array() if isinstance(x, PackedSigns) else x
        bias = [_numbers(each, step.dtype) for each in bias]
        return [function(x, weight, *bias, dtype=np.dtype(step.dtype), **step.attributes)]

    return compute_product


def _where(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
    condition, then, otherwise = (
        _numbers(array, dtype)
        for array, dtype in zip(arrays, ("b1", step.dtype, step.dtype), strict=True)
    )
    return [np.where(*axes.aligned(condition, then, otherwise))]  # pyright: ignore


def _stacked(function: Callable[..., Any]) -> Compute:
    """Of arrays as they are, by a function that knows the type of the output."""

    def compute_stacked(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
        given = [each.array() if isinstance(each, PackedSigns) else each for each in arrays]
        return [function(*given, dtype=np.dtype(step.dtype), **step.attributes)]

    return compute_stacked


def _embedding(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
    tokens, table = _numbers(arrays[0], np.int64), _numbers(arrays[1], step.dtype)
    return [sequences.embedding(tokens, table)]  # pyright: ignore


def _take(step: Step, arrays: Sequence[Array | None]) -> list[np.ndarray]:
    x, places = _numbers(arrays[0], step.dtype), _numbers(arrays[1], np.int64)
    return [axes.take(x, places, **step.attributes)]  # pyright: ignore


COMPUTE: dict[str, Compute] = {
    "linear": _product(products.linear),
    "conv": _product(products.conv),
    "conv_transpose": _product(products.conv_transpose),
    "matmul": _stacked(sequences.matmul),
    "attention": _stacked(sequences.attention),
    "embedding": _embedding,
    "lstm": _wide(sequences.lstm),
    "gru": _wide(sequences.gru),
    "rnn": _wide(sequences.rnn),
    "affine": _own(elementwise.affine),
    "batch_norm": _wide(axes.batch_norm),
    "layer_norm": _wide(axes.layer_norm),
    "rms_norm": _wide(axes.rms_norm),
    "group_norm": _wide(axes.group_norm),
    "softmax": _wide(axes.softmax),
    "log_softmax": _wide(axes.log_softmax),
    "cumsum": _wide(axes.cumsum),
    "sign": _decide(elementwise.sign),
    "threshold": _decide(elementwise.threshold),
    "relu": _own(elementwise.relu),
    "clamp": _own(elementwise.clamp),
    "tanh": _own(elementwise.tanh),
    "leaky_relu": _own(elementwise.leaky_relu),
    "prelu": _own(elementwise.prelu),
    "elu": _wide(elementwise.elu),
    "gelu": _wide(elementwise.gelu),
    "silu": _wide(elementwise.silu),
    "mish": _wide(elementwise.mish),
    "hardsigmoid": _wide(elementwise.hardsigmoid),
    "hardswish": _wide(elementwise.hardswish),
    "sigmoid": _wide(elementwise.sigmoid),
    "log_sigmoid": _wide(elementwise.log_sigmoid),
    "softplus": _wide(elementwise.softplus),
    "softsign": _wide(elementwise.softsign),
    "hardshrink": _wide(elementwise.hardshrink),
    "softshrink": _wide(elementwise.softshrink),
    "exp": _wide(np.exp),
    "log": _wide(np.log),
    "sqrt": _wide(np.sqrt),
    "rsqrt": _wide(lambda x: 1 / np.sqrt(x)),
    "reciprocal": _wide(lambda x: 1 / x),
    "abs": _own(np.abs),
    "neg": _own(np.negative),
    "sin": _wide(np.sin),
    "cos": _wide(np.cos),
    "erf": _wide(elementwise.erf),
    "floor": _own(np.floor),
    "round": _own(np.rint),
    "logical_not": _decide(np.logical_not),
    "cast": lambda step, arrays: [_numbers(arrays[0], step.dtype)],  # pyright: ignore
    "add": _own(_aligned(np.add)),
    "sub": _own(_aligned(np.subtract)),
    "mul": _own(_aligned(np.multiply)),
    "div": _wide(_aligned(np.divide)),
    "pow": _wide(_aligned(elementwise.power)),
    "maximum": _own(_aligned(elementwise.maximum)),
    "minimum": _own(_aligned(elementwise.minimum)),
    "greater": _decide(_aligned(np.greater)),
    "greater_equal": _decide(_aligned(np.greater_equal)),
    "equal": _decide(_aligned(np.equal)),
    "logical_and": _decide(_aligned(np.logical_and)),
    "logical_or": _decide(_aligned(np.logical_or)),
    "where": _where,
    "sum": _wide(axes.sum_),
    "mean": _wide(axes.mean),
    "variance": _wide(axes.variance),
    "max": _own(axes.max_),
    "min": _own(axes.min_),
    "prod": _wide(axes.prod),
    "norm": _wide(axes.norm),
    "log_sum_exp": _wide(axes.log_sum_exp),
    "max_pool": _own(windows.max_pool),
    "avg_pool": _own(windows.avg_pool),
    "adaptive_max_pool": _own(windows.adaptive_max_pool),
    "adaptive_avg_pool": _wide(windows.adaptive_avg_pool),
    "resize": _wide(windows.resize),
    "reshape": _own(axes.reshape),
    "permute": _own(axes.permute),
    "slice": _own(axes.slice_),
    "concat": _own(axes.concat),
    "pad": _own(axes.pad),
    "expand": _own(axes.expand),
    "flip": _own(axes.flip),
    "take": _take,
}
