"""FILES: which contents were ingested, from which file, and what became of their rows."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import ibis
import ibis.expr.types as ir

from features.sources import Source
from features.table import Table

FILES = Table(
    name="files",
    schema=ibis.schema(
        {
            "path": "!string",
            "content": "!string",
            "fingerprint": "!string",
            "columns": "!string",
            "id_rule": "!int64",
            "read": "!int64",
            "accepted": "!int64",
            "rejected": "!int64",
            "known": "!int64",
        }
    ),
    key=("path", "content"),
    contract=2,
)

ID_RULE = 2
"""The number of the rule by which events without ids get theirs; files that were ingested by an earlier one say so."""

NOT_IN_FINGERPRINT = {"files", "rejected_max", "skip_unreadable"}
"""What says which files are read and how many of their rows may be unusable, and not what they mean."""


def content_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(source: Source, time_zone: str) -> str:
    """Return a hash of what the configuration says a row becomes: the mapping and the zone.

    What is as by default is not in it, so that an option more in a later release leaves it as it was.
    """
    settings = source.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT, exclude_defaults=True)
    settings |= {"time_zone": source.time_zone or time_zone}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def count_rows(accepted: ir.Table, rejected: ir.Table, known: ir.Table) -> dict[str, dict[str, int]]:
    """Count what became of the rows of each file: EVENTS, REJECTED, and EVENTS of before; 0 where there are none."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"accepted": 0, "rejected": 0, "known": 0})
    kinds = {"accepted": accepted, "rejected": rejected, "known": known}
    named = [rows.select(file=rows.source_file.cast("string"), kind=ibis.literal(kind)) for kind, rows in kinds.items()]
    for row in ibis.union(*named).group_by("file", "kind").agg(rows=ibis._.count()).to_pyarrow().to_pylist():
        counts[row["file"]][row["kind"]] = row["rows"]
    return counts
