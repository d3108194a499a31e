"""Discrete Langevin: every weight may flip at once, guided by the gradient."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.checks import real_number, true_or_false
from bayesbin.infer.mcmc.sign_kernel import SignKernel, TunedStep

# 2 / step is a flip's cost in log-odds: nothing against any slope above, out of reach below.
_BOUNDS = (1e-8, 1e4)


class DiscreteLangevin(SignKernel):
    r"""Metropolis-adjusted discrete Langevin: each weight flips independently, with log-odds

    .. math:: -w_i \frac{\partial}{\partial w_i} \log p(y, w) - \frac{2}{\alpha}

    and the joint move is accepted or not. A kernel for ``pyro.infer.mcmc.MCMC``.

    :param model: a Pyro model whose latent sites are signs; for others see :class:`MixedKernel`.
    :param step: alpha, positive; with ``adapt`` where warm-up starts from.
    :param adapt: whether warm-up tunes alpha to ``target_accept``.
    :param target_accept: between 0 and 1; .574 is best as the number of weights grows.
    :param metropolis: False accepts every move: faster, and biased, the more the larger alpha.
    :raises ValueError: for a number out of range; at setup, for a model that :class:`LogJoint` refuses.

    Example::

        >>> import pyro, torch
        >>> from pyro.infer import MCMC
        >>> from bayesbin.distributions import SignBernoulli
        >>> from bayesbin.infer import DiscreteLangevin
        >>> def model():
        ...     w = pyro.sample("w", SignBernoulli(natural=torch.zeros(5)).to_event(1))
        ...     pyro.factor("fit", 0.5 * w.sum().square())
        >>> mcmc = MCMC(DiscreteLangevin(model), 10, warmup_steps=10, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["w"].shape
        torch.Size([10, 5])

    Source: Zhang, Liu and Liu 2022, "A Langevin-like sampler for discrete distributions",
    arXiv 2206.09914; the rate: Sun et al. 2022, "Optimal scaling for locally balanced proposals in
    discrete spaces", arXiv 2209.08183.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        step: float = 0.2,
        adapt: bool = True,
        target_accept: float = 0.574,
        metropolis: bool = True,
    ) -> None:
        super().__init__(model)
        self.initial_step = real_number("step", step, above=0)
        self.target_accept = real_number("target_accept", target_accept, above=0, below=1)
        self.adapt = true_or_false("adapt", adapt)
        self.metropolis = true_or_false("metropolis", metropolis)
        self._step = self._fresh_step()

    @property
    def step(self) -> float:
        """alpha, as tuned so far."""
        return self._step.value

    def check(self, size: int) -> None:
        self._step = self._fresh_step()  # each chain tunes its own

    def _fresh_step(self) -> TunedStep:
        return TunedStep(self.initial_step, self.target_accept, _BOUNDS)

    def _half_log_odds(self, slopes: Tensor) -> Tensor:
        return 0.5 * slopes - 1.0 / self.step

    def draw_move(self, slopes: Tensor) -> Tensor:
        natural = self._half_log_odds(slopes)
        return numerics.hard_signs(natural, numerics.uniform_noise(natural))

    def log_prob_of_move(self, move: Tensor, slopes: Tensor) -> Tensor:
        return numerics.log_prob(self._half_log_odds(slopes), move).sum()

    def flipped(self, move: Tensor, signs: Tensor) -> Tensor:
        return -move * signs  # a move of +1 is a flip

    def accepts(self, probability: float) -> bool:
        return super().accepts(probability) or not self.metropolis

    def tune(self, probability: float) -> None:
        if self.adapt:
            self._step.learn(probability)

    def end_tuning(self) -> None:
        if self.adapt:
            self._step.settle()

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict([("step", f"{self.step:.2e}"), *super().logging().items()])

    def diagnostics(self) -> dict[str, Any]:
        return super().diagnostics() | {"step": self.step}
