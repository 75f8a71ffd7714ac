from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.attributes import ATTRIBUTES, DuplicateUserError, describe_users


def describe(engine: DuckDB, users: Sequence[Mapping[str, Any]]) -> set[tuple[str, str, str]]:
    """Describe users, given with all their attributes; a column of nulls is text."""
    names = list(users[0])
    columns = {name: pa.array([user[name] for user in users]) for name in names}
    text = {name: column.cast(pa.string()) for name, column in columns.items() if pa.types.is_null(column.type)}
    table = engine.create_table("users", pa.table(columns | text), temp=True)
    found = describe_users(table, [name for name in names if name != "user_id"])
    return {tuple(row.values()) for row in ATTRIBUTES.check(found).to_pyarrow().to_pylist()}


def test_each_attribute_of_a_user_is_a_row(engine: DuckDB) -> None:
    users = [{"user_id": "ada", "plan": "pro", "age": "30"}, {"user_id": "ben", "plan": "free", "age": "40"}]
    assert describe(engine, users) == {
        ("ada", "plan", "pro"),
        ("ada", "age", "30"),
        ("ben", "plan", "free"),
        ("ben", "age", "40"),
    }


def test_a_blank_attribute_is_no_value(engine: DuckDB) -> None:
    users = [{"user_id": "ada", "plan": value, "age": "30"} for value in (None, "", "  ")]
    assert describe(engine, users) == {("ada", "age", "30")}


def test_a_row_with_a_blank_user_describes_nobody(engine: DuckDB) -> None:
    users = [{"user_id": user, "plan": "pro"} for user in ("ada", None, "", "  ")]
    assert describe(engine, users) == {("ada", "plan", "pro")}


def test_a_user_may_be_described_twice_alike(engine: DuckDB) -> None:
    assert describe(engine, [{"user_id": "ada", "plan": "pro"}] * 2) == {("ada", "plan", "pro")}


def test_the_rows_of_a_user_complete_each_other(engine: DuckDB) -> None:
    users = [{"user_id": "ada", "plan": "pro", "age": None}, {"user_id": "ada", "plan": None, "age": "30"}]
    assert describe(engine, users) == {("ada", "plan", "pro"), ("ada", "age", "30")}


def test_a_user_who_is_described_twice_differently_is_named(engine: DuckDB) -> None:
    users = [
        {"user_id": "ada", "plan": "pro", "age": "30"},
        {"user_id": "ben", "plan": "pro", "age": "40"},
        {"user_id": "ben", "plan": "free", "age": "40"},
    ]
    with pytest.raises(DuplicateUserError, match=r"^user 'ben' has 2 values of plan; give one$"):
        describe(engine, users)


@pytest.mark.parametrize("name", ["value", "values", "attribute", "order", "age band", "Plan"])
def test_an_attribute_may_have_any_name(engine: DuckDB, name: str) -> None:
    assert describe(engine, [{"user_id": "ada", name: "x", "other": "y"}]) == {
        ("ada", name, "x"),
        ("ada", "other", "y"),
    }


def test_nobody_may_be_described(engine: DuckDB) -> None:
    assert describe(engine, [{"user_id": "", "plan": "pro"}]) == set()


def test_ids_of_float_columns_are_those_of_events(engine: DuckDB) -> None:
    assert describe(engine, [{"user_id": 7.0, "plan": "pro"}]) == {("7", "plan", "pro")}


def test_attributes_of_any_type_become_text(engine: DuckDB) -> None:
    assert describe(engine, [{"user_id": "ada", "seats": 3, "trial": True}]) == {
        ("ada", "seats", "3"),
        ("ada", "trial", "true"),
    }
