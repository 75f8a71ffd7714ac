"""DuckDB's own way to the chains of a chunk: `sessions.chains_of` and `sessions.continue_chains` in SQL.

It exists because it takes less time (docs/decisions/008-a-chunk-in-sql.md): the sort key of an event is made once, each
value of the first event is picked by itself, slots are linked to their neighbours by a join, each of two chunks runs on
a thread of its own, and there is nothing to compile. The expressions in `sessions` say what it must give, and are its
test.
"""

import uuid
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import duckdb
import ibis.expr.types as ir

from features.addresses import literal
from features.engines import DuckDB
from features.sessions import OF_FIRST_EVENT, SUMMED, us
from features.table import MATERIALIZED

WORKERS = 2
YEAR_ZERO_US = -62_167_219_200_000_000
KEY = "create_sort_key(occurred_at, 'ASC NULLS LAST', event_id, 'ASC NULLS LAST')"
EARNED = "CASE WHEN event_name = 'purchase' THEN revenue WHEN event_name = 'refund' THEN -abs(revenue) END"
COUNTS = ("event_count", *SUMMED)
SUMS = ", ".join(
    [*(f"sum({name})::BIGINT AS {name}" for name in COUNTS), "sum(revenue_micros)::DECIMAL(38, 0) AS revenue_micros"]
)
FIRST = ", ".join(f"{name} := first_{name}" for name in OF_FIRST_EVENT)
COLUMNS = f"user_id, started_at, ended_at, {', '.join(COUNTS)}, revenue_micros, first, entry_page, exit_page"
CHAIN = COLUMNS.replace(" first,", f" struct_pack({FIRST}) AS first,")

SLOTS = f"""
SELECT
    user_id,
    (epoch_us(occurred_at) - {YEAR_ZERO_US}) // {{gap_us}} AS slot,  -- since year 0, as // is no floor below 0
    min(occurred_at) AS started_at,
    max(occurred_at) AS ended_at,
    count(*) AS event_count,
    {", ".join(f"count(*) FILTER (event_name = '{event_name}') AS {name}" for name, event_name in SUMMED.items())},
    coalesce(sum(round({EARNED} * 1000000, 0)::BIGINT), 0)::DECIMAL(38, 0) AS revenue_micros,
    {", ".join(f"arg_min_null({name}, key) AS first_{name}" for name in OF_FIRST_EVENT)},
    arg_min(page, key) AS entry_page,  -- skips nulls
    arg_max(page, key) AS exit_page
FROM (SELECT *, {KEY} AS key FROM read_parquet(?, hive_partitioning = false, union_by_name = true))
GROUP BY user_id, slot"""
LINKED = """
WITH links AS (
    SELECT former.user_id, former.slot
    FROM slots AS former JOIN slots AS latter
        ON former.user_id = latter.user_id AND former.slot = latter.slot - 1
        AND epoch_us(latter.started_at) - epoch_us(former.ended_at) <= {gap_us}
), chains AS (
    SELECT user_id, slot, slot - row_number() OVER (PARTITION BY user_id ORDER BY slot) AS chain FROM links
)
SELECT user_id, slot, chain FROM chains UNION SELECT user_id, slot + 1, chain FROM chains"""
FUSED = f"""
SELECT
    user_id,
    min(started_at) AS started_at,
    max(ended_at) AS ended_at,
    {SUMS},
    {", ".join(f"arg_min_null(first_{name}, slot) AS first_{name}" for name in OF_FIRST_EVENT)},
    arg_min(entry_page, slot) AS entry_page,
    arg_max(exit_page, slot) AS exit_page
FROM slots JOIN linked USING (user_id, slot)
GROUP BY user_id, chain"""

CONTINUED = f"""
WITH met AS (
    SELECT {COLUMNS} FROM {{opened}} UNION ALL SELECT {COLUMNS} FROM {{chains}} SEMI JOIN {{opened}} USING (user_id)
), begun AS (
    SELECT *, epoch_us(started_at) - epoch_us(lag(ended_at) OVER in_order) AS pause_us
    FROM met WINDOW in_order AS (PARTITION BY user_id ORDER BY started_at)
), numbered AS (
    SELECT *, count(*) FILTER (pause_us > {{gap_us}}) OVER (PARTITION BY user_id ORDER BY started_at) AS chain
    FROM begun
)
SELECT
    user_id,
    min(started_at) AS started_at,
    max(ended_at) AS ended_at,
    {SUMS},
    arg_min(first, started_at) AS first,
    arg_min(entry_page, started_at) AS entry_page,
    arg_max(exit_page, started_at) AS exit_page
FROM numbered
GROUP BY user_id, chain"""


def make_chains(engine: DuckDB, chunks: Sequence[list[str]], gap: timedelta) -> Generator[ir.Table, None, None]:
    """Yield what `sessions.chains_of` gives of each chunk's files of EVENTS, in order; each is gone after its turn.

    Meanwhile the engine works with one thread for each query, and the next chunks are being made.
    """
    [[threads]] = engine.con.execute("SELECT current_setting('threads')").fetchall()
    engine.con.execute("SET threads = 1")
    pool = ThreadPoolExecutor(WORKERS)
    waiting: list[Future[str]] = []
    try:
        for number in range(len(chunks) + WORKERS):
            if number < len(chunks):
                waiting.append(pool.submit(_make, engine.con, chunks[number], us(gap)))
            elif all(chains.done() for chains in waiting):
                engine.con.execute(f"SET threads = {threads}")
            if number >= WORKERS:
                name = waiting.pop(0).result()
                yield engine.table(name)
                engine.drop_table(name)
    finally:
        pool.shutdown(cancel_futures=True)
        engine.con.execute(f"SET threads = {threads}")


def continue_chains(opened: ir.Table, chains: ir.Table, gap: timedelta) -> ir.Table:
    """Return what `sessions.continue_chains` gives, from two tables of the engine."""
    engine = opened.get_backend()
    name = f"{MATERIALIZED}{uuid.uuid4().hex}"
    names = {"opened": opened.op().name, "chains": chains.op().name}
    engine.con.execute(f"CREATE TEMP TABLE {name} AS {CONTINUED.format(**names, gap_us=us(gap))}")
    return engine.table(name)


def _make(con: duckdb.DuckDBPyConnection, files: list[str], gap_us: int) -> str:
    name = f"chains_{uuid.uuid4().hex}"
    with con.cursor() as cursor:
        cursor.execute("SET enable_progress_bar = false")
        cursor.execute(f"CREATE OR REPLACE TEMP TABLE slots AS {SLOTS.format(gap_us=gap_us)}", [[*map(literal, files)]])
        cursor.execute(f"CREATE OR REPLACE TEMP TABLE linked AS {LINKED.format(gap_us=gap_us)}")
        cursor.execute(
            f"""CREATE TABLE {name} AS
            SELECT {CHAIN} FROM slots ANTI JOIN linked USING (user_id, slot)
            UNION ALL SELECT {CHAIN} FROM ({FUSED})"""
        )
        cursor.execute("DROP TABLE slots; DROP TABLE linked")
    return name
