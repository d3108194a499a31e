"""Every example runs from any folder and writes nothing but what it is told to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import EXAMPLES, environment, run_script

PICTURE = {
    "continual.py": "picture.png",
    "mcmc.py": "picture.png",
    "domain_shift.py": "scores.json",
    "out_of_distribution.py": "picture.png",
    "packed_layout.py": "picture.png",
    "two_moons.py": "picture.png",
    "uncertainty.py": "picture.png",
    "regression.py": "picture.png",
    "mnist.py": "p.safetensors",
}


def check(name: str, run: Callable[..., str], tmp_path: Path) -> None:
    out = PICTURE.get(name)
    before = set(EXAMPLES.iterdir())
    printed = run(EXAMPLES / name, "--smoke", *(["--out", out] if out else []), cwd=tmp_path)
    assert printed.strip()
    assert [entry.name for entry in tmp_path.iterdir()] == ([out] if out else [])
    assert set(EXAMPLES.iterdir()) == before


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example(path, tmp_path):
    check(path.name, run_script, tmp_path)


@pytest.mark.slow
def test_an_example_in_a_process_of_its_own(tmp_path):
    def run(path: Path, *arguments: str, cwd: Path) -> str:
        command = [sys.executable, str(path), *arguments]
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, env=environment(), check=True
        ).stdout

    check("packed_layout.py", run, tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_one_page(path):
    assert len(path.read_text().splitlines()) <= 120
