"""Versions of who is in which segment, as a destination gets them."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from ibis.backends.duckdb import Backend as DuckDB

from publish.assignments import ASSIGNMENTS
from publish.changes import CHANGES, ENTERED, LEFT
from publish.destination import Delivery, Release, Sending

Members = set[tuple[str, str]]
"""User and segment."""


def deliver(destination: Sending, release: Release) -> Delivery:
    """Queue a version and send what is pending, as a publish does."""
    destination.deliver(release)
    return destination.send()


def releases(engine: DuckDB, states: Sequence[Members], destination: str = "hook") -> list[Release]:
    """Return the versions 1, 2, ... of a membership; segment s is named S, and everybody's churn is 0.25."""
    as_of = [datetime(2024, 3, 1, tzinfo=UTC) + timedelta(days=version) for version in range(len(states) + 1)]
    changes = []
    before: Members = set()
    for version, state in enumerate(states, start=1):
        for user_id, segment_id in sorted(before ^ state):
            changes.append(
                {
                    "version": version,
                    "as_of": as_of[version],
                    "destination": destination,
                    "user_id": user_id,
                    "segment_id": segment_id,
                    "segment_name": segment_id.upper(),
                    "change": ENTERED if (user_id, segment_id) in state else LEFT,
                    "reason": "behaviour",
                }
            )
        before = state
    feed = _table(engine, changes, CHANGES.schema.to_pyarrow())

    schema = ASSIGNMENTS.schema.to_pyarrow()
    known = _table(
        engine,
        [
            _assignment(user_id, state, as_of[version]) | {"version": version}
            for version, state in enumerate(states, start=1)
            for user_id in sorted({user_id for user_id, _ in state})
        ],
        schema.append(pa.field("version", pa.int64())),
    )

    def release(version: int) -> Release:
        rows = known.filter(known.version == version).drop("version")
        return Release(
            destination=destination,
            source="shop",
            version=version,
            as_of=as_of[version],
            rows=rows,
            members=rows,
            contacts=rows,
            changes=lambda since: feed.filter((feed.version > since) & (feed.version <= version)),
            manifest={},
        )

    return [release(version) for version in range(1, len(states) + 1)]


def _assignment(user_id: str, state: Members, as_of: datetime) -> dict[str, Any]:
    segments = sorted(segment_id for other, segment_id in state if other == user_id)
    return {
        "user_id": user_id,
        "as_of": as_of,
        "segment_id": segments[0],
        "segment_name": segments[0].upper(),
        "rule_segments": segments[1:],
        "lifecycle_stage": "active",
        "churn_probability": 0.25,
        "churn_reasons": [],
        "conversion_reasons": [],
        "holdout": False,
        "held_out_of": [],
        "segment_strengths": [],
    }


def _table(engine: DuckDB, rows: list[dict[str, Any]], schema: pa.Schema) -> Any:
    return engine.create_table(uuid.uuid4().hex, pa.Table.from_pylist(rows, schema=schema), temp=True)
