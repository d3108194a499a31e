"""Prediction with numpy and the compiled kernels alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.core.checks import true_or_false, whole_number
from bayesbin.runtime import files
from bayesbin.runtime.backends import Runner, chosen_backend, processors
from bayesbin.runtime.meaning import Inputs
from bayesbin.runtime.model import Model
from bayesbin.runtime.preprocessing import scaling_program
from bayesbin.runtime.program import Program
from bayesbin.runtime.summary import ProgramSummary, summarize


class Predictor:
    """A network with its draws, ready to predict: the answers are the same bits for any backend, batch,
    block and number of threads.

    :param program: the network. :param head: what its outputs mean, a dictionary with a ``kind``:
        "classes" (logits along the last axis, or along ``class_dim``), "labels" (logits of independent
        labels), "ordinal" (scores, with ``cutpoints``), "normal" (means, with ``noise``, a standard
        deviation, or ``heteroscedastic`` where half of the outputs is its logarithm), "poisson" (log rates),
        "negative_binomial" (log means, with ``concentration``) or "outputs". A parameter is the same for all
        draws, or a list of one for each draw.
    :param labels: a name for each class. :param preprocessing: a program from raw inputs to the network's.
    :param provenance: whatever JSON can hold, by name; kept and written to the file.
    :param threads: None: as many as the process may use. :param precision: "exact", or
        "fast": real inputs of linear maps are rounded to 16 bits before they are added.
    :param backend: "native", the compiled kernels; "numpy"; "auto": the kernels where they were built.
    :raises ValueError: for parts that do not fit. :raises RuntimeError: for kernels that are not there.

    Example::

        >>> from bayesbin.runtime.program import Constant, Program, Step, Value
        >>> weights = Constant(np.eye(3, dtype=np.float32)[None])
        >>> steps = (Step("linear", ("x", "w"), ("logits",)),)
        >>> program = Program({"x": Value((3,), "f4")}, {"w": weights}, {}, steps, ("logits",))
        >>> predictor = Predictor(program, {"kind": "classes"}, backend="numpy")
        >>> predictor.predict(np.eye(3)).probs.argmax(1).tolist()
        [0, 1, 2]
    """

    def __init__(
        self,
        program: Program,
        head: Mapping[str, Any],
        *,
        labels: Sequence[str] | None = None,
        preprocessing: Program | None = None,
        provenance: Mapping[str, Any] | None = None,
        threads: int | None = None,
        precision: str = "exact",
        backend: str = "auto",
    ) -> None:
        named: Any = labels  # which the model makes a tuple of
        self.model = Model(program, head, named, preprocessing, dict(provenance or {}), precision)
        if threads is not None:
            threads = whole_number("threads", threads, at_least=1)
        self.threads = threads or processors()
        self.backend = chosen_backend(backend, stacklevel=4)
        self._inputs = Inputs(program, preprocessing)
        self._network = Runner(program, self.backend, self.threads, precision)
        self._before = preprocessing and Runner(preprocessing, self.backend, self.threads)

    @property
    def program(self) -> Program:
        """The network."""
        return self.model.program

    @property
    def head(self) -> Mapping[str, Any]:
        """What the outputs mean, as JSON can hold it."""
        return self.model.head

    @property
    def labels(self) -> tuple[str, ...] | None:
        """A name for each class, or None."""
        return self.model.labels

    @property
    def preprocessing(self) -> Program | None:
        """The program from raw inputs to the network's, or None."""
        return self.model.preprocessing

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the model came from, by name."""
        return self.model.provenance

    @property
    def precision(self) -> str:
        """How real inputs are added under signs: "exact" or "fast"."""
        return self.model.precision

    @property
    def num_samples(self) -> int:
        """How many draws are averaged."""
        return self.program.num_draws

    def predict(self, x: Any, preprocess: bool | None = None) -> Any:
        """Average over the draws; each row's answer depends on that row alone.

        :param x: inputs (B, ...): an array of numbers, or what numpy makes one of; for several inputs a
            tuple of arrays, or a dictionary by their names. Inputs that differ from the expected shape by
            flattening, or by axes of size 1, are reshaped.
        :param preprocess: whether ``x`` is raw. None: whole numbers are (pixels, say), and all inputs of
            preprocessing that does not begin with pixels; see :meth:`bayesbin.runtime.meaning.Inputs.is_raw`.
        :returns: a :class:`~bayesbin.runtime.predictions.ClassPrediction`, ``LabelsPrediction``,
            ``NormalPrediction``, ``CountPrediction`` or ``OutputsPrediction``, as the head says.
        :raises ValueError: for inputs of another shape or type, without a batch, or with NaN or infinity;
            for ``preprocess=True`` where there is no preprocessing.
        """
        head, parts = self.model.averaging, []
        for rows in self._blocks(x, preprocess):
            sums = head.start()
            for outputs in self._network.chunks(rows):
                head.add(sums, outputs)
            parts.append(head.finish(sums))
        return head.join(parts)

    def is_raw(self, x: Any) -> bool:
        """Whether :meth:`predict` takes inputs for raw, and puts them through the preprocessing.

        :raises ValueError: for inputs that do not fit.
        """
        return self._inputs.read(x, None)[1]

    def log_probs(self, x: Any, preprocess: bool | None = None) -> np.ndarray:
        """Log-probabilities of each draw, (S, B, ..., C), float64; classes come last.

        Arguments as :meth:`predict`.

        :raises ValueError: as :meth:`predict`, and for a head that has no classes.
        """
        head, parts = self.model.averaging, []
        head.require_classes()  # before the work
        for rows in self._blocks(x, preprocess):
            found: list[np.ndarray] = []
            for outputs in self._network.chunks(rows):
                found.append(head.log_probs(outputs, sum(map(len, found))))
            parts.append(np.concatenate(found))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def outputs(self, x: Any, preprocess: bool | None = None) -> Any:
        """What the network of each draw returns, (S, B, ...); a tuple for several outputs.

        Arguments and errors as :meth:`predict`.
        """
        blocks = []
        for rows in self._blocks(x, preprocess):
            chunks = list(self._network.chunks(rows))
            blocks.append([np.concatenate(each) for each in zip(*chunks, strict=True)])
        found = tuple(np.concatenate(each, axis=1) for each in zip(*blocks, strict=True))
        return found[0] if len(found) == 1 else found

    def select(self, draws: Sequence[int]) -> Predictor:
        """The predictor of some of the draws, in the order given.

        :raises ValueError: for draws that there are not, or none.
        """
        chosen = [whole_number("each of draws", draw) for draw in draws]
        return self._of(self.model.select(chosen))

    def annotated(
        self,
        *,
        labels: Sequence[str] | None = None,
        preprocessing: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """The same predictor with what its inputs and outputs mean; None leaves what it has.

        :param labels: a name for each class. :param preprocessing: a program from raw inputs to the
            network's, or numbers (divisor, mean, std) for (raw / divisor - mean) / std of pixels.
        :param provenance: whatever JSON can hold, by name; added to what there is.
        :raises ValueError: for parts that do not fit the network.
        """
        return self._of(self._annotated(labels, preprocessing, provenance))

    def _annotated(
        self, labels: Any, preprocessing: Any, provenance: Mapping[str, Any] | None
    ) -> Model:
        if preprocessing is not None and not isinstance(preprocessing, Program):
            (value, *others) = self.program.inputs.values()
            if others:
                raise ValueError(
                    "expected preprocessing to be a program, for a network with several inputs."
                )
            preprocessing = scaling_program(preprocessing, value.shape)
        return replace(
            self.model,
            labels=self.labels if labels is None else labels,
            preprocessing=self.preprocessing if preprocessing is None else preprocessing,
            provenance={**self.provenance, **(provenance or {})},
        )

    def save(
        self,
        path: str | os.PathLike[str],
        contents: str = "draws",
        *,
        labels: Sequence[str] | None = None,
        preprocessing: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write everything to one file, which :func:`load` reads; see :func:`bayesbin.runtime.files.save`.

        :param labels, preprocessing, provenance: to be written as well, see :meth:`annotated`.
        :raises ValueError: for ``contents="posterior"`` of a model that holds the signs of its draws alone,
            and as :meth:`annotated`.
        :raises OSError: if the file cannot be written; an old one is then what it was.
        """
        return files.save(path, self._annotated(labels, preprocessing, provenance), contents)

    def summary(self, profile: int | None = None) -> ProgramSummary:
        """The steps of the network: shapes, weights, operations, and which backend runs them.

        :param profile: a number of inputs to measure each step with by itself, on noise; None: no times.
        :raises ValueError: for a profile of fewer than 1 input.
        """
        return summarize(self._network, profile)

    def describe(self) -> str:
        """The draws, weights, inputs and outputs in a line."""
        program = self.program
        draws = "1 draw" if program.num_draws == 1 else f"{program.num_draws} draws"
        inputs = ", ".join(_sizes(value.shape) for value in program.inputs.values())
        outputs = ", ".join(_sizes(program.values[name].shape) for name in program.outputs)
        return (
            f"{draws}, {program.num_weights:,} binary weights, inputs {inputs}, outputs {outputs}, "
            f"head {self.head['kind']}"
        )

    def __repr__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"Predictor({self.describe()}; {self.backend}, {threads})"

    def _of(self, model: Model) -> Predictor:
        return Predictor(
            model.program,
            model.head,
            labels=model.labels,
            preprocessing=model.preprocessing,
            provenance=model.provenance,
            threads=self.threads,
            precision=self.precision,
            backend=self.backend,
        )

    def _blocks(self, x: Any, preprocess: bool | None) -> Iterator[list[np.ndarray]]:
        """The network's inputs for blocks of rows; one block of no rows where there are none."""
        if preprocess is not None:
            preprocess = true_or_false("preprocess", preprocess)
        arrays, raw = self._inputs.read(x, preprocess)
        size = self._network.rows
        if raw and self._before:
            size = min(size, self._before.rows)
        for first in range(0, max(len(arrays[0]), 1), size):
            rows = [array[first : first + size] for array in arrays]
            if raw and self._before:
                rows = [each[0] for each in self._before.run(rows, range(1))]
            yield rows


def load(
    path: str | os.PathLike[str], threads: int | None = None, *, trusted: bool = False
) -> Predictor:
    """A predictor from a file that :meth:`Predictor.save` wrote; neither torch nor pyro is imported.

    Nothing in the file is executed, and all of it is verified first. Its answers are those of the
    predictor that was saved, bit for bit. Where the compiled kernels were not built, numpy computes the
    same numbers, and a warning says so once.

    :param threads: None: as many as the process may use. Answers do not depend on them.
    :param trusted: whether the file comes from somebody you trust. If not, it is refused if predicting
        one datum takes more time or memory than a file of its size has reason to ask for.
    :raises CorruptFileError: (a ValueError) for a file that is damaged, foreign or of another version.
    :raises OSError: if it cannot be read.
    """
    if threads is not None:
        threads = whole_number("threads", threads, at_least=1)
    model = files.read(path, true_or_false("trusted", trusted)).model
    return Predictor(
        model.program,
        model.head,
        labels=model.labels,
        preprocessing=model.preprocessing,
        provenance=model.provenance,
        threads=threads,
        precision=model.precision,
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"
