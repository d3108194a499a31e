"""The house: which room may import which, how large a file is, what an import loads."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bayesbin

ROOT = Path(bayesbin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A room may import those left of it in one of the chains (and itself).
GROUND = {
    "_one_pass",
    "_numerics",
    "_fused",
    "_files",
    "_levels",
    "_networks",
    "_preprocessing",
    "_summary",
    "data",
}
MAY_IMPORT: dict[str, set[str]] = {room: GROUND for room in GROUND}
MAY_IMPORT["distributions"] = GROUND
for _room in ("posterior", "estimators", "nn"):
    MAY_IMPORT[_room] = GROUND | {"distributions"}
for _room in ("guides", "optim"):
    MAY_IMPORT[_room] = GROUND | {"distributions", "posterior", "estimators", "nn"}
MAY_IMPORT["predict"] = GROUND | {"distributions", "posterior", "nn"}
MAY_IMPORT["diagnostics"] = MAY_IMPORT["predict"] | {"predict"}
MAY_IMPORT["infer"] = MAY_IMPORT["guides"] | {"guides", "optim", "predict", "diagnostics"}
for _room in ("continual", "inference_data", "sklearn"):
    MAY_IMPORT[_room] = MAY_IMPORT["infer"] | {"infer"}
MAY_IMPORT["plots"] = MAY_IMPORT["diagnostics"] | {"diagnostics", "continual"}
MAY_IMPORT["recipes"] = MAY_IMPORT["infer"]
MAY_IMPORT["runs"] = MAY_IMPORT["continual"] | {"continual", "recipes"}
MAY_IMPORT["demos"] = MAY_IMPORT["runs"] | {"plots"}
MAY_IMPORT["report"] = MAY_IMPORT["runs"] | {"runs", "plots"}
MAY_IMPORT["cli"] = MAY_IMPORT["demos"] | {"runs", "demos", "report"}
MAY_IMPORT["__main__"] = {"cli"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The dotted names of everything a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def rooms_imported(path: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("bayesbin.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        statements = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        origins = {getattr(node, "module", None) or node.names[0].name for node in statements}
        assert origins <= {"__future__", "importlib", "typing"}, "public names are lazy"
        return
    assert room in MAY_IMPORT, f"{room} has no place in the order of rooms yet; give it one"
    foreign = rooms_imported(path) - {room} - MAY_IMPORT[room]
    assert not foreign, f"{room} must not import {sorted(foreign)}"


def test_the_order_has_no_circle():
    for room, allowed in MAY_IMPORT.items():
        for other in allowed - GROUND - {room}:
            assert room not in MAY_IMPORT[other], f"{room} and {other} may import each other"


def test_only_plots_imports_matplotlib_and_only_the_command_line_imports_plots():
    for path in FILES:
        if room_of(path) != "plots":
            assert not any(name.split(".")[0] == "matplotlib" for name in imports(path)), path
        if "plots" in rooms_imported(path):
            assert room_of(path) in {"plots", "cli", "demos", "report", "__init__"}, (
                path
            )  # the last: for types


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300


def loaded_by(statement: str) -> list[str]:
    program = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def test_importing_the_package_loads_only_itself():
    loaded = loaded_by("import bayesbin")
    ours = [name for name in loaded if name.split(".")[0] == "bayesbin"]
    assert ours == ["bayesbin"]
    assert not {"torch", "pyro", "arviz", "matplotlib", "triton"} & set(loaded)


def test_training_and_prediction_load_no_plotting():
    loaded = loaded_by(
        "from bayesbin import AutoSignBernoulli, BinaryPosterior, TraceBinary_ELBO, nn, predict"
    )
    assert not {"arviz", "matplotlib"} & set(loaded)


def public_modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages([str(ROOT)], "bayesbin.")]
    if importlib.util.find_spec("triton") is None:  # there are no wheels but for Linux
        names = [name for name in names if not name.endswith(("triton_kernels", "triton_signs"))]
    return [name for name in names if not name.endswith("__main__")]


def test_public_names_resolve():
    assert set(dir(bayesbin)) == set(bayesbin.__all__)
    for name in bayesbin.__all__:
        assert getattr(bayesbin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bayesbin.nonsense  # noqa: B018


@pytest.mark.parametrize("module", public_modules())
def test_public_objects_are_documented_and_public_names_resolve(module):
    loaded = importlib.import_module(module)
    assert inspect.getdoc(loaded), f"{module} says what it is for in its docstring"
    for name in getattr(loaded, "__all__", ()):
        thing = getattr(loaded, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert thing.__doc__, f"{module}.{name} has no docstring of its own"


@pytest.mark.parametrize("module", public_modules())
def test_examples_in_docstrings(module):
    torch.set_default_dtype(torch.float32)  # as a reader's session has it
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0
