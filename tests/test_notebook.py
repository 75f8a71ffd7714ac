"""The notebook runs from top to bottom on what a run left behind."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "explore.py"


@pytest.fixture(scope="module")
def explored(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("notebook") / "shop"
    shutil.copytree(ran.configuration.folder, folder, symlinks=True)
    spec = importlib.util.spec_from_file_location("explore", NOTEBOOK)
    assert spec is not None
    assert spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    _, definitions = notebook.app.run(defs={"config_file": str(folder / "habitus.toml")})
    return definitions


def test_it_shows_the_segments_that_serve(explored: Any, ran: Ran) -> None:
    assert {one.name for one in explored["model"].segments} == {one["name"] for one in ran.result["scored"]["segments"]}


def test_other_segments_are_compared_with_those_that_serve(explored: Any) -> None:
    assert len(explored["other"].segments) == len(explored["model"].segments) + 1
    assert explored["agreement"] < 1


def test_what_was_retrained_stands_beside_the_other_runs_in_mlflow(explored: Any) -> None:
    names = list(explored["runs"]["run"])

    assert names == ["explored without device, source, country", "churn as of 2024-06-29 00:00"]
    assert explored["runs"]["model_auc"].iloc[0] == pytest.approx(explored["measured"]["auc"])
