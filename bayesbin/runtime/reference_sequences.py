"""Products of values with values, attention, tables of tokens, and recurrent layers: in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bayesbin.runtime.reference_axes import aligned, check_indices, softmax
from bayesbin.runtime.reference_elementwise import sigmoid
from bayesbin.runtime.reference_sums import lengths, ordered_sums, rounded_sums

_NUMBERS = 1 << 22  # in the keys and values that are laid out at once for single queries


def matmul(a: np.ndarray, b: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
    """Matrices (..., n, k) and (..., k, m) of each datum: sums in float64, in order, rounded once."""
    a, b = aligned(a, b)
    return np.matmul(a, b) if dtype.kind == "i" else rounded_sums(b, a, dtype)


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    dtype: np.dtype,
    scale: float,
    causal: bool,
) -> np.ndarray:
    """softmax(scale q k^T + mask) v in float64, with sums of products in order; 0 where no key is seen.

    In float32 almost all of it is found by matrix products, as :func:`rounded_sums` does, where both ends of
    an interval that the sums in order cannot leave round to one float32. Other queries are computed in order.

    :param mask: booleans that say which keys are seen, or numbers that are added.
    :param causal: whether query i sees keys 0 to i alone.
    """
    seen = np.ones((1, query.shape[-2], key.shape[-2]), bool)
    seen = np.tril(seen) if causal else seen
    added = mask if mask is not None and mask.dtype != bool else np.zeros((1, 1, 1))
    if mask is not None and mask.dtype == bool:
        seen = np.logical_and(*aligned(seen, mask))
    added = np.where(*aligned(seen, added, np.full((1, 1, 1), -np.inf)))
    given = [each.astype(np.float64) for each in aligned(query, key, value, added)]
    many = np.broadcast_shapes(*(each.shape[:-2] for each in given))
    query, key, value, added = (np.broadcast_to(x, (*many, *x.shape[-2:])) for x in given)
    key = key.swapaxes(-1, -2)
    if dtype != np.float32:
        return _attended(query, key, value, added, scale, ordered_sums)[0].astype(dtype)
    near, *found = _attended(query, key, value, added, scale, lambda x, w: np.matmul(w, x))
    side = _farthest(query, key, value, scale, *found)
    decided = (near - side).astype(dtype) == (near + side).astype(dtype)
    undecided = np.nonzero(~decided.all(axis=-1))
    size = key.shape[-1] * (key.shape[-2] + value.shape[-1])
    some = max(1, _NUMBERS // max(1, size))
    for start in range(0, len(undecided[0]), some):
        where = tuple(places[start : start + some] for places in undecided)
        numbers = (query[where][:, None], key[where[:-1]], value[where[:-1]], added[where][:, None])
        near[where] = _attended(*numbers, scale, ordered_sums)[0][:, 0]
    return near.astype(dtype)


def _farthest(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    scale: float,
    weights: np.ndarray,
    highest: np.ndarray,
) -> np.ndarray:
    """How far attention by any order of sums may be from that by another, (..., L, E).

    Two values of a score that is d below the highest differ by at most 2^-52 (a + 2 d), with a as below, and
    the mean of d over keys, by their weights, is at most log S. An output moves by at most twice the mean
    of these differences times |v|, and by the rounding of exp (8), of the sum of weights (32) and of the
    sum of S values, each twice.
    """
    keys, unit = key.shape[-1], 2.0**-53
    longest = lengths(key, -2).max(axis=-1, keepdims=True) * lengths(query, -1)
    a = (key.shape[-2] + 6) * abs(scale) * longest + np.abs(highest)
    sizes = np.abs(value)
    mean = np.matmul(weights, sizes)
    side = (4 * a + 2 * (keys + 48)) * mean
    side += 8 * np.log(keys) * sizes.max(axis=-2, keepdims=True)
    # Beyond this, more than the first order counts.
    return np.where(a * unit < 1e-3, 1.1 * unit * side, np.inf)


def _attended(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    added: np.ndarray,
    scale: float,
    product: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attention, the weights of keys, and the highest score of each query, or 0 where no key is seen.

    :param key: (..., E, S). :param added: (..., L, S), -inf where a key is not seen.
    :param product: of columns (..., K, R) and rows (..., N, K).
    """
    scores = product(key, query) * scale
    scores = np.where(added == -np.inf, -np.inf, scores + added)
    unseen = (scores == -np.inf).all(axis=-1, keepdims=True)
    weights = np.where(unseen, 0.0, softmax(scores, axis=scores.ndim - 2))
    highest = np.where(unseen, 0.0, scores.max(axis=-1, keepdims=True))
    return product(value, weights), weights, highest


def embedding(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Rows of a table (tokens, width), at whole numbers."""
    check_indices(tokens, table.shape[1])
    return table[0][tokens]


def lstm(
    x: np.ndarray,
    hidden: np.ndarray,
    cell: np.ndarray,
    *weights: np.ndarray | None,
    reverse: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (T, I) and states (H,): outputs (T, H) and the last states. Gates are i, f, g, o, as torch's.

    :param weights: (4H, I), (4H, H), and a bias (4H,) for each, or none.
    """
    rows, given, step, order = _sequence(x, (hidden, cell), weights, reverse)
    hidden, cell = (np.broadcast_to(state, (rows, state.shape[1])) for state in (hidden, cell))
    out = np.empty((rows, x.shape[1], hidden.shape[1]))
    for t in order:
        i, f, g, o = np.split(given[:, t] + step(hidden), 4, axis=-1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = out[:, t] = sigmoid(o) * np.tanh(cell)
    return out, hidden, cell


def gru(
    x: np.ndarray, hidden: np.ndarray, *weights: np.ndarray | None, reverse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`lstm`, with gates r, z, n and one state."""
    rows, given, step, order = _sequence(x, (hidden,), weights, reverse)
    hidden = np.broadcast_to(hidden, (rows, hidden.shape[1]))
    out = np.empty((rows, x.shape[1], hidden.shape[1]))
    for t in order:
        (r, z, n), (own_r, own_z, own_n) = (
            np.split(gates, 3, axis=-1) for gates in (given[:, t], step(hidden))
        )
        z = sigmoid(z + own_z)
        n = np.tanh(n + sigmoid(r + own_r) * own_n)
        hidden = out[:, t] = (1 - z) * n + z * hidden
    return out, hidden


def rnn(
    x: np.ndarray,
    hidden: np.ndarray,
    *weights: np.ndarray | None,
    reverse: bool,
    activation: str,
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`lstm`, with one gate, tanh or relu, and one state."""
    rows, given, step, order = _sequence(x, (hidden,), weights, reverse)
    hidden = np.broadcast_to(hidden, (rows, hidden.shape[1]))
    out = np.empty((rows, x.shape[1], hidden.shape[1]))
    for t in order:
        total = given[:, t] + step(hidden)
        hidden = np.tanh(total) if activation == "tanh" else np.where(total < 0, 0.0, total)
        out[:, t] = hidden
    return out, hidden


def _sequence(
    x: np.ndarray,
    states: Sequence[np.ndarray],
    weights: Sequence[np.ndarray | None],
    reverse: bool,
) -> tuple[int, np.ndarray, Callable[[np.ndarray], np.ndarray], Iterable[int]]:
    """Rows, gates from the inputs (B, T, gates), gates from a state as a function, the order of steps."""
    from_inputs, from_state = weights[:2]
    biases = [np.zeros(1) if bias is None else bias for bias in (*weights[2:], None, None)]
    assert from_inputs is not None and from_state is not None
    (rows,) = np.broadcast_shapes(*((len(each),) for each in (x, *states)))
    given = ordered_sums(x.reshape(-1, x.shape[2]).T, from_inputs[0]).T
    given = given.reshape(*x.shape[:2], from_inputs.shape[1]) + biases[0].reshape(
        -1, 1, biases[0].shape[-1]
    )
    given = np.broadcast_to(given, (rows, *given.shape[1:]))
    by_state, bias = from_state[0], biases[1]

    def step(hidden: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(ordered_sums(hidden.T, by_state).T) + bias

    steps = range(x.shape[1])
    return rows, given, step, reversed(steps) if reverse else steps
