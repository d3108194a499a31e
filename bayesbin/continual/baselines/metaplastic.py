"""Adam whose steps shrink where they would undo a weight that has been consolidated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class MetaplasticAdam(Optimizer):
    r"""Adam for the latent weights of binary ones, with metaplasticity.

    .. math::
        W \leftarrow W - \eta\, u \cdot
        \begin{cases} 1 - \tanh^2(m_p |W|) & \text{where } \mathrm{sign}(W)\, m > 0 \\
        1 & \text{elsewhere} \end{cases},
        \qquad u = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with m and v Adam's moments of the gradient: where m has the sign of W the step takes |W| down. The
    larger a latent weight, the harder it is to flip; growing is not slowed down. m_p = 0 is Adam.

    :param params: latent weights. :param lr: eta. :param betas: beta_1, beta_2. :param eps: epsilon.
    :param metaplasticity: m_p, at least 0.
    :raises ValueError: for settings out of range.

    >>> latent = torch.nn.Parameter(torch.tensor([2.0, 2.0]))
    >>> latent.grad = torch.tensor([1.0, -1.0])
    >>> MetaplasticAdam([latent], lr=0.1, metaplasticity=1.0).step()
    >>> [round(value, 3) for value in latent.tolist()]
    [1.993, 2.1]

    Source: Laborieux, Ernoult, Hirtzlin and Querlioz 2021, Synaptic metaplasticity in binarized neural
    networks, arXiv 2003.03533.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        metaplasticity: float = 0.0,
    ) -> None:
        if not lr >= 0 or not eps > 0 or not metaplasticity >= 0:
            raise ValueError(
                f"lr and metaplasticity are at least 0 and eps is positive; got {lr}, {metaplasticity} "
                f"and {eps}."
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are in [0, 1); got {betas}.")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "metaplasticity": metaplasticity}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a closure, that computes the loss and its gradients first and is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (first, second) = state["step"].item(), group["betas"]
        mean, square = state["mean"], state["square"]
        mean.lerp_(gradient, 1.0 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        size = (square / (1.0 - second**step)).sqrt_().add_(group["eps"])
        update = mean / (1.0 - first**step) / size
        undoing = parameter * mean > 0
        slowed = 1.0 - torch.tanh(group["metaplasticity"] * parameter.abs()).square()
        parameter.sub_(group["lr"] * torch.where(undoing, slowed * update, update))
