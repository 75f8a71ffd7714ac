"""Odd times: those that no business has, as a wrong unit makes them of right numbers."""

from datetime import UTC, datetime, timedelta

import ibis
import ibis.expr.types as ir

from features.table import TIME

LONG = timedelta(days=366)
FIRST = datetime(1990, 1, 1, tzinfo=UTC)


def hints(events: ir.Table, now: datetime) -> list[str]:
    """Say how many EVENTS are older than any business's, or learned of long before they happened or after `now`."""
    is_old = events.occurred_at < ibis.literal(FIRST, TIME)
    is_early = events.ingested_at < events.occurred_at - ibis.interval(days=LONG.days)
    is_late = events.ingested_at > ibis.literal(now + LONG, TIME)
    counts = events.agg(old=is_old.sum(), early=is_early.sum(), late=is_late.sum())
    [row] = counts.to_pyarrow().to_pylist()
    told = {
        "old": (f"before {FIRST.year}", "occurred_at"),
        "early": ("learned of more than a year before they happened", "ingested_at"),
        "late": ("learned of more than a year from now", "ingested_at"),
    }
    return [
        f"events {said}: {row[kind]:,}; check the time_unit of events.columns.{column}"
        for kind, (said, column) in told.items()
        if row[kind]
    ]
