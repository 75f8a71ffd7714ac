import json
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from jsonschema import Draft202012Validator

from publish.assignments import (
    ASSIGNMENTS,
    DESCRIPTIONS,
    SCHEMA_VERSION,
    assignments_table,
    row_schema,
)
from publish.manifest import MANIFEST_VERSION, describe, manifest_schema, without

HOUSE = Path(__file__).parents[1]
CONTRACT = HOUSE / "publish" / "contract"
ROW: dict[str, Any] = {
    **{"user_id": "ada", "as_of": "2024-06-30T05:00:00Z", "segment_id": "s1", "segment_name": "Loyal"},
    **{"segment_strength": 0.9, "runner_up_segment_id": None, "rule_segments": ["at_risk"]},
    **{"lifecycle_stage": "active", "rfm_3": "3-1-2", "rfm_5": None},
    **{"churn_probability": 0.25, "conversion_probability": None},
    **{"churn_percentile": 50.0, "conversion_percentile": None, "churn_reasons": [], "conversion_reasons": []},
    **{"holdout": False, "held_out_of": [], "segments_version": 1, "churn_version": 2, "conversion_version": None},
    "segment_strengths": [{"segment_id": "s1", "strength": 0.9}],
}


def version_of(file: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in file.stem.rpartition("-")[2].split("."))


def history(kind: str) -> list[dict[str, Any]]:
    files = sorted(CONTRACT.glob(f"{kind}-*.json"), key=version_of)
    return [json.loads(file.read_text()) | {"version": version_of(file)} for file in files]


def taken_back(before: Any, after: Any, at: str = "") -> list[str]:
    """List where a schema says something else than the one before; additions and descriptions may differ."""
    if not isinstance(before, dict):
        return [] if before == after else [at]
    if not isinstance(after, dict):
        return [at]
    found = []
    for key, value in before.items():
        here = f"{at}/{key}"
        if key == "required":
            found += [f"{here}/{name}" for name in value if name not in after.get(key, [])]
        elif not (key in ("description", "title", "$id", "version") and isinstance(value, str | tuple)):
            found += taken_back(value, after[key], here) if key in after else [here]
    # What was free before and is narrowed now, is taken back too.
    limits = {"minimum", "maximum", "pattern", "format", "enum", "const", "additionalProperties"}
    return found + [f"{at}/{key}" for key in limits & (after.keys() - before.keys()) if "type" in before]


@pytest.mark.parametrize(
    ("file", "schema"),
    [(f"assignments-{SCHEMA_VERSION}.json", row_schema()), (f"manifest-{MANIFEST_VERSION}.json", manifest_schema())],
)
def test_a_contract_is_that_of_its_version(file: str, schema: dict[str, Any]) -> None:
    written = json.loads((CONTRACT / file).read_text())
    assert written == schema, "the contract has changed: raise its version, and write that version's file"


@pytest.mark.parametrize("kind", ["assignments", "manifest"])
def test_within_a_major_version_only_additions_happen(kind: str) -> None:
    for before, after in pairwise(history(kind)):
        if before["version"][0] == after["version"][0]:
            assert taken_back(before, after) == []


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"type": "string"}, "/type"),
        ({"maximum": 2}, "/maximum"),
        ({"const": 0}, "/const"),
    ],
)
def test_a_column_that_is_taken_back_is_found(change: dict[str, Any], culprit: str) -> None:
    before, after = row_schema(), row_schema()
    after["properties"]["churn_probability"] |= change
    assert taken_back(before, after) == [f"/properties/churn_probability{culprit}"]
    del after["properties"]["churn_probability"]
    after["required"].remove("churn_probability")
    assert taken_back(before, after) == ["/required/churn_probability", "/properties/churn_probability"]


def test_contracts_are_of_their_dialect() -> None:
    for kind in ("assignments", "manifest"):
        for schema in history(kind):
            Draft202012Validator.check_schema(schema)


def test_a_row_that_the_contract_allows() -> None:
    assert ROW.keys() == set(ASSIGNMENTS.schema.names)
    Draft202012Validator(row_schema()).validate(ROW)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("user_id", None), ("churn_probability", 1.01), ("churn_probability", -0.01), ("churn_percentile", 100.5)),
        *(("segment_strength", "high"), ("rule_segments", None), ("rule_segments", [1]), ("holdout", "no")),
        *(("churn_version", 1.5), ("held_out_of", "files/s1"), ("lifecycle_stage", None)),
        *(("segment_strengths", None), ("segment_strengths", [{"segment_id": "s1"}]), ("rfm_3", 312)),
        ("segment_strengths", [{"segment_id": "s1", "strength": 1.2}]),
    ],
)
def test_a_row_that_the_contract_does_not_allow(column: str, value: Any) -> None:
    assert not Draft202012Validator(row_schema()).is_valid(ROW | {column: value})


def test_a_row_lacks_no_column_and_may_have_more() -> None:
    validator = Draft202012Validator(row_schema())
    assert not validator.is_valid({name: value for name, value in ROW.items() if name != "segment_id"})
    assert validator.is_valid(ROW | {"added_later": 1})


def test_a_further_label_is_in_the_schema_of_its_versions() -> None:
    properties = row_schema(["churn", "conversion", "trial"])["properties"]
    assert tuple(properties) == assignments_table(["trial"]).schema.names
    assert properties["trial_probability"]["description"].startswith("calibrated probability of trial")
    assert properties["trial_percentile"]["maximum"] == 100


def test_every_column_is_described() -> None:
    assert all(column["description"] for column in row_schema()["properties"].values())
    assert set(ASSIGNMENTS.schema.names) >= DESCRIPTIONS.keys()


@pytest.mark.ci
def test_contracts_are_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-c", f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"]
    subprocess.run(build, cwd=HOUSE, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {f"publish/contract/{file.name}" for file in CONTRACT.glob("*.json")} <= set(inside)


# --- what a manifest says of rows ---


def rows_of(*rows: dict[str, Any], labels: tuple[str, ...] = ()) -> pa.Table:
    schema = assignments_table(labels).schema.to_pyarrow()
    base = ROW | {"as_of": pd.Timestamp(ROW["as_of"]), "churn_probability": None, "rule_segments": []}
    return pa.Table.from_pylist([base | row for row in rows], schema=schema)


ROWS: list[dict[str, Any]] = [
    {"user_id": "a", "rule_segments": ["at_risk", "researchers"]},
    {"user_id": "b", "segment_id": "s2", "segment_name": "Lapsing", "rule_segments": ["at_risk"]},
    {"user_id": "c", "segment_id": "s2", "segment_name": "Lapsing", "lifecycle_stage": "new"},
    {"user_id": "d", "segment_id": None, "segment_name": None, "churn_probability": 0.5},
]


def test_users_are_counted_by_segment_rule_and_stage() -> None:
    found = describe(rows_of(*ROWS))
    assert found["segments"] == [
        {"segment_id": "s1", "segment_name": "Loyal", "users": 1},
        {"segment_id": "s2", "segment_name": "Lapsing", "users": 2},
    ]
    assert found["rule_segments"] == {"at_risk": 2, "researchers": 1}
    assert found["lifecycle_stages"] == {"active": 3, "new": 1}
    assert (found["users"], found["scored"]) == (4, {"churn": 1, "conversion": 0})
    assert (found["schema_version"], found["models"]) == ("1.4", {"segments": 1, "churn": 2, "conversion": None})


def test_a_further_label_is_described() -> None:
    found = describe(rows_of({"trial_probability": 0.25, "trial_reasons": [], "trial_version": 4}, labels=("trial",)))
    assert found["scored"] == {"churn": 0, "conversion": 0, "trial": 1}
    assert found["models"]["trial"] == 4


def test_nobody_is_described() -> None:
    found = describe(rows_of())
    assert (found["users"], found["segments"], found["rule_segments"]) == (0, [], {})
    assert found["models"] == {"segments": None, "churn": None, "conversion": None}


def test_counts_without_the_erased_are_those_of_the_others() -> None:
    manifest = describe(rows_of(*ROWS)) | {"source": "shop"}
    left = without(manifest, rows_of(ROWS[0], ROWS[3]).to_pylist())
    assert left == describe(rows_of(*ROWS[1:3])) | {"source": "shop", "erased": 2}
    assert without(left, rows_of(ROWS[1]).to_pylist())["erased"] == 3
