"""Polars in the best form we know: by (user, slot) first, texts as categories, streaming over the files.

As the rows of a file are in order of event_id, their number breaks ties between equal times. Polars has no md5, so
Python's makes the ids.
"""

from hashlib import md5
from pathlib import Path

import polars as pl

from contestants import COUNTED, EVENT_FILES, GAP_US, OF_FIRST, READ, SUMMED

SUMS = ("event_count", *SUMMED, "revenue_micros")
REPEATED = ("user_id", "event_name", "page", "source", "campaign", "device", "country")
LONGEST_FILE = 2**32


def sessionize(lake: Path, out: Path) -> None:
    """Write SESSIONS from all slots at once."""
    (out / "sessions").mkdir()
    sessions = _measure(_fuse(_slots(lake)))
    sessions.write_parquet(out / "sessions" / "sessions.parquet", compression="zstd")


def _slots(lake: Path) -> pl.DataFrame:
    at_us = pl.col("occurred_at").cast(pl.Int64)
    events = (
        pl.scan_parquet(lake / EVENT_FILES, hive_partitioning=False)
        .select(READ)
        .with_row_index("row")
        .with_columns(pl.col(REPEATED).cast(pl.Categorical))
        .with_columns(slot=at_us // GAP_US, order=at_us % GAP_US * LONGEST_FILE + pl.col("row").cast(pl.Int64))
    )
    name, order, revenue = pl.col("event_name"), pl.col("order"), pl.col("revenue")
    order_of_page = pl.when(pl.col("page").is_not_null()).then(order)
    earned = pl.when(name == "purchase").then(revenue).when(name == "refund").then(-revenue.abs())
    slots = events.group_by("user_id", "slot").agg(
        started_at=pl.col("occurred_at").min(),
        ended_at=pl.col("occurred_at").max(),
        event_count=pl.len().cast(pl.Int64),
        **{column: (name == event_name).sum().cast(pl.Int64) for column, event_name in SUMMED.items()},
        revenue_micros=(earned * 1_000_000).round().cast(pl.Int64).sum(),
        **{column: pl.col(column).min_by(order) for column in OF_FIRST},
        entry_page=pl.col("page").min_by(order_of_page),
        exit_page=pl.col("page").max_by(order_of_page),
    )
    return slots.collect(engine="streaming")


def _fuse(slots: pl.DataFrame) -> pl.DataFrame:
    """Fuse slots no further apart than the gap; those that stand alone pass as they are."""
    user, pause = pl.col("user_id"), pl.col("started_at") - pl.col("ended_at").shift()
    follows = ((user == user.shift()) & (pause <= pl.duration(microseconds=GAP_US))).fill_null(False)
    marked = slots.sort("user_id", "slot").with_columns(follows=follows)
    stands_alone = ~pl.col("follows") & ~pl.col("follows").shift(-1, fill_value=False)
    marked = marked.with_columns(chain=(~pl.col("follows")).cum_sum(), stands_alone=stands_alone)
    fused = (
        marked.filter(~pl.col("stands_alone"))
        .group_by("chain")
        .agg(
            pl.col("user_id", *OF_FIRST).first(),
            pl.col("started_at").min(),
            pl.col("ended_at").max(),
            pl.col(SUMS).sum(),
            pl.col("entry_page").drop_nulls().first(),
            pl.col("exit_page").drop_nulls().last(),
        )
    )
    return pl.concat([marked.filter("stands_alone").select(fused.columns), fused])


def _measure(intervals: pl.DataFrame) -> pl.DataFrame:
    key = intervals.select(pl.col("user_id").cast(pl.String) + "\x1f" + pl.col("event_id")).to_series()
    duration_s = (pl.col("ended_at") - pl.col("started_at")).dt.total_microseconds() / 1_000_000
    converted = pl.col("purchase_count") > 0
    engaged = (duration_s > 10) | (pl.col("page_view_count") >= 2) | converted
    with_page = pl.col("page_view_count") > 0
    bounced = (pl.col("page_view_count") == 1) & ~engaged & (pl.col("refund_count") == 0)
    return intervals.select(
        pl.Series("session_id", [md5(text.encode()).hexdigest() for text in key]),
        pl.col("user_id").cast(pl.String),
        "started_at",
        "ended_at",
        duration_s.alias("duration_s"),
        "event_count",
        *COUNTED,
        (pl.col("revenue_micros") / 1_000_000).alias("revenue"),
        pl.when(with_page).then(bounced).alias("bounced"),
        pl.when(engaged | with_page | (duration_s > 0)).then(engaged).alias("engaged"),
        converted.alias("converted"),
        pl.when(pl.col("cart_add_count") > 0).then(~converted).alias("cart_abandoned"),
        pl.col("entry_page", "exit_page", "source", "campaign", "device", "country").cast(pl.String),
    )
