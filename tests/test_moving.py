"""A project's folder is moved, copied, mounted under two names and put back from a copy, as people do."""

import hashlib
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from messages import assert_documented
from sklearn.linear_model import LogisticRegression

from features.lake import Lake, MovedError
from features.table import Table
from models.registry import Registry
from models.store import StoreError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's

INPUTS = pd.DataFrame({"recency_days": np.linspace(0, 30, 40)})
MODELS = [LogisticRegression().fit(INPUTS, INPUTS["recency_days"] > days) for days in (10, 20)]
USERS = Table("users", ibis.schema({"user_id": "!string"}), ("user_id",))


def train(registry: Registry, which: int) -> int:
    with registry.run("shop/churn", "2026-01-01") as run:
        run.log_dict({"which": which}, "decision.json")
        run.log_model(MODELS[which], "shop-churn", str(which), INPUTS)
    assert run.version is not None
    return run.version


def kept(registry: Registry, number: int) -> int:
    """Return which of MODELS a version is, having asked both its files and its run's."""
    loaded = registry.load("shop-churn", number)
    assert loaded is not None
    which = registry.read_dict("shop-churn", number, "decision.json")["which"]
    assert np.array_equal(loaded.model.predict(INPUTS), MODELS[which].predict(INPUTS))
    return int(which)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mlruns = tmp_path_factory.mktemp("trained") / "mlruns"
    assert train(Registry(mlruns), 0) == 1
    return mlruns


@pytest.fixture
def mlruns(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "a" / "mlruns")


# --- the models ---


def test_a_moved_store_has_its_models_and_takes_new_ones_where_it_is(mlruns: Path, tmp_path: Path) -> None:
    mlruns.parent.rename(tmp_path / "b #2?")
    moved = Registry(tmp_path / "b #2?" / "mlruns")

    assert kept(moved, 1) == 0
    assert train(moved, 1) == 2
    assert kept(moved, 2) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b #2?"]


def test_a_copy_leaves_its_original_as_it_is(mlruns: Path, tmp_path: Path) -> None:
    before = digests(mlruns)
    copy = Registry(shutil.copytree(mlruns, tmp_path / "copy"))
    train(copy, 1)

    assert digests(mlruns) == before
    assert (kept(copy, 1), kept(copy, 2)) == (0, 1)
    shutil.rmtree(mlruns)
    assert (kept(copy, 1), kept(copy, 2)) == (0, 1)


def test_two_names_of_one_store_are_used_at_the_same_time(mlruns: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(mlruns.parent)
    one, other = Registry(mlruns), Registry(tmp_path / "mounted" / "mlruns")

    assert (train(one, 1), train(other, 0)) == (2, 3)
    assert [kept(one, number) for number in (1, 2, 3)] == [kept(other, number) for number in (1, 2, 3)] == [0, 1, 0]


def placed(mlruns: Path, elsewhere: str) -> None:
    """Have a store say where its artifacts are, as 0.1.0 did."""
    with closing(sqlite3.connect(mlruns / "mlflow.db")) as store, store:
        store.execute(f"UPDATE experiments SET artifact_location = '{elsewhere}' WHERE name = 'shop/churn'")
        for table, column in (
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            store.execute(f"UPDATE {table} SET {column} = replace({column}, 'mlflow-artifacts:', '{elsewhere}')")


def places(mlruns: Path) -> set[str]:
    with closing(sqlite3.connect(mlruns / "mlflow.db")) as store:
        return set(re.findall(r"file:[^']*", "\n".join(store.iterdump())))


def test_a_store_does_not_say_where_it_is(mlruns: Path) -> None:
    assert places(mlruns) == set()


def test_a_store_of_0_1_0_forgets_where_it_was(mlruns: Path) -> None:
    with closing(sqlite3.connect(mlruns / "mlflow.db")) as store:
        as_it_was = [*store.iterdump()]
    placed(mlruns, "file:///a/models/m-1/artifacts%20of/mlruns/artifacts")
    assert len(places(mlruns)) == 3

    assert kept(Registry(mlruns), 1) == 0
    with closing(sqlite3.connect(mlruns / "mlflow.db")) as store:
        assert [*store.iterdump()] == as_it_was


def test_a_store_of_0_1_0_that_cannot_be_written_now_has_its_models(mlruns: Path) -> None:
    placed(mlruns, "file:///gone/mlruns/artifacts")
    with closing(sqlite3.connect(mlruns / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert kept(Registry(mlruns), 1) == 0


def test_a_version_whose_files_are_gone_is_named(mlruns: Path) -> None:
    shutil.rmtree(mlruns / "artifacts")
    with pytest.raises(StoreError) as gone:
        Registry(mlruns).load("shop-churn", 1)
    assert str(gone.value).startswith(f"shop-churn version 1 cannot be loaded from {mlruns / 'artifacts'}")


# --- moved while it is worked in ---


def log(mlruns: Path, move: Callable[[], object]) -> None:
    with Registry(mlruns).run("shop/churn", "2026-01-01") as run:
        move()
        run.log_model(MODELS[1], "shop-churn", "1", INPUTS)


def write(folder: Path, move: Callable[[], object]) -> None:
    with Lake(folder) as lake:
        lake.write(USERS, ibis.memtable({"user_id": ["ann"]}, schema=USERS.schema))
        move()
        lake.write(USERS, ibis.memtable({"user_id": ["ben"]}, schema=USERS.schema))


def test_nothing_is_written_where_a_store_was(mlruns: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - MLflow's own, or ours
        log(mlruns, lambda: mlruns.parent.rename(tmp_path / "b"))

    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    moved = Registry(tmp_path / "b" / "mlruns")
    assert (kept(moved, 1), moved.find("shop-churn", "1"), train(moved, 1)) == (0, None, 2)


def test_nothing_is_written_where_a_lake_was(tmp_path: Path) -> None:
    with pytest.raises(MovedError) as moved:
        write(tmp_path / "a" / "lake", lambda: (tmp_path / "a").rename(tmp_path / "b"))
    assert_documented("a project that is moved while a stage runs", str(moved.value), tmp_path / "a")

    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with Lake(tmp_path / "b" / "lake") as lake:
        assert lake.read(USERS).to_pandas()["user_id"].tolist() == ["ann"]
        assert lake.write(USERS, ibis.memtable({"user_id": ["ben"]}, schema=USERS.schema))


def test_a_lake_that_was_moved_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with Lake(tmp_path / "a") as lake:
        lake.write(USERS, ibis.memtable({"user_id": ["ann"]}, schema=USERS.schema))
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(MovedError):
            lake.read(USERS)


def test_nothing_is_written_to_a_lake_that_took_the_place_of_another(tmp_path: Path) -> None:
    def exchange() -> None:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()

    with pytest.raises(MovedError):
        write(tmp_path / "a", exchange)
    assert [*(tmp_path / "a").glob("*")] == []
