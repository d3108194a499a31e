"""Prediction from a model file, with numpy and the compiled kernels alone."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesbin.core.checks import whole_number
from bayesbin.core.preprocessing import Preprocessing
from bayesbin.predict import kernels
from bayesbin.predict.quantities import entropy_of, mutual_information_of, probs_of, probs_std_of
from bayesbin.predict.shipped_model import ShippedModel, read_model
from bayesbin.predict.shipped_program import program_of


@dataclass(frozen=True)
class ShippedPrediction:
    """A classifier's prediction for B inputs and C classes, averaged over draws; entropies in nats.

    The quantities are those of :class:`bayesbin.predict.Prediction`, as float64 arrays.

    :param log_probs: log of the averaged probabilities, (B, C).
    :param expected_entropy: mean entropy of the single draws' predictions, (B,).
    :param probs_std: standard deviation of the class probabilities over draws, (B, C).
    :param num_samples: how many draws went in (1 for the mode).
    """

    log_probs: np.ndarray
    expected_entropy: np.ndarray
    probs_std: np.ndarray
    num_samples: int

    @property
    def probs(self) -> np.ndarray:
        """Probabilities averaged over draws, (B, C)."""
        return probs_of(self.log_probs)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the averaged probabilities, (B,): the total uncertainty."""
        return entropy_of(self.log_probs)

    @property
    def mutual_information(self) -> np.ndarray:
        """entropy - expected_entropy, (B,), at least 0: what the draws disagree about."""
        return mutual_information_of(self.log_probs, self.expected_entropy)


@dataclass(frozen=True)
class ShippedRegression:
    """A regressor's prediction for B inputs, in the units of the targets (variances: squared).

    :param mean: mean over draws, (B,). :param aleatoric: mean noise variance, (B,).
    :param epistemic: variance of the means over draws, (B,).
    """

    mean: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    num_samples: int

    @property
    def std(self) -> np.ndarray:
        """The predictive standard deviation, sqrt(aleatoric + epistemic), (B,)."""
        return np.sqrt(self.aleatoric + self.epistemic)


class ShippedPredictive:
    """A model file, ready to predict; made by :func:`load`.

    :param model: what the file says. :param threads: None: as many as the process may use.
    :raises RuntimeError: where the compiled kernels were not built.
    :raises ValueError: for fewer than 1 thread.
    """

    def __init__(self, model: ShippedModel, threads: int | None = None) -> None:
        if threads is not None:
            threads = whole_number("threads", threads, at_least=1)
        kernels.loaded()
        self.model = model
        self.threads = threads or _processors()
        count = max(model.num_samples, 1)
        firsts = range(0, count, model.draws_at_once)
        self._programs = [
            program_of(model, first, min(first + model.draws_at_once, count)) for first in firsts
        ]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """A name for each class, or None."""
        return self.model.labels

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What raw inputs are put through, or None."""
        return self.model.preprocessing

    def predict(
        self, x: Any, preprocess: bool | None = None
    ) -> ShippedPrediction | ShippedRegression:
        """Average over the draws; each row's answer depends on that row alone.

        :param x: inputs (B, features) or (B, channels, height, width) as the network has them: an array
            of floats, integers or booleans, or what numpy makes one of.
        :param preprocess: whether ``x`` is raw. None: integers are (pixels, say), floats are not and go
            in as they are. Without preprocessing in the file nothing is done to either.
        :raises ValueError: for inputs of another shape or type, or with NaN, infinity or numbers beyond
            float32; for ``preprocess=True`` where the file has no preprocessing.
        """
        rows = self._rows(x, preprocess)
        count = max(self.model.num_samples, 1)
        if self.model.noise_variance is not None:
            return self._regress(rows, count, self.model.noise_variance)
        log_probs: Any = -np.inf
        squares: Any = 0.0
        entropies: Any = 0.0
        for program in self._programs:
            sums = program.run_classes(rows, threads=self.threads)
            log_probs = np.logaddexp(log_probs, sums.log_probs)
            squares, entropies = squares + sums.squares, entropies + sums.entropies
        mean = log_probs - math.log(count)
        return ShippedPrediction(
            mean, entropies / count, probs_std_of(mean, squares / count), count
        )

    def outputs(self, x: Any, preprocess: bool | None = None) -> np.ndarray:
        """What the network of each draw puts out, before any softmax: float32 (S, B, C).

        Arguments and errors as :meth:`predict`.
        """
        rows = self._rows(x, preprocess)
        found = [
            program.run_regression(rows, threads=self.threads, outputs=True).outputs
            for program in self._programs
        ]
        return np.concatenate([each for each in found if each is not None])

    def _regress(self, x: np.ndarray, count: int, noise: float) -> ShippedRegression:
        total, mean, deviations = 0, np.zeros((len(x), 1)), np.zeros((len(x), 1))
        for program in self._programs:
            sums = program.run_regression(x, threads=self.threads)
            # Two sets of draws as one (Chan et al. 1983).
            step, added = sums.mean - mean, program.draws
            deviations = deviations + sums.deviations + step**2 * (total * added / (total + added))
            mean, total = mean + step * (added / (total + added)), total + added
        center = mean[:, 0]
        return ShippedRegression(
            center, np.full_like(center, noise), deviations[:, 0] / count, count
        )

    def _rows(self, x: Any, preprocess: bool | None) -> np.ndarray:
        """Inputs in rows, float32 (B, features), after preprocessing."""
        array = np.asarray(x)
        shape = self.model.input
        if array.dtype.kind not in "fiub":
            raise ValueError(
                f"Inputs are numbers; got an array of {array.dtype}. Convert it first."
            )
        if array.shape[1:] != shape or not array.ndim:
            wanted = ", ".join(map(str, shape))
            raise ValueError(
                f"Inputs have the shape (B, {wanted}); got {array.shape}. Reshape them."
            )
        raw = array.dtype.kind in "iu" if preprocess is None else preprocess
        if preprocess and self.preprocessing is None:
            raise ValueError(
                "The model has no preprocessing; pass inputs as it was trained on them."
            )
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(array, dtype=np.float32).reshape(
                len(array), math.prod(shape)
            )
            if raw and self.preprocessing is not None:
                # Of a channel's constant each of its pixels has a copy.
                features = rows.shape[1]
                divisor, mean, std = (
                    np.repeat(np.asarray(constant, np.float32), features // np.size(constant))
                    for constant in self.preprocessing
                )
                rows = (rows / divisor - mean) / std
        if not np.isfinite(rows).all():
            raise ValueError(
                "The inputs contain NaN, infinity or numbers beyond float32; clean or impute them first."
            )
        return rows

    def describe(self) -> str:
        """The draws, weights, inputs and outputs in a line."""
        model = self.model
        what = (
            f"{model.num_samples} draws of seed {model.seed}" if model.num_samples else "the mode"
        )
        size = " x ".join(map(str, model.input))
        out = f"{model.outputs} classes" if model.noise_variance is None else "regression"
        return f"{what}, {model.num_weights:,} weights, inputs {size}, {out}, {model.precision}"

    def __repr__(self) -> str:
        return f"ShippedPredictive({self.describe()}, {kernels.isa()})"


def load(path: str | os.PathLike[str], threads: int | None = None) -> ShippedPredictive:
    """A predictor from a file that :func:`bayesbin.predict.pack` wrote; neither torch nor pyro is imported.

    Its answers are those of ``PackedPredictive(..., backend="cpu")`` for the packed draws, bit for bit.
    Nothing in the file is executed, and all of it is verified first.

    :param threads: None: as many as the process may use. Answers do not depend on them.
    :raises CorruptFileError: (a ValueError) for a file that is damaged, foreign or of a newer version.
    :raises OSError: if it cannot be read. :raises RuntimeError: where the kernels were not built.

    Example::

        >>> import tempfile, numpy as np, torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import load, pack
        >>> posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pack(BinaryLinear(4, 3), posterior, f"{folder}/model.bbn", num_samples=8)
        ...     predictive = load(path)
        >>> predictive.predict(np.zeros((2, 4))).probs.shape
        (2, 3)
    """
    return ShippedPredictive(read_model(path)[0], threads)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
