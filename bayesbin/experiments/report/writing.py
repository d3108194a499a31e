"""From a run's folder to a page on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesbin.core.files import write_atomically
from bayesbin.experiments import load_run
from bayesbin.experiments.continual import CONTINUAL_RECORD
from bayesbin.experiments.report.findings import Findings, findings_of
from bayesbin.experiments.report.other_inputs import other_inputs
from bayesbin.experiments.report.page import page
from bayesbin.experiments.report.sections import sections_of
from bayesbin.experiments.train import splits_of


@dataclass(frozen=True, eq=False)
class Report:
    """A report on disk and the numbers in it; ``str`` gives the most important ones."""

    path: Path
    findings: Findings

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the page, and where it is."""
        return {"out": str(self.path), **self.findings.to_dict()}

    def __str__(self) -> str:
        found = self.findings
        shown = ("accuracy", "nll", "brier", "ece")
        lines = [
            f"{found.run.config.dataset}, {len(found.y):,} test examples, {found.num_samples} draws; "
            "in brackets 95 % intervals",
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
    run_folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data_folder: str | os.PathLike[str] | None = None,
    ood: str | os.PathLike[str] | None = None,
    num_samples: int = 32,
    seed: int = 0,
    num_bootstrap: int = 300,
) -> Report:
    """Write one HTML page about a run that :func:`bayesbin.experiments.train_run` trained.

    What was trained, scores with intervals, temperature scaling, reliability, risk and coverage, the two
    parts of uncertainty, the weights, each with how to read it. The page holds its pictures and needs
    nothing from the network; the same run, data and seed give the same page.

    :param out: a name that ends in .html; an older file there is replaced.
    :param data_folder: where the run's data are, as for :func:`bayesbin.experiments.evaluate_run`.
    :param ood: inputs of another kind to tell from the test inputs: a folder of images, or a .npy file
        with a row for each input.
    :param num_samples: draws. :param seed: of the draws and of the resamples' own.
    :param num_bootstrap: resamples of the test data behind each interval.
    :raises ValueError: for another ending, a count below 1, a run that is not finished, or a sequence of
        tasks. :raises FileNotFoundError: if there is no run, no such folder for ``out``, or nothing at
        ``ood``. :raises DataError: if data cannot be read, are not the run's, or have another size.

    Example::

        >>> from tempfile import TemporaryDirectory
        >>> from bayesbin.experiments.report import report
        >>> from bayesbin.experiments import RunConfig, train_run
        >>> with TemporaryDirectory() as folder:
        ...     _ = train_run(RunConfig("two-moons", width=8, depth=1, epochs=1), f"{folder}/run")
        ...     found = report(f"{folder}/run", f"{folder}/run.html", num_samples=2, num_bootstrap=2)
        >>> found.path.name, sorted(found.to_dict()["scores"])
        ('run.html', ['draws', 'mean', 'mean scaled', 'mode', 'mode scaled'])
    """
    folder, out = Path(run_folder), Path(out)
    if out.suffix != ".html":
        raise ValueError(f"expected a name that ends in .html; got {out}.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected a folder for {out}, but there is none; create it.")
    if (folder / CONTINUAL_RECORD).is_file():
        raise ValueError(
            f"expected a run of `bayesbin train`, got a sequence of tasks in {folder}; use `bayesbin "
            "continual report`."
        )
    run = load_run(folder)
    splits = splits_of(run, data_folder)
    other = None if ood is None else other_inputs(ood, splits)
    findings = findings_of(
        run, splits, other, num_samples=num_samples, seed=seed, num_bootstrap=num_bootstrap
    )
    name = run.folder.resolve().name
    method = run.config.recipe or "binary network"
    text = page(f"{name}: {method} on {run.config.dataset}", sections_of(findings))
    write_atomically(out, text.encode())
    return Report(out, findings)
