"""Steps that compute each number by itself, or from the two or three in the same place."""

from __future__ import annotations

import math

import numpy as np

# A number of Python's: compared with one of float32 a larger one would overflow, with a warning.
_LARGEST = float(np.finfo(np.float32).max)

# Decisions: inputs in float64


def sign(x: np.ndarray) -> np.ndarray:
    """+1 where x >= 0, also at -0; else -1."""
    return np.where(x >= 0, 1.0, -1.0)


def threshold(x: np.ndarray, at: np.ndarray, slope: np.ndarray, *, axis: int) -> np.ndarray:
    """+1 where slope (x - at) >= 0, else -1, as it is in exact arithmetic."""
    at, slope = channels(at, x, axis), channels(slope, x, axis)
    plus = np.where(slope > 0, x >= at, np.where(slope < 0, x <= at, x == x))
    return np.where(plus, 1.0, -1.0)


def channels(numbers: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    """Numbers (B, C) for the channels along one axis of a datum of x, or (B,) for all, as x has axes."""
    shape = [len(numbers), *[1] * (x.ndim - 1)]
    if numbers.ndim > 1:
        shape[axis + 1] = numbers.shape[1]
    return numbers.reshape(shape)


def in_range(number: float) -> float:
    """An attribute: beyond the range of float32 it stands for infinity."""
    return number if abs(number) <= _LARGEST else math.copysign(math.inf, number)


# Formulas that are exact in float32 as they stand: in the type of the output


def affine(x: np.ndarray, slope: np.ndarray, shift: np.ndarray, *, axis: int) -> np.ndarray:
    return x * channels(slope, x, axis) + channels(shift, x, axis)


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, x.dtype.type(0), x)


def clamp(x: np.ndarray, *, low: float, high: float) -> np.ndarray:
    if x.dtype.kind == "i":
        whole = np.iinfo(x.dtype)
        return np.clip(x, max(int(low), whole.min), min(int(high), whole.max))
    least, most = (x.dtype.type(in_range(bound)) for bound in (low, high))
    x = np.where(x < least, least, x)
    return np.where(x > most, most, x)


def leaky_relu(x: np.ndarray, *, slope: float) -> np.ndarray:
    return np.where(x > 0, x, x * x.dtype.type(slope))


def prelu(x: np.ndarray, slopes: np.ndarray, *, axis: int) -> np.ndarray:
    return np.where(x > 0, x, x * channels(slopes, x, axis))


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The larger; the first of equals (+0 and -0 are), NaN if either is."""
    return np.where((a >= b) | (a != a), a, b)


def minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a <= b) | (a != a), a, b)


def tanh(x: np.ndarray) -> np.ndarray:
    """In float32 a polynomial within 2 units in the last place, the same number on every machine.

    1 - 2 / (exp(2|x|) + 1), and near 0 an odd polynomial; Cephes' tanhf and expf.
    """
    if x.dtype != np.float32:
        return np.tanh(x)
    out = np.empty(x.shape, np.float32)
    flat, given = out.reshape(-1), x.reshape(-1)
    for start in range(0, flat.size, 1 << 13):  # a block stays in the first-level cache
        flat[start : start + (1 << 13)] = _tanh(given[start : start + (1 << 13)])
    return out


def _tanh(v: np.ndarray) -> np.ndarray:
    f = np.float32
    size = np.abs(v)
    y = np.where(size < f(10), f(2) * size, f(20))  # tanh(10) rounds to 1
    whole = (y * f(1.44269504) + f(12582912)) - f(12582912)
    rest = (y - whole * f(0.693359375)) + whole * f(2.12194440e-4)
    e = f(1.9875691500e-4) * rest + f(1.3981999507e-3)
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        e = e * rest + f(coefficient)
    e = e * rest * rest + rest + f(1)
    power = (whole.astype(np.int32) + np.int32(127) << 23).view(np.float32)
    far = f(1) - f(2) / (e * power + f(1))
    z = v * v
    near = f(-5.70498872745e-3) * z + f(2.06390887954e-2)
    for coefficient in (-5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        near = near * z + f(coefficient)
    near = near * z * v + v
    finite = np.where(size < f(0.625), near, np.where(v < 0, -far, far))
    return np.where(v != v, v, finite)


# Formulas in float64


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def softplus(x: np.ndarray, *, beta: float, threshold: float) -> np.ndarray:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    scaled = x * beta
    return np.where(scaled > threshold, x, np.log1p(np.exp(scaled)) / beta)


def elu(x: np.ndarray, *, alpha: float, scale: float, input_scale: float) -> np.ndarray:
    return scale * np.where(x > 0, x, alpha * np.expm1(x * input_scale))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(softplus(x, beta=1.0, threshold=20.0))


def gelu(x: np.ndarray, *, approximate: str) -> np.ndarray:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * (x * x * x))))
    return 0.5 * x * (1 + erf(x * np.sqrt(0.5)))


def hardsigmoid(x: np.ndarray) -> np.ndarray:
    return clamp(x + 3, low=0.0, high=6.0) / 6


def hardswish(x: np.ndarray) -> np.ndarray:
    return x * clamp(x + 3, low=0.0, high=6.0) / 6


def softsign(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.abs(x))


def hardshrink(x: np.ndarray, *, bound: float) -> np.ndarray:
    return np.where(np.abs(x) <= bound, 0.0, x)


def softshrink(x: np.ndarray, *, bound: float) -> np.ndarray:
    return np.where(np.abs(x) <= bound, 0.0, x - np.copysign(bound, x))


def power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a to the b. For some exponents numpy takes shorter ways, depending on how arrays lie; here always."""
    a, b = (np.ascontiguousarray(x) for x in np.broadcast_arrays(a, b))
    out = np.power(a, b)
    if a.dtype.kind == "i":
        return out
    for exponent, short in ((2.0, a * a), (0.5, np.sqrt(a)), (-1.0, 1 / a), (1.0, a)):
        out = np.where(b == exponent, short, out)
    return out


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, within a unit in the last place of float64.

    The rational approximations of FreeBSD's msun s_erf.c (Sun Microsystems 1993), one for each range.
    """
    size = np.abs(x)
    out = np.where(size != size, x, np.copysign(1.0, x))
    near = size < 0.84375
    z = x[near] * x[near]
    out[near] = x[near] + x[near] * (_polynomial(_PP, z) / _polynomial(_QQ, z))
    middle = (size >= 0.84375) & (size < 1.25)
    s = size[middle] - 1
    found = 8.45062911510467529297e-01 + _polynomial(_PA, s) / _polynomial(_QA, s)
    out[middle] = np.copysign(found, x[middle])
    for low, high, above, below in ((1.25, 1 / 0.35, _RA, _SA), (1 / 0.35, 6.0, _RB, _SB)):
        far = (size >= low) & (size < high)
        v = size[far]
        s = 1 / (v * v)
        head = (v.view(np.int64) & -(1 << 32)).view(np.float64)  # its square is exact
        ratio = _polynomial(above, s) / _polynomial(below, s)
        tail = np.exp(-head * head - 0.5625) * np.exp((head - v) * (head + v) + ratio)
        out[far] = np.copysign(1 - tail / v, x[far])
    return out


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """By Horner's rule, from the lowest coefficient on."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


_PP = (
    1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02,
    -5.77027029648944159157e-03, -2.37630166566501626084e-05,
)  # fmt: skip
_QQ = (
    1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03,
    1.32494738004321644526e-04, -3.96022827877536812320e-06,
)  # fmt: skip
_PA = (
    -2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01,
    3.18346619901161753674e-01, -1.10894694282396677476e-01, 3.54783043256182359371e-02,
    -2.16637559486879084300e-03,
)  # fmt: skip
_QA = (
    1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02,
    1.26171219808761642112e-01, 1.36370839120290507362e-02, 1.19844998467991074170e-02,
)  # fmt: skip
_RA = (
    -9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e+01,
    -6.23753324503260060396e+01, -1.62396669462573470355e+02, -1.84605092906711035994e+02,
    -8.12874355063065934246e+01, -9.81432934416914548592e+00,
)  # fmt: skip
_SA = (
    1.0, 1.96512716674392571292e+01, 1.37657754143519042600e+02, 4.34565877475229228821e+02,
    6.45387271733267880336e+02, 4.29008140027567833386e+02, 1.08635005541779435134e+02,
    6.57024977031928170135e+00, -6.04244152148580987438e-02,
)  # fmt: skip
_RB = (
    -9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e+01,
    -1.60636384855821916062e+02, -6.37566443368389627722e+02, -1.02509513161107724954e+03,
    -4.83519191608651397019e+02,
)  # fmt: skip
_SB = (
    1.0, 3.03380607434824582924e+01, 3.25792512996573918826e+02, 1.53672958608443695994e+03,
    3.19985821950859553908e+03, 2.55305040643316442583e+03, 4.74528541206955367215e+02,
    -2.24409524465858183362e+01,
)  # fmt: skip
