"""The slow twin of :mod:`bayesbin.predict.kernel_program`: the same steps and the same draws, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.nn.activations import Sign
from bayesbin.posterior.draws import Thresholds, signs_of
from bayesbin.predict.kernels import Pair
from bayesbin.predict.packing import unpack

_Step = Callable[[Tensor, int, list[Tensor]], Tensor]  # of values, a draw, and what was put aside
_FUNCTIONS = {"relu": F.relu, "tanh": torch.tanh, "sign": Sign()}


class TorchProgram:
    """A network as steps in a row, as :class:`bayesbin.predict.kernel_program.Program`, on any device.

    All kinds of sums are exact here. Values are images (B, C, H, W) throughout.

    :param shape: of one input, (C, H, W). :param draws: S.
    """

    def __init__(self, shape: tuple[int, int, int], draws: int) -> None:
        self.draws = draws
        self._input = shape
        self._steps: list[_Step] = []

    def drawn(
        self,
        mode: np.ndarray,
        thresholds: np.ndarray,
        keys: np.ndarray,
        shape: tuple[int, ...],
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        kind: str = "real",
    ) -> None:
        """Weights of ``shape``, drawn anew for each draw."""
        distribution = Thresholds(unpack(mode, thresholds.shape), thresholds)
        self._weights(lambda draw: distribution.draw(int(keys[draw])), shape, stride, padding)

    def given(
        self,
        bits: np.ndarray,
        shape: tuple[int, ...],
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        kind: str = "real",
    ) -> None:
        """Weights of ``shape`` from packed bits, (S or 1, N, words)."""
        self._weights(lambda draw: unpack(_of(bits, draw), shape), shape, stride, padding)

    def affine(self, slope: np.ndarray, shift: np.ndarray) -> None:
        """slope x + shift for each channel; float32 (S or 1, channels)."""

        def step(x: Tensor, draw: int, stack: list[Tensor]) -> Tensor:
            a, b = (torch.from_numpy(_of(one, draw)).to(x).view(-1, 1, 1) for one in (slope, shift))
            return x * a + b

        self._steps.append(step)

    def activation(self, kind: str, low: float = -1.0, high: float = 1.0) -> None:
        """ "relu", "tanh", "sign" (+1 at 0), or "hardtanh" between ``low`` and ``high``."""
        if kind == "hardtanh":
            self._steps.append(lambda x, draw, stack: x.clamp(low, high))
        else:
            self._steps.append(lambda x, draw, stack: _FUNCTIONS[kind](x))

    def pool(
        self,
        kind: str,
        size: Pair,
        stride: Pair,
        padding: Pair = (0, 0),
        count_include_pad: bool = True,
    ) -> None:
        """The maximum ("max") or mean ("avg") over windows of images."""
        if kind == "max":
            self._steps.append(lambda x, draw, stack: F.max_pool2d(x, size, stride, padding))
        else:
            self._steps.append(
                lambda x, draw, stack: F.avg_pool2d(
                    x, size, stride, padding, count_include_pad=count_include_pad
                )
            )

    def flatten(self) -> None:
        """(C, H, W) to (C H W, 1, 1)."""
        self._steps.append(lambda x, draw, stack: _pixel(x.flatten(1)))

    def push(self) -> None:
        """Put the values on the stack."""

        def step(x: Tensor, draw: int, stack: list[Tensor]) -> Tensor:
            stack.append(x)
            return x

        self._steps.append(step)

    def swap(self) -> None:
        """Exchange the values with those on top of the stack."""

        def step(x: Tensor, draw: int, stack: list[Tensor]) -> Tensor:
            top = stack.pop()
            stack.append(x)
            return top

        self._steps.append(step)

    def add(self) -> None:
        """Take the values on top off the stack and add them."""
        self._steps.append(lambda x, draw, stack: x + stack.pop())

    def run_classes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the draws for x (B, C H W): log of the probabilities and squares of them (B, classes),
        and entropies (B,), in float64.
        """
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        total, squares, entropies = zero - math.inf, zero, zero
        for draw in range(self.draws):
            log_probs = torch.log_softmax(self._run(x, draw).double(), dim=-1)
            probs = log_probs.exp()
            total = torch.logaddexp(total, log_probs)
            squares = squares + probs.square()
            entropies = entropies + torch.special.entr(probs).sum(-1)
        return total, squares, entropies

    def _run(self, x: Tensor, draw: int) -> Tensor:
        stack: list[Tensor] = []
        x = x.reshape(len(x), *self._input)
        for step in self._steps:
            x = step(x, draw, stack)
        return x.flatten(1)

    def _weights(
        self,
        plus: Callable[[int], np.ndarray],
        shape: tuple[int, ...],
        stride: Pair,
        padding: Pair,
    ) -> None:
        def step(x: Tensor, draw: int, stack: list[Tensor]) -> Tensor:
            w = signs_of(plus(draw), x).reshape(shape)
            if x.shape[2:] == (1, 1) and w[0, 0].numel() == 1 and padding == (0, 0):
                return _pixel(F.linear(x.flatten(1), w.flatten(1)))
            return F.conv2d(x, w, stride=stride, padding=padding)

        self._steps.append(step)


def _of(array: np.ndarray, draw: int) -> np.ndarray:
    return array[draw if len(array) > 1 else 0]


def _pixel(x: Tensor) -> Tensor:
    return x[:, :, None, None]
