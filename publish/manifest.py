"""The manifest: what a version says of itself, beside its files."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from publish.assignments import ASSIGNMENTS, DIALECT, SCHEMA_VERSION, assignments_table, labels_in

MANIFEST_VERSION = "1.1"
"""Of the manifest. An added key raises the second number, anything else the first."""
_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_TEXT = {"type": "string"}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of a manifest. What it does not name, later versions may add."""
    required = {
        "manifest_version": _TEXT | {"description": "version of this description of a manifest"},
        "schema_version": _TEXT
        | {"description": "version of the rows' contract; schema.json beside it is that contract"},
        "source": _TEXT | {"description": "the name of the configuration"},
        "destination": _TEXT | {"description": "the destination, as the configuration calls it"},
        "version": {"type": "integer", "minimum": 1, "description": "the version's number; numbers only rise"},
        "as_of": _TEXT | {"format": "date-time", "description": "the instant that everything is said of, UTC"},
        "users": _COUNT | {"description": "users in this version"},
        "segments": {"type": "array", "items": _object(segment_id=_TEXT, segment_name=_TEXT, users=_COUNT)}
        | {"description": "users by discovered segment"},
        "rule_segments": _COUNTS | {"description": "users by rule"},
        "lifecycle_stages": _COUNTS | {"description": "users by stage"},
        "scored": _COUNTS | {"description": "users with a probability, by label"},
        "withheld": {"type": "object", "additionalProperties": _TEXT}
        | {"description": "by label, why there are ranks and no probabilities"},
        "models": {"type": "object", "additionalProperties": {"type": ["integer", "null"]}}
        | {"description": "versions of the models; null where none serves"},
        "configuration": _TEXT | {"description": "hash of the configuration"},
        "refused": _object(users=_COUNTS, held_out=_COUNTS, held_back=_COUNTS)
        | {"description": "users who are not in it, by reason; those held out or held back, by segment"},
        "changes_since": _COUNT | {"description": "the version that changes lead from; 0: from nothing"},
        "release": _SHA256 | {"description": "hash of what was delivered; an erasure does not change it"},
        "files": {
            "type": "array",
            "items": _object(
                path=_TEXT, rows={"type": ["integer", "null"], "minimum": 0}, bytes=_COUNT, sha256=_SHA256
            ),
        }
        | {"description": "all other files of the version; rows is null of what has none"},
    }
    optional = {
        "erased": _COUNT | {"description": "users who were erased from this version after it was released"},
        "formulas": {"enum": ["escape", "keep"]}
        | {"description": "what was done in CSV with texts that a spreadsheet program would run; left out: keep"},
        "audiences": {"type": "array", "items": {"type": "object", "required": ["segment_id", "folder"]}}
        | {"description": "the audiences of an advertising platform, and how many members each has"},
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:habitus:manifest:{MANIFEST_VERSION}",
        "title": f"Habitus manifest {MANIFEST_VERSION}",
        "description": "What a published version says of itself.",
        "type": "object",
        "required": list(required),
        "properties": required | optional,
    }


def describe(rows: pa.Table) -> dict[str, Any]:
    """Return what a manifest says of ASSIGNMENTS: users in all, by segment, rule and stage, scores and models."""
    labels = labels_in(rows.column_names)
    segments = (
        rows.filter(pc.is_valid(rows["segment_id"]))
        .group_by(["segment_id", "segment_name"])
        .aggregate([([], "count_all")])
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "users": len(rows),
        "segments": [
            {"segment_id": row["segment_id"], "segment_name": row["segment_name"], "users": row["count_all"]}
            for row in segments.sort_by([("segment_id", "ascending"), ("segment_name", "ascending")]).to_pylist()
        ],
        "rule_segments": _counts(pc.list_flatten(rows["rule_segments"])),
        "lifecycle_stages": _counts(rows["lifecycle_stage"]),
        "scored": {label: len(rows) - rows[f"{label}_probability"].null_count for label in labels},
        "models": {kind: pc.max(rows[f"{kind}_version"]).as_py() for kind in ("segments", *labels)},
    }


def without(manifest: Mapping[str, Any], erased: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a manifest whose counts are without some rows, which may be text and of an earlier contract."""
    contract = assignments_table(labels_in(erased[0])) if erased else ASSIGNMENTS
    fields = [pa.field(name, dtype.to_pyarrow()) for name, dtype in contract.schema.items()]
    gone = describe(pa.Table.from_pylist([_counted(row) for row in erased], pa.schema(fields)))
    segments = {segment["segment_id"]: segment["users"] for segment in gone["segments"]}
    left = dict(manifest) | {"users": manifest["users"] - gone["users"]}
    left["erased"] = manifest.get("erased", 0) + gone["users"]
    left["segments"] = [
        segment | {"users": users}
        for segment in manifest["segments"]
        if (users := segment["users"] - segments.get(segment["segment_id"], 0))
    ]
    for key in ("rule_segments", "lifecycle_stages", "scored"):
        if key in manifest:
            counts = {name: count - gone[key].get(name, 0) for name, count in manifest[key].items()}
            left[key] = {name: count for name, count in counts.items() if count or key == "scored"}
    return left


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `describe` counts; of a probability, only whether there is one."""
    scored = {f"{label}_probability": None if row[f"{label}_probability"] is None else 1.0 for label in labels_in(row)}
    texts = ("segment_id", "segment_name", "rule_segments", "lifecycle_stage")
    return scored | {name: row[name] for name in texts if name in row}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    found = {str(pair["values"].as_py()): pair["counts"].as_py() for pair in pc.value_counts(values)}
    return dict(sorted(found.items()))
