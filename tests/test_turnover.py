from datetime import timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pytest
from histories import instant
from ibis.backends.duckdb import Backend as DuckDB

from publish.changes import CHANGES
from publish.turnover import count_turnover, last_steps, steps

AS_OF = instant("2024-06-30T05:00:00")
DAY = timedelta(days=1)
MEMBERS = pd.DataFrame([("crm", "s1", 10)], columns=["destination", "segment_id", "members"])


def changes(engine: DuckDB, *rows: tuple[int, str, str, int]) -> ir.Table:
    """Make CHANGES of version, change, reason and of how many users."""
    moved: list[dict[str, Any]] = [
        {"version": version, "change": change, "reason": reason, "user_id": f"{place}-{number}"}
        | {"as_of": AS_OF, "destination": "crm", "segment_id": "s1", "segment_name": "S1"}
        for place, (version, change, reason, users) in enumerate(rows)
        for number in range(users)
    ]
    arrow = pa.Table.from_pylist(moved, schema=CHANGES.schema.to_pyarrow())
    return engine.create_table(ibis.util.gen_name("changes"), arrow, temp=True)


def told(engine: DuckDB, versions: list[tuple[int, Any]], *rows: tuple[int, str, str, int]) -> list[tuple[Any, ...]]:
    """Return days, members before, entered, left and made of the steps of an audience that has 10 members now."""
    found = steps(count_turnover(changes(engine, *rows)), MEMBERS, versions)
    return [*found[["days", "members_before", "entered", "left", "made"]].itertuples(index=False, name=None)]


def test_members_before_follow_from_those_of_now_and_the_changes_since(engine: DuckDB) -> None:
    versions = [(1, AS_OF), (2, AS_OF + DAY), (3, AS_OF + 8 * DAY)]
    moved = [(2, "entered", "behaviour", 4), (3, "entered", "new_user", 3), (3, "left", "gone", 1)]
    assert told(engine, versions, *moved) == [(7.0, 8, 3, 1, 0), (1.0, 4, 4, 0, 0)]


@pytest.mark.parametrize("reason", ["consent", "erased", "holdout", "selection", "audience_size"])
def test_what_nobody_did_who_left_changes_members_and_is_no_turnover(engine: DuckDB, reason: str) -> None:
    versions = [(1, AS_OF), (2, AS_OF + DAY)]
    assert told(engine, versions, (2, "left", reason, 5), (2, "left", "gone", 2)) == [(1.0, 17, 0, 2, 0)]


def test_what_another_rule_or_model_made_is_told_apart(engine: DuckDB) -> None:
    versions = [(1, AS_OF), (2, AS_OF + DAY)]
    moved = [(2, "left", "rule", 5), (2, "entered", "model", 2), (2, "left", "behaviour", 1)]
    assert told(engine, versions, *moved) == [(1.0, 14, 2, 6, 7)]


def test_a_version_in_which_nobody_moved_is_a_step(engine: DuckDB) -> None:
    assert told(engine, [(1, AS_OF), (2, AS_OF + DAY)]) == [(1.0, 10, 0, 0, 0)]


def test_a_version_of_the_same_instant_is_none_but_changes_members(engine: DuckDB) -> None:
    versions = [(1, AS_OF), (2, AS_OF + DAY), (3, AS_OF + DAY), (4, AS_OF + 2 * DAY)]
    moved = [(2, "entered", "behaviour", 1), (3, "left", "consent", 3), (4, "left", "behaviour", 2)]
    assert told(engine, versions, *moved) == [(1.0, 12, 0, 2, 0), (1.0, 14, 1, 0, 0)]


def test_an_audience_without_members_before_has_no_step(engine: DuckDB) -> None:
    versions = [(1, AS_OF), (2, AS_OF + DAY)]
    assert told(engine, versions, (2, "entered", "new_user", 10)) == []


def test_one_version_alone_is_no_step(engine: DuckDB) -> None:
    assert told(engine, [(1, AS_OF)]) == []


def test_the_last_ten_steps_are_looked_at_however_often_an_instant_was_published() -> None:
    versions = [(number, AS_OF + number // 2 * DAY) for number in range(40)]
    found = last_steps(versions)
    assert found[0] == (18, AS_OF + 9 * DAY)
    assert found[-1] == versions[-1]
    assert last_steps(versions[:3]) == versions[:3]
