"""The parts of the page about a sequence of tasks: its numbers and pictures, and how to read them."""

from __future__ import annotations

import math

from bayesbin.experiments.continual import ContinualRun
from bayesbin.experiments.report.page import Cell, Picture, Section, Table
from bayesbin.experiments.report.sections import origin_rows, settings_table
from bayesbin.plots import (
    figure_of,
    plot_accuracy_matrix,
    plot_saturation,
    plot_task_accuracies,
    plot_uncertainty,
)

_METRICS = {
    "average_accuracy": "average accuracy after the last task",
    "learning_accuracy": "accuracy on each task just after it was learned, averaged",
    "backward_transfer": "change of the old tasks' accuracy since then, averaged",
    "forgetting_max_past": "drop of each old task from its best accuracy, averaged",
    "average_nll": "average NLL after the last task, nats",
    "average_ece": "average ECE after the last task",
}


def sections_of_tasks(run: ContinualRun) -> list[Section]:
    """The page, part by part."""
    sections = [_glance(run), _training(run), _scores(run)]
    if any(report.layers for report in run.result.reports):
        sections.append(_posterior(run))
    return [*sections, _uncertainty(run)]


def _glance(run: ContinualRun) -> Section:
    found = run.result.metrics()
    rows = [
        [Cell(label), Cell(f"{found[name]:.4f}", found[name])]
        for name, label in _METRICS.items()
        if not math.isnan(found[name])
    ]
    sentence = (
        f"{len(run.result.tasks)} tasks were learned one after another, and every task was scored on its "
        f"{run.record['scored_on']} data after every task. After the last one the tasks are answered with "
        f"an average accuracy of {found['average_accuracy']:.2%}."
    )
    table = Table("metrics", "Averages over tasks", ("", "value"), rows)
    return Section("glance", "At a glance", [sentence], [table])


def _training(run: ContinualRun) -> Section:
    return Section("training", "What was trained", (), [settings_table(origin_rows(run.record))])


def _scores(run: ContinualRun) -> Section:
    names, R = run.result.tasks, run.result.R
    rows = [
        [
            Cell(name),
            Cell(f"{mean:.4f}", mean),
            *(Cell(f"{value:.3f}", value) for value in R[i, : i + 1].tolist()),
            *(Cell("") for _ in names[i + 1 :]),
        ]
        for i, (name, mean) in enumerate(zip(names, run.record["average_accuracies"], strict=True))
    ]
    caption = "Accuracy on each task (columns) after each task was learned (rows)"
    heads = ["after", "average", *(f"task {j + 1}" for j in range(len(names)))]
    pictures = [
        Picture(
            f"Accuracy on each of {len(names)} tasks from when it was learned on, and their average.",
            "A coloured line falls where a task is forgotten; the black line is the average over the tasks "
            "seen so far.",
            figure_of(plot_task_accuracies(run.result)),
        ),
        Picture(
            f"The {len(names)} by {len(names)} accuracies of the table as a heat map, in per cent.",
            "Down a column: what becomes of one task while the later ones are learned.",
            figure_of(plot_accuracy_matrix(run.result)),
        ),
    ]
    return Section(
        "scores", "Every task after every task", (),
        [Table("accuracies", caption, heads, rows), *pictures],
    )  # fmt: skip


def _posterior(run: ContinualRun) -> Section:
    rows = [
        [
            Cell(report.name),
            Cell(f"{report.dataset_size:,}", report.dataset_size),
            Cell(f"{report.seconds:.1f}", report.seconds),
            Cell(f"{report.entropy_bits:.3f}", report.entropy_bits),
            Cell(f"{report.saturated:.1%}", report.saturated),
            Cell(f"{report.kl_bits:,.0f}", report.kl_bits),
        ]
        for report in run.result.reports
    ]
    heads = [
        "after",
        "examples",
        "seconds",
        "entropy (bits per weight)",
        "|lambda| > 3",
        "KL (bits)",
    ]
    caption = "What became of the posterior; KL to the posterior before the task"
    picture = Picture(
        "Mean entropy per weight and fraction of decided weights of each layer, after each task.",
        "Where the entropy is 0 and every weight is decided, nothing more can be learned.",
        figure_of(plot_saturation(run.result)),
    )
    sentence = (
        "A weight is -1 or +1, and lambda half its log-odds: one with |lambda| > 3 is decided to 99.7 % and "
        "hardly learns any more. A posterior file of each task is in the folder of the run."
    )
    return Section(
        "posterior", "What the posterior has left", [sentence],
        [Table("posterior", caption, heads, rows), picture],
    )  # fmt: skip


def _uncertainty(run: ContinualRun) -> Section:
    rows = [
        [
            Cell(row["task"] + ("" if row["learned"] else " (unseen)")),
            Cell(f"{row['entropy']:.4f}", row["entropy"]),
            Cell(f"{row['mutual_information']:.4f}", row["mutual_information"]),
        ]
        for row in run.uncertainty
    ]
    sentence = (
        "Mutual information is what the draws disagree about: a learner that knows what it has learned has "
        "the least for the newest task and the most for one that it has not seen."
    )
    heads = ["", "entropy (nats)", "mutual information (nats)"]
    picture = Picture(
        "Mean mutual information of prediction and weights for each task, after the last one.",
        "From the oldest task to the newest, and one that was not learned.",
        figure_of(plot_uncertainty(run.uncertainty)),
    )
    table = Table("uncertainty", "Means over test inputs after the last task", heads, rows)
    return Section("uncertainty", "Does it know what it has learned?", [sentence], [table, picture])
