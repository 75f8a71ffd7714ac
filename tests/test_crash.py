"""Publishing that is killed, a few times; `make crash` does it 200 times. And that the trial can fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash
import ibis.expr.types as ir
import pytest

pytestmark = pytest.mark.slow


def test_readers_see_whole_versions_and_what_is_killed_ends_as_undisturbed(capsys: pytest.CaptureFixture[str]) -> None:
    status = crash.main(kills=12, seed=1)
    assert status == 0, capsys.readouterr().out


def point_before_it_is_whole() -> None:
    from publish.destinations.folders import LocalFolder

    add, point = LocalFolder.add, LocalFolder.point

    def point_and_add(folder: LocalFolder, staged: Path, version: str) -> None:
        point(folder, version)
        add(folder, staged, version)

    LocalFolder.add = point_and_add  # type: ignore[method-assign, assignment]


def commit_each_statement() -> None:
    from publish.destinations.sql import Sql

    copy = Sql._copy

    def copy_and_commit(sql: Sql, cursor: Any, table: str, rows: ir.Table) -> tuple[int, int]:
        copied = copy(sql, cursor, table, rows)
        cursor.execute("COMMIT")
        cursor.execute("BEGIN")
        return copied

    Sql._copy = copy_and_commit  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("mutant", [point_before_it_is_whole, commit_each_statement])
def test_publishing_that_is_broken_is_found_out(mutant: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert crash.main(kills=60, seed=1, sabotage=mutant) == 1
    assert "crash: seed 1: " in capsys.readouterr().out
