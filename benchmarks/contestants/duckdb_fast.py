"""DuckDB as fast as we could write it: by (user, slot) first, in chunks of days, by workers with one thread each.

Events of a user within one slot of time as long as the gap are in one session, so most of the work is one aggregation
that sorts nothing. Of the slots, only those that touch a neighbour are aggregated again; the others pass as they are.
A session that is further than the gap from the borders of its chunk is final. Those at borders are fused at the end.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from contestants import EVENT_FILES, GAP_US, OF_FIRST
from contestants.duckdb_sql import AGGREGATES, SUMS, connect, write

WORKERS = 2
EVENTS_PER_CHUNK = 1_000_000

INTERVAL = f"user_id, started_at, ended_at, {', '.join(SUMS)}, {', '.join(OF_FIRST)}, entry_page, exit_page"
KEY = "create_sort_key(occurred_at, 'ASC NULLS LAST', event_id, 'ASC NULLS LAST')"
SLOTS = f"""
SELECT
    user_id, epoch_us(occurred_at) // {GAP_US} AS slot, {AGGREGATES},
    {", ".join(f"arg_min_null({name}, key) AS {name}" for name in OF_FIRST)},
    arg_min(page, key) AS entry_page,
    arg_max(page, key) AS exit_page
FROM (SELECT *, {KEY} AS key FROM read_parquet(?, hive_partitioning = false))
GROUP BY user_id, slot"""
LINKED = f"""
WITH links AS (
    SELECT former.user_id, former.slot
    FROM slots AS former JOIN slots AS latter
        ON former.user_id = latter.user_id AND former.slot = latter.slot - 1
        AND epoch_us(latter.started_at) - epoch_us(former.ended_at) <= {GAP_US}
), chains AS (
    SELECT user_id, slot, slot - row_number() OVER (PARTITION BY user_id ORDER BY slot) AS chain FROM links
)
SELECT user_id, slot, chain FROM chains UNION SELECT user_id, slot + 1, chain FROM chains"""
FUSED = f"""
    user_id,
    min(started_at) AS started_at,
    max(ended_at) AS ended_at,
    {", ".join(f"sum({name})::BIGINT AS {name}" for name in SUMS)},
    {", ".join(f"arg_min_null({name}, started_at) AS {name}" for name in OF_FIRST)},
    arg_min(entry_page, started_at) AS entry_page,
    arg_max(exit_page, started_at) AS exit_page"""
CHUNK = f"""
(SELECT {INTERVAL} FROM slots ANTI JOIN linked USING (user_id, slot) WHERE {{which}}
UNION ALL SELECT {INTERVAL} FROM fused WHERE {{which}})"""
AT_BORDERS = f"""
(SELECT {FUSED}
FROM (
    SELECT *, sum((coalesce(pause_us, 0) > {GAP_US})::INT) OVER (PARTITION BY user_id ORDER BY started_at) AS number
    FROM (
        SELECT *, epoch_us(started_at)
            - epoch_us(lag(ended_at) OVER (PARTITION BY user_id ORDER BY started_at)) AS pause_us
        FROM at_borders
    )
)
GROUP BY user_id, number)"""


def sessionize(lake: Path, out: Path, events_per_chunk: int = EVENTS_PER_CHUNK) -> None:
    """Write SESSIONS chunk by chunk, and at last those at the chunks' borders."""
    (out / "sessions").mkdir()
    chunks = list(_chunks(lake, events_per_chunk))

    def work(worker: int) -> list[pa.Table]:
        with connect(threads=1) as con:
            return [_write_chunk(con, chunk, out) for chunk in chunks[worker::WORKERS]]

    with ThreadPoolExecutor(WORKERS) as pool:
        at_borders = pa.concat_tables(part for parts in pool.map(work, range(WORKERS)) for part in parts)
    with connect() as con:
        con.register("at_borders", at_borders)
        write(con, AT_BORDERS, out / "sessions" / "at_borders.parquet")


def _write_chunk(con: duckdb.DuckDBPyConnection, chunk: dict[date, Path], out: Path) -> pa.Table:
    """Write the sessions of some days that are final; return the intervals that are not."""
    first, last = min(chunk), max(chunk)
    con.execute(f"CREATE OR REPLACE TEMP TABLE slots AS {SLOTS}", [[str(file) for file in chunk.values()]])
    con.execute(f"CREATE OR REPLACE TEMP TABLE linked AS {LINKED}")
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE fused AS
        SELECT {FUSED} FROM slots JOIN linked USING (user_id, slot) GROUP BY user_id, chain"""
    )
    is_final = f"""started_at >= TIMESTAMPTZ '{first} 00:30:00'
        AND ended_at < TIMESTAMPTZ '{last + timedelta(days=1)}' - INTERVAL 30 MINUTE"""
    write(con, CHUNK.format(which=is_final), out / "sessions" / f"{first}.parquet")
    return con.execute(CHUNK.format(which=f"NOT ({is_final})")).to_arrow_table()


def _chunks(lake: Path, events_per_chunk: int) -> Iterator[dict[date, Path]]:
    """Put days together that have so many events, or a day that has more."""
    chunk: dict[date, Path] = {}
    event_count = 0
    for file in sorted(lake.glob(EVENT_FILES)):
        count = pq.read_metadata(file).num_rows
        if chunk and event_count + count > events_per_chunk:
            yield chunk
            chunk, event_count = {}, 0
        chunk[date.fromisoformat(file.parent.name.removeprefix("day="))] = file
        event_count += count
    yield chunk
