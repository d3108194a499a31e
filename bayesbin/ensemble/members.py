"""Member: one network with its posterior, some of its draws, and their normalisation statistics."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.checks import is_number, one_of, real_number, real_numbers, shown, whole_number
from bayesbin.core.wrappers import unwrapped
from bayesbin.ensemble.state import (
    described,
    network_digest,
    own_copy,
    require_sites,
    tensors_of,
)
from bayesbin.nn.likelihoods import (
    Classifier,
    Likelihood,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Regressor,
)
from bayesbin.posterior import Posterior
from bayesbin.runtime.head import Parameter
from bayesbin.runtime.heads import HEADS

Draw = int | None  # the number of a draw; None: the mode
Head = Mapping[str, Any]
_PARAMETERS = (
    "noise",
    "concentration",
    "cutpoints",
)  # of the likelihoods that a head may stand for


@dataclass(frozen=True, eq=False)
class Statistics:
    """Normalisation statistics of draws, and of the mode.

    :param values: number of a draw, or None for the mode -> name of a buffer -> its values. No buffers: the
        network keeps its own running statistics.
    :param origin: digest of the network, the posterior and the seed that they were computed for.
    """

    values: Mapping[Draw, Mapping[str, Tensor]]
    origin: str

    @property
    def kept(self) -> bool:
        """Whether the network keeps its own running statistics."""
        return not any(self.values.values())


@dataclass(frozen=True, eq=False)
class Member:
    """One network with its posterior and draws, all by value.

    :param net: its parameters and buffers count, its signs do not. :param seed: of the draws.
    :param draws: their numbers; None is the mode. :param head: kind and parameters, each a number or
        ``{"site": name}``. :param statistics: of those draws, and of the mode; None: not calibrated.
    :param likelihood: whose network ``net`` is; None: a plain network, or a head that is not the model's.
    """

    net: nn.Module
    posterior: Posterior[Any]
    seed: int
    draws: tuple[Draw, ...]
    head: Head
    statistics: Statistics | None = None
    likelihood: Likelihood | None = None
    templates: dict[Any, Any] = field(default_factory=dict)  # of programs, by the shape of inputs

    @classmethod
    def of(
        cls,
        model: nn.Module,
        posterior: Posterior[Any],
        draws: Sequence[Draw],
        seed: int,
        head: Any,
    ) -> Member:
        """Copy and check a network and a posterior.

        :raises ValueError: if they do not belong together, by the name of the first site that does not fit.
        """
        if not isinstance(posterior, Posterior):
            hint = "; call its posterior()" if hasattr(posterior, "posterior") else ""
            raise ValueError(
                f"expected a posterior, such as guide.posterior(); got {type(posterior).__name__}{hint}."
            )
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"expected a model or a network, an nn.Module; got {type(model).__name__}."
            )
        posterior, model = copy.deepcopy(posterior).to("cpu"), unwrapped(model)
        inner = model.net if isinstance(model, Likelihood) else model
        require_sites(inner, _shapes(posterior), posterior.kind)
        found = checked_head(_asked(model, head), posterior)
        likelihood = None
        if isinstance(model, Likelihood):
            _require_real_sites(model, posterior)
            if head is None or found == checked_head(model.prediction_head, posterior):
                likelihood = own_copy(model)
        net = own_copy(inner) if likelihood is None else likelihood.net
        networks.write_(net, posterior.signs())
        return cls(net, posterior, seed, tuple(draws), found, likelihood=likelihood)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"templates": {}}

    @cached_property
    def origin(self) -> str:
        """Digest of what draws and their statistics depend on: network, posterior and seed."""
        text = f"{network_digest(self.net)}|{self.posterior.digest}|{self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over network, posterior, seed, draws, head and statistics."""
        digest = hashlib.sha256(self.origin.encode())
        digest.update(json.dumps([list(self.draws), dict(self.head)], sort_keys=True).encode())
        for name, tensor in sorted(self.likelihood_tensors().items()):
            digest.update(f"|{name}|{described(tensor)}|".encode() + tensor.numpy().tobytes())
        for draw, values in {} if self.statistics is None else self.statistics.values.items():
            for name, tensor in sorted(values.items()):
                digest.update(f"|{draw}|{name}|".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def with_statistics(self, statistics: Statistics) -> Member:
        """The same with statistics.

        :raises ValueError: if they were computed for another network, posterior or seed, or for other draws.
        """
        if statistics.origin != self.origin:
            raise ValueError(
                "These normalisation statistics were computed for another network, posterior or seed; "
                "compute them for this one with calibrate(x)."
            )
        for draw in (*self.draws, None):
            if draw not in statistics.values:
                raise ValueError(
                    f"expected normalisation statistics of draw {draw}; got those of "
                    f"{shown(list(statistics.values))}. Compute them with calibrate(x)."
                )
        return replace(self, statistics=statistics)

    def with_draws(self, draws: Sequence[Draw]) -> Member:
        """The same with some of its draws, or with its mode."""
        statistics = self.statistics
        if statistics is not None:
            wanted = dict.fromkeys((*draws, None))
            statistics = replace(
                statistics, values={draw: statistics.values[draw] for draw in wanted}
            )
        return replace(self, draws=tuple(draws), statistics=statistics)

    def weights(self, draw: Draw) -> dict[str, Tensor]:
        """The weights of a draw, or of the mode, by site."""
        return self.posterior.signs(draw, seed=self.seed)

    def state(self, draw: Draw) -> Mapping[str, Tensor]:
        """The buffers of a draw's normalisation; none where the network keeps its own."""
        return {} if self.statistics is None else self.statistics.values[draw]

    def network(self, draw: Draw) -> nn.Module:
        """The network of a draw, a copy in evaluation mode."""
        return networks.copy_with(self.net, self.weights(draw), self.state(draw))

    def parameter(self, name: str) -> list[Any]:
        """A parameter of the head in each draw: a number, or several."""
        value = self.head[name]
        if not isinstance(value, Mapping):
            return [value] * len(self.draws)
        return [self._real(value["site"], draw).tolist() for draw in self.draws]

    def latents(self, draw: Draw) -> dict[str, Tensor]:
        """The real-valued parameters of the likelihood in a draw, by name, in float64."""
        if self.likelihood is not None:
            return {name: self._real(name, draw) for name in self.likelihood.latents()}
        sites = {n: value["site"] for n, value in self.head.items() if isinstance(value, Mapping)}
        return {name: self._real(site, draw) for name, site in sites.items()}

    def _real(self, site: str, draw: Draw) -> Tensor:
        if draw is None:
            return self.posterior.real[site].at(0.0).detach().double()
        return self.posterior.sample_real(site, draw, seed=self.seed).detach().double()

    def likelihood_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the likelihood itself, by name."""
        if self.likelihood is None:
            return {}
        found = tensors_of(self.likelihood)
        return {name: tensor for name, tensor in found.items() if not name.startswith("net.")}

    @cached_property
    def scoring(self) -> Likelihood | None:
        """What gives targets a probability: the model's likelihood, or that of the head; None: neither."""
        if self.likelihood is not None or self.head["kind"] == "outputs":
            return self.likelihood
        given = [self.head.get(name) for name in _PARAMETERS]
        noise, concentration, cutpoints = (
            None if isinstance(each, Mapping) else each for each in given
        )
        if self.head.get("heteroscedastic"):
            noise = "heteroscedastic"
        makers: dict[str, Callable[[], Likelihood]] = {
            "classes": lambda: Classifier(self.net, 1, class_dim=self.head.get("class_dim", -1)),
            "labels": lambda: MultiLabel(self.net, 1),
            "negative_binomial": lambda: NegativeBinomial(self.net, 1, concentration),
            "normal": lambda: Regressor(self.net, 1, noise),
            "ordinal": lambda: Ordinal(self.net, 1, self._levels(), cutpoints),
            "poisson": lambda: Poisson(self.net, 1),
        }
        return makers[self.head["kind"]]()

    def _levels(self) -> int:
        return len(self.parameter("cutpoints")[0]) + 1


def _shapes(posterior: Posterior[Any]) -> dict[str, tuple[int, ...]]:
    return {site: tuple(weights.shape) for site, weights in posterior.signs().items()}


def _require_real_sites(model: Likelihood, posterior: Posterior[Any]) -> None:
    """Refuse real-valued sites that the model does not have: a prediction would leave them out."""
    effects = {name for names in posterior.effects.values() for name in names}
    for name in posterior.real:
        if name not in model.real_latents | effects:
            raise ValueError(
                f"The posterior has a real-valued site {name!r}, which is none of {type(model).__name__}'s: "
                "a prediction would leave it out. Use the model that the posterior was trained with."
            )
    for name in model.latents():
        _require_site(name, posterior, "draws")


def _require_site(site: Any, posterior: Posterior[Any], use: str) -> None:
    """Refuse a posterior without a real-valued site that a model needs."""
    if not isinstance(site, str) or site not in posterior.real:
        raise ValueError(
            f"The posterior has no real-valued site {site!r}, which the model {use}; it has "
            f"{', '.join(posterior.real) or 'none'}. Use the posterior of a guide of this very model."
        )


def _asked(model: nn.Module, head: Any) -> Any:
    """The head that was given, or the model's own."""
    if head is not None:
        return {"kind": head} if isinstance(head, str) else head
    return model.prediction_head if isinstance(model, Likelihood) else {"kind": "outputs"}


def checked_head(head: Any, posterior: Posterior[Any]) -> Head:
    """A head whose kind is known and whose parameters are numbers, or sites that the posterior has.

    :raises ValueError: for anything else.
    """
    if not isinstance(head, Mapping) or "kind" not in head:
        raise ValueError(
            f"expected head to be one of {', '.join(HEADS)}, or a mapping with a kind and its parameters; "
            f"got {shown(head)}."
        )
    kind = HEADS[one_of("head", head["kind"], HEADS)]
    parameters = kind.parameters_of(head)
    settings = {name: _plain(head[name]) for name in kind.settings if name in head}
    return {"kind": kind.kind, **settings} | {
        name: _checked_parameter(name, each, head[name], posterior)
        for name, each in parameters.items()
    }


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it; what it may be is checked with the outputs."""
    if isinstance(value, bool):
        return value
    return whole_number("a setting of the head", value, -8) if is_number(value) else value


def _checked_parameter(
    name: str, parameter: Parameter, value: Any, posterior: Posterior[Any]
) -> Any:
    if not isinstance(value, Mapping):
        many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0)
        if many or parameter.ascending:
            return list(real_numbers(name, value, above=parameter.above))
        return real_number(name, value, above=parameter.above)
    site: Any = value.get("site")
    _require_site(site, posterior, f"draws its {name} at")
    if posterior.real[site].loc.dim() > 1:
        raise ValueError(
            f"expected the site {site!r} of the {name} to hold one number, or a list of them; got shape "
            f"{tuple(posterior.real[site].loc.shape)}."
        )
    return {"site": site}
