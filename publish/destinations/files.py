"""Files: each published version is a folder with the assignments as Parquet and CSV and a manifest.

A version appears by one rename and is never changed; `latest` is a link that is switched by another. A reader of
`latest` sees one whole version, and versions of before stay.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from features.lake import staging_folder
from publish.assignments import SCHEMA_VERSION, labels_in, to_arrow

LATEST = "latest"
LIST_SEPARATOR = " | "
"""Between the items of a list in CSV, which has no lists."""


def publish(assignments: pd.DataFrame, name: str, folder: Path, withheld: Mapping[str, str] | None = None) -> Path:
    """Write a version of ASSIGNMENTS, of one as_of, make it the latest and return its folder.

    `withheld` says by label why there are ranks and no probabilities. Users held out are left out. The same
    assignments give the same bytes and the same folder. Raises ValueError where there are no rows or several instants.
    """
    instants = assignments["as_of"].unique()
    if len(instants) != 1:
        raise ValueError(f"a version has one as_of, these assignments have {len(instants)}")
    as_of: datetime = instants[0].to_pydatetime().astimezone(UTC)
    released = assignments[~assignments["holdout"]].sort_values("user_id", ignore_index=True)
    with staging_folder(folder) as staging:
        _write_parquet(released, staging / "assignments.parquet")
        _write_csv(released, staging / "assignments.csv")
        manifest = describe_version(assignments, name, as_of, withheld or {})
        manifest["files"] = [_describe_file(file, len(released)) for file in sorted(staging.iterdir())]
        content = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
        (staging / "manifest.json").write_bytes(content)
        version = folder / f"{as_of:%Y-%m-%dT%H%M%SZ}-{hashlib.sha256(content).hexdigest()[:12]}"
        if not version.exists():
            _sync(staging)
            staging.rename(version)
    _switch(folder / LATEST, version)
    _sync(folder)
    return version


def describe_version(
    assignments: pd.DataFrame, name: str, as_of: datetime, withheld: Mapping[str, str]
) -> dict[str, Any]:
    """Return what a manifest says of the rows: counts by segment, rule and stage, models, what and who was left out."""
    released = assignments[~assignments["holdout"]]
    labels = labels_in(assignments.columns)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "as_of": as_of.isoformat(),
        "users": len(released),
        "held_out": int(assignments["holdout"].sum()),
        "segments": [
            {"segment_id": segment_id, "segment_name": segment_name, "users": len(members)}
            for (segment_id, segment_name), members in released.groupby(["segment_id", "segment_name"])
        ],
        "rule_segments": _counts(released["rule_segments"].explode().dropna()),
        "lifecycle_stages": _counts(released["lifecycle_stage"]),
        "scored": {label: int(released[f"{label}_probability"].notna().sum()) for label in labels},
        "withheld": dict(withheld),
        "models": {kind: _version(released[f"{kind}_version"]) for kind in ("segments", *labels)},
    }


def _counts(values: pd.Series) -> Mapping[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}


def _version(versions: pd.Series) -> int | None:
    return None if versions.isna().all() else int(versions.dropna().iloc[0])


def _write_parquet(rows: pd.DataFrame, file: Path) -> None:
    pq.write_table(to_arrow(rows), file, compression="zstd")


def _write_csv(rows: pd.DataFrame, file: Path) -> None:
    text = rows.copy()
    for column in ("rule_segments", *(f"{label}_reasons" for label in labels_in(rows.columns))):
        text[column] = [LIST_SEPARATOR.join(items) for items in text[column]]
    text["as_of"] = text["as_of"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    file.write_bytes(text.to_csv(index=False, lineterminator="\r\n").encode())


def _describe_file(file: Path, row_count: int) -> dict[str, Any]:
    content = file.read_bytes()
    return {
        "path": file.name,
        "rows": row_count,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _switch(link: Path, version: Path) -> None:
    """Point a link to a version by one rename."""
    fresh = link.with_name(f".{link.name}-{uuid.uuid4().hex}")
    fresh.symlink_to(version.name)
    try:
        fresh.replace(link)
    finally:
        fresh.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have the folder and its files reach the disk before anything is renamed over them."""
    for path in [*folder.glob("*"), folder]:
        if path.is_symlink() or (path.is_dir() and path != folder):
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
