"""Signs and real-valued sites together: a sampler of the signs and Pyro's HMC take turns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.infer.mcmc import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.core.turns import alone
from bayesbin.guides.announcing import LocalParameters
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.mcmc.log_joint import LogJoint
from bayesbin.infer.mcmc.sign_kernel import SignKernel


class MixedKernel(MCMCKernel):
    r"""Alternates moves of the signs given the real-valued sites with HMC on those given the signs.

    .. math:: w \sim \text{sign kernel}(p(w | z, y)), \qquad z \sim \text{HMC}(p(z | w, y))

    Each leaves p(w, z | y) as it is, and so does the pair. HMC works in unconstrained space, with Pyro's
    own potential and transforms; each part tunes itself in warm-up.

    :param signs: a :class:`DiscreteLangevin` or :class:`GibbsWithGradients` of the model.
    :param real: makes the other kernel from a model: ``NUTS``, ``HMC``, or a ``functools.partial`` of one.
    :param sign_steps: moves of the signs to one of HMC.
    :raises ValueError: for other parts; at setup, for a model without real-valued latent sites, or one
        that :class:`LogJoint` refuses.

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import MCMC, NUTS
        >>> from bayesbin.distributions import SignBernoulli
        >>> from bayesbin.infer import DiscreteLangevin, MixedKernel
        >>> def model(y):
        ...     w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        ...     noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(w, noise).to_event(1), obs=y)
        >>> mcmc = MCMC(MixedKernel(DiscreteLangevin(model), NUTS), 5, 5, disable_progbar=True)
        >>> mcmc.run(torch.tensor([1.2, -0.7]))
        >>> bool((mcmc.get_samples()["noise"] > 0).all())
        True

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", section 5.1 (combination with other updates).
    """

    transforms: Mapping[str, Any] | None

    def __init__(
        self, signs: SignKernel, real: Callable[[Callable[..., Any]], HMC], sign_steps: int = 1
    ) -> None:
        if not isinstance(signs, SignKernel):
            raise ValueError(
                f"expected a kernel of the signs, got {type(signs).__name__}; pass DiscreteLangevin(model)."
            )
        self.model = signs.model
        self.given = _GivenSigns(signs.model)
        self.signs, self.real = signs, real(self.given)
        if not isinstance(self.real, HMC):
            raise ValueError(
                f"expected NUTS, HMC or a partial of one, got what makes {type(self.real).__name__}; pass "
                "the class, not an instance."
            )
        self.sign_steps = whole_number("sign_steps", sign_steps, at_least=1)
        self.transforms = None  # known from setup on, as are the initial values
        self._initial: dict[str, Tensor] = {}

    @property
    def log_joint(self) -> Tensor:
        """log p(y, w, z) of the current state, in nats, as a density of constrained z."""
        return self.signs.log_joint

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        joint = LogJoint(self.model, args, kwargs)
        if not joint.real:
            raise ValueError(
                f"expected a model with real-valued latent sites, got only signs "
                f"({', '.join(joint.shapes)}); use {type(self.signs).__name__} by itself."
            )
        self._joint = joint
        for kernel, names in ((self.signs, joint.shapes), (self.real, joint.real)):
            if given := {name: self._initial[name] for name in names if name in self._initial}:
                kernel.initial_params = given
        self.signs.attach(joint, warmup_steps * self.sign_steps)
        flat = self.signs.starting_signs()
        self.given.values = joint.by_site(flat)
        self.real.setup(warmup_steps, *args, **kwargs)
        self.transforms = self.real.transforms
        unconstrained: Any = self.real.initial_params
        self.signs.move_to(flat, self._constrained(unconstrained))
        self._initial = {**self.given.values, **unconstrained}

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self._initial

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._initial = dict(params)

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with alone(type(self).__name__):
            unconstrained = {name: params[name] for name in self._joint.real}
            signs = {name: params[name] for name in self._joint.shapes}
            for _ in range(self.sign_steps):
                signs = self.signs.sample(signs)
            self.given.values = signs
            self.real.clear_cache()  # it holds the potential given the signs of before
            unconstrained = self.real.sample(unconstrained)
            self.signs.move_to(self._joint.flat(signs), self._constrained(unconstrained))
            return {**signs, **unconstrained}

    def _constrained(self, unconstrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.transforms is not None
        return {
            name: self.transforms[name].inv(value.detach()) for name, value in unconstrained.items()
        }

    def logging(self) -> OrderedDict[str, str]:
        parts = {"signs": self.signs.logging(), "real": self.real.logging()}
        rows = [(f"{part} {key}", text) for part, log in parts.items() for key, text in log.items()]
        return OrderedDict(rows)

    def diagnostics(self) -> dict[str, Any]:
        real = {f"real {key}": value for key, value in self.real.diagnostics().items()}
        return self.signs.diagnostics() | real

    def cleanup(self) -> None:
        self._initial = {}
        self.signs.cleanup()
        self.real.cleanup()


class _GivenSigns:
    """The model with its signs observed, at values that change from move to move."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.values: dict[str, Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with normalisation_kept(), LocalParameters(), poutine.condition(data=self.values):
            return self.model(*args, **kwargs)
