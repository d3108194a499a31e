"""Several chains of one kernel, with what tells whether they agree: MCMC as the judge of a guide."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.mcmc import HMC, MCMC, NUTS
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.core.turns import in_turn
from bayesbin.infer.checks.convergence import Convergence, convergence
from bayesbin.infer.mcmc.discrete_langevin import DiscreteLangevin
from bayesbin.infer.mcmc.log_joint import LogJoint, called_with
from bayesbin.infer.mcmc.mixed_kernel import MixedKernel
from bayesbin.infer.mcmc.sign_kernel import SignKernel
from bayesbin.infer.noise import NoiseStream

MCMC_NOISE = 4  # stream number, apart from those of training and reports


@dataclass(frozen=True, eq=False)
class MCMCResult:
    """Draws of C chains of S states each, and how they came about.

    :param signs: site -> signs, int8, (C, S, ...). :param real: site -> values, (C, S, ...).
    :param log_joint: log p(y, w, z) of each, in nats, (C, S).
    :param acceptance: of the moves of the signs after warm-up, (C,).
    :param diagnostics: of each chain, as its kernel gives them. :param seconds: of each chain.
    """

    signs: dict[str, Tensor]
    real: dict[str, Tensor]
    log_joint: Tensor
    acceptance: Tensor
    diagnostics: tuple[dict[str, Any], ...]
    seconds: tuple[float, ...]
    num_warmup: int
    seed: int

    @property
    def num_chains(self) -> int:
        return self.log_joint.shape[0]

    @property
    def num_samples(self) -> int:
        """S, the draws of one chain."""
        return self.log_joint.shape[1]

    def draw(self, chain: int, index: int) -> dict[str, Tensor]:
        """One draw of all sites; signs as -1.0 and +1.0, in the dtype of the log joint."""
        signs = {n: w[chain, index].to(self.log_joint.dtype) for n, w in self.signs.items()}
        return signs | {name: value[chain, index] for name, value in self.real.items()}

    def draws(self, thin: int = 1) -> Iterator[dict[str, Tensor]]:
        """Every ``thin``-th draw of each chain, chain after chain."""
        for chain in range(self.num_chains):
            for index in range(thin - 1, self.num_samples, thin):
                yield self.draw(chain, index)

    def values(self, function: Callable[[Mapping[str, Tensor]], Tensor]) -> Tensor:
        """A function of a draw, such as the network's outputs, at each of them, (C, S, ...)."""
        with torch.no_grad():
            found = torch.stack([function(draw) for draw in self.draws()])
        return found.reshape(self.num_chains, self.num_samples, *found.shape[1:])

    def convergence(
        self, function: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    ) -> Convergence:
        """R-hat and effective sample sizes of a function of the draws, by default of the log joint."""
        return convergence(self.log_joint if function is None else self.values(function))

    def __str__(self) -> str:
        weights = sum(w[0, 0].numel() for w in self.signs.values())
        return (
            f"{self.num_chains} chains of {self.num_samples} draws of {weights} weights after "
            f"{self.num_warmup} of warm-up, in {sum(self.seconds):.1f} s; accepted "
            f"{self.acceptance.mean().item():.2f}; log joint: {self.convergence()}"
        )


def run_mcmc(
    model: Callable[..., Any],
    data: Any = (),
    *,
    kernel: Callable[[Callable[..., Any]], SignKernel] = DiscreteLangevin,
    real_kernel: Callable[[Callable[..., Any]], HMC] = NUTS,
    sign_steps: int = 1,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    thin: int = 1,
    initial: Callable[[int], Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> MCMCResult:
    """Sample a model's posterior over signs, and real-valued sites if any, by several chains.

    What a guide says can be held against it: on small and middle-sized networks the draws of chains that
    agree are as good as the posterior itself. Each chain is a function of (seed, chain) alone. Chains
    run one after another; for processes of their own use ``pyro.infer.mcmc.MCMC`` with the kernel.

    :param data: what the model is called with, the whole data set: a tuple, list, dict or tensor.
    :param kernel: makes the kernel of the signs from the model: ``DiscreteLangevin``,
        ``GibbsWithGradients``, or a ``functools.partial`` of one.
    :param real_kernel: makes that of the real-valued sites, see :class:`MixedKernel`.
    :param sign_steps: moves of the signs to one of the real-valued sites.
    :param num_samples: S, draws kept of each chain. :param num_warmup: moves before, which tune the steps.
    :param thin: moves per draw that is kept.
    :param initial: ``initial(chain)`` gives the initial values by site, real-valued ones in unconstrained
        space; by default draws from the prior.
    :raises ValueError: for counts out of range, and whatever the kernel refuses.

    Example::

        >>> import torch
        >>> from bayesbin.infer import run_mcmc
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        >>> model = Classifier(BinaryLinear(3, 2), dataset_size=8)
        >>> result = run_mcmc(model, (x, y), num_samples=20, num_warmup=20, num_chains=2)
        >>> result.signs["weight"].shape, result.signs["weight"].dtype
        (torch.Size([2, 20, 2, 3]), torch.int8)

    Source: Gelman et al. 2013, Bayesian Data Analysis, chapter 11 (several chains).
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    num_warmup = whole_number("num_warmup", num_warmup, at_least=0)
    num_chains = whole_number("num_chains", num_chains, at_least=1)
    thin = whole_number("thin", thin, at_least=1)
    args, kwargs = called_with(data)
    with in_turn():
        with NoiseStream(seed, MCMC_NOISE, 0).active():
            real_sites = LogJoint(model, args, kwargs).real
        chains = []
        for chain in range(num_chains):
            sampler: Any = kernel(model)
            if real_sites:
                sampler = MixedKernel(sampler, real_kernel, sign_steps)
            record = _Record(real_sites, thin)
            start = dict(initial(chain)) if initial is not None else None
            with NoiseStream(seed, MCMC_NOISE, 1 + chain).active():
                mcmc = MCMC(
                    sampler,
                    num_samples=num_samples * thin,
                    warmup_steps=num_warmup,
                    initial_params=start,
                    hook_fn=record,
                    disable_progbar=True,
                    save_params=[],  # kept by the record, as int8
                )
                begin = time.perf_counter()
                mcmc.run(*args, **kwargs)
                record.seconds = time.perf_counter() - begin
                found = mcmc.diagnostics()
                record.diagnostics = {name: of["chain 0"] for name, of in found.items()}
            chains.append(record)
    return MCMCResult(
        signs=_stacked([record.signs for record in chains]),
        real=_stacked([record.real for record in chains]),
        log_joint=torch.stack([torch.stack(record.log_joint) for record in chains]),
        acceptance=torch.tensor([record.diagnostics["acceptance rate"] for record in chains]),
        diagnostics=tuple(record.diagnostics for record in chains),
        seconds=tuple(record.seconds for record in chains),
        num_warmup=num_warmup,
        seed=seed,
    )


class _Record:
    """Keeps the draws of one chain: signs as int8, real values in their support."""

    def __init__(self, real_sites: tuple[str, ...], thin: int) -> None:
        self.real_sites, self.thin = real_sites, thin
        self.signs: dict[str, Any] = {}
        self.real: dict[str, Any] = {}
        self.log_joint: list[Tensor] = []
        self.diagnostics: dict[str, Any] = {}
        self.seconds = 0.0

    def __call__(self, kernel: Any, params: Mapping[str, Tensor], stage: str, i: int) -> None:
        if not stage.startswith("Sample") or (i + 1) % self.thin:
            return
        self.log_joint.append(kernel.log_joint)
        for name, value in params.items():
            if name in self.real_sites:
                self.real.setdefault(name, []).append(kernel.transforms[name].inv(value.detach()))
            else:
                self.signs.setdefault(name, []).append(value.to(torch.int8))


def _stacked(chains: list[dict[str, list[Tensor]]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.stack(chain[name]) for chain in chains]) for name in chains[0]}
