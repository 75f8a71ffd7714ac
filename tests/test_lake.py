import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from histories import events_of
from hypothesis import given
from hypothesis import strategies as st
from laws import law

from features.events import EVENTS
from features.lake import Lake
from features.table import TIME, ContractError, Table

BALANCES = Table(
    name="balances",
    schema=ibis.schema({"user_id": "!string", "as_of": TIME.copy(nullable=False), "amount": "float64"}),
    key=("user_id", "as_of"),
    partition="as_of",
)
PLANS = Table(
    name="plans",
    schema=ibis.schema({"plan": "!string", "price": "float64", "features": "!array<string>"}),
    key=("plan",),
)
MAY, JUNE, JULY = (datetime(2024, month, 1, 5, 30, tzinfo=UTC) for month in (5, 6, 7))

Row = tuple[Any, ...]


def rows_of(table: Table, rows: list[Row]) -> ir.Table:
    """Make a table of rows, which may break the contract in all but the columns' types."""
    fields = [field.with_nullable(True) for field in table.schema.to_pyarrow()]
    dicts = [dict(zip(table.schema.names, row, strict=True)) for row in rows]
    return ibis.memtable(pa.Table.from_pylist(dicts, schema=pa.schema(fields)))


def read(lake: Lake, table: Table, version: int | None = None) -> list[Row]:
    rows = lake.read(table, version).order_by(*table.key).to_pyarrow().to_pylist()
    return [tuple(row.values()) for row in rows]


def files(lake: Lake, table: Table) -> set[str]:
    """List the data files that were ever written, by their paths within the table."""
    folder = lake.folder / table.name
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet")}


# --- writing and reading ---


def test_a_table_that_was_never_written_is_empty(lake: Lake) -> None:
    assert not lake.has(BALANCES)
    assert read(lake, BALANCES) == []


def test_what_was_written_is_read(lake: Lake) -> None:
    rows = [("ada", MAY, 1.5), ("ada", JUNE, None), ("ben", JUNE, -2.0)]
    assert lake.write(BALANCES, rows_of(BALANCES, rows))
    assert lake.has(BALANCES)
    assert read(lake, BALANCES) == rows


def test_lists_and_nulls_come_back(lake: Lake) -> None:
    rows = [("free", None, []), ("pro", 9.99, ["export", None, "it's"])]
    lake.write(PLANS, rows_of(PLANS, rows))
    assert read(lake, PLANS) == rows


def test_columns_are_read_in_the_contracts_order_and_types(lake: Lake) -> None:
    events = events_of(lake.engine, [{"occurred_at": "2024-01-01", "revenue": 1}])
    lake.write(EVENTS, events.select(*reversed(events.columns)))
    assert EVENTS.check(lake.read(EVENTS)).columns == EVENTS.schema.names
    assert lake.read(EVENTS).to_pyarrow().to_pylist() == events.to_pyarrow().to_pylist()


def test_a_write_is_one_commit(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0), ("ada", JULY, 1.0)]))
    assert lake.version(BALANCES) == 0
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 2.0), ("ada", JUNE, 2.0), ("ada", JULY, 2.0)]))
    assert lake.version(BALANCES) == 1


def test_a_table_may_be_written_from_its_own_rows(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, []), ("pro", 9.0, [])]))
    plans = lake.read(PLANS)
    lake.write(PLANS, plans.mutate(price=plans.price + 1))
    assert read(lake, PLANS) == [("free", 1.0, []), ("pro", 10.0, [])]


def test_days_are_those_of_utc(lake: Lake) -> None:
    times = ["2024-01-01T23:59:59.999999Z", "2024-01-02T00:00:00Z", "2024-01-02T01:00:00+02:00"]
    lake.write(EVENTS, events_of(lake.engine, [{"occurred_at": time} for time in times]))
    assert {file.split("/")[0] for file in files(lake, EVENTS)} == {"day=2024-01-01", "day=2024-01-02"}
    assert DeltaTable(str(lake.folder / "events")).to_pandas()["day"].astype(str).value_counts().to_dict() == {
        "2024-01-01": 2,
        "2024-01-02": 1,
    }


@pytest.mark.parametrize("name", ["my lake", "it's", 'a "lake"', "Jörg", "湖", "a=b", "day=1", "#1?", "{a}", "[1]"])
def test_a_lake_may_be_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    with Lake(tmp_path / name) as lake:
        lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))
        assert not lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))
        assert lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 2.0)]), only=[MAY])
        assert read(lake, BALANCES) == [("ada", MAY, 2.0)]


@pytest.mark.parametrize("name", ["order", "age band", 'a "name"', "partition", "Group", "naïve"])
def test_a_column_may_have_any_name(lake: Lake, name: str) -> None:
    table = Table("odd", ibis.schema({name: "!string", **BALANCES.schema}), ("user_id", name), partition="as_of")
    lake.write(table, rows_of(table, [("x", "ben", MAY, 1.0), ("y", "ada", JUNE, 2.0)]))
    assert read(lake, table) == [("y", "ada", JUNE, 2.0), ("x", "ben", MAY, 1.0)]


def test_two_lakes_see_the_same_tables(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    with Lake(lake.folder) as other:
        assert read(other, PLANS) == [("free", 0.0, [])]
        assert not other.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))


def test_a_closed_lake_runs_no_more(lake: Lake) -> None:
    with Lake(lake.folder) as other:
        other.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
        plans = other.read(PLANS)
    with pytest.raises(Exception, match=r"[Cc]los"):
        plans.to_pyarrow()


# --- unchanged rows ---


def test_the_same_rows_commit_nothing(lake: Lake) -> None:
    rows = [("ada", MAY, 1.0), ("ben", JUNE, None)]
    lake.write(BALANCES, rows_of(BALANCES, rows))
    assert not lake.write(BALANCES, rows_of(BALANCES, rows[::-1]))
    assert lake.version(BALANCES) == 0


def test_the_same_rows_without_partition_commit_nothing(lake: Lake) -> None:
    rows: list[Row] = [("free", 0.0, []), ("pro", 9.0, ["export"])]
    lake.write(PLANS, rows_of(PLANS, rows))
    assert not lake.write(PLANS, rows_of(PLANS, rows[::-1]))
    assert lake.version(PLANS) == 0


def test_only_partitions_that_changed_are_rewritten(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    before = files(lake, BALANCES)
    assert lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 2.0)]))
    [new] = files(lake, BALANCES) - before
    assert new.startswith("as_of=2024-06-01T053000")


def test_rows_that_come_back_have_the_files_of_before(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    content = lake.content(PLANS)
    lake.write(PLANS, rows_of(PLANS, [("free", 1.0, [])]))
    assert lake.content(PLANS) != content
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    assert lake.content(PLANS) == content
    assert len(files(lake, PLANS)) == 2


def test_equal_rows_have_equal_content_in_any_lake(lake: Lake, tmp_path: Path) -> None:
    rows = [("ada", MAY, 1.0), ("ben", JUNE, None)]
    lake.write(BALANCES, rows_of(BALANCES, rows))
    with Lake(tmp_path / "other") as other:
        for row in rows:
            other.write(BALANCES, rows_of(BALANCES, [row]), only=[row[1]])
        assert other.content(BALANCES) == lake.content(BALANCES)


def test_the_content_of_a_partition_is_no_matter_of_others(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    may, june = lake.content(BALANCES, only=[MAY]), lake.content(BALANCES, only=[JUNE])
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 2.0)]))
    assert lake.content(BALANCES, only=[MAY]) == may
    assert lake.content(BALANCES, only=[JUNE]) != june


AMOUNT = st.none() | st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0])
KEY = st.tuples(st.text(max_size=3), st.sampled_from([MAY, JUNE, JULY]))


@given(balances=st.dictionaries(KEY, AMOUNT, max_size=12), seed=st.integers(0, 10**6))
@law(6)
def test_the_order_of_rows_is_no_change(lake: Lake, balances: dict[tuple[str, datetime], float], seed: int) -> None:
    rows = [(*key, amount) for key, amount in balances.items()]
    lake.write(BALANCES, rows_of(BALANCES, rows))
    version, content = lake.version(BALANCES), lake.content(BALANCES)
    assert not lake.write(BALANCES, rows_of(BALANCES, Random(seed).sample(rows, len(rows))))
    assert (lake.version(BALANCES), lake.content(BALANCES)) == (version, content)
    assert read(lake, BALANCES) == sorted(rows, key=lambda row: (row[0].encode(), row[1]))


# --- partitions ---


def test_a_write_of_some_partitions_leaves_the_others_alone(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    lake.write(BALANCES, rows_of(BALANCES, [("ada", JUNE, 2.0), ("ada", JULY, 2.0)]), only=[JUNE, JULY])
    assert read(lake, BALANCES) == [("ada", MAY, 1.0), ("ada", JUNE, 2.0), ("ada", JULY, 2.0)]


def test_a_partition_is_an_instant_in_whatever_zone(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    elsewhere = datetime.fromisoformat("2024-06-01T07:30:00+02:00")
    lake.write(BALANCES, rows_of(BALANCES, [("ada", elsewhere, 2.0)]), only=[elsewhere])
    assert read(lake, BALANCES) == [("ada", MAY, 1.0), ("ada", JUNE, 2.0)]


def test_instants_a_microsecond_apart_are_two_partitions(lake: Lake) -> None:
    later = MAY.replace(microsecond=1)
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", later, 1.0)]))
    lake.write(BALANCES, rows_of(BALANCES, [("ada", later, 2.0)]), only=[later])
    assert read(lake, BALANCES) == [("ada", MAY, 1.0), ("ada", later, 2.0)]


def test_a_partition_without_rows_goes(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    assert lake.write(BALANCES, rows_of(BALANCES, [("ada", JUNE, 1.0)]))
    assert read(lake, BALANCES) == [("ada", JUNE, 1.0)]


def test_of_some_partitions_one_without_rows_goes(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    assert lake.write(BALANCES, rows_of(BALANCES, []), only=[JUNE])
    assert read(lake, BALANCES) == [("ada", MAY, 1.0)]


def test_a_table_may_become_empty_and_be_filled_again(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    assert lake.write(PLANS, rows_of(PLANS, []))
    assert read(lake, PLANS) == []
    assert not lake.write(PLANS, rows_of(PLANS, []))
    assert lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    assert read(lake, PLANS) == [("free", 0.0, [])]


@pytest.mark.parametrize("table", [BALANCES, PLANS], ids=["partitioned", "whole"])
def test_a_table_may_begin_empty(lake: Lake, table: Table) -> None:
    assert lake.write(table, rows_of(table, []))
    assert lake.has(table)
    assert read(lake, table) == []
    assert not lake.write(table, rows_of(table, []))


# --- contracts ---


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([("ada", MAY, 1.0), ("ada", MAY, 2.0)], r"balances: 1 rows repeat a key \(user_id, as_of\)"),
        ([("ada", MAY, 1.0)] * 3, r"balances: 2 rows repeat a key \(user_id, as_of\)"),
        ([(None, MAY, 1.0), ("ada", MAY, 1.0)], "balances: 1 rows have no user_id"),
        ([(None, None, None), ("ada", None, 1.0)], "balances: 1 rows have no user_id; 2 rows have no as_of"),
    ],
)
def test_rows_that_break_the_contract_change_nothing(lake: Lake, rows: list[Row], why: str) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ben", MAY, 1.0)]))
    before = sorted(lake.folder.rglob("*"))
    with pytest.raises(ContractError, match=f"^{why}$"):
        lake.write(BALANCES, rows_of(BALANCES, rows))
    assert read(lake, BALANCES) == [("ben", MAY, 1.0)]
    assert sorted(lake.folder.rglob("*")) == before


def test_a_missing_list_breaks_the_contract(lake: Lake) -> None:
    with pytest.raises(ContractError, match=r"^plans: 1 rows have no features$"):
        lake.write(PLANS, rows_of(PLANS, [("free", 0.0, None)]))
    assert not lake.has(PLANS)


def test_a_missing_column_breaks_the_contract(lake: Lake) -> None:
    with pytest.raises(ContractError, match=r"^plans: price is missing$"):
        lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]).drop("price"))
    assert not list(lake.folder.rglob("*.parquet"))


def test_a_query_that_fails_leaves_nothing(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    before = sorted(lake.folder.rglob("*"))
    broken = lake.engine.sql("SELECT 'pro' AS plan, error('no')::DOUBLE AS price, ['x'] AS features")
    with pytest.raises(Exception, match="no"):
        lake.write(PLANS, broken)
    assert read(lake, PLANS) == [("free", 0.0, [])]
    assert sorted(lake.folder.rglob("*")) == before


def test_a_lake_works_on_after_a_write_that_failed(lake: Lake) -> None:
    with pytest.raises(ContractError):
        lake.write(PLANS, rows_of(PLANS, [(None, 0.0, [])]))
    assert lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    assert read(lake, PLANS) == [("free", 0.0, [])]


# --- history ---

DEARER = Table(
    name="plans", schema=ibis.schema({"plan": "!string", "price": "float64", "tax": "float64"}), key=("plan",)
)


def test_earlier_versions_stay(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    lake.write(BALANCES, rows_of(BALANCES, [("ada", JUNE, 2.0)]))
    assert read(lake, BALANCES, version=0) == [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]
    assert read(lake, BALANCES, version=1) == [("ada", JUNE, 2.0)]


def test_a_lake_shows_its_tables_as_they_were_when_it_was_first_asked_for_one(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    with Lake(lake.folder) as other:
        opened = other.read(PLANS)
        lake.write(PLANS, rows_of(PLANS, [("free", 1.0, [])]))
        lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))
        assert opened.price.to_pyarrow().to_pylist() == [0.0]
        assert read(other, PLANS) == [("free", 0.0, [])]
        assert not other.has(BALANCES)
    with Lake(lake.folder) as another:
        assert read(another, PLANS) == [("free", 1.0, [])]
        assert read(another, BALANCES) == [("ada", MAY, 1.0)]


def test_a_table_with_other_columns_replaces_the_old_one(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, []), ("pro", 9.0, [])]))
    assert lake.write(DEARER, rows_of(DEARER, [("free", 0.0, 0.2)]))
    assert read(lake, DEARER) == [("free", 0.0, 0.2)]
    assert not lake.write(DEARER, rows_of(DEARER, [("free", 0.0, 0.2)]))


def test_the_history_of_a_table_outlives_its_columns(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    lake.write(DEARER, rows_of(DEARER, [("free", 0.0, 0.2)]))
    assert read(lake, PLANS, version=0) == [("free", 0.0, [])]


def test_partitions_of_other_columns_go_with_them(lake: Lake) -> None:
    wider = Table("balances", ibis.schema({**BALANCES.schema, "debt": "float64"}), BALANCES.key, BALANCES.partition)
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    lake.write(wider, rows_of(wider, [("ada", JUNE, 1.0, 2.0)]), only=[JUNE])
    assert read(lake, wider) == [("ada", JUNE, 1.0, 2.0)]


# --- contracts ---

LATER = replace(PLANS, contract=3)


def test_a_table_is_under_the_contract_that_it_was_written_under(lake: Lake) -> None:
    assert lake.contract(LATER) is None
    lake.write(LATER, rows_of(LATER, [("free", 0.0, [])]))
    assert lake.contract(LATER) == 3
    assert lake.stored(PLANS).contract == 3
    lake.write(LATER, rows_of(LATER, [("free", 1.0, [])]))
    lake.note(LATER, {"events_version": 1})
    assert lake.contract(LATER) == 3


def test_a_table_that_does_not_say_its_contract_is_under_the_first(lake: Lake) -> None:
    rows = pa.table({"plan": ["free"], "price": [0.0], "features": pa.array([[]], pa.list_(pa.string()))})
    write_deltalake(str(lake.folder / "plans"), rows)
    assert lake.contract(PLANS) == 1
    assert read(lake, PLANS) == [("free", 0.0, [])]


def test_other_columns_of_a_configuration_leave_the_contract_as_it_is(lake: Lake) -> None:
    dearer = replace(DEARER, contract=3)
    lake.write(LATER, rows_of(LATER, [("free", 0.0, [])]))
    assert lake.write(dearer, rows_of(dearer, [("free", 0.0, 0.2)]))
    assert lake.contract(dearer) == 3


@pytest.mark.parametrize(
    ("stored", "known", "why"),
    [
        (PLANS, LATER, r"^plans: is of contract 1, this release works with 3: run `habitus upgrade CONFIG`$"),
        (LATER, PLANS, r"^plans: is of contract 3, this release works with 1: upgrade Habitus$"),
    ],
)
def test_a_table_under_another_contract_is_neither_read_nor_written(
    lake: Lake, stored: Table, known: Table, why: str
) -> None:
    rows: list[Row] = [("free", 0.0, [])]
    lake.write(stored, rows_of(stored, rows))
    with pytest.raises(ContractError, match=why):
        lake.read(known)
    with pytest.raises(ContractError, match=why):
        lake.write(known, rows_of(known, [("pro", 9.0, [])]))
    assert read(lake, stored) == rows


def test_an_upgrade_is_one_commit_with_columns_rows_and_number(lake: Lake) -> None:
    taxed = replace(DEARER, contract=2)
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, []), ("pro", 9.0, ["export"])]), origin={"events_version": 3})

    lake.upgrade(taxed, lambda plans: plans.mutate(tax=plans.price / 10))

    assert (lake.version(taxed), lake.contract(taxed), lake.origin(taxed)) == (1, 2, {"events_version": 3})
    assert read(lake, taxed) == [("free", 0.0, 0.0), ("pro", 9.0, 0.9)]


@pytest.mark.parametrize("rows", [[], [("ada", MAY, 1.0)]])
def test_an_upgrade_of_what_the_rows_mean_names_no_file_that_it_removes(lake: Lake, rows: list[Row]) -> None:
    later = replace(BALANCES, contract=2)
    lake.write(BALANCES, rows_of(BALANCES, rows))
    before = set(lake.files(BALANCES))

    lake.upgrade(later, lambda balances: balances)

    assert read(lake, later) == rows
    assert before.isdisjoint(lake.files(later))


def test_an_upgrade_leaves_rows_in_their_partitions(lake: Lake) -> None:
    later = replace(BALANCES, contract=2)
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))
    with pytest.raises(ContractError, match="other partitions"):
        lake.upgrade(later, lambda balances: balances.mutate(as_of=ibis.literal(JUNE, TIME)))
    assert read(lake, BALANCES) == [("ada", MAY, 1.0)]


# --- other readers ---


def test_other_tools_read_the_tables_as_they_are(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.5), ("ben", JUNE, None)]))
    found = DeltaTable(str(lake.folder / "balances")).to_pandas().sort_values("user_id", ignore_index=True)
    expected = pd.DataFrame({"user_id": ["ada", "ben"], "as_of": [MAY, JUNE], "amount": [1.5, None]})
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_other_tools_see_the_keys_that_are_never_null(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.5)]))
    fields = DeltaTable(str(lake.folder / "balances")).schema().fields
    assert {field.name: field.nullable for field in fields} == {"user_id": False, "as_of": False, "amount": True}


def test_other_tools_find_a_partition_by_its_instant(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.5), ("ada", JUNE, 1.5)]))
    table = DeltaTable(str(lake.folder / "balances"))
    assert len(table.to_pandas(filters=[("as_of", "=", MAY)])) == 1


def test_a_table_may_be_moved(lake: Lake, tmp_path: Path) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.5)]))
    shutil.move(lake.folder, tmp_path / "elsewhere")
    with Lake(tmp_path / "elsewhere") as moved:
        assert read(moved, BALANCES) == [("ada", MAY, 1.5)]


def test_rows_of_other_partitions_than_those_to_write_are_refused(lake: Lake) -> None:
    with pytest.raises(ContractError, match="rows of other partitions"):
        lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 2.0)]), only=[MAY])
    assert not lake.has(BALANCES)


def test_what_a_killed_process_left_is_cleared_away(lake: Lake) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = lake.folder / f".staging-{gone.stdout.strip()}-0"
    left.mkdir(parents=True)

    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))

    assert not left.exists()


def test_what_another_process_is_writing_is_left_alone(lake: Lake) -> None:
    other = lake.folder / f".staging-{os.getppid()}-0"
    other.mkdir(parents=True)

    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))

    assert other.exists()


# --- partitions, origins, parts ---

VISITS = Table(
    name="visits",
    schema=ibis.schema({"visit_id": "!string", "at": TIME.copy(nullable=False)}),
    key=("visit_id",),
    partition="day of at",
)
MONDAY, TUESDAY, THURSDAY = (datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 4))
NOON = timedelta(hours=12)


def visits(*rows: tuple[str, datetime]) -> ir.Table:
    return rows_of(VISITS, list(rows))


def test_partitions_are_read_alone(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 2.0), ("ada", JULY, 3.0)]))
    assert [row[2] for row in lake.read(BALANCES, only=[MAY, JULY]).order_by("as_of").to_pandas().values] == [1.0, 3.0]


def test_partitions_that_are_not_there_are_empty(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))
    assert lake.read(BALANCES, only=[JUNE]).count().to_pyarrow().as_py() == 0
    assert lake.read(BALANCES, only=[]).count().to_pyarrow().as_py() == 0


def test_partitions_are_counted_in_order_of_time(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", JUNE, 1.0), ("ben", JUNE, 1.0), ("ada", MAY, 1.0)]))
    assert list(lake.partitions(BALANCES).items()) == [(MAY, 1), (JUNE, 2)]
    assert lake.row_count(BALANCES) == 3


def test_a_days_partition_is_its_midnight(lake: Lake) -> None:
    lake.write(VISITS, visits(("a", MONDAY + NOON), ("b", TUESDAY - timedelta(microseconds=1)), ("c", TUESDAY)))
    assert lake.partitions(VISITS) == {MONDAY: 2, TUESDAY: 1}


@pytest.mark.parametrize("year", [1, 1969, 1970, 9999])
def test_a_day_of_any_year_is_a_partition(lake: Lake, year: int) -> None:
    at = datetime(year, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    lake.write(VISITS, visits(("a", at)))
    assert list(lake.partitions(VISITS)) == [datetime(year, 12, 31, tzinfo=UTC)]
    assert read(lake, VISITS) == [("a", at)]


def test_changed_partitions_are_listed_since_any_version(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 1.0)]))
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0), ("ada", JUNE, 2.0)]))
    lake.write(BALANCES, rows_of(BALANCES, [("ada", JUNE, 2.0), ("ada", JULY, 3.0)]))
    assert lake.changed(BALANCES, since=0) == [MAY, JUNE, JULY]
    assert lake.changed(BALANCES, since=1) == [MAY, JULY]
    assert lake.changed(BALANCES, since=2) == []


def test_it_is_unknown_what_changed_since_a_version_whose_files_are_gone(lake: Lake) -> None:
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]))
    [file] = files(lake, BALANCES)
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 2.0)]))
    (lake.folder / "balances" / file).unlink()
    assert lake.changed(BALANCES, since=0) is None
    assert lake.changed(BALANCES, since=99) is None


def test_it_is_unknown_what_changed_since_a_table_was_under_another_contract(lake: Lake) -> None:
    lake.write(PLANS, rows_of(PLANS, [("free", 0.0, [])]))
    lake.upgrade(LATER, lambda plans: plans)
    assert lake.changed(LATER, since=0) is None


def test_a_table_says_what_it_was_made_of(lake: Lake) -> None:
    assert lake.origin(BALANCES) == {}
    lake.write(BALANCES, rows_of(BALANCES, [("ada", MAY, 1.0)]), origin={"events_version": 3})
    assert lake.origin(BALANCES) == {"events_version": 3}


def test_the_same_rows_of_something_else_are_another_version(lake: Lake) -> None:
    rows = rows_of(BALANCES, [("ada", MAY, 1.0)])
    lake.write(BALANCES, rows, origin={"events_version": 3})
    assert not lake.write(BALANCES, rows, origin={"events_version": 4})
    assert lake.origin(BALANCES) == {"events_version": 4}
    assert read(lake, BALANCES) == [("ada", MAY, 1.0)]


def test_a_table_written_in_parts_is_that_written_at_once(lake: Lake, tmp_path: Path) -> None:
    monday = visits(("b", MONDAY + NOON), ("c", TUESDAY))
    tuesday = visits(("a", TUESDAY + NOON), ("d", THURSDAY))
    with Lake(tmp_path / "other lake") as other:
        other.write(VISITS, ibis.union(monday, tuesday))
        lake.write_in_parts(VISITS, iter([(monday, TUESDAY), (tuesday, THURSDAY)]))
        assert lake.content(VISITS) == other.content(VISITS)
        assert read(lake, VISITS) == read(other, VISITS)


def test_parts_replace_what_was_there(lake: Lake) -> None:
    lake.write(VISITS, visits(("x", THURSDAY)))
    assert lake.write_in_parts(VISITS, iter([(visits(("a", MONDAY)), TUESDAY)]))
    assert read(lake, VISITS) == [("a", MONDAY)]


def test_no_parts_make_an_empty_table(lake: Lake) -> None:
    lake.write_in_parts(VISITS, iter([]))
    assert lake.has(VISITS)
    assert read(lake, VISITS) == []


def test_a_part_that_fails_leaves_the_table_as_it_was(lake: Lake) -> None:
    lake.write(VISITS, visits(("x", THURSDAY)))
    with pytest.raises(ContractError, match="1 rows repeat a key"):
        lake.write_in_parts(
            VISITS, iter([(visits(("a", MONDAY)), TUESDAY), (visits(("b", TUESDAY), ("b", TUESDAY)), THURSDAY)])
        )
    assert read(lake, VISITS) == [("x", THURSDAY)]
    assert not list(lake.folder.glob(".staging-*/*"))


@pytest.mark.slow
def test_more_than_the_memory_limit_goes_to_disk_and_is_gone_afterwards(tmp_path: Path) -> None:
    with Lake(tmp_path / "lake", memory_limit_bytes=120_000_000) as lake:
        rows = ibis.range(3_000_000).unnest().name("number").as_table()
        at = ibis.literal(MONDAY, TIME)
        made = rows.select(visit_id=rows.number.cast("string").hexdigest("md5"), at=at)
        lake.write(VISITS, lake.engine.create_table("made", made))
        assert lake.row_count(VISITS) == 3_000_000
    assert [path.name for path in (tmp_path / "lake").iterdir()] == ["visits"]
