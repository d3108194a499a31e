"""What a packed network's layers hold and take: counted, expected and measured."""

from __future__ import annotations

import pytest
import torch

from bayesbin import BinaryPosterior
from bayesbin.nn import binary_sites, conv_net, mlp, to_binary_
from bayesbin.predict import PackedPredictive, kernels
from bayesbin.predict.kernel_rates import microseconds_of, rates

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))


def packed(net: torch.nn.Module, **options) -> PackedPredictive:
    net = to_binary_(net).float()
    posterior = BinaryPosterior(
        {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )
    return PackedPredictive(net, posterior, 6, backend="cpu", **options)


def test_bits_and_bytes_need_no_inputs():
    predictive = packed(conv_net((1, 16, 16), (4,), (12,), 3))
    summary = predictive.summary()
    rows = {row.site: row for row in summary.rows}
    first = rows["0.weight"]
    assert first.bits == 4 * 25 and first.operations is first.expected is first.measured is None
    assert first.bytes == 2 * 100 + 4 * 8  # a threshold per weight, a word of modes per unit
    assert summary.total().bits == sum(row.bits for row in summary.rows)
    assert summary.total().expected is None
    assert "6 draws of seed 0" in repr(predictive) and kernels.isa() in repr(predictive)


def test_operations_and_times_are_of_the_batch():
    predictive = packed(conv_net((1, 16, 16), (4,), (12,), 3))
    x = torch.randn(11, 1, 16, 16)
    expected = predictive.summary(x)
    assert expected.rows[0].operations == 2 * 100 * 12 * 12
    assert all(row.expected > 0.0 and row.measured is None for row in expected.rows)
    measured = predictive.summary(x, profile=True)
    assert all(row.measured > 0.0 for row in measured.rows)
    assert measured.total().measured == pytest.approx(sum(row.measured for row in measured.rows))
    assert "us per draw of 11 inputs" in str(measured) and "total" in str(measured)
    with pytest.raises(ValueError, match="pass x as well"):
        predictive.summary(profile=True)


@pytest.mark.parametrize("kind", ["real", "fast", "sign"])
def test_rates_are_measured_once_and_lead_to_the_time_of_a_layer(kind):
    found = rates(kind)
    assert found is rates(kind)  # not measured again
    assert found.drawn > 0.0 and found.added > 0.0
    one, eight = (microseconds_of(kind, 1000, 1000, batch) for batch in (1, 8))
    assert one == eight  # the kernels add up eight rows at once
    assert microseconds_of(kind, 0, 1000, 16) == pytest.approx(1e-3 * found.added * 16_000)
    with pytest.raises(ValueError, match="kind of sums"):
        rates("other")


def test_expectation_and_measurement_agree_about_which_layer_takes_longest():
    predictive = packed(mlp(64, [1024, 1024], 3))
    longest = set()
    for _attempt in range(5):  # other work on the machine may hold up any layer once
        rows = predictive.summary(torch.randn(8, 64), profile=True).rows
        by_expected = max(rows, key=lambda row: row.expected)
        assert by_expected.bits == 1024 * 1024
        longest.add(max(rows, key=lambda row: row.measured).site)
        if by_expected.site in longest:
            return
    raise AssertionError(f"expected {by_expected.site}, measured {sorted(longest)}")


def test_only_kernels_are_profiled():
    net = to_binary_(mlp(4, [3], 2))
    posterior = BinaryPosterior(
        {name: torch.zeros(site.shape) for name, site in binary_sites(net).items()}
    )
    predictive = PackedPredictive(net, posterior, 2, backend="torch")
    with pytest.raises(RuntimeError, match="cpu"):
        predictive.summary(torch.zeros(1, 4), profile=True)
