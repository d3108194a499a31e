"""Killed before, within and after every file operation, a run ends with the files of one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that fork")
SEED = int(os.environ.get("BAYESBIN_TEST_SEED", "20"))
PROGRAM = Path(__file__).with_name("crashes.py")


def killed(verb: str, folder: Path, *points: int | str) -> dict[str, Any]:
    """What the program of kills says; see there."""
    command = [sys.executable, str(PROGRAM), str(folder), verb, *map(str, points)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_training_that_is_killed_early_or_late_resumes(tmp_path):
    """With its lock just made, within its first write, just before and after its end; see below for all."""
    found = killed("train", tmp_path, 4, 12, 50, 85)
    assert found["failures"] == [] and found["tried"] == 4
    # Records of the beginning, the end and in between; checkpoints, posterior and network.
    assert found["operations"]["replace"] == 7 and found["operations"]["unlink"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "step"), [("train", 1), ("compare", 4), ("continual", 4)])
def test_killed_at_any_point_a_run_resumes(verb, step, tmp_path):
    """At every point of a training, and at every fourth of longer runs; the seed chooses which."""
    found = killed(verb, tmp_path, f"{1 + SEED % step}::{step}")
    assert found["failures"] == [] and found["points"] > 80
    assert found["tried"] >= found["points"] // step
