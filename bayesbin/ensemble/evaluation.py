"""Targets and an ensemble: what each draw's likelihood says of them, and scores of mean, mode and draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesbin.diagnostics.by_likelihood import draw_scores, moment, predicted
from bayesbin.ensemble.members import Draw, Member
from bayesbin.nn.likelihoods import Likelihood
from bayesbin.runtime.head import add_moments, add_to, moments
from bayesbin.runtime.predictions import MomentsPrediction

_TAILS = (0.025, 0.975)

# From the arrays of a draw's outputs to what the network returns.
Returned = Callable[[list[Tensor]], Any]


def places(members: Sequence[Member]) -> Iterator[tuple[Member, Draw]]:
    """Every draw with the member that it is of, in their order."""
    for member in members:
        for draw in member.draws:
            yield member, draw


def require_likelihood(members: Sequence[Member]) -> Likelihood:
    """What gives targets a probability.

    :raises ValueError: for a plain network whose outputs are of no kind, which have none.
    """
    likelihood = members[0].scoring
    if likelihood is None:
        raise ValueError(
            "expected an ensemble of a model with a likelihood, or with a head such as 'classes', to be "
            "scored; got the outputs of a plain network. Make it of a bayesbin.nn.Likelihood."
        )
    return likelihood


def prediction_of_draws(
    members: Sequence[Member], outputs: Sequence[np.ndarray], returned: Returned
) -> MomentsPrediction | None:
    """Mean and variances of the targets by the distributions of a user's own likelihood, over draws.

    :param outputs: of each output of the network an array (S, B, ...).
    :returns: None where the distributions have no mean or no variance.
    """
    sums: dict[Any, Any] = {}
    for place, (member, draw) in enumerate(places(members)):
        assert member.likelihood is not None
        given = returned([_tensor(each[place]) for each in outputs])
        with torch.no_grad():
            distribution = member.likelihood.distribution(given, **member.latents(draw))
            found = [moment(distribution, name) for name in ("mean", "variance")]
        if found[0] is None or found[1] is None:
            return None
        mean, variance = (each.double().numpy() for each in found)  # type: ignore[union-attr]
        add_moments(sums, mean[None])
        add_to(sums, "noise", np.broadcast_to(variance, mean.shape)[None])
    count = sum(len(member.draws) for member in members)
    mean, between = moments(sums, count)
    return MomentsPrediction(mean, sums["noise"] / count, between, count)


@dataclass(frozen=True, eq=False)
class DrawnTargets:
    """Targets under each of S draws.

    :param log_likelihood: of each datum in nats, (S, N). :param draws: what each draw predicts, and
        :param variances: those of the targets, (S, N, ...), or None. :param y: targets (N, ...).
    :param kept: which of them count. :param weight: of each datum, or None.
    """

    kind: str
    log_likelihood: Tensor
    draws: Tensor | None
    variances: Tensor | None
    y: Tensor
    kept: Tensor
    weight: Any

    @classmethod
    def of(
        cls,
        members: Sequence[Member],
        outputs: Sequence[np.ndarray],
        returned: Returned,
        y: Any,
        weight: Any,
        mask: Any,
    ) -> DrawnTargets:
        """What the likelihood of each draw says of targets.

        :raises ValueError: for targets or a mask that do not fit, by the likelihood.
        """
        kind = members[0].head["kind"]
        rows, draws, variances, observed = [], [], [], None
        for place, (member, draw) in enumerate(places(members)):
            likelihood = require_likelihood([member])
            given = returned([_tensor(each[place]) for each in outputs])
            latents = member.latents(draw)
            with torch.no_grad():
                observed = likelihood.observed(given, y, mask, **latents)
                rows.append(likelihood.log_prob(given, y, mask, **latents).double())
                draws.append(predicted(kind, observed.distribution))
                spread = moment(observed.distribution, "variance") if kind == "normal" else None
                variances.append(spread)
        assert observed is not None
        stacked = (_stacked(draws), _stacked(variances))
        return cls(kind, torch.stack(rows), *stacked, observed.value, observed.counted(), weight)

    def scores(self, place: int | None = None) -> dict[str, float]:
        """The scores of the mean of the draws, or of one of them."""
        rows = slice(None) if place is None else slice(place, place + 1)
        draws = None if self.draws is None else self.draws[rows]
        variances = None if self.variances is None else self.variances[rows]
        log_likelihood = self.log_likelihood[rows]
        return draw_scores(
            self.kind, log_likelihood, draws, variances, self.y, self.kept, self.weight
        )


def summary(targets: DrawnTargets, of_mode: DrawnTargets) -> dict[str, Any]:
    """Scores of the mode, of the mean of the draws, and mean and spread of those of single draws."""
    mode, mean = of_mode.scores(), targets.scores()
    single = [targets.scores(place) for place in range(len(targets.log_likelihood))]
    names = [name for name in mean if all(name in row for row in single)]
    table = np.array([[row[name] for name in names] for row in single])
    low, high = np.quantile(table, _TAILS, axis=0)

    def named(values: np.ndarray) -> Mapping[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    return {
        "mode": mode,
        "mean": mean,
        "draws": {
            "mean": named(table.mean(0)),
            "std": named(table.std(0)),
            "low": named(low),
            "high": named(high),
        },
        "num_samples": len(single),
    }


def _tensor(array: np.ndarray) -> Tensor:
    found = torch.from_numpy(array)
    return found.double() if found.is_floating_point() else found


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    found = [each for each in values if each is not None]
    return torch.stack(found).double() if len(found) == len(values) else None
