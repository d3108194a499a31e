"""Bop: optimizers that keep no real weights and flip signs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_METRIC_FLOOR = math.exp(-9.0)  # of the published metric: no flip at all reads as -9
_ROOT_FLOOR = 1e-10  # of the published rule: a weight without any gradient has v = 0


class _SignFlips(Optimizer):
    """What the two rules share: parameters that are signs, a moving average, flips and their count."""

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], storage: torch.dtype | None
    ) -> None:
        if storage not in (None, torch.int8):
            raise ValueError(f"storage is torch.int8, or None for no copy; got {storage!r}.")
        self._storage = storage
        params = list(params)
        if not params:
            raise ValueError(
                f"{type(self).__name__} got no parameters. Pass latents(net).values() of a network made by "
                "binarize_(net, Signs()), or guide.latents() of AutoSignDelta(model, binarizer=Signs())."
            )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._check_group(group)
        for parameter in group["params"]:
            if not bool((parameter.detach().abs() == 1).all()):
                raise ValueError(
                    f"{type(self).__name__} flips signs and takes parameters of -1 and +1 alone; got one of "
                    f"shape {tuple(parameter.shape)} with other values. Give real parameters to Adam."
                )

    def _check_group(self, group: dict[str, Any]) -> None:
        if not group["threshold"] >= 0:
            raise ValueError(f"threshold is a number of at least 0; got {group['threshold']!r}.")
        if not 0 < group["gamma"] <= 1:
            raise ValueError(f"gamma is in (0, 1], such as 1e-4; got {group['gamma']!r}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a closure, that computes the loss and its gradients first and is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                evidence, threshold = self._evidence(parameter, gradient, state, group)
                flips = parameter * evidence > threshold
                parameter.copy_(torch.where(flips, -parameter, parameter))
                # A number: load_state_dict would cast a tensor to the parameter's type.
                state["flips"] = int(flips.sum().item())
        return loss

    @abstractmethod
    def _evidence(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        """What a sign is compared with, and the threshold beyond which it is flipped."""

    def state_dict(self) -> dict[str, Any]:
        """The state; with ``storage`` the signs themselves too, in that type, one byte each in int8."""
        state = super().state_dict()
        if self._storage is not None:
            state["signs"] = [p.detach().to(self._storage) for p in self._parameters()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, and the signs where they were saved with it."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "signs"})
        with torch.no_grad():
            for p, signs in zip(self._parameters(), state_dict.get("signs", ()), strict=False):
                p.copy_(signs)

    def __getstate__(self) -> dict[str, Any]:
        # torch's own leaves out whatever it does not know, and a copy could not save its state.
        return {**super().__getstate__(), "_storage": self._storage}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def flip_rate(self) -> float:
        """The fraction of all weights that the last step flipped; 0 before the first."""
        parameters = self._parameters()
        flips = sum(self.state[p]["flips"] for p in parameters if p in self.state)
        return flips / max(1, sum(p.numel() for p in parameters))

    def flip_metric(self) -> float:
        """log(flip rate + e^-9), as the papers plot it."""
        return math.log(self.flip_rate() + _METRIC_FLOOR)


class Bop(_SignFlips):
    r"""Flip a sign when the moving average of its gradient has long asked for it.

    .. math::
        m_t = (1 - \gamma)\, m_{t-1} + \gamma\, g_t, \qquad
        w_i \to -w_i \ \text{where}\ w_i m_{t,i} > \theta

    with g the gradient of the loss at the signs. At threshold 0 the signs are those of the Bayesian learning
    rule with draws w = sign(lambda), a uniform prior and lr = gamma: lambda is -m, its decay gamma.

    A parameter group may have a threshold of its own, and schedules move both numbers
    (``bayesbin.optim.Schedule(bop, "gamma", ...)``). The papers' defaults are for a loss per datum; a loss in
    nats over N data has gradients N times as large: write ``threshold=1e-8 * dataset_size``.

    :param params: parameters of -1 and +1 alone, see ``bayesbin.nn.binarizers.Signs``, or groups.
    :param threshold: theta, at least 0. :param gamma: in (0, 1].
    :param fan_in_scaling: divide theta by sqrt(fan-in) of each parameter (all its dimensions but the first):
        so does the gradient of a layer whose output is scaled by 1 / sqrt(fan-in), and one threshold then
        means the same in each layer, without batch normalisation too.
    :param storage: torch.int8: ``state_dict`` holds the signs as well, one byte each, and restores them.
    :raises ValueError: for parameters with other values, numbers out of range, or no parameters.

    Example::

        >>> import torch
        >>> from bayesbin.optim import Bop
        >>> signs = torch.nn.Parameter(torch.tensor([1.0, 1.0, -1.0]))
        >>> bop = Bop([signs], threshold=0.1, gamma=0.5)
        >>> (signs * torch.tensor([1.0, 0.1, 1.0])).sum().backward(); bop.step()
        >>> signs.tolist(), round(bop.flip_rate(), 3)
        ([-1.0, 1.0, -1.0], 0.333)

    Source: Helwegen, Widdicombe, Geiger, Liu, Cheng and Nusselder 2019, arXiv 1906.02107.
    """

    def __init__(
        self,
        params: Iterable[Any],
        threshold: float = 1e-8,
        gamma: float = 1e-4,
        *,
        fan_in_scaling: bool = False,
        storage: torch.dtype | None = None,
    ) -> None:
        defaults = {"threshold": threshold, "gamma": gamma, "fan_in_scaling": fan_in_scaling}
        super().__init__(params, defaults, storage)

    def _evidence(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        average = _average(state, "average", gradient, group["gamma"])
        threshold = group["threshold"]
        if group["fan_in_scaling"]:
            threshold /= math.sqrt(_fan_in(parameter))
        return average, threshold


class SecondOrderBop(_SignFlips):
    r"""Bop on gradients in units of their own size.

    .. math::
        m_t = (1 - \gamma)\, m_{t-1} + \gamma\, g_t, \quad
        v_t = v_{t-1} + \sigma (g_t^2 - v_{t-1}), \qquad
        w_i \to -w_i \ \text{where}\ \frac{w_i m_{t,i}}{\sqrt{v_{t,i}} + 10^{-10}} > \theta

    The ratio does not depend on the size of the loss, nor on the fan-in of a layer: one threshold serves
    every layer and every data-set size. The papers' schedules are linear, gamma from 1e-2 to 1e-5, threshold
    from 1e-5 to 1e-8, sigma from 1e-7 to 1e-2.

    :param params: as of :class:`Bop`. :param threshold: theta. :param gamma: in (0, 1].
    :param sigma: the rate of the second moment, in (0, 1].
    :param bias_correction: divide m by 1 - (1 - gamma)^t and v by 1 - (1 - sigma)^t, constant rates taken;
        without it the first ratios are about gamma / sqrt(sigma).
    :param storage: as of :class:`Bop`.
    :raises ValueError: as :class:`Bop`.

    Example::

        >>> import torch
        >>> from bayesbin.optim import SecondOrderBop
        >>> signs = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> bop = SecondOrderBop([signs], threshold=0.5, gamma=0.5, sigma=0.25)
        >>> (signs * torch.tensor([1e-6, -1e6])).sum().backward(); bop.step(); signs.tolist()
        [-1.0, 1.0]

    Source: Suarez-Ramirez, Gonzalez-Mendoza, Chang, Ochoa-Ruiz and Duran-Vega 2021, arXiv 2104.05124.
    """

    def __init__(
        self,
        params: Iterable[Any],
        threshold: float = 1e-6,
        gamma: float = 1e-3,
        sigma: float = 1e-3,
        *,
        bias_correction: bool = False,
        storage: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "threshold": threshold,
            "gamma": gamma,
            "sigma": sigma,
            "bias_correction": bias_correction,
        }
        super().__init__(params, defaults, storage)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not 0 < group["sigma"] <= 1:
            raise ValueError(f"sigma is in (0, 1], such as 1e-3; got {group['sigma']!r}.")

    def _evidence(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        average = _average(state, "average", gradient, group["gamma"])
        square = _average(state, "mean_square", gradient.square(), group["sigma"])
        state["step"] = state.get("step", 0) + 1
        if group["bias_correction"]:
            average = average / (1.0 - (1.0 - group["gamma"]) ** state["step"])
            square = square / (1.0 - (1.0 - group["sigma"]) ** state["step"])
        return average / (square.sqrt() + _ROOT_FLOOR), group["threshold"]


def _average(state: dict[str, Any], name: str, value: Tensor, rate: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].lerp_(value, rate)


def _fan_in(parameter: Tensor) -> int:
    return max(1, parameter[0].numel() if parameter.dim() > 1 else parameter.numel())
