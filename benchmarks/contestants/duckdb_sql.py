"""The parts that both ways to write it in SQL for DuckDB share."""

from pathlib import Path

import duckdb

from contestants import COUNTED, SUMMED

SUMS = ("event_count", *SUMMED, "revenue_micros")
AGGREGATES = f"""
    min(occurred_at) AS started_at,
    max(occurred_at) AS ended_at,
    count(*) AS event_count,
    {", ".join(f"count(*) FILTER (event_name = '{name}') AS {column}" for column, name in SUMMED.items())},
    coalesce(sum(CASE event_name
        WHEN 'purchase' THEN round(revenue * 1000000)::BIGINT
        WHEN 'refund' THEN -round(abs(revenue) * 1000000)::BIGINT
    END), 0)::BIGINT AS revenue_micros"""


def connect(threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """Open an engine that need not keep the order of rows."""
    con = duckdb.connect(config={} if threads is None else {"threads": threads})
    con.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET enable_progress_bar = false")
    return con


def write(con: duckdb.DuckDBPyConnection, intervals: str, file: Path) -> None:
    """Write the sessions of intervals, a table or a query in brackets."""
    con.execute(f"COPY ({_measured(intervals)}) TO '{file}' (COMPRESSION zstd)")


def _measured(intervals: str) -> str:
    return f"""
    SELECT
        md5(user_id || chr(31) || event_id) AS session_id,
        user_id,
        started_at,
        ended_at,
        duration_s,
        event_count,
        {", ".join(COUNTED)},
        revenue_micros / 1000000 AS revenue,
        CASE WHEN page_view_count > 0 THEN page_view_count = 1 AND NOT is_engaged AND refund_count = 0 END AS bounced,
        CASE WHEN is_engaged OR page_view_count > 0 OR duration_s > 0 THEN is_engaged END AS engaged,
        converted,
        CASE WHEN cart_add_count > 0 THEN NOT converted END AS cart_abandoned,
        entry_page,
        exit_page,
        source,
        campaign,
        device,
        country
    FROM (
        SELECT
            *,
            (epoch_us(ended_at) - epoch_us(started_at)) / 1000000 AS duration_s,
            purchase_count > 0 AS converted,
            duration_s > 10 OR page_view_count >= 2 OR converted AS is_engaged
        FROM {intervals}
    )"""
