"""The parts of the report: for each the numbers, the pictures, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayesbin.diagnostics import Estimate, reliability, top_label
from bayesbin.experiments.record import POSTERIOR
from bayesbin.experiments.report.findings import Findings
from bayesbin.experiments.report.page import Cell, Section, Table
from bayesbin.experiments.report.pictures import (
    abstaining_picture,
    error_pictures,
    loss_picture,
    other_pictures,
    reliability_picture,
    weights_picture,
)

_HEADS = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "ece": "ECE",
    "ece_equal_mass": "ECE, equal mass",
    "sharpness": "sharpness",
}


def sections_of(found: Findings) -> list[Section]:
    """The page, part by part."""
    return [
        _glance(found),
        _training(found),
        _scores(found),
        _calibration(found),
        _abstaining(found),
        _uncertainty(found),
        *([] if found.other is None else [_other(found)]),
        _posterior(found),
        _limits(found),
    ]


def _glance(found: Findings) -> Section:
    mean, difference = found.scores["mean"], found.mean_minus_mode["nll"]
    verdict = (
        "it is better"
        if difference.high < 0.0
        else "it is worse" if difference.low > 0.0 else "these data cannot tell which is better"
    )  # fmt: skip
    sentences = [
        f"Averaged over {found.num_samples} draws, the network is right on "
        f"{mean['accuracy'].value:.2%} of {len(found.y):,} test examples (95 % interval "
        f"{mean['accuracy'].low:.2%} to {mean['accuracy'].high:.2%}), with a negative log-likelihood "
        f"of {mean['nll'].value:.4f} nats.",
    ]
    if (bits := found.summary.total().entropy_bits) > 1e-3:
        sentences += [
            f"Averaging draws instead of taking the mode changes the negative log-likelihood by "
            f"{difference.value:+.4f} nats ({difference.low:+.4f} to {difference.high:+.4f}): {verdict}.",
            f"A weight keeps {bits:.2f} bits of uncertainty in the mean.",
        ]
    else:
        sentences.append(
            "The posterior has decided every weight: draws are the mode, and all that they could "
            "disagree about is 0."
        )
    if found.other is not None:
        area = found.other.scores["mutual_information"]["auroc"]
        sentences.append(
            f"The mutual information ranks an input of {found.other.name} above a test input with "
            f"probability {area.value:.3f} ({area.low:.3f} to {area.high:.3f}); 1/2 would be chance."
        )
    return Section("glance", "At a glance", sentences)


def _training(found: Findings) -> Section:
    run, record = found.run, found.run.record
    sizes = (
        f"{record['data']['training']:,} training, {record['data']['validation']:,} validation, "
        f"{record['data']['test']:,} test"
    )
    rows = [
        *origin_rows(record),
        (f"{run.posterior.kind} weights", f"{run.posterior.num_weights:,}"),
        ("examples", sizes),
        ("SHA-256 of the posterior", run.digest_of(POSTERIOR) or "none"),
    ]
    return Section("training", "What was trained", (), [settings_table(rows), loss_picture(found)])


def origin_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values: settings, those of the recipe that apply, digest of the data, time, versions."""
    recipe = record["recipe"]
    rows = [(name, value) for name, value in record["settings"].items() if value is not None]
    rows.append(("recipe", recipe["name"] or "none"))
    rows += [
        (name, f"{_shown(value)}{' (given)' if name in recipe['given'] else ''}")
        for name, value in recipe["settings"].items()
        if value is not None
    ]
    rows += [
        ("SHA-256 of the data", record["data"]["sha256"]),
        ("seconds of training", f"{record['seconds']:.0f}"),
        ("versions", ", ".join(f"{name} {v}" for name, v in record["environment"].items())),
    ]
    return [(name.replace("_", " "), _shown(value)) for name, value in rows]


def settings_table(rows: Sequence[tuple[str, str]]) -> Table:
    """The table of names and values."""
    cells = [[Cell(name), Cell(value)] for name, value in rows]
    return Table("settings", "Settings, data and versions", (), cells)


def comparison_section(rows: Sequence[Mapping[str, Any]], chosen: str) -> Section:
    """The table of a comparison that the run is one of."""
    heads = {
        "accuracy": ".4f",
        "nll": ".4f",
        "ece": ".4f",
        "bits_per_weight": ".2f",
        "seconds": ".0f",
    }
    names = ("accuracy", "NLL (nats)", "ECE", "bits per weight", "seconds")
    cells = [
        [
            Cell(row["recipe"]),
            Cell(f"{row['seeds']}", row["seeds"]),
            *(_spread(row[name], form, row["seeds"]) for name, form in heads.items()),
        ]
        for row in rows
    ]
    caption = (
        "Test scores of the mean of draws, averaged over seeds, with their standard deviation."
    )
    return Section(
        "comparison", "Recipes side by side", [f"The rest of this page is about {chosen}."],
        [Table("comparison", caption, ["", "seeds", *names], cells)],
    )  # fmt: skip


def _scores(found: Findings) -> Section:
    names = {"mode": "mode", "mean": f"mean of {found.num_samples} draws", "draws": "single draws"}
    rows = [
        [Cell(label), *_estimates(found.scores[method], _HEADS)] for method, label in names.items()
    ]
    rows.append([Cell("mean minus mode"), *_estimates(found.mean_minus_mode, _HEADS)])
    caption = (
        f"Scores on {len(found.y):,} test examples. In small print 95 % intervals: over "
        f"{found.num_bootstrap} resamples of the test data, paired for the difference; of single draws, "
        "over the draws."
    )
    sentences = (
        "NLL, the negative log-likelihood per example, punishes confident errors most, without limit. "
        "The Brier score (0 to 2) is the squared distance of the probabilities from the truth. Smaller "
        "is better for both, and for the calibration errors.",
        "The calibration errors (ECE) compare confidences with frequencies in 15 bins, of equal width or "
        "with equally many examples. Both are biased upwards on few examples, and their intervals may lie "
        "above their value. Sharpness says how concentrated the predictions are, right or wrong.",
    )
    return Section(
        "scores", "Scores", sentences, [Table("scores", caption, ["", *_HEADS.values()], rows)]
    )


def _calibration(found: Findings) -> Section:
    names = {
        "mode": "mode",
        "mode scaled": f"mode at temperature {found.temperatures['mode']:.3f}",
        "mean": "mean of draws",
        "mean scaled": f"mean at temperature {found.temperatures['mean']:.3f}",
    }
    heads = {name: _HEADS[name] for name in ("nll", "brier", "ece", "ece_equal_mass")}
    rows = [[Cell(label), *_estimates(found.scores[name], heads)] for name, label in names.items()]
    table = Table(
        "temperature",
        "With and without temperature scaling, fitted on the validation data that training held out",
        ["", *heads.values()],
        rows,
    )
    sentences = (
        "Temperature scaling makes all predictions surer or less sure by one number, and leaves the "
        "answers as they are. It is here for comparison: a temperature near 1 says that nothing was to be "
        "mended; one above 1, that the predictions were too sure.",
    )
    bands = {
        label: reliability(*top_label(found.log_probs[name], found.y))
        for name, label in (("mode", "Mode"), ("mean", "Mean of draws"))
    }
    pictures = [reliability_picture(label, band) for label, band in bands.items()]
    return Section("calibration", "Are confidences frequencies?", sentences, [table, *pictures])


def _abstaining(found: Findings) -> Section:
    sentences = (
        "If the network may decline to answer where it is least confident, how many errors are left?",
    )
    return Section("abstaining", "Abstaining", sentences, [abstaining_picture(found)])


def _uncertainty(found: Findings) -> Section:
    heads = [
        "", "inputs", "total: entropy", "aleatoric: expected entropy", "epistemic: mutual information",
        "mutual information, debiased", "disagreement",
    ]  # fmt: skip
    rows = []
    for name, means in found.split().items():
        label = found.other.name if name == "other inputs" and found.other else name
        count, *values = means.values()
        numbers = [_number(value) for value in values] if count else [Cell("none")] * len(values)
        rows.append([Cell(label), Cell(f"{count:,}", count), *numbers])
    caption = (
        "Mean uncertainty in nats of all test inputs, and of those answered right or wrong; disagreement "
        "is the share of draws that give another answer than their mean."
    )
    sentences = [
        "Total uncertainty is the sum of two parts: aleatoric, what each draw by itself leaves open, and "
        "epistemic, what the draws disagree about and more data could settle.",
        f"With {found.num_samples} draws the mutual information is biased low: compare it only between "
        "predictions with as many. The debiased one may be a little below 0 where the truth is near 0.",
    ]
    pictures = error_pictures(found)
    if not pictures:
        sentences.append(
            "All test inputs were answered right, or all wrong: there is no picture that compares them."
        )
    return Section(
        "uncertainty", "Does it know when it is wrong?", sentences,
        [Table("uncertainty", caption, heads, rows), *pictures],
    )  # fmt: skip


def _other(found: Findings) -> Section:
    assert found.other is not None
    heads = {
        "auroc": "AUROC",
        "aupr_out": "AUPR",
        "aupr_in": "AUPR of test inputs",
        "fpr95": "FPR95",
    }
    labels = {"entropy": "entropy", "mutual_information": "mutual information"}
    rows = [[Cell(labels[q]), *_estimates(row, heads)] for q, row in found.other.scores.items()]
    count = len(found.other.uncertainty.entropy)
    caption = (
        f"{count:,} inputs of {found.other.name} against {len(found.y):,} test inputs, told apart by an "
        "uncertainty; other inputs are the positive class. In small print 95 % intervals."
    )
    sentences = (
        "AUROC is the probability that an input of the other kind is the less certain of two; 1/2 is chance. "
        "FPR95 is the share of test inputs flagged when 95 % of the others are. AUPR, the average precision, "
        "depends on how many there are of each kind.",
    )
    table = Table("other", caption, ["by", *heads.values()], rows)
    return Section("other", "Inputs of another kind", sentences, [table, *other_pictures(found)])


def _posterior(found: Findings) -> Section:
    heads = [
        "",
        "shape",
        "weights",
        "mean |E[w]|",
        "entropy (bits per weight)",
        "KL (bits)",
        found.summary.decided,
    ]
    rows = []
    for row in (*found.summary.rows, found.summary.total()):
        numbers = (row.mean_abs_mean, row.entropy_bits)
        rows.append(
            [
                Cell(row.site),
                Cell(" x ".join(map(str, row.shape))),
                Cell(f"{row.weights:,}", row.weights),
                *(_number(value, ".3f") for value in numbers),
                _number(row.kl_bits, ",.0f"),
                _number(row.saturated, ".1%"),
            ]
        )  # fmt: skip
    of_signs = (
        "A weight is -1 or +1; E[w] is its posterior mean, lambda half its log-odds. 1 bit of entropy is a "
        "coin flip, 0 bits a decided sign. Weights with |lambda| > 3 are decided to 99.7 % and hardly learn "
        "any more.",
    )
    of_levels = (
        f"A weight is one of a few levels, {found.summary.bits} bits to store; E[w] is its posterior mean. 0 "
        "bits of entropy are a decided weight; the last column counts those that are, to 99.75 %.",
    )
    sentences = of_signs if found.summary.bits == 1 else of_levels
    table = Table("posterior", "The posterior, layer by layer", heads, rows)
    return Section("posterior", "The weights", sentences, [table, weights_picture(found)])


def _limits(found: Findings) -> Section:
    weight = found.run.record["recipe"]["settings"].get("kl_weight")
    sentences = [
        "All intervals are about the test data at hand, not about another training: a second seed may "
        "differ by more. A reliability curve says nothing about inputs of another kind, and uncertainty "
        "between draws of one posterior leaves out what other optima would say."
    ]
    if weight not in (None, 1.0):
        sentences.append(
            f"The KL term had a weight of {weight:g}: the posterior is sharper or flatter than "
            "that of Bayes' theorem, and was judged here by what it predicts."
        )
    return Section("limits", "What this page cannot say", sentences)


def _estimates(scores: Mapping[str, Estimate], heads: Mapping[str, str]) -> list[Cell]:
    assert set(heads) <= set(scores)
    return [
        Cell(f"{e.value:.4f}", e.value, f"{e.low:.4f} to {e.high:.4f}")
        for e in (scores[name] for name in heads)
    ]


def _number(value: float, form: str = ".4f") -> Cell:
    return Cell("-") if value != value else Cell(format(value, form), value)  # NaN is not itself


def _spread(value: Mapping[str, float], form: str, seeds: int) -> Cell:
    note = f"+- {value['std']:{form}}" if seeds > 1 else ""
    return Cell(format(value["mean"], form), value["mean"], note)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
