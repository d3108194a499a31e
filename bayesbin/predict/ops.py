"""The packed kernels as torch operators: known to torch.compile and torch.export by their shapes.

Packed words are int64 tensors here, the bits of :mod:`bayesbin.predict.packing`: torch's unsigned types
have few operations. Where the kernels were not built, or off the CPU, the operators compute in torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.predict import kernels
from bayesbin.predict.packing import num_words, pack, unpack


def pack_signs(signs: Tensor) -> Tensor:
    """Packed words, int64 (N, words), of a tensor of signs (N, ...).

    >>> pack_signs(torch.tensor([[1.0, -1.0, 1.0]])).tolist()
    [[5]]
    """
    words = pack((signs > 0).cpu().numpy()).view(np.int64)
    return torch.from_numpy(words).to(signs.device)


@torch.library.custom_op("bayesbin::packed_linear", mutates_args=())
def packed_linear(x: Tensor, words: Tensor, fast: bool = False) -> Tensor:
    r"""Signs times inputs, y = x W^T, float32 (B, N).

    :param x: float32 (B, K). :param words: packed signs (N, words), int64.
    :param fast: whether inputs are rounded to 16 bits.
    """
    _check(x, words, x.shape[-1], 2)
    if not _in_kernels(x):
        return F.linear(x, _signs(words, (len(words), x.shape[1]), x))
    found = kernels.linear(
        _array(x), _words(words), "fast" if fast else "real", threads=torch.get_num_threads()
    )
    return torch.from_numpy(found)


@packed_linear.register_fake
def _(x: Tensor, words: Tensor, fast: bool = False) -> Tensor:
    return x.new_empty((x.shape[0], words.shape[0]))


@torch.library.custom_op("bayesbin::packed_conv2d", mutates_args=())
def packed_conv2d(
    x: Tensor, words: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Convolution of images with signs, float32 (B, N, H', W').

    :param x: float32 (B, C, H, W). :param words: packed signs of (N, C, *kernel), int64.
    :param kernel: height and width; so are ``stride`` and ``padding``, of zeros.
    """
    height, width = kernel
    _check(x, words, x.shape[1] * height * width, 4)
    if not _in_kernels(x):
        shape = (len(words), x.shape[1], height, width)
        return F.conv2d(x, _signs(words, shape, x), stride=tuple(stride), padding=tuple(padding))
    found = kernels.conv2d(
        _array(x),
        _words(words),
        (height, width),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(found)


@packed_conv2d.register_fake
def _(
    x: Tensor, words: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    size = [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]
    return x.new_empty((x.shape[0], words.shape[0], *size))


def _check(x: Tensor, words: Tensor, inputs: int, dims: int) -> None:
    if x.dim() != dims or x.dtype != torch.float32:
        raise ValueError(
            f"Expected float32 inputs of {dims} dimensions; got {x.dtype} of shape {tuple(x.shape)}."
        )
    if words.dim() != 2 or words.dtype != torch.int64 or words.shape[1] != num_words(inputs):
        raise ValueError(
            f"Expected packed signs (N, {num_words(inputs)}) of int64 for {inputs} inputs of a unit; got "
            f"{words.dtype} of shape {tuple(words.shape)}."
        )


def _in_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and kernels.available()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _words(words: Tensor) -> np.ndarray:
    return words.contiguous().numpy().view(np.uint64)


def _signs(words: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    plus = unpack(words.cpu().contiguous().numpy().view(np.uint64), shape)
    return torch.from_numpy(plus).to(like) * 2.0 - 1.0
