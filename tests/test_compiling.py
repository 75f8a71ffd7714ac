"""What is remembered of a compiled query is what compiling it anew gives."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pytest
from compiling import hide, shape_of, show
from ibis.backends.duckdb import Backend as DuckDB

from features.table import TIME

Ask = Callable[[ir.Table, ir.Table], ir.Table]
QUERIES: dict[str, Ask] = {
    "a filter": lambda one, other: one.filter(one.n > 1),
    "a join": lambda one, other: one.join(other, "user_id").select("user_id", m=one.n + other.n),
    "the join the other way round": lambda one, other: other.join(one, "user_id").select("user_id", m=one.n + other.n),
    "a table joined with itself": lambda one, other: one.join(one.view(), "user_id").select("user_id"),
    "a query that is used twice": lambda one, other: (few := one.filter(one.n > 1)).union(few.filter(few.n < 5)),
    "an instant": lambda one, other: one.mutate(at=ibis.literal(datetime(2024, 1, 1, tzinfo=UTC), TIME)),
    "another instant": lambda one, other: one.mutate(at=ibis.literal(datetime(2024, 1, 2, tzinfo=UTC), TIME)),
    "rows in memory": lambda one, other: one.semi_join(ibis.memtable(pa.table({"user_id": ["u"]})), "user_id"),
    "a column named after its table": lambda one, other: one.agg([one.count()]),
    "a running sum": lambda one, other: one.mutate(m=one.n.sum().over(group_by="user_id", order_by="n")),
    "minus nothing": lambda one, other: one.mutate(m=ibis.literal(-0.0)),
    "nothing": lambda one, other: one.mutate(m=ibis.literal(0.0)),
}


def tables(engine: DuckDB) -> tuple[ir.Table, ir.Table]:
    rows = pa.table({"user_id": ["u", "v"], "n": [1, 2]})
    one, other = (engine.create_table(f"rows_{uuid.uuid4().hex}", rows, temp=True) for _ in range(2))
    return one, other


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_of_other_tables_is_compiled_to_the_same_but_for_their_names(engine: DuckDB, query: Ask) -> None:
    first, again = query(*tables(engine)), query(*tables(engine))
    shape, names = shape_of(first.op())
    other_shape, other_names = shape_of(again.op())

    assert shape == other_shape
    assert names != other_names
    compiled, compiled_again = (
        engine.compiler.to_sqlglot(one).sql(dialect=engine.dialect, copy=False) for one in (first, again)
    )
    assert show(hide(compiled, names), other_names) == compiled_again


def test_queries_that_differ_are_not_taken_for_each_other(engine: DuckDB) -> None:
    one, other = tables(engine)

    assert len({shape_of(query(one, other).op())[0] for query in QUERIES.values()}) == len(QUERIES)


def test_a_table_that_somebody_named_is_known_by_that_name(engine: DuckDB) -> None:
    rows = pa.table({"n": [1]})
    users, visitors = (engine.create_table(name, rows, temp=True) for name in ("users", "visitors"))

    assert shape_of(users.op())[0] != shape_of(visitors.op())[0]
