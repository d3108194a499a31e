"""What samplers of signs share: the Metropolis-Hastings step, tuning the step, Pyro's kernel interface."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from bayesbin.core.turns import alone
from bayesbin.infer.mcmc.log_joint import LogJoint


class SignKernel(MCMCKernel):
    r"""Base of the Metropolis-Hastings samplers of all sign sites of a model together.

    A subclass proposes a move from ``slopes``, h_i = -w_i d log p / d w_i: half of what flipping weight
    i gains in log p, to first order. The move is accepted with probability

    .. math:: \min\Big(1, \frac{p(y, w')\, r(\bar m | w')}{p(y, w)\, r(m | w)}\Big)

    where r is the probability of a move m, which leads to w', and of its reverse, which leads back. The
    log joint is the model's own at signs; gradients only propose.

    One step of the chain makes one move or two, with equal probability. If P is the transition matrix of a
    move, that of a step is (P + P^2) / 2: it is reversible as P is, and its eigenvalues are l (1 + l) / 2
    for the eigenvalues l of P, so none is below -1/8. A chain of single moves can alternate: between
    two equally likely states every flip is accepted, l is -1, and every second draw is the same.

    :param model: a Pyro model whose latent sites are signs.
    """

    transforms: Mapping[str, Any]

    def __init__(self, model: Callable[..., Any]) -> None:
        if not callable(model):
            raise ValueError(
                f"expected a Pyro model to sample from, got {type(model).__name__}; pass a function or "
                "a Classifier, for example."
            )
        self.model = model
        self.transforms = {}
        self._given: dict[str, Tensor] | None = None
        self._joint: LogJoint | None = None
        self._warmup_left = 0
        self._clear_counts()

    # The proposal

    @abstractmethod
    def draw_move(self, slopes: Tensor) -> Tensor:
        """A move from the state with these slopes (D,)."""

    @abstractmethod
    def log_prob_of_move(self, move: Tensor, slopes: Tensor) -> Tensor:
        """log r(m | w), from the slopes at w."""

    @abstractmethod
    def flipped(self, move: Tensor, signs: Tensor) -> Tensor:
        """The state that a move leads to, (D,)."""

    def reverse(self, move: Tensor) -> Tensor:
        """The move that leads back."""
        return move

    def log_acceptance(
        self, log_joint: Tensor, new_log_joint: Tensor, forward: Tensor, backward: Tensor
    ) -> Tensor:
        """The log of the ratio above: new over old, log p and log r alike."""
        return new_log_joint - log_joint + backward - forward

    # Pyro's interface

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        with alone(type(self).__name__):
            self.attach(LogJoint(self.model, args, kwargs), warmup_steps)
        assert self._joint is not None
        if self._joint.real:
            raise ValueError(
                f"expected latent sites that are all signs, got the real-valued "
                f"{', '.join(self._joint.real)}; use MixedKernel({type(self).__name__}(model), NUTS)."
            )
        self.move_to(self.starting_signs(), {})

    def attach(self, joint: LogJoint, warmup_steps: int) -> None:
        """Take up a log joint, with counts and step as at the start of a chain."""
        self._joint = joint
        self._warmup_left = warmup_steps
        self._clear_counts()
        self.check(joint.size)

    def check(self, size: int) -> None:
        """Refuse a model of D signs that the kernel does not fit."""

    def starting_signs(self) -> Tensor:
        """The initial signs given, or a draw from the prior, (D,)."""
        assert self._joint is not None
        if self._given is None:
            return self._joint.start()
        for name, shape in self._joint.shapes.items():
            value = self._given.get(name)
            came = "none" if value is None else f"shape {tuple(value.shape)}"
            if value is None or value.shape != shape or not bool((value.abs() == 1).all()):
                raise ValueError(
                    f"expected initial signs -1 and +1 of shape {tuple(shape)} for {name!r}, got {came}; "
                    "draw them from a guide's posterior, for example."
                )
        flat = self._joint.flat(self._given)
        return flat if flat.is_floating_point() else flat.to(torch.get_default_dtype())

    def move_to(self, signs: Tensor, real: Mapping[str, Tensor]) -> None:
        """Make this the current state."""
        assert self._joint is not None
        self._signs, self._real = signs, dict(real)
        self.log_joint, self._gradient = self._joint.value_and_gradient(signs, real)

    @property
    def initial_params(self) -> dict[str, Tensor]:
        assert self._joint is not None, "setup comes first"
        return self._joint.by_site(self._signs)

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._given = dict(params)

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self._joint is not None, "setup comes first"
        if self._joint.flat(params).ne(self._signs).any():
            self.move_to(self._joint.flat(params), self._real)
        with alone(type(self).__name__):
            for _ in range(self.draw_num_moves()):
                self.make_move()
        if self._warmup_left:
            self._warmup_left -= 1
            if not self._warmup_left:
                self.end_tuning()
                self._clear_counts()
        return self._joint.by_site(self._signs)

    def draw_num_moves(self) -> int:
        """1 or 2, with equal probability."""
        return 1 + int(torch.rand(()).item() < 0.5)

    def make_move(self) -> None:
        """Make one proposal from the current state, and accept it or not."""
        assert self._joint is not None
        slopes = -self._signs * self._gradient
        move = self.draw_move(slopes)
        signs = self.flipped(move, self._signs)
        if torch.equal(signs, self._signs):  # nothing to evaluate: the ratio is 1
            return self._count(1.0, True)
        log_joint, gradient = self._joint.value_and_gradient(signs, self._real)
        forward = self.log_prob_of_move(move, slopes)
        backward = self.log_prob_of_move(self.reverse(move), -signs * gradient)
        log_ratio = self.log_acceptance(self.log_joint, log_joint, forward, backward).item()
        # A log joint or a gradient that is not finite makes no proposal that can be left again.
        probability = 0.0 if math.isnan(log_ratio) else math.exp(min(0.0, log_ratio))
        accepted = self.accepts(probability)
        if accepted:
            self._signs, self.log_joint, self._gradient = signs, log_joint, gradient
        self._count(probability, accepted)

    def accepts(self, probability: float) -> bool:
        """Whether to take a proposal of this acceptance probability."""
        return torch.rand(()).item() < probability

    def tune(self, probability: float) -> None:
        """Learn from the acceptance probability of one warm-up proposal."""

    def end_tuning(self) -> None:
        """Settle for what was learned in warm-up."""

    def _clear_counts(self) -> None:
        self._proposals, self._probabilities, self._accepted = 0, 0.0, 0

    def _count(self, probability: float, accepted: bool) -> None:
        self._proposals += 1
        self._probabilities += probability
        self._accepted += accepted
        if self._warmup_left:
            self.tune(probability)

    @property
    def acceptance_rate(self) -> float:
        """The share of proposals accepted since the end of warm-up, or during it."""
        return self._accepted / max(1, self._proposals)

    def logging(self) -> OrderedDict[str, str]:
        mean = self._probabilities / max(1, self._proposals)
        return OrderedDict([("acc. prob", f"{mean:.3f}")])

    def diagnostics(self) -> dict[str, Any]:
        return {"acceptance rate": self.acceptance_rate}

    def cleanup(self) -> None:
        self._given, self._joint = None, None


class TunedStep:
    """A positive step that warm-up tunes to an acceptance probability, by dual averaging of its log.

    :param target_accept: the acceptance probability aimed at; a larger step lowers it.
    :param bounds: the step stays within; beyond, acceptance no longer depends on it.

    Source: Hoffman and Gelman 2014, "The No-U-Turn sampler", section 3.2.1.
    """

    def __init__(self, start: float, target_accept: float, bounds: tuple[float, float]) -> None:
        self.value, self._target = start, target_accept
        self._bounds = bounds
        self._averaging = DualAveraging()
        self._averaging.prox_center = math.log(start)  # pyright: ignore[reportAttributeAccessIssue]

    def learn(self, probability: float) -> None:
        """Take in the acceptance probability at the present step."""
        self._averaging.step(self._target - probability)
        self.value = self._within(self._averaging.get_state()[0])

    def settle(self) -> None:
        """Take the average of the steps tried."""
        self.value = self._within(self._averaging.get_state()[1])

    def _within(self, log_step: float) -> float:
        low, high = self._bounds
        return math.exp(min(max(log_step, math.log(low)), math.log(high)))
