"""How one draw of a random weight answers the linear maps it enters: local reparameterization or Flipout."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.differentiable import Elementwise, applied

# A view of a site's tensor: functions to apply to it in turn, each with its arguments and, where it
# returns several tensors, the number of the one that is meant.
View = tuple[tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], int | None], ...]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class LinearUse:
    """A map that is linear in its input and in a weight, and what is a datum, an input and an output of it.

    :param name: for messages. :param function: ``function(input, weight, bias)``.
    :param weight: a WeightMoments: a site's, or a view or multiple of it.
    :param squares: from the variance of the weight to that of the outputs, where it is not ``function`` of
        the squared input; and whether that input is a constant.
    :param axes: the axes of the weight that count outputs and inputs; None where it has no such axis.
    :param channels: the same of the output and of the input.
    :param places: the axes of the input over which the same weight is applied.
    :param datum: the one of them that counts data, or None; UNKNOWN: to be found by its length.
    :param repeats: how often outputs and inputs of the weight are repeated, one group after another.
    :param count: from the output to how often each weight is used for it.
    """

    name: str
    function: Callable[..., Tensor]
    input: Tensor
    weight: Any
    bias: Tensor | None
    axes: tuple[int | None, int | None]
    channels: tuple[int, int]
    places: tuple[int, ...]
    count: Callable[[Tensor], int]
    datum: Any = UNKNOWN
    repeats: tuple[int, int] = (1, 1)
    squares: Callable[[Tensor, bool], Tensor] | None = None

    def variance(self, constant: bool = False) -> Tensor:
        """The variance of each output.

        :param constant: whether its gradient goes to the variance of the weight alone.
        """
        variance = self.weight.variance_
        if self.squares is not None:
            return self.squares(variance, constant)
        input = self.input.detach() if constant else self.input
        return self.function(input.square().to(variance.dtype), variance, None)


@dataclass(frozen=True)
class _Signs:
    """The signs of the outputs and inputs of a view: shapes (data, outputs) and (data, inputs)."""

    view: View
    axes: tuple[int | None, int | None]
    signs: tuple[Tensor | None, Tensor | None]


class WeightDraw:
    """One draw of the weight of a site, for one evaluation of a model.

    :param site: its name. :param mean: and :param variance: of the weight.
    :param estimator: the name of whoever draws, for messages.
    :param flips: whether a use is answered by Flipout; False: by local reparameterization; None: by Flipout
        where the weight is used more than once for a datum.
    :param sizes: gives the numbers of data that the model may have at hand; none where they are not known.
    :param pathwise: whether Flipout's gradient goes through each weight's own perturbation; else through the
        variance of each output.
    """

    def __init__(
        self,
        site: str,
        mean: Tensor,
        variance: Tensor,
        estimator: str,
        flips: bool | None = False,
        sizes: Callable[[], Set[int]] = set,
        pathwise: bool = False,
    ) -> None:
        self.pathwise = pathwise
        self.site, self.mean, self.variance = site, mean, variance
        self.estimator, self.flips, self.sizes = estimator, flips, sizes
        self.uses: list[tuple[str, View]] = []
        self.repeated = False  # whether any element was used a second time
        self._noise: Tensor | None = None
        self._signs: list[_Signs] = []

    def noise(self) -> Tensor:
        """The perturbation of the whole weight, drawn when it is first asked for."""
        if self._noise is None:
            noise = torch.randn_like(self.mean)
            noise = numerics.safe_sqrt(self.variance.to(self.mean.dtype)) * noise
            self._noise = noise
            return noise
        return self._noise

    def answer(self, use: LinearUse) -> Tensor:
        """The sampled output of one use of the weight."""
        mean = use.function(use.input, use.weight.mean_, use.bias)
        datum = self._datum_axis(use)
        data = 1 if datum is None else use.input.shape[datum]
        again = self._overlaps(use.weight.view_)
        self.repeated |= again is not None
        if self.flips is None:
            self.flips = use.count(mean) > data
        if not self.flips and again is not None:
            raise RuntimeError(
                f"The weight {self.site!r} is used twice in one forward pass ({again}, then {use.name}). "
                f"{self.estimator} would draw it independently each time, which is another model: use "
                "Flipout, StraightThrough, Concrete or a score-function estimator."
            )
        self.uses.append((use.name, use.weight.view_))
        return self._flipped(use, mean, datum) if self.flips else _independent(use, mean)

    def _overlaps(self, view: View) -> str | None:
        """The name of an earlier use of any of the elements of a view."""
        for name, other in self.uses:
            if view == other or not view or not other:
                return name
            if bool(torch.isin(self._places(view), self._places(other)).any()):
                return name
        return None

    def _places(self, view: View) -> Tensor:
        """The elements of a view, by their places in the site's tensor."""
        places = torch.arange(self.mean.numel(), device=self.mean.device).reshape(self.mean.shape)
        for function, args, kwargs, part in view:
            places = function(places, *args, **dict(kwargs))
            places = places if part is None else places[part]
        return places

    def _datum_axis(self, use: LinearUse) -> int | None:
        """The axis of the input that counts data; None where all of it is taken for one datum."""
        if use.datum != UNKNOWN or not use.places:
            return None if use.datum == UNKNOWN else use.datum
        sizes = self.sizes()
        if not sizes:
            return use.places[0]
        found = [axis for axis in use.places if use.input.shape[axis] in sizes]
        return found[0] if len(found) == 1 else None

    def _flipped(self, use: LinearUse, mean: Tensor, datum: int | None) -> Tensor:
        data = 1 if datum is None else use.input.shape[datum]
        found = self._signs_for(use, data)
        outputs, inputs = (
            None
            if signs is None
            else _spread(signs.repeat(1, repeat), like, datum, channel)
            for signs, repeat, like, channel in zip(
                found, use.repeats, (mean, use.input), use.channels, strict=True
            )
        )  # fmt: skip
        input = use.input if inputs is None else use.input * inputs.to(use.input.dtype)
        noise = use.weight.noise_()
        if self.pathwise:
            noise = use.function(input, noise)
        else:
            noise = _scaled(use.function(input, noise.detach()), use.variance(constant=True))
        if outputs is None:
            return mean + noise
        return torch.addcmul(mean, noise.to(mean.dtype), outputs.to(mean.dtype))

    def _signs_for(self, use: LinearUse, data: int) -> tuple[Tensor | None, Tensor | None]:
        view = use.weight.view_
        for known in self._signs:
            found = known.signs
            if (known.view, known.axes) != (view, use.axes):
                found = self._translated(known, use)
                if found is None:
                    continue
            if any(signs is not None and len(signs) not in (1, data) for signs in found):
                self._refuse(
                    use, f"for {len(next(s for s in found if s is not None))} data and for {data}"
                )
            return found
        shape = use.weight.mean_.shape
        outputs, inputs = (
            None if axis is None else _random_signs(data, shape[axis], self.mean)
            for axis in use.axes
        )
        self._signs.append(_Signs(view, use.axes, (outputs, inputs)))
        return outputs, inputs

    def _translated(self, known: _Signs, use: LinearUse) -> Any:
        """The signs of a view by those of another; None where the two have no element in common."""
        old, new = self._places(known.view), self._places(use.weight.view_)
        result: list[Tensor | None] = [None, None]
        covered = torch.isin(new, old)
        if not bool(covered.any()):
            return None
        if not bool(covered.all()):
            self._refuse(use, "first in part and then as a whole")
        for signs, axis in zip(known.signs, known.axes, strict=True):
            if signs is None or axis is None:
                continue
            numbers = torch.arange(old.shape[axis], device=old.device)
            numbers = numbers.reshape(-1, *[1] * (old.dim() - 1)).movedim(0, axis).expand_as(old)
            labels = torch.zeros(self.mean.numel(), dtype=torch.long, device=old.device)
            labels[old.flatten()] = numbers.flatten()
            k, along = self._along(labels[new], use)
            given, factor = result[k], signs[:, along]
            result[k] = factor if given is None else given * factor
        return tuple(result)

    def _along(self, labels: Tensor, use: LinearUse) -> tuple[int, Tensor]:
        """The one axis of a use on which labels depend, and the labels along it."""
        for k, axis in enumerate(use.axes):
            if axis is not None:
                rows = labels.movedim(axis, 0).flatten(1)
                if bool((rows == rows[:, :1]).all()):
                    return k, rows[:, 0]
        self._refuse(use, "in shapes whose inputs and outputs do not correspond")
        raise AssertionError

    def _refuse(self, use: LinearUse, why: str) -> None:
        raise RuntimeError(
            f"The weight {self.site!r} is used twice in one forward pass ({self.uses[0][0]}, then "
            f"{use.name}), {why}. {self.estimator} draws one weight for each datum, with a sign per input "
            "and output, which has to be the same in both: use StraightThrough, Concrete or a "
            "score-function estimator."
        )


def _independent(use: LinearUse, mean: Tensor) -> Tensor:
    return mean + numerics.safe_sqrt(use.variance().to(mean.dtype)) * torch.randn_like(mean)


def _random_signs(data: int, count: int, like: Tensor) -> Tensor:
    return torch.randint(0, 2, (data, count), device=like.device).mul_(2).sub_(1).to(like.dtype)


def _spread(signs: Tensor, like: Tensor, datum: int | None, channel: int) -> Tensor:
    """Signs (data, channels), shaped to broadcast against a tensor with such axes."""
    channel %= like.dim()
    shape = [1] * like.dim()
    shape[channel] = signs.shape[1]
    if datum is None:
        return signs.reshape(shape)
    datum %= like.dim()
    shape[datum] = signs.shape[0]
    return (signs if datum < channel else signs.t()).reshape(shape)


class _Scaled(Elementwise):
    """Noise n of variance v with slope n / (2 v) in v, as of sqrt(v) times a constant; 0 at v = 0."""

    @staticmethod
    def forward(noise: Tensor, variance: Tensor) -> Tensor:
        return noise.view_as(noise)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # The result and not the noise that came: a second derivative needs its slope in v too.
        ctx.save_for_backward(output, inputs[1])

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        noise, variance = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled():
            slope = 0.5 * grad * noise / torch.where(variance > 0, variance, torch.inf)
        else:
            slope = (grad * noise).mul_(0.5).div_(variance).masked_fill_(variance <= 0, 0.0)
        return grad, slope.to(variance.dtype)

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        return super(Elementwise, cls).tangent(
            ctx, saved, tangents
        )  # the value is its input's memory


_scaled = applied(_Scaled)
