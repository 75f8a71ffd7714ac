import ibis
import pyarrow as pa
import pytest
from ibis.backends.duckdb import Backend as DuckDB

from features.table import TIME, ContractError, Table, materialize

ORDERS = Table(
    name="orders",
    schema=ibis.schema({"order_id": "!string", "paid_at": TIME, "amount": "float64", "notes": "array<string>"}),
    key=("order_id",),
)
WHOLE = {
    "order_id": pa.array(["o1"]),
    "paid_at": pa.array([0], pa.timestamp("us", "UTC")),
    "amount": pa.array([9.5]),
    "notes": pa.array([["fragile"]]),
}


def table(engine: DuckDB, columns: dict[str, pa.Array]) -> ibis.expr.types.Table:
    return engine.create_table("given", pa.table(columns), temp=True)


def test_a_table_under_its_contract_passes_with_its_rows(engine: DuckDB) -> None:
    assert ORDERS.check(table(engine, WHOLE)).to_pyarrow().to_pylist() == pa.table(WHOLE).to_pylist()


def test_columns_come_back_in_the_contracts_order(engine: DuckDB) -> None:
    backwards = {name: WHOLE[name] for name in reversed(WHOLE)}
    assert list(ORDERS.check(table(engine, backwards)).columns) == ["order_id", "paid_at", "amount", "notes"]


def test_columns_beside_the_contract_are_dropped(engine: DuckDB) -> None:
    assert "colour" not in ORDERS.check(table(engine, WHOLE | {"colour": pa.array(["red"])})).columns


def test_a_missing_column_is_named(engine: DuckDB) -> None:
    without = {name: column for name, column in WHOLE.items() if name != "amount"}
    with pytest.raises(ContractError, match=r"^orders: amount is missing$"):
        ORDERS.check(table(engine, without))


def test_a_column_of_another_type_is_named_with_both_types(engine: DuckDB) -> None:
    with pytest.raises(ContractError, match=r"^orders: amount is int64, not float64$"):
        ORDERS.check(table(engine, WHOLE | {"amount": pa.array([9])}))


def test_every_breach_is_named_at_once(engine: DuckDB) -> None:
    wrong = {"order_id": pa.array([1]), "paid_at": WHOLE["paid_at"], "notes": WHOLE["notes"]}
    with pytest.raises(ContractError, match=r"^orders: order_id is int64, not !string; amount is missing$"):
        ORDERS.check(table(engine, wrong))


def test_a_time_without_zone_is_no_instant(engine: DuckDB) -> None:
    with pytest.raises(ContractError, match="paid_at"):
        ORDERS.check(table(engine, WHOLE | {"paid_at": pa.array([0], pa.timestamp("us"))}))


def test_a_list_of_other_items_is_another_type(engine: DuckDB) -> None:
    with pytest.raises(ContractError, match="notes"):
        ORDERS.check(table(engine, WHOLE | {"notes": pa.array([[1]])}))


def test_whether_a_column_may_be_null_is_no_matter_of_its_type(engine: DuckDB) -> None:
    nullable = table(engine, WHOLE | {"order_id": pa.array(["o1", None]).slice(0, 1)})
    assert ORDERS.check(nullable).count().to_pyarrow().as_py() == 1


def test_required_columns_are_those_that_are_never_null() -> None:
    assert ORDERS.required == ("order_id",)


def test_a_materialized_query_is_not_run_again(engine: DuckDB) -> None:
    once = materialize(engine.sql("SELECT gen_random_uuid()::VARCHAR AS id"))
    assert once.to_pyarrow() == once.to_pyarrow()


def test_a_materialized_query_outlives_what_it_was_made_of(engine: DuckDB) -> None:
    once = materialize(table(engine, WHOLE))
    engine.drop_table("given")
    assert once.order_id.to_pyarrow().to_pylist() == ["o1"]
