"""Posterior draws with all that ArviZ diagnoses, compares and plots them by."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray
from pyro.infer import MCMC

from bayesbin import __version__
from bayesbin.arviz.chains import Chain, chains_of
from bayesbin.arviz.evaluation import Evaluation, evaluate, input_of
from bayesbin.arviz.labels import Labels, Variable
from bayesbin.ensemble import Ensemble, Statistics
from bayesbin.infer.mcmc import MCMCResult
from bayesbin.nn.likelihoods import Likelihood
from bayesbin.posterior import Posterior

LARGEST = 1000  # weights of a site whose draws are kept unless asked otherwise


def to_inference_data(
    posterior: Posterior[Any] | Sequence[Posterior[Any]] | MCMCResult | MCMC,
    model: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    data: Any = (),
    *,
    num_samples: int = 1000,
    seed: int = 0,
    signs: bool | Collection[str] | None = None,
    statistics: Statistics | Sequence[Statistics] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    r"""Posterior draws as ArviZ takes them: ``InferenceData``, from ArviZ 1 on ``xarray.DataTree``.

    Both have ``to_netcdf``, which needs the extra ``bayesbin[netcdf]`` (ArviZ before 1 brings it along).

    The groups; those with a star need a model and its data:

    - ``posterior``: signs and other whole levels as int8, real sites in their support, (chain, draw, ...).
      A site of more than 1000 weights gives its average in each draw instead, ``<site>.average``.
    - ``sample_stats``: of each draw ``lp`` = log p(y, w)* and ``log_q`` = log q(w) in nats (no
      ``log_q`` with random effects), of MCMC ``diverging``. lp - log_q is what k-hat is computed from.
    - ``log_likelihood``*: log p(y_n | w) of each datum; where some are masked, of the others, along a
      dimension ``<site>_kept`` of their numbers. ``posterior_predictive``*: data drawn anew.
    - ``observed_data``*, NaN where they are masked, and ``constant_data``: the model's other tensors*, and
      what does not change with the draw: the natural parameters ``<site>.natural`` (of weights of a few
      levels ``<site>.mean``), and ``<site>.loc`` and
      ``<site>.scale`` of real sites in unconstrained space, (chain, ...).

    A weight that is the same in all draws has no R-hat and no effective sample size: ``az.summary`` gives
    NaN for it, and numpy warns; ``kind="stats"`` asks for neither.

    :param posterior: one posterior; restarts, each of which becomes a chain; or an MCMC run, ours or
        Pyro's. Draw s of chain c is ``posterior.sample(s, seed=seed + c)``. The draws of one posterior
        are one chain of independent draws: R-hat compares chains and is not defined for it.
    :param model: a Pyro model, run in evaluation mode; a sequence has one for each chain, for restarts
        that trained real parameters in their models.
    :param data: all the training data, a tuple or list for ``model(*data)``, a dict for keywords.
    :param num_samples: draws of each posterior; MCMC has its own number.
    :param signs: True: the draws of every site of signs; names: of those; False: of none.
    :param statistics: normalisation statistics of the network of a likelihood, such as a ``Classifier``,
        one for each chain: ``Ensemble(model, posterior, num_samples, seed + c).calibrate(x).statistics``.
    :param coords: dimension -> labels. :param dims: variable or site -> names of its dimensions after
        chain and draw; by default those of plates, of weights ``<site>_out``, ``<site>_in``, ...
    :param attrs: noted beside the package's version, the seed and the posteriors' digests, such as
        ``{"kl_weight": 0.1}``: with a weight other than 1 the draws are not meant for p(w | y).
    :raises ValueError: for sites that differ between posteriors or from the model's, data that are not
        all of a plate's, or names and shapes that do not fit.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior, to_inference_data
        >>> restarts = [BinaryPosterior({"w": torch.tensor([0.5, 2.0])}) for _ in range(2)]
        >>> found = to_inference_data(restarts, num_samples=5, coords={"w_dim_0": ["a", "b"]})
        >>> found.posterior["w"].shape, str(found.posterior["w"].dtype)
        ((2, 5, 2), 'int8')
        >>> found.constant_data["w.natural"].sel(chain=1, w_dim_0="b").item()
        2.0

    Source: Kumar et al. 2019, ArviZ, JOSS 4(33); Yao et al. 2018, arXiv 1802.02538 (log p and log q).
    """
    chains = chains_of(posterior, num_samples, seed)
    models = _one_each("model", model, len(chains))
    states = _one_each("set of statistics", statistics, len(chains))
    if isinstance(posterior, (MCMCResult, MCMC)) and statistics is not None:
        raise ValueError("statistics are of a posterior's draws; got an MCMC run. Leave them out.")
    if model is None and (statistics is not None or not isinstance(data, tuple) or data):
        raise ValueError("Expected the model that data and statistics belong to; got None.")
    _check_statistics(posterior, models, states, num_samples, seed)
    shown = _kept(chains[0], signs)
    evaluations = [
        evaluate(chain, program, data, state, shown, seed + number)
        for number, (chain, program, state) in enumerate(zip(chains, models, states, strict=True))
    ]
    kept = {f"{name}_kept": numbers for name, numbers in evaluations[0].kept.items()}
    labels = Labels({**kept, **(coords or {})}, dims or {}, evaluations[0].plates, chains[0].signs)
    noted: dict[str, Any] = {
        "inference_library": "bayesbin",
        "inference_library_version": __version__,
        "seed": seed,
    }
    if digests := [digest for chain in chains if (digest := chain.digest())]:
        noted["posterior_digest"] = " ".join(digests)
    noted |= attrs or {}
    variables = [*_sampled(evaluations), *_fixed(chains, evaluations[0])]
    return _container(labels.datasets(variables, noted), noted)


def _check_statistics(
    posterior: Any, models: Sequence[Any], states: Sequence[Any], num_samples: int, seed: int
) -> None:
    """Refuse statistics of other draws, another posterior or another network."""
    posteriors = posterior if isinstance(posterior, (list, tuple)) else [posterior]
    for number, state in enumerate(states):
        if state is not None and isinstance(models[number], Likelihood):
            settings = (models[number], posteriors[number], num_samples, seed + number)
            Ensemble(*settings, statistics=state)


def _one_each(what: str, given: Any, count: int) -> list[Any]:
    many = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(many) != count:
        raise ValueError(f"Expected one {what} for each of the {count} chains; got {len(many)}.")
    return many


def _kept(chain: Chain, signs: bool | Collection[str] | None) -> frozenset[str]:
    """The sites of signs whose draws are kept."""
    if signs is None:
        values = chain.draw(0)
        return frozenset(site for site in chain.signs if values[site].numel() <= LARGEST)
    if isinstance(signs, bool):
        return chain.signs if signs else frozenset()
    names = frozenset([signs] if isinstance(signs, str) else signs)
    if unknown := sorted(names - chain.signs):
        raise ValueError(
            f"signs are names of {', '.join(sorted(chain.signs))}; got {', '.join(unknown)}."
        )
    return names


def _sampled(evaluations: Sequence[Evaluation]) -> Iterator[Variable]:
    for group, arrays in evaluations[0].sampled.items():
        for name in arrays:
            stacked = np.stack([evaluation.sampled[group][name] for evaluation in evaluations])
            some = group == "log_likelihood" and name in evaluations[0].kept
            axes = (f"{name}_kept",) if some else None
            yield Variable(group, name, name, ("chain", "draw"), stacked, axes)


def _fixed(chains: Sequence[Chain], evaluation: Evaluation) -> Iterator[Variable]:
    for name, array in evaluation.observed.items():
        yield Variable("observed_data", name, name, (), array)
    for name, array in evaluation.inputs.items():
        site = input_of(name, evaluation.sites)
        yield Variable("constant_data", name, site, (), array)
    parameters = [chain.parameters() for chain in chains]
    for name in parameters[0]:
        stacked = np.stack([each[name] for each in parameters])
        yield Variable("constant_data", name, name.rpartition(".")[0], ("chain",), stacked)


def _container(groups: Mapping[str, Any], attrs: Mapping[str, Any]) -> Any:
    """What the installed ArviZ takes."""
    if int(importlib.metadata.version("arviz").partition(".")[0]) >= 1:
        root = xarray.Dataset(attrs=dict(attrs))
        return xarray.DataTree.from_dict({"/": root, **groups})
    import arviz  # which takes a second to import

    return arviz.InferenceData(attrs=dict(attrs), **groups)
