"""The table of users: who may be on a list of a version, and what such lists say of them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from features.table import TIME
from publish.assignments import assignments_table, labels_in
from publish.versions import Version

ATTRIBUTE = "attribute_"
ASSIGNED = (
    "segment_id",
    "segment_name",
    "segment_strength",
    "segment_strengths",
    "runner_up_segment_id",
    "rule_segments",
    "lifecycle_stage",
    "rfm_3",
    "rfm_5",
)
OF_LABELS = ("probability", "percentile", "reasons")


def list_users(
    rows: pa.Table, activity: pd.DataFrame, snapshot: pd.DataFrame, attributes: Sequence[str], version: Version
) -> pa.Table:
    """Return a row for each user of `rows`, ASSIGNMENTS that may be listed, sorted by user_id.

    `activity` and `snapshot` have user_id, and the columns of `publish.report.activity` and SNAPSHOTS. The columns are
    said in `publish.report.content`. What is not known of a user is null.
    """
    rows = rows.sort_by("user_id")
    contract = assignments_table(labels_in(rows.column_names)).schema
    columns = {"user_id": rows["user_id"], "user_number": pa.array(_numbers(len(rows), version), pa.int64())}
    for name in (*ASSIGNED, *(f"{label}_{what}" for label in labels_in(rows.column_names) for what in OF_LABELS)):
        columns[name] = rows[name].cast(contract[name].to_pyarrow())
    ids = rows["user_id"].to_pandas()
    found = activity.set_index("user_id").reindex(ids)
    columns["last_seen_at"] = pa.array(found["last_seen_at"], TIME.to_pyarrow(), from_pandas=True)
    for name in ("session_count", "session_count_28d"):
        columns[name] = pa.array(found[name].fillna(0).astype("int64"), pa.int64())
    described = snapshot.set_index("user_id").reindex(ids)
    for name in attributes:
        texts = described[name] if name in described else pd.Series(None, index=ids, dtype=object)
        columns[ATTRIBUTE + name] = pa.array(texts.astype(object), pa.string(), from_pandas=True)
    return pa.table(columns)


def _numbers(count: int, version: Version) -> NDArray[np.int64]:
    """Return a number for each user, in an order that says nothing of them to who does not know the content."""
    seed = int.from_bytes(hashlib.sha256(f"{version.version} {version.content}".encode()).digest())
    return np.random.default_rng(seed).permutation(count) + 1
