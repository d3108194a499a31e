"""The ELBO with its standard error, the exact evidence of small models, and the gap between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.estimators import Enumerate, StraightThrough
from bayesbin.estimators.exact import all_signs
from bayesbin.guides.effects import with_effects
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.infer.checks.importance import CHECK_NOISE
from bayesbin.infer.elbo import TraceBinary_ELBO
from bayesbin.infer.mcmc.log_joint import LogJoint, called_with, require_whole_data
from bayesbin.infer.noise import NoiseStream
from bayesbin.infer.several_draws import SeveralDraws


class MonteCarloEstimate(NamedTuple):
    """A Monte Carlo average and its standard error, in the same unit."""

    value: float
    standard_error: float


def elbo_with_standard_error(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any = (),
    num_samples: int = 100,
    seed: int = 0,
) -> MonteCarloEstimate:
    r"""The evidence lower bound at hard draws of the guide, in nats over the whole data set.

    .. math:: \frac1S \sum_s \log p(y | w_s, z_s) - \mathrm{KL}(q\,\|\,p) \pm \frac{\text{std}}{\sqrt S}

    with the KL in closed form where it has one.

    :param data: what the model is called with, the whole data set: a tuple, list, dict or tensor.
    :param num_samples: S, at least 2.
    :raises ValueError: for fewer draws, or a part of the data.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.infer.checks import elbo_with_standard_error
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        >>> model = Classifier(BinaryLinear(3, 2), dataset_size=8)
        >>> elbo = elbo_with_standard_error(model, AutoSignBernoulli(model), (x, y))
        >>> elbo.value < 0.0, elbo.standard_error > 0.0
        (True, True)

    Source: Blei, Kucukelbir and McAuliffe 2017, arXiv 1601.00670.
    """
    num_samples = whole_number("num_samples", num_samples, at_least=2)
    args, kwargs = called_with(data)
    elbo = TraceBinary_ELBO(StraightThrough())  # which hard draws do not use
    with NoiseStream(seed, CHECK_NOISE, 1).active(), normalisation_kept(), poutine.block():
        _check_data(model, args, kwargs)
        losses = [
            elbo.hard_terms(model, guide, *args, **kwargs).loss.double() for _ in range(num_samples)
        ]
    return _mean(-torch.stack(losses))


def evidence(model: Callable[..., Any], data: Any = (), max_weights: int = 16) -> float:
    r"""log p(y) of a model of a few signs, exactly, in nats.

    .. math:: \log p(y) = \log \sum_{w \in \{-1,+1\}^D} p(y, w)

    :param data: what the model is called with, the whole data set: a tuple, list, dict or tensor.
    :param max_weights: the largest D accepted; the cost doubles with each weight.
    :raises ValueError: for more weights, or a model with real-valued latent sites.

    Example::

        >>> import pyro, torch
        >>> from bayesbin.distributions import SignBernoulli
        >>> from bayesbin.infer.checks import evidence
        >>> def model():
        ...     w = pyro.sample("w", SignBernoulli(natural=torch.zeros(4)).to_event(1))
        ...     pyro.factor("fit", w.sum())
        >>> round(evidence(model), 4), round(4 * torch.cosh(torch.tensor(1.0)).log().item(), 4)
        (1.7351, 1.7351)
    """
    max_weights = whole_number("max_weights", max_weights, at_least=1)
    args, kwargs = called_with(data)
    with torch.random.fork_rng():
        joint = LogJoint(model, args, kwargs)
        if joint.real:
            raise ValueError(
                f"expected a model of signs alone to sum over, got the real-valued {', '.join(joint.real)}; "
                "fix those sites with poutine.condition."
            )
        if joint.size > max_weights:
            raise ValueError(
                f"expected at most {max_weights} weights to sum over 2^D states, got {joint.size}; raise "
                "max_weights, or use a guide's ELBO."
            )
        states = joint.by_site(joint.start())
        values = {
            name: list(piece.reshape(-1, *states[name].shape))
            for name, piece in _columns(joint, like=joint.flat(states)).items()
        }
        with torch.no_grad():
            log_joint = SeveralDraws()(model, lambda draw: joint.value(joint.flat(draw)), values)
    return log_joint.double().logsumexp(0).item()


class EvidenceGap(NamedTuple):
    """log p(y) - ELBO, its standard error, and the two, in nats."""

    gap: float
    standard_error: float
    log_evidence: float
    elbo: float


def evidence_gap(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any = (),
    num_samples: int = 100,
    max_weights: int = 16,
    seed: int = 0,
) -> EvidenceGap:
    r"""What a guide loses on a small model: KL(q(w) || p(w|y)), in nats.

    .. math:: \mathrm{KL}(q\,\|\,p(\cdot | y)) = \log p(y) - \mathrm{ELBO}

    Both are sums over all states, and the standard error is 0; random effects are averaged over draws,
    and their bound adds to the gap.

    :param num_samples: draws of the random effects, if any.
    :param data: and the other parameters and errors as for :func:`evidence`.

    Example::

        >>> import pyro, torch
        >>> from bayesbin.distributions import SignBernoulli
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.infer.checks import evidence_gap
        >>> def model():
        ...     w = pyro.sample("w", SignBernoulli(natural=torch.zeros(4)).to_event(1))
        ...     pyro.factor("fit", w.sum())
        >>> guide = AutoSignBernoulli(model, init_scale=0.0)
        >>> round(evidence_gap(model, guide).gap, 4)  # lambda = 0, where the posterior has 1
        1.7351
    """
    num_samples = whole_number("num_samples", num_samples, at_least=2)
    args, kwargs = called_with(data)
    log_evidence = evidence(model, data, max_weights)
    elbo = TraceBinary_ELBO(Enumerate(max_weights))
    if getattr(guide, "prior_levels", dict)():
        raise ValueError(
            f"expected a guide of signs, got {type(guide).__name__} with other levels; the sum is over signs."
        )
    is_random = with_effects(model, guide) is not model
    with (
        NoiseStream(seed, CHECK_NOISE, 2).active(), torch.no_grad(),
        normalisation_kept(), poutine.block(),
    ):  # fmt: skip
        losses = [
            elbo.terms(model, guide, *args, **kwargs).loss.double()
            for _ in range(num_samples if is_random else 1)
        ]
    value, error = _mean(-torch.stack(losses))
    return EvidenceGap(log_evidence - value, error, log_evidence, value)


def _columns(joint: LogJoint, like: Tensor) -> dict[str, Tensor]:
    states = all_signs(joint.size, like)
    sizes = [shape.numel() for shape in joint.shapes.values()]
    return dict(zip(joint.shapes, states.split(sizes, dim=1), strict=True))


def _mean(draws: Tensor) -> MonteCarloEstimate:
    error = draws.std().item() / len(draws) ** 0.5 if len(draws) > 1 else 0.0
    return MonteCarloEstimate(draws.mean().item(), error)


def _check_data(model: Any, args: Any, kwargs: Any) -> None:
    with torch.no_grad(), pyro.validation_enabled(False):
        require_whole_data(poutine.trace(model).get_trace(*args, **kwargs))
