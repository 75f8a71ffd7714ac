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


def commit_the_version_before_its_changes() -> None:
    from features.lake import Lake
    from publish.audiences import AUDIENCES
    from publish.changes import CHANGES

    write = Lake.write
    waiting: list[Callable[[], bool]] = []

    def write_late(lake: Lake, table: Any, *args: Any, **named: Any) -> bool:
        if table == CHANGES:
            rows = lake.engine.create_table("late", args[0], temp=True, overwrite=True)
            waiting.append(lambda: write(lake, table, rows, *args[1:], **named))
            return True
        written = write(lake, table, *args, **named)
        if table == AUDIENCES:
            waiting.pop()()
        return written

    Lake.write = write_late  # type: ignore[method-assign, assignment]


def mark_sent_before_sending() -> None:
    from publish.destinations.sending import Sender

    send = Sender._send

    def mark_and_send(sender: Sender, transport: Any, message: Any) -> Any:
        sender.outbox.mark_sent(message)
        return send(sender, transport, message)

    Sender._send = mark_and_send  # type: ignore[method-assign, assignment]


MUTANTS = [
    point_before_it_is_whole,
    commit_each_statement,
    commit_the_version_before_its_changes,
    mark_sent_before_sending,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_publishing_that_is_broken_is_found_out(mutant: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert crash.main(kills=60, seed=1, sabotage=mutant) == 1
    assert "crash: seed 1: " in capsys.readouterr().out
