"""From a run's folder to a page on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesbin.core.files import write_atomically
from bayesbin.experiments.any_run import open_run
from bayesbin.experiments.comparison import Comparison
from bayesbin.experiments.continual import ContinualRun
from bayesbin.experiments.report.findings import Findings, findings_of
from bayesbin.experiments.report.other_inputs import other_inputs
from bayesbin.experiments.report.page import Section, page
from bayesbin.experiments.report.sections import comparison_section, sections_of
from bayesbin.experiments.report.sequence import sections_of_tasks


@dataclass(frozen=True, eq=False)
class Report:
    """A report on disk and the numbers in it; ``str`` gives the most important ones.

    :param findings: of one network; of a sequence of tasks, the run itself.
    """

    path: Path
    findings: Findings | ContinualRun

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the page, and where it is."""
        found = self.findings
        numbers = found.to_dict() if isinstance(found, Findings) else dict(found.record)
        return {"out": str(self.path), **numbers}

    def __str__(self) -> str:
        found = self.findings
        if isinstance(found, ContinualRun):
            return f"{found}\n\nreport: {self.path}"
        shown = ("accuracy", "nll", "brier", "ece")
        lines = [
            f"{found.run.name}: {found.run.settings.dataset}, {len(found.y):,} test examples, "
            f"{found.num_samples} draws; in brackets 95 % intervals",
            "  ".join([f"{'':<6}", *(f"{name:>24}" for name in shown)]),
        ]
        for method in ("mode", "mean", "draws"):
            cells = (f"{found.scores[method][name]!s:>24}" for name in shown)
            lines.append("  ".join([f"{method:<6}", *cells]))
        if found.other is not None:
            areas = {name: row["auroc"] for name, row in found.other.scores.items()}
            by = ", ".join(f"by {name.replace('_', ' ')} {area}" for name, area in areas.items())
            lines.append(f"{found.other.name}: AUROC {by}")
        return "\n".join([*lines, f"report: {self.path}"])


def report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    run: str | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    ood: str | os.PathLike[str] | None = None,
    num_samples: int = 32,
    seed: int = 0,
    num_bootstrap: int = 300,
) -> Report:
    """Write one HTML page about a run of any kind.

    Of one network: what was trained, scores with intervals, temperature scaling, reliability, risk and
    coverage, the two parts of uncertainty, the weights, each with how to read it. Of a comparison: the same
    of one of its runs, under the table of all. Of a sequence of tasks: scores of every task after every
    task, what became of the posterior, and how sure it is. The page holds its pictures and needs nothing
    from the network; the same run, data and seed give the same page.

    :param folder: of the run. :param out: a name that ends in .html; an older file there is replaced.
    :param run: of a comparison, the name of a run; None: the one with the lowest validation NLL.
    :param data_folder: where the run's data are now; None: where they were.
    :param ood: inputs of another kind to tell from the test inputs: a folder of images, or a .npy file
        with a row for each input.
    :param num_samples: draws. :param seed: of the draws and of the resamples' own.
    :param num_bootstrap: resamples of the test data behind each interval.
    :raises ValueError: for another ending, a count below 1, a run that is not finished, or what a sequence
        of tasks does not have. :raises FileNotFoundError: if there is no run, no such folder for ``out``, or
        nothing at ``ood``. :raises DataError: if data cannot be read, are not the run's, or have another
        size.

    Example::

        >>> from tempfile import TemporaryDirectory
        >>> from bayesbin.experiments.report import report
        >>> from bayesbin.experiments import RunSettings, train_run
        >>> with TemporaryDirectory() as folder:
        ...     _ = train_run(RunSettings("two-moons", width=8, depth=1, epochs=1), f"{folder}/run")
        ...     found = report(f"{folder}/run", f"{folder}/run.html", num_samples=2, num_bootstrap=2)
        >>> found.path.name, sorted(found.to_dict()["scores"])
        ('run.html', ['draws', 'mean', 'mean scaled', 'mode', 'mode scaled'])
    """
    folder, out = Path(folder), Path(out)
    if out.suffix != ".html":
        raise ValueError(f"expected a name that ends in .html; got {out}.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected a folder for {out}, but there is none; create it.")
    opened = open_run(folder)
    if isinstance(opened, ContinualRun):
        if run is not None or ood is not None:
            raise ValueError(
                f"expected one network for {'--run' if run else '--ood'}, got a sequence of tasks in "
                f"{folder}; leave it out."
            )
        title = (
            f"{folder.resolve().name}: {opened.settings.method} on {opened.settings.stream} tasks"
        )
        return _written(out, title, sections_of_tasks(opened), opened)
    if run is not None and not isinstance(opened, Comparison):
        raise ValueError(
            f"expected a comparison for --run {run}, got one network in {folder}; leave it out."
        )
    chosen = opened.run(run) if isinstance(opened, Comparison) else opened
    splits = chosen.splits(data_folder)
    other = None if ood is None else other_inputs(ood, splits)
    findings = findings_of(
        chosen, splits, other, num_samples=num_samples, seed=seed, num_bootstrap=num_bootstrap
    )
    sections = sections_of(findings)
    if isinstance(opened, Comparison):
        sections = [comparison_section(opened.rows, chosen.name), *sections]
    title = f"{chosen.name}: {chosen.settings.recipe} on {chosen.settings.dataset}"
    return _written(out, title, sections, findings)


def _written(
    out: Path, title: str, sections: list[Section], findings: Findings | ContinualRun
) -> Report:
    write_atomically(out, page(title, sections).encode())
    return Report(out, findings)
