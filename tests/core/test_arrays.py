"""Arrays at public entries: tensors, numpy arrays and lists become tensors, everything else a sentence."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesbin.core.arrays import as_tensor, class_labels, network_inputs
from bayesbin.data import Batches, Dataset, two_moons

ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
VALUES = np.array(ROWS)


def read_only():
    array = VALUES.copy()
    array.flags.writeable = False
    return array


ACCEPTED = {
    "tensor": torch.tensor(ROWS, dtype=torch.float64),
    "float64": VALUES,
    "float32": VALUES.astype(np.float32),
    "float16": VALUES.astype(np.float16),
    "longdouble": VALUES.astype(np.longdouble),
    "big-endian": VALUES.astype(">f8"),
    "Fortran order": np.asfortranarray(VALUES),
    "reversed": VALUES[::-1].copy()[::-1],
    "strided": np.repeat(VALUES, 2, axis=1)[:, ::2],
    "read-only": read_only(),
    "list": ROWS,
    "tuple of rows": tuple(map(tuple, ROWS)),
    "list of arrays": list(VALUES),
    "list of tensors": [torch.tensor(row) for row in ROWS],
    "whole": VALUES.astype(np.int32),
    "unsigned": VALUES.astype(np.uint16),
}
REFUSED = {
    "None": (None, "NoneType"),
    "string": ("1 2 3", "str"),
    "strings": (["a", "b"], "strings"),
    "objects": (np.array([1, None]), "strings or objects"),
    "ragged": ([[1.0], [1.0, 2.0]], "inhomogeneous"),
    "ragged tensors": ([torch.zeros(1), torch.zeros(2)], "differ"),
    "dict": ({"x": VALUES}, "dict"),
    "masked": (np.ma.masked_invalid(VALUES), "filled"),
    "sparse tensor": (torch.eye(3).to_sparse(), "to_dense"),
    "complex": (VALUES + 1j, "complex128"),
    "complex tensor": (torch.zeros(3, dtype=torch.complex64), "complex64"),
    "dates": (np.array(["2026-01-01"], dtype="datetime64[D]"), "datetime64"),
    "loader": (DataLoader(TensorDataset(torch.zeros(3, 2))), "join its batches"),
    "batches": (Batches(two_moons(), 50), "take its .x"),
    "data set": (two_moons(), "take its .x"),
    "torch's data set": (TensorDataset(torch.zeros(3, 2)), "stack its examples"),
    "iterator": (iter(ROWS), "make a list"),
    "beyond int64": (np.array([2**64 - 1], dtype=np.uint64), "within int64"),
    "function": (len, "strings or objects"),
}


@pytest.mark.parametrize("values", ACCEPTED.values(), ids=ACCEPTED)
def test_arrays_of_every_kind_hold_their_numbers(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = as_tensor("x", values)
    assert found.tolist() == ROWS
    assert found.is_floating_point() == (np.asarray(values).dtype.kind == "f")


def test_types_are_those_of_the_source():
    with_default = torch.get_default_dtype()
    assert as_tensor("x", VALUES).dtype == torch.float64
    assert as_tensor("x", VALUES.astype(np.float16)).dtype == torch.float16
    assert as_tensor("x", ROWS).dtype == with_default  # as torch.tensor(ROWS)
    assert as_tensor("x", [1, 2]).dtype == torch.int64
    assert as_tensor("x", [True, False]).dtype == torch.bool
    assert as_tensor("x", np.float32(2)).shape == ()
    tensor = torch.zeros(3, requires_grad=True)
    assert as_tensor("x", tensor) is tensor


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_array_is_refused_in_a_sentence(values, said):
    with pytest.raises(ValueError, match=rf"^expected inputs .*{said}.*\.$") as caught:
        as_tensor("inputs", values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("values", ACCEPTED.values(), ids=ACCEPTED)
def test_inputs_get_the_type_of_the_network(values, dtype):
    net = nn.Linear(2, 3, dtype=dtype)
    found = network_inputs(net, values)
    assert found.dtype == dtype and found.tolist() == ROWS
    net(found)


def test_inputs_that_the_type_cannot_hold_are_refused():
    net = nn.Linear(1, 1, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"can hold; got torch.float64 up to 1e\+60"):
        network_inputs(net, np.array([[1e60]]))
    assert bool(network_inputs(net, np.array([[np.inf]])).isinf())  # said by whoever reads them
    with pytest.raises(ValueError, match="holds exactly; got whole numbers up to 16777217"):
        network_inputs(net, np.array([[2**24 + 1]]))
    with pytest.raises(ValueError, match=r"uint8, the type of raw pixels.*x / 255"):
        network_inputs(net, np.zeros((1, 1), np.uint8))
    assert network_inputs(net, np.array([[True]])).tolist() == [[1.0]]


def test_networks_without_numbers_and_with_embeddings_keep_whole_inputs():
    x = np.array([[0, 2]])
    assert network_inputs(nn.ReLU(), x).dtype == torch.int64
    assert network_inputs(nn.Sequential(nn.Embedding(3, 2), nn.Flatten()), x).dtype == torch.int64


@pytest.mark.parametrize(
    "labels", [[0, 2, 1], np.array([0, 2, 1], np.uint8), torch.tensor([0, 2, 1], dtype=torch.int16)]
)
def test_labels_of_every_kind(labels):
    found = class_labels("labels", labels)
    assert found.dtype == torch.int64 and found.tolist() == [0, 2, 1]


@pytest.mark.parametrize("labels", [[0.5], [[1, 0]], ["cat"], 3, [[1], [0, 1]]], ids=str)
def test_other_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"^expected labels "):
        class_labels("labels", labels)


@pytest.mark.parametrize("values", ACCEPTED.values(), ids=ACCEPTED)
def test_data_sets_and_batches_take_them(values):
    batches = Batches((values, [0, 1, 1]), batch_size=np.int64(2), shuffle=False)
    (x, y), (last, _) = batches
    assert torch.cat([x, last]).tolist() == ROWS and y.tolist() == [0, 1]
    if as_tensor("x", values).is_floating_point():
        data = Dataset(values, np.array([0, 1, 1], np.int8), "three", np.int64(2))
        assert data.x.tolist() == ROWS and data.y.dtype == torch.int64


def test_batches_take_pairs_and_data_sets_and_refuse_others():
    x, y = torch.tensor(ROWS), torch.tensor([0, 1, 1])
    for data in ((x, y), [x, y], TensorDataset(x, y), Dataset(x, y, "three", 2)):
        assert Batches(data, 3, shuffle=False).x.tolist() == ROWS
    for data in (x, (x,), (x, y, y), DataLoader(TensorDataset(x, y)), None, {"x": x, "y": y}, "xy"):
        with pytest.raises(ValueError, match=r"^expected a Dataset or a pair \(x, y\); got "):
            Batches(data, 3)


@pytest.mark.parametrize(
    ("size", "batch_size", "plain", "dropped", "joined"),
    [
        (7, 3, [3, 3, 1], [3, 3], [3, 4]),
        (8, 3, [3, 3, 2], [3, 3], [3, 3, 2]),
        (6, 3, [3, 3], [3, 3], [3, 3]),
        (4, 3, [3, 1], [3], [4]),
        (3, 1, [1, 1, 1], [1, 1, 1], [1, 2]),
        (2, 5, [2], None, [2]),
        (1, 5, [1], None, [1]),
    ],
)
def test_sizes_of_batches(size, batch_size, plain, dropped, joined):
    data = torch.arange(size).double()[:, None], torch.arange(size)

    def check(batches, sizes):
        assert len(batches) == len(sizes) and batches.sizes() == sizes
        torch.manual_seed(0)
        passes = [[y for _, y in batches] for _ in range(2)]
        for found in passes:
            assert [len(y) for y in found] == sizes
            assert len(set(torch.cat(found).tolist())) == sum(sizes)
        return torch.cat(passes[0]).tolist()

    order = check(Batches(data, batch_size), plain)
    assert check(Batches(data, batch_size).without_single(), joined) == order
    if dropped is None:
        with pytest.raises(
            ValueError, match=f"expected at least {batch_size} examples, got {size}"
        ):
            Batches(data, batch_size, drop_last=True)
    else:
        assert check(Batches(data, batch_size, drop_last=True), dropped) == order[: sum(dropped)]
