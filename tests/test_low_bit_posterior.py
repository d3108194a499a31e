"""The file, the summary and the pictures of posteriors over a few levels; their draws: test_low_bit_guide."""

from __future__ import annotations

import json
import math
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from bayesbin import BinaryPosterior, plots
from bayesbin.core.files import CorruptFileError
from bayesbin.distributions import LowBitCategorical, Support, equal_levels
from bayesbin.ensemble import Ensemble
from bayesbin.experiments.cli import main
from bayesbin.nn import BinaryLinear
from bayesbin.posterior import LowBitPosterior, RealPosterior, load_posterior
from bayesbin.runtime import load

matplotlib.use("Agg")
TERNARY = (-1.0, 0.0, 1.0)


def example(dtype=torch.float64):
    torch.manual_seed(0)
    distributions = {
        "b": LowBitCategorical(TERNARY, torch.randn(4, 5, 3, dtype=dtype)),
        "a": LowBitCategorical(equal_levels(2), 20 * torch.randn(7, 4, dtype=dtype)),
    }
    noise = RealPosterior(
        torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype), Support("positive")
    )
    return LowBitPosterior(distributions, {"noise": noise})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_save_and_load_are_bitwise(dtype, tmp_path):
    posterior = example(dtype)
    posterior.save(tmp_path / "p.safetensors")
    for loaded in (
        load_posterior(tmp_path / "p.safetensors"), LowBitPosterior.load(tmp_path / "p.safetensors")
    ):  # fmt: skip
        assert list(loaded) == ["b", "a"] and loaded.digest == posterior.digest
        for site, distribution in posterior.items():
            assert loaded[site].levels == distribution.levels
            assert torch.equal(loaded[site].logits, distribution.logits)
        assert torch.equal(loaded.sample(3)["noise"], posterior.sample(3)["noise"])
        assert torch.equal(loaded.signs(3)["b"], posterior.signs(3)["b"])


def test_each_kind_refuses_the_file_of_the_other(tmp_path):
    example().save(tmp_path / "levels")
    BinaryPosterior({"w": torch.zeros(3)}).save(tmp_path / "signs")
    assert isinstance(load_posterior(tmp_path / "signs"), BinaryPosterior)
    with pytest.raises(ValueError, match=r"to hold a BinaryPosterior, got one of the other"):
        BinaryPosterior.load(tmp_path / "levels")
    with pytest.raises(ValueError, match=r"to hold a LowBitPosterior, got one of the other"):
        LowBitPosterior.load(tmp_path / "signs")
    damaged = bytearray((tmp_path / "levels").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "levels").write_bytes(damaged)
    with pytest.raises(CorruptFileError, match="digest"):
        load_posterior(tmp_path / "levels")


def test_summary_in_closed_form():
    posterior = example()
    rows = {row.site: row for row in posterior.summary().rows}
    for site, distribution in posterior.items():
        p = distribution.logits.softmax(-1)
        bits = -(p * p.log2()).nan_to_num(0.0).sum(-1)
        row = rows[site]
        assert row.weights == bits.numel() and row.shape == tuple(bits.shape)
        assert row.entropy_bits == pytest.approx(bits.mean().item())
        kl = bits.numel() * math.log2(len(distribution.levels)) - bits.sum().item()
        assert row.kl_bits == pytest.approx(kl)
        mean = p @ torch.tensor(distribution.levels, dtype=p.dtype)
        assert row.mean_abs_mean == pytest.approx(mean.abs().mean().item())
        assert row.saturated == pytest.approx((p > 0.9975).any(-1).double().mean().item())
    assert 0 < rows["a"].saturated < 1  # some of each, so that the fraction says something
    text = str(posterior.summary())
    assert "KiB (2 bit)" in text and "p > 99.75 %" in text and "binary_state_dict" not in text


def test_kind_and_dtype():
    assert example().kind == "low-bit"
    assert LowBitPosterior({"b": example()["b"]}).kind == "ternary"
    single = example().to(torch.float32)
    assert single["a"].logits.dtype == single.real["noise"].loc.dtype == torch.float32


def test_networks_of_levels_compile_and_ship(tmp_path):
    posterior: Any = LowBitPosterior({"weight": LowBitCategorical(TERNARY, torch.randn(3, 8, 3))})
    ensemble = Ensemble(BinaryLinear(8, 3, bias=False), posterior, 4)
    x = torch.randn(5, 8)
    expected = torch.stack([ensemble.network(draw)(x) for draw in range(4)])
    assert ensemble.compiled
    torch.testing.assert_close(ensemble.outputs(x), expected, rtol=1e-5, atol=1e-6)
    path = ensemble.compile().save(tmp_path / "m.bbn")
    np.testing.assert_array_equal(load(path).outputs(x.numpy()), ensemble.outputs(x.numpy()))


def test_bars_are_the_mean_probabilities():
    posterior = example()
    figure = plots.plot_level_probabilities(posterior)
    for axes, distribution in zip(figure.axes, posterior.values(), strict=True):
        bars: Any = axes.patches
        heights = [bar.get_height() for bar in bars]
        wanted = 100 * distribution.probs.flatten(0, -2).mean(0)
        torch.testing.assert_close(torch.tensor(heights, dtype=wanted.dtype), wanted)
    with pytest.raises(ValueError, match="got c"):
        plots.plot_level_probabilities(posterior, ["c"])


def test_a_run_of_ternary_weights_from_the_command_line(tmp_path, capsys):
    folder = str(tmp_path / "run")
    small = ["--epochs", "2", "--width", "8", "--no-progress"]
    assert main(["train", "two-moons", *small, "--recipe", "ternaryconnect", "--out", folder]) == 0
    assert "ternary weights" in capsys.readouterr().out
    assert main(["evaluate", folder, "--num-samples", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["mode"] == pytest.approx(table["mean"])
    assert main(["report", folder, "--num-samples", "2", "--out", str(tmp_path / "r.html")]) == 0
    assert "A weight is one of a few levels" in (tmp_path / "r.html").read_text()
    assert main(["pack", folder, "--out", str(tmp_path / "m.bbn")]) == 0
    assert load(tmp_path / "m.bbn").predict(np.zeros((2, 2))).probs.shape == (2, 2)
