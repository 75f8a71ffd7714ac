import uuid

import pyarrow as pa
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.placeholders import NO_USER, count_placeholders, is_placeholder, without_placeholders


def kept(engine: DuckDB, ids: list[str | None], placeholders: list[str] | None = None) -> list[str | None]:
    rows = engine.create_table(f"ids_{uuid.uuid4().hex}", pa.table({"id": pa.array(ids, pa.string())}), temp=True)
    left = without_placeholders(rows.id, list(NO_USER) if placeholders is None else placeholders)
    found: list[str | None] = rows.mutate(left=left).left.to_pyarrow().to_pylist()
    return found


def counted(engine: DuckDB, ids: list[str | None], placeholders: list[str]) -> dict[str, int]:
    rows = engine.create_table(f"ids_{uuid.uuid4().hex}", pa.table({"id": pa.array(ids, pa.string())}), temp=True)
    return count_placeholders(rows.id, placeholders)


def test_what_programs_write_for_no_user_is_no_id(engine: DuckDB) -> None:
    ids: list[str | None] = [
        *("null", "None", "undefined", "NaN", "\\N", "(not set)", "nil", "(null)"),
        *("00000000-0000-0000-0000-000000000000", "00000000000000000000000000000000"),
    ]
    assert kept(engine, ids) == [None] * len(ids)


def test_case_and_blanks_around_do_not_matter(engine: DuckDB) -> None:
    assert kept(engine, ["NULL", "Null", " none\n", "nan", "(Not Set)", "\\n"]) == [None] * 6


@pytest.mark.parametrize("user_id", ["0", "-1", "nullnull", "null1", "Nancy", "n/a", "test", "not set", "N", "  "])
def test_all_else_is_left_as_it_is(engine: DuckDB, user_id: str) -> None:
    assert kept(engine, [user_id]) == [user_id]


def test_no_id_is_none(engine: DuckDB) -> None:
    rows = engine.create_table(f"ids_{uuid.uuid4().hex}", pa.table({"id": pa.array([None, "null"], pa.string())}))
    told = rows.mutate(told=is_placeholder(rows.id, ["null"])).told.to_pyarrow().to_pylist()

    assert told == [False, True]
    assert kept(engine, [None]) == [None]


def test_another_list_takes_the_place_of_the_default(engine: DuckDB) -> None:
    assert kept(engine, ["null", "anonymous", "-1", "ada"], ["Anonymous ", "-1"]) == ["null", None, None, "ada"]


def test_an_empty_list_lets_everything_be_an_id(engine: DuckDB) -> None:
    assert kept(engine, ["null", "\\N"], []) == ["null", "\\N"]


def test_placeholders_are_counted_as_the_list_has_them_the_most_frequent_first(engine: DuckDB) -> None:
    ids = ["NULL", "null ", "None", "ada", None, "Null"]

    assert list(counted(engine, ids, ["None", "null", "NaN"]).items()) == [("null", 3), ("None", 1)]


def test_none_is_counted_without_a_list(engine: DuckDB) -> None:
    assert counted(engine, ["null"], []) == {}
