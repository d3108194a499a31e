"""The Bayesian learning rule: natural-gradient steps on natural parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesbin.core import fused
from bayesbin.core.checks import is_number
from bayesbin.core.numerics import BOUNDS

Preconditioner = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
SIZE_DECAY = 0.99  # of the running mean square in normalize=True: an average over a hundred steps


class BayesianLearningRule(Optimizer):
    r"""Natural-gradient descent on the natural parameters of binary weights.

    .. math::
        \tilde g_t &= F(\lambda_t)^{-1}\, \partial\mathcal L / \partial\lambda, \qquad
        m_t = \beta m_{t-1} + (1 - \beta)\, \tilde g_t, \\
        \lambda_{t+1} &= \lambda_t - \rho\, m_t / (1 - \beta^t)

    with F = sech^2(lambda). For the loss E_q[L] + kl_weight KL(q||p) the natural gradient is
    grad_mu E_q[L] + kl_weight (lambda - lambda_p). The rule sees only ``.grad``: estimator, prior and
    kl_weight are in it; it never touches the model and draws nothing.

    :param params: natural parameters (``guide.natural_parameters()``), or parameter groups.
    :param lr: rho; multiplies the natural gradient of the loss in nats over the whole data set, so
        write ``lr=0.05 / dataset_size``.
    :param momentum: beta, in [0, 1), bias-corrected.
    :param normalize: divide each tensor's natural gradient by the root of a running average (decay
        0.99, bias-corrected) of its mean square over the tensor, one number per tensor. Directions
        within a tensor stay natural, while ``lr`` becomes the typical change of lambda in one step,
        such as 0.03, whatever the layer, the network and the data-set size. "group": one number per
        parameter group, the sum of those of its tensors, for offsets that add up to lambda.
    :param bound: |lambda| is kept at most this; "auto" is 40 in float32 and bfloat16 and 300 in
        float64, None switches it off. F^-1 at 40 is 1e34, near the end of float32's range; beyond
        it the next step would be infinity times zero.
    :param lazy: leave an element whose gradient is exactly 0 as it is, with its momentum and its own count of
        steps; ``normalize`` averages over the others. For latents per datum: a row that is in no batch has
        gradient 0 there, and momentum would move it by what it was told batches ago. Each row then makes
        the steps that it would make alone. In a plate of N rows, B of them in a batch, its gradient
        comes with the factor N / B: without ``normalize`` a full natural step has ``lr`` B / N.
    :param preconditioner: for guides whose parameters are not natural ones: maps the list of all
        gradients, in parameter order, to natural gradients, instead of F^-1. Not part of the state.
    :raises ValueError: for arguments out of range, or if there are no parameters.

    Example::

        >>> import torch
        >>> from bayesbin.optim import BayesianLearningRule
        >>> natural = torch.nn.Parameter(torch.tensor([0.5]))
        >>> rule = BayesianLearningRule([natural], lr=0.1, momentum=0.9)
        >>> (torch.tanh(natural) * 2.0).sum().backward()   # grad_mu of the loss is 2
        >>> rule.step(); round(natural.item(), 3)
        0.3

    Source: Khan and Rue 2023, arXiv 2107.04562; Meng, Bachmann and Khan 2020, arXiv 2002.10778.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        *,
        normalize: bool | str = False,
        bound: float | str | None = "auto",
        lazy: bool = False,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "normalize": normalize, "bound": bound}
        defaults["lazy"] = lazy
        params = list(params)
        if not params:
            raise ValueError(
                "BayesianLearningRule got no parameters. Pass guide.natural_parameters() (a guide of "
                "another parameterisation offers offsets() and a preconditioner)."
            )
        super().__init__(params, defaults)
        self._preconditioner = preconditioner

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check_group(self.param_groups[-1])

    def __getstate__(self) -> dict[str, Any]:
        # torch's own leaves out whatever it does not know, and a copy could not step.
        return {**super().__getstate__(), "_preconditioner": self._preconditioner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("lazy", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a closure, that computes the loss and its gradients first and is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        natural_gradients = self._natural_gradients()
        for group in self.param_groups:
            found = {p: g for p in group["params"] if (g := natural_gradients[p]) is not None}
            if group["lazy"]:
                found = {p: g for p, g in found.items() if g.any()}
            for parameter, gradient in found.items():
                self._observe(parameter, gradient, group)
            for parameter, gradient in found.items():
                self._update(parameter, gradient, group)
        return loss

    def _natural_gradients(self) -> dict[Tensor, Tensor | None]:
        bounds = {p: _bound(group, p) for group in self.param_groups for p in group["params"]}
        parameters = list(bounds)
        gradients = [p.grad for p in parameters]
        if self._preconditioner is not None:
            gradients = list(self._preconditioner(gradients))
            if len(gradients) != len(parameters):
                raise ValueError(
                    f"The preconditioner returned {len(gradients)} gradients for {len(parameters)} "
                    "parameters; it returns one per parameter, in order."
                )
            # One without a gradient, held fixed or not used in this step, stays.
            gradients = [
                None if p.grad is None else g for p, g in zip(parameters, gradients, strict=True)
            ]
        else:
            gradients = [
                None if g is None else fused.over_fisher(g, p, bounds[p])
                for g, p in zip(gradients, parameters, strict=True)
            ]
        return dict(zip(parameters, gradients, strict=True))

    def _observe(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Count the step and, for ``normalize``, the size of the gradient."""
        if not group["momentum"] and not group["normalize"]:
            return
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            if group["momentum"]:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            if group["lazy"]:
                state["steps"] = torch.zeros_like(parameter)  # of each element
            if group["normalize"]:
                state["mean_square"] = 0.0  # a number: load_state_dict casts tensors to float32
        state["step"] += 1
        if group["lazy"]:
            state["steps"] += gradient != 0
            gradient = gradient[gradient != 0]
        if group["normalize"]:
            size = gradient.double().square().mean().item() if gradient.numel() else 0.0
            state["mean_square"] = SIZE_DECAY * state["mean_square"] + (1.0 - SIZE_DECAY) * size

    def _inverse_size(self, parameter: Tensor, group: dict[str, Any]) -> float:
        """One over the running root mean square of the natural gradient; 0 if that was always 0."""
        together = group["params"] if group["normalize"] == "group" else [parameter]
        states = [state for p in together if (state := self.state.get(p))]
        size = sum(s["mean_square"] / (1.0 - SIZE_DECAY ** s["step"].item()) for s in states)
        return size**-0.5 if size > 0 else 0.0

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        beta, lr = group["momentum"], group["lr"]
        if group["normalize"]:
            gradient = gradient * self._inverse_size(parameter, group)
        if beta and group["lazy"]:
            average, present = state["momentum_buffer"], gradient != 0
            average.copy_(torch.where(present, average.lerp(gradient, 1.0 - beta), average))
            steps = average / (1.0 - beta ** state["steps"].clamp_min(1.0))
            parameter.sub_(torch.where(present, lr * steps, 0.0))
        elif beta:
            average = state["momentum_buffer"]
            average.lerp_(gradient, 1.0 - beta)
            parameter.add_(average, alpha=-lr / (1.0 - beta ** state["step"].item()))
        else:
            parameter.add_(gradient, alpha=-lr)
        bound = _bound(group, parameter)
        if bound is not None:
            parameter.clamp_(-bound, bound)


def _bound(group: dict[str, Any], parameter: Tensor) -> float | None:
    bound = group["bound"]
    return BOUNDS[parameter.dtype] if bound == "auto" else bound


def _check_group(group: dict[str, Any]) -> None:
    lr, momentum, bound = group["lr"], group["momentum"], group["bound"]
    if isinstance(lr, Tensor) or not lr >= 0:
        raise ValueError(f"lr is a number of at least 0, such as 0.05 / dataset_size; got {lr!r}.")
    if group["normalize"] not in (False, True, "group"):
        raise ValueError(f'normalize is False, True or "group"; got {group["normalize"]!r}.')
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is in [0, 1); got {momentum!r}.")
    if bound is not None and bound != "auto" and not (is_number(bound) and bound > 0):
        raise ValueError(f'bound is a positive number, "auto" or None (off); got {bound!r}.')
    for parameter in group["params"]:
        if parameter.dtype not in BOUNDS:
            raise ValueError(
                f"Natural parameters are float32, float64 or bfloat16; got {parameter.dtype}."
            )
