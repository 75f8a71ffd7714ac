from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.attributes import ATTRIBUTES, DuplicateUserError, contacts, describe_users
from features.sources import CONSENT, EMAIL, PHONE, attribute_column


def describe(engine: DuckDB, users: Sequence[Mapping[str, Any]]) -> set[tuple[str, str, str]]:
    """Describe users, given with all their attributes; a column of nulls is text."""
    names = list(users[0])
    columns = {name: pa.array([user[name] for user in users]) for name in names}
    text = {name: column.cast(pa.string()) for name, column in columns.items() if pa.types.is_null(column.type)}
    attributes = [name for name in names if name != "user_id"]
    table = pa.table(columns | text).rename_columns(
        dict(zip(attributes, map(attribute_column, attributes), strict=True))
    )
    users_table = engine.create_table("users", table, temp=True)
    found = describe_users([users_table], attributes, lambda rows: "the file")
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


def test_of_a_user_who_is_described_twice_differently_is_said_where(engine: DuckDB) -> None:
    users = [
        {"user_id": "ada", "plan": "pro", "age": "30"},
        {"user_id": "ben", "plan": "pro", "age": "40"},
        {"user_id": "ben", "plan": "free", "age": "40"},
    ]
    with pytest.raises(DuplicateUserError, match=r"^the file: one user has 2 values of plan; give one$"):
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


@pytest.mark.parametrize(("name", "said"), [(EMAIL, "email"), (f"{CONSENT}newsletter", "newsletter")])
def test_a_contact_or_consent_that_is_given_twice_differently_is_named_without_it(
    engine: DuckDB, name: str, said: str
) -> None:
    users = [{"user_id": "ada", name: "a@example.org"}, {"user_id": "ada", name: "b@example.org"}]
    with pytest.raises(DuplicateUserError, match=rf"^the file: one user has 2 values of {said}; give one$"):
        describe(engine, users)


# --- contacts ---


def contacts_of(engine: DuckDB, rows: Sequence[tuple[str, str, str]]) -> list[tuple[str | None, ...]]:
    columns = [dict(zip(ATTRIBUTES.schema.names, row, strict=True)) for row in rows]
    table = engine.create_table("attributes", pa.Table.from_pylist(columns, ATTRIBUTES.schema.to_pyarrow()), temp=True)
    found = contacts(table).order_by("user_id").to_pyarrow()
    assert found.column_names == ["user_id", "email", "phone"]
    return [tuple(row.values()) for row in found.to_pylist()]


def test_contacts_are_null_where_they_were_not_given(engine: DuckDB) -> None:
    rows = [
        *[("ada", EMAIL, "Ada@Example.org"), ("ada", PHONE, "+44 20 7946 0000")],
        *[("ben", EMAIL, "ben@example.org"), ("cat", PHONE, "0049 30 1234"), ("dan", "plan", "pro")],
    ]
    assert contacts_of(engine, rows) == [
        ("ada", "Ada@Example.org", "+44 20 7946 0000"),
        ("ben", "ben@example.org", None),
        ("cat", None, "0049 30 1234"),
    ]


def test_an_attribute_that_is_called_email_is_no_contact(engine: DuckDB) -> None:
    assert contacts_of(engine, [("ada", "email", "weekly"), ("ada", "phone", "android")]) == []


def test_nobody_has_contacts_where_nothing_is_known(engine: DuckDB) -> None:
    assert contacts_of(engine, []) == []
