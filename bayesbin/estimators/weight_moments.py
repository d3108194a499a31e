"""A random weight by its mean and variance, answering linear maps with sampled pre-activations.

By protocol, not by patching: the model runs with these values in place of weights, and torch asks the
value itself (``__torch_function__``) what a linear layer makes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class WeightMoments(Tensor):
    """Stands for a random weight tensor by its elementwise mean and variance.

    Answers shape, dtype and device as a tensor would, linear maps of an input with a sampled
    pre-activation, scaling and reshapes with another such value, and refuses everything else.
    """

    mean_: Tensor
    variance_: Tensor
    site: str
    uses: list[str]

    @staticmethod
    def of(
        site: str, mean: Tensor, variance: Tensor, uses: list[str] | None = None
    ) -> WeightMoments:
        # The tensor itself is an unread alias of the mean: it lends shape, strides, dtype and device.
        value = Tensor._make_subclass(WeightMoments, mean.detach())
        value.mean_, value.variance_ = mean, variance
        value.site = site
        # Shared by everything derived from one draw of one site: a list so that views see each other.
        value.uses = [] if uses is None else uses
        return value

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
        site = next((a.site for a in flat if isinstance(a, WeightMoments)), "?")
        name = getattr(func, "__name__", str(func)).strip("_")
        raise TypeError(
            f"LocalReparameterization cannot carry the weight {site!r} through {name!r}: it draws the "
            "outputs of linear, bilinear, matmul, convolutions and attention, after scaling and reshaping at "
            "most. Use another estimator for this model, for example StraightThrough or Concrete."
        )

    def _use(self, name: str) -> None:
        if self.uses:
            raise RuntimeError(
                f"The weight {self.site!r} is used twice in one forward pass ({self.uses[0]}, then "
                f"{name}). LocalReparameterization would draw it independently each time, which is "
                "another model: use StraightThrough, Concrete or a score-function estimator."
            )
        self.uses.append(name)

    def __repr__(self, **kwargs: Any) -> str:
        return f"WeightMoments(site={self.site!r}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __format__(self, format_spec: str) -> str:
        return format(repr(self), format_spec)


class _SafeSqrt(torch.autograd.Function):
    """sqrt(v) with gradient 0 at v = 0: a zero input row has no noise, and must not make it NaN."""

    @staticmethod
    def forward(ctx: Any, variance: Tensor) -> Tensor:
        root = variance.clamp(min=0.0).sqrt_()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return torch.where(root > 0, 0.5 * grad / root, 0.0)


def _sampled(mean: Tensor, variance: Tensor) -> Tensor:
    return mean + _SafeSqrt.apply(variance.to(mean.dtype)) * torch.randn_like(mean)


def _linear_map(
    function: Callable[..., Tensor], name: str, has_bias: bool
) -> Callable[..., Tensor]:
    """The sampled answer of a map that is linear in its second argument, the weight."""

    def rule(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(weight, WeightMoments) or isinstance(input, WeightMoments):
            return NotImplemented
        weight._use(name)
        mean = function(input, weight.mean_, *args, **kwargs)
        if has_bias:  # a bias shifts the mean and has no variance
            if args:
                args = (None, *args[1:])
            kwargs.pop("bias", None)
        variance = function(
            input.square().to(weight.variance_.dtype), weight.variance_, *args, **kwargs
        )
        return _sampled(mean, variance)

    return rule


def _bilinear(left: Any, right: Any, weight: Any, bias: Any = None) -> Any:
    """Sums of products of two inputs and a weight."""
    if not isinstance(weight, WeightMoments):
        return NotImplemented
    weight._use("bilinear")
    mean = F.bilinear(left, right, weight.mean_, bias)
    dtype = weight.variance_.dtype
    squares = left.square().to(dtype), right.square().to(dtype)
    return _sampled(mean, F.bilinear(*squares, weight.variance_))


def _matmul(left: Any, right: Any) -> Any:
    """x @ W and W @ x."""
    weight, other = (right, left) if isinstance(right, WeightMoments) else (left, right)
    if isinstance(other, WeightMoments):
        return NotImplemented
    weight._use("matmul")
    if weight is right:
        return _sampled(
            left @ weight.mean_, left.square().to(weight.variance_.dtype) @ weight.variance_
        )
    return _sampled(
        weight.mean_ @ right, weight.variance_ @ right.square().to(weight.variance_.dtype)
    )


def _attention(*args: Any, **kwargs: Any) -> Any:
    """Attention with its projections drawn: torch computes what lies between them.

    Torch's function projects by weights of its own; it gets the drawn projections and identities.
    """
    given = _ATTENTION.bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    linear = ("in_proj_weight", "out_proj_weight", *(f"{x}_proj_weight" for x in "qkv"))
    others = [value for name, value in a.items() if name not in linear]
    if any(isinstance(value, WeightMoments) for value in others) or a["static_k"] is not None:
        return NotImplemented
    inputs, width = (a["query"], a["key"], a["value"]), a["embed_dim_to_check"]
    whole, bias = a["in_proj_weight"], a["in_proj_bias"]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if a["use_separate_proj_weight"]:
        weights = [a[f"{x}_proj_weight"] for x in "qkv"]
    elif inputs[0] is inputs[1] is inputs[2]:
        weights = None
    else:
        weights = _rows(whole) if isinstance(whole, WeightMoments) else whole.chunk(3)
    if weights is None:
        projected = F.linear(inputs[0], whole, bias).chunk(3, -1)
    else:
        projected = [F.linear(*each) for each in zip(inputs, weights, biases, strict=True)]
    identity = torch.eye(width, dtype=projected[0].dtype, device=projected[0].device)
    a |= dict(zip(("query", "key", "value"), projected, strict=True))
    a |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
    a |= {f"{x}_proj_weight": identity for x in "qkv"}
    out_weight, out_bias = a["out_proj_weight"], a["out_proj_bias"]
    a |= {"out_proj_weight": identity, "out_proj_bias": None}
    outputs, attention = F.multi_head_attention_forward(*given.args, **given.kwargs)
    return F.linear(outputs, out_weight, out_bias), attention


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _rows(weight: WeightMoments) -> list[WeightMoments]:
    """The weights of queries, keys and values: different rows, so that each may be drawn by itself."""
    weight._use("attention")
    pairs = zip(weight.mean_.chunk(3), weight.variance_.chunk(3), strict=True)
    return [WeightMoments.of(weight.site, mean, variance) for mean, variance in pairs]


def _derived(weight: WeightMoments, mean: Tensor, variance: Tensor) -> WeightMoments:
    return WeightMoments.of(weight.site, mean, variance, weight.uses)


def _scale(left: Any, right: Any) -> Any:
    """Multiplication by something that does not depend on the weight."""
    weight, factor = (left, right) if isinstance(left, WeightMoments) else (right, left)
    if isinstance(factor, WeightMoments) or _repeats(weight, factor):
        return NotImplemented
    return _derived(weight, weight.mean_ * factor, weight.variance_ * (factor * factor))


def _repeats(weight: WeightMoments, factor: Any) -> bool:
    """Whether broadcasting would repeat weights, whose copies would then be drawn independently."""
    if not isinstance(factor, Tensor):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        return torch.broadcast_shapes(weight.shape, factor.shape).numel() != weight.numel()


def _divide(weight: Any, divisor: Any) -> Any:
    if isinstance(divisor, WeightMoments) or _repeats(weight, divisor):
        return NotImplemented
    return _derived(weight, weight.mean_ / divisor, weight.variance_ / (divisor * divisor))


def _negate(weight: WeightMoments) -> WeightMoments:
    return _derived(weight, -weight.mean_, weight.variance_)


def _reshape(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def rule(weight: WeightMoments, *args: Any, **kwargs: Any) -> WeightMoments:
        mean = function(weight.mean_, *args, **kwargs)
        return _derived(weight, mean, function(weight.variance_, *args, **kwargs))

    return rule


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
    F.linear: _linear_map(F.linear, "linear", has_bias=True),
    **{
        convolution: _linear_map(convolution, convolution.__name__, has_bias=True)
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
    **dict.fromkeys((torch.bilinear, F.bilinear), _bilinear),
    **dict.fromkeys((torch.neg, Tensor.neg, Tensor.__neg__), _negate),
    **{
        function: _reshape(function)
        for function in (
            torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten, torch.t,
            Tensor.t, torch.transpose, Tensor.transpose, torch.permute, Tensor.permute,
            torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze, Tensor.unflatten,
            Tensor.contiguous,
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
