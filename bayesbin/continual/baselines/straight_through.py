"""Binary weights as signs of latent real ones, trained through the sign; plain, or metaplastic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin.continual.base import Learner
from bayesbin.continual.baselines.loop import minibatch_training
from bayesbin.continual.baselines.metaplastic import MetaplasticAdam
from bayesbin.continual.tasks import Task
from bayesbin.core import networks
from bayesbin.core.numerics import sign_of
from bayesbin.data import Batches
from bayesbin.nn import binary_sites
from bayesbin.posterior import BinaryPosterior
from bayesbin.posterior.summary import SummaryRow


class StraightThroughLearner(Learner):
    r"""STE + Adam, and the metaplastic binary network: one latent weight per sign, no posterior.

    .. math:: w = \mathrm{sign}(W), \qquad \frac{\partial L}{\partial W} := \frac{\partial L}{\partial w}

    :param net: a network with binary weights. :param lr: of :class:`MetaplasticAdam`, for everything.
    :param metaplasticity: 0 is STE + Adam, the baseline without memory; 1.35 is the published value
        for permuted MNIST. :param init_scale: latent weights start uniform in +- this, from ``seed``.
    :param epochs: of each task. :param batch_size: of its minibatches.
    :param settings: normalization, seed, checkpoint_dir and progress, as :class:`Learner`; an
        interrupted task is learned anew.
    :raises ValueError: for a network without binary weights, or settings out of range.

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363; Laborieux et al. 2021, arXiv 2003.03533.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        lr: float = 5e-3,
        metaplasticity: float = 0.0,
        init_scale: float = 0.1,
        epochs: int = 10,
        batch_size: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(net, num_samples=0, **settings)
        sites = binary_sites(net)
        if not sites:
            raise ValueError("expected a network with binary weights; convert it with to_binary_.")
        self.network, self.epochs, self.batch_size = net, epochs, batch_size
        self.lr, self.metaplasticity = lr, metaplasticity
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.latent = {
                name: nn.Parameter(
                    torch.empty_like(site.signs, device="cpu")
                    .uniform_(-init_scale, init_scale)
                    .to(site.signs.device)
                )
                for name, site in sites.items()
            }
        self._optimizer()  # refuses what is out of range, now

    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on one task; see :meth:`Learner.learn_task`."""
        assert task.train is not None
        batches = Batches((task.train.x, task.train.y), self.batch_size)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            signs = {
                name: latent + (sign_of(latent.detach()) - latent.detach())
                for name, latent in self.latent.items()
            }
            return F.cross_entropy(networks.call(self.network, signs, x), y)

        self.network.train()
        history = minibatch_training(
            loss, self._optimizer(), batches, next(iter(self.latent.values())).device,
            epochs=self.epochs, seed=seed, progress=self.progress,
        )  # fmt: skip
        self.network.eval()
        return history, ()

    def predictive(self, task: Task) -> tuple[nn.Module, BinaryPosterior]:
        """The network, and a posterior whose mode is the signs; only its mode is used."""
        return self.network, self._as_posterior()

    def _as_posterior(self) -> BinaryPosterior:
        return BinaryPosterior({name: latent.detach() for name, latent in self.latent.items()})

    def _optimizer(self) -> MetaplasticAdam:
        """A new one for each task: real parameters are not metaplastic."""
        real = [p for p in self.network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(self.latent.values())}]
        groups += [{"params": real, "metaplasticity": 0.0}] if real else []
        return MetaplasticAdam(groups, lr=self.lr, metaplasticity=self.metaplasticity)

    def state(self) -> dict[str, Any]:
        """Latent weights, and the network's own state."""
        latent = {name: parameter.detach() for name, parameter in self.latent.items()}
        return {"latent": latent, "network": dict(self.network.state_dict())}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        for name, parameter in self.latent.items():
            parameter.copy_(state["latent"][name])
        self.network.load_state_dict(state["network"])

    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""
        names = ("lr", "metaplasticity", "epochs", "batch_size")
        return {name: str(getattr(self, name)) for name in names}
