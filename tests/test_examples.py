"""Every example runs from any folder and writes nothing but what it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
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


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example(path, tmp_path):
    out = PICTURE.get(path.name)
    command = [sys.executable, str(path), "--smoke", *(["--out", out] if out else [])]
    before = set(EXAMPLES.iterdir())
    result = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert [entry.name for entry in tmp_path.iterdir()] == ([out] if out else [])
    assert set(EXAMPLES.iterdir()) == before


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_one_page(path):
    assert len(path.read_text().splitlines()) <= 120
