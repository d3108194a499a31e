"""The pictures of the report, each with its words."""

from __future__ import annotations

from bayesbin import plots
from bayesbin.diagnostics import Reliability, risk_coverage
from bayesbin.experiments.report.findings import QUANTITIES, Findings, quantity
from bayesbin.experiments.report.page import Picture
from bayesbin.plots import figure_of
from bayesbin.posterior import LowBitPosterior


def loss_picture(found: Findings) -> Picture:
    """Learning curves, the loss split in its terms."""
    history = found.run.record["history"]
    last = history[-1]
    words = f"negative log-likelihood {last['nll']:.3f}, KL {last['kl']:.3f} nats per datum"
    return Picture(
        f"Learning curves over {len(history)} epochs, which end at: {words}.",
        "Left: how well the training data are fitted, at weights drawn anew in each step, and the validation "
        "data by the mean of 8 draws. A dashed line that turns up while the other falls is overfitting. "
        "Right: what the posterior has learned, as its distance from the prior.",
        plots.plot_loss_terms(history),
    )


def reliability_picture(label: str, band: Reliability) -> Picture:
    """Confidences against frequencies, with the band of calibrated predictors."""
    return Picture(
        f"Reliability diagram, {label.lower()}: miscalibration {band.miscalibration:.4f}; "
        f"{band.outside:.0%} of the data lie where the curve is outside the consistency band.",
        "The curve is how often answers of a confidence were right; below the diagonal the network is "
        f"too sure. A calibrated one is in the grey band with probability {band.level:.0%} at each "
        f"confidence; here {band.outside:.0%} of the data are outside. Above: how common confidences are.",
        figure_of(plots.plot_reliability(band, title=label)),
    )


def abstaining_picture(found: Findings) -> Picture:
    """Risk against coverage of the mode and of the mean."""
    curves = {
        label: risk_coverage(found.log_probs[name], found.y)
        for name, label in (("mode", "mode"), ("mean", f"mean of {found.num_samples} draws"))
    }
    risks = "; ".join(
        f"{name}: {curve.risk_at(1.0):.2%} wrong if all are answered, {curve.risk_at(0.9):.2%} if the "
        "surest 90 % are"
        for name, curve in curves.items()
    )
    return Picture(
        f"Risk-coverage curves. {risks}.",
        f"{risks[0].upper()}{risks[1:]}. A lower curve is better, and so is a smaller area; the dotted lines "
        "are as low as the same answers could be ordered.",
        figure_of(plots.plot_risk_coverage(curves, title="Errors among the answers given")),
    )


def error_pictures(found: Findings) -> list[Picture]:
    """Histograms of uncertainties, right answers against wrong ones; none of a kind that is missing or 0."""
    right, areas = found.right, found.error_auroc()
    pictures = []
    for name, label in QUANTITIES.items():
        values = quantity(found.uncertainty, name)
        if (area := areas[name]) is None or not bool(values.any()):
            continue
        what = name.replace("_", " ")
        axes = plots.plot_in_vs_out(
            values[right],
            {"wrong answers": values[~right]},
            quantity=label,
            inner_name="right answers",
            title=f"{what.capitalize()}: right and wrong",
        )
        pictures.append(
            Picture(
                f"Histograms of the {what} of {int(right.sum()):,} right and {int((~right).sum()):,} wrong "
                f"answers; AUROC {area:.3f}.",
                f"The {what} of a wrong answer is above that of a right one with probability {area:.3f}. The "
                "further apart the two histograms, the better errors can be seen coming.",
                figure_of(axes),
            )
        )
    return pictures


def other_pictures(found: Findings) -> list[Picture]:
    """Histograms of uncertainties, test inputs against those of another kind."""
    assert found.other is not None
    pictures = []
    for name, label in QUANTITIES.items():
        what = name.replace("_", " ")
        area = found.other.scores[name]["auroc"]
        inner, outer = (quantity(u, name) for u in (found.uncertainty, found.other.uncertainty))
        if not bool(inner.any() | outer.any()):
            continue
        axes = plots.plot_in_vs_out(
            inner,
            {found.other.name: outer},
            quantity=label,
            inner_name="test inputs",
            title=f"By {what}",
        )
        pictures.append(
            Picture(
                f"Histograms of the {what} of test inputs and of {found.other.name}; AUROC "
                f"{area.value:.3f}.",
                f"Bars are shares of their own kind. Where {found.other.name} lies to the left with the test "
                "inputs, the network takes it for something that it knows.",
                figure_of(axes),
            )
        )
    return pictures


def weights_picture(found: Findings) -> Picture:
    """A histogram of the probabilities for each layer."""
    layers = "; ".join(
        f"{row.site}: {row.entropy_bits:.2f} bits, {row.saturated:.0%} saturated"
        for row in found.summary.rows
    )
    posterior = found.run.posterior
    if isinstance(posterior, LowBitPosterior):
        return Picture(
            f"Mean probability of each level, layer by layer. {layers}.",
            "A point estimate has decided every weight: the bars are then shares of its weights.",
            plots.plot_level_probabilities(posterior),
        )
    return Picture(
        f"Histograms of the probability of a sign of +1, layer by layer. {layers}.",
        "Bars at 0 and 1 are decided weights, those in the middle are free: the data did not need them to "
        "be either.",
        plots.plot_sign_probabilities(posterior),
    )
