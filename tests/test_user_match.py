import uuid

import ibis.expr.types as ir
import pyarrow as pa
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.sources import SourceError
from features.user_match import UsersFound, hints, in_words, match_users


def match(engine: DuckDB, users: list[str], active: list[str]) -> UsersFound:
    def table(ids: list[str]) -> ir.Table:
        columns = pa.table({"user_id": pa.array(ids, pa.string())})
        return engine.create_table(f"ids_{uuid.uuid4().hex}", columns, temp=True)

    return match_users(table(users), table(active), {})


def test_users_with_and_without_events_add_up_to_those_read(engine: DuckDB) -> None:
    assert match(engine, ["ada", "ben", "cat"], ["ada", "ben", "dan"]) == UsersFound(read=3, matched=2, unmatched=1)


def test_a_file_without_users_is_no_mistake(engine: DuckDB) -> None:
    assert match(engine, [], ["ada"]) == UsersFound(0, 0, 0)


def test_users_of_whom_none_has_events_are_a_mistake(engine: DuckDB) -> None:
    with pytest.raises(SourceError) as caught:
        match(engine, ["cat", "dan"], ["ada"])
    assert str(caught.value) == (
        "users.files: none of 2 users has an event; write ids alike: users.user_id names their column, and "
        "events.columns.user_id may be an expression"
    )


@pytest.mark.parametrize(
    ("user", "active", "difference"),
    [
        (" 1", "1", "blanks around them"),
        ("1", "1\t", "blanks around them"),
        ("Ada", "ada", "upper and lower case"),
        ("ada", "ADA", "upper and lower case"),
        ("1.0", "1", "a trailing .0"),
        ("17850", "17850.0", "a trailing .0"),
        ("001", "1", "leading zeros"),
        ("1", "0001", "leading zeros"),
        (" ADA", "ada", "several of these"),
        ("001", "1.0", "several of these"),
    ],
)
def test_what_ids_differ_in_is_named_and_no_id(engine: DuckDB, user: str, active: str, difference: str) -> None:
    with pytest.raises(SourceError) as caught:
        match(engine, [user], [active])
    assert str(caught.value).startswith(
        f"users.files: none of 1 user has an event; 1 would but for {difference}; write ids alike: "
    )
    assert match(engine, [user, "x"], [active, "x"]).likely == {difference: 1}


@pytest.mark.parametrize(
    ("user", "active"), [("10", "1"), ("1.5", "1"), ("0", "00x"), ("ada b", "adab"), ("1.0.1", "1.1")]
)
def test_other_ids_are_not_alike(engine: DuckDB, user: str, active: str) -> None:
    assert match(engine, [user, "x"], [active, "x"]).likely == {}


def test_each_user_is_counted_for_one_difference(engine: DuckDB) -> None:
    found = match(engine, ["Ada", "BEN", "007", "x"], ["ada", "ADA", "ben", "7", "x"])

    assert found == UsersFound(4, 1, 3, {"upper and lower case": 2, "leading zeros": 1})


def test_users_are_said_in_a_line() -> None:
    assert in_words(UsersFound(1200, 1000, 200)) == ["users: 1,000 with events + 200 without = 1,200 read"]
    assert in_words(UsersFound(1, 1, 0, placeholders={"null": 2, "NaN": 1})) == [
        "users: 1 with events + 0 without = 1 read; of rows without one 2 say 'null', 1 says 'NaN'"
    ]
    assert in_words(UsersFound(0, 0, 0)) == []


def test_a_hint_says_what_ids_probably_differ_in() -> None:
    assert hints(UsersFound(1200, 1000, 200)) == []
    assert hints(UsersFound(1200, 1000, 200, {"leading zeros": 150, "a trailing .0": 7})) == [
        "200 users of the users' file have no event; 150 would but for leading zeros, 7 would but for a trailing .0"
    ]
