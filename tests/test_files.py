import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from publish.assignments import ASSIGNMENTS, assignments_table, from_arrow, to_arrow
from publish.destinations.files import publish

AS_OF = pd.Timestamp("2024-06-30T05:00:00Z")
LATER = pd.Timestamp("2024-07-01T05:00:00Z")
DEFAULTS = {
    **{"user_id": "ada", "as_of": AS_OF, "segment_id": "s1", "segment_name": "Loyal", "segment_strength": 0.9},
    **{"rule_segments": [], "lifecycle_stage": "active"},
    **{"churn_reasons": [], "conversion_reasons": [], "holdout": False},
}


def assignments(*rows: dict[str, Any], labels: Sequence[str] = ()) -> pd.DataFrame:
    """Make ASSIGNMENTS of rows that name only what matters."""
    schema = assignments_table(labels).schema.to_pyarrow()
    return from_arrow(pa.Table.from_pylist([DEFAULTS | row for row in rows], schema=schema))


def read_csv(version: Path) -> list[dict[str, str]]:
    text = (version / "assignments.csv").read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_parquet(version: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(version / "assignments.parquet").to_pylist()
    return rows


def manifest(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "manifest.json").read_bytes())
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- a version ---


def test_a_version_is_a_folder_of_its_instant_and_content(tmp_path: Path) -> None:
    version = publish(assignments({}), "shop", tmp_path / "out")
    assert version.parent == tmp_path / "out"
    assert version.name.startswith("2024-06-30T050000Z-")
    assert names(version) == {"assignments.csv", "assignments.parquet", "manifest.json"}


def test_parquet_holds_the_assignments_under_their_contract(tmp_path: Path) -> None:
    rows = assignments(
        {"user_id": "ada", "churn_probability": 0.25, "churn_version": 3, "churn_reasons": ["a", "b"]},
        {"user_id": "ben", "segment_id": None, "segment_name": None, "segment_strength": None},
    )
    version = publish(rows, "shop", tmp_path)
    assert pq.read_schema(version / "assignments.parquet").equals(ASSIGNMENTS.schema.to_pyarrow())
    assert read_parquet(version) == to_arrow(rows).to_pylist()


def test_csv_holds_the_same_as_text(tmp_path: Path) -> None:
    row = {"churn_probability": 0.25, "churn_version": 3, "churn_reasons": ["bounces: 3"], "runner_up_segment_id": "s2"}
    [found] = read_csv(publish(assignments(row), "shop", tmp_path))
    assert found == {
        **{"user_id": "ada", "as_of": "2024-06-30T05:00:00Z", "segment_id": "s1", "segment_name": "Loyal"},
        **{"segment_strength": "0.9", "runner_up_segment_id": "s2", "rule_segments": "", "churn_reasons": "bounces: 3"},
        **{"lifecycle_stage": "active"},
        **{"churn_probability": "0.25", "churn_percentile": "", "conversion_probability": "", "churn_version": "3"},
        **{"conversion_percentile": "", "conversion_reasons": "", "holdout": "False", "segments_version": ""},
        **{"conversion_version": ""},
    }


def test_columns_of_csv_are_in_the_contracts_order(tmp_path: Path) -> None:
    [found] = read_csv(publish(assignments({}), "shop", tmp_path))
    assert tuple(found) == ASSIGNMENTS.schema.names


def test_items_of_a_list_are_separated_in_csv(tmp_path: Path) -> None:
    [found] = read_csv(publish(assignments({"rule_segments": ["at_risk", "researchers"]}), "shop", tmp_path))
    assert found["rule_segments"] == "at_risk | researchers"


def test_users_are_in_order(tmp_path: Path) -> None:
    version = publish(assignments({"user_id": "ben"}, {"user_id": "ada"}), "shop", tmp_path)
    assert [row["user_id"] for row in read_csv(version)] == ["ada", "ben"]
    assert [row["user_id"] for row in read_parquet(version)] == ["ada", "ben"]


def test_users_held_out_are_left_out(tmp_path: Path) -> None:
    version = publish(assignments({"user_id": "in-control", "holdout": True}, {"user_id": "ben"}), "shop", tmp_path)
    assert [row["user_id"] for row in read_csv(version)] == ["ben"]
    assert [row["user_id"] for row in read_parquet(version)] == ["ben"]
    assert b"in-control" not in b"".join(file.read_bytes() for file in version.iterdir())


def test_everybody_may_be_held_out(tmp_path: Path) -> None:
    version = publish(assignments({"holdout": True}), "shop", tmp_path)
    assert read_csv(version) == read_parquet(version) == []
    assert (manifest(version)["users"], manifest(version)["held_out"]) == (0, 1)


# --- the manifest ---


def test_a_manifest_counts_users_by_segment_rule_and_stage(tmp_path: Path) -> None:
    rows = assignments(
        {"user_id": "a", "segment_id": "s1", "segment_name": "Loyal", "rule_segments": ["at_risk", "researchers"]},
        {"user_id": "b", "segment_id": "s2", "segment_name": "Lapsing", "rule_segments": ["at_risk"]},
        {"user_id": "c", "segment_id": "s2", "segment_name": "Lapsing", "lifecycle_stage": "new"},
        {"user_id": "d", "segment_id": None, "segment_name": None},
        {"user_id": "e", "segment_id": "s2", "segment_name": "Lapsing", "rule_segments": ["at_risk"], "holdout": True},
    )
    found = manifest(publish(rows, "shop", tmp_path))
    assert found["segments"] == [
        {"segment_id": "s1", "segment_name": "Loyal", "users": 1},
        {"segment_id": "s2", "segment_name": "Lapsing", "users": 2},
    ]
    assert found["rule_segments"] == {"at_risk": 2, "researchers": 1}
    assert found["lifecycle_stages"] == {"active": 3, "new": 1}
    assert (found["users"], found["held_out"]) == (4, 1)


def test_a_manifest_says_what_was_published_and_by_which_models(tmp_path: Path) -> None:
    rows = assignments(
        {"user_id": "a", "segments_version": 1, "churn_version": 2, "churn_probability": 0.5},
        {"user_id": "b", "segments_version": 1, "churn_version": 2},
    )
    found = manifest(publish(rows, "shop", tmp_path))
    assert (found["name"], found["as_of"], found["schema_version"]) == ("shop", "2024-06-30T05:00:00+00:00", "1.2")
    assert found["scored"] == {"churn": 1, "conversion": 0}
    assert found["models"] == {"segments": 1, "churn": 2, "conversion": None}


def test_a_further_label_is_in_every_file_and_in_the_manifest(tmp_path: Path) -> None:
    row = {"trial_probability": 0.25, "trial_percentile": 50.0, "trial_reasons": ["a", "b"], "trial_version": 4}
    rows = assignments(row, {"user_id": "ben", "trial_reasons": [], "trial_version": 4}, labels=["trial"])
    version = publish(rows, "shop", tmp_path)
    assert read_parquet(version) == to_arrow(rows).to_pylist()
    ada, _ = read_csv(version)
    assert tuple(ada)[:-4] == ASSIGNMENTS.schema.names
    assert {name: ada[name] for name in row} == {
        **{"trial_probability": "0.25", "trial_percentile": "50.0", "trial_reasons": "a | b", "trial_version": "4"},
    }
    assert manifest(version)["scored"] == {"churn": 0, "conversion": 0, "trial": 1}
    assert manifest(version)["models"] == {"segments": None, "churn": None, "conversion": None, "trial": 4}


def test_a_manifest_says_why_probabilities_are_withheld(tmp_path: Path) -> None:
    withheld = {"churn": "ECE .08 is above .03"}
    version = publish(assignments({"churn_percentile": 50.0, "churn_version": 2}), "shop", tmp_path, withheld)
    assert manifest(version)["withheld"] == withheld
    assert manifest(version)["scored"]["churn"] == 0
    assert read_parquet(version)[0]["churn_percentile"] == 50.0


def test_a_manifest_without_anything_withheld_says_so(tmp_path: Path) -> None:
    assert manifest(publish(assignments({}), "shop", tmp_path))["withheld"] == {}


def test_a_manifest_describes_the_files_as_they_are(tmp_path: Path) -> None:
    version = publish(assignments({"user_id": "ada"}, {"user_id": "ben"}), "shop", tmp_path)
    contents = {name: (version / name).read_bytes() for name in ("assignments.csv", "assignments.parquet")}
    assert manifest(version)["files"] == [
        {"path": name, "rows": 2, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]


def test_a_manifest_keeps_letters_of_every_script(tmp_path: Path) -> None:
    version = publish(assignments({"segment_name": "Käufer 常客"}), "shop", tmp_path)
    assert "Käufer 常客" in (version / "manifest.json").read_bytes().decode()


# --- versions over time ---


def test_the_first_version_is_the_latest(tmp_path: Path) -> None:
    version = publish(assignments({}), "shop", tmp_path)
    assert (tmp_path / "latest").resolve() == version.resolve()


def test_the_latest_is_switched_and_the_version_before_stays(tmp_path: Path) -> None:
    first = publish(assignments({}), "shop", tmp_path)
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    second = publish(assignments({"as_of": LATER}), "shop", tmp_path)
    assert (tmp_path / "latest").resolve() == second.resolve()
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before
    assert names(tmp_path) == {first.name, second.name, "latest"}


def test_the_latest_is_what_was_published_last_even_of_an_earlier_instant(tmp_path: Path) -> None:
    publish(assignments({"as_of": LATER}), "shop", tmp_path)
    again = publish(assignments({}), "shop", tmp_path)
    assert (tmp_path / "latest").resolve() == again.resolve()


def test_the_latest_link_survives_a_move_of_the_folder(tmp_path: Path) -> None:
    publish(assignments({}), "shop", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert [row["user_id"] for row in read_csv(tmp_path / "moved/latest")] == ["ada"]


def test_a_reader_of_the_version_before_reads_on(tmp_path: Path) -> None:
    publish(assignments({"user_id": "ada"}), "shop", tmp_path)
    with (tmp_path / "latest/assignments.csv").open("rb") as opened:
        publish(assignments({"user_id": "ben"}), "shop", tmp_path)
        assert b"ada" in opened.read()


def test_the_same_rows_in_any_order_are_the_same_folder_and_bytes(tmp_path: Path) -> None:
    rows = assignments({"user_id": "ada"}, {"user_id": "ben"}, {"user_id": "cat", "holdout": True})
    first = publish(rows, "shop", tmp_path)
    written = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in first.iterdir()}
    again = publish(rows[::-1], "shop", tmp_path)
    assert again == first
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in again.iterdir()} == written
    assert names(tmp_path) == {first.name, "latest"}


def test_the_same_rows_are_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    rows = assignments({"user_id": "ada"}, {"user_id": "ben"})
    here, there = publish(rows, "shop", tmp_path / "a"), publish(rows, "shop", tmp_path / "b")
    assert here.name == there.name
    assert {file.name: file.read_bytes() for file in here.iterdir()} == {
        file.name: file.read_bytes() for file in there.iterdir()
    }


@pytest.mark.parametrize(
    "change", [{"segment_strength": 0.8}, {"rule_segments": ["x"]}, {"churn_version": 2}, {"holdout": True}]
)
def test_other_rows_of_the_same_instant_are_another_version(tmp_path: Path, change: dict[str, Any]) -> None:
    first = publish(assignments({}), "shop", tmp_path)
    assert publish(assignments(change), "shop", tmp_path) != first


# --- user ids ---

ODD = [
    *("001", "1.0", "1e5", "NA", "null", " a ", "a,b", 'a"b', "'a'", "a|b", "=1+1"),
    *("a\nb", "a\rb", "a\r\nb", "😀", "\u00e9", "e\u0301"),
]


def test_odd_user_ids_survive(tmp_path: Path) -> None:
    version = publish(assignments(*({"user_id": user} for user in ODD)), "shop", tmp_path)
    assert [row["user_id"] for row in read_csv(version)] == sorted(ODD)
    assert [row["user_id"] for row in read_parquet(version)] == sorted(ODD)


def test_odd_user_ids_survive_pandas(tmp_path: Path) -> None:
    version = publish(assignments(*({"user_id": user} for user in ODD)), "shop", tmp_path)
    found = pd.read_csv(version / "assignments.csv", dtype={"user_id": "str"}, keep_default_na=False)
    assert found["user_id"].tolist() == sorted(ODD)


@given(
    users=st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=8)
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_user_id_survives(tmp_path: Path, users: set[str]) -> None:
    version = publish(assignments(*({"user_id": user} for user in users)), "shop", tmp_path)
    assert [row["user_id"] for row in read_csv(version)] == sorted(users)
    assert [row["user_id"] for row in read_parquet(version)] == sorted(users)


# --- failures ---


def broken(column: str, value: Any) -> pd.DataFrame:
    return assignments({"user_id": "ada"}, {"user_id": "ben"}).assign(**{column: value})


@pytest.mark.parametrize(
    "invalid",
    [
        broken("user_id", None),
        broken("churn_probability", "high"),
        broken("churn_reasons", None),
        broken("rule_segments", "at_risk"),
        assignments({}).drop(columns="runner_up_segment_id"),
    ],
    ids=["no user", "a word for a number", "no list", "a word for a list", "no column"],
)
def test_what_fails_midway_leaves_nothing_and_the_latest_as_it_was(tmp_path: Path, invalid: pd.DataFrame) -> None:
    version = publish(assignments({}), "shop", tmp_path)
    with pytest.raises((ValueError, KeyError, pa.ArrowException)):
        publish(invalid, "shop", tmp_path)
    assert names(tmp_path) == {version.name, "latest"}
    assert (tmp_path / "latest").resolve() == version.resolve()


@pytest.mark.parametrize(("rows", "instants"), [([], 0), ([{}, {"user_id": "ben", "as_of": LATER}], 2)])
def test_a_version_is_of_one_instant(tmp_path: Path, rows: list[dict[str, Any]], instants: int) -> None:
    with pytest.raises(ValueError, match=f"^a version has one as_of, these assignments have {instants}$"):
        publish(assignments(*rows), "shop", tmp_path)
    assert names(tmp_path) == set()


def test_a_folder_in_the_latests_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(OSError, match="latest"):
        publish(assignments({}), "shop", tmp_path)
    assert {name for name in names(tmp_path) if name.startswith(".")} == set()
    assert (tmp_path / "latest").is_dir()
