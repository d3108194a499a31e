"""Pictures of uncertainty, calibration and weights show what they were given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bayesbin import BinaryPosterior, plots
from bayesbin.data import two_moons
from bayesbin.diagnostics import ood_scores, reliability, risk_coverage
from bayesbin.distributions import SignBernoulli
from bayesbin.runtime.predictions import ClassPrediction

AREA = plots.grid((-3.0, -2.0), (3.0, 2.0), num_points=15)
TRAIN = two_moons(40)


def prediction(slope: float, share: float) -> ClassPrediction:
    probs = torch.sigmoid(slope * AREA.points[:, 0].double())
    both = torch.stack([1.0 - probs, probs], dim=-1)
    entropy = torch.special.entr(both).sum(-1)
    return ClassPrediction(both.log().numpy(), share * entropy.numpy(), np.zeros(both.shape), 10)


def drawn() -> Any:
    return plots.Figure(figsize=(4, 4), layout="constrained").subplots()


def test_the_panel_has_a_row_per_guide_and_a_scale_per_column():
    given = {"mean-field": prediction(2.0, 0.5), "nested": prediction(0.5, 0.25)}
    figure: Any = plots.plot_uncertainty_panel(given, AREA, TRAIN.x, TRAIN.y)
    panels = np.array(figure.axes[:8]).reshape(2, 4)
    titles = [axes.get_title("left") for axes in panels.flat]
    assert titles[:4] == ["mean probability", "total uncertainty", "aleatoric", "epistemic"]
    assert titles[4:] == [""] * 4
    assert [row[0].get_ylabel().split("\n")[0] for row in panels] == list(given)
    labels = [axes.get_xlabel() for axes in figure.axes[8:]]
    assert labels[0] == "probability of class 1" and all("(nats)" in text for text in labels[1:])
    for row, p in zip(panels, given.values(), strict=True):
        fields = [p.probs[:, 1], p.entropy, p.expected_entropy, p.mutual_information]
        tops = [1.0, math.log(2.0), math.log(2.0), 0.75 * math.log(2.0)]
        for axes, field, top in zip(row, fields, tops, strict=True):
            mesh = axes.collections[0]
            np.testing.assert_allclose(np.ravel(mesh.get_array()), field)
            assert mesh.get_clim() == (
                0.0,
                pytest.approx(top, abs=1e-3),
            )  # one scale for both guides


def test_the_panel_draws_into_a_given_figure_and_refuses_other_predictions():
    figure = plots.Figure(figsize=(8, 4), layout="constrained")
    above, _ = figure.subfigures(2, 1)
    given = {"a": prediction(1.0, 1.0)}  # nothing epistemic: rounding errors are no picture
    assert plots.plot_uncertainty_panel(given, AREA, TRAIN.x, TRAIN.y, above) is above
    assert above.axes[3].collections[0].get_clim() == (0.0, 1e-3)
    with pytest.raises(ValueError, match=r"expected predictions \(225, 2\) on the grid, got none"):
        plots.plot_uncertainty_panel({}, AREA, TRAIN.x, TRAIN.y)
    other = plots.grid((-1.0, -1.0), (1.0, 1.0), num_points=3)
    with pytest.raises(ValueError, match=r"\(9, 2\) on the grid, got \[\(225, 2\)\]"):
        plots.plot_uncertainty_panel(given, other, TRAIN.x, TRAIN.y)


def test_inner_and_outer_inputs_are_shares_of_their_own_kind():
    inner, outer = torch.rand(100), {"noise": 0.5 + torch.rand(10), "letters": 1.0 + torch.rand(7)}
    axes: Any = plots.plot_in_vs_out(inner, outer, quantity="entropy (nats)", inner_name="digits")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    area = ood_scores(inner, outer["noise"])["auroc"]
    assert labels == ["digits", f"noise: AUROC {area:.3f}", "letters: AUROC 1.000"]
    filled = [patch for patch in axes.patches if patch.__class__.__name__ == "Rectangle"]
    heights = np.array([patch.get_height() for patch in filled]).reshape(3, -1).sum(1)
    np.testing.assert_allclose(heights, 100.0)
    assert axes.get_xlabel() == "entropy (nats)" and axes.get_ylabel() == "share of inputs (%)"


def test_inner_and_outer_inputs_that_have_no_histogram():
    same: Any = plots.plot_in_vs_out(torch.zeros(5), torch.zeros(3))  # a constant score has one
    assert "AUROC 0.500" in same.get_legend().get_texts()[1].get_text()
    for outer in ({}, torch.tensor([math.nan]), torch.zeros(0)):
        with pytest.raises(ValueError, match="expected finite uncertainties"):
            plots.plot_in_vs_out(torch.zeros(5), outer)


def test_reliability_has_curve_band_diagonal_and_histogram():
    confidence = torch.rand(60)
    found = reliability(confidence, torch.rand(60) < confidence, num_simulations=20)
    axes = drawn()
    assert plots.plot_reliability(found, axes, title="mode") is axes
    diagonal, curve = axes.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    np.testing.assert_allclose(curve.get_xdata(), found.confidence)
    np.testing.assert_allclose(curve.get_ydata(), found.frequency)
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert band[:, 1].min() == found.low.min() and band[:, 1].max() == found.high.max()
    (above,) = axes.child_axes
    assert above.get_title("left") == "mode"
    assert sum(patch.get_height() for patch in above.patches) == pytest.approx(100.0)
    assert f"miscalibration {found.miscalibration:.4f}" in above.texts[0].get_text()


def test_reliability_of_one_confidence_is_a_point():
    found = reliability(torch.full((9,), 0.5), torch.arange(9) < 3, num_simulations=20)
    axes: Any = plots.plot_reliability(found)
    assert axes.lines[1].get_marker() == "o"


def test_risk_and_coverage_have_two_lines_for_each_method():
    curves = {n: risk_coverage(torch.rand(30), torch.rand(30) < 0.6) for n in ("mode", "mean")}
    axes = drawn()
    assert plots.plot_risk_coverage(curves, axes) is axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{name} ({100 * curve.aurc:.2f} %)" for name, curve in curves.items()]
    for place, curve in enumerate(curves.values()):
        best, risk = axes.lines[2 * place : 2 * place + 2]
        np.testing.assert_allclose(best.get_ydata(), 100 * curve.best_risk)
        np.testing.assert_allclose(risk.get_ydata(), 100 * curve.risk)
        assert best.get_linestyle() == ":" and best.get_color() == risk.get_color()
    with pytest.raises(ValueError, match="at least one curve"):
        plots.plot_risk_coverage({})


def test_sign_probabilities_are_shares_with_the_entropy_in_the_title():
    free, decided = torch.zeros(50, 4), torch.full((6,), 20.0)
    posterior = BinaryPosterior({"a": free, "b": decided, "c": free, "d": free, "e": free})
    figure = plots.plot_sign_probabilities(posterior, ["b", "a"])
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["b\n6 signs, 0.00 bits", "a\n200 signs, 1.00 bits"]
    for axes, place in zip(figure.axes, (39, 20), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        assert np.argmax(heights) == place and sum(heights) == pytest.approx(100.0)
    assert len(plots.plot_sign_probabilities(posterior).axes) == 8  # two rows, three places empty
    for sites in (["a", "other"], []):
        with pytest.raises(ValueError, match="expected sites of the posterior"):
            plots.plot_sign_probabilities(posterior, sites)


def test_filters_are_images_of_probabilities_with_gaps_between():
    natural = torch.randn(5, 3, 3, 2)
    axes: Any = plots.plot_filters(SignBernoulli(natural=natural), drawn(), channel=1)
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert shown.shape == (2 * 4 - 1, 3 * 3 - 1)  # 2 x 3 places of 3 x 2 pixels, one pixel apart
    expected = torch.sigmoid(2 * natural[:, 1])
    np.testing.assert_allclose(shown[:3, :2], expected[0])
    np.testing.assert_allclose(shown[4:7, 3:5], expected[4])
    assert (
        np.isnan(shown[3]).all() and np.isnan(shown[:, 2]).all() and np.isnan(shown[4:, 6:]).all()
    )
    assert axes.images[0].get_clim() == (0.0, 1.0)


def test_rows_of_a_linear_layer_are_images():
    distribution = SignBernoulli(natural=torch.randn(4, 6))
    axes: Any = plots.plot_filters(distribution, shape=(2, 3), num_filters=1)
    np.testing.assert_allclose(axes.images[0].get_array(), distribution.probs[0].reshape(2, 3))
    square: Any = plots.plot_filters(SignBernoulli(natural=torch.zeros(1, 9)))
    assert square.images[0].get_array().shape == (3, 3)
    with pytest.raises(ValueError, match="rows of 2 x 2 weights, got rows of 6"):
        plots.plot_filters(distribution)
    with pytest.raises(ValueError, match="input channel 3, got"):
        plots.plot_filters(SignBernoulli(natural=torch.zeros(2, 3, 3, 3)), channel=3)
    with pytest.raises(ValueError, match=r"got \(5,\)"):
        plots.plot_filters(SignBernoulli(natural=torch.zeros(5)))
