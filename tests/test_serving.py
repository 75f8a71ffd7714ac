"""People promote and roll back; what was decided is on record."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from shops import habitus
from sklearn.linear_model import LogisticRegression

from flows.train import version_tags
from models.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's

INPUTS = pd.DataFrame({"recency_days": np.linspace(0, 30, 40)})
MODEL = LogisticRegression().fit(INPUTS, INPUTS["recency_days"] > 15)
JANUARY, FEBRUARY, MARCH = (datetime(2024, month, 1, tzinfo=UTC) for month in (1, 2, 3))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store that holds nothing; to copy it is quicker than to make another."""
    folder = tmp_path_factory.mktemp("empty") / "mlruns"
    assert Registry(folder).serving("shop-churn") is None
    return folder


@pytest.fixture
def mlruns(empty: Path, tmp_path: Path) -> Path:
    """Hold three versions: of January and February, which were promoted, and of March, which was not."""
    return add_versions(shutil.copytree(empty, tmp_path / "mlruns"))


@pytest.fixture(scope="module")
def shared(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the same for all mistakes, which change nothing."""
    return add_versions(shutil.copytree(empty, tmp_path_factory.mktemp("shared") / "mlruns"))


def configure(folder: Path) -> Path:
    columns = 'user_id = "user"\noccurred_at = "at"\nevent_name = "event"\n'
    (folder / "habitus.toml").write_text(f'name = "shop"\n[events]\nfiles = "*.csv"\n[events.columns]\n{columns}')
    return folder / "habitus.toml"


def add_versions(mlruns: Path) -> Path:
    configure(mlruns.parent)
    registry = Registry(mlruns)
    for as_of, promoted in ((JANUARY, True), (FEBRUARY, True), (MARCH, False)):
        with registry.run("shop/churn", f"{as_of:%B}") as run:
            run.log_model(MODEL, "shop-churn", f"{as_of:%B}", INPUTS, tags=version_tags(as_of, promoted=promoted))
    return mlruns


def decide(mlruns: Path, *arguments: str) -> str:
    done = habitus(*arguments, "--config", str(mlruns.parent / "habitus.toml"))
    assert done.exit_code == 0, done.stderr
    return str(done.stdout).strip()


def test_a_promoted_version_serves_from_its_own_instant_on(mlruns: Path) -> None:
    said = decide(mlruns, "promote", "shop-churn", "3", "--reason", "the shop moved")

    assert said == "shop-churn version 3 serves, from 2024-03-01 00:00 UTC on: the shop moved"
    registry = Registry(mlruns)
    assert [registry.serving("shop-churn", at) for at in (JANUARY, FEBRUARY, MARCH)] == [1, 2, 3]


def test_after_a_rollback_the_version_before_serves(mlruns: Path) -> None:
    said = decide(mlruns, "rollback", "shop-churn")

    assert said == "shop-churn version 1 serves instead of version 2, from 2024-02-01 00:00 UTC on: rolled back"
    assert Registry(mlruns).serving("shop-churn") == 1
    assert Registry(mlruns).aliased("shop-churn", "champion") == 1


def test_a_second_rollback_does_not_return_to_what_was_rolled_back(mlruns: Path) -> None:
    decide(mlruns, "promote", "shop-churn", "3", "--reason", "tried")
    decide(mlruns, "rollback", "shop-churn")
    decide(mlruns, "rollback", "shop-churn")

    assert Registry(mlruns).serving("shop-churn") == 1


def test_a_decision_is_kept_with_its_run(mlruns: Path) -> None:
    decide(mlruns, "promote", "shop-churn", "3", "--reason", "the shop moved")

    registry = Registry(mlruns)
    client = MlflowClient(registry.tracking_uri, registry_uri=registry.tracking_uri)
    run_id = str(client.get_model_version("shop-churn", "3").run_id)
    [kept] = registry.artifacts.of_run(run_id, "promotions").iterdir()
    decision = json.loads(kept.read_text())
    assert (decision["version"], decision["reason"], decision["promoted"]) == (3, "the shop moved", True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["promote", "shop-churn", "9", "--reason", "x"], "shop-churn has no version 9; it has 1, 2, 3"),
        (["promote", "shop-chrun", "1", "--reason", "x"], "there is no model shop-chrun; there are shop-churn"),
        (["promote", "shop-churn", "2", "--reason", "x"], "shop-churn version 2 serves already"),
        (["rollback", "shop-conversion"], "no version of shop-conversion serves"),
    ],
)
def test_a_mistake_is_one_line(shared: Path, arguments: list[str], complaint: str) -> None:
    done = habitus(*arguments, "--config", str(shared.parent / "habitus.toml"))

    assert done.exit_code == 2
    assert complaint in done.stderr
    assert Registry(shared).serving("shop-churn") == 2


def test_where_nothing_is_before_it_a_version_stays(mlruns: Path) -> None:
    decide(mlruns, "rollback", "shop-churn")

    done = habitus("rollback", "shop-churn", "--config", str(mlruns.parent / "habitus.toml"))
    assert done.exit_code == 2
    assert "has none before it to roll back to" in done.stderr


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    done = habitus("rollback", "shop-churn", "--config", str(configure(tmp_path)))

    assert done.exit_code == 2
    assert "mlruns holds no models: train some, or name another configuration with --config" in done.stderr


def test_the_models_are_where_the_configuration_keeps_them(mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = mlruns.parent / "habitus.toml"
    mlruns.rename(mlruns.with_name("models"))
    config.write_text(config.read_text() + '[storage]\nmlruns = "models"\n')
    monkeypatch.chdir(mlruns.parent)

    assert habitus("rollback", "shop-churn").exit_code == 0
    assert Registry(mlruns.with_name("models")).serving("shop-churn") == 1
