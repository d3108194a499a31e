"""The log joint of a model as a function of its signs and real-valued sites, over the whole data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayesbin.distributions.wrappers import sign_distribution, weight_distribution
from bayesbin.guides.announcing import LocalParameters
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.sites import latent_sites, run_at, scaled_sum

_TRIES = 100  # prior draws among which one with a finite log joint is looked for


class LogJoint:
    r"""log p(y, w, z) of a model at given signs w and real-valued sites z, in nats, scaled and masked.

    The signs of all sites make one vector of D, in site order, so that a sampler need not know of sites.

    :param model: a Pyro model. :param args: what it is called with, the whole data set.
    :raises ValueError: for a model without sign sites, with a latent site of another discrete distribution, a
        plate of which the data are only a part, or a log joint that is random (dropout).
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        trace = self._prior_draw()
        require_whole_data(trace)
        latents = latent_sites(trace)
        self.shapes: dict[str, torch.Size] = {}
        self.real: tuple[str, ...] = ()
        for name, site in latents.items():
            if sign_distribution(site["fn"]) is not None:
                self.shapes[name] = site["value"].shape
            elif (found := weight_distribution(site["fn"])) or site["fn"].support.is_discrete:
                raise ValueError(
                    f"expected latent sites that are signs or real-valued, got "
                    f"{type(found or site['fn']).__name__} at {name!r}; sum that site out, or observe it."
                )
            else:
                self.real += (name,)
        if not self.shapes:
            raise ValueError(
                f"expected a model with a latent SignBernoulli site, got {', '.join(latents) or 'none'}; "
                "give the binary weights a SignBernoulli prior."
            )
        signs = {name: latents[name]["value"] for name in self.shapes}
        real = {name: latents[name]["value"] for name in self.real}
        first, again = (self.value(self.flat(signs), real) for _ in range(2))
        if not torch.equal(first, again) and math.isfinite(first):
            raise ValueError(
                f"expected a log joint that depends on the latent sites alone, got {first.item():g} and "
                f"{again.item():g} at one state; call eval() on a network with dropout."
            )

    @property
    def size(self) -> int:
        """The number D of signs."""
        return sum(shape.numel() for shape in self.shapes.values())

    def flat(self, signs: Mapping[str, Tensor]) -> Tensor:
        """The signs of all sites as one vector, (D,)."""
        return torch.cat([signs[name].reshape(-1) for name in self.shapes])

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector (D,) in pieces of the sites' shapes."""
        pieces = flat.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def start(self) -> Tensor:
        """Signs drawn from the prior at which the log joint is finite, (D,).

        :raises ValueError: if there is none in 100 draws.
        """
        for _ in range(_TRIES):
            latents = latent_sites(self._prior_draw())
            signs = self.flat({name: latents[name]["value"] for name in self.shapes})
            real = {name: latents[name]["value"] for name in self.real}
            if math.isfinite(self.value(signs, real)):
                return signs
        raise ValueError(
            f"expected a finite log joint at a draw from the prior, got none in {_TRIES} draws; check the "
            "likelihood, or give the kernel initial_params."
        )

    def value(self, signs: Tensor, real: Mapping[str, Tensor] | None = None) -> Tensor:
        """log p(y, w, z) at one state, without a graph."""
        with torch.no_grad():
            return self._evaluate(signs, real or {})

    def value_and_gradient(
        self, signs: Tensor, real: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p(y, w, z) and its gradient in the signs, taken as real numbers, (D,)."""
        leaf = signs.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self._evaluate(leaf, real or {})
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    def _evaluate(self, signs: Tensor, real: Mapping[str, Tensor]) -> Tensor:
        with normalisation_kept(), poutine.block():
            trace = run_at(self.model, {**self.by_site(signs), **real}, {}, self.args, self.kwargs)
            return log_prob_of(trace)

    def _prior_draw(self) -> Any:
        with torch.no_grad(), normalisation_kept(), poutine.block(), LocalParameters():
            model = InitMessenger(init_to_sample)(self.model)
            return poutine.trace(model).get_trace(*self.args, **self.kwargs)


def log_prob_of(trace: Any) -> Tensor:
    """The log probability of all sites of a trace, scaled and masked, in nats."""
    total: Any = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            total = total + scaled_sum(log_prob, site)
    return torch.as_tensor(total)


def require_whole_data(trace: Any) -> None:
    """Refuse a model that was given a part of its data, whose log joint is only an estimate.

    :raises ValueError: it names the plate.
    """
    for site in trace.nodes.values():
        for frame in site.get("cond_indep_stack", ()) if site["type"] == "sample" else ():
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"expected the whole data set, got {frame.size} of {frame.full_size} in the plate "
                    f"{frame.name!r}; pass all data at once."
                )


def called_with(data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with, given as a tuple, list, dict or tensor: arguments and keywords."""
    if isinstance(data, Tensor):
        return (data,), {}
    if isinstance(data, Mapping):
        return (), dict(data)
    if isinstance(data, (tuple, list)):
        return tuple(data), {}
    raise ValueError(
        f"expected data that are a tuple, list, dict or tensor, got {type(data).__name__}; pass what the "
        "model is called with."
    )
