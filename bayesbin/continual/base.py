"""What every learner of a sequence of tasks has in common: reports, scores, and files to resume from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.continual.checkpoints import folder_of, load_task, save_task
from bayesbin.continual.networks import MultiHead
from bayesbin.continual.normalization import Normalization
from bayesbin.continual.reports import TaskReport
from bayesbin.continual.tasks import Task
from bayesbin.diagnostics import scores
from bayesbin.posterior import BinaryPosterior
from bayesbin.posterior.summary import SummaryRow
from bayesbin.predict import PackedPredictive, Prediction, predict
from bayesbin.predict.program import steps_of

SCORES = ("accuracy", "nll", "ece")


class Learner(ABC):
    """Learns tasks one after another, and answers for each of those it has seen.

    A subclass says how it learns (:meth:`learn_task`), which network and posterior answer for a task
    (:meth:`predictive`), what its state is, and its settings.

    :param net: the network; None for a model without one, which can learn but not be scored.
    :param normalization: one of NORMALIZATIONS. :param num_samples: posterior draws per prediction, 0:
        the mode. :param seed: of training noise, order of the data and draws.
    :param checkpoint_dir: gets a file after each task. ``observe`` of a task that is there already
        restores its state instead: the same script, started again, continues where it was.
    :param progress: whether to show progress bars; None: where standard error is a terminal.
    """

    def __init__(
        self,
        net: nn.Module | None,
        *,
        normalization: str = "layer",
        num_samples: int = 32,
        seed: int = 0,
        checkpoint_dir: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        if not isinstance(num_samples, int) or num_samples < 0:
            raise ValueError(f"num_samples is at least 0 (0: the mode); got {num_samples!r}.")
        self.net, self.num_samples, self.seed, self.progress = net, num_samples, seed, progress
        self.normalization = Normalization(normalization, net or nn.Identity())
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.reports: list[TaskReport] = []
        self._packs = net is not None and _has_kernels(net)
        self._packed: tuple[Any, PackedPredictive] | None = None

    # What a learner is

    @abstractmethod
    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on a task; the history and what became of each site of signs.

        :param seed: of this task. :param folder: for checkpoints within it, if any.
        """

    @abstractmethod
    def predictive(self, task: Task) -> tuple[nn.Module, BinaryPosterior]:
        """The network and the posterior over its signs that answer for a task."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that learning has changed, but for the reports and the normalization."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on."""

    def at_rest(self) -> tuple[SummaryRow, ...]:
        """The rows of a report on a task without data: none, where there is no posterior."""
        return ()

    def remember(self, task: Task) -> None:  # noqa: B027  most learners keep no data
        """Told of each task that has been learned or restored."""

    # What it does

    def observe(self, task: Task) -> TaskReport:
        """Learn a task, the next one in the sequence; where it was learned before, restore that.

        A task without training data leaves everything as it is.

        :raises ValueError: for a head that the network does not have, or a checkpoint of other tasks
            or settings. :raises KeyboardInterrupt: after a checkpoint; the same call continues.
        """
        self._select(task)
        index, digest, folder = len(self.reports), task.fingerprint(), self.checkpoint_dir
        configuration = self._configuration(task, digest)
        if folder is not None and (saved := load_task(folder, index, configuration)) is not None:
            self.load_state_dict(saved)
            self.remember(task)
            return self.reports[-1]
        history: list[dict[str, Any]] = []
        layers = self.at_rest()
        if task.train is not None:
            word = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
            within = None if folder is None else folder_of(folder, index)
            history, layers = self.learn_task(task, word, within)
            self._changed()
            if self.normalization.keeps:
                net, posterior = self.answering(task)
                self.normalization.learned(
                    task.name, net, posterior, task.train.x, self.num_samples, self.seed
                )
        seconds = sum(row.get("seconds", 0.0) for row in history)
        self.reports.append(
            TaskReport(index, task.name, digest, task.size, history, layers, seconds)
        )
        self.remember(task)
        if folder is not None:
            save_task(folder, index, self.state_dict(), configuration)
        return self.reports[-1]

    def predict(self, x: Tensor, task: Task) -> Prediction:
        """The prediction for inputs (B, ...) of a task, averaged over draws of the learner's seed.

        Of the task, its head counts, and under normalisation per task its name.

        :raises ValueError: for a model without a network, or a head that the network does not have.
        """
        net, posterior = self.answering(task)
        statistics = self.normalization.statistics(
            task.name, net, posterior, x, self.num_samples, self.seed
        )
        with torch.no_grad():
            if not self._packs or x.is_cuda:
                return predict(net, posterior, x, self.num_samples, self.seed, statistics)
            key = (net, posterior, statistics)
            if self._packed is None or any(
                a is not b for a, b in zip(key, self._packed[0], strict=True)
            ):
                self._packed = (
                    key,
                    PackedPredictive(
                        net, posterior, self.num_samples, self.seed, statistics=statistics
                    ),
                )
            prediction = self._packed[1].predict(x)
            assert isinstance(prediction, Prediction)
            return prediction

    def evaluate(self, tasks: Iterable[Task]) -> dict[str, np.ndarray]:
        """Test scores of each task, one array over tasks per score: accuracy, nll (nats), ece."""
        rows = [scores(self.predict(task.test.x, task).log_probs, task.test.y) for task in tasks]
        return {name: np.array([row[name] for row in rows]) for name in SCORES}

    def answering(self, task: Task) -> tuple[nn.Module, BinaryPosterior]:
        """The network, with the task's head selected, and the posterior that answer for a task."""
        if self.net is None:
            raise ValueError(
                "expected a Classifier, whose network predicts; got a model of another kind, which "
                "can be trained on tasks but not be scored."
            )
        self._select(task)
        net, posterior = self.predictive(task)
        if isinstance(net, MultiHead) and task.head is not None:
            net.select(task.head)
        return net, posterior

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in containers of tensors and numbers, by value."""
        return {
            "reports": [report.to_dict() for report in self.reports],
            "normalization": self.normalization.state_dict(),
            "state": _by_value(self.state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state that :meth:`state_dict` gave, of a learner made in the same way."""
        self.reports = [TaskReport.from_dict(report) for report in state["reports"]]
        self.normalization.load_state_dict(state["normalization"])
        self.restore(_by_value(state["state"]))
        self._changed()

    def _changed(self) -> None:
        self._packed = None

    def _configuration(self, task: Task, digest: str) -> dict[str, str]:
        done = [(report.name, report.digest) for report in self.reports]
        tasks = [*done, (task.name, digest)]
        return {
            "learner": type(self).__name__,
            "seed": str(self.seed),
            "draws": str(self.num_samples),
            "normalization": self.normalization.kind,
            **self.settings(),
            **{f"task {i + 1}": f"{name} ({text[:12]})" for i, (name, text) in enumerate(tasks)},
        }

    def _select(self, task: Task) -> None:
        if isinstance(self.net, MultiHead):
            if task.head is None:
                raise ValueError(
                    f"expected a task with a head, for a network of {len(self.net.heads)}; got "
                    f"{task.name!r} without one."
                )
            self.net.select(task.head)
        elif task.head is not None and self.net is not None:
            raise ValueError(
                f"expected a MultiHead network for {task.name!r}, which has a head; got "
                f"{type(self.net).__name__}. Build one with continual_network(..., heads=...)."
            )


def _has_kernels(net: nn.Module) -> bool:
    try:
        steps_of(net)
    except ValueError:
        return False
    return True


def _by_value(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _by_value(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_by_value(value) for value in state]
    return state
