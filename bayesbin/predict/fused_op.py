"""A whole averaged prediction as one torch operator, and as a module around it.

The operator is a function of its tensors: the steps of a program as rows of whole numbers, and the
arrays that the rows name. Where the kernels were not built, or off the CPU, it computes in torch, with the
same draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.predict import kernels
from bayesbin.predict.folding import Operation
from bayesbin.predict.kernel_program import Program
from bayesbin.predict.program import Flatten, Pool, Weighted
from bayesbin.predict.program_rows import replay
from bayesbin.predict.torch_program import TorchProgram

# Unsigned types have few operations in torch: words are kept as signed ones of the same bits.
_UNSIGNED = {torch.int64: np.uint64, torch.int16: np.uint16, torch.float32: np.float32}
_SIGNED = {"uint64": np.int64, "uint16": np.int16, "float32": np.float32}


@torch.library.custom_op("bayesbin::fused_predict", mutates_args=())
def fused_predict(
    x: Tensor,
    rows: Tensor,
    buffers: Sequence[Tensor],
    draws: int,
    shape: Sequence[int],
    outputs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the draws of a classifier: log of the probabilities and their squares (B, classes),
    entropies in nats (B,), in float64.

    :param x: float32 (B, C H W). :param rows: of a program, int64 (steps, 16), as ``Program.rows``.
    :param buffers: what the rows name, as :class:`FusedPredictive` holds them.
    :param draws: S. :param shape: (C, H, W) of one input. :param outputs: the number of classes.
    :raises ValueError: for inputs with NaN or infinity or of another size, or rows that make no program.
    """
    if x.dim() != 2 or x.dtype != torch.float32 or x.shape[1] != math.prod(shape):
        raise ValueError(
            f"Expected float32 inputs (B, {math.prod(shape)}); got {x.dtype} of shape {tuple(x.shape)}."
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("The inputs contain NaN or infinity; clean or impute them first.")
    arrays = [_array(buffer) for buffer in buffers]
    image = (shape[0], shape[1], shape[2])
    program = Program(image, draws)
    replay(rows.cpu().numpy(), arrays, program)
    if math.prod(program.shape) != outputs:
        raise ValueError(f"The program has {math.prod(program.shape)} outputs; got {outputs}.")
    if x.device.type != "cpu" or not kernels.available():
        twin = TorchProgram(image, draws)
        replay(rows.cpu().numpy(), arrays, twin)
        return twin.run_classes(x.contiguous())
    values = x.detach().contiguous().numpy()
    sums = program.run_classes(values, threads=torch.get_num_threads())
    return tuple(torch.from_numpy(one) for one in (sums.log_probs, sums.squares, sums.entropies))  # pyright: ignore


@fused_predict.register_fake
def _(
    x: Tensor,
    rows: Tensor,
    buffers: Sequence[Tensor],
    draws: int,
    shape: Sequence[int],
    outputs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = ((x.shape[0], outputs), (x.shape[0], outputs), (x.shape[0],))
    return tuple(x.new_empty(size, dtype=torch.float64) for size in sizes)  # pyright: ignore


class FusedPredictive(nn.Module):
    """A classifier averaged over draws as one operator, for torch.compile and torch.export.

    Made by :meth:`bayesbin.predict.PackedPredictive.module`, whose answers it gives. It returns the log of
    the averaged probabilities (B, C), the mean entropy of single draws (B,), and the standard deviation of
    the probabilities over draws (B, C), float64: ``log_probs``, ``expected_entropy`` and ``probs_std`` of
    :class:`bayesbin.predict.Prediction`; the first two are the same to the bit on CPUs, the last within
    1e-7, since torch and numpy round exponentials differently. All it knows is in its buffers. Nothing is
    differentiated.

    An exported program holds the operator by name: ``import bayesbin.predict.fused_op`` before it is
    loaded.

    :param program: of a classifier, for all draws.

    Example::

        >>> import torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import PackedPredictive
        >>> posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        >>> module = PackedPredictive(BinaryLinear(4, 3), posterior, num_samples=100).module()
        >>> log_probs, expected_entropy, probs_std = module(torch.randn(5, 4))
        >>> log_probs.shape, expected_entropy.shape, probs_std.shape
        (torch.Size([5, 3]), torch.Size([5]), torch.Size([5, 3]))
    """

    rows: Tensor

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.draws = program.draws
        self.shape = program.input
        self.outputs = math.prod(program.shape)
        self.register_buffer("rows", torch.from_numpy(program.rows))
        self._count = len(program.arrays)
        for place, array in enumerate(program.arrays):
            signed = array.view(_SIGNED[array.dtype.name])
            self.register_buffer(f"array_{place}", torch.tensor(signed))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, expected entropy and standard deviation for inputs (B, ...)."""
        one = self.shape if x.dim() == 4 else self.shape[:1]
        if tuple(x.shape[1:]) != one or (x.dim() == 2 and self.shape[1:] != (1, 1)):
            raise ValueError(
                f"Expected inputs (B, {', '.join(map(str, self.shape))}), or (B, {self.shape[0]}) of "
                f"vectors; got {tuple(x.shape)}."
            )
        values = x.detach().to(torch.float32).reshape(x.shape[0], math.prod(self.shape))
        buffers = [self.get_buffer(f"array_{place}") for place in range(self._count)]
        total, squares, entropies = torch.ops.bayesbin.fused_predict(
            values, self.rows, buffers, self.draws, self.shape, self.outputs
        )
        mean = total - math.log(self.draws)
        spread = (squares / self.draws - mean.exp().square()).clamp(min=0.0).sqrt()
        return mean, entropies / self.draws, spread

    def extra_repr(self) -> str:
        return f"{self.shape} -> {self.outputs}, {self.draws} draws"


def input_shape(
    operations: Sequence[Operation], shape: Sequence[int] | None
) -> tuple[int, int, int]:
    """(C, H, W) of one input: ``shape``, or what the linear layer that comes first takes.

    :raises ValueError: for no shape where another step comes first, or one of another length.
    """
    if shape is None:
        first = next((op for op in operations if isinstance(op, (Weighted, Flatten, Pool))), None)
        if isinstance(first, Weighted) and first.stride is None:
            return first.shape[1], 1, 1
    elif len(shape) == 1:
        return shape[0], 1, 1
    elif len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ValueError(
        f"shape is that of one input, (features,) or (channels, height, width), and left out only where a "
        f"linear layer comes first; got {shape}."
    )


def _array(buffer: Tensor) -> np.ndarray:
    if buffer.dtype not in _UNSIGNED:
        raise ValueError(
            f"The buffers are of int64, int16 and float32, as they were made; got {buffer.dtype}. Convert "
            "inputs, not the module."
        )
    return buffer.detach().cpu().contiguous().numpy().view(_UNSIGNED[buffer.dtype])
