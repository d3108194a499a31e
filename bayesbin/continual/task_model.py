"""A model whose latent sites have other priors than it says: the snapshot of a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from bayesbin.continual.answers import network_of
from bayesbin.continual.networks import MultiHead
from bayesbin.core.turns import in_turn
from bayesbin.distributions import SignBernoulli, unconstrained_normal
from bayesbin.distributions.wrappers import sign_distribution
from bayesbin.guides.prototype import run_once
from bayesbin.posterior import RealPosterior


class TaskModel(nn.Module):
    """A model with snapshots as priors: what one task is trained with.

    Each snapshot is a copy, held in a buffer: training in place cannot move it, and checkpoints contain
    it. Of a :class:`MultiHead` network the sites of the other heads are masked out of the loss.

    :param model: any Pyro model. A ``Classifier`` or ``Regressor`` is told ``dataset_size``; any other
        model scales its likelihood itself.
    :param signs: natural parameters of the new prior, by site. :param real: the new prior of
        real-valued sites. Sites that neither names keep the model's own prior.

    ``dataset_size``, N, and ``per_step`` are set by who trains: if the latter is a number, N is that
    many times the size of each batch.
    """

    steps: Tensor
    dataset_size: int = 1
    per_step: int | None = None

    def __init__(
        self,
        model: Any,
        signs: Mapping[str, Tensor],
        real: Mapping[str, RealPosterior],
    ) -> None:
        super().__init__()
        self.model = model
        self._signs, self._real = (
            tuple(signs),
            {name: distribution.support for name, distribution in real.items()},
        )
        for i, natural in enumerate(signs.values()):
            self.register_buffer(f"natural_{i}", natural.detach().clone())
        for i, distribution in enumerate(real.values()):
            self.register_buffer(f"loc_{i}", distribution.loc.detach().clone())
            self.register_buffer(f"scale_{i}", distribution.scale.detach().clone())
        # Counts optimizer steps for boundaries within a task; a buffer, so that a resume knows it.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def scales_by_step(self) -> bool:
        """Whether N depends on the batch."""
        return self.per_step is not None

    def priors(self) -> dict[str, Tensor]:
        """The natural parameters of the priors, by site: the buffers themselves."""
        return {name: self.get_buffer(f"natural_{i}") for i, name in enumerate(self._signs)}

    @torch.no_grad()
    def set_priors_(self, signs: Mapping[str, Tensor]) -> None:
        """Replace the priors of the signs by others, by value."""
        for name, buffer in self.priors().items():
            buffer.copy_(signs[name])

    def forward(self, *args: Any, head: int | None = None) -> Any:
        """The model at a batch (x, y), or (x, y, head), or at none."""
        *batch, head = args if len(args) == 3 else (*args, head)
        net = network_of(self.model)
        if isinstance(net, MultiHead) and head is not None:
            net.select(head)
        if net is not None:
            size = self.dataset_size
            if self.per_step is not None and batch:
                size = self.per_step * len(batch[0])
            self.model.dataset_size = size
        idle = net.idle_sites() if isinstance(net, MultiHead) else frozenset()
        with _Priors(self.priors(), self._real_priors(), idle):
            return self.model(*batch)

    def _real_priors(self) -> dict[str, RealPosterior]:
        return {
            name: RealPosterior(self.get_buffer(f"loc_{i}"), self.get_buffer(f"scale_{i}"), support)
            for i, (name, support) in enumerate(self._real.items())
        }


class _Priors(Messenger):
    """Answers the sample statements of latent sites with other distributions than theirs."""

    def __init__(
        self,
        signs: Mapping[str, Tensor],
        real: Mapping[str, RealPosterior],
        idle: frozenset[str],
    ) -> None:
        super().__init__()
        self.signs, self.real, self.idle = signs, real, idle

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["is_observed"]:
            return
        if name in self.idle:
            msg["mask"] = False
        if name not in self.signs.keys() | self.real.keys():
            return
        old = msg["fn"]
        if name in self.signs:
            distribution: Any = SignBernoulli(natural=self.signs[name], validate_args=False)
            distribution = distribution.to_event(old.event_dim)
        else:
            site = self.real[name]
            distribution = unconstrained_normal(site.loc, site.scale, site.support, old.event_dim)
        if distribution.shape() != old.shape():
            raise ValueError(
                f"At {name!r} the guide has shape {tuple(distribution.shape())} and the model "
                f"{tuple(old.shape())}; build the guide from this model."
            )
        msg["fn"] = distribution


def own_priors(
    model: Any, sites: Mapping[str, Tensor], batch: tuple[Any, ...]
) -> dict[str, Tensor]:
    """The natural parameters of the priors that a model itself gives its sites of signs.

    :param sites: a tensor of each site's shape. :param batch: data to run the model with once.
    """
    with in_turn(), torch.random.fork_rng():
        nodes = run_once(model, batch, {}).nodes
    result = {}
    for name, like in sites.items():
        distribution = sign_distribution(nodes[name]["fn"])
        assert distribution is not None
        result[name] = distribution.natural.detach().expand(like.shape).clone()
    return result
