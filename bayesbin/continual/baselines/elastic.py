"""Online elastic weight consolidation, on real weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from bayesbin.continual.baselines.points import PointLearner, split_settings
from bayesbin.continual.tasks import Task
from bayesbin.core import networks
from bayesbin.core.checks import is_number, real_number, shown, whole_number
from bayesbin.data import Dataset
from bayesbin.estimators import StraightThrough
from bayesbin.guides.base import Read, SignGuide
from bayesbin.nn import Likelihood, binary_sites
from bayesbin.optim import TrainingGroup
from bayesbin.optim.assembly import weight_optimizers
from bayesbin.posterior import Posterior
from bayesbin.posterior.summary import SummaryRow
from bayesbin.recipes import Ingredients, Method, Parts

_CHUNK = 100  # gradients of single data held at a time


class RealWeights(SignGuide):
    """A guide with one real weight in place of each scaled sign, without spread.

    :param model: a likelihood around a network with binary weights.
    :param options: of every guide. The weights start uniform in +- the scale of their signs.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        # Before torch's constructor, in which the sites are built.
        sites = binary_sites(model.net).values()
        vars(self).update(_scales={site.name: site.scale for site in sites})
        super().__init__(model, **options)

    def insert_natural(self, name: str, start: Tensor, *, random: bool) -> None:
        weight = self._scale(name) * (2.0 * torch.rand_like(start) - 1.0)
        self._tree("natural").insert(name, nn.Parameter(weight))

    def natural_parameters(self) -> Iterator[nn.Parameter]:
        """None: these are weights."""
        return iter(())

    def training_groups(self) -> Iterator[TrainingGroup]:
        """All by Adam."""
        yield TrainingGroup(tuple(self.parameters()), "adam", "weights")

    @property
    def is_point(self) -> bool:
        return True

    def values_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as what stands in the place of signs: the network multiplies them by its scale."""
        return {name: weight / self._scale(name) for name, weight in weights.items()}

    def natural_of(self, name: str, read: Read | None = None) -> Tensor:
        """What stands in the place of the signs of one site."""
        return self.values_of({name: super().natural_of(name, read)})[name]

    def sign_distribution(self, natural: Tensor) -> Any:
        return dist.Delta(natural)

    def weights(self) -> dict[str, nn.Parameter]:
        """The real weights by site."""
        names = [name for name, site in self.sites.items() if site.is_binary]
        return {name: self._parameter("natural", name) for name in names}

    def posterior(self) -> Any:
        """The weights as a posterior that has one draw."""
        found = self.values_of({name: w.detach().clone() for name, w in self.weights().items()})
        return RealWeightsPosterior(found, self.real_posterior())

    def _scale(self, name: str) -> Any:
        return vars(self)["_scales"][name]


class RealWeightsPosterior(Posterior[dist.Delta]):
    """Stands for a posterior where every draw is the same, of real weights in place of signs."""

    _entry = "weights"

    def __init__(self, values: Mapping[str, Tensor], real: Mapping[str, Any]) -> None:
        self.values_of_sites, self.real, self.effects = dict(values), dict(real), {}

    def __getitem__(self, site: str) -> dist.Delta:
        return dist.Delta(self.values_of_sites[site])

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of_sites)

    def __len__(self) -> int:
        return len(self.values_of_sites)

    @property
    def kind(self) -> str:
        """What one would call the weights."""
        return "real-weights"

    @property
    def num_weights(self) -> int:
        """The number of weights."""
        return sum(value.numel() for value in self.values_of_sites.values())

    def signs(self, index: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """The weights, the same in every draw."""
        return dict(self.values_of_sites)

    def to(self, device: Any) -> Self:
        """The same on another device."""
        moved = {name: value.to(device) for name, value in self.values_of_sites.items()}
        return type(self)(moved, {name: each.to(device) for name, each in self.real.items()})

    def kl(self, prior: Any = None) -> dict[str, Tensor]:
        """There is none: a point has no density."""
        raise ValueError("Real weights without spread have no KL to a prior.")

    def _summary_row(self, site: str, kl: Tensor) -> SummaryRow:
        raise ValueError("Real weights without spread have no summary.")

    def _bits(self) -> int:
        return 32

    def _contents_of_weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"weights.{n}": v for n, v in self.values_of_sites.items()}, {
            self._entry: list(self)
        }

    @classmethod
    def _from_contents(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any], real: Mapping[str, Any]
    ) -> Self:
        return cls({name: tensors[f"weights.{name}"] for name in header[cls._entry]}, real)


class _Penalised(nn.Module):
    """A model whose log joint has the penalty subtracted."""

    def __init__(self, model: nn.Module, penalty: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.penalty = model, penalty

    def forward(self, *args: Any) -> Any:
        answer = self.model(*args)
        if args:
            pyro.factor("elastic penalty", -self.penalty())
        return answer


def _build(given: Ingredients) -> Parts:
    guide = RealWeights(given.model)
    made = weight_optimizers(list(guide.training_groups()), "adam", lr=given.settings["lr"])
    return Parts(guide, StraightThrough(noise=False), made)


METHOD = Method(
    _build,
    {"lr": 1e-3, "real_lr": 1e-3},
    "Kirkpatrick et al. 2017, arXiv 1612.00796; Schwarz et al. 2018, arXiv 1805.06370",
    shared=("real_lr", "schedule"),
)


class OnlineEWC(PointLearner):
    r"""Real weights, drawn to where they were by a quadratic penalty with the Fisher information.

    .. math::
        L_t(\theta) = -\sum_{n} \log p(y_n | x_n, \theta)
            + \tfrac{\alpha}{2} \sum_k \Omega_k (\theta_k - \theta^*_k)^2, \qquad
        \Omega \leftarrow \gamma\, \Omega + N_t\, E_{n,\, y \sim p(\cdot | x_n)}
            \big[ (\partial_k \log p(y | x_n))^2 \big]

    in nats over the task's data; theta* are the weights after the last task. alpha = gamma = 1 is the
    Laplace approximation of Bayes' rule over tasks. The network is that of the learners of signs, with a
    real weight in place of each scaled sign.

    :param model: a ``Classifier`` or ``Regressor``. The noise of a Regressor, where it is learned, has no
        penalty.
    :param strength: alpha, at least 0. :param decay: gamma, in [0, 1].
    :param fisher_data: how many data of a task Omega is estimated from; with batch normalisation these
        share running statistics.
    :param epochs: passes over each task. :param batch_size: of its minibatches.
    :param settings: of the method, also as keywords: ``lr`` of Adam for the weights (0.001),
        ``real_lr`` for the real parameters of the network (0.001), and ``schedule``.
    :param normalization: and num_samples, seed, checkpoint_dir and progress, as :class:`Learner`.
    :raises ValueError: for another model, settings out of range, or one that has no meaning here.

    >>> from bayesbin.continual import continual_network
    >>> from bayesbin.nn import Classifier
    >>> learner = OnlineEWC(Classifier(continual_network(4, (8,), 2), dataset_size=1), strength=10.0)
    >>> learner.penalty().item()
    0.0

    Source: Kirkpatrick et al. 2017, arXiv 1612.00796; Schwarz et al. 2018, arXiv 1805.06370 (online).
    """

    guide: RealWeights
    net: nn.Module

    def __init__(
        self,
        model: Any,
        *,
        strength: float = 1.0,
        decay: float = 1.0,
        fisher_data: int = 1000,
        epochs: int = 10,
        batch_size: int = 100,
        settings: Mapping[str, Any] | None = None,
        normalization: str = "layer",
        num_samples: int = 32,
        seed: int = 0,
        checkpoint_dir: str | PathLike[str] | None = None,
        progress: bool | None = None,
        **overrides: Any,
    ) -> None:
        head = model.prediction_head if isinstance(model, Likelihood) else {}
        known = head == {"kind": "classes"} or (head.get("kind") == "normal" and "noise" in head)
        if head and not known:
            raise ValueError(
                "expected a Classifier of one label for each input, or a Regressor with one noise, whose "
                f"Fisher information OnlineEWC knows; got {type(model).__name__} of head {shown(head)}."
            )
        super().__init__(
            model,
            "online-ewc",
            METHOD,
            split_settings(settings, overrides, type(self).__name__, METHOD.all_settings()),
            epochs=epochs,
            batch_size=batch_size,
            normalization=normalization,
            num_samples=num_samples,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            progress=progress,
        )
        self.strength = real_number("strength", strength, at_least=0.0)
        self.decay = real_number("decay", decay, at_least=0.0, at_most=1.0)
        self.fisher_data = whole_number("fisher_data", fisher_data, at_least=1)
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.grown()

    def weights(self) -> dict[str, nn.Parameter]:
        """All that is learned, by its name in the network, but for the noise of a Regressor."""
        return self._weights(self.guide)

    def _weights(self, guide: RealWeights) -> dict[str, nn.Parameter]:
        return {**guide.weights(), **dict(self.net.named_parameters())}

    def grown(self) -> None:
        """Give the weights of a new head their own start, which nothing holds them to."""
        super().grown()
        for name, weight in self.weights().items():
            if name not in self.anchor:
                self.importance[name] = torch.zeros_like(weight)
                self.anchor[name] = weight.detach().clone()

    def penalty(self) -> Tensor:
        """The quadratic term, in nats over the data set, with a live graph."""
        return self._penalty(self.weights())

    def _penalty(self, weights: Mapping[str, Tensor]) -> Tensor:
        terms = [
            (self.importance[name] * (weight - self.anchor[name]).square()).sum()
            for name, weight in weights.items()
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def fisher(self, x: Tensor, seed: int) -> dict[str, Tensor]:
        """The diagonal Fisher information of one datum, averaged over x, targets drawn from the network."""
        weights = {name: weight.detach() for name, weight in self.weights().items()}
        sites = self.guide.weights().keys()
        noise = self._noise()

        def outputs(values: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            signs = self.guide.values_of({name: values[name] for name in sites})
            real = {name: value for name, value in values.items() if name not in sites}
            return networks.call(self.net, signs, inputs, real)

        def log_prob(values: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
            found = outputs(values, one[None])
            if self.kind == "classification":
                return -F.cross_entropy(found, target[None])
            return -0.5 * ((found.reshape(()) - target) / noise).square()

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            found = torch.cat([outputs(weights, part) for part in x.split(1000)]).cpu()
        if self.kind == "classification":
            targets = torch.multinomial(found.softmax(-1), 1, generator=generator)[:, 0]
        else:
            means = found.reshape(len(x))
            draws = torch.randn(means.shape, generator=generator, dtype=means.dtype)
            targets = means + noise * draws
        per_datum = vmap(grad(log_prob), in_dims=(None, 0, 0))
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for piece, answers in zip(x.split(_CHUNK), targets.to(x.device).split(_CHUNK), strict=True):
            for name, gradient in per_datum(weights, piece, answers).items():
                total[name] += gradient.square().sum(0)
        return {name: value / len(x) for name, value in total.items()}

    def _noise(self) -> float:
        noise = getattr(self.model, "noise", 1.0)
        if is_number(noise):
            return float(noise)
        return float(self.guide.real_posterior()["noise"].at(0.0))

    def task_model(self, guide: Any) -> nn.Module:
        """The model to train a guide with on a task, with the penalty on its weights."""
        return _Penalised(super().task_model(guide), lambda: self._penalty(self._weights(guide)))

    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on one task, then update importance and anchor; see :meth:`Learner.learn_task`."""
        assert task.train is not None
        history, rows = super().learn_task(task, seed, folder)
        self._consolidate(task.train, seed)
        return history, rows

    def _consolidate(self, data: Dataset, seed: int) -> None:
        size = len(data.x)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        device = next(iter(self.weights().values())).device
        chosen = data.x[order[: self.fisher_data].to(data.x.device)].to(device)
        modes = {part: part.training for part in self.net.modules()}
        self.net.eval()
        for name, fisher in self.fisher(chosen, seed).items():
            self.importance[name] = self.decay * self.importance[name] + size * fisher
        for part, training in modes.items():
            part.training = training
        self.anchor = {name: w.detach().clone() for name, w in self.weights().items()}

    def state(self) -> dict[str, Any]:
        """Weights, importance and anchor."""
        return {**super().state(), "importance": self.importance, "anchor": self.anchor}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        super().restore(state)
        self.importance, self.anchor = dict(state["importance"]), dict(state["anchor"])

    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""
        names = ("strength", "decay", "fisher_data")
        return super().settings() | {name: str(getattr(self, name)) for name in names}
