"""Ensemble: drawn networks with all that belongs to them, the one object that predicts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.core.checks import one_of, shown, whole_number, whole_numbers
from bayesbin.core.turns import in_turn
from bayesbin.ensemble import calibration, evaluation, file
from bayesbin.ensemble.answers import averaged, in_tensors, log_probs_of
from bayesbin.ensemble.in_torch import draw_outputs
from bayesbin.ensemble.inputs import NetworkInputs, Signature, inputs_of
from bayesbin.ensemble.members import Draw, Member, Statistics
from bayesbin.ensemble.programs import Compiled, Programs, normalisations_for
from bayesbin.ensemble.state import described, require_same, tensors_of
from bayesbin.nn import binary_sites
from bayesbin.nn.batch_statistics import Buffers, normalisations
from bayesbin.posterior import Posterior
from bayesbin.runtime.heads import HEADS
from bayesbin.runtime.predictor import Predictor

PRECISIONS = ("exact", "fast")
BACKENDS = ("auto", "native", "numpy")


class _NotSettled(RuntimeError):
    """Batch normalisation whose statistics are not settled."""


class Ensemble:
    r"""Networks drawn from a posterior, with the numbers of the network, the draws and their normalisation.

    .. math:: p(y | x) = \frac1S \sum_{s=1}^{S} p(y \mid f_{w_s}(x)), \qquad w_s \sim q

    Draw s is draw s of ``posterior`` at ``seed``, for every input and batch. Everything is held by value:
    what happens to the model later does not reach the ensemble. Predictions run through a program
    compiled from the network where that is possible, the same bits for any batch and number of threads,
    and in torch where it is not; :attr:`compiled` says which and why.

    A network with batch normalisation predicts once its statistics are settled, by :meth:`calibrate`.

    Answers are numpy arrays where x is a numpy array, and tensors on the CPU otherwise; in float64, but for
    :meth:`outputs`, which are of the network's type.

    :param model: a ``Classifier``, ``Regressor`` or another ``Likelihood``, or a plain network.
    :param posterior: of its binary weights, such as ``guide.posterior()``.
    :param num_samples: S, at least 1. The mode alone is :attr:`mode`.
    :param seed: of the draws.
    :param head: what the outputs are, if ``model`` does not say: "classes" for logits (B, ..., C), "outputs"
        for anything (the default for a plain network), ``{"kind": "normal", "noise": number}`` for
        means with a noise standard deviation, or another head of :mod:`bayesbin.runtime.heads`.
    :param statistics: normalisation statistics of another ensemble of the same network, posterior and seed.
    :raises ValueError: for a posterior that lacks a binary weight of the network, has one too many or one of
        another shape, or real-valued sites that are not the model's; for statistics of another origin.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior, Ensemble
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> model = Classifier(BinaryLinear(4, 3), dataset_size=100)
        >>> ensemble = Ensemble(model, BinaryPosterior({"weight": torch.zeros(3, 4)}), num_samples=8)
        >>> prediction = ensemble.predict(torch.randn(5, 4))
        >>> prediction.probs.shape, prediction.mutual_information.shape
        (torch.Size([5, 3]), torch.Size([5]))

    Source: Houlsby et al. 2011, arXiv 1112.5745 (the entropies of a prediction).
    """

    _members: tuple[Member, ...]

    def __init__(
        self,
        model: nn.Module,
        posterior: Posterior[Any],
        num_samples: int = 32,
        seed: int = 0,
        *,
        head: Any = None,
        statistics: Statistics | None = None,
    ) -> None:
        count = whole_number("num_samples", num_samples, at_least=1)
        seed = whole_number("seed", seed)
        with in_turn():  # another thread may train the network
            member = Member.of(model, posterior, range(count), seed, head)
        if statistics is not None:
            member = member.with_statistics(statistics)
        self._set((member,))

    @classmethod
    def _of(cls, members: Sequence[Member], example: Signature | None = None) -> Self:
        ensemble = cls.__new__(cls)
        ensemble._set(tuple(members), example)
        return ensemble

    def _set(self, members: tuple[Member, ...], example: Signature | None = None) -> None:
        self._members = members
        self._example = example  # of the first inputs that were seen
        self._buffers: tuple[tuple[str, str], ...] | None = None
        self._programs = Programs(members)

    def __getstate__(self) -> dict[str, Any]:
        return {"members": self._members, "example": self._example}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(state["members"], state["example"])

    # What it is made of

    @property
    def num_samples(self) -> int:
        """S, the number of draws."""
        return sum(len(member.draws) for member in self._members)

    @property
    def kind(self) -> str:
        """The kind of its head, a key of :data:`bayesbin.runtime.heads.HEADS`: "classes" or "normal", say."""
        return self._members[0].head["kind"]

    @property
    def noise(self) -> np.ndarray:
        """Standard deviations of the noise in each draw, (S,), or (S, T) for T targets; of normal targets.

        :raises ValueError: for another head.
        """
        one_of("the head of an ensemble with noise", self.kind, ("normal",))
        if "noise" not in self._members[0].head:
            raise ValueError(
                "expected noise that is the same for all inputs; got that of a second half of the outputs. "
                "Take predict(x).aleatoric_variance, or outputs(x)."
            )
        return np.asarray(
            [n for m in self._members for n in m.parameter("noise")], dtype=np.float64
        )

    @property
    def posteriors(self) -> tuple[Posterior[Any], ...]:
        """The posteriors that the draws are from: one, or of a joined ensemble several."""
        return tuple(member.posterior for member in self._members)

    @property
    def statistics(self) -> Statistics | None:
        """The normalisation statistics, for another ensemble of the same draws; None: not calibrated.

        :raises ValueError: for a joined ensemble, which has several.
        """
        first, *others = self._members
        if others:
            raise ValueError(
                "A joined ensemble has statistics of each part; take those of the parts."
            )
        return first.statistics

    @property
    def digest(self) -> str:
        """SHA-256 over posteriors, numbers of the networks, draws, head and statistics, 64 characters."""
        return hashlib.sha256("".join(m.digest for m in self._members).encode()).hexdigest()

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        weights = self._members[0].posterior.num_weights
        parts = f" of {len(self._members)} parts" if len(self._members) > 1 else ""
        return f"Ensemble({self.num_samples} draws{parts}, {weights:,} weights, {self.kind})"

    # Other ensembles

    @property
    def mode(self) -> Ensemble:
        """The ensemble of the mode, one draw; of a joined ensemble, of the mode of each part."""
        members, seen = [], set()
        for member in self._members:
            if member.origin not in seen:
                members.append(member.with_draws([None]))
                seen.add(member.origin)
        return self._of(members, self._example)

    def select(self, draws: Any) -> Ensemble:
        """The ensemble of some of the draws, in the order given.

        :param draws: their numbers in this ensemble, in 0 .. S - 1; one or several.
        :raises ValueError: for others, or none.

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> ensemble = Ensemble(BinaryLinear(2, 1), BinaryPosterior({"weight": torch.zeros(1, 2)}))
        >>> bool(ensemble.select(draws=[8]).network(0).weight.eq(ensemble.network(8).weight).all())
        True
        """
        places = [self._place(draw) for draw in whole_numbers("draws", draws, at_least=0)]
        groups: list[tuple[Member, list[Draw]]] = []
        for member, draw in places:
            if not groups or groups[-1][0] is not member:
                groups.append((member, []))
            groups[-1][1].append(draw)
        return self._of([member.with_draws(chosen) for member, chosen in groups], self._example)

    @classmethod
    def join(cls, ensembles: Sequence[Ensemble]) -> Ensemble:
        """One ensemble of the draws of several, which are of networks of the same architecture.

        Each keeps its own parameters, buffers and statistics. A prediction averages over all draws alike.

        :raises ValueError: for none, other architectures or heads, or some calibrated and others not.
        """
        ensembles = list(ensembles)
        if not ensembles or not all(isinstance(each, Ensemble) for each in ensembles):
            raise ValueError(f"expected a list of ensembles, at least one; got {shown(ensembles)}.")
        members = [member for ensemble in ensembles for member in ensemble._members]
        first = members[0]
        for other in members[1:]:
            sentence = "expected ensembles of one architecture to join, but they differ: "
            require_same(sentence, _architecture(other), _architecture(first))
            if (other.statistics is None) != (first.statistics is None):
                raise ValueError(
                    "expected ensembles that are all calibrated, or none; calibrate each, or the joined one."
                )
        example = next((each._example for each in ensembles if each._example is not None), None)
        return cls._of(members, example)

    def network(self, draw: int) -> nn.Module:
        """Draw ``draw`` as an ordinary module in evaluation mode, with its own normalisation statistics.

        :param draw: its number in this ensemble, in 0 .. S - 1.
        """
        member, index = self._place(whole_number("draw", draw))
        if member.statistics is None:
            signature = self._example or self._programs.guessed()
            known = None if signature is None else partial(normalisations_for, signature=signature)
            self._require_settled(known)
        return member.network(index)

    def _place(self, draw: int) -> tuple[Member, Draw]:
        if draw < self.num_samples:
            for member in self._members:
                if draw < len(member.draws):
                    return member, member.draws[draw]
                draw -= len(member.draws)
        raise ValueError(f"expected draws from 0 to {self.num_samples - 1}; got {draw}.")

    # Normalisation

    def calibrate(self, x: Any, *, progress: bool | None = None) -> Self:
        """Settle what batch normalisation normalises by; returns this ensemble.

        For the mode and for each draw the network runs over ``x`` with batch statistics; mean and variance of
        what each normalisation sees, over all the data, are kept. A few thousand inputs of the training
        data are enough. Without batch normalisation there is nothing to do.

        :param x: inputs as for :meth:`predict`; None: keep the running statistics that the network has. Those
            of training are a mixture over draws: they are right for a point estimate, and for networks that
            were trained with fixed statistics.
        :param progress: whether to show a bar. None: where standard error is a terminal and it takes long.
        :raises ValueError: for no data, NaN or infinity, a channel with one value.
        :raises RuntimeError: for None where the network has no running statistics.
        """
        if x is None:
            for member in self._members:
                _require_running(member)
            chosen = [_kept(member) for member in self._members]
        else:
            net = self._members[0].net
            inputs = inputs_of(net, x)
            with in_turn(), in_a_sentence(inputs):
                buffers = normalisations(net, inputs.batches[0], by_batch=True)
            with in_turn():
                chosen = calibration.statistics(self._members, inputs, buffers, progress)
            self._example = self._example or inputs.signature
        members = [
            replace(member, statistics=statistics)
            for member, statistics in zip(self._members, chosen, strict=True)
        ]
        self._set(tuple(members), self._example)
        return self

    def with_statistics(self, statistics: Statistics, *, foreign: bool = False) -> Ensemble:
        """The ensemble of the same draws with normalisation statistics that were computed before.

        :param statistics: of these draws.
        :param foreign: whether they may be of another network or posterior, such as those of an earlier task.
        :raises ValueError: for a joined ensemble, for statistics of other draws or, unless ``foreign``, of
            another origin.
        """
        member, *others = self._members
        if others:
            raise ValueError(
                "A joined ensemble has statistics of each part; give them to the parts."
            )
        given = replace(statistics, origin=member.origin) if foreign else statistics
        return self._of([member.with_statistics(given)], self._example)

    @property
    def calibrated(self) -> bool:
        """Whether it was calibrated, with data or with None."""
        return self._members[0].statistics is not None

    def _require_settled(self, find: Callable[[nn.Module], tuple[Buffers, ...]] | None) -> None:
        """Refuse to use batch normalisation whose statistics are not settled.

        :param find: finds its buffers in the network, where no module says so; None: where no inputs
            are known to find it with.
        """
        if self.calibrated:
            return
        net = self._members[0].net
        names = [
            name
            for name, module in net.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        if not names and self._buffers is None and find is not None:
            self._buffers = find(net)
        names = names or [mean for mean, _ in self._buffers or ()]
        if names:
            raise _NotSettled(
                f"The network normalises by batch statistics ({names[0]!r} first), which differ between "
                "draws. Compute them with ensemble.calibrate(training inputs), or keep the network's running "
                "statistics with ensemble.calibrate(None)."
            )

    # Predictions

    def predict(self, x: Any) -> Any:
        """The prediction for inputs, averaged over the draws.

        :param x: inputs (B, ...) as a tensor, a numpy array or nested lists, a data set, or an iterable of
            batches, each x or (x, y, ...). For a network with several arguments a tuple with one of these for
            each, or a mapping from their names.
        :returns: by the kind of head, a ``ClassPrediction`` with ``probs``, ``log_probs``, ``entropy``,
            ``expected_entropy``, ``mutual_information``, ``probs_std`` and ``num_samples``, also of ordered
            levels; a ``LabelsPrediction`` with the same of each label; a ``NormalPrediction`` or a
            ``CountPrediction`` with ``mean``, ``aleatoric_variance``, ``epistemic_variance``, ``variance``
            and ``std``; the same, a ``MomentsPrediction``, of a likelihood of your own whose distribution has
            a mean and a variance; or an ``OutputsPrediction`` with ``mean``, ``variance`` and ``std``.
            Classes are the last axis, wherever they are in the outputs.
        :raises ValueError: for no inputs, NaN or infinity, a shape that the network does not take, or
            outputs that do not fit the head.
        :raises RuntimeError: for a network with batch normalisation that was not calibrated.
        """
        inputs = self._ready(x)
        found = self._by_likelihood(inputs) if self.kind == "outputs" else None
        predictor = self._programs.predictor(inputs.signature)
        if found is not None:
            pass
        elif predictor is None:
            found = averaged(self._members, draw_arrays(self._members, inputs))
        else:
            found = predictor.predict(_given(inputs))
        self._example = self._example or inputs.signature
        return found if inputs.in_numpy else in_tensors(found)

    def _by_likelihood(self, inputs: NetworkInputs) -> Any:
        """The prediction by a likelihood of the user's own; None where there are no moments of it."""
        if any(member.likelihood is None for member in self._members):
            return None
        outputs = self._outputs(inputs)
        returned = self._returned(inputs, len(outputs))
        return evaluation.prediction_of_draws(self._members, outputs, returned)

    def _returned(self, inputs: NetworkInputs, count: int) -> evaluation.Returned:
        """A function from the outputs of a draw to what the network returns."""
        if count == 1:
            return lambda outputs: outputs[0]
        member = self._members[0]
        with torch.no_grad(), in_a_sentence(inputs):
            found = member.network(member.draws[0])(*(x[:1] for x in inputs.batches[0]))
        if isinstance(found, Mapping):
            return lambda outputs: dict(zip(found, outputs, strict=True))
        return tuple

    def outputs(self, x: Any) -> Any:
        """What the network of each draw puts out, (S, B, ...); a tuple of such for several outputs.

        Arguments and errors as :meth:`predict`.
        """
        inputs = self._ready(x)
        return _answer(inputs, self._outputs(inputs))

    def log_probs(self, x: Any) -> Any:
        """Log-probabilities of classes, or ordered levels, in each draw, (S, B, ..., C), in float64.

        Arguments and errors as :meth:`predict`. :raises ValueError: for a head without classes.
        """
        if not HEADS[self.kind].has_classes:
            raise ValueError(
                f"expected a head of classes for log-probabilities; got {self.kind!r}. Use outputs(x)."
            )
        inputs = self._ready(x)
        return _answer(inputs, log_probs_of(self._members, self._outputs(inputs)))

    def evaluate(self, x: Any, y: Any, weight: Any = None, mask: Any = None) -> dict[str, Any]:
        """Scores of the mean of the draws, of the mode, and mean and spread over single draws.

        Of every likelihood nll, the negative logarithm of the mean over draws of the likelihood of a datum,
        in nats per datum; of several targets of a datum it is that of all of them together. Further, over
        all targets: of classes accuracy, ece and brier; of labels accuracy; of ordered levels accuracy and
        mae; of normal targets rmse, crps, and coverage and mean width (sharpness) of 95 % intervals, in the
        unit of the targets; of counts and of a likelihood of your own rmse, where it has a mean.

        :param x: inputs as for :meth:`predict`. :param y: targets, as the likelihood takes them.
        :param weight: of each datum, (N,), at least 0: scores are weighted averages over data. Weights of
            classes do not enter.
        :param mask: which targets count, truth values in the shape of y. Those that the likelihood ignores do
            not count either; data without any that does are left out.
        :returns: ``{"mode": scores, "mean": scores, "draws": {"mean": scores, "std": scores, "low": scores,
            "high": scores}, "num_samples": S}``; 95 % of the draws lie between low and high, of each score
            by itself.
        :raises ValueError: for a plain network, whose outputs have no score; for targets, weights or a mask
            that do not fit; otherwise as :meth:`predict`.
        """
        evaluation.require_likelihood(self._members)
        inputs, mode = self._ready(x), self.mode
        found = []
        for members, outputs in (
            (self._members, self._outputs(inputs)),
            (mode._members, mode._outputs(inputs)),
        ):
            returned = self._returned(inputs, len(outputs))
            found.append(evaluation.DrawnTargets.of(members, outputs, returned, y, weight, mask))
        return evaluation.summary(*found)

    def _ready(self, x: Any) -> NetworkInputs:
        inputs = inputs_of(self._members[0].net, x)
        with in_a_sentence(inputs):
            self._require_settled(lambda net: normalisations(net, inputs.batches[0]))
        return inputs

    def _outputs(self, inputs: NetworkInputs) -> list[np.ndarray]:
        predictor = self._programs.predictor(inputs.signature)
        if predictor is None:
            draws = list(draw_arrays(self._members, inputs))
            found = tuple(np.stack(each) for each in zip(*draws, strict=True))
        else:
            found = predictor.outputs(_given(inputs))
        self._example = self._example or inputs.signature
        return list(found) if isinstance(found, tuple) else [found]

    # Programs

    def compile(
        self,
        precision: str = "exact",
        backend: str = "auto",
        threads: int | None = None,
        *,
        input_shape: Any = None,
    ) -> Predictor:
        """The predictor that predictions run through, to be saved, served or inspected.

        :param precision: "exact", or "fast" with activations in 16 bits.
        :param backend: "native", the compiled kernels; "numpy"; "auto", the first that is there.
        :param threads: None: as many as there are processors.
        :param input_shape: shape of one input, (features,) or (channels, height, width), say. None: that of
            the first inputs that the ensemble has seen, or else what the first layer takes.
        :raises bayesbin.compile.NotCompiled: for a network that does not compile, by operator and line.
        :raises ValueError: for arguments out of range, or a shape of inputs that is not known.
        :raises RuntimeError: for a network with batch normalisation that was not calibrated.
        """
        one_of("precision", precision, PRECISIONS)
        one_of("backend", backend, BACKENDS)
        if threads is not None:
            threads = whole_number("threads", threads, at_least=1)
        signature = self._signature(input_shape)
        self._require_settled(partial(normalisations_for, signature=signature))
        return self._programs.compiled(signature, precision, backend, threads)

    @property
    def compiled(self) -> Compiled:
        """Whether predictions run through a compiled program: true or false; printed, it says why not."""
        signature = self._example or self._programs.guessed()
        if signature is None:
            return Compiled(
                False, "The shape of inputs is not known yet; predict, or compile(input_shape=...)."
            )
        return self._programs.state(signature)

    def _signature(self, input_shape: Any) -> Signature:
        if input_shape is not None:
            shape = whole_numbers("input_shape", input_shape)
            dtype = self._example[0][1] if self._example else self._programs.dtype
            return ((shape, dtype),)
        signature = self._example or self._programs.guessed()
        if signature is None:
            raise ValueError(
                "The shape of one input is not known, as the ensemble has not seen any; pass input_shape=."
            )
        return signature

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the code to one safetensors file, atomically.

        The same ensemble makes the same bytes in every process.

        :raises OSError: if it cannot be written; an old file is then what it was.
        """
        file.write(path, self._members, self._example)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> Ensemble:
        """Read what :meth:`save` wrote.

        :param model: a model or network of the same architecture, made and converted by the same code. Its
            own numbers do not matter, and it is left alone.
        :raises CorruptFileError: for a damaged or foreign file.
        :raises ValueError: for a network whose parameters, buffers or binary weights have other names or
            shapes.
        """
        members, example = file.read(path, model)
        return cls._of(members, example)


def draw_arrays(members: Sequence[Member], inputs: NetworkInputs) -> Iterator[list[np.ndarray]]:
    """All outputs of the network in torch, draw after draw, as arrays."""
    for member in members:
        with in_a_sentence(inputs):
            for outputs in draw_outputs(member, inputs.batches):
                yield [_widened(output).numpy() for output in outputs]


def _widened(output: Tensor) -> Tensor:
    """A tensor of a type that numpy has."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


@contextmanager
def in_a_sentence(inputs: NetworkInputs) -> Iterator[None]:
    """Say which inputs a network failed on.

    :raises ValueError: for an error of the network's.
    """
    try:
        yield
    except _NotSettled:
        raise
    except RuntimeError as error:
        shapes = ", ".join(f"{dtype} of shape (B, {str(s)[1:-1]})" for s, dtype in inputs.signature)
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"The network fails on inputs {shapes}: {first}. Pass inputs as it was trained on."
        ) from error


def _given(inputs: NetworkInputs) -> Any:
    """Inputs as a predictor takes them: an array, or a tuple for several."""
    arrays = inputs.arrays
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _answer(inputs: NetworkInputs, found: Any) -> Any:
    if not isinstance(found, np.ndarray) and len(found) == 1:
        found = found[0]
    if inputs.in_numpy:
        return found if isinstance(found, np.ndarray) else tuple(found)
    if isinstance(found, np.ndarray):
        return torch.from_numpy(found)
    return tuple(torch.from_numpy(each) for each in found)


def _architecture(member: Member) -> dict[str, str]:
    """Names and shapes of all numbers, and the kind of head, in words."""
    found = {name: described(tensor) for name, tensor in tensors_of(member.net).items()}
    for name, site in binary_sites(member.net).items():
        found[name] = f"a binary weight of shape {tuple(site.shape)}"
    kind = member.head["kind"]
    if kind == "outputs":
        found["likelihood"] = type(member.likelihood).__qualname__
    for name in HEADS[kind].settings:
        found[f"the head's {name}"] = str(member.head.get(name, HEADS[kind].settings[name]))
    for name, tensor in member.likelihood_tensors().items():
        found[f"the likelihood's {name}"] = described(tensor)
    return {"head": kind} | found


def _require_running(member: Member) -> None:
    for name, buffer in member.net.named_buffers():
        if name.endswith("running_mean") and bool(torch.isnan(buffer).any()):
            raise RuntimeError(
                f"The network has no running statistics to keep: {name!r} was never computed. Pass training "
                "inputs: ensemble.calibrate(x)."
            )


def _kept(member: Member) -> Statistics:
    return Statistics({draw: {} for draw in (*member.draws, None)}, member.origin)
