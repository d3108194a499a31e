"""Products of values with values, attention, tables of tokens, and recurrent layers: in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bayesbin.runtime.reference_axes import aligned, check_indices, softmax
from bayesbin.runtime.reference_elementwise import sigmoid
from bayesbin.runtime.reference_sums import ordered_sums


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrices (..., n, k) and (..., k, m) of each datum, with the axes before them aligned."""
    a, b = aligned(a, b)
    # In C order, matrix by matrix: what a product is does not depend on the others of the batch.
    return np.matmul(np.ascontiguousarray(a), np.ascontiguousarray(b))


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    scale: float,
    causal: bool,
) -> np.ndarray:
    """softmax(scale q k^T + mask) v; 0 where no key is seen.

    :param mask: booleans that say which keys are seen, or numbers that are added.
    :param causal: whether query i sees keys 0 to i alone.
    """
    query, key, value = aligned(query, key, value)
    scores = matmul(query, np.swapaxes(key, -1, -2)) * scale
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    if mask is not None:
        scores, mask = aligned(scores, mask)
        scores = (
            np.where(mask, scores, -np.inf)
            if mask.dtype == bool
            else scores + mask.astype(np.float64)
        )
    weights = softmax(scores, axis=scores.ndim - 2)
    unseen = (scores == -np.inf).all(axis=-1, keepdims=True)
    return matmul(np.where(unseen, 0.0, weights), value)


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
