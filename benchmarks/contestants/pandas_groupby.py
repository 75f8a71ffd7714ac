"""pandas as it is commonly written: sort, diff within users, cumsum, groupby."""

from datetime import timedelta
from hashlib import md5
from pathlib import Path

import pandas as pd

from contestants import OF_FIRST, READ, SUMMED


def sessionize(lake: Path, out: Path) -> None:
    """Write SESSIONS from all events at once."""
    (out / "sessions").mkdir()
    events = pd.read_parquet(lake / "events", columns=[*READ]).sort_values(["user_id", "occurred_at", "event_id"])
    pause = events.groupby("user_id")["occurred_at"].diff()
    session = (pause.isna() | (pause > timedelta(minutes=30))).cumsum()
    name = events["event_name"]
    counts = {column: name == event_name for column, event_name in SUMMED.items()}
    revenue = events["revenue"].where(name == "purchase", -events["revenue"].abs().where(name == "refund"))
    grouped = events.assign(**counts, revenue_micros=(revenue.fillna(0) * 1_000_000).round()).groupby(session)
    sessions = grouped.agg(
        started_at=("occurred_at", "min"),
        ended_at=("occurred_at", "max"),
        event_count=("event_id", "size"),
        **{column: (column, "sum") for column in SUMMED},
        revenue_micros=("revenue_micros", "sum"),
        entry_page=("page", "first"),
        exit_page=("page", "last"),
    )
    first = events[~session.duplicated()].set_axis(sessions.index)
    sessions = sessions.join(first[["user_id", *OF_FIRST]])
    duration_s = (sessions["ended_at"] - sessions["started_at"]).dt.total_seconds()
    converted = sessions["purchase_count"] > 0
    engaged = (duration_s > 10) | (sessions["page_view_count"] >= 2) | converted
    with_page = sessions["page_view_count"] > 0
    bounced = (sessions["page_view_count"] == 1) & ~engaged & (sessions["refund_count"] == 0)
    keys = sessions["user_id"] + "\x1f" + sessions["event_id"]
    sessions.assign(
        session_id=[md5(key.encode()).hexdigest() for key in keys],
        duration_s=duration_s,
        revenue=sessions["revenue_micros"] / 1_000_000,
        bounced=bounced.astype("boolean").where(with_page),
        engaged=engaged.astype("boolean").where(engaged | with_page | (duration_s > 0)),
        converted=converted,
        cart_abandoned=(~converted).astype("boolean").where(sessions["cart_add_count"] > 0),
    ).drop(columns=["event_id", "revenue_micros", "refund_count"]).to_parquet(
        out / "sessions" / "sessions.parquet", compression="zstd", index=False
    )
