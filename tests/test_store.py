"""MLflow's database as it is before MLflow looks at it."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from messages import assert_documented

from models.store import StoreError, check_store


@pytest.fixture
def mlruns(tmp_path: Path) -> Path:
    folder = tmp_path / "mlruns"
    (folder / "artifacts").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        for number in range(20):
            database.execute(f"CREATE TABLE t{number} (x TEXT)")
    return folder


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def test_nothing_is_said_of_a_database_that_is_whole(mlruns: Path) -> None:
    check_store(mlruns)


@pytest.mark.parametrize(
    ("case", "damage"),
    [
        ("the database of models is missing", Path.unlink),
        ("the database of models is cut off", cut),
        ("the database of models is empty", lambda file: file.write_text("")),
        ("the database of models is another file", lambda file: file.write_text("garbage")),
    ],
)
def test_a_broken_database_is_named_and_no_new_one_begun(
    mlruns: Path, case: str, damage: Callable[[Path], None]
) -> None:
    damage(mlruns / "mlflow.db")
    with pytest.raises(StoreError) as caught:
        check_store(mlruns)
    assert_documented(case, str(caught.value), mlruns.parent)


def test_a_database_that_sqlite_will_mend_is_not_broken(mlruns: Path) -> None:
    cut(mlruns / "mlflow.db")
    (mlruns / "mlflow.db-journal").touch()
    check_store(mlruns)


def test_a_store_whose_first_process_was_killed_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    check_store(tmp_path)
