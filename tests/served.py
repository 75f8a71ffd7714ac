"""Versions with reports, as `habitus publish` leaves them: folders that the API answers from."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.belonging import STRENGTHS
from publish.destinations.folders import LocalFolder, write_manifest
from publish.report.content import Attribute, Comparison, Difference, Estimate, Overview, Report, Segment, TopUser

AS_OF = datetime(2024, 3, 12, tzinfo=UTC)
TEXTS = pa.list_(pa.string())
TIME = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "user_number": pa.int64(),
        "segment_id": pa.string(),
        "segment_name": pa.string(),
        "segment_strength": pa.float64(),
        "segment_strengths": STRENGTHS,
        "runner_up_segment_id": pa.string(),
        "rule_segments": TEXTS,
        "lifecycle_stage": pa.string(),
        "rfm_3": pa.string(),
        "rfm_5": pa.string(),
        "churn_probability": pa.float64(),
        "churn_percentile": pa.float64(),
        "churn_reasons": TEXTS,
        "last_seen_at": TIME,
        "session_count": pa.int64(),
        "session_count_28d": pa.int64(),
        "attribute_region": pa.string(),
        "attribute_plan": pa.string(),
    }.items()
)
"""Of users.parquet."""
HOSTILE = [
    'o\'brien "the" user',
    "team/admin/../../etc/passwd",
    "</td><script>alert(1)</script>",
    "🦊 Zoë\u202e",
    '=HYPERLINK("x")',
    "a?b=c&d#e%2F%",
    "two\nlines,\r\nand a comma",
    " spaces ",
    "{{ 7 * 7 }}",
    "lookup",
    "x" * 10_000,
    "🦊" * 10_000,
]
"""Ids of users that somebody may have."""
SCRIPT_HASH = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
PAGE = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src '{SCRIPT_HASH}'">
<title>Report</title></head><body><nav></nav>The report of version {{version}}</body></html>
"""


def user(user_id: str, number: int, **given: Any) -> dict[str, Any]:
    """Return a row of users.parquet."""
    return {
        "user_id": user_id,
        "user_number": number,
        "segment_id": "S01" if number % 2 else "S02",
        "segment_name": "Weekend browsers" if number % 2 else "Loyal buyers",
        "segment_strength": number % 10 / 10,
        "segment_strengths": [{"segment_id": "S01", "strength": 0.614}, {"segment_id": "S02", "strength": 0.386}],
        "runner_up_segment_id": "S02" if number % 2 else "S01",
        "rule_segments": ["cart_abandoners"] if number % 3 == 0 else [],
        "lifecycle_stage": "active",
        "rfm_3": "3-1-2",
        "rfm_5": "5-1-4",
        "churn_probability": None if number % 5 == 0 else number % 97 / 100,
        "churn_percentile": float(number % 100),
        "churn_reasons": ["Region: north", f"last session {number} days ago"],
        "last_seen_at": AS_OF - timedelta(hours=number),
        "session_count": number,
        "session_count_28d": number % 7,
        "attribute_region": "north",
        "attribute_plan": "pro",
    } | given


def report(version: int, users: Sequence[Mapping[str, Any]], personal: Sequence[str] = ()) -> Report:
    """Return the report of some users, in which `personal` attributes, or user_id, are marked."""
    attributes = [
        Attribute(name=name, title=name.capitalize(), personal=name in personal) for name in ("region", "plan")
    ]
    names = [("S01", "Weekend browsers", "discovered"), ("S02", "Loyal buyers", "discovered")]
    names += [("cart_abandoners", "Cart abandoners", "named")]
    estimate = Estimate(value=0.5, low=0.4, high=0.6)
    typical = [
        {"feature": feature, "title": feature, "words": f"{feature} is more common: 50 % to 20 %"}
        for feature in ("region", "bounce_rate")
    ]
    differences = [
        Difference(
            **one,
            category=None,
            statistic="share",
            here=estimate,
            others=estimate,
            here_text="50 %",
            others_text="20 %",
            difference=0.5,
            q=0.01,
            clause=f"{one['feature']} more",
            personal=one["feature"] in personal,
        )
        for one in typical
    ]
    segments = []
    for segment_id, name, kind in names:
        members = [one for one in users if segment_id in (one["segment_id"], *one["rule_segments"])]
        top = [
            TopUser(
                user_id=one["user_id"],
                user_number=one["user_number"],
                session_count_28d=one["session_count_28d"],
                last_seen_at=one["last_seen_at"],
            )
            for one in members[:3]
        ]
        segments.append(
            Segment.model_validate(
                {
                    "segment_id": segment_id,
                    "name": name,
                    "kind": kind,
                    "description": f"{name} <b>come</b> often.",
                    "users": len(members) if len(members) >= 10 else "suppressed",
                    "share": estimate,
                    "active_7d": "suppressed",
                    "active_28d": len(members),
                    "trend": [],
                    "typical": differences,
                    "metrics": [],
                    "breakdowns": [],
                    "propensities": [],
                    "changes": None,
                    "top_users": top,
                    "rule": None,
                    "stability": None,
                    "lineage": None,
                    "flags": [],
                    "suggestions": [],
                    "withheld": None,
                }
            )
        )
    counts: dict[str, Any] = dict.fromkeys(
        ("users", "sessions", "active_7d", "active_28d", "new_28d", "returning_28d", "lost_28d"), len(users)
    )
    overview = Overview(**counts, rejected_rows={}, lifecycle=[], metrics=[], breakdowns=[], trend=[], changes=None)
    return Report(
        source="shop",
        version=version,
        as_of=AS_OF + timedelta(days=version),
        time_zone="UTC",
        k=10,
        model_versions={"segments": 1, "churn": 1},
        configuration="0" * 64,
        attributes=attributes,
        user_ids_personal="user_id" in personal,
        users_listed=len(users),
        overview=overview,
        segments=segments,
        comparison=Comparison(features=[], overlap=[]),
        models=[],
        withheld=[],
    )


def add_version(published: Path, version: int, users: Sequence[Mapping[str, Any]], personal: Sequence[str] = ()) -> str:
    """Publish the report of a version, and make it the latest; return its folder's name."""
    folder = LocalFolder(published / "reports")
    whole = report(version, users, personal)
    with folder.staging() as staging:
        (staging / "report.json").write_text(whole.model_dump_json())
        (staging / "report.html").write_text(PAGE.format(version=version))
        rows = sorted(users, key=lambda row: row["user_id"].encode())
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA), staging / "users.parquet")
        name = write_manifest(staging, {"version": version, "as_of": whole.as_of.isoformat()}, {})
        folder.add(staging, name)
    folder.point(name)
    files = LocalFolder(published)
    with files.staging() as staging:
        (staging / "assignments.csv").write_text("user_id\n")
        said = {"version": version, "as_of": whole.as_of.isoformat(), "users": len(users)}
        name_of_files = write_manifest(staging, said, {"assignments.csv": len(users)})
        files.add(staging, name_of_files)
    files.point(name_of_files)
    return name


def without_user(published: Path, name: str, user_id: str) -> str:
    """Write a version's report without a user, and remove the one with the user, as an erasure does."""
    folder = LocalFolder(published / "reports")
    users = [
        row for row in pq.read_table(folder.path / name / "users.parquet").to_pylist() if row["user_id"] != user_id
    ]
    version = json.loads((folder.path / name / "report.json").read_text())["version"]
    fresh = add_version(published, version, users)
    folder.remove(name)
    return fresh
