"""A packed network on a GPU: the steps of a program for all draws, weighted ones by Triton kernels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.nn.activations import Sign
from bayesbin.predict.kernel_program import ClassSums, Program, RegressionSums
from bayesbin.predict.kernels import Pair, pixels_of
from bayesbin.predict.program_rows import replay

# Of values, the first draw and the one past the last, and what was put aside.
_Step = Callable[[Tensor, int, int, list[Tensor]], Tensor]
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sign": Sign(),
}
_NUMBERS = 1 << 26  # of 4 bytes, in the largest array of a run: more draws or inputs go in parts
_GRID = 65_535  # of CUDA, in the direction that the draws lie in


class TritonProgram:
    """A program of :class:`bayesbin.predict.kernel_program.Program` on a device, with the same draws.

    Many draws are run at a time, up to a fixed amount of memory, and signs are never stored as numbers
    but for convolutions: those expand one draw's signs to float32 for torch's own, without TF32. Linear
    layers are :func:`bayesbin.predict.triton_signs.linear` and ``linear_sign``; lines, activations and
    pools are torch's. Values are images (draws or 1, B, C, H, W) throughout.

    :param program: checked, for its shape and draws. :param device: a GPU; in Triton's interpreter any.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        from bayesbin.predict import triton_signs  # here, so that the rest does without Triton

        self._kernels = triton_signs
        self.draws, self.shape = program.draws, program.input
        self._input, self._device = program.input, device
        self._steps: list[_Step] = []
        self._aside: list[tuple[int, int, int]] = []  # shapes of what is on the stack
        self._widest = math.prod(self.shape)
        self._words = 1  # of the largest layer
        steps: Any = self
        replay(program.rows, program.arrays, steps)

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
        signs = self._kernels.SignDraws.drawn(mode, thresholds, keys, self._device)
        self._weights(signs, shape, stride, padding, kind)

    def given(
        self,
        bits: np.ndarray,
        shape: tuple[int, ...],
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        kind: str = "real",
    ) -> None:
        """Weights of ``shape`` from packed bits, (S or 1, N, words)."""
        signs = self._kernels.SignDraws.given(bits, math.prod(shape[1:]), self._device)
        self._weights(signs, shape, stride, padding, kind)

    def affine(self, slope: np.ndarray, shift: np.ndarray) -> None:
        """slope x + shift for each channel; float32 (S or 1, channels)."""
        a, b = (
            torch.tensor(array, device=self._device)[:, None, :, None, None]
            for array in (slope, shift)
        )

        def step(x: Tensor, first: int, last: int, stack: list[Tensor]) -> Tensor:
            return torch.addcmul(_of(b, first, last), x, _of(a, first, last))

        self._steps.append(step)

    def activation(self, kind: str, low: float = -1.0, high: float = 1.0) -> None:
        """ "relu", "tanh", "sign" (+1 at 0), or "hardtanh" between ``low`` and ``high``."""
        if kind == "hardtanh":
            self._steps.append(lambda x, first, last, stack: x.clamp(low, high))
        else:
            self._steps.append(lambda x, first, last, stack: _FUNCTIONS[kind](x))

    def pool(
        self,
        kind: str,
        size: Pair,
        stride: Pair,
        padding: Pair = (0, 0),
        count_include_pad: bool = True,
    ) -> None:
        """The maximum ("max") or mean ("avg") over windows of images."""

        def step(x: Tensor, first: int, last: int, stack: list[Tensor]) -> Tensor:
            images = x.flatten(0, 1)
            if kind == "max":
                found = F.max_pool2d(images, size, stride, padding)
            else:
                found = F.avg_pool2d(
                    images, size, stride, padding, count_include_pad=count_include_pad
                )
            return found.unflatten(0, x.shape[:2])

        pixels = pixels_of(self.shape[1:], (*size, *stride, *padding))
        self._add(step, (self.shape[0], *pixels))

    def flatten(self) -> None:
        """(C, H, W) to (C H W, 1, 1)."""
        self._add(
            lambda x, first, last, stack: x.flatten(2)[..., None, None],
            (math.prod(self.shape), 1, 1),
        )

    def push(self) -> None:
        """Put the values on the stack; no step changes values in place."""

        def step(x: Tensor, first: int, last: int, stack: list[Tensor]) -> Tensor:
            stack.append(x)
            return x

        self._aside.append(self.shape)
        self._steps.append(step)

    def swap(self) -> None:
        """Exchange the values with those on top of the stack."""

        def step(x: Tensor, first: int, last: int, stack: list[Tensor]) -> Tensor:
            top = stack.pop()
            stack.append(x)
            return top

        top = self._aside.pop()
        self._aside.append(self.shape)
        self._add(step, top)

    def add(self) -> None:
        """Take the values on top off the stack and add them."""
        self._aside.pop()
        self._steps.append(lambda x, first, last, stack: x + stack.pop())

    def run_classes(self, x: np.ndarray, *, threads: int = 1, outputs: bool = False) -> ClassSums:
        """Run all draws over x, float32 (M, C H W), the outputs being logits; threads are of no use."""
        first, second, entropies, logs, each = self._run(x, _class_sums, outputs)
        return ClassSums(first, second, entropies, logs, each if outputs else None)

    def run_regression(
        self, x: np.ndarray, *, threads: int = 1, outputs: bool = False
    ) -> RegressionSums:
        """Run all draws over x, float32 (M, C H W), the outputs being means; threads are of no use."""
        mean, deviations, each = self._run(x, _moments, outputs)
        return RegressionSums(mean, deviations, each if outputs else None)

    @torch.no_grad()
    def _run(
        self, x: np.ndarray, head: Callable[[Iterator[Tensor]], list[Tensor]], outputs: bool
    ) -> list[np.ndarray]:
        """What the head makes of the outputs, part by part of the inputs; and the outputs, if wanted."""
        parts: list[list[Tensor]] = []
        rows = max(1, _NUMBERS // self._widest)
        with _on(self._device):
            for start in range(0, max(len(x), 1), rows):
                kept: list[Tensor] = []
                part = torch.tensor(x[start : start + rows], device=self._device)
                found = head(self._outputs(part, kept if outputs else None))
                parts.append([*found, torch.cat(kept) if outputs else part[:0]])
        last = len(parts[0]) - 1
        return [
            torch.cat(each, dim=1 if place == last and outputs else 0).cpu().numpy()
            for place, each in enumerate(zip(*parts, strict=True))
        ]

    def _outputs(self, x: Tensor, kept: list[Tensor] | None) -> Iterator[Tensor]:
        """The outputs of the next few draws, (draws, B, outputs), again and again."""
        size = max(1, min(_GRID, _NUMBERS // max(self._widest * len(x), self._words)))
        for first in range(0, self.draws, size):
            last = min(first + size, self.draws)
            stack: list[Tensor] = []
            values = x.reshape(1, len(x), *self._input)
            for step in self._steps:
                values = step(values, first, last, stack)
            values = values.flatten(2).expand(last - first, -1, -1)
            if kept is not None:
                kept.append(values.cpu())
            yield values

    def _weights(
        self, signs: Any, shape: tuple[int, ...], stride: Pair, padding: Pair, kind: str
    ) -> None:
        size = (1, 1) if len(shape) == 2 else (shape[2], shape[3])
        linear = self.shape[1:] == (1, 1) and size == (1, 1) and padding == (0, 0)
        pixels = pixels_of(self.shape[1:], (*size, *stride, *padding))
        self._words = max(self._words, signs.words[0].numel())
        kernels = self._kernels

        def products(x: Tensor, first: int, last: int, stack: list[Tensor]) -> Tensor:
            here = signs.draws(first, last)
            rows = x.flatten(2)
            if kind == "sign":
                words = kernels.draw_words(here) if here.keys is not None else here.words
                found = kernels.linear_sign(kernels.pack_signs(rows), words, here.inputs).float()
            else:
                found = kernels.linear(rows, here, fast=kind == "fast")
            return found[..., None, None]

        def convolution(x: Tensor, first: int, last: int, stack: list[Tensor]) -> Tensor:
            found = []
            for draw in range(first, last):
                w = kernels.dense(signs.draws(draw, draw + 1)).reshape(shape)
                found.append(
                    F.conv2d(x[draw - first if len(x) > 1 else 0], w, None, stride, padding)
                )
            sums = torch.stack(found)
            # Sums of signs are whole numbers; an algorithm that transforms the images may miss them.
            return sums.round_() if kind == "sign" else sums

        self._add(products if linear else convolution, (shape[0], *pixels))

    def _add(self, step: _Step, shape: tuple[int, int, int]) -> None:
        self._steps.append(step)
        self.shape = shape
        self._widest = max(self._widest, math.prod(shape))


def _class_sums(runs: Iterator[Tensor]) -> list[Tensor]:
    """Of logits: sums of probabilities, their squares and entropies, and the log of the first."""
    total, squares, entropies = None, None, None
    for logits in runs:
        log_probs = torch.log_softmax(logits.double(), dim=-1)
        probs = log_probs.exp()
        new = log_probs.logsumexp(0), probs.square().sum(0), torch.special.entr(probs).sum((0, -1))
        if total is None or squares is None or entropies is None:
            total, squares, entropies = new
        else:
            total = torch.logaddexp(total, new[0])
            squares, entropies = squares + new[1], entropies + new[2]
    assert total is not None and squares is not None and entropies is not None
    return [total.exp(), squares, entropies, total]


def _moments(runs: Iterator[Tensor]) -> list[Tensor]:
    """Mean over draws and sum of squared deviations from it (Chan et al. 1983)."""
    count, mean, deviations = 0, torch.zeros(()), torch.zeros(())
    for outputs in runs:
        values = outputs.double()
        center, added = values.mean(0), len(values)
        step = center - mean.to(center)
        deviations = deviations.to(center) + (values - center).square().sum(0)
        deviations = deviations + step.square() * (count * added / (count + added))
        mean, count = mean.to(center) + step * (added / (count + added)), count + added
    return [mean, deviations]


def _of(values: Tensor, first: int, last: int) -> Tensor:
    return values[first:last] if len(values) > 1 else values


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """On a GPU: it is the current one, where Triton launches, and convolutions are those of float32."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
