import csv
import hashlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3_KEYS, Bucket, enforce_permissions
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from jsonschema import Draft202012Validator
from laws import law
from messages import assert_documented
from pydantic import ValidationError

from features.table import ContractError
from publish.assignments import ASSIGNMENTS, assignments_table
from publish.changes import CHANGES
from publish.destination import DestinationError, Release
from publish.destinations import folders
from publish.destinations.files import Files, FilesSettings, Format
from publish.formulas import unescape
from publish.manifest import describe, manifest_schema

AS_OF = pd.Timestamp("2024-06-30T05:00:00Z")
LATER = pd.Timestamp("2024-07-01T05:00:00Z")
DEFAULTS = {
    **{"user_id": "ada", "as_of": AS_OF, "segment_id": "s1", "segment_name": "Loyal", "segment_strength": 0.9},
    **{"rule_segments": [], "lifecycle_stage": "active"},
    **{"churn_reasons": [], "conversion_reasons": [], "holdout": False, "held_out_of": [], "segment_strengths": []},
}
CHANGE = {
    **{"version": 1, "as_of": AS_OF, "destination": "files", "user_id": "ada", "segment_id": "s1"},
    **{"segment_name": "Loyal", "change": "entered", "reason": "new_user"},
}
ALL: list[Format] = ["parquet", "csv", "jsonl"]
Make = Callable[..., Release]


@pytest.fixture
def made(engine: DuckDB) -> Make:
    """Make releases of rows and changes that name only what matters."""

    def make(
        *rows: dict[str, Any],
        version: int = 1,
        as_of: pd.Timestamp = AS_OF,
        changes: Sequence[dict[str, Any]] = (),
        labels: Sequence[str] = (),
        **manifest: Any,
    ) -> Release:
        schema = assignments_table(labels).schema.to_pyarrow()
        table = pa.Table.from_pylist([DEFAULTS | {"as_of": as_of} | row for row in rows], schema=schema)
        feed = pa.Table.from_pylist([CHANGE | row for row in changes], schema=CHANGES.schema.to_pyarrow())
        all_changes = engine.create_table(f"feed_{time.monotonic_ns()}", feed, temp=True)
        said = describe(table) | {
            **{"source": "shop", "configuration": "abc", "withheld": {}},
            "refused": {"users": {}, "held_out": {}, "held_back": {}},
        }
        expr = engine.create_table(f"rows_{time.monotonic_ns()}", table, temp=True)
        return Release(
            "files",
            "shop",
            version,
            as_of.to_pydatetime(),
            expr,
            expr.select("user_id", "segment_id", "segment_name"),
            expr.select("user_id"),
            lambda since: all_changes.filter(all_changes.version > since),
            said | manifest,
        )

    return make


def files_in(folder: Path, formats: Sequence[Format] = ("parquet", "csv")) -> Files:
    return FilesSettings(folder=str(folder), formats=list(formats)).connect("files", {}, folder, folder)


def deliver(release: Release, folder: Path, formats: Sequence[Format] = ("parquet", "csv")) -> Path:
    """Deliver a release and return its folder."""
    delivery = files_in(folder, formats).deliver(release)
    assert delivery.state == "released"
    return Path(delivery.where)


def read_csv(version: Path, name: str = "assignments") -> list[dict[str, str]]:
    """Read rows as the manifest says that formulas were written."""
    text = (version / f"{name}.csv").read_bytes().decode()
    plain = unescape if manifest(version).get("formulas") == "escape" else str
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def read_parquet(version: Path, name: str = "assignments") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(version / f"{name}.parquet").to_pylist()
    return rows


def read_jsonl(version: Path, name: str = "assignments") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (version / f"{name}.jsonl").read_bytes().decode().split("\n") if line]


def manifest(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "manifest.json").read_bytes())
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_whole(version: Path) -> dict[str, Any]:
    """Check that a version is under its schema and its files are what its manifest says; return the manifest."""
    found = manifest(version)
    Draft202012Validator(manifest_schema()).validate(found)
    assert names(version) == {"manifest.json", *(file["path"] for file in found["files"])}
    for file in found["files"]:
        content = (version / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    return found


# --- a version ---


def test_a_version_is_a_folder_of_its_instant_and_content(made: Make, tmp_path: Path) -> None:
    version = deliver(made({}), tmp_path / "out", ALL)
    assert version.parent == tmp_path / "out"
    assert version.name.startswith("2024-06-30T050000Z-")
    data = {f"{name}.{form}" for name in ("assignments", "changes") for form in ALL}
    assert names(version) == data | {"schema.json", "manifest.json"}
    check_whole(version)


def test_only_the_formats_that_were_asked_for_are_there(made: Make, tmp_path: Path) -> None:
    version = deliver(made({}), tmp_path, ["jsonl"])
    assert names(version) == {"assignments.jsonl", "changes.jsonl", "schema.json", "manifest.json"}


def test_parquet_holds_the_assignments_under_their_contract(made: Make, tmp_path: Path) -> None:
    release = made(
        {"user_id": "ada", "churn_probability": 0.25, "churn_version": 3, "churn_reasons": ["a", "b"]},
        {"user_id": "ben", "segment_id": None, "segment_name": None, "segment_strength": None},
    )
    version = deliver(release, tmp_path)
    assert pq.read_schema(version / "assignments.parquet").equals(ASSIGNMENTS.schema.to_pyarrow())
    assert pq.read_schema(version / "changes.parquet").equals(CHANGES.schema.to_pyarrow())
    assert read_parquet(version) == release.rows.to_pyarrow().to_pylist()


def test_csv_holds_the_same_as_text(made: Make, tmp_path: Path) -> None:
    row = {"churn_probability": 0.25, "churn_version": 3, "churn_reasons": ["bounces: 3"], "runner_up_segment_id": "s2"}
    strengths = [{"segment_id": "s1", "strength": 0.7}, {"segment_id": "s2", "strength": 0.2}]
    [found] = read_csv(deliver(made({**row, "rfm_3": "3-1-2", "segment_strengths": strengths}), tmp_path))
    assert found == {
        **{"user_id": "ada", "as_of": "2024-06-30T05:00:00Z", "segment_id": "s1", "segment_name": "Loyal"},
        **{"segment_strength": "0.9", "runner_up_segment_id": "s2", "rule_segments": "", "churn_reasons": "bounces: 3"},
        **{"lifecycle_stage": "active", "rfm_3": "3-1-2", "rfm_5": "", "held_out_of": ""},
        **{"segment_strengths": '[{"segment_id":"s1","strength":0.7},{"segment_id":"s2","strength":0.2}]'},
        **{"churn_probability": "0.25", "churn_percentile": "", "conversion_probability": "", "churn_version": "3"},
        **{"conversion_percentile": "", "conversion_reasons": "", "holdout": "False", "segments_version": ""},
        **{"conversion_version": ""},
    }
    assert tuple(found) == ASSIGNMENTS.schema.names


def test_json_lines_are_rows_under_the_schema_beside_them(made: Make, tmp_path: Path) -> None:
    row = {"churn_probability": 0.25, "churn_version": 3, "churn_reasons": ["a", "b"], "segment_id": None}
    version = deliver(made(row), tmp_path, ["jsonl"])
    [found] = read_jsonl(version)
    Draft202012Validator(json.loads((version / "schema.json").read_text())).validate(found)
    assert (found["as_of"], found["churn_reasons"], found["segment_id"]) == ("2024-06-30T05:00:00Z", ["a", "b"], None)
    assert tuple(found) == ASSIGNMENTS.schema.names


def test_items_of_a_list_are_separated_in_csv(made: Make, tmp_path: Path) -> None:
    [found] = read_csv(deliver(made({"rule_segments": ["at_risk", "researchers"]}), tmp_path))
    assert found["rule_segments"] == "at_risk | researchers"


def test_an_instant_keeps_its_microseconds(made: Make, tmp_path: Path) -> None:
    [found] = read_csv(deliver(made({"as_of": AS_OF + pd.Timedelta(microseconds=7)}), tmp_path))
    assert found["as_of"] == "2024-06-30T05:00:00.000007Z"


def test_users_are_in_order(made: Make, tmp_path: Path) -> None:
    version = deliver(made({"user_id": "ben"}, {"user_id": "ada"}, {"user_id": "Zoe"}), tmp_path, ALL)
    for rows in (read_csv(version), read_parquet(version), read_jsonl(version)):
        assert [row["user_id"] for row in rows] == ["Zoe", "ada", "ben"]


def test_nobody_may_be_released(made: Make, tmp_path: Path) -> None:
    version = deliver(made(), tmp_path, ALL)
    assert read_csv(version) == read_parquet(version) == read_jsonl(version) == []
    assert (version / "assignments.csv").read_text().startswith("user_id,as_of,")
    assert check_whole(version)["users"] == 0


def test_a_further_label_is_in_every_file_and_in_the_schema(made: Make, tmp_path: Path) -> None:
    row = {"trial_probability": 0.25, "trial_percentile": 50.0, "trial_reasons": ["a", "b"], "trial_version": 4}
    version = deliver(made(row, labels=["trial"]), tmp_path, ALL)
    assert {name: read_parquet(version)[0][name] for name in row} == row
    assert {name: read_jsonl(version)[0][name] for name in row} == row
    assert {name: read_csv(version)[0][name] for name in row} == {
        **{"trial_probability": "0.25", "trial_percentile": "50.0", "trial_reasons": "a | b", "trial_version": "4"},
    }
    assert "trial_probability" in json.loads((version / "schema.json").read_text())["properties"]


def test_numbers_come_back_exactly(made: Make, tmp_path: Path) -> None:
    shares = [0.1 + 0.2, 1e-17, 5e-324, 1 / 3]
    rows = [{"user_id": f"u{i}", "churn_probability": share} for i, share in enumerate(shares)]
    version = deliver(made(*rows), tmp_path, ALL)
    for found in (read_csv(version), read_parquet(version), read_jsonl(version)):
        assert [float(row["churn_probability"]) for row in found] == shares


# --- the manifest ---


def test_a_manifest_says_what_the_release_says_and_describes_the_files(made: Make, tmp_path: Path) -> None:
    release = made({"user_id": "ada"}, {"user_id": "ben"}, withheld={"churn": "ECE .08 is above .03"}, version=3)
    found = check_whole(deliver(release, tmp_path))
    assert (found["source"], found["destination"], found["version"], found["users"]) == ("shop", "files", 3, 2)
    assert (found["as_of"], found["schema_version"]) == ("2024-06-30T05:00:00+00:00", "1.4")
    assert found["withheld"] == {"churn": "ECE .08 is above .03"}
    assert {file["path"]: file["rows"] for file in found["files"]} == {
        **{"assignments.csv": 2, "assignments.parquet": 2, "changes.csv": 0, "changes.parquet": 0, "schema.json": None}
    }


def test_a_manifest_keeps_letters_of_every_script(made: Make, tmp_path: Path) -> None:
    version = deliver(made({"segment_name": "Käufer 常客"}), tmp_path)
    assert "Käufer 常客" in (version / "manifest.json").read_bytes().decode()


# --- changes ---

FEED = [
    {"version": 1, "user_id": "ada"},
    {"version": 2, "user_id": "ben"},
    {"version": 3, "user_id": "ada", "change": "left", "reason": "behaviour"},
]


def test_changes_are_those_since_the_version_that_the_folder_held(made: Make, tmp_path: Path) -> None:
    first = deliver(made({}, version=1, changes=FEED[:1]), tmp_path, ALL)
    third = deliver(made({}, version=3, changes=FEED), tmp_path, ALL)
    assert (manifest(first)["changes_since"], manifest(third)["changes_since"]) == (0, 1)
    assert [row["user_id"] for row in read_csv(first, "changes")] == ["ada"]
    for rows in (read_csv(third, "changes"), read_parquet(third, "changes"), read_jsonl(third, "changes")):
        assert [(row["user_id"], row["change"]) for row in rows] == [("ben", "entered"), ("ada", "left")]


def test_a_lake_that_began_anew_has_changes_from_nothing(made: Make, tmp_path: Path) -> None:
    deliver(made({}, version=7, changes=FEED), tmp_path)
    again = deliver(made({}, version=3, changes=FEED), tmp_path)
    assert (manifest(again)["changes_since"], len(read_csv(again, "changes"))) == (0, 3)


def test_another_format_of_the_same_version_has_the_same_changes(made: Make, tmp_path: Path) -> None:
    deliver(made({}, version=1, changes=FEED[:1]), tmp_path)
    release = made({}, version=3, changes=FEED)
    deliver(release, tmp_path, ["csv"])
    both = deliver(release, tmp_path, ["csv", "jsonl"])
    assert (manifest(both)["changes_since"], len(read_jsonl(both, "changes"))) == (1, 2)


# --- versions over time ---


def test_the_latest_is_switched_and_the_version_before_stays(made: Make, tmp_path: Path) -> None:
    first = deliver(made({}), tmp_path)
    assert (tmp_path / "latest").resolve() == first
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    second = deliver(made({}, version=2, as_of=LATER), tmp_path)
    assert (tmp_path / "latest").resolve() == second
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before
    assert names(tmp_path) == {first.name, second.name, "latest"}


def test_the_latest_is_what_was_published_last_even_of_an_earlier_instant(made: Make, tmp_path: Path) -> None:
    deliver(made({}, as_of=LATER), tmp_path)
    again = deliver(made({}, version=2), tmp_path)
    assert (tmp_path / "latest").resolve() == again


def test_the_latest_link_survives_a_move_of_the_folder(made: Make, tmp_path: Path) -> None:
    deliver(made({}), tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert [row["user_id"] for row in read_csv(tmp_path / "moved/latest")] == ["ada"]


def test_a_reader_of_the_version_before_reads_on(made: Make, tmp_path: Path) -> None:
    deliver(made({"user_id": "ada"}), tmp_path)
    with (tmp_path / "latest/assignments.csv").open("rb") as opened:
        deliver(made({"user_id": "ben"}, version=2), tmp_path)
        assert b"ada" in opened.read()


def test_the_same_version_again_changes_nothing(made: Make, tmp_path: Path) -> None:
    first = deliver(made({"user_id": "ada"}, {"user_id": "ben"}), tmp_path)
    written = {file: file.stat().st_mtime_ns for file in [*first.iterdir(), tmp_path / "latest"]}
    again = files_in(tmp_path).deliver(made({"user_id": "ben"}, {"user_id": "ada"}))
    assert (again.state, again.where, again.count) == ("unchanged", str(first), 2)
    assert {file: file.stat().st_mtime_ns for file in [*first.iterdir(), tmp_path / "latest"]} == written


def test_the_same_rows_are_the_same_bytes_elsewhere(made: Make, tmp_path: Path) -> None:
    here = deliver(made({"user_id": "ada"}, {"user_id": "ben"}), tmp_path / "a", ALL)
    there = deliver(made({"user_id": "ben"}, {"user_id": "ada"}), tmp_path / "b", ALL)
    assert here.name == there.name
    assert {file.name: file.read_bytes() for file in here.iterdir()} == {
        file.name: file.read_bytes() for file in there.iterdir()
    }


def test_a_version_is_whole_where_the_link_was_lost(made: Make, tmp_path: Path) -> None:
    version = deliver(made({}), tmp_path)
    (tmp_path / "latest").unlink()
    assert deliver(made({}), tmp_path) == version
    assert (tmp_path / "latest").resolve() == version


def test_a_folder_of_the_first_release_goes_on(made: Make, tmp_path: Path) -> None:
    old = tmp_path / "2024-06-29T050000Z-0123456789ab"
    old.mkdir()
    (old / "assignments.csv").write_text("user_id,segment_id\nada,s1\nben,s1\n")
    said = {"schema_version": "1.2", "name": "shop", "as_of": "2024-06-29T05:00:00+00:00", "users": 2, "segments": []}
    files = [{"path": "assignments.csv", "rows": 2, "bytes": 1, "sha256": "x"}]
    (old / "manifest.json").write_text(json.dumps(said | {"files": files}))
    (tmp_path / "latest").symlink_to(old.name)
    assert manifest(deliver(made({}), tmp_path))["changes_since"] == 0
    assert files_in(tmp_path).forget({"ada": ["s1"]}) == 2
    assert not old.exists()
    [rewritten] = tmp_path.glob("2024-06-29*")
    assert (rewritten / "assignments.csv").read_text() == "user_id,segment_id\nben,s1\n"


def test_a_storage_that_never_answers_is_not_waited_for(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "ANSWER_S", 0.3)
    keys = {"access_key": "a", "secret_key": "b"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        section: dict[str, Any] = {"folder": "s3://bucket/out", "endpoint_url": endpoint, "region": "eu-central-1"}
        section |= {name: {"env": name.upper()} for name in keys}
        files = FilesSettings.model_validate(section).connect("files", keys, tmp_path, tmp_path)
        began_s = time.monotonic()
        with pytest.raises(DestinationError) as caught:
            files.deliver(made({}))
    assert time.monotonic() - began_s < 5
    assert_documented("object storage that never answers", str(caught.value).replace("0.3 s", "600 s"))


# --- user ids ---

ODD = [
    *("001", "1.0", "1e5", "NA", "null", "NULL", " a ", "a,b", 'a"b', '"', "'a'", "a|b", "#a", "\\", "\\N", "\ufeffa"),
    *("=1+1", "+1", "-1", "@a", "\t=1"),  # what a spreadsheet would run
    *("a\nb", "a\rb", "a\r\nb", "\n", "😀", "\u00e9", "e\u0301", "\u2028", "\x85", "\x1f"),
]


def test_odd_user_ids_survive(made: Make, tmp_path: Path) -> None:
    version = deliver(made(*({"user_id": user} for user in ODD)), tmp_path, ALL)
    for rows in (read_csv(version), read_parquet(version), read_jsonl(version)):
        assert [row["user_id"] for row in rows] == sorted(ODD)
    kept = FilesSettings(folder=str(tmp_path), formulas="keep").connect("files", {}, tmp_path, tmp_path)
    version = Path(kept.deliver(made(*({"user_id": user} for user in ODD))).where)
    found = pd.read_csv(version / "assignments.csv", dtype={"user_id": "str"}, keep_default_na=False)
    assert found["user_id"].tolist() == sorted(ODD)


def test_what_a_spreadsheet_would_run_is_escaped_in_csv_alone(made: Make, tmp_path: Path) -> None:
    row = {"user_id": "=1+1", "churn_reasons": ["-1", "b"], "segment_strength": -0.5}
    version = deliver(made(row, changes=[{"user_id": "=1+1"}]), tmp_path, ALL)
    [found] = csv.DictReader((version / "assignments.csv").read_text().splitlines())
    assert (found["user_id"], found["churn_reasons"], found["segment_strength"]) == ("'=1+1", "'-1 | b", "-0.5")
    assert "'=1+1" in (version / "changes.csv").read_text()
    assert [rows[0]["user_id"] for rows in (read_parquet(version), read_jsonl(version))] == ["=1+1"] * 2


def test_a_version_is_written_anew_where_formulas_are_to_be_kept_or_no_longer(made: Make, tmp_path: Path) -> None:
    release = made({"user_id": "=1+1"})
    first = deliver(release, tmp_path)
    kept = FilesSettings(folder=str(tmp_path), formulas="keep").connect("files", {}, tmp_path, tmp_path)
    assert kept.deliver(release).state == "released"
    assert kept.deliver(release).state == "unchanged"
    assert "=1+1" in {row["user_id"] for row in read_csv((tmp_path / "latest").resolve())}
    assert deliver(release, tmp_path) == first


@given(
    users=st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=8)
)
@law(3)
def test_every_user_id_survives_publishing_and_the_forgetting_of_another(
    made: Make, tmp_path: Path, users: set[str]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        folder = Path(name)
        version = deliver(made(*({"user_id": user} for user in users)), folder, ALL)
        for rows in (read_csv(version), read_parquet(version), read_jsonl(version)):
            assert [row["user_id"] for row in rows] == sorted(users)
        forgotten, *others = sorted(users)
        assert files_in(folder).forget({forgotten: []}) == 1
        version = (folder / "latest").resolve()
        for rows in (read_csv(version), read_parquet(version), read_jsonl(version)):
            assert [row["user_id"] for row in rows] == others


# --- forgetting ---


def test_who_is_escaped_is_forgotten_and_nobody_like_them(made: Make, tmp_path: Path) -> None:
    version = deliver(made({"user_id": "=1"}, {"user_id": "'=1"}, {"user_id": "ben"}), tmp_path, ALL)
    assert files_in(tmp_path).forget({"=1": ["s1"]}) == 1
    version = (tmp_path / "latest").resolve()
    for rows in (read_csv(version), read_parquet(version), read_jsonl(version)):
        assert [row["user_id"] for row in rows] == ["'=1", "ben"]
    assert check_whole(version)["users"] == 2


def test_a_forgotten_user_is_in_no_file_of_any_version(made: Make, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"user_id": "ada-secret", "rule_segments": ["at_risk"]}, {"user_id": "ben"}]
    feed = [{"user_id": "ada-secret"}, {"user_id": "ben"}]
    first = deliver(made(*rows, changes=feed), tmp_path, ALL)
    second = deliver(made(*rows, version=2, as_of=LATER), tmp_path, ALL)
    assert files_in(tmp_path).forget({"ada-secret": ["s1", "at_risk"], "cat": []}) == 2
    versions = sorted(path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink())
    assert len(versions) == 2
    assert not {first, second} & set(versions)
    assert (tmp_path / "latest").resolve() == versions[1]
    for version in versions:
        assert b"ada-secret" not in b"".join(file.read_bytes() for file in version.iterdir())
        found = check_whole(version)
        assert (found["users"], found["erased"], found["rule_segments"]) == (1, 1, {})
        assert found["segments"] == [{"segment_id": "s1", "segment_name": "Loyal", "users": 1}]
    assert [row["user_id"] for row in read_csv(versions[0], "changes")] == ["ben"]


@pytest.mark.parametrize("form", ALL)
def test_counts_are_right_afterwards_in_every_format(made: Make, tmp_path: Path, form: Format) -> None:
    scored = {
        "churn_probability": 0.25,
        "churn_version": 3,
        "churn_reasons": ["a"],
        "rule_segments": ["at_risk", "new"],
    }
    deliver(made(scored, scored | {"user_id": "ben", "rule_segments": ["new"]}), tmp_path, [form])
    assert files_in(tmp_path, [form]).forget({"ada": ["s1"]}) == 1
    found = check_whole((tmp_path / "latest").resolve())
    assert (found["users"], found["scored"]["churn"], found["rule_segments"]) == (1, 1, {"new": 1})


def test_versions_without_the_forgotten_stay_as_they_are(made: Make, tmp_path: Path) -> None:
    first = deliver(made({"user_id": "ada"}), tmp_path)
    second = deliver(made({"user_id": "ben"}, version=2), tmp_path)
    assert files_in(tmp_path).forget({"ada": ["s1"]}) == 1
    assert not first.exists()
    assert (tmp_path / "latest").resolve() == second
    assert files_in(tmp_path).forget({"ada": ["s1"]}) == 0


def test_forgetting_changes_nothing_else_in_a_file(made: Make, tmp_path: Path) -> None:
    others = [{"user_id": user, "runner_up_segment_id": ""} for user in ODD]
    alone = deliver(made(*others), tmp_path / "alone", ALL)
    deliver(made(*others, {"user_id": "ada"}), tmp_path / "with", ALL)
    files_in(tmp_path / "with").forget({"ada": []})
    for name in ("assignments.csv", "assignments.jsonl"):
        assert (tmp_path / "with/latest" / name).read_bytes() == (alone / name).read_bytes()
    left = pq.read_table(tmp_path / "with/latest/assignments.parquet")
    assert left.equals(pq.read_table(alone / "assignments.parquet"), check_metadata=True)


def test_the_version_that_someone_was_erased_from_is_not_delivered_again(made: Make, tmp_path: Path) -> None:
    release = made({"user_id": "ada"}, {"user_id": "ben"})
    deliver(release, tmp_path)
    files_in(tmp_path).forget({"ada": ["s1"]})
    assert files_in(tmp_path).deliver(release).state == "unchanged"


def test_forgetting_where_nothing_was_ever_published_does_nothing(tmp_path: Path) -> None:
    assert files_in(tmp_path / "never").forget({"ada": []}) == 0
    assert not (tmp_path / "never").exists()


def test_forgetting_that_was_killed_before_the_old_version_went_is_finished(made: Make, tmp_path: Path) -> None:
    release = made({"user_id": "ada"}, {"user_id": "ben"})
    old = deliver(release, tmp_path)
    files_in(tmp_path).forget({"ada": []})
    fresh = (tmp_path / "latest").resolve()
    (tmp_path / "latest").unlink()
    deliver(release, tmp_path)  # as if it had been killed before it switched
    assert names(tmp_path) == {old.name, fresh.name, "latest"}
    assert files_in(tmp_path).forget({"ada": []}) == 1
    assert names(tmp_path) == {fresh.name, "latest"}
    assert (tmp_path / "latest").resolve() == fresh


# --- object storage ---


def files_at(bucket: Bucket, local: Path, **changed: Any) -> Files:
    section = FilesSettings.model_validate(bucket.settings | {"formats": ALL} | changed)
    return section.connect("files", S3_KEYS, local, local)


def pointed(bucket: Bucket) -> tuple[str, dict[str, Any]]:
    """Read as a reader does: the pointer first, then what it names; check it against its manifest."""
    root = f"{bucket.name}/out"
    pointer = json.loads(bucket.files.cat_file(f"{root}/latest.json"))
    found: dict[str, Any] = json.loads(bucket.files.cat_file(f"{root}/{pointer['manifest']}"))
    for file in found["files"]:
        content = bucket.files.cat_file(f"{root}/{pointer['version']}/{file['path']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    return pointer["version"], found


def test_a_bucket_has_the_same_files_as_a_folder(made: Make, tmp_path: Path, bucket: Bucket) -> None:
    release = made({"user_id": "ada"}, {"user_id": "ben"}, changes=FEED)
    local = deliver(release, tmp_path / "here", ALL)
    delivery = files_at(bucket, tmp_path).deliver(release)
    version, found = pointed(bucket)
    assert (delivery.state, delivery.where) == ("released", f"s3://{bucket.name}/out/{version}")
    assert (version, found) == (local.name, manifest(local))
    assert names(tmp_path) == {"here"}


def test_the_same_version_again_writes_nothing_to_a_bucket(made: Make, tmp_path: Path, bucket: Bucket) -> None:
    files_at(bucket, tmp_path).deliver(made({}))
    written = bucket.files.find(bucket.name, detail=True)
    assert files_at(bucket, tmp_path).deliver(made({})).state == "unchanged"
    assert bucket.files.find(bucket.name, detail=True) == written


def test_the_pointer_goes_to_the_next_version_and_the_one_before_stays(
    made: Make, tmp_path: Path, bucket: Bucket
) -> None:
    files_at(bucket, tmp_path).deliver(made({}, changes=FEED))
    first, _ = pointed(bucket)
    files_at(bucket, tmp_path).deliver(made({}, version=3, changes=FEED))
    second, found = pointed(bucket)
    assert (found["version"], found["changes_since"]) == (3, 1)
    assert first != second
    assert bucket.files.exists(f"{bucket.name}/out/{first}/manifest.json")


def test_what_a_killed_process_left_in_a_bucket_goes_and_nothing_else(
    made: Make, tmp_path: Path, bucket: Bucket
) -> None:
    half, other = "2024-06-30T050000Z-0123456789ab", "someone-elses"
    for folder in (half, other):
        bucket.files.pipe_file(f"{bucket.name}/out/{folder}/assignments.csv", b"half")
    files_at(bucket, tmp_path).deliver(made({}))
    version, _ = pointed(bucket)
    assert {path.rpartition("/")[2] for path in bucket.files.ls(f"{bucket.name}/out", detail=False)} == {
        *(version, other, "latest.json")
    }


def test_a_forgotten_user_is_in_no_object(made: Make, tmp_path: Path, bucket: Bucket) -> None:
    files = files_at(bucket, tmp_path, formats=["csv"])
    files.deliver(made({"user_id": "ada-secret"}, {"user_id": "ben"}))
    files.deliver(made({"user_id": "ada-secret"}, {"user_id": "ben"}, version=2, as_of=LATER))
    assert files.forget({"ada-secret": ["s1"]}) == 2
    assert pointed(bucket)[1]["users"] == 1
    contents = [bucket.files.cat_file(path) for path in bucket.files.find(bucket.name)]
    assert len(contents) == 2 * 4 + 1
    assert b"ada-secret" not in b"".join(contents)


# --- failures: one line, and the published state is the old one ---


@contextmanager
def files_no_larger_than(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_somebody_else(folder: Path) -> Iterator[None]:
    """Take the right to write to a folder."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Lend a folder that every user can see."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("form", ALL)
def test_a_disk_that_takes_no_more_leaves_the_version_before(made: Make, tmp_path: Path, form: Format) -> None:
    version = deliver(made({}), tmp_path, [form])
    many = made(*({"user_id": hashlib.sha256(b"%d" % i).hexdigest()} for i in range(3000)), version=2)
    with files_no_larger_than(64_000), pytest.raises(DestinationError) as raised:
        files_in(tmp_path, [form]).deliver(many)
    assert "\n" not in str(raised.value)
    assert "publish again" in str(raised.value)
    assert names(tmp_path) == {version.name, "latest"}
    assert (tmp_path / "latest").resolve() == version
    deliver(many, tmp_path, [form])


def test_a_folder_that_may_not_be_written_leaves_the_version_before(made: Make, open_folder: Path) -> None:
    version = deliver(made({}), open_folder)
    again = made({}, version=2)
    with as_somebody_else(open_folder), pytest.raises(DestinationError, match="no permission; allow this user"):
        files_in(open_folder).deliver(again)
    assert (open_folder / "latest").resolve() == version
    assert names(open_folder) == {version.name, "latest"}


def test_a_folder_in_the_latests_place_is_left_alone(made: Make, tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(DestinationError, match="latest: is in the way, since it is no link; move it"):
        files_in(tmp_path).deliver(made({}))
    assert names(tmp_path) == {"latest"}


def test_a_file_in_the_folders_place_is_left_alone(made: Make, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DestinationError, match="out: "):
        files_in(tmp_path / "out").deliver(made({}))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_manifest_that_someone_changed_is_told(made: Make, tmp_path: Path) -> None:
    version = deliver(made({}), tmp_path)
    (version / "manifest.json").write_text("{")
    with pytest.raises(DestinationError, match=r"manifest.json: is not what was written"):
        files_in(tmp_path).deliver(made({}, version=2))


def test_rows_without_a_column_leave_nothing(made: Make, tmp_path: Path) -> None:
    release = made({})
    with pytest.raises(ContractError, match="runner_up_segment_id is missing"):
        files_in(tmp_path).deliver(replace(release, rows=release.rows.drop("runner_up_segment_id")))
    assert names(tmp_path) == set()


def test_wrong_credentials_leave_the_version_before(made: Make, tmp_path: Path, bucket: Bucket) -> None:
    files_at(bucket, tmp_path).deliver(made({}))
    before = pointed(bucket)
    with enforce_permissions(), pytest.raises(DestinationError) as raised:
        files_at(bucket, tmp_path).deliver(made({}, version=2))
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith(f"s3://{bucket.name}/out: ")
    assert "check the address, that the bucket is there, and that the credentials may read and write it" in said
    assert S3_KEYS["secret_key"] not in said
    assert pointed(bucket) == before


def test_a_bucket_that_is_not_there_is_told(made: Make, tmp_path: Path, bucket: Bucket) -> None:
    with pytest.raises(DestinationError, match=r"^s3://no-such-bucket/out: The specified bucket does not exist; check"):
        files_at(bucket, tmp_path, folder="s3://no-such-bucket/out").deliver(made({}))
    assert names(tmp_path) == set()


def test_an_address_that_nobody_knows_is_told(made: Make, tmp_path: Path) -> None:
    files = FilesSettings(folder="foo://bar").connect("files", {}, tmp_path, tmp_path)
    with pytest.raises(DestinationError, match=r"^foo://bar: .*foo"):
        files.deliver(made({}))


# --- killed ---

PUBLISHER = """
import sys
sys.path[:0] = ["tests"]
from itertools import count
from pathlib import Path
from features import engines
from test_files import files_in, made
make = made.__wrapped__(engines.connect())
for version in count(int(sys.argv[2])):
    users = [{"user_id": f"user-{i}"} for i in range(2000 + version % 7)]
    files_in(Path(sys.argv[1])).deliver(make(*users, version=version))
    print(version, flush=True)
"""


@pytest.mark.slow
def test_readers_that_poll_see_whole_versions_while_publishers_are_killed(made: Make, tmp_path: Path) -> None:
    seen, version = 0, 0
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path), str(version + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as publisher:
        assert publisher.stdout is not None
        publisher.stdout.readline()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            found = check_whole((tmp_path / "latest").resolve())
            assert found["version"] >= version
            assert found["users"] == 2000 + found["version"] % 7
            version, seen = found["version"], seen + 1
        publisher.send_signal(signal.SIGKILL)
    assert seen > 2
    check_whole((tmp_path / "latest").resolve())
    last = deliver(made({}, version=version + 1000), tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    assert (tmp_path / "latest").resolve() == last


# --- settings ---


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({}, "folder"),
        ({"folder": "out", "formats": []}, "at least 1 item"),
        ({"folder": "out", "formats": ["xml"]}, "'parquet', 'csv' or 'jsonl'"),
        ({"folder": "out", "region": "eu-central-1"}, "region is for a folder s3://bucket/prefix"),
        ({"folder": "s3://b/p", "access_key": {"env": "A"}}, "give both access_key and secret_key, or neither"),
        ({"folder": "s3://b/p", "access_key": "AKIA", "secret_key": "x"}, "access_key"),
    ],
)
def test_settings_that_are_refused(section: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        FilesSettings.model_validate(section)


def test_a_folder_is_relative_to_the_configuration(made: Make, tmp_path: Path) -> None:
    files = FilesSettings(folder="out").connect("files", {}, tmp_path, tmp_path / "lake")
    assert Path(files.deliver(made({})).where).parent == tmp_path / "out"
    assert FilesSettings(folder="out", formats=["csv", "csv"]).formats == ["csv"]
