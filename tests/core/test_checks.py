"""Numbers and names at public entries: every usual kind is taken, every other one refused in a sentence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from bayesbin.core import checks, names

WHOLE = {
    "int": 3,
    "int8": np.int8(3),
    "int64": np.int64(3),
    "uint8": np.uint8(3),
    "0-d array": np.array(3),
    "0-d tensor": torch.tensor(3),
    "0-d int8 tensor": torch.tensor(3, dtype=torch.int8),
}
REAL = {
    "float": 3.0,
    "float16": np.float16(3),
    "float32": np.float32(3),
    "longdouble": np.longdouble(3),
    "0-d float array": np.array(3.0),
    "0-d float tensor": torch.tensor(3.0),
    "bfloat16 tensor": torch.tensor(3.0, dtype=torch.bfloat16),
    "leaf that requires a gradient": torch.tensor(3.0, requires_grad=True),
    "fraction": Fraction(3),
}
NEITHER = {
    "True": True,
    "numpy's True": np.bool_(True),
    "tensor's True": torch.tensor(True),
    "string": "3",
    "bytes": b"3",
    "None": None,
    "NaN": math.nan,
    "numpy's NaN": np.float32("nan"),
    "tensor's NaN": torch.tensor(math.nan),
    "inf": math.inf,
    "-inf": np.float64("-inf"),
    "complex": 3 + 0j,
    "complex tensor": torch.tensor(3 + 0j),
    "list": [3],
    "array of one": np.array([3]),
    "tensor of one": torch.tensor([3]),
    "decimal": Decimal(3),
    "without data": torch.empty((), device="meta"),
    "class": int,
    "below": -4,
}
kinds = pytest.mark.parametrize


def table(*parts):
    items = [item for part in parts for item in part.items()]
    return {"argvalues": [value for _, value in items], "ids": [name for name, _ in items]}


@kinds("value", **table(WHOLE))
def test_whole_numbers_of_every_kind_become_python_integers(value):
    found = checks.whole_number("n", value, at_least=1)
    assert type(found) is int
    assert found == 3
    assert json.dumps(found) == "3"


@kinds("value", **table(WHOLE, REAL))
def test_real_numbers_of_every_kind_become_python_floats(value):
    found = checks.real_number("x", value, above=0.0)
    assert type(found) is float
    assert found == 3.0
    assert checks.is_number(value)


@kinds("value", **table(REAL, NEITHER))
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(
        ValueError, match=r"^expected epochs to be a whole number of at least 1; got "
    ):
        checks.whole_number("epochs", value, at_least=1)


@kinds("value", **table(NEITHER))
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(
        ValueError, match=r"^expected lr to be a (finite )?number above 0; got .*\.$"
    ):
        checks.real_number("lr", value, above=0.0)


@kinds(
    ("value", "bounds", "accepted"),
    [
        (0, {"above": 0}, False),
        (0, {"at_least": 0}, True),
        (1, {"below": 1}, False),
        (1, {"at_most": 1}, True),
        (0.5, {"above": 0, "below": 1}, True),
        (math.inf, {}, False),
        (math.inf, {"above": 0}, False),
        (math.inf, {"above": 0, "at_most": math.inf}, True),
        (-math.inf, {"at_most": math.inf}, False),
        (-math.inf, {"at_least": -math.inf}, True),
        (10**400, {"above": 0}, False),
        (math.nan, {"at_least": -math.inf, "at_most": math.inf}, False),
        (5e-324, {"above": 0}, True),
    ],
)
def test_bounds_and_infinity(value, bounds, accepted):
    if accepted:
        assert checks.real_number("x", value, **bounds) == value
    else:
        with pytest.raises(ValueError, match=r"^expected x to be a "):
            checks.real_number("x", value, **bounds)


def test_messages_say_what_was_expected_and_what_came():
    def said(check, *arguments, **bounds):
        with pytest.raises(ValueError) as caught:
            check(*arguments, **bounds)
        return str(caught.value)

    whole, real = checks.whole_number, checks.real_number
    assert said(whole, "port", 70000, 1, 65535) == (
        "expected port to be a whole number from 1 to 65535; got 70000."
    )
    assert said(real, "x", "1") == "expected x to be a finite number; got '1'."
    assert said(real, "x", 2, above=0, at_most=1) == (
        "expected x to be a number above 0 and at most 1; got 2."
    )
    assert said(whole, "n", torch.tensor(2.5)) == (
        "expected n to be a whole number of at least 0; got 2.5."
    )
    assert said(whole, "n", np.zeros((3, 2))) == (
        "expected n to be a whole number of at least 0; got an array of shape (3, 2) and type float64."
    )
    assert "\n" not in said(whole, "n", "two\nlines")
    assert len(said(whole, "n", "x" * 10_000)) < 200


@kinds(
    "values",
    [
        [16, 8],
        (np.int64(16), 8),
        np.array([16, 8], dtype=np.int16),
        torch.tensor([16, 8]),
        torch.Size((16, 8)),
        iter([16, 8]),
        range(16, 7, -8),
    ],
    ids=["list", "tuple", "array", "tensor", "size", "iterator", "range"],
)
def test_sequences_of_whole_numbers(values):
    found = checks.whole_numbers("hidden", values)
    assert found == (16, 8)
    assert all(type(size) is int for size in found)


@kinds("value", **table(WHOLE))
def test_a_single_number_is_a_sequence_of_one(value):
    assert checks.whole_numbers("hidden", value) == (3,)
    assert checks.real_numbers("scales", value) == (3.0,)


@kinds(
    "values",
    [
        [],
        (),
        "16",
        b"16",
        {16: 8},
        {16},
        None,
        [16, 0],
        [16, 2.5],
        [True],
        np.ones((2, 2), int),
        [[16]],
    ],
    ids=repr,
)
def test_other_sequences_are_refused(values):
    with pytest.raises(ValueError, match=r"^expected (each of )?hidden to be "):
        checks.whole_numbers("hidden", values)


def test_names_and_truth_values():
    assert checks.one_of("dataset", np.str_("usps"), ("digits", "usps")) == "usps"
    assert type(checks.one_of("dataset", np.str_("usps"), {"usps": 1})) is str
    for value in ("digit", "", 3, None, ["digits"], np.array(["digits"])):
        with pytest.raises(ValueError, match=r"^expected dataset to be one of digits, usps; got "):
            checks.one_of("dataset", value, ("digits", "usps"))
    for value in (True, np.bool_(True), torch.tensor(True)):
        assert checks.true_or_false("flag", value) is True
    for value in (1, 0.0, "yes", None, torch.tensor([True])):
        with pytest.raises(ValueError, match=r"^expected flag to be True or False; got "):
            checks.true_or_false("flag", value)


def test_the_lists_of_names_are_those_of_the_registries():
    from bayesbin import recipes
    from bayesbin.estimators.named import NAMED
    from bayesbin.guides.named import NAMED as GUIDES
    from bayesbin.nn.architectures import ACTIVATIONS
    from bayesbin.optim.assembly import LEARNING_RATES

    assert names.RECIPES == tuple(recipes.METHODS.own)
    assert tuple(NAMED) == names.ESTIMATORS
    assert tuple(GUIDES) == names.GUIDES
    assert tuple(LEARNING_RATES) == names.OPTIMIZERS
    assert tuple(ACTIVATIONS) == names.ACTIVATIONS
    assert set(names.CONTINUAL_DATASETS) <= set(names.DATASETS)


def test_checks_and_names_load_no_torch():
    loading = "import sys, bayesbin.core.checks, bayesbin.core.names"
    program = f"{loading}; print({{*sys.modules}} & {{'torch', 'numpy'}})"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert output.strip() == b"set()"
