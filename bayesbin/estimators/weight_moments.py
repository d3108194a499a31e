"""A random weight by its mean and variance, answering linear maps with sampled pre-activations.

By protocol, not by patching: the model runs with these values in place of weights, and torch asks the
value itself (``__torch_function__``) what a linear layer makes of it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.estimators.weight_draws import UNKNOWN, LinearUse, View, WeightDraw


class WeightMoments(Tensor):
    """Stands for a random weight tensor by its elementwise mean and variance.

    Answers shape, dtype and device as a tensor would, linear maps of an input with a sampled
    pre-activation, scaling and reshapes with another such value, and refuses everything else.
    """

    mean_: Tensor
    variance_: Tensor
    noise_: Callable[[], Tensor]
    draw: WeightDraw
    view_: View

    @staticmethod
    def of(draw: WeightDraw) -> WeightMoments:
        """The weight of one draw, from which all its views and multiples derive."""
        return WeightMoments._made(draw, draw.mean, draw.variance, draw.noise, ())

    @staticmethod
    def _made(
        draw: WeightDraw, mean: Tensor, variance: Tensor, noise: Any, view: View
    ) -> WeightMoments:
        # The tensor itself is an unread alias of the mean: it lends shape, strides, dtype and device.
        value = Tensor._make_subclass(WeightMoments, mean.detach())
        value.mean_, value.variance_, value.noise_ = mean, variance, noise
        value.draw, value.view_ = draw, view
        return value

    @property
    def site(self) -> str:
        """The name of the weight's site."""
        return self.draw.site

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _RULES:
            result = _RULES[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        flat: list[Any] = []
        for argument in (*args, *kwargs.values()):
            flat.extend(argument if isinstance(argument, (list, tuple)) else (argument,))
        draw = next((a.draw for a in flat if isinstance(a, WeightMoments)), None)
        name = getattr(func, "__name__", str(func)).strip("_")
        raise TypeError(
            f"{draw.estimator if draw else 'The estimator'} cannot carry the weight "
            f"{draw.site if draw else '?'!r} through {name!r}: it draws the outputs of linear, bilinear, "
            "matmul, convolutions and attention, after scaling, reshaping and slicing at most. Use another "
            "estimator for this model, for example StraightThrough or Concrete."
        )

    def __repr__(self, **kwargs: Any) -> str:
        return f"WeightMoments(site={self.site!r}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __format__(self, format_spec: str) -> str:
        return format(repr(self), format_spec)


def _last(output: Tensor) -> int:
    """How often a weight is used for an output whose last axis counts the weight's outputs."""
    return output.numel() // max(1, output.shape[-1])


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, WeightMoments) or isinstance(input, WeightMoments):
        return NotImplemented
    if weight.dim() == 1:
        return _squeezed(_linear(input, _unsqueezed(weight, 0)), -1, bias)
    return _project(input, weight, bias, UNKNOWN)


def _project(input: Tensor, weight: Any, bias: Any, datum: Any) -> Tensor:
    """A linear map whose axis of data may be known."""
    if not isinstance(weight, WeightMoments):
        return F.linear(input, weight, bias)
    return weight.draw.answer(
        LinearUse(
            "linear", F.linear, input, weight, bias, axes=(0, 1), channels=(-1, -1),
            places=tuple(range(input.dim() - 1)), count=_last, datum=datum,
        )
    )  # fmt: skip


def _convolution(function: Callable[..., Tensor], transposed: bool) -> Callable[..., Any]:
    def rule(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(weight, WeightMoments) or isinstance(input, WeightMoments):
            return NotImplemented
        bias = args[0] if args else kwargs.pop("bias", None)
        groups = args[4] if len(args) > 4 else kwargs.get("groups", 1)
        channel = 1 - weight.dim()  # of (batch, channels, places) and of (channels, places)

        def convolve(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            return function(x, w, b, *args[1:], **kwargs)

        def count(output: Tensor) -> int:
            over = input if transposed else output
            return over.numel() // max(1, over.shape[channel])

        return weight.draw.answer(
            LinearUse(
                function.__name__, convolve, input, weight, bias,
                axes=(1, 0) if transposed else (0, 1), channels=(channel, channel),
                places=(0,) if input.dim() == weight.dim() else (), count=count,
                repeats=(groups, 1) if transposed else (1, groups),
            )
        )  # fmt: skip

    return rule


def _bilinear(left: Any, right: Any, weight: Any, bias: Any = None) -> Any:
    """Sums of products of two inputs and a weight: linear in the first for a given second."""
    others = (left, right, bias)
    if not isinstance(weight, WeightMoments) or any(isinstance(o, WeightMoments) for o in others):
        return NotImplemented

    def squares(variance: Tensor, constant: bool) -> Tensor:
        first, second = (each.detach() if constant else each for each in (left, right))
        dtype = variance.dtype
        return F.bilinear(first.square().to(dtype), second.square().to(dtype), variance)

    return weight.draw.answer(
        LinearUse(
            "bilinear", lambda x, w, b=None: F.bilinear(x, right, w, b), left, weight, bias,
            axes=(0, 1), channels=(-1, -1), places=tuple(range(left.dim() - 1)), count=_last,
            squares=squares,
        )
    )  # fmt: skip


def _matmul(left: Any, right: Any) -> Any:
    """x @ W and W @ x."""
    weight, other = (right, left) if isinstance(right, WeightMoments) else (left, right)
    if isinstance(other, WeightMoments) or not isinstance(other, Tensor):
        return NotImplemented
    side = -1 if weight is right else -2  # the axis of a vector that torch adds and drops
    if weight.dim() == 1:
        added = _unsqueezed(weight, side)
        return _squeezed(_matmul(left, added) if weight is right else _matmul(added, right), side)
    if other.dim() == 1 and weight is left:
        return _squeezed(_matmul(left, other.unsqueeze(-1)), -1)
    copies = weight.shape[:-2].numel()
    # Axes of the input that the weight has as well count other weights.
    own = {i - weight.dim() for i, size in enumerate(weight.shape[:-2]) if size > 1}
    inputs = -1 if weight is right else -2
    places = [a for a in range(-other.dim(), 0) if a != inputs and a not in own]
    return weight.draw.answer(
        LinearUse(
            "matmul",
            (lambda x, w, b=None: x @ w) if weight is right else (lambda x, w, b=None: w @ x),
            other, weight, None, axes=(-1, -2) if weight is right else (-2, -1),
            channels=(inputs, inputs), places=tuple(places),
            count=lambda output: output.numel() // max(1, output.shape[inputs] * copies),
        )
    )  # fmt: skip


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of a weight, by number: each is used as often as its number comes."""
    if not isinstance(weight, WeightMoments) or max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    if weight.draw.flips is False:
        return NotImplemented  # copies of a row would be drawn independently

    def rows(numbers: Tensor, w: Tensor, bias: None = None) -> Tensor:
        return F.embedding(numbers, w, padding_idx)

    return weight.draw.answer(
        LinearUse(
            "embedding", rows, input, weight, None, axes=(1, None), channels=(-1, -1),
            places=tuple(range(input.dim())), count=lambda output: 2 * output.numel(),
            squares=lambda variance, constant: rows(input, variance),
        )
    )  # fmt: skip


def _squeezed(result: Any, axis: int, bias: Any = None) -> Any:
    if result is NotImplemented:
        return result
    return result.squeeze(axis) if bias is None else result.squeeze(axis) + bias


def _unsqueezed(weight: WeightMoments, axis: int) -> WeightMoments:
    return _RULES[torch.unsqueeze](weight, axis)


def _attention(*args: Any, **kwargs: Any) -> Any:
    """Attention with its projections drawn: torch computes what lies between them.

    Torch's function projects by weights of its own; it gets the drawn projections and identities. Its
    inputs are (places, data, features), or (places, features) of a single datum.
    """
    given = _ATTENTION.bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    linear = ("in_proj_weight", "out_proj_weight", *(f"{x}_proj_weight" for x in "qkv"))
    others = [value for name, value in a.items() if name not in linear]
    if any(isinstance(value, WeightMoments) for value in others) or a["static_k"] is not None:
        return NotImplemented
    inputs, width = (a["query"], a["key"], a["value"]), a["embed_dim_to_check"]
    datum = 1 if inputs[0].dim() == 3 else None
    whole, bias = a["in_proj_weight"], a["in_proj_bias"]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if a["use_separate_proj_weight"]:
        weights = [a[f"{x}_proj_weight"] for x in "qkv"]
    elif inputs[0] is inputs[1] is inputs[2]:
        weights = None
    else:
        weights = whole.chunk(3)
    if weights is None:
        projected = _project(inputs[0], whole, bias, datum).chunk(3, -1)
    else:
        projected = [_project(*each, datum) for each in zip(inputs, weights, biases, strict=True)]
    identity = torch.eye(width, dtype=projected[0].dtype, device=projected[0].device)
    a |= dict(zip(("query", "key", "value"), projected, strict=True))
    a |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
    a |= {f"{x}_proj_weight": identity for x in "qkv"}
    out_weight, out_bias = a["out_proj_weight"], a["out_proj_bias"]
    a |= {"out_proj_weight": identity, "out_proj_bias": None}
    outputs, attention = F.multi_head_attention_forward(*given.args, **given.kwargs)
    return _project(outputs, out_weight, out_bias, datum), attention


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _scale(left: Any, right: Any) -> Any:
    """Multiplication by something that does not depend on the weight."""
    weight, factor = (left, right) if isinstance(left, WeightMoments) else (right, left)
    if isinstance(factor, WeightMoments) or _repeats(weight, factor):
        return NotImplemented
    return _multiple(weight, factor, lambda x: x * factor, lambda x: x * (factor * factor))


def _multiple(
    weight: WeightMoments, factor: Any, times: Callable[[Tensor], Tensor], squared: Any
) -> WeightMoments:
    mean, variance = times(weight.mean_), squared(weight.variance_)
    view = weight.view_
    if mean.shape != weight.shape:  # broadcasting has added axes of length 1
        view = (*view, (torch.reshape, (tuple(mean.shape),), (), None))
    return WeightMoments._made(weight.draw, mean, variance, lambda: times(weight.noise_()), view)


def _repeats(weight: WeightMoments, factor: Any) -> bool:
    """Whether broadcasting would repeat weights, whose copies would then be drawn independently."""
    if not isinstance(factor, Tensor):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        return torch.broadcast_shapes(weight.shape, factor.shape).numel() != weight.numel()


def _divide(weight: Any, divisor: Any) -> Any:
    if isinstance(divisor, WeightMoments) or _repeats(weight, divisor):
        return NotImplemented
    return _multiple(weight, divisor, lambda x: x / divisor, lambda x: x / (divisor * divisor))


def _negate(weight: WeightMoments) -> WeightMoments:
    return _multiple(weight, -1.0, torch.neg, lambda x: x)


def _reshape(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for functions that give some of the elements in another shape, or several such tensors."""

    def rule(weight: WeightMoments, *args: Any, **kwargs: Any) -> Any:
        own = _as_view(function, args, kwargs) if isinstance(weight, WeightMoments) else None
        if own is not None:
            args = own
            found = function(weight.mean_, *args, **kwargs)
            if isinstance(found, Tensor):
                return view(weight, args, kwargs, None)
            return tuple(view(weight, args, kwargs, part) for part in range(len(found)))
        return NotImplemented

    def view(weight: WeightMoments, args: Any, kwargs: Any, part: int | None) -> WeightMoments:
        def of(tensor: Tensor) -> Tensor:
            found = function(tensor, *args, **kwargs)
            return found if part is None else found[part]

        step = (function, args, tuple(kwargs.items()), part)
        return WeightMoments._made(
            weight.draw, of(weight.mean_), of(weight.variance_), lambda: of(weight.noise_()),
            (*weight.view_, step),
        )  # fmt: skip

    return rule


def _as_view(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """The arguments of a view that takes each element at most once, in comparable form; else None."""
    if function is not Tensor.__getitem__:
        return None if any(isinstance(a, Tensor) for a in (*args, *kwargs.values())) else args
    found: list[Any] = []
    for part in args[0] if isinstance(args[0], tuple) else args:
        if part is None or part is ... or isinstance(part, slice):
            found.append(part)
            continue
        if isinstance(part, Tensor):  # which, as a list or an array, may name an element twice
            return None
        try:
            found.append(operator.index(part))
        except TypeError:
            return None
    return (tuple(found),)


_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.ndimension,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
    *(
        getattr(Tensor, name).__get__
        for name in (
            "shape", "dtype", "device", "ndim", "layout", "is_sparse", "is_quantized", "is_cuda",
            "is_mps", "is_meta", "is_nested", "is_leaf", "requires_grad", "itemsize", "nbytes",
        )
    ),
}  # fmt: skip

_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **{
        convolution: _convolution(convolution, "transpose" in convolution.__name__)
        for convolution in (
            torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
            torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
            F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
        )
    },
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, torch.mv),
        _matmul,
    ),
    **dict.fromkeys(
        (torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _scale
    ),
    **dict.fromkeys(
        (torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__), _divide
    ),
    F.multi_head_attention_forward: _attention,
    F.embedding: _embedding,
    **dict.fromkeys((torch.bilinear, F.bilinear), _bilinear),
    **dict.fromkeys((torch.neg, Tensor.neg, Tensor.__neg__), _negate),
    **{
        function: _reshape(function)
        for function in (
            torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten, torch.t,
            Tensor.t, torch.transpose, Tensor.transpose, torch.permute, Tensor.permute,
            torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze, Tensor.unflatten,
            Tensor.contiguous, torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.unbind,
            Tensor.unbind, torch.narrow, Tensor.narrow, torch.select, Tensor.select, Tensor.__getitem__,
            *(getattr(Tensor, name).__get__ for name in ("T", "mT")),
        )
    },
}  # fmt: skip
# x.__rmatmul__(W) arrives with the operands swapped.
_RULES[Tensor.__rmatmul__] = lambda right, left: _matmul(left, right)


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda *operands: WeightMoments.__torch_function__(function, (), operands)


# torch's own operators turn a TypeError into NotImplemented, and Python would then report no more than
# unsupported operand types; defined here, the error above reaches the user.
for _name in (
    *(f"__{side}{name}__" for side in ("", "r") for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul",
    )),
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
):  # fmt: skip
    setattr(WeightMoments, _name, _operator(_name))
