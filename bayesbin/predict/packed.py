"""PackedPredictive: the same draws and answers as ``predict``, from packed bits that are never stored."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.core.arrays import network_batches
from bayesbin.core.checks import one_of, whole_number
from bayesbin.nn.state_norm import Statistics
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict import kernels
from bayesbin.predict.backends import chosen, triton_device
from bayesbin.predict.folding import fold
from bayesbin.predict.fused_op import FusedPredictive, input_shape
from bayesbin.predict.kernel_program import Program
from bayesbin.predict.packed_layers import PackedNetwork
from bayesbin.predict.packed_summary import PackedSummary, summarise
from bayesbin.predict.predictive import (
    Prediction,
    RegressionPrediction,
    checked_noise,
    draw_outputs,
    mean_noise_variance,
    predict,
    predict_regression,
)
from bayesbin.predict.program import steps_of
from bayesbin.predict.quantities import probs_std_of
from bayesbin.predict.triton_backend import TritonProgram

PRECISIONS = ("exact", "fast")
DRAWS_AT_ONCE = 8  # draws whose bits are packed at a time, where each has log-odds of its own


class PackedPredictive:
    r"""Predictions averaged over posterior draws, by compiled kernels over packed signs.

    .. math:: p(y | x) = \frac1S \sum_{s=1}^{S} \mathrm{softmax}(f_{w_s}(x))_y, \qquad w_s \sim q

    The bits of a weight are drawn where they are used and never stored as numbers; scales, biases and
    normalisation are folded into one line per channel. Draw s is ``posterior.signs(s, seed=seed)``, and
    the answers are those of :func:`predict` to float32 rounding, bit for bit the same for any number
    of threads, batch or set of instructions. Memory does not grow with the number of draws.

    :param net: layers in a row, see :mod:`bayesbin.predict.program`; read now, not kept track of.
    :param num_samples: S; 0 predicts with the mode. :param seed: of the draws.
    :param precision: "exact" (float32 sums, relative error about 1e-6) or "fast" (16-bit activations,
        about 3e-4). Convolutions, layers that feed a sign, and layers of signs are exact in both.
    :param threads: None: as many as torch uses.
    :param backend: "cpu", the kernels; "torch", the streaming predictor; "triton", the kernels for a GPU;
        "auto", the first of those that is there for the device: the CPU until :meth:`to` is called.
    :param statistics: normalisation statistics of those draws, from :func:`bayesbin.nn.recalibrate`.
    :param noise: of a regressor, as for :func:`predict_regression`; None: a classifier.
    :raises ValueError: for a module that the kernels do not run (with "auto" and "torch" too: use
        :func:`predict` for such a network), sites that do not fit, or arguments out of range.
    :raises RuntimeError: for ``backend="cpu"`` where the kernels were not built, ``backend="triton"``
        without Triton or a GPU.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import PackedPredictive
        >>> posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        >>> packed = PackedPredictive(BinaryLinear(4, 3), posterior, num_samples=100, seed=0)
        >>> packed.predict(torch.randn(5, 4)).probs.shape
        torch.Size([5, 3])

    Source: the random numbers: Steele, Lea and Flood 2014 (SplitMix64); look-up tables for binary
    weights: Wei et al. 2025, arXiv 2407.00088 (T-MAC).
    """

    def __init__(
        self,
        net: nn.Module,
        posterior: BinaryPosterior,
        num_samples: int = 32,
        seed: int = 0,
        *,
        precision: str = "exact",
        threads: int | None = None,
        backend: str = "auto",
        statistics: Statistics | None = None,
        noise: float | str | None = None,
    ) -> None:
        one_of("precision", precision, PRECISIONS)
        num_samples, seed = whole_number("num_samples", num_samples), whole_number("seed", seed)
        if threads is not None:
            threads = whole_number("threads", threads, at_least=1)
        if noise is not None:
            noise = checked_noise(posterior, noise)
        if statistics is not None and num_samples:
            statistics.of_draw(num_samples - 1, seed)  # refuses those of other draws, now
        self.device = triton_device() if backend == "triton" else torch.device("cpu")
        self.backend, self._asked = chosen(backend, self.device), backend
        self.num_samples, self.seed, self.precision = num_samples, seed, precision
        self.threads = threads
        self._net, self._posterior, self._statistics = net, posterior, statistics
        self._noise = noise
        draws: list[int | None] = list(range(num_samples)) or [None]
        operations = fold(net, steps_of(net), draws, seed, statistics)
        self._network = PackedNetwork(operations, posterior, draws, seed, precision == "fast")
        self._on_device: dict[tuple[int, int, int], TritonProgram] = {}

    def to(self, device: str | torch.device) -> PackedPredictive:
        """The same predictor on another device, with the same draws; its answers are on the CPU.

        On a GPU ``backend="auto"`` is Triton's kernels where they run, and torch where they do not.

        :raises ValueError: for ``backend="cpu"`` and another device.
        :raises RuntimeError: for a GPU that is not there, ``backend="triton"`` where it does not run.
        """
        moved = copy.copy(self)
        moved.device, moved._on_device = torch.device(device), {}
        moved.backend = chosen(self._asked, moved.device)
        moved._net = copy.deepcopy(self._net).to(moved.device)
        return moved

    @torch.no_grad()
    def predict(self, x: Any) -> Prediction | RegressionPrediction:
        """Average over the draws: a :class:`Prediction`, or of a regressor a :class:`RegressionPrediction`.

        :param x: inputs (B, ...), or an iterable of batches, each x or (x, y, ...).
        :raises ValueError: for inputs with NaN or infinity, or of a shape that the network does not take.
        """
        if self.backend == "torch":
            return self._predict_in_torch(x)
        values, image = self._inputs(x)
        count = max(self.num_samples, 1)
        if self._noise is not None:
            return self._regress(values, image, count)
        log_probs: Any = -np.inf
        squares: Any = 0.0
        entropies: Any = 0.0
        for program in self._programs(image):
            sums = program.run_classes(values, threads=self._threads())
            log_probs = np.logaddexp(log_probs, sums.log_probs)
            squares, entropies = squares + sums.squares, entropies + sums.entropies
        mean = log_probs - math.log(count)
        spread = probs_std_of(mean, squares / count)
        mean, entropies, spread = map(torch.from_numpy, (mean, entropies / count, spread))
        return Prediction(mean, entropies, spread, count)

    @torch.no_grad()
    def outputs(self, x: Any) -> Tensor:
        """What the network of each draw puts out, before any softmax: float32 (S, B, C)."""
        if self.backend == "torch":
            draws = (self.num_samples, self.seed, self._statistics)
            found = draw_outputs(self._net, self._posterior, self._where_net_is(x), *draws)
            return torch.stack([output.flatten(1).float().cpu() for output in found])
        values, image = self._inputs(x)
        run = [
            program.run_regression(values, threads=self._threads(), outputs=True).outputs
            for program in self._programs(image)
        ]
        return torch.from_numpy(np.concatenate([each for each in run if each is not None]))

    def module(self, shape: Sequence[int] | None = None) -> FusedPredictive:
        """This predictor as a module around one operator, for torch.compile and torch.export.

        The backend is the module's own choice, by the device of its inputs. Of a posterior with random
        effects it holds the bits of all draws.

        :param shape: of one input, (features,) or (channels, height, width); None: what the linear layer
            that comes first takes.
        :raises ValueError: for a regressor; for no shape where another layer comes first.
        """
        if self._noise is not None:
            raise ValueError("The module is of classifiers; use predict() of a regressor.")
        image = input_shape(self._network.operations, shape)
        return FusedPredictive(self._network.program(image, 0, max(self.num_samples, 1)))

    def summary(self, x: Tensor | None = None, *, profile: bool = False) -> PackedSummary:
        """Bits, bytes and operations of each layer; with inputs, also the microseconds to expect.

        :param x: a batch of the size to be predicted, or None. :param profile: measure them as well.
        :raises ValueError: for a profile without inputs. :raises RuntimeError: without the kernels.
        """
        if profile and self.backend != "cpu":
            raise RuntimeError('Layers are profiled with the compiled kernels: use backend="cpu".')
        inputs = None if x is None else self._inputs(x)
        return summarise(self._network, inputs, self._threads(), profile)

    def _regress(
        self, x: np.ndarray, image: tuple[int, int, int], count: int
    ) -> RegressionPrediction:
        assert self._noise is not None
        total, mean, deviations = 0, np.zeros((len(x), 1)), np.zeros((len(x), 1))
        for program in self._programs(image):
            sums = program.run_regression(x, threads=self._threads())
            if sums.mean.shape[1] != 1:
                raise ValueError(
                    f"Expected one mean per input from the network; got {sums.mean.shape[1]} numbers."
                )
            step, added = (
                sums.mean - mean,
                program.draws,
            )  # two sets of draws as one (Chan et al. 1983)
            deviations = deviations + sums.deviations + step**2 * (total * added / (total + added))
            mean, total = mean + step * (added / (total + added)), total + added
        variance = mean_noise_variance(self._posterior, self._noise, self.num_samples, self.seed)
        center = torch.from_numpy(mean[:, 0])
        epistemic = torch.from_numpy(deviations[:, 0]) / count
        return RegressionPrediction(center, variance.expand_as(center), epistemic, count)

    def _predict_in_torch(self, x: Any) -> Prediction | RegressionPrediction:
        draws = (self.num_samples, self.seed, self._statistics)
        found: Any
        if self._noise is not None:
            moved = self._where_net_is(x)
            found = predict_regression(self._net, self._posterior, moved, self._noise, *draws)
        else:
            found = predict(self._net, self._posterior, self._where_net_is(x), *draws)
        tensors = {
            name: value.cpu() for name, value in vars(found).items() if isinstance(value, Tensor)
        }
        return replace(found, **tensors)

    def _where_net_is(self, x: Any) -> list[Tensor]:
        return network_batches(self._net, x)

    def _programs(self, image: tuple[int, int, int]) -> Iterator[Program | TritonProgram]:
        """Programs that together run all draws: one, or one for every few draws with effects."""
        count = max(self.num_samples, 1)
        size = DRAWS_AT_ONCE if self._posterior.effects else count
        if image in self._on_device:
            yield self._on_device[image]
            return
        for first in range(0, count, size):
            program = self._network.program(image, first, min(first + size, count))
            if self.backend == "triton":
                program = TritonProgram(program, self.device)
                if size == count:
                    self._on_device[image] = program  # thresholds are sent there once
            yield program

    def _inputs(self, x: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Inputs in rows, and the shape (channels, height, width) of one."""
        batches = network_batches(self._net, x)
        if not batches:
            raise ValueError("There is no batch of inputs; pass a tensor (B, ...) or some batches.")
        whole = batches[0] if len(batches) == 1 else torch.cat(batches)
        if not bool(torch.isfinite(whole).all()):
            raise ValueError("The inputs contain NaN or infinity; clean or impute them first.")
        shape = tuple(whole.shape[1:])
        if len(shape) not in (1, 3):
            raise ValueError(
                f"Packed prediction takes inputs (B, features) or (B, channels, height, width); got "
                f"{tuple(whole.shape)}."
            )
        image = (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])
        rows = whole.detach().to("cpu", torch.float32).reshape(len(whole), math.prod(shape))
        return np.ascontiguousarray(rows.numpy()), image

    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def __repr__(self) -> str:
        what = f"{self.num_samples} draws of seed {self.seed}" if self.num_samples else "the mode"
        where = f"{self.backend} on {self.device}" if self.device.type != "cpu" else self.backend
        how = kernels.isa() if self.backend == "cpu" else where
        weights = self._posterior.num_weights
        return f"PackedPredictive({what}, {weights:,} weights, {self.precision}, {how})"
