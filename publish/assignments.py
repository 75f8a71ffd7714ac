"""ASSIGNMENTS: one row per user, the contract with marketing tools."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.table import TIME, Table
from publish.holdout import hold_out

SCHEMA_VERSION = "1.4"
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
            "segment_strengths": "!array<struct<segment_id: string, strength: float64>>",
            "runner_up_segment_id": "string",
            "rule_segments": "!array<string>",
            "lifecycle_stage": "!string",
            "rfm_3": "string",
            "rfm_5": "string",
            "churn_probability": "float64",
            "conversion_probability": "float64",
            "churn_percentile": "float64",
            "conversion_percentile": "float64",
            "churn_reasons": "!array<string>",
            "conversion_reasons": "!array<string>",
            "holdout": "!boolean",
            "held_out_of": "!array<string>",
            "segments_version": "int64",
            "churn_version": "int64",
            "conversion_version": "int64",
        }
    ),
    key=("user_id", "as_of"),
    partition="as_of",
)
PROPENSITIES = ("churn", "conversion")
"""The labels whose columns are there always."""
DESCRIPTIONS = {
    "user_id": "the user, as the source of events has it",
    "as_of": "the instant that everything is said of, UTC",
    "segment_id": "the discovered segment, which stays the same through retrainings; null where none serves",
    "segment_name": "what people call the segment; it may change",
    "segment_strength": "how typical the user is of the segment, 0 to 1; 0 of one who only stays in it",
    "segment_strengths": "the segments that the user has at least a tenth of, and how much of each: at most 1 in all, "
    "the strongest first; empty where segment_id is null",
    "runner_up_segment_id": "the segment that comes next",
    "rule_segments": "names of the rules that the user meets",
    "lifecycle_stage": "where the user stands between the first visit and leaving",
    "rfm_3": "grades of recency, frequency and money from 1 to 3, 3 being the best, as 3-1-2; null where none apply",
    "rfm_5": "the same from 1 to 5, 5 being the best",
    "holdout": "whether the user is held out of everything that is published; such a user never leaves, so it is false",
    "held_out_of": "destination/segment_id of where the user is held out; empty in what leaves",
    "segments_version": "version of the model of segments; null where none serves",
}
"""What the columns mean that are there once; those of each label are in `LABEL_DESCRIPTIONS`."""
LABEL_DESCRIPTIONS = {
    "probability": "calibrated probability of {label}, 0 to 1; null where it does not apply or is withheld",
    "percentile": "rank of {label} among all users whom it applies to, 0 (least likely) to 100",
    "reasons": "what speaks most for this score of {label}, the strongest first",
    "version": "version of the model of {label}; null where none serves",
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def assignments_table(labels: Iterable[str]) -> Table:
    """Return the contract for these labels, by name; columns of others than churn and conversion come last."""
    columns = dict(ASSIGNMENTS.schema)
    for name in labels:
        if name not in PROPENSITIES:
            types = {"probability": "float64", "percentile": "float64", "reasons": "!array<string>", "version": "int64"}
            columns |= ibis.schema({f"{name}_{what}": dtype for what, dtype in types.items()})
    return replace(ASSIGNMENTS, schema=ibis.schema(columns))


def row_schema(labels: Iterable[str] = PROPENSITIES) -> dict[str, Any]:
    """Return the JSON Schema of a row for these labels. What it does not name, later versions may add."""
    columns = assignments_table(labels).schema
    return {
        "$schema": DIALECT,
        "$id": f"urn:habitus:assignments:{SCHEMA_VERSION}",
        "title": f"Habitus assignment {SCHEMA_VERSION}",
        "description": "What is known of a user at an instant; key: user_id and as_of.",
        "type": "object",
        "required": list(columns.names),
        "properties": {name: _value_schema(name, dtype) for name, dtype in columns.items()},
    }


def _value_schema(name: str, dtype: dt.DataType) -> dict[str, Any]:
    label, _, what = name.rpartition("_")
    description = DESCRIPTIONS.get(name) or LABEL_DESCRIPTIONS[what].format(label=label)
    if dtype.is_array():
        items = _item_schema(dtype.value_type) if dtype.value_type.is_struct() else {"type": "string"}
        return {"type": "array", "items": items, "description": description}
    kind = "integer" if dtype.is_integer() else "number" if dtype.is_floating() else "string"
    found: dict[str, Any] = {"type": "boolean" if dtype.is_boolean() else kind}
    if dtype.nullable:
        found["type"] = [found["type"], "null"]
    if dtype.is_timestamp():
        found["format"] = "date-time"
    if dtype.is_floating():
        found |= {"minimum": 0, "maximum": 100 if what == "percentile" else 1}
    return found | {"description": description}


def _item_schema(dtype: dt.Struct) -> dict[str, Any]:
    kinds = {
        name: {"type": "number", "minimum": 0, "maximum": 1} if kind.is_floating() else {"type": "string"}
        for name, kind in dtype.items()
    }
    return {"type": "object", "required": [*kinds], "properties": kinds}


def complete(rows: ir.Table, contract: Table) -> ir.Table:
    """Return rows of an earlier version of a contract with the columns that were added since: null, or empty lists."""
    added = {
        name: ibis.null(dtype) if dtype.nullable else ibis.literal([], dtype.copy(nullable=True))
        for name, dtype in contract.schema.items()
        if name not in rows.columns
    }
    return contract.check(rows.mutate(**added))


def as_json(strengths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return segment_strengths as JSON texts, as where there are no records."""
    pairs = pc.list_flatten(strengths)
    names, numbers = (pc.struct_field(pairs, name) for name in ("segment_id", "strength"))
    for special in ("\\", '"'):
        names = pc.replace_substring(names, special, f"\\{special}")
    texts = pc.cast(numbers, pa.string())
    texts = pc.if_else(pc.match_substring(texts, "."), texts, pc.binary_join_element_wise(texts, ".0", ""))
    records = pc.binary_join_element_wise('{"segment_id":"', names, '","strength":', texts, "}", "")
    ends = pc.cumulative_sum(pc.list_value_length(strengths)).to_numpy()
    offsets = pa.array(np.append(0, ends), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, records.cast(pa.string()).combine_chunks())
    return pa.chunked_array([pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", "")])


def labels_in(columns: Iterable[str]) -> list[str]:
    """List the labels, by name, whose columns are among these of ASSIGNMENTS."""
    suffix = "_probability"
    return [column.removesuffix(suffix) for column in columns if column.endswith(suffix)]


@dataclass(frozen=True)
class Scores:
    """Hold a propensity's scores by user: probability, percentile (0 to 100), reasons; and the model's version.

    `withheld` says why probabilities are not published, where ranks are.
    """

    by_user: pd.DataFrame
    version: int
    withheld: str | None = None


def assign(
    snapshot: pd.DataFrame,
    segments: pd.DataFrame | None,
    segments_version: int | None,
    rule_segments: pd.Series,
    lifecycle_stages: pd.Series,
    scores: Mapping[str, Scores],
    holdout_share: float,
    salt: str,
    labels: Sequence[str] = PROPENSITIES,
    held_out_of: pd.Series | None = None,
) -> pd.DataFrame:
    """Bring together what is known of each user of a snapshot under ASSIGNMENTS for these labels, sorted by user.

    The snapshot may have rfm_3 and rfm_5. `segments` has a row per user as `models.segments.assign` gives it,
    `rule_segments` a list per user,
    `lifecycle_stages` a text, `held_out_of` a list of destination/segment_id (None: empty ones). Null: no model serves,
    or it does not apply to the user (who is not eligible); the version is null only in the former case. A probability
    is null, too, where it is withheld.
    """
    known = [name for name in ("user_id", "as_of", "rfm_3", "rfm_5") if name in snapshot]
    table = snapshot[known].sort_values("user_id", ignore_index=True)
    if segments is not None:
        table = table.merge(segments, on="user_id", how="left")
    table["rule_segments"] = table["user_id"].map(rule_segments)
    table["lifecycle_stage"] = table["user_id"].map(lifecycle_stages)
    contract = assignments_table(labels)
    for name in labels_in(contract.schema.names):
        if name in scores:
            by_user = scores[name].by_user.add_prefix(f"{name}_")
            if scores[name].withheld:
                by_user[f"{name}_probability"] = np.nan
            table = table.merge(by_user, left_on="user_id", right_index=True, how="left")
            table[f"{name}_version"] = scores[name].version
        reasons = table.get(f"{name}_reasons", pd.Series(None, index=table.index, dtype=object))
        table[f"{name}_reasons"] = [given if isinstance(given, list) else [] for given in reasons]
    table["holdout"] = hold_out(table["user_id"], holdout_share, salt)
    pairs = table["user_id"].map({} if held_out_of is None else held_out_of)
    table["held_out_of"] = [given if isinstance(given, list) else [] for given in pairs]
    table["segments_version"] = segments_version
    return _conform(table, contract)


def _conform(table: pd.DataFrame, contract: Table) -> pd.DataFrame:
    """Return all columns of a contract with its types; one that is not there is null."""
    columns = {}
    for name, dtype in contract.schema.items():
        column = table[name] if name in table else pd.Series(None, index=table.index, dtype=object)
        if dtype.is_floating():
            column = column.astype("float64")
        elif dtype.is_integer():
            column = column.astype("Int64")
        elif dtype.is_string():
            column = column.astype("str")
        elif dtype.is_array() and name in table:
            column = column if isinstance(column.dtype, pd.ArrowDtype) else column.astype(object)
        elif dtype.is_array():
            column = pd.Series([[]] * len(table), index=table.index, dtype=object)
        columns[name] = column
    return pd.DataFrame(columns)


def to_arrow(assignments: pd.DataFrame) -> pa.Table:
    """Return assignments with the contract's types."""
    schema = assignments_table(labels_in(assignments.columns)).schema.to_pyarrow()
    return pa.Table.from_pandas(assignments, schema=schema, preserve_index=False)


def from_arrow(table: pa.Table) -> pd.DataFrame:
    """Return assignments as a frame: lists as lists, integers that may be null as Int64."""
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    for name, dtype in assignments_table(labels_in(frame.columns)).schema.items():
        if dtype.is_array():
            frame[name] = [list(items) for items in frame[name]]
    return frame
