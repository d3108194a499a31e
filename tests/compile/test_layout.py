"""Layouts: whatever views do to a tensor, a layout says where its numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bayesbin.compile.layout import BATCH, Layout, Size, Torn, exploded

ROWS = 7


def tensor_of(layout, value):
    """The tensor that a layout says a value (rows, ...) is."""
    value = value.reshape(ROWS, *layout.sizes)
    order = [0 if atom == BATCH else atom + 1 for axis in layout.axes for atom in axis]
    if 0 not in order:
        value, order = value[0], [axis - 1 for axis in order]
    sizes = [size.count * (ROWS if size.batch else 1) for size in layout.shape]
    return value.transpose(order).reshape(sizes)


def moved(rng, layout, tensor):
    """A layout and its tensor after a random view."""
    if rng.random() < 0.4:
        order = rng.permutation(layout.rank)
        return layout.permuted(order), tensor.transpose(order)
    shape = list(layout.shape)
    place = int(rng.integers(len(shape)))
    if rng.random() < 0.5 and place + 1 < len(shape):
        first, second = shape[place : place + 2]
        merged = Size(first.count * second.count, first.batch or second.batch)
        shape[place : place + 2] = [merged]
    else:
        size = shape[place]
        parts = [k for k in range(1, size.count + 1) if size.count % k == 0]
        part = int(rng.choice(parts))
        pair = [Size(part), Size(size.count // part, size.batch)]
        shape[place : place + 1] = pair if rng.random() < 0.5 else pair[::-1]
    sizes = [size.count * (ROWS if size.batch else 1) for size in shape]
    return layout.reshaped(shape), tensor.reshape(sizes)


@pytest.mark.parametrize("seed", range(20))
def test_a_layout_follows_any_views(seed):
    rng = np.random.default_rng(seed)
    sizes = tuple(int(size) for size in rng.choice([1, 2, 3, 4, 6], 3))
    value = rng.permutation(ROWS * math.prod(sizes)).reshape(ROWS, *sizes)
    layout, tensor = Layout.of([Size(1, True), *map(Size, sizes)]), value
    followed = 0
    for _ in range(30):
        try:
            layout, tensor = moved(rng, layout, tensor)
        except Torn:
            continue
        followed += 1
        assert np.array_equal(tensor_of(layout, value), tensor)
    assert followed > 10


def test_a_view_that_tears_the_batch_is_refused():
    layout = Layout.of([Size(1, True), Size(4)]).permuted([1, 0])
    for shape in ([Size(1, True), Size(4)], [Size(2, True), Size(2)]):
        with pytest.raises(Torn):
            layout.reshaped(shape)
    assert layout.reshaped([Size(4, True)]).axes == ((0, BATCH),)


def test_axes_that_tensors_share_are_cut_where_any_of_them_is():
    first = Layout.of([Size(1, True), Size(6)]).reshaped([Size(6, True)])
    second = Layout.of([Size(1, True), Size(2), Size(3)]).permuted([0, 1, 2])
    second = second.reshaped([Size(6, True)])
    third = Layout((2, 3), ((BATCH, 1, 0),))
    assert exploded([first, second], [[0, 0]]) == [[Size(1, True), Size(6)]]
    assert exploded([first, third], [[0, 0]]) == [[Size(1, True), Size(3), Size(2)]]
    with pytest.raises(Torn):
        exploded([first, Layout((6,), ((0, BATCH),))], [[0, 0]])
