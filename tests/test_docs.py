"""Every fenced Python block of the README and the documentation runs, page by page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from scripts import EXAMPLES, run_script

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # as a reader has it; the fixture restores it
    names = {"__name__": "__main__"}  # one for the page: a reader goes through it from the top
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize(
    ("script", "results"),
    [
        ("continual", "continual"),
        ("methods", "methods"),
        ("mnist_mlp", "mnist_mlp"),
        ("estimators", "estimators.json"),
        ("estimators_training", "estimators_training"),
        ("nested", "nested"),
        ("shared_weights", "shared_weights"),
        ("plate_scores", "plate_scores.json"),
        ("toys", "toys"),
        ("priors", "priors"),
        ("predict", "predict.json"),
        ("kernels", "kernels.json"),
        ("compile", "compile.json"),
        ("ship", "ship.json"),
        ("uncertainty", "uncertainty.json"),
        ("uncertainty_regression", "uncertainty_regression.json"),
        ("training_step", "training_step.json"),
        ("training_step", "training_step_compiled.json"),
    ],
)
def test_benchmark_tables_are_what_the_scripts_print(
    script: str, results: str, tmp_path: Path
) -> None:
    """A number in the documentation is printed by a committed script from a committed JSON file."""
    path = ROOT / "docs" / "benchmarks" / results
    file = EXAMPLES / "benchmarks" / f"{script}.py"
    table = run_script(file, "--report", str(path), cwd=tmp_path).strip()
    assert len(table.splitlines()) > 2
    assert table in (ROOT / "docs" / "benchmarks.md").read_text()
