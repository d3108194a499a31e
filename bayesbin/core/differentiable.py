"""Functions with derivatives written by hand, which every transform of ``torch.func`` follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

Slopes = tuple[Tensor | None, ...]


class Differentiable(torch.autograd.Function):
    """An autograd function in reverse and in forward mode: the base of all functions of the package.

    A subclass has ``forward``, ``setup_context``, ``backward``, ``tangent`` and ``vmap``.
    """

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        """The tangents of the outputs, from the saved tensors and the tangents of the inputs."""
        raise NotImplementedError(
            f"{cls.__name__.strip('_')} has no forward mode: take jacrev for jacfwd and jvp, and "
            "jacrev(jacrev(f)) for hessian(f)."
        )

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        # torch calls jvp with forward mode switched off, so that the forward derivative of a forward
        # derivative would lack a term without an error. Here it is on, and the inputs are primals.
        with forward_ad._set_fwd_grad_enabled(True):
            return cls.tangent(ctx, _primals(ctx.saved_tensors), _primals(tangents))


def applied(function: type[Differentiable]) -> Callable[..., Any]:
    """What applies an autograd function to all of its arguments, by position."""
    # torch.compile traces static methods only, and no function that has a forward mode.
    own: dict[str, Any] = {
        name: staticmethod(_static(getattr(function, name)))
        for name in ("setup_context", "backward")
    }
    own["jvp"] = staticmethod(torch.autograd.Function.jvp)
    compiled: Any = type(function.__name__, (function,), own)
    # Function.apply also binds the arguments to forward's signature, which takes longer than the
    # arithmetic of a small layer.
    parent: Any = super(torch.autograd.Function, function)
    direct = parent.apply

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return compiled.apply(*args)
        if torch._C._are_functorch_transforms_active():
            return function.apply(*args)
        return direct(*unwrap_dead_wrappers(args))

    return call


def _static(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ctx, *args: method(ctx, *args)


def _primals(values: Sequence[Any]) -> list[Any]:
    return [
        forward_ad.unpack_dual(value).primal if isinstance(value, Tensor) else value
        for value in values
    ]


def save(ctx: Any, *tensors: Tensor) -> None:
    """Save tensors for reverse and for forward mode."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


class Elementwise(Differentiable):
    """An elementwise function of tensors that broadcast.

    A subclass has ``forward(*inputs)``, tensors first and constants after them, and ``partials``. One
    whose derivative is taken from something else than the inputs has ``setup_context``, ``backward`` and
    ``tangent`` of its own and keeps ``vmap``.
    """

    @staticmethod
    def partials(needed: Sequence[bool], *inputs: Any) -> Slopes:
        """The partial derivative in each tensor; None where it is not needed, or is 0 everywhere."""
        raise NotImplementedError

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.constants = inputs[len(tensors) :]
        save(ctx, *tensors)
        ctx.set_materialize_grads(False)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        tensors, (grad,) = ctx.saved_tensors, grads
        if grad is None:
            return (None,) * (len(tensors) + len(ctx.constants))
        slopes = cls.partials(ctx.needs_input_grad, *tensors, *ctx.constants)
        products = [
            None if slope is None else (grad * slope).sum_to_size(tensor.shape)
            for slope, tensor in zip(slopes, tensors, strict=True)
        ]
        return (*products, *(None for _ in ctx.constants))

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        needed = [tangent is not None for tangent in tangents[: len(saved)]]
        slopes = cls.partials(needed, *saved, *ctx.constants)
        total = None
        for tangent, slope in zip(tangents, slopes, strict=False):
            if tangent is not None and slope is not None:
                total = tangent * slope if total is None else total + tangent * slope
        if total is None:  # the output does not depend on what has a tangent
            return torch.zeros_like(torch.broadcast_tensors(*saved)[0])
        return total

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        outputs = cls.apply(*batched(info.batch_size, in_dims, inputs))
        return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)


def batched(
    size: int, in_dims: Sequence[int | None], inputs: Sequence[Any], *, align: bool = True
) -> list[Any]:
    """The tensors with the dimension of ``vmap`` first, and the constants after them.

    A tensor that is the same in the whole batch is expanded: an output that repeats its values, with the
    gradient of another input, must not be taken for one output that the batch shares.

    :param align: whether the tensors get one number of dimensions, so that they broadcast as before.
    """
    tensors = [
        value[None].expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        for value, dim in zip(inputs, in_dims, strict=True)
        if isinstance(value, Tensor)
    ]
    constants = inputs[len(tensors) :]
    if align:
        most = max(tensor.dim() for tensor in tensors)
        tensors = [t[(slice(None), *[None] * (most - t.dim()))] for t in tensors]
    return [*tensors, *constants]


class _FirstOrder(Elementwise):
    """A slope that is an estimate: it can be used, and not differentiated."""

    @staticmethod
    def forward(slope: Tensor, parameter: Tensor) -> Tensor:
        return slope.view_as(slope)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "The gradient here is an estimate, which has no derivative of its own; a second derivative "
            "through it would be wrong. Take second derivatives in the real parameters alone, or with the "
            "estimators Enumerate and Concrete, whose gradients are derivatives."
        )

    jvp = backward


_once = applied(_FirstOrder)


def first_order(slope: Tensor, parameter: Tensor) -> Tensor:
    """``slope``, which raises a RuntimeError where someone differentiates it in ``parameter``."""
    if not torch.is_grad_enabled():
        return slope
    return _once(slope, parameter)
