"""Prediction where there is nothing but Python, numpy and this package, with its kernels and without."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from model_examples import raw_inputs, varied

import bayesbin
from bayesbin.runtime import native_backend
from bayesbin.runtime.predictor import Predictor

ROOT = Path(bayesbin.__file__).parent
X = np.random.default_rng(0).integers(0, 9, (3, 2, 6, 6))
TOKENS = np.random.default_rng(1).integers(0, 5, (3, 4))
USE = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np
    import bayesbin as bb
    from bayesbin.runtime import inspect, predict_blocks, unpack
    path, x, tokens = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
    predictor = bb.load(path)
    found = predictor.predict((x, tokens))
    bb.load(path)
    inspect(path, profile=2), unpack(path, 1)
    predictor.save(path + ".again")
roots = {name.split(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
roots -= set(sys.stdlib_module_names)
print(json.dumps({
    "probs": found.probs.tolist(),
    "backend": predictor.backend,
    "roots": sorted(name for name in roots if not name.startswith("_")),
    "warnings": [str(warning.message) for warning in caught],
}))
"""


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """The path of a model, and of its two inputs."""
    predictor = Predictor(
        varied(), {"kind": "classes"}, preprocessing=raw_inputs(), backend="numpy"
    )
    paths = [tmp_path / name for name in ("model.bbn", "x.npy", "tokens.npy")]
    predictor.save(paths[0], "posterior")
    for path, array in zip(paths[1:], (X, TOKENS), strict=True):
        np.save(path, array)
    return [str(path) for path in paths]


def expected(path: str) -> list[list[float]]:
    from bayesbin.runtime import files

    model = files.read(path).model
    predictor = Predictor(
        model.program, model.head, preprocessing=model.preprocessing, backend="numpy"
    )
    return predictor.predict((X, TOKENS)).probs.tolist()


def put_numpy(folder: Path) -> None:
    """This environment's numpy, in another folder."""
    site = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (folder / name).symlink_to(site / name)


def ran(command: list[str], cwd: Path) -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "no kernels"])
def test_numpy_is_all_that_prediction_needs(kernels, arguments, tmp_path):
    if kernels and not native_backend.available():
        pytest.skip(str(native_backend.why_not()))
    alone = tmp_path / "alone"
    unwanted = shutil.ignore_patterns("__pycache__", "native", "_kernels*")
    shutil.copytree(ROOT, alone / "bayesbin", ignore=unwanted)
    if kernels:  # in an installation for development they lie apart from the sources
        from bayesbin.runtime import _kernels

        shutil.copy(_kernels.__file__, alone / "bayesbin" / "runtime")
    put_numpy(alone)
    program = f"import sys; sys.path.insert(0, {str(alone)!r})\n{USE}"
    # Neither the environment nor any site-packages are seen.
    found = ran([sys.executable, "-I", "-S", "-c", program, *arguments], tmp_path)
    assert found["probs"] == expected(arguments[0])
    assert found["roots"] == ["bayesbin", "numpy"]
    assert found["backend"] == ("native" if kernels else "numpy")
    said = [text for text in found["warnings"] if "kernels are not there" in text]
    assert len(found["warnings"]) == len(said) == (0 if kernels else 1)


@pytest.mark.slow
def test_a_wheel_without_dependencies_predicts_beside_numpy(arguments, tmp_path):
    source = ROOT.parent
    if not (source / "pyproject.toml").exists():
        pytest.skip("this is an installed package, without its sources")
    # Without the kernels, which take minutes to compile; the test above has them.
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-C", "wheel.cmake=false"]
    build += ["-w", str(tmp_path), str(source)]
    if importlib.util.find_spec("scikit_build_core") and importlib.util.find_spec("nanobind"):
        build.insert(4, "--no-build-isolation")
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode and "No matching distribution found" in built.stdout + built.stderr:
        pytest.skip("the build needs scikit-build-core and nanobind, and there is no network")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    where = subprocess.run(
        [str(python), "-c", "import bayesbin; print(bayesbin.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout.strip()  # fmt: skip
    assert Path(where).is_relative_to(folder)
    put_numpy(Path(where).parent.parent)
    found = ran([str(python), "-c", USE, *arguments], tmp_path)
    assert found["probs"] == expected(arguments[0]) and found["roots"] == ["bayesbin", "numpy"]
    missing = subprocess.run([str(python), "-c", "import torch"], capture_output=True, cwd=tmp_path)
    assert missing.returncode == 1  # the environment is its own
