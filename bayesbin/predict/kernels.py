"""The compiled kernels over packed signs, with everything checked before an address is passed on.

Signs are packed as :mod:`bayesbin.predict.packing` has it: uint64 words, bit k mod 64 of word k // 64 of
row n is weight (n, k), a set bit is +1; pad bits are 0 in what comes out and ignored in what goes in.
All arrays are numpy's; ``tensor.numpy()`` shares a CPU tensor's memory.

Every function takes ``isa``, the set of instructions to run on (None: the one that the environment
variable BAYESBIN_KERNEL names, or else the best there is), and ``threads``. Results are the same, bit for
bit, for every isa and number of threads. Ctrl-C stops a call within a tenth of a second. The C++ side is
in bayesbin/predict/csrc, from module.cpp on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bayesbin.core.checks import whole_number
from bayesbin.predict.packing import num_words

_module: Any = None
_why_not: str | None = None
try:
    from bayesbin.predict import _kernels as _module  # pyright: ignore
except ImportError as error:
    _why_not = (
        f"The compiled kernels are not there ({error}); install the package where there is a C++ "
        "compiler to have them built."
    )

KINDS = {"real": 0, "fast": 1, "sign": 2}
Pair = tuple[int, int]


def available() -> bool:
    """Whether the kernels were built."""
    return _module is not None


def why_not() -> str | None:
    """Why they are not available, in a sentence; None if they are."""
    return _why_not


def isa() -> str:
    """The isa in use: "portable", "avx2", "avx512" or "neon"."""
    return loaded().isa()


def kernel_isa() -> str:
    """The isa in use, or "none" where the kernels were not built."""
    return isa() if available() else "none"


def isas() -> list[str]:
    """The isas that this machine can run, best last."""
    return loaded().isas()


def draw_bits(
    mode: np.ndarray,
    thresholds: np.ndarray,
    key: int,
    *,
    isa: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """The packed signs of one draw: those of ``mode``, flipped where a 16-bit random number is less.

    :param mode: packed, (N, words). :param thresholds: uint16 (N, K), of at most 32768.
    :param key: the site's key for the draw, 64 bits (:mod:`bayesbin.posterior.draws`).
    :raises ValueError: for arrays of other types or shapes.
    """
    thresholds = checked("thresholds", thresholds, np.uint16, (None, None))
    units, inputs = thresholds.shape
    mode = checked("mode", mode, np.uint64, (units, num_words(inputs)))
    out = np.empty_like(mode)
    loaded().draw_bits(
        isa or "",
        address(mode),
        address(thresholds),
        key % 2**64,
        units,
        inputs,
        address(out),
        thread_count(threads),
    )
    return out


def linear(
    x: np.ndarray,
    bits: np.ndarray,
    kind: str = "real",
    *,
    isa: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    r"""Signs times real inputs, float32 (M, N).

    .. math:: y_{mn} = \sum_k w_{nk} x_{mk}

    :param x: float32 (M, K). :param bits: packed, (N, words).
    :param kind: "real" for sums of float32 (relative error about 2e-7); "fast" for inputs rounded to
        multiples of a row's own step (about 1.5e-4 for inputs of similar sizes), rows with NaN or
        infinity as "real"; "sign" for the signs of x (+1 at 0), exact.
    :raises ValueError: for an unknown kind, or arrays of other types or shapes.
    """
    x = checked("x", x, np.float32, (None, None))
    rows, inputs = x.shape
    bits = checked("bits", bits, np.uint64, (None, num_words(inputs)))
    image, window = (inputs, 1, 1), (1, 1, 1, 1, 0, 0)
    return _weighted(kind, x, image, bits, window, isa, threads).reshape(rows, len(bits))


def linear_sign(
    x: np.ndarray, bits: np.ndarray, inputs: int, *, isa: str | None = None, threads: int = 1
) -> np.ndarray:
    """Signs times signs by popcounts, int32 (M, N): K minus twice the number of differing bits.

    :param x: packed, (M, words). :param bits: packed, (N, words). :param inputs: K.
    :raises ValueError: for arrays of other types or shapes.
    """
    x = checked("x", x, np.uint64, (None, num_words(inputs)))
    bits = checked("bits", bits, np.uint64, (None, num_words(inputs)))
    out = np.empty((len(x), len(bits)), dtype=np.int32)
    loaded().xnor(
        isa or "",
        address(x),
        len(x),
        address(bits),
        len(bits),
        inputs,
        address(out),
        thread_count(threads),
    )
    return out


def conv2d(
    x: np.ndarray,
    bits: np.ndarray,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    kind: str = "real",
    *,
    isa: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Convolution of images with signs, float32 (M, N, H', W'); zeros around the image count as 0.

    :param x: float32 (M, C, H, W). :param bits: packed rows of the weights (N, C, *kernel).
    :param kind: as for :func:`linear`; "fast" is computed as "real". The signs of padding are 0.
    :raises ValueError: for an unknown kind, a kernel that does not fit, or arrays of other types or
        shapes.
    """
    x = checked("x", x, np.float32, (None, None, None, None))
    bits, out_shape, window = _convolution(x.shape, bits, kernel, stride, padding)
    image = (x.shape[1], x.shape[2], x.shape[3])
    return _weighted(kind, x, image, bits, window, isa, threads).reshape(out_shape)


def conv2d_sign(
    x: np.ndarray,
    shape: tuple[int, int, int],
    bits: np.ndarray,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    *,
    isa: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """:func:`conv2d` of packed images, exact, int32 (M, N, H', W').

    :param x: packed rows of images, (M, words). :param shape: (C, H, W) of an image.
    :raises ValueError: as :func:`conv2d`.
    """
    x = checked("x", x, np.uint64, (None, num_words(math.prod(shape))))
    bits, out_shape, window = _convolution((len(x), *shape), bits, kernel, stride, padding)
    out = np.empty(out_shape, dtype=np.int32)
    loaded().weighted_signs(
        isa or "",
        shape,
        len(bits),
        window,
        address(x),
        len(x),
        address(bits),
        address(out),
        thread_count(threads),
    )
    return out


def _weighted(
    kind: str,
    x: np.ndarray,
    image: tuple[int, int, int],
    bits: np.ndarray,
    window: tuple[int, ...],
    isa: str | None,
    threads: int,
) -> np.ndarray:
    """Outputs of a layer in rows, (M, all the others)."""
    pixels = math.prod(pixels_of(image[1:], window))
    out = np.empty((len(x), len(bits) * pixels), dtype=np.float32)
    loaded().weighted(
        isa or "", kind_number(kind), image, len(bits), window, address(x), len(x), address(bits),
        address(out), thread_count(threads),
    )  # fmt: skip
    return out


def _convolution(
    shape: tuple[int, ...], bits: np.ndarray, kernel: Pair, stride: Pair, padding: Pair
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Checked bits, the shape of the outputs, and the window, of images of ``shape`` (M, C, H, W)."""
    window = window_of(kernel, stride, padding)
    bits = checked("bits", bits, np.uint64, (None, num_words(shape[1] * math.prod(kernel))))
    return bits, (shape[0], len(bits), *pixels_of(shape[2:], window)), window


# What stands between an array and its address; shared with kernel_program.py


def loaded() -> Any:
    """The extension module. :raises RuntimeError: with the reason, if it was not built."""
    if _module is None:
        raise RuntimeError(_why_not)
    return _module


def window_of(kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    """Height, width, steps and padding of a window, vertical before horizontal; all checked."""
    window = (*kernel, *stride, *padding)
    if len(window) != 6 or min(window[:4]) < 1 or min(window[4:]) < 0:
        raise ValueError(
            f"A window has two sizes and two strides of at least 1, and two paddings of at least 0; got "
            f"kernel {kernel}, stride {stride} and padding {padding}."
        )
    return window


def pixels_of(image: tuple[int, ...], window: tuple[int, ...]) -> Pair:
    """Height and width of the outputs for images (H, W)."""
    padded = [image[i] + 2 * window[4 + i] for i in (0, 1)]
    if padded[0] < window[0] or padded[1] < window[1]:
        raise ValueError(
            f"A kernel of {window[0]} x {window[1]} does not fit images of {image[0]} x {image[1]} with "
            f"padding {window[4:]}."
        )
    return tuple((padded[i] - window[i]) // window[2 + i] + 1 for i in (0, 1))  # pyright: ignore


def kind_number(kind: str) -> int:
    """The number of a kind of sums. :raises ValueError: for an unknown one."""
    if kind not in KINDS:
        raise ValueError(f"A kind of sums is one of {', '.join(KINDS)}; got {kind!r}.")
    return KINDS[kind]


def thread_count(threads: int) -> int:
    """A number of threads, checked."""
    return min(whole_number("threads", threads, at_least=1), 256)


def checked(name: str, array: np.ndarray, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array in C order, of exactly that type and shape (None: any size).

    :raises TypeError: for anything but an array of the type. :raises ValueError: for another shape.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} is an array of {np.dtype(dtype)}; got {found}. Convert it first.")
    fits = array.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has the shape ({wanted}); got {array.shape}.")
    return np.ascontiguousarray(array)


def address(array: np.ndarray) -> int:
    """Where a checked array begins."""
    return array.ctypes.data
