"""Local reparameterization: sample pre-activations instead of weights.

By protocol, not by patching: the model runs with weight values that carry (mean, variance), and torch
asks the value itself (``__torch_function__``) what a linear layer makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin import _fused
from bayesbin.estimators.base import Estimator, Objective, checked_num_samples


class LocalReparameterization(Estimator):
    r"""Gaussian pre-activations, drawn once per datum and unit.

    .. math::
        a_{bo} = \sum_i x_{bi} \mu_{oi} + \epsilon_{bo} \sqrt{\sum_i x_{bi}^2 F_{oi}}, \qquad
        \epsilon \sim N(0, 1), \quad F = \mathrm{sech}^2 \lambda = 1 - \mu^2

    Works for weights that enter one ``linear``, ``conv1d``, ``conv2d`` or ``matmul`` (after scaling or
    reshaping, if any). Any other use of a weight, and a second use of the same weight, whose two
    draws would be independent, are errors that say so.

    Biased: the sum of signs is taken to be Gaussian, an error of the order of 1/fan-in that is small
    above about 30 inputs; in convolutions the noise of positions that share weights is drawn
    independently, which drops their covariance. Of all estimators for networks it has the lowest
    variance.

    :param num_samples: draws averaged per call.
    :param variance_dtype: compute the variance of pre-activations in this type, such as torch.bfloat16
        where the processor multiplies it faster: two to three digits of a variance are far below its
        own noise. None: in the weights' type.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import LocalReparameterization
        >>> natural = {"w": torch.zeros(2, 5, requires_grad=True)}
        >>> linear = torch.nn.functional.linear
        >>> objective = lambda values: torch.stack([linear(torch.ones(3, 5), w).mean() for w in values["w"]])
        >>> LocalReparameterization()(objective, natural).backward(); natural["w"].grad.shape
        torch.Size([2, 5])

    Source: Shayer, Levi and Fetaya 2018, arXiv 1710.07739 (LR-net); Peters and Welling 2018, arXiv
    1809.03368; Kingma, Salimans and Welling 2015, arXiv 1506.02557.
    """

    unbiased = False

    def __init__(self, num_samples: int = 1, variance_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.num_samples = checked_num_samples(num_samples)
        if variance_dtype is not None and variance_dtype not in _VARIANCE_DTYPES:
            raise ValueError(
                f"variance_dtype is bfloat16, float32 or float64; got {variance_dtype}. "
                "float16 would underflow."
            )
        self.variance_dtype = variance_dtype

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        moments = {}
        for name, lam in natural.items():
            mean, variance = _fused.moments(lam)
            moments[name] = (mean, variance.to(self.variance_dtype or lam.dtype))
        values = {
            name: [WeightMoments.of(name, *pair) for _ in range(self.num_samples)]
            for name, pair in moments.items()
        }
        return objective(values).mean()

    def extra_repr(self) -> str:
        short = "" if self.variance_dtype is None else f", variance_dtype={self.variance_dtype}"
        return f"num_samples={self.num_samples}{short}"


_VARIANCE_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


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
            "outputs of linear, conv1d, conv2d and matmul, after scaling and reshaping at most. Use "
            "another estimator for this model, for example StraightThrough or Concrete."
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
        for convolution in (torch.conv1d, torch.conv2d, F.conv1d, F.conv2d)
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
