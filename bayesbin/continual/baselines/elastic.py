"""Online elastic weight consolidation, on real weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from bayesbin.continual.base import Learner
from bayesbin.continual.baselines.loop import minibatch_training
from bayesbin.continual.tasks import Task
from bayesbin.data import Batches
from bayesbin.nn import binary_sites
from bayesbin.posterior.summary import SummaryRow

_CHUNK = 100  # gradients of single data held at a time


class OnlineEWC(Learner):
    r"""Real weights, drawn to where they were by a quadratic penalty with the Fisher information.

    .. math::
        L_t(\theta) = -\sum_{n} \log p(y_n | x_n, \theta)
            + \tfrac{\alpha}{2} \sum_k \Omega_k (\theta_k - \theta^*_k)^2, \qquad
        \Omega \leftarrow \gamma\, \Omega + N_t\, E_{n,\, y \sim p(\cdot | x_n)}
            \big[ (\partial_k \log p(y | x_n))^2 \big]

    in nats over the task's data; theta* are the weights after the last task. alpha = gamma = 1 is the
    Laplace approximation of Bayes' rule over tasks.

    :param net: with real weights, such as ``continual_network(..., binary=False)``.
    :param strength: alpha, at least 0. :param decay: gamma, in [0, 1].
    :param lr: of Adam. :param fisher_data: how many data of a task Omega is estimated from; with batch
        normalisation these share running statistics.
    :param epochs: of each task. :param batch_size: of its minibatches.
    :param settings: normalization, seed, checkpoint_dir and progress, as :class:`Learner`; an
        interrupted task is learned anew.
    :raises ValueError: for settings out of range, or a network with binary weights.

    Source: Kirkpatrick et al. 2017, arXiv 1612.00796; Schwarz et al. 2018, arXiv 1805.06370 (online).
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        strength: float = 1.0,
        decay: float = 1.0,
        lr: float = 1e-3,
        fisher_data: int = 1000,
        epochs: int = 10,
        batch_size: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(net, num_samples=0, **settings)
        if not strength >= 0 or not 0 <= decay <= 1 or fisher_data < 1:
            raise ValueError(
                f"expected a strength of at least 0, a decay in [0, 1] and some fisher_data; got "
                f"{strength}, {decay} and {fisher_data}."
            )
        if binary_sites(net):
            raise ValueError("expected a network of real weights; this one has binary ones.")
        self.network, self.strength, self.decay, self.lr = net, strength, decay, lr
        self.fisher_data, self.epochs, self.batch_size = fisher_data, epochs, batch_size
        self._packs = False  # the kernels are for binary weights
        self.importance = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
        self.anchor = {n: p.detach().clone() for n, p in net.named_parameters()}

    def penalty(self) -> Tensor:
        """The quadratic term, in nats over the data set, with a live graph."""
        terms = [
            (self.importance[name] * (p - self.anchor[name]).square()).sum()
            for name, p in self.network.named_parameters()
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def fisher(self, x: Tensor, seed: int) -> dict[str, Tensor]:
        """The diagonal Fisher information of one datum, averaged over x, labels drawn from the network."""
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        buffers = dict(self.network.named_buffers())

        def log_prob(values: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(self.network, (values, buffers), (one[None],))
            return -F.cross_entropy(logits, label[None])

        per_datum = vmap(grad(log_prob), in_dims=(None, 0, 0))
        with torch.no_grad():
            probs = torch.cat([self.network(part) for part in x.split(1000)]).softmax(-1).cpu()
        generator = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(probs, 1, generator=generator)[:, 0].to(x.device)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for piece, answers in zip(x.split(_CHUNK), labels.split(_CHUNK), strict=True):
            for name, gradient in per_datum(parameters, piece, answers).items():
                total[name] += gradient.square().sum(0)
        return {name: value / len(x) for name, value in total.items()}

    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on one task, then update importance and anchor; see :meth:`Learner.learn_task`."""
        assert task.train is not None
        data, size = task.train, len(task.train.x)
        device = next(self.network.parameters()).device

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.network(x), y) + self.penalty() / size

        self.network.train()
        history = minibatch_training(
            loss, torch.optim.Adam(self.network.parameters(), lr=self.lr),
            Batches((data.x, data.y), self.batch_size), device,
            epochs=self.epochs, seed=seed, progress=self.progress,
        )  # fmt: skip
        self.network.eval()
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        chosen = data.x[order[: self.fisher_data].to(data.x.device)].to(device)
        for name, fisher in self.fisher(chosen, seed).items():
            self.importance[name] = self.decay * self.importance[name] + size * fisher
        self.anchor = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        return history, ()

    def predictive(self, task: Task) -> tuple[nn.Module, Any]:
        """The network, and no signs to write into it."""
        return self.network, NO_SIGNS

    def state(self) -> dict[str, Any]:
        """Weights, importance and anchor."""
        network = dict(self.network.state_dict())
        return {"network": network, "importance": self.importance, "anchor": self.anchor}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.network.load_state_dict(state["network"])
        self.importance, self.anchor = dict(state["importance"]), dict(state["anchor"])

    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""
        names = ("strength", "decay", "lr", "fisher_data", "epochs", "batch_size")
        return {name: str(getattr(self, name)) for name in names}


class _NoSigns:
    """Stands for a posterior where there is nothing binary."""

    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        return {}


NO_SIGNS = _NoSigns()
