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
from collections import Counter
from pathlib import Path

import pytest
import torch

import bayesbin

ROOT = Path(bayesbin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A room may import those left of it in the chain, and itself.
CHAIN: list[set[str]] = [
    {"core"},
    {"data", "distributions"},
    {"posterior", "nn", "estimators"},
    {"optim"},
    {"guides"},
    {"infer"},
    {"recipes"},
    {"continual", "sklearn", "arviz"},
    {"experiments"},
    {"__main__"},
]
MAY_IMPORT: dict[str, set[str]] = {}
_left: set[str] = set()
for _rooms in CHAIN:
    MAY_IMPORT |= {room: set(_left) for room in _rooms}
    _left |= _rooms
# Scores stand beside the chain: made of plain arrays, used from inference on.
MAY_IMPORT["diagnostics"] = {"core"}
for _room in ("infer", "recipes", "continual", "sklearn", "arviz", "experiments"):
    MAY_IMPORT[_room] |= {"diagnostics"}
# The way to a prediction: a program, what makes one of a network, and an ensemble of both.
MAY_IMPORT["runtime"] = {"core"}
MAY_IMPORT["compile"] = MAY_IMPORT["posterior"] | {"posterior", "nn", "runtime"}
MAY_IMPORT["ensemble"] = MAY_IMPORT["recipes"] | {"recipes", "runtime", "compile"}
for _room in ("continual", "sklearn", "arviz", "experiments"):
    MAY_IMPORT[_room] |= {"runtime", "compile", "ensemble"}
MAY_IMPORT["plots"] = MAY_IMPORT["experiments"] - {"experiments"}
MAY_IMPORT["experiments"] |= {"plots"}
MAY_IMPORT["__main__"] = {"experiments"}


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
        for other in allowed - {room}:
            assert room not in MAY_IMPORT[other], f"{room} and {other} may import each other"


def test_only_plots_imports_matplotlib_and_only_experiments_import_plots():
    for path in FILES:
        if room_of(path) != "plots":
            assert not any(name.split(".")[0] == "matplotlib" for name in imports(path)), path
        if "plots" in rooms_imported(path):
            assert room_of(path) in {"plots", "experiments", "__init__"}, (
                path
            )  # the last: for types


# Rules for rooms, in place of a limit on lines.


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def importers() -> dict[str, set[Path]]:
    """Module name -> the other files that import it."""
    found: dict[str, set[Path]] = {module_name(path): set() for path in FILES}
    for path in FILES:
        for name in imports(path):
            if name in found and name != module_name(path):
                found[name].add(path)
    return found


def test_no_import_circle_between_modules():
    graph: dict[str, set[str]] = {name: set() for name in map(module_name, FILES)}
    for path in FILES:
        # At the top of a file: what a function imports when it runs makes no circle of loading.
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    part = f"{node.module}.{alias.name}"
                    graph[module_name(path)].add(part if part in graph else str(node.module))
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in (graph[name] & graph.keys()) - {name}:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_small_file_has_a_single_importer():
    users = importers()
    crumbs = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py")
        and len(path.read_text().splitlines()) < 80
        and len(users[module_name(path)]) == 1
        and not any(user.name == "__init__.py" for user in users[module_name(path)])
    ]
    assert not crumbs, f"would their only importer say it better? {', '.join(crumbs)}"


def complexity(function: ast.AST) -> int:
    """Branches of a function, and one."""
    branching = (
        ast.If,
        ast.For,
        ast.While,
        ast.IfExp,
        ast.ExceptHandler,
        ast.comprehension,
        ast.Assert,
    )
    total = 1
    for node in ast.walk(function):
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, branching):
            total += 1
    return total


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_branches_more_than_fifteen_times(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert complexity(node) <= 15, f"{path.name}: {node.name} has {complexity(node)}"


@pytest.mark.parametrize(
    "room", [path for path in FILES if path.name == "__init__.py"], ids=module_name
)
def test_a_room_has_at_most_25_public_names(room):
    names = getattr(importlib.import_module(module_name(room)), "__all__", ())
    if room.parent != ROOT:  # the contract's own names are counted nowhere
        assert len(names) <= 25


def test_one_class_of_a_name():
    homes: dict[str, str] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in homes, f"{node.name}: {homes[node.name]} and {path}"
                homes[node.name] = str(path)


def test_one_test_file_of_a_name():
    """pytest imports a test by the name of its file alone, and refuses a second of that name."""
    files = Path(__file__).parent.rglob("*.py")
    names = Counter(path.name for path in files if path.name != "conftest.py")
    assert not (twice := [name for name, count in names.items() if count > 1]), twice


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
        "from bayesbin import AutoSignBernoulli, BinaryPosterior, TraceBinary_ELBO, nn, Ensemble"
    )
    assert not {"arviz", "matplotlib"} & set(loaded)


def public_modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages([str(ROOT)], "bayesbin.")]
    if importlib.util.find_spec("triton") is None:  # there are no wheels but for Linux
        needs_triton = ("triton_kernels", "triton_signs", "compile.triton_backend")
        names = [name for name in names if not name.endswith(needs_triton)]
    return [name for name in names if not name.endswith("__main__")]


def test_public_names_resolve():
    assert set(dir(bayesbin)) == set(bayesbin.__all__)
    for name in bayesbin.__all__:
        assert getattr(bayesbin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bayesbin.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "room", ["bayesbin", "bayesbin.experiments", "bayesbin.runtime", "bayesbin.compile"]
)
def test_no_module_shadows_a_public_name(room):
    """Importing a module sets an attribute of its package, which may be the name of a function."""
    package = importlib.import_module(room)
    for name, home in package._NAMES.items():
        home = home if home.startswith("bayesbin.") else f"{room}.{home}"
        assert getattr(importlib.import_module(home), name) is getattr(package, name), name


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


# Not arguments: values of JSON and of a traced graph, sizes of torch's own modules, settings and labels told
# apart by their type.
_NUMBERS_BY_TYPE = {
    "compile/export.py",
    "compile/layout.py",
    "compile/operators.py",
    "compile/operators_elementwise.py",
    "compile/operators_norm.py",
    "compile/operators_shape.py",
    "compile/translation.py",
    "continual/reports.py",
    "continual/task_data.py",
    "core/checks.py",
    "ensemble/state.py",
    "experiments/cli/__init__.py",
    "experiments/record.py",
    "experiments/report/findings.py",
    "experiments/train.py",
    "infer/fit.py",
    "nn/convert.py",
    "nn/effective.py",
    "nn/moment_propagation.py",
    "recipes/settings.py",
}


def number_types(node: ast.AST) -> set[str]:
    """The types of numbers that an ``isinstance`` asks for."""
    if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "isinstance":
        return set()
    kinds = node.args[1].elts if isinstance(node.args[1], ast.Tuple) else [node.args[1]]
    named = {getattr(kind, "id", getattr(kind, "attr", "")) for kind in kinds}
    return named & {"int", "float", "Integral", "Real", "Number", "integer", "floating"}


def test_numbers_are_checked_by_the_one_helper():
    """``isinstance(x, int)`` refuses numpy's integers and accepts True: core/checks does neither."""
    found = {
        str(path.relative_to(ROOT))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if number_types(node)
    }
    assert found <= _NUMBERS_BY_TYPE, f"use core/checks in {sorted(found - _NUMBERS_BY_TYPE)}"
    asked = [f"isinstance(x, {kind})" for kind in ("int", "(str, float)", "np.integer", "Integral")]
    assert all(number_types(ast.parse(each).body[0].value) for each in asked)  # pyright: ignore
