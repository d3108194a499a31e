"""Binary weights as signs of latent real ones, trained through the sign; plain, or metaplastic."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from bayesbin.continual.baselines.metaplastic import MetaplasticAdam
from bayesbin.continual.baselines.points import PointLearner, split_settings
from bayesbin.estimators import StraightThrough
from bayesbin.guides import AutoSignDelta
from bayesbin.optim import training_groups
from bayesbin.recipes import Ingredients, Method, Parts


def _build(given: Ingredients) -> Parts:
    guide = AutoSignDelta(given.model, **given.guide_options())
    latents = [
        parameter
        for group in training_groups(guide)
        if group.role == "latents"
        for parameter in group.trainable
    ]
    optimizer = MetaplasticAdam(
        latents, lr=given.settings["lr"], metaplasticity=given.settings["metaplasticity"]
    )
    return Parts(guide, StraightThrough(noise=False), [optimizer])


METHOD = Method(
    _build,
    {"lr": 5e-3, "real_lr": 5e-3, "metaplasticity": 0.0, "init_scale": 0.1},
    "Courbariaux, Bengio and David 2015, arXiv 1511.00363; Laborieux et al. 2021, arXiv 2003.03533",
)


class StraightThroughLearner(PointLearner):
    r"""STE + Adam, and the metaplastic binary network: one latent weight per sign, no posterior.

    .. math:: w = \mathrm{sign}(W), \qquad \frac{\partial L}{\partial W} := \frac{\partial L}{\partial w}

    :param model: a ``Classifier`` or ``Regressor`` with binary weights.
    :param epochs: passes over each task. :param batch_size: of its minibatches.
    :param settings: of the method, also as keywords: ``metaplasticity`` (0 is STE + Adam, the baseline
        without memory; 1.35 is the published value for permuted MNIST), ``lr`` of
        :class:`MetaplasticAdam` (0.005), ``real_lr`` of Adam for real parameters (0.005), ``init_scale``,
        the standard deviation of the first latent weights (0.1), and ``schedule``.
    :param normalization: and num_samples, seed, checkpoint_dir and progress, as :class:`Learner`.
    :raises ValueError: for another model, settings out of range, or one that has no meaning here.

    >>> from bayesbin.continual import continual_network
    >>> from bayesbin.nn import Classifier
    >>> model = Classifier(continual_network(4, (8,), 2), dataset_size=1)
    >>> StraightThroughLearner(model, metaplasticity=1.35).kind
    'classification'

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363; Laborieux et al. 2021, arXiv 2003.03533.
    """

    def __init__(
        self,
        model: Any,
        *,
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
        super().__init__(
            model,
            "straight-through",
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

    @property
    def latent(self) -> dict[str, nn.Parameter]:
        """The latent weights by site."""
        guide = self.guide
        return {name: guide.natural_of(name) for name, s in guide.sites.items() if s.is_binary}
