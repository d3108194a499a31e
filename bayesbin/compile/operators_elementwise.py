"""Operators on numbers one by one: activations, arithmetic, comparisons, conversions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from bayesbin.compile import signs
from bayesbin.compile.layout import Layout
from bayesbin.compile.operators import operator
from bayesbin.compile.translation import Fixed, Held, Traced, Translation, plain

Operand = Any  # Held, a number, or a Size, which is refused
NO_BOUND = 1.7e308  # beyond float32, and as good as beyond float64


# One tensor


def _same_name(name: str) -> None:
    @operator(name)
    def unary(t: Translation, self: Held) -> Traced:
        return t.unary(name, self)


for _name in (
    *("relu", "tanh", "sigmoid", "exp", "log", "sqrt", "rsqrt", "reciprocal", "abs", "sin", "cos"),
    *("erf", "floor", "silu", "mish", "hardsigmoid", "hardswish", "log_sigmoid"),
):
    _same_name(_name)


@operator("round")
def _round(t: Translation, self: Held) -> Traced:
    return t.unary("round", self)


@operator("neg", "negative")
def _neg(t: Translation, self: Held) -> Traced:
    found = scaled(self, -1.0)
    return found if found is not None else t.unary("neg", self)


@operator("leaky_relu")
def _leaky_relu(t: Translation, self: Held, negative_slope: float) -> Traced:
    return t.unary("leaky_relu", self, slope=float(negative_slope))


@operator("rrelu")
def _rrelu(t: Translation, self: Held, lower: float, upper: float, training: bool) -> Traced:
    if training:
        raise t.refuse("expected a function of the inputs alone, got random slopes")
    return t.unary("leaky_relu", self, slope=(lower + upper) / 2)


@operator("elu")
def _elu(t: Translation, self: Held, alpha: float, scale: float, input_scale: float) -> Traced:
    numbers = {"alpha": float(alpha), "scale": float(scale), "input_scale": float(input_scale)}
    return t.unary("elu", self, **numbers)


@operator("celu")
def _celu(t: Translation, self: Held, alpha: float) -> Traced:
    return t.unary("elu", self, alpha=float(alpha), scale=1.0, input_scale=1.0 / alpha)


@operator("selu")
def _selu(t: Translation, self: Held) -> Traced:
    return t.unary("elu", self, alpha=1.6732632423543772, scale=1.0507009873554805, input_scale=1.0)


@operator("gelu")
def _gelu(t: Translation, self: Held, approximate: str) -> Traced:
    return t.unary("gelu", self, approximate=approximate)


@operator("softplus")
def _softplus(t: Translation, self: Held, beta: float, threshold: float) -> Traced:
    return t.unary("softplus", self, beta=float(beta), threshold=float(threshold))


@operator("hardshrink")
def _hardshrink(t: Translation, self: Held, lambd: float) -> Traced:
    return t.unary("hardshrink", self, bound=float(lambd))


@operator("softshrink")
def _softshrink(t: Translation, self: Held, lambd: float) -> Traced:
    return t.unary("softshrink", self, bound=float(lambd))


@operator("hardtanh")
def _hardtanh(t: Translation, self: Held, min_val: float, max_val: float) -> Traced:
    return t.unary("clamp", self, low=float(min_val), high=float(max_val))


@operator("relu6")
def _relu6(t: Translation, self: Held) -> Traced:
    return t.unary("clamp", self, low=0.0, high=6.0)


@operator("clamp", "clip")
def _clamp(t: Translation, self: Held, min: Operand = None, max: Operand = None) -> Traced:
    if all(bound is None or plain(bound) for bound in (min, max)):
        low, high = (max_or(bound, limit) for bound, limit in ((min, -NO_BOUND), (max, NO_BOUND)))
        return t.unary("clamp", self, low=low, high=high)
    found = t.traced(self)
    if min is not None:
        found = t.elementwise("maximum", found, min)
    return found if max is None else t.elementwise("minimum", found, max)


def max_or(bound: float | None, limit: float) -> float:
    """A bound as an attribute: none, and one at infinity, is the limit."""
    if bound is None or math.isinf(bound):
        return limit if bound is None else math.copysign(NO_BOUND, bound)
    return float(bound)


@operator("clamp_min")
def _clamp_min(t: Translation, self: Held, min: Operand) -> Traced:
    return _clamp(t, self, min=min)


@operator("clamp_max")
def _clamp_max(t: Translation, self: Held, max: Operand) -> Traced:
    return _clamp(t, self, max=max)


@operator("prelu")
def _prelu(t: Translation, self: Held, weight: Held) -> Traced:
    x = t.settled(t.traced(self))
    slopes = t.settled(t.traced(weight))
    count = slopes.layout.size(range(len(slopes.layout.sizes)))
    if count == 1:
        name = t.reshaped(slopes.name, ())
        return Traced(t.emit("prelu", (x.name, name), t.dtype(), axis=0), x.layout, x.dtype)
    x, (axis,) = t.isolated(x, [1], "a slope for each row")
    name = t.reshaped(slopes.name, (count,))
    return Traced(t.emit("prelu", (x.name, name), t.dtype(), axis=axis), x.layout, x.dtype)


@operator("threshold")
def _threshold(t: Translation, self: Held, threshold: float, value: float) -> Traced:
    above = compare(t, "greater", self, threshold)
    return t.elementwise("where", above, self, value)


@operator("square")
def _square(t: Translation, self: Held) -> Traced:
    return t.elementwise("mul", self, self)


@operator("pow")
def _pow(t: Translation, self: Operand, exponent: Operand) -> Traced:
    if plain(exponent) and exponent in (1, 2, 0.5) and t.dtype() in ("f4", "f8"):
        if exponent == 1:
            return t.traced(self)
        return _square(t, self) if exponent == 2 else t.unary("sqrt", self)
    return t.elementwise("pow", self, exponent)


@operator("ceil")
def _ceil(t: Translation, self: Held) -> Traced:
    return chain(t, self, t.dtype(), ("neg",), ("floor",), ("neg",))


@operator("trunc", "fix")
def _trunc(t: Translation, self: Held) -> Traced:
    return t.elementwise(
        "where", compare(t, "greater_equal", self, 0), t.unary("floor", self), _ceil(t, self)
    )


@operator("log1p")
def _log1p(t: Translation, self: Held) -> Traced:
    return chain(t, self, "f8", ("add", 1.0), ("log",))


@operator("expm1")
def _expm1(t: Translation, self: Held) -> Traced:
    return chain(t, self, "f8", ("exp",), ("sub", 1.0))


@operator("exp2")
def _exp2(t: Translation, self: Held) -> Traced:
    return chain(t, self, "f8", ("mul", math.log(2.0)), ("exp",))


@operator("log2")
def _log2(t: Translation, self: Held) -> Traced:
    return chain(t, self, "f8", ("log",), ("mul", 1.0 / math.log(2.0)))


@operator("log10")
def _log10(t: Translation, self: Held) -> Traced:
    return chain(t, self, "f8", ("log",), ("mul", 1.0 / math.log(10.0)))


@operator("erfc")
def _erfc(t: Translation, self: Held) -> Traced:
    return chain(t, self, "f8", ("erf",), ("neg",), ("add", 1.0))


@operator("tan")
def _tan(t: Translation, self: Held) -> Traced:
    return t.elementwise("div", t.unary("sin", self), t.unary("cos", self))


@operator("sinh")
def _sinh(t: Translation, self: Held) -> Traced:
    return _halved(t, "sub", self)


@operator("cosh")
def _cosh(t: Translation, self: Held) -> Traced:
    return _halved(t, "add", self)


def _halved(t: Translation, kind: str, x: Held) -> Traced:
    rising = chain(t, x, "f8", ("exp",), last="f8")
    falling = chain(t, x, "f8", ("neg",), ("exp",), last="f8")
    total = t.elementwise(kind, rising, falling, dtype="f8")
    return chain(t, total, "f8", ("mul", 0.5))


def chain(t: Translation, x: Held, dtype: str, *kinds: tuple[Any, ...], last: str = "") -> Traced:
    """Steps one after another, each a kind and perhaps a number, in a type; then the type of the result."""
    found = t.settled(t.traced(x))
    name = found.name
    for kind, *numbers in kinds:
        name = t.emit(kind, (name, *(t.constant(number, dtype) for number in numbers)), dtype)
    last = last or t.dtype()
    if last != dtype:
        name = t.emit("cast", (name,), last)
    return Traced(name, found.layout, last)


@operator("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(t: Translation, input: Held, p: float, train: bool) -> Held:
    if train and p:
        raise t.refuse(
            "expected a function of the inputs alone, got dropout while predicting",
            "Pass training=self.training to torch.nn.functional.dropout.",
        )
    return input


# Arithmetic


def scaled(x: Operand, factor: Operand) -> Traced | None:
    """A tensor with one more factor to be multiplied in later, if its factor may wait."""
    if not isinstance(x, Traced) or x.dtype not in ("f4", "f8"):
        return None
    if plain(factor):
        return _scaled_by_number(x, factor)
    return _scaled_by_tensor(x, factor) if x.weights and isinstance(factor, Fixed) else None


def _scaled_by_number(x: Traced, factor: float) -> Traced | None:
    """Weights wait for any number but 0, everything else for a power of two that does not round."""
    if not math.isfinite(factor) or factor == 0:
        return None
    exact = abs(math.frexp(factor)[0]) == 0.5 and abs(math.log2(abs(factor))) < 40
    return replace(x, factor=x.factor * factor) if exact or x.weights else None


def _scaled_by_tensor(x: Traced, factor: Fixed) -> Traced | None:
    """Weights wait for known floats that repeat to their shape."""
    if factor.dtype not in ("f4", "f8"):
        return None
    numbers, shape = factor.tensor.detach().double(), [size.count for size in x.layout.shape]
    if numbers.numel() == 1 and numbers.dim() <= len(shape):
        return _scaled_by_number(x, numbers.item())
    if torch.broadcast_shapes(numbers.shape, torch.Size(shape)) != torch.Size(shape):
        return None
    numbers = numbers.reshape((1,) * (len(shape) - numbers.dim()) + tuple(numbers.shape))
    return replace(x, factor=numbers * x.factor)


@operator("mul", "multiply")
def _mul(t: Translation, self: Operand, other: Operand) -> Traced:
    if t.dtype() == "b1":
        return t.elementwise("logical_and", self, other)
    for x, factor in ((self, other), (other, self)):
        found = scaled(x, factor)
        if found is not None and found.dtype == t.dtype():
            return found
    return t.elementwise("mul", self, other)


@operator("div", "divide", "true_divide")
def _div(t: Translation, self: Operand, other: Operand, rounding_mode: str | None = None) -> Traced:
    if rounding_mode is not None:
        if rounding_mode != "floor":
            raise t.refuse(f"expected rounding_mode 'floor', got {rounding_mode!r}")
        return _floor_divide(t, self, other)
    if plain(other) and other:
        if (found := scaled(self, 1.0 / other)) is not None and found.dtype == t.dtype():
            return found
    if isinstance(other, Fixed) and isinstance(self, Traced) and self.weights:
        inverse = Fixed(1.0 / other.tensor.double())
        if bool(inverse.tensor.isfinite().all()) and (found := scaled(self, inverse)) is not None:
            return found
    return t.elementwise("div", self, other)


@operator("floor_divide")
def _floor_divide(t: Translation, self: Operand, other: Operand) -> Traced:
    dtype = t.dtype()
    ratio = t.elementwise("div", self, other, dtype="f8" if dtype == "i8" else dtype)
    return chain(t, ratio, ratio.dtype, ("floor",))


@operator("remainder")
def _remainder(t: Translation, self: Operand, other: Operand) -> Traced:
    whole = t.elementwise("mul", _floor_divide(t, self, other), other)
    return t.elementwise("sub", self, whole)


@operator("add")
def _add(t: Translation, self: Operand, other: Operand, alpha: float = 1) -> Traced:
    if (found := signs.of_sum(t, self, other, alpha)) is not None:
        return found
    return t.elementwise("add", self, _times(t, other, alpha))


@operator("sub", "subtract")
def _sub(t: Translation, self: Operand, other: Operand, alpha: float = 1) -> Traced:
    if (found := signs.of_sum(t, self, other, -alpha)) is not None:
        return found
    return t.elementwise("sub", self, _times(t, other, alpha))


@operator("rsub")
def _rsub(t: Translation, self: Operand, other: Operand, alpha: float = 1) -> Traced:
    return t.elementwise("sub", other, _times(t, self, alpha))


def _times(t: Translation, x: Operand, alpha: float) -> Operand:
    if alpha == 1:
        return x
    if plain(x):
        return x * alpha
    found = t.settled(t.traced(x))
    name = t.emit("mul", (found.name, t.constant(alpha, t.dtype())), t.dtype())
    return Traced(name, found.layout, t.dtype())


@operator("fmod")
def _fmod(t: Translation, self: Operand, other: Operand) -> Traced:
    ratio = t.elementwise("div", self, other)
    return t.elementwise("sub", self, t.elementwise("mul", _trunc(t, ratio), other))


@operator("hypot")
def _hypot(t: Translation, self: Held, other: Held) -> Traced:
    total = t.elementwise("add", _square_of(t, self), _square_of(t, other))
    return replace(total, name=t.emit("sqrt", (total.name,), t.dtype()))


def _square_of(t: Translation, x: Held) -> Traced:
    found = t.settled(t.traced(x))
    return replace(found, name=t.emit("mul", (found.name, found.name), t.dtype()))


@operator("lerp")
def _lerp(t: Translation, self: Held, end: Held, weight: Operand) -> Traced:
    way = t.elementwise("sub", end, self)
    return t.elementwise("add", self, t.elementwise("mul", way, weight))


@operator("addcmul")
def _addcmul(t: Translation, self: Held, tensor1: Held, tensor2: Held, value: float = 1) -> Traced:
    return _add(t, self, t.elementwise("mul", tensor1, tensor2), value)


@operator("addcdiv")
def _addcdiv(t: Translation, self: Held, tensor1: Held, tensor2: Held, value: float = 1) -> Traced:
    return _add(t, self, t.elementwise("div", tensor1, tensor2), value)


@operator("maximum")
def maximum(t: Translation, self: Operand, other: Operand) -> Traced:
    return t.elementwise("maximum", self, other)


@operator("minimum")
def minimum(t: Translation, self: Operand, other: Operand) -> Traced:
    return t.elementwise("minimum", self, other)


@operator("fill")
def _fill(t: Translation, self: Held, value: Operand) -> Traced:
    if isinstance(value, Traced):
        return t.elementwise("add", filled(t, 0), value)
    return filled(t, value.tensor.item() if isinstance(value, Fixed) else value)


@operator("copy")
def _copy(t: Translation, self: Held, src: Held) -> Traced:
    return t.elementwise("add", filled(t, 0), src)


@operator("nan_to_num")
def _nan_to_num(
    t: Translation,
    self: Held,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Traced:
    most = torch.finfo(t.result.dtype).max
    bounds = (-most if neginf is None else neginf, most if posinf is None else posinf)
    found = t.elementwise("where", _isnan(t, self), float(nan or 0.0), self)
    for infinite, bound in zip((-math.inf, math.inf), bounds, strict=True):
        found = t.elementwise("where", compare(t, "equal", found, infinite), float(bound), found)
    return found


def filled(t: Translation, number: float) -> Traced:
    """One number everywhere: a constant that is repeated where it is used."""
    sizes = [size.count for size in t.shape()]
    name = t.constant(torch.full(sizes, number, dtype=t.result.dtype).numpy(), t.dtype())
    return Traced(name, Layout.of(t.shape()), t.dtype())


# Decisions


def compare(t: Translation, kind: str, a: Operand, b: Operand) -> Traced:
    """A comparison, of numbers in the type of the tensors."""
    dtype = _common(t, a, b)
    names, layout = t.align((a, b), t.shape(), dtype)
    return Traced(t.emit(kind, names, "b1"), layout, "b1")


def _common(t: Translation, *operands: Operand) -> str:
    """The type in which torch compares."""
    held = [x.dtype for x in operands if isinstance(x, (Fixed, Traced))]
    for dtype in ("f8", "f4"):
        if dtype in held:
            return dtype
    return "f4" if any(isinstance(x, float) for x in operands) else "i8"


@operator("gt", "greater")
def _gt(t: Translation, self: Operand, other: Operand) -> Traced:
    return compare(t, "greater", self, other)


@operator("lt", "less")
def _lt(t: Translation, self: Operand, other: Operand) -> Traced:
    return compare(t, "greater", other, self)


@operator("ge", "greater_equal")
def _ge(t: Translation, self: Operand, other: Operand) -> Traced:
    return compare(t, "greater_equal", self, other)


@operator("le", "less_equal")
def _le(t: Translation, self: Operand, other: Operand) -> Traced:
    return compare(t, "greater_equal", other, self)


@operator("eq")
def _eq(t: Translation, self: Operand, other: Operand) -> Traced:
    return compare(t, "equal", self, other)


@operator("ne", "not_equal")
def _ne(t: Translation, self: Operand, other: Operand) -> Traced:
    return negation(t, compare(t, "equal", self, other))


def negation(t: Translation, x: Traced) -> Traced:
    """Not x."""
    return Traced(t.emit("logical_not", (x.name,), "b1"), x.layout, "b1")


@operator("isnan")
def _isnan(t: Translation, self: Held) -> Traced:
    return negation(t, compare(t, "equal", self, self))


@operator("isinf")
def _isinf(t: Translation, self: Held) -> Traced:
    size = chain(t, self, "f8", ("abs",), last="f8")
    return compare(t, "equal", size, math.inf)


@operator("logical_not", "bitwise_not")
def _logical_not(t: Translation, self: Held) -> Traced:
    return negation(t, _boolean(t, self))


@operator("logical_and", "bitwise_and", "__and__")
def _logical_and(t: Translation, self: Operand, other: Operand) -> Traced:
    return t.elementwise("logical_and", _boolean(t, self), _boolean(t, other), dtype="b1")


@operator("logical_or", "bitwise_or", "__or__")
def _logical_or(t: Translation, self: Operand, other: Operand) -> Traced:
    return t.elementwise("logical_or", _boolean(t, self), _boolean(t, other), dtype="b1")


@operator("logical_xor", "bitwise_xor", "__xor__")
def _logical_xor(t: Translation, self: Operand, other: Operand) -> Traced:
    return negation(t, compare(t, "equal", _boolean(t, self), _boolean(t, other)))


def _boolean(t: Translation, x: Operand) -> Any:
    if isinstance(x, bool):
        return Fixed(torch.tensor(x))
    if isinstance(x, Fixed):
        x = t.traced(x)
    if not isinstance(x, Traced) or x.dtype != "b1":
        raise t.refuse("expected booleans, got numbers", "Compare them with 0 first.")
    return x


@operator("where")
def _where(t: Translation, condition: Held, self: Operand, other: Operand) -> Traced:
    if (found := signs.of_choice(t, condition, self, other)) is not None:
        return found
    return t.elementwise("where", condition, self, other)


@operator("masked_fill")
def _masked_fill(t: Translation, self: Held, mask: Held, value: Operand) -> Traced:
    return t.elementwise("where", mask, value, self)


@operator("sign", "sgn")
def _sign(t: Translation, self: Held) -> Traced:
    above, below = compare(t, "greater", self, 0), compare(t, "greater", 0, self)
    return t.elementwise("sub", above, below)


@operator("bayesbin::sign")
def _binary_sign(t: Translation, input: Held) -> Traced:
    return t.unary("sign", input)


# Types


@operator("to", "_to_copy", "type_as", by_shape=True)
def convert(t: Translation, self: Held, dtype: Any = None, other: Any = None) -> Held:
    found, wanted = t.traced(self), t.dtype()
    if wanted == found.dtype:
        return self
    x = t.settled(found)
    return Traced(t.emit("cast", (x.name,), wanted), x.layout, wanted)
