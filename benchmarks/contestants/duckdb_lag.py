"""DuckDB as an analyst writes it: LAG finds where sessions begin, a running SUM numbers them, GROUP BY adds them up."""

from pathlib import Path

from contestants import EVENT_FILES, GAP_US, OF_FIRST, READ
from contestants.duckdb_sql import AGGREGATES, connect, write

ORDER = "{'occurred_at': occurred_at, 'event_id': event_id}"
FIRST = "{" + ", ".join(f"'{name}': {name}" for name in OF_FIRST) + "}"  # in a struct, as arg_min skips nulls


def sessionize(lake: Path, out: Path) -> None:
    """Write SESSIONS in one query over all events."""
    (out / "sessions").mkdir()
    intervals = f"""
    (WITH paused AS (
        SELECT
            {", ".join(READ)},
            epoch_us(occurred_at) - epoch_us(lag(occurred_at) OVER in_order) AS pause_us
        FROM read_parquet('{lake / EVENT_FILES}', hive_partitioning = false)
        WINDOW in_order AS (PARTITION BY user_id ORDER BY occurred_at, event_id)
    ), numbered AS (
        SELECT *, sum((coalesce(pause_us, 0) > {GAP_US})::INT) OVER in_order AS number
        FROM paused
        WINDOW in_order AS (PARTITION BY user_id ORDER BY occurred_at, event_id ROWS UNBOUNDED PRECEDING)
    ), sessions AS (
        SELECT
            user_id, number, {AGGREGATES},
            arg_min({FIRST}, {ORDER}) AS first,
            arg_min(page, {ORDER}) AS entry_page,
            arg_max(page, {ORDER}) AS exit_page
        FROM numbered
        GROUP BY user_id, number
    )
    SELECT *, unnest(first) FROM sessions)"""
    write(connect(), intervals, out / "sessions" / "sessions.parquet")
