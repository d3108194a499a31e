"""One chain's draws, and what a model says at each of them: densities and new data."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from bayesbin.arviz.chains import Chain, array_of
from bayesbin.core import networks
from bayesbin.core.turns import in_turn
from bayesbin.ensemble import Statistics
from bayesbin.infer.batches import arguments
from bayesbin.infer.checks.pointwise import mask_by_target, observed_sites, pointwise_of
from bayesbin.infer.sites import latent_sites, run_at
from bayesbin.nn import Likelihood

Plates = tuple[str | None, ...]  # per dimension, None where it is no plate's


@dataclass(frozen=True)
class Evaluation:
    """The draws of a chain and the model at them.

    :param sampled: group -> variable -> (draw, ...). :param observed: site -> its data.
    :param inputs: the model's other tensors. :param plates: site or input -> plates of its dimensions.
    :param kept: site with data that do not count -> the numbers of those that do, of which alone its
        log-likelihood is. :param sites: the names of all sites.
    """

    sampled: Mapping[str, Mapping[str, np.ndarray]]
    observed: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    plates: Mapping[str, Plates]
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    sites: Collection[str] = ()


def evaluate(
    chain: Chain,
    model: Callable[..., Any] | None,
    data: Any,
    statistics: Statistics | None,
    kept: Collection[str],
    seed: int,
) -> Evaluation:
    """Every draw of a chain once; ``kept`` are the sites of signs whose draws stay."""
    runs = None if model is None else _ConditionedModel(model, data, statistics)
    rows: dict[str, dict[str, list[np.ndarray]]] = {}
    trace: Any = None
    with in_turn(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)  # new data come from the generator; the draws do not
        for index in range(chain.num_draws):
            values = chain.draw(index)
            found: dict[str, dict[str, Any]] = {
                "posterior": dict(_posterior(values, chain.signs, kept)),
                "sample_stats": chain.statistics(index, values),
            }
            if runs is not None:
                trace = runs.trace(index, values)
                _check_sites(chain, values, trace)
                found["sample_stats"]["lp"] = _log_joint(trace)
                found |= _observations(trace)
            for group, variables in found.items():
                for name, value in variables.items():
                    rows.setdefault(group, {}).setdefault(name, []).append(array_of(value))
    sampled = {
        group: {name: np.stack(draws) for name, draws in variables.items()}
        for group, variables in rows.items()
    }
    return Evaluation(sampled, {}, {}, {}) if runs is None else _with_data(sampled, runs, trace)


def _with_data(
    sampled: dict[str, dict[str, np.ndarray]], runs: _ConditionedModel, trace: Any
) -> Evaluation:
    """Add what does not change with the draw: observed data, the model's inputs, and their plates."""
    plates = {name: _plates(site) for name, site in _sample_sites(trace)}
    observed = {name: _data_of(site) for name, site in observed_sites(trace)}
    inputs = {
        name: value
        for name, value in runs.inputs().items()
        if not any(_same(value, other) for other in observed.values())
    }
    names = set(plates)
    for name, value in inputs.items():  # a row for each datum: the same dimension
        for site, other in observed.items():
            if value.dim() and other.dim() and len(value) == len(other):
                axes = (plates[site][0],) + (None,) * (value.dim() - 1)
                plates[input_of(name, names)] = axes
    return Evaluation(sampled, _arrays(observed), _arrays(inputs), plates, _kept(trace), names)


def input_of(name: str, sites: Collection[str]) -> str:
    """What an input is called beside sites, of which one may have its name."""
    return f"{name} (input)" if name in sites else name


class _ConditionedModel:
    """A model in evaluation mode and all its data."""

    def __init__(self, model: Callable[..., Any], data: Any, statistics: Statistics | None) -> None:
        # The caller's model keeps its mode, and the statistics of its normalisation layers.
        self.model = copy.deepcopy(model).eval() if isinstance(model, nn.Module) else model
        if statistics is not None and not isinstance(self.model, Likelihood):
            raise ValueError(
                "statistics are those of the network of a bayesbin.nn.Likelihood, such as a Classifier; got "
                f"{type(model).__name__} as the model."
            )
        self.data, self.statistics = data, statistics

    def trace(self, index: int, values: Mapping[str, Tensor]) -> Any:
        if self.statistics is not None:
            assert isinstance(self.model, Likelihood)
            networks.write_(self.model.net, {}, self.statistics.values[index])
        args, kwargs = arguments(self.data, next(iter(values.values())).device)
        return run_at(self.model, values, {}, tuple(args), kwargs)

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that the model takes, by the names of its arguments."""
        args, kwargs = arguments(self.data, torch.device("cpu"))
        call = self.model.forward if isinstance(self.model, nn.Module) else self.model
        bound = inspect.signature(call).bind(*args, **kwargs).arguments
        return {name: value for name, value in bound.items() if isinstance(value, Tensor)}


def _posterior(
    values: Mapping[str, Tensor], signs: Collection[str], kept: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if name not in signs:
            yield name, value
        elif name in kept:
            whole = bool((value == value.round()).all())  # levels may be others
            yield name, value.to(torch.int8) if whole else value
        else:
            yield f"{name}.average", value.mean()


def _arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: array_of(value) for name, value in values.items()}


def _sample_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def _check_sites(chain: Chain, values: Mapping[str, Tensor], trace: Any) -> None:
    latent = latent_sites(trace)
    if unknown := [name for name in values if name not in latent and name not in chain.foreign]:
        raise ValueError(
            f"The posterior has {', '.join(unknown)}, which the model does not sample (it samples "
            f"{', '.join(latent) or 'nothing'}). Pass the model that it was trained on."
        )
    for name, site in _sample_sites(trace):
        if name in values and site["fn"].shape() != values[name].shape:
            raise ValueError(
                f"The site {name!r} has shape {tuple(site['fn'].shape())} in the model and "
                f"{tuple(values[name].shape)} in the posterior. Pass the model it was trained on."
            )
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"Expected all {frame.full_size} data of the plate {frame.name!r}; got "
                    f"{frame.size}. log p(y, w) is of all of them: pass the whole training set."
                )


def _log_joint(trace: Any) -> float:
    """log p(y, w) in nats, summed in float64."""
    total = 0.0
    for _, site in _sample_sites(trace):
        log_prob = site["fn"].log_prob(site["value"]).double()
        total += float(torch.as_tensor(scale_and_mask(log_prob, site["scale"], site["mask"])).sum())
    return total


def _observations(trace: Any) -> dict[str, dict[str, Tensor]]:
    """Of each observed site: the log-likelihood of each datum that counts in nats, and new data."""
    found = {name: pointwise_of(site) for name, site in observed_sites(trace)}
    return {
        "log_likelihood": {
            name: each.log_prob if bool(each.kept.all()) else each.log_prob[each.kept]
            for name, each in found.items()
        },
        "posterior_predictive": {name: site["fn"].sample() for name, site in observed_sites(trace)},
    }


def _kept(trace: Any) -> dict[str, np.ndarray]:
    """Of each site with data that do not count: the numbers of those that do, counted through."""
    found = {name: pointwise_of(site).kept for name, site in observed_sites(trace)}
    return {
        name: array_of(kept.reshape(-1).nonzero()[:, 0])
        for name, kept in found.items()
        if not bool(kept.all())
    }


def _data_of(site: Any) -> Tensor:
    """Observed data; NaN where they do not count, so that nobody takes what stands there for data."""
    mask, value = mask_by_target(site["fn"]), site["value"]
    outer = site["mask"]
    if outer is not None:
        rows = torch.as_tensor(outer, device=value.device).expand(site["fn"].batch_shape)
        rows = rows.reshape(rows.shape + (1,) * (value.dim() - rows.dim())).expand(value.shape)
        mask = rows if mask is None else rows & _of_shape(mask, value)
    if mask is None or bool(mask.all()):
        return value
    return torch.where(_of_shape(mask, value), value.double(), torch.nan)


def _of_shape(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim())).expand(value.shape)


def _plates(site: Any) -> Plates:
    batch, event = site["fn"].batch_shape, site["fn"].event_shape
    names: list[str | None] = [None] * (len(batch) + len(event))
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and batch[frame.dim] == frame.size:
            names[len(batch) + frame.dim] = frame.name
    return tuple(names)


def _same(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and bool((value == other.to(value.device)).all())
