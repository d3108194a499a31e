"""What learners of a single network have in common: a recipe, ``fit``, and no prior that remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bayesbin.continual.base import Learner
from bayesbin.continual.task_model import TaskModel
from bayesbin.continual.tasks import Task
from bayesbin.continual.training import Training
from bayesbin.posterior.summary import SummaryRow
from bayesbin.recipes.base import Method


class PointLearner(Learner):
    """A learner of one network, trained by a method of its own.

    :param name: of the method, for messages. :param method: as a recipe has it.
    :param overrides: of the method's settings.
    :param settings: of :class:`Learner`.
    :raises ValueError: for a model without a network, or a setting that the method does not have.
    """

    def __init__(
        self, model: Any, name: str, method: Method, overrides: Mapping[str, Any], **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        if self.net is None:
            raise ValueError(
                f"expected a likelihood around a network, such as a Classifier or a Regressor, for "
                f"{type(self).__name__}; got {type(model).__name__}."
            )
        self._training = Training(name, method, dict(overrides), self.batch_size, kl_weight=0.0)
        self.guide = self._training.assembled(model, None, 1, self.epochs, self.seed).guide
        self._answer = self.guide.posterior()
        self._described = self._training.describe(model, self.guide)

    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on one task; see :meth:`Learner.learn_task`."""
        assert task.train is not None
        self.guide, history = self._training.run(
            self.model, self.guide, self.task_model, [(task.train, task.head)],
            epochs=self.epochs, seed=seed, folder=folder, progress=self.progress,
        )  # fmt: skip
        return history, ()

    def task_model(self, guide: Any) -> nn.Module:
        """The model to train a guide with on a task."""
        return TaskModel(self.model, {}, {})

    def grown(self) -> None:
        """Give the weights of a new head their own start."""
        made = self._training.assembled(self.model, self.guide, 1, self.epochs, self.seed)
        self.guide = made.guide

    def predictive(self, task: Task) -> tuple[nn.Module, Any]:
        """The network, and the single set of weights as a posterior."""
        assert self.net is not None
        return self.net, self._answer

    def _changed(self) -> None:
        super()._changed()
        self._answer = self.guide.posterior()

    def state(self) -> dict[str, Any]:
        """The weights, and the network's own state."""
        return {"guide": self.guide.state_dict(), "model": self.model.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.guide.load_state_dict(state["guide"])
        self.model.load_state_dict(state["model"])

    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""
        return self._described


def split_settings(
    settings: Mapping[str, Any] | None, keywords: Mapping[str, Any], who: str, takes: Any
) -> dict[str, Any]:
    """The settings of a method from a mapping and keywords; an error that names what it has no use for."""
    given = dict(settings or {}) | dict(keywords)
    if unknown := [key for key in given if key not in takes]:
        raise ValueError(
            f"expected settings of {who}, {', '.join(takes)}; got {', '.join(unknown)}, which it has no use "
            "for."
        )
    return given
