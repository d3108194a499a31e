"""What every learner of a sequence of tasks has in common: labels, heads, reports, scores, and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.continual.answers import (
    SCORES,
    ensemble_of,
    kind_of,
    network_of,
    scores_of,
)
from bayesbin.continual.checkpoints import folder_of, load_task, save_task
from bayesbin.continual.networks import GrowingHead, MultiHead
from bayesbin.continual.normalization import Normalization
from bayesbin.continual.reports import TaskReport
from bayesbin.continual.task_data import listed
from bayesbin.continual.tasks import Task
from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import shown, true_or_false, whole_number
from bayesbin.core.files import one_writer
from bayesbin.ensemble import Ensemble
from bayesbin.guides.prototype import normalisation_kept
from bayesbin.posterior.summary import SummaryRow


class Learner(ABC):
    """Learns tasks one after another, and answers for each of those it has seen.

    A subclass says how it learns (:meth:`learn_task`), which network and posterior answer for a task
    (:meth:`predictive`), what its state is, and its settings.

    Labels of a task that does not say itself which output stands for which are counted in the order in
    which they come, for each head by itself. Where a task is the first one for its head, the network gets
    that head; a :class:`GrowingHead` gets outputs for new labels.

    :param model: a likelihood of one label or number for each input, such as a ``Classifier`` or a
        ``Regressor``; any other Pyro model can learn but not be scored.
    :param epochs: passes over each task. :param batch_size: of its minibatches.
    :param num_samples: posterior draws per prediction, 0: the mode. A learner without a posterior
        predicts the same with any number.
    :param normalization: one of ``core.names.NORMALIZATIONS``.
    :param seed: of training noise, order of the data, new heads and draws.
    :param checkpoint_dir: gets a file after each task, and checkpoints within it. ``observe`` of a task
        that is there already restores its state instead: the same script, started again, continues where
        it was.
    :param progress: whether to show progress bars; None: where standard error is a terminal.
    :raises ValueError: for a number out of range, or a network without a model around it.
    """

    def __init__(
        self,
        model: Any,
        *,
        epochs: int = 10,
        batch_size: int = 100,
        num_samples: int = 32,
        normalization: str = "layer",
        seed: int = 0,
        checkpoint_dir: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        net = network_of(model)
        if not callable(model) or (net is None and type(model).__module__.startswith("torch.nn")):
            raise ValueError(
                f"expected a model, such as Classifier(net, dataset_size=1) or Regressor; got "
                f"{type(model).__name__}."
            )
        self.model, self.net, self.kind = model, net, kind_of(model)
        self.epochs = whole_number("epochs", epochs, at_least=1)
        self.batch_size = whole_number("batch_size", batch_size, at_least=1)
        self.num_samples = whole_number("num_samples", num_samples)
        self.seed = whole_number("seed", seed)
        self.progress = None if progress is None else true_or_false("progress", progress)
        self.normalization = Normalization(normalization, net or nn.Identity())
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.reports: list[TaskReport] = []
        self._labels: dict[int | None, tuple[Any, ...]] = {}
        # By head: the network and the posterior that answered last, and their ensemble.
        self._ensembles: dict[int | None, tuple[nn.Module, Any, Ensemble]] = {}

    # What a learner is

    @abstractmethod
    def learn_task(
        self, task: Task, seed: int, folder: Path | None
    ) -> tuple[list[dict[str, Any]], tuple[SummaryRow, ...]]:
        """Train on a task; the history and the summary of each site of signs.

        :param task: with its labels as outputs of the network.
        :param seed: of this task. :param folder: for checkpoints within it, if any.
        """

    @abstractmethod
    def predictive(self, task: Task) -> tuple[nn.Module, Any]:
        """The network and the posterior over its signs that answer for a task."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that learning has changed, but for what this class keeps itself."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """What a resumed run has to agree on, beside what this class says itself."""

    def at_rest(self) -> tuple[SummaryRow, ...]:
        """The rows of a report on a task without data: none, where there is no posterior."""
        return ()

    def grown(self) -> None:  # noqa: B027  most learners have nothing that depends on it
        """Called when the network has got another head."""

    def remember(self, task: Task) -> None:  # noqa: B027  most learners keep no data
        """Called with each task that has been learned or restored."""

    # What it does

    def observe(self, task: Task) -> TaskReport:
        """Learn a task, the next one in the sequence; where it was learned before, restore that.

        A task without training data leaves everything as it is.

        :raises ValueError: for a task that does not fit the model, or a checkpoint of other tasks or
            settings. :raises FolderInUseError: if another process learns in ``checkpoint_dir``.
        :raises KeyboardInterrupt: after a checkpoint; the same call continues.
        """
        self._require_fit(task)
        self._require_head(task)
        folder = self.checkpoint_dir
        with nullcontext() if folder is None else one_writer(folder):
            return self._observe(task)

    def _observe(self, task: Task) -> TaskReport:
        index, digest, folder = len(self.reports), task.fingerprint(), self.checkpoint_dir
        configuration = self._configuration(task, digest)
        if folder is not None and (saved := load_task(folder, index, configuration)) is not None:
            self.load_state_dict(saved)
            self.remember(self._as_outputs(task))
            return self.reports[-1]
        history: list[dict[str, Any]] = []
        layers = self.at_rest()
        outputs = self._as_outputs(task) if task.train is None else self._made_room(task)
        if outputs.train is not None:
            word = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
            within = None if folder is None else folder_of(folder, index)
            self._select(task)
            history, layers = self.learn_task(outputs, word, within)
            self._changed()
            if self.normalization.keeps:
                self.normalization.learned(task.name, self._networks(task), outputs.train.x)
        seconds = sum(row.get("seconds", 0.0) for row in history)
        self.reports.append(
            TaskReport(index, task.name, digest, task.size, history, layers, seconds)
        )
        self.remember(outputs)
        if folder is not None:
            save_task(folder, index, self.state_dict(), configuration)
        return self.reports[-1]

    def predict(self, x: Any, task: Task) -> Any:
        """Predict for inputs (B, ...) of a task, averaged over draws of the seed of the learner.

        Of the task, its head counts, and under normalisation per task its name. What an output stands
        for is :meth:`labels_of` the task.

        :param x: an array or tensor.
        :raises ValueError: for a model without a network, or a head that the network does not have.
        """
        x = self._as_input(x)
        return self._settled(task, x).predict(x)

    def ensemble(
        self, task: Task, num_samples: int | None = None, seed: int | None = None
    ) -> Ensemble:
        """The networks that answer for a task, with its head selected; not calibrated yet.

        :param num_samples: draws, 0: the mode. None: those of the learner. :param seed: likewise.
        :raises ValueError: as :meth:`predict`.
        """
        net, posterior = self.answering(task)
        count = (
            self.num_samples if num_samples is None else whole_number("num_samples", num_samples)
        )
        seed = self.seed if seed is None else whole_number("seed", seed)
        return ensemble_of(self.model, net, posterior, count, seed)

    def _networks(self, task: Task) -> Ensemble:
        """The ensemble that answers for a task, made once as long as nothing is learned."""
        net, posterior = self.answering(task)
        head = task.head if isinstance(net, MultiHead) else None
        known = self._ensembles.get(head)
        if known is None or known[0] is not net or known[1] is not posterior:
            found = ensemble_of(self.model, net, posterior, self.num_samples, self.seed)
            known = self._ensembles[head] = net, posterior, found
        return known[2]

    def _settled(self, task: Task, x: Tensor) -> Ensemble:
        return self.normalization.settled(task.name, self._networks(task), x)

    def predict_labels(self, x: Any, task: Task) -> list[Any]:
        """The most probable label of each input of a task, in the user's own labels.

        :raises ValueError: as :meth:`predict`, and for a task of regression or one whose labels the
            learner does not know yet.

        Example: see :class:`ContinualLearner`.
        """
        labels = self.labels_of(task)
        best = self.predict(x, task).log_probs[:, : len(labels)].argmax(1)
        return [labels[index] for index in best.tolist()]

    def labels_of(self, task: Task) -> tuple[Any, ...]:
        """What the outputs of the network stand for when it answers for a task, in their order.

        :raises ValueError: for a task of regression, or labels that the learner does not know yet.
        """
        if task.labels is None:
            raise ValueError(f"expected a task with labels; {task.name!r} is one of regression.")
        if task.by_place:
            return task.labels
        known = self._labels.get(task.head, ())
        if missing := set(task.labels) - set(known):
            raise ValueError(
                f"expected a task whose labels have been learned; {task.name!r} has {listed(missing)} as "
                "well."
            )
        return known

    def evaluate(self, tasks: Iterable[Task]) -> dict[str, np.ndarray]:
        """Test scores of each task, one array over tasks per score.

        Of classification accuracy, nll (nats) and ece; of regression rmse (in the unit of the targets)
        and nll. NaN for a task that the learner cannot answer yet, as its head or labels are new.

        :raises ValueError: for a model without a network.
        """
        rows = [self._scores(task) for task in tasks]
        return {name: np.array([row[name] for row in rows]) for name in SCORES[self._scorable()]}

    def answering(self, task: Task) -> tuple[nn.Module, Any]:
        """The network, with the task's head selected, and the posterior that answer for a task."""
        self._scorable()
        self._require_fit(task)
        self._require_head(task)
        self._select(task)
        net, posterior = self.predictive(task)
        if isinstance(net, MultiHead) and task.head is not None:
            net.select(task.head)
        return net, posterior

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in containers of tensors and numbers, by value."""
        grown = self.net.grown if isinstance(self.net, (MultiHead, GrowingHead)) else ()
        return {
            "reports": [report.to_dict() for report in self.reports],
            "normalization": self.normalization.state_dict(),
            "labels": [[head, list(labels)] for head, labels in self._labels.items()],
            "heads": list(grown),
            "state": _by_value(self.state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state that :meth:`state_dict` gave, of a learner made in the same way."""
        self.reports = [TaskReport.from_dict(report) for report in state["reports"]]
        self.normalization.load_state_dict(state["normalization"])
        self._labels = {head: tuple(labels) for head, labels in state["labels"]}
        if isinstance(self.net, (MultiHead, GrowingHead)):
            for num_outputs in state["heads"][len(self.net.grown) :]:
                self._grow(num_outputs)
        self.restore(_by_value(state["state"]))
        self._changed()

    # Labels and heads

    def _made_room(self, task: Task) -> Task:
        """Get the head and the outputs that a task needs; the task with its labels as outputs."""
        net, head = self.net, task.head
        if task.labels is not None and not task.by_place:
            known = self._labels.get(head, ())
            new = tuple(label for label in task.labels if label not in known)
            self._labels[head] = known + new
        if isinstance(net, MultiHead) and head == len(net.heads):
            self._grow(1 if task.labels is None else len(self.labels_of(task)))
        if isinstance(net, GrowingHead) and task.labels is not None:
            missing = len(self.labels_of(task)) - net.num_outputs
            if missing > 0:
                self._grow(missing)
        task = self._as_outputs(task)
        self._require_outputs(task)
        return task

    def _grow(self, num_outputs: int) -> None:
        assert isinstance(self.net, (MultiHead, GrowingHead))
        word = np.random.SeedSequence([self.seed, len(self.net.heads), 1]).generate_state(1)[0]
        self.net.grow_(num_outputs, seed=int(word))
        self.grown()

    def _as_outputs(self, task: Task) -> Task:
        """A task whose targets are outputs of the network, and whose inputs are of its type."""
        if task.labels is not None and not task.by_place:
            task = task.with_outputs(self.labels_of(task))
        like = _floating(self.net)
        return task if like is None else task.in_type(like.dtype)

    def _require_outputs(self, task: Task) -> None:
        """Refuse a classification whose labels are more than the network has outputs."""
        net = self.net
        if net is None or task.labels is None or task.train is None:
            return
        self._select(task)
        modes = {part: part.training for part in net.modules()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]), normalisation_kept():
            outputs = net.train()(task.train.x[:2].to(_device(net)))
        for part, training in modes.items():
            part.training = training
        if outputs.ndim == 2 and outputs.shape[1] < len(task.labels):
            raise ValueError(
                f"expected an output of the network for each of the {len(task.labels)} labels known after "
                f"{task.name!r}; got {outputs.shape[1]} outputs. Give it more, a head for each task "
                "(MultiHead with make_head=), or one head that grows (GrowingHead)."
            )

    def _require_fit(self, task: Task) -> None:
        if self.kind is not None and task.regression != (self.kind == "regression"):
            has, needs = ("numbers", "Regressor") if task.regression else ("labels", "Classifier")
            raise ValueError(
                f"expected a likelihood of {has}, such as a {needs}, for {task.name!r}, whose targets are "
                f"{has}; got {type(self.model).__name__}."
            )
        if task.by_place and task.labels is not None and self._labels.get(task.head):
            raise ValueError(
                f"expected tasks of one head that all name their labels, or none; {task.name!r} does, and "
                "tasks before it did not. Give labels= to all of them."
            )
        if not isinstance(self.net, MultiHead) and task.head is not None and self.net is not None:
            raise ValueError(
                f"expected a MultiHead network for {task.name!r}, which has a head; got "
                f"{type(self.net).__name__}. Build one with continual_network(..., heads=1)."
            )

    def _require_head(self, task: Task) -> None:
        net = self.net
        if not isinstance(net, MultiHead):
            return
        if task.head is None:
            raise ValueError(
                f"expected a task with a head, for a network of {len(net.heads)}; got "
                f"{task.name!r} without one."
            )
        if task.head > len(net.heads):
            raise ValueError(
                f"expected heads in their order; {task.name!r} asks for head {task.head}, the network has "
                f"{len(net.heads)}, and the next one is {len(net.heads)}."
            )

    def _select(self, task: Task) -> None:
        if isinstance(self.net, MultiHead) and task.head is not None:
            self.net.select(task.head)

    # Answers

    def _scorable(self) -> str:
        if self.kind is None:
            raise ValueError(
                "expected a likelihood of one label or number for each input, such as a Classifier or a "
                f"Regressor, to be scored; got {type(self.model).__name__}, which can only be trained."
            )
        return self.kind

    def _answers(self, task: Task) -> bool:
        """Whether the network has the head and the labels of a task."""
        net = self.net
        if isinstance(net, MultiHead) and task.head is not None and task.head >= len(net.heads):
            return False
        if isinstance(net, GrowingHead) and task.labels is not None and task.by_place:
            return len(task.labels) <= net.num_outputs
        if task.labels is None or task.by_place:
            return True
        return set(task.labels) <= set(self._labels.get(task.head, ()))

    def _scores(self, task: Task) -> dict[str, float]:
        kind = self._scorable()
        self._require_fit(task)
        if not self._answers(task):
            return dict.fromkeys(SCORES[kind], float("nan"))
        y = self._as_outputs(task).test.y
        x = self._as_input(task.test.x)
        return scores_of(self._settled(task, x), x, y)

    def _as_input(self, x: Any) -> Tensor:
        """Inputs as a tensor of the network's own type, on its device."""
        given = as_tensor("inputs", x)
        if given.ndim == 0:
            raise ValueError(f"expected inputs (B, ...); got a single number, {shown(x)}.")
        like = _floating(self.net)
        return given if like is None else given.to(like.dtype)

    def _changed(self) -> None:
        self._ensembles = {}

    def _configuration(self, task: Task, digest: str) -> dict[str, str]:
        done = [(report.name, report.digest) for report in self.reports]
        tasks = [*done, (task.name, digest)]
        return {
            "learner": type(self).__name__,
            "epochs": str(self.epochs),
            "batch size": str(self.batch_size),
            "seed": str(self.seed),
            "draws": str(self.num_samples),
            "normalization": self.normalization.kind,
            **self.settings(),
            **{f"task {i + 1}": f"{name} ({text[:12]})" for i, (name, text) in enumerate(tasks)},
        }


def _floating(net: nn.Module | None) -> Tensor | None:
    tensors = () if net is None else (*net.parameters(), *net.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def _device(net: nn.Module) -> torch.device:
    like = _floating(net)
    return torch.device("cpu") if like is None else like.device


def _by_value(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _by_value(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_by_value(value) for value in state]
    return state
