import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
MAY_IMPORT = {
    "features": {"features"},
    "models": {"models", "features"},
    "publish": {"publish", "models", "features"},
    "flows": {"flows", "publish", "models", "features"},
}
"""flows → publish → models → features, and no other way."""
TESTS = {file.stem for file in (HOUSE / "tests").glob("*.py")}
OURS = {*MAY_IMPORT, "notebooks", "tests", "examples", "benchmarks", *TESTS}
DOORS = {"prefect": {"flows"}, "mlflow": {"models/registry.py"}}
"""Who alone may import a library: a package, or a module by its path."""


def imported(source: str) -> set[str]:
    """List the top-level packages that a module's text imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            constants = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            found |= {name.partition(".")[0] for name in constants if isinstance(name, str)}
    return found


def forbidden(module: str, source: str) -> set[str]:
    """List what a module, given by its path in the house, imports and must not."""
    package = module.partition("/")[0]
    names = imported(source)
    wrong_way = {name for name in names & OURS if name not in MAY_IMPORT[package]}
    past_door = {name for name in names & DOORS.keys() if not {package, module} & DOORS[name]}
    return wrong_way | past_door


def test_arrows_go_one_way_and_the_world_is_behind_its_doors() -> None:
    files = [file for package in MAY_IMPORT for file in sorted((HOUSE / package).rglob("*.py"))]
    modules = {file.relative_to(HOUSE).as_posix(): file.read_text() for file in files}

    found = {module: forbidden(module, source) for module, source in modules.items()}
    assert len(found) > 100
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "source", "culprit"),
    [
        ("features/events.py", "import models.segments", "models"),
        ("features/events.py", "from publish import assignments", "publish"),
        ("models/rules.py", "def f():\n    from flows.cli import main", "flows"),
        ("publish/api.py", "import json, flows", "flows"),
        ("flows/run.py", "import notebooks.explore", "notebooks"),
        ("features/table.py", "from tests.test_table import ORDERS", "tests"),
        ("features/table.py", "from histories import events_of", "histories"),
        ("publish/api.py", "from prefect import flow", "prefect"),
        ("models/segments.py", "import mlflow.sklearn", "mlflow"),
        ("flows/train.py", "import mlflow", "mlflow"),
        ("models/rules.py", "import importlib\nimportlib.import_module('publish.api')", "publish"),
    ],
)
def test_a_wrong_arrow_is_found(module: str, source: str, culprit: str) -> None:
    assert forbidden(module, source) == {culprit}


def test_every_package_of_the_house_is_watched() -> None:
    packages = {file.parent.name for file in HOUSE.glob("*/__init__.py")}
    assert packages == MAY_IMPORT.keys()


def test_tests_are_flat_and_no_package() -> None:
    # A package tests/features would hide features.
    assert [file.name for file in (HOUSE / "tests").rglob("__init__.py")] == []
    assert [file.name for file in (HOUSE / "tests").rglob("*.py") if file.parent.name != "tests"] == []
