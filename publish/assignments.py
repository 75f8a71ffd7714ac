"""ASSIGNMENTS: one row per user, the contract with marketing tools."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa

from features.table import TIME, Table

SCHEMA_VERSION = "1.0"
"""Of ASSIGNMENTS. An added column raises the second number, anything else the first."""

ASSIGNMENTS = Table(
    name="assignments",
    schema=ibis.schema(
        {
            "user_id": "!string",
            "as_of": TIME.copy(nullable=False),
            "segment_id": "string",
            "segment_name": "string",
            "segment_strength": "float64",
            "runner_up_segment_id": "string",
            "rule_segments": "!array<string>",
            "churn_probability": "float64",
            "conversion_probability": "float64",
            "churn_percentile": "float64",
            "conversion_percentile": "float64",
            "churn_reasons": "!array<string>",
            "conversion_reasons": "!array<string>",
            "holdout": "!boolean",
            "segments_version": "int64",
            "churn_version": "int64",
            "conversion_version": "int64",
        }
    ),
    key=("user_id", "as_of"),
    partition="as_of",
)
PROPENSITIES = ("churn", "conversion")


@dataclass(frozen=True)
class Scores:
    """Hold a propensity's scores by user: probability, percentile (0 to 100), reasons; and the model's version."""

    by_user: pd.DataFrame
    version: int


def assign(
    snapshot: pd.DataFrame,
    segments: pd.DataFrame | None,
    segments_version: int | None,
    rule_segments: pd.Series,
    scores: Mapping[str, Scores],
    holdout_share: float,
    salt: str,
) -> pd.DataFrame:
    """Bring together what is known of each user of a snapshot under ASSIGNMENTS, sorted by user.

    `segments` has a row per user as `models.segments.assign` gives it, `rule_segments` a list per user. Null: no
    model serves, or it does not apply to the user (who is not eligible); the version is null only in the former case.
    """
    table = snapshot[["user_id", "as_of"]].sort_values("user_id", ignore_index=True)
    if segments is not None:
        table = table.merge(segments, on="user_id", how="left")
    table["rule_segments"] = table["user_id"].map(rule_segments)
    for name in PROPENSITIES:
        if name in scores:
            by_user = scores[name].by_user.add_prefix(f"{name}_")
            table = table.merge(by_user, left_on="user_id", right_index=True, how="left")
            table[f"{name}_version"] = scores[name].version
        reasons = table.get(f"{name}_reasons", pd.Series(None, index=table.index, dtype=object))
        table[f"{name}_reasons"] = [given if isinstance(given, list) else [] for given in reasons]
    table["holdout"] = hold_out(table["user_id"], holdout_share, salt)
    table["segments_version"] = segments_version
    return _conform(table)


def hold_out(user_ids: pd.Series, share: float, salt: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Choose a share of users to be left alone, by a salted hash: the same ones at each run and in each segment."""
    limit = share * 2**64
    hashed = (hashlib.sha256(f"{salt}\x1f{user_id}".encode()).digest()[:8] for user_id in user_ids)
    return np.array([int.from_bytes(digest, "big") < limit for digest in hashed], dtype=np.bool_)


def _conform(table: pd.DataFrame) -> pd.DataFrame:
    """Return all columns of ASSIGNMENTS with its types; one that is not there is null."""
    columns = {}
    for name, dtype in ASSIGNMENTS.schema.items():
        column = table[name] if name in table else pd.Series(None, index=table.index, dtype=object)
        if dtype.is_floating():
            column = column.astype("float64")
        elif dtype.is_integer():
            column = column.astype("Int64")
        elif dtype.is_string():
            column = column.astype("str")
        elif dtype.is_array():
            column = column.astype(object)
        columns[name] = column
    return pd.DataFrame(columns)


def to_arrow(assignments: pd.DataFrame) -> pa.Table:
    """Return assignments with the contract's types."""
    return pa.Table.from_pandas(assignments, schema=ASSIGNMENTS.schema.to_pyarrow(), preserve_index=False)


def from_arrow(table: pa.Table) -> pd.DataFrame:
    """Return assignments as a frame: lists as lists, integers that may be null as Int64."""
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    for name, dtype in ASSIGNMENTS.schema.items():
        if dtype.is_array():
            frame[name] = [list(items) for items in frame[name]]
    return frame
