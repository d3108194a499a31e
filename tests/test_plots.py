"""Figures show what they were given, and are files whole or not at all."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bayesbin import BinaryPosterior, plots
from bayesbin.data import regression_1d, two_moons
from bayesbin.runtime.predictions import ClassPrediction, NormalPrediction

AREA = plots.grid((-3.0, -2.0), (3.0, 2.0), num_points=21)
TRAIN = two_moons(40)


def prediction(probs: torch.Tensor, num_samples: int = 10) -> ClassPrediction:
    both = torch.stack([1.0 - probs, probs], dim=-1)
    entropy = torch.special.entr(both).sum(-1)
    spread = np.zeros(both.shape)
    return ClassPrediction(both.log().numpy(), 0.25 * entropy.numpy(), spread, num_samples)


def slope() -> torch.Tensor:
    return torch.sigmoid(2.0 * AREA.points[:, 0].double() + AREA.points[:, 1].double())


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title("left")]


def test_the_grid_runs_along_the_first_coordinate_first():
    assert AREA.points.shape == (441, 2)
    np.testing.assert_allclose(AREA.points[:21, 0], AREA.first)
    assert (AREA.points[:21, 1] == -2.0).all()
    assert AREA.points.dtype == torch.float32


def test_two_moons_has_five_panels_with_shared_axes_units_and_data():
    probs = slope()
    figure = plots.plot_two_moons(probs, probs, prediction(probs), AREA, TRAIN.x, TRAIN.y)
    shown = panels(figure)
    titles = [axes.get_title("left") for axes in shown]
    assert len(titles) == 5
    assert "STE" in titles[0] and "mode" in titles[1] and "10 draws" in titles[2]
    assert "entropy" in titles[3] and "mutual information" in titles[4]
    for axes in shown:
        assert axes.get_xlim() == (-3.0, 3.0) and axes.get_ylim() == (-2.0, 2.0)
        points = sum(len(scatter.get_offsets()) for scatter in axes.collections[-2:])
        assert points == len(TRAIN)
    bars = [child.get_ylabel() for axes in shown for child in axes.child_axes if child.get_ylabel()]
    assert bars == ["probability of class 1", "nats", "nats"]


def test_a_panel_shows_the_values_at_their_place():
    probs = slope()
    figure = plots.plot_two_moons(probs, 1.0 - probs, prediction(probs), AREA, TRAIN.x, TRAIN.y)
    first, second, third, entropy, information = (
        np.asarray(axes.collections[0].get_array()).reshape(21, 21) for axes in panels(figure)
    )
    assert first[0, 0] < 0.01 and first[-1, -1] > 0.99  # class 1 is at the upper right
    np.testing.assert_allclose(second, 1.0 - first)
    np.testing.assert_allclose(third, first)
    np.testing.assert_allclose(information, 0.75 * entropy, atol=1e-12)
    assert entropy.max() == pytest.approx(math.log(2.0), abs=1e-3)


def test_predictions_made_elsewhere_are_refused():
    probs = slope()
    with pytest.raises(ValueError, match="expected predictions"):
        plots.plot_two_moons(probs, probs, prediction(probs[:7]), AREA, TRAIN.x, TRAIN.y)


def test_a_sure_prediction_has_no_boundary():
    figure = plots.Figure()
    axes = plots.plot_boundary(figure.subplots(), torch.full((441,), 0.9), AREA)
    assert not axes.collections


def test_regression_draws_bands_of_the_standard_deviations():
    x = torch.linspace(-1.0, 1.0, 11)
    noise, weights = np.full(11, 0.09), np.full(11, 0.16)
    given = NormalPrediction(x.numpy(), noise, weights, 32)
    train = regression_1d(20)
    axes = plots.plot_regression(x, given, data=(train.x, train.y), truth=x, mode=-x)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"data", "true function", "posterior mode", "mean of 32 draws"} <= set(labels)
    heights = {
        band.get_label(): np.ptp(np.asarray(band.get_paths()[0].vertices)[:, 1])
        for band in axes.collections
        if "sd" in str(band.get_label())
    }
    # The mean itself rises by 2 over the line.
    assert heights == {
        "total, $\\pm$2 sd": pytest.approx(2.0 + 4 * 0.5),
        "total, $\\pm$1 sd": pytest.approx(2.0 + 2 * 0.5),
        "epistemic, $\\pm$2 sd": pytest.approx(2.0 + 4 * 0.4),
        "epistemic, $\\pm$1 sd": pytest.approx(2.0 + 2 * 0.4),
    }
    assert axes.get_xlabel() == "x" and axes.get_ylabel() == "y"
    with pytest.raises(ValueError, match="one prediction per input"):
        plots.plot_regression(x[:3], given, data=(train.x, train.y))


def test_estimators_are_lines_by_panel_hollow_where_biased():
    panels = {
        "lambda = 0": {
            "DisARM": [(4.0, 3.0), (2.0, 6.0)],
            "Concrete": [(2.0, 0.5)],
            "exact": [(9, 0)],
        },
        "lambda = 1": {"DisARM": [(2.0, 1.0)]},
    }
    figure = plots.plot_estimators(panels, biased=["Concrete"])
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    disarm, concrete = first.lines  # what has no variance has no place on a logarithmic axis
    assert list(disarm.get_xdata()) == [2.0, 4.0] and list(disarm.get_ydata()) == [6.0, 3.0]
    assert concrete.get_markerfacecolor() == "white" and concrete.get_linestyle() == "--"
    assert second.lines[0].get_color() == disarm.get_color()
    assert first.get_xscale() == first.get_yscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["DisARM", "Concrete (biased)"]
    with pytest.raises(ValueError, match="at least one panel"):
        plots.plot_estimators({})


@pytest.mark.parametrize("kind, magic", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_saving(tmp_path, kind, magic):
    figure = plots.Figure(figsize=(1, 1))
    figure.subplots()
    path = tmp_path / f"picture.{kind}"
    plots.save_figure(figure, path, dpi=40)
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_saving_refuses_other_endings_and_missing_folders(tmp_path):
    figure = plots.Figure(figsize=(1, 1))
    with pytest.raises(ValueError, match=r"\.png, \.pdf or \.svg"):
        plots.save_figure(figure, tmp_path / "picture.doc")
    with pytest.raises(FileNotFoundError):
        plots.save_figure(figure, tmp_path / "missing" / "picture.png")
    assert not list(tmp_path.iterdir())


def test_figures_leave_the_global_state_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    probs = slope()
    plots.plot_two_moons(probs, probs, prediction(probs), AREA, TRAIN.x, TRAIN.y)
    assert dict(matplotlib.rcParams) == before
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_levels_are_shown_with_their_shares():
    torch.manual_seed(0)
    posterior = BinaryPosterior(
        {
            "conv": torch.randn(5, 1, 3, 3),
            "deep": torch.randn(60, 4, 3, 3),
            "linear": torch.ones(70, 9),
        }
    )
    figure = plots.plot_sharing(posterior, ["linear", "conv", "deep"])
    shown = panels(figure)
    titles = [axes.get_title("left") for axes in shown]
    assert titles[:3] == ["lambda", "layer: 100%", "filter: 0%"]
    assert sum(title == "lambda" for title in titles) == 3
    by_level = [title.split(":")[0] for title in titles[4:8]]
    assert by_level == ["lambda", "layer", "filter", "weight"]  # one channel: a kernel is a filter
    # Three by two filters of nine weights, in reading order, the last place empty.
    image = np.ma.filled(shown[4].images[0].get_array(), np.nan)
    assert image.shape == (6, 9)
    np.testing.assert_allclose(image[3:6, 0:3], posterior["conv"].natural[3, 0])
    assert np.isnan(image[3:6, 6:9]).all()
    # Blocks of kernels: row block is the unit, column block the input channel.
    deep = np.asarray(shown[8].images[0].get_array())
    assert deep.shape == (48, 12)
    np.testing.assert_allclose(deep[6:9, 3:6], posterior["deep"].natural[2, 1])
    # Together the levels are lambda again.
    parts = sum(np.asarray(axes.images[0].get_array()) for axes in shown[9:13])
    np.testing.assert_allclose(parts, deep)
    with pytest.raises(ValueError, match="expected sites of the posterior"):
        plots.plot_sharing(posterior, ["other"])


def tasks_learned(layers: bool = True):
    from bayesbin.continual import ContinualResult, TaskReport
    from bayesbin.posterior.summary import SummaryRow

    nan = math.nan
    R = np.array([[0.9, nan, nan], [0.8, 0.95, nan], [0.5, 0.7, 0.99]])

    def rows(i):
        shares = {"0.weight": 0.2 * i, "3.weight": 0.3 * i}
        return tuple(
            SummaryRow(site, (2, 2), 4, 0.5, 1.0 - share, 3.0, share)
            for site, share in shares.items()
        )

    reports = tuple(
        TaskReport(i, f"task {i}", "", 10, [], rows(i) if layers else (), 0.1) for i in range(3)
    )
    return ContinualResult(("a", "b", "c"), ("", "", ""), {"accuracy": R}, {}, reports)


UNCERTAINTY = [
    {"task": name, "learned": name != "new", "entropy": 0.5, "mutual_information": value}
    for name, value in (("a", 0.2), ("b", 0.1), ("c", 0.05), ("new", 0.4))
]


def test_task_accuracies_begin_where_a_task_was_learned():
    axes: Any = plots.plot_task_accuracies(tasks_learned())
    *tasks, average = axes.lines
    points = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in tasks]
    np.testing.assert_allclose(points[0], [(1, 90.0), (2, 80.0), (3, 50.0)])
    np.testing.assert_allclose(points[1], [(2, 95.0), (3, 70.0)])
    np.testing.assert_allclose(points[2], [(3, 99.0)])
    np.testing.assert_allclose(average.get_ydata(), [90.0, 87.5, 73.0])
    assert average.get_label() == "average over tasks seen"


def test_the_accuracy_matrix_leaves_what_was_not_scored_empty():
    axes: Any = plots.plot_accuracy_matrix(tasks_learned(), plots.Figure().subplots())
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {
        (0, 0): "90",
        (0, 1): "80",
        (1, 1): "95",
        (0, 2): "50",
        (1, 2): "70",
        (2, 2): "99",
    }
    shown = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    np.testing.assert_allclose(shown, 100.0 * tasks_learned().R)


def test_saturation_has_a_pair_of_lines_for_each_layer():
    axes: Any = plots.plot_saturation(tasks_learned())
    lines = [line for line in axes.lines if len(line.get_xdata())]
    np.testing.assert_allclose(
        [line.get_ydata() for line in lines],
        [[1.0, 0.8, 0.6], [0.0, 0.2, 0.4], [1.0, 0.7, 0.4], [0.0, 0.3, 0.6]],
    )
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    with pytest.raises(ValueError, match="with a posterior"):
        plots.plot_saturation(tasks_learned(layers=False))


def test_uncertainty_is_a_bar_for_each_task_and_the_unseen_one():
    axes: Any = plots.plot_uncertainty(UNCERTAINTY)
    assert [bar.get_height() for bar in axes.patches] == [0.2, 0.1, 0.05, 0.4]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "unseen"]
    old, _, newest, unseen = (bar.get_facecolor() for bar in axes.patches)
    assert len({old, newest, unseen}) == 3 and axes.patches[1].get_facecolor() == old
    with pytest.raises(ValueError, match="at least one task"):
        plots.plot_uncertainty([])


@pytest.mark.parametrize("posterior", [True, False])
def test_a_continual_run_has_the_panels_it_has_data_for(posterior):
    result = tasks_learned(layers=posterior)
    titles = [axes.get_title("left") for axes in panels(plots.plot_continual(result, UNCERTAINTY))]
    assert [title[:3] for title in titles] == ["(a)", "(b)", "(c)", "(d)"][: 4 if posterior else 2]


def test_colour_bars_and_titles_stay_in_their_places():
    """Nothing of one panel of two moons runs into another panel."""
    probs = torch.linspace(0.01, 0.99, len(AREA.points), dtype=torch.float64)
    figure = plots.plot_two_moons(probs, probs, prediction(probs), AREA, TRAIN.x, TRAIN.y)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes: list[Any] = [axes.get_tightbbox(renderer) for axes in panels(figure)]
    titles = [axes.title.get_window_extent(renderer) for axes in panels(figure)]
    for row in (boxes, titles):
        for left, right in pairwise(sorted(row, key=lambda box: box.x0)):
            assert left.x1 < right.x0


def test_variances_of_rounding_do_not_stretch_the_axis():
    panel = {"disarm": [(2.0, 40.0), (4.0, 20.0)], "exact": [(8.0, 1e-13)], "sure": [(8.0, 1e-6)]}
    figure = plots.plot_estimators({"lambda 0": panel})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["disarm", "sure"]
    assert axes.get_ylim()[0] > 1e-8


def test_a_result_is_drawn_as_it_comes_from_learning():
    from bayesbin.continual import ContinualResult

    alone = plots.plot_continual(tasks_learned())
    assert [axes.get_title("left")[:3] for axes in panels(alone)] == ["(a)", "(b)", "(c)"]
    nan = math.nan
    R = np.array([[0.5, nan], [1.25, 0.25]])
    regression = ContinualResult(("a", "b"), ("", ""), {"rmse": R, "nll": R}, {})
    axes: Any = plots.plot_task_accuracies(regression)
    assert axes.get_ylabel() == "rmse"
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), [0.5, 0.75])
    axes = plots.plot_accuracy_matrix(regression)
    assert {text.get_text() for text in axes.texts} == {"0.50", "1.25", "0.25"}
    assert axes.get_title("left") == "Rmse"
    nothing = ContinualResult(("a",), ("",), {"accuracy": np.array([[nan]])}, {})
    assert len(panels(plots.plot_continual(nothing))) == 2  # warnings are errors
