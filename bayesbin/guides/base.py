"""What automatic guides over binary weights share: eager building, real-valued sites, the posterior."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide, init_to_median
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from bayesbin.core.turns import alone, in_turn
from bayesbin.distributions import SignBernoulli, Support, unconstrained_normal
from bayesbin.distributions.wrappers import sign_distribution
from bayesbin.guides.announcing import announce, collected, loaded, register
from bayesbin.guides.plates import (
    PlateAxis,
    at_rows,
    axes_of,
    declared_plates,
    given_plates,
    made_plate,
    repeated,
    require_size,
    rows_of,
)
from bayesbin.guides.prototype import START, run_once
from bayesbin.guides.stock_losses import require_fit
from bayesbin.optim.assembly import DEFAULTS, TrainingGroup
from bayesbin.posterior import BinaryPosterior, RealPosterior

Read = Callable[[str, str], Tensor]
Init = nn.Module | Mapping[str, Any] | BinaryPosterior | None


@dataclass(frozen=True)
class Site:
    """A latent site as building the guide found it; keeps shapes, never data."""

    name: str
    event_dim: int
    plates: tuple[PlateAxis, ...]
    support: Support | None  # None: binary

    @property
    def is_binary(self) -> bool:
        return self.support is None


class ParameterTree(nn.Module):
    """Parameters under dotted names: the state-dict key of "0.weight" ends in "0.weight"."""

    def insert(self, name: str, parameter: nn.Parameter) -> None:
        node: nn.Module = self
        *path, leaf = name.split(".")
        try:
            for part in path:
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            node.register_parameter(leaf, parameter)
        except KeyError as error:
            raise ValueError(
                f"A guide cannot hold a parameter for the site {name!r} ({error.args[0]}): rename it, "
                "not after an attribute of torch modules, nor as a prefix of another site's name."
            ) from error


class SignGuide(AutoGuide):
    """Base of the guides over binary sites: built at construction, from one run of the model.

    A subclass says what distribution a binary site gets (:meth:`sign_distribution`); real-valued
    sites get a Normal in unconstrained space. Parameters are plain ``nn.Parameter``, announced to
    Pyro by value, so that two guides of one process never share them, in Pyro's global and in its
    local parameter mode. While ``pyro.infer.SVI`` trains them they stand in Pyro's store; a store that
    is loaded from a file gives the guide of its names their values.
    """

    draws: ClassVar[str] = "hard"  # how weights are drawn: "hard", "relaxed" or "point"

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        init_scale: float = DEFAULTS["init_scale"],
        init: Init = None,
        real_scale: float = 0.1,
        init_loc_fn: Callable[..., Any] = init_to_median,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        if not init_scale >= 0:
            raise ValueError(f"init_scale is a standard deviation, at least 0; got {init_scale}.")
        if not real_scale > 0:
            raise ValueError(f"real_scale is a positive standard deviation; got {real_scale}.")
        self.sites: dict[str, Site] = {}
        self.natural, self.loc, self.log_scale = ParameterTree(), ParameterTree(), ParameterTree()
        with in_turn():
            trace = run_once(model, args, dict(kwargs or {}), init_loc_fn)
            self._build(trace, init, init_scale, real_scale)
        if not any(site.is_binary for site in self.sites.values()):
            raise ValueError(
                f"{type(self).__name__} found no latent SignBernoulli site in the model; its sites are "
                f"{', '.join(self.sites) or 'none'}. Give the binary weights a SignBernoulli prior."
            )

    def _build(self, trace: Any, init: Init, init_scale: float, real_scale: float) -> None:
        """Insert the parameters of every latent site of a run of the model."""
        start = starting_point(init, init_scale)
        for name, message in trace.nodes.items():
            if message["type"] != "sample" or message["is_observed"] or site_is_subsample(message):
                continue
            site = self._describe(name, message)
            value = repeated(message["value"].detach(), site.plates)
            if site.support is None:
                given = message["infer"].get(START) if init is None else None
                if given is not None:
                    given = {name: repeated(given, site.plates)}
                first = start if given is None else starting_point(given, init_scale)
                random = init is None and given is None
                self.insert_natural(name, first(name, value), random=random)
                self.sites[name] = site
            else:
                self.insert_real(site, site.support.transform.inv(value), real_scale)
        self._plates_in_order = _plates_in_order(trace)

    def _describe(self, name: str, message: Any) -> Site:
        binary = self.is_weight(message["fn"])
        if not binary and not (message["fn"].has_rsample or not message["fn"].support.is_discrete):
            raise ValueError(
                f"The latent site {name!r} has the discrete distribution "
                f"{type(message['fn']).__name__}; this guide takes SignBernoulli and "
                "real-valued sites. Enumerate or observe that site."
            )
        support = None if binary else Support.of(message["fn"].support, name)
        return Site(name, message["fn"].event_dim, axes_of(message), support)

    def is_weight(self, distribution: Any) -> bool:
        """Whether a site of the model with this distribution is one of the binary sites."""
        return sign_distribution(distribution) is not None

    def add_sites_(
        self, model: Callable[..., Any], *args: Any, init_scale: float = 0.1
    ) -> tuple[str, ...]:
        """Take over the binary sites that a model has got since the guide was built, and name them.

        :param model: the model as it is now. :param args: arguments for a run of it.
        :param init_scale: standard deviation of their initial natural parameters.
        """
        new = []
        for name, message in run_once(model, args, {}).nodes.items():
            if message["type"] != "sample" or message["is_observed"] or site_is_subsample(message):
                continue
            if name not in self.sites and self.is_weight(message["fn"]):
                site = self.sites[name] = self._describe(name, message)
                start = init_scale * torch.randn_like(repeated(message["value"], site.plates))
                self.insert_natural(name, start, random=True)
                new.append(name)
        return tuple(new)

    # Parameters. A guide whose natural parameters are computed from others overrides these.

    def insert_natural(self, name: str, start: Tensor, *, random: bool) -> None:
        """Make the parameters of one binary site, whose natural parameters start at ``start``.

        :param random: whether ``start`` was drawn, rather than given.
        """
        self._tree("natural").insert(name, nn.Parameter(start))

    def insert_real(self, site: Site, loc: Any, scale: float) -> None:
        """Make the parameters of one real-valued site, in unconstrained space."""
        self.sites[site.name] = site
        self._tree("loc").insert(site.name, nn.Parameter(loc.clone()))
        log_scale = torch.full_like(loc, scale).log()
        self._tree("log_scale").insert(site.name, nn.Parameter(log_scale))

    def natural_of(self, name: str, read: Read | None = None) -> Tensor:
        """The natural parameters of one binary site, with a live graph.

        :param read: how to get at a parameter by its tree and name; None: directly. A location may be
            answered with a draw of its site.
        """
        return (read or self._parameter)("natural", name)

    def natural_parameters(self) -> Iterator[nn.Parameter]:
        """The natural parameters lambda of the binary sites, in site order.

        True natural parameters only: none, where they are computed from :meth:`offsets`.
        """
        return (self._parameter("natural", s.name) for s in self.sites.values() if s.is_binary)

    def offsets(self) -> Iterator[nn.Parameter]:
        """The parameters that natural parameters are computed from, where they are."""
        return iter(())

    def real_parameters(self) -> Iterator[nn.Parameter]:
        """Everything else the guide learns: locations and log scales of the real-valued sites."""
        binary = {id(p) for p in (*self.natural_parameters(), *self.offsets())}
        return (p for p in self.parameters() if id(p) not in binary)

    def training_groups(self) -> Iterator[TrainingGroup]:
        """What trains the guide, for ``fit`` and recipes: natural gradients for the natural parameters, those
        of sites in plates lazily, and Adam for the rest. A guide of other parameters overrides it."""
        yield from self.by_rows(self.natural_parameters(), "natural")
        yield TrainingGroup(tuple(self.real_parameters()))

    def by_rows(
        self, parameters: Iterable[nn.Parameter], role: str, preconditioner: Any = None
    ) -> Iterator[TrainingGroup]:
        """Groups for the natural gradients of the binary sites, in site order, with sites in plates apart:
        of their rows, those outside of a batch rest."""
        parameters = tuple(parameters)
        in_plates = [
            any(axis.dim is not None for axis in site.plates)
            for site in self.sites.values()
            if site.is_binary
        ]
        if len(in_plates) != len(
            parameters
        ):  # of a guide whose parameters are not those of its sites
            in_plates = [False] * len(parameters)
        pairs = zip(in_plates, parameters, strict=True)
        for lazy, members in groupby(pairs, lambda pair: pair[0]):
            together = tuple(parameter for _, parameter in members)
            yield TrainingGroup(together, "natural-gradient", role, preconditioner, lazy=lazy)

    @property
    def is_point(self) -> bool:
        """Whether every draw of the guide is the same network."""
        return False

    def posterior(self) -> BinaryPosterior:
        """The guide's distribution as a frozen :class:`BinaryPosterior`, by value."""
        signs = {
            name: self.natural_of(name, self._without_effects).detach().clone()
            for name, site in self.sites.items()
            if site.is_binary
        }
        return BinaryPosterior(signs, self.real_posterior(), self.effects())

    def real_posterior(self) -> dict[str, RealPosterior]:
        """The distributions of the real-valued sites, by value."""
        return {
            name: RealPosterior(
                self._parameter("loc", name).detach().clone(),
                self._parameter("log_scale", name).detach().exp(),
                site.support,
            )
            for name, site in self.sites.items()
            if site.support is not None
        }

    def effects(self) -> dict[str, tuple[str, ...]]:
        """Binary site -> the real-valued sites that are added to its natural parameters."""
        return {}

    def effect_priors(self) -> dict[str, Any]:
        """The prior distributions of those real-valued sites that are the guide's own, not the model's."""
        return {}

    def prior_levels(self) -> dict[str, tuple[float, ...]]:
        """Binary site -> the levels that the guide gives its weights, where they are not signs."""
        return {}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The mode of the binary sites and the median of the real ones."""
        return self.posterior().mode()

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The quantiles of each site's elements, see ``Posterior.quantiles``; of signs, -1 or +1."""
        return self.posterior().quantiles(quantiles)

    # Sampling

    @abstractmethod
    def sign_distribution(self, natural: Tensor) -> Any:
        """The distribution of a binary site given its natural parameters, elementwise."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        plates = self._create_plates(*args, **kwargs)
        rows = {name: rows_of(plates[name]) for name in self._axes(loops=False)}
        result: dict[str, Tensor] = {}

        def read(tree: str, name: str) -> Tensor:
            drawn = tree == "loc" and name in result  # an effect, drawn before the signs it enters
            return result[name] if drawn else self._announced(tree, name)

        for name, site in self.sites.items():
            if site.support is None:
                natural = at_rows(self.natural_of(name, read), site.plates, rows)
                distribution = self.sign_distribution(natural).to_event(site.event_dim)
            else:
                loc = at_rows(self._announced("loc", name), site.plates, rows)
                scale = at_rows(self._announced("log_scale", name), site.plates, rows).exp()
                distribution = unconstrained_normal(loc, scale, site.support, site.event_dim)
            with ExitStack() as stack:
                for axis in site.plates:
                    if axis.dim is not None:
                        stack.enter_context(plates[axis.name])
                result[name] = pyro.sample(name, distribution)
        return result

    def _axes(self, *, loops: bool) -> dict[str, PlateAxis]:
        """The plates that the guide's sites lie in, by name; with ``loops`` those of loops too."""
        axes = (axis for site in self.sites.values() for axis in site.plates)
        return {axis.name: axis for axis in axes if loops or axis.dim is not None}

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The plates of one call, with the rows of the model's: given by ``create_plates``, or looked up."""
        axes = self._axes(loops=True)
        plates: dict[str, Any] = {}
        if self.master is not None:
            plates = dict(super()._create_plates(*args, **kwargs))
        elif self.create_plates is not None:
            plates = given_plates(self.create_plates(*args, **kwargs), axes)
        unknown = [name for name in axes if name not in plates and name in self._plates_in_order]
        declared = self._declared(unknown, args, kwargs)
        for name, axis in axes.items():
            if axis.dim is None and name in declared:
                require_size(axis, declared[name])
            elif axis.dim is not None and name not in plates:
                plates[name] = made_plate(axis, declared.get(name))
        self.plates = plates
        return plates

    def _declared(self, names: list[str], args: Any, kwargs: Any) -> dict[str, Any]:
        if not names:
            return {}
        if self.model is not None:
            return declared_plates(self.model, names, args, kwargs)
        if some := [name for name in names if not self._plates_in_order[name]]:
            raise ValueError(
                f"The guide was loaded without its model, which tells the rows of the plate {some[0]!r}: set "
                f"guide.create_plates = lambda *args: pyro.plate({some[0]!r}, size, subsample=indices)."
            )
        return {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        require_fit(self, self.draws)
        with alone(type(self).__name__):
            result = super().__call__(*args, **kwargs)
        if (
            collected()
        ):  # after the call: in Pyro's local mode a module has a store of its own in it
            register(self, ((f"{self._pyro_name}.{n}", p) for n, p in self.named_parameters()))
        return result

    def _announced(self, tree: str, name: str) -> Tensor:
        # Reading self.natural in a Pyro context would register the parameter in the global store and
        # might hand back another guide's; going to the module directly, and announcing the value to
        # whoever listens (SVI collects parameters so), does neither.
        return announce(self._pyro_get_fullname(f"{tree}.{name}"), self._parameter(tree, name))

    def _parameter(self, tree: str, name: str) -> nn.Parameter:
        module = self._modules[tree]
        assert module is not None
        parameter = module.get_parameter(name)
        loaded(f"{self._pyro_name}.{tree}.{name}", parameter)
        return parameter

    def _without_effects(self, tree: str, name: str) -> Tensor:
        parameter = self._parameter(tree, name)
        return torch.zeros_like(parameter) if tree == "loc" else parameter

    def _tree(self, name: str) -> ParameterTree:
        tree = self._modules[name]
        assert isinstance(tree, ParameterTree)
        return tree

    # Copies

    def __getstate__(self) -> dict[str, Any]:
        # AutoGuide clears the *original's* model here. A pickled guide goes without its model (often
        # a local function); a copy in memory keeps it.
        for parameter in self.parameters():  # on which Pyro's store leaves a mark when it is read
            vars(parameter).pop("unconstrained", None)
        state = self.__dict__.copy()
        state["_model"] = (None,)
        state.pop("plates", None)  # those of the last call
        state["master"] = None
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> SignGuide:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        vars(new).update(_model=self._model)
        return new


def _plates_in_order(trace: Any) -> dict[str, bool]:
    """The plates of a trace by name, and whether it has all of their rows in order."""
    found = {}
    for name, site in trace.nodes.items():
        if site_is_subsample(site):
            indices = torch.as_tensor(site["value"])
            found[name] = torch.equal(indices, torch.arange(site["fn"].size).to(indices))
    return found


def starting_point(init: Init, init_scale: float) -> Callable[[str, Tensor], Tensor]:
    """The function from a binary site's name and prototype to its initial natural parameters."""
    if init is None:
        return lambda name, like: init_scale * torch.randn_like(like)
    if isinstance(init, BinaryPosterior):
        return lambda name, like: _found(init, name, like, "posterior").natural.to(like).clone()
    weights = init.state_dict() if isinstance(init, nn.Module) else init

    def from_weights(name: str, like: Tensor) -> Tensor:
        # The sign of each pretrained weight, with a confidence proportional to its size: the root
        # mean square of the natural parameters is init_scale.
        weight = torch.as_tensor(_found(weights, name, like, "pretrained network")).to(like)
        size = weight.square().mean().sqrt()
        return init_scale * weight.detach() / size.clamp(min=torch.finfo(like.dtype).tiny)

    return from_weights


def _found(source: Mapping[str, Any], name: str, like: Tensor, what: str) -> Any:
    if name not in source:
        raise ValueError(
            f"The {what} given as init has no weight {name!r}; it has {', '.join(source) or 'none'}."
        )
    entry = source[name]
    shape = tuple(entry.natural.shape if isinstance(entry, SignBernoulli) else entry.shape)
    if shape != tuple(like.shape):
        raise ValueError(
            f"The {what} given as init has {name!r} of shape {shape}; the model's is {tuple(like.shape)}."
        )
    return entry
