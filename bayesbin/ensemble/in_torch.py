"""Ensembles in torch, for networks that do not compile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from bayesbin.compile import streaming
from bayesbin.compile.streaming import ExactDecisions
from bayesbin.core import networks
from bayesbin.core.copies import copy_network
from bayesbin.ensemble.members import Draw, Member
from bayesbin.nn.batch_statistics import batch_statistics

Batches = Sequence[tuple[Tensor, ...]]


def statistics_of_draws(
    member: Member, draws: Sequence[Draw], batches: Batches
) -> Iterator[tuple[Draw, Mapping[str, Tensor]]]:
    """The statistics of batch normalisation of one draw after another, by the data."""
    worker = copy_network(member.net)
    for draw in draws:
        networks.write_(worker, member.weights(draw))
        with ExactDecisions():
            found = batch_statistics(worker, batches)
        yield draw, found


def draw_outputs(member: Member, batches: Batches) -> Iterator[list[Tensor]]:
    """All outputs of the network for all rows, draw after draw."""
    draws = ((member.weights(draw), member.state(draw)) for draw in member.draws)
    return streaming.outputs(member.net, draws, batches, seed=member.seed)
