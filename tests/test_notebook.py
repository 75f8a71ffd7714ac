"""The notebooks run from top to bottom on what a run left behind."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright
from shops import Ran

pytestmark = pytest.mark.ci

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def definitions_of(notebook: str, ran: Ran, folder: Path) -> Any:
    """Run a notebook on a copy of what a run left behind, return what its cells define."""
    shutil.copytree(ran.configuration.folder, folder, symlinks=True)
    config = folder / "habitus.toml"
    spec = importlib.util.spec_from_file_location(notebook, NOTEBOOKS / f"{notebook}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, definitions = module.app.run(defs={"config_file": str(config)})
    return definitions


# --- explore.py ---


@pytest.fixture(scope="module")
def explored(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return definitions_of("explore", ran, tmp_path_factory.mktemp("notebook") / "shop")


def test_it_shows_the_segments_that_serve(explored: Any, ran: Ran) -> None:
    assert {one.name for one in explored["model"].segments} == {one["name"] for one in ran.result["scored"]["segments"]}


def test_the_segments_are_compared_side_by_side(explored: Any, ran: Ran) -> None:
    names = [one["name"] for one in ran.result["scored"]["segments"]]

    assert list(explored["by_feature"].columns) == [*names, "all users"]
    assert set(explored["by_attribute"]["attribute"]) == {"device", "source", "country"}


def test_other_segments_are_compared_with_those_that_serve(explored: Any) -> None:
    assert len(explored["other"].segments) == len(explored["model"].segments) + 1
    assert explored["agreement"] < 1


def test_what_was_retrained_stands_beside_the_other_runs_in_mlflow(explored: Any) -> None:
    names = list(explored["runs"]["run"])

    assert names == ["explored without device, source, country", "churn as of 2024-06-30 00:00 UTC"]
    assert explored["runs"]["model_auc"].iloc[0] == pytest.approx(explored["measured"]["auc"].value)


@pytest.mark.slow
def test_an_exported_notebook_shows_its_tables_and_figures_without_a_network(ran: Ran, tmp_path: Path) -> None:
    shop, page = shutil.copytree(ran.configuration.folder, tmp_path / "shop", symlinks=True), tmp_path / "explore.html"
    given = map(str, (NOTEBOOKS / "export.py", NOTEBOOKS / "explore.py", shop / "habitus.toml", page))
    subprocess.run(
        [sys.executable, *given],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(NOTEBOOKS.parent)},
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("Chromium is missing, which this test drives: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        opened, asked = context.new_page(), list[str]()
        opened.on("request", lambda request: asked.append(request.url[:40]))
        opened.goto(page.as_uri())
        names = [one["name"] for one in ran.result["scored"]["segments"]]
        assert all(opened.get_by_text(name).first.is_visible() for name in names)
        assert opened.locator("table").count() == 5
        assert opened.locator("img").evaluate_all("all => all.map(one => one.naturalWidth > 100)") == [True, True]
        assert not [url for url in asked if url.startswith("http")]
        browser.close()


# --- own_model.py ---


@pytest.fixture(scope="module")
def own(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return definitions_of("own_model", ran, tmp_path_factory.mktemp("notebook") / "shop")


@pytest.mark.slow
def test_an_estimator_of_ones_own_is_judged_on_the_rows_of_the_default(own: Any) -> None:
    default, mine = own["default"], own["mine"]

    assert mine.learned.model.estimator.estimator.steps[-1][0] == "logisticregression"
    assert list(mine.predicted["champion"]) == list(default.predicted["model"])
    assert mine.measured["recency"] == default.measured["recency"]


@pytest.mark.slow
def test_the_decision_says_by_how_much_it_is_better_or_worse_than_the_default(own: Any) -> None:
    mine = own["mine"]

    assert mine.decision.reason.startswith("Promoted: " if mine.decision.promoted else "Not promoted: ")
    assert {"base_rate", "recency", "champion"} <= mine.decision.gains.keys()
    assert list(own["table"].index) == ["default", "my own", "default with my feature"]


@pytest.mark.slow
def test_an_honest_feature_passes_the_audit_and_joins_the_model(own: Any) -> None:
    feature = "active_day_count_28d"

    assert feature in own["audited"].features
    assert all(rows[feature].dropna().between(1, 28).all() for rows in own["wider"].values())
    assert feature in own["with_feature"].learned.model.feature_names_in_


@pytest.mark.slow
def test_a_feature_that_knows_the_future_is_found_by_the_audit(own: Any) -> None:
    assert {changed.feature for changed in own["audited"].changed} == {"days_to_next_event"}
    [finding] = own["audited"].findings
    assert finding.startswith("days_to_next_event knows the future: ")
