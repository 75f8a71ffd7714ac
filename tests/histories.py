"""Events written out by what matters of them."""

import uuid
from datetime import UTC, datetime
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends.duckdb import Backend as DuckDB

from features.events import EVENTS


def events_of(engine: DuckDB, rows: list[dict[str, Any]]) -> ir.Table:
    """Make EVENTS of rows that name only what matters; a time is ISO 8601, in UTC where it has no offset."""
    whole = []
    for number, row in enumerate(rows, start=1):
        occurred_at = instant(row["occurred_at"])
        whole.append(
            {"event_id": f"e{number}", "user_id": "u", "event_name": "page_view", "source_file": "events.csv"}
            | row
            | {"occurred_at": occurred_at, "ingested_at": instant(row.get("ingested_at", occurred_at))}
        )
        unknown = whole[-1].keys() - set(EVENTS.schema.names)
        assert not unknown, f"no columns of EVENTS: {unknown}"
    table = pa.Table.from_pylist(whole, schema=EVENTS.schema.to_pyarrow())
    return EVENTS.check(engine.create_table(f"events_{uuid.uuid4().hex}", table, temp=True))


def instant(given: str | datetime) -> datetime:
    """Read an instant; without an offset, in UTC."""
    read = datetime.fromisoformat(given) if isinstance(given, str) else given
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
