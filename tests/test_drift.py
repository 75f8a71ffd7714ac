"""Drift: columns that are of another kind in later files, or further down in one."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from messages import assert_documented

from features.events import EVENTS
from features.lake import Lake
from features.sources import SourceError
from flows.ingest import Ingested, accept_files

pytestmark = pytest.mark.ci

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
name = "shop"
[events]
files = "FILES"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
"""
KINDS: dict[str, Any] = {"text": "x", "object": {"a": 1}, "other object": {"b": "t"}, "list": [1, 2], "number": 1.5}
TEXTS = {"text": "x", "object": '{"a":1}', "other object": '{"b":"t"}', "list": "[1,2]", "number": "1.5"}


def put(folder: Path, name: str, *values: Any, **more: Any) -> None:
    """Write a file of an event for each value of the column `what`."""
    rows = [
        {"user": "ada", "at": f"2024-03-01 10:{number // 60:02}:{number % 60:02}", "event": name, "what": value} | more
        for number, value in enumerate(values)
    ]
    if name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)


def ingest(folder: Path, columns: str = "", files: str = "*.*") -> Ingested:
    (folder / "habitus.toml").write_text(CONFIG.replace("FILES", files) + columns)
    return accept_files.fn(str(folder / "habitus.toml"), NOW, False)


def stored(folder: Path, column: str) -> list[Any]:
    with Lake(folder / "lake") as lake:
        events = lake.read(EVENTS).order_by("event_name", "occurred_at").to_pyarrow()
    return list(events[column].to_pylist())


MAPPED = 'page = "what"\nitem_id = { sql = "what::varchar" }\n'


@pytest.mark.parametrize("first", ["object", "text", "list"])
def test_a_column_of_json_lines_that_drifts_is_read_as_its_text(tmp_path: Path, first: str) -> None:
    put(tmp_path, "0.jsonl", KINDS[first])
    ingest(tmp_path, MAPPED, "*.jsonl")
    others = [kind for kind in KINDS if kind != first]
    for number, kind in enumerate(others, start=1):
        put(tmp_path, f"{number}.jsonl", KINDS[kind])

    assert ingest(tmp_path, MAPPED, "*.jsonl").accepted == 5
    assert stored(tmp_path, "page") == [TEXTS[kind] for kind in (first, *others)]


def test_a_column_of_parquet_that_drifts_is_read_as_its_text(tmp_path: Path) -> None:
    put(tmp_path, "0.parquet", KINDS["object"])
    ingest(tmp_path, 'page = "what"\n', "*.parquet")
    for number, kind in enumerate(("text", "list", "number"), start=1):
        put(tmp_path, f"{number}.parquet", KINDS[kind])

    assert ingest(tmp_path, 'page = "what"\n', "*.parquet").accepted == 4
    assert stored(tmp_path, "page") == [TEXTS[kind] for kind in ("object", "text", "list", "number")]


def test_drift_deep_in_one_file_is_read_as_text(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", *[KINDS["object"]] * 3000, "x")

    assert ingest(tmp_path, 'page = "what"\n', "*.jsonl").accepted == 3001
    assert set(stored(tmp_path, "page")) == {TEXTS["object"], "x"}


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_drift_of_a_column_that_is_not_mapped_is_no_matter(tmp_path: Path, end: str) -> None:
    columns = 'page = { sql = "upper(event)" }\n'
    put(tmp_path, f"object.{end}", KINDS["object"])
    ingest(tmp_path, columns, f"*.{end}")
    for kind in KINDS:
        put(tmp_path, f"{kind}.{end}", KINDS[kind])

    assert ingest(tmp_path, columns, f"*.{end}").accepted == len(KINDS)


def complaint(folder: Path, columns: str, files: str) -> str:
    with pytest.raises(SourceError) as caught:
        ingest(folder, columns, files)
    return str(caught.value)


NESTED = 'item_id = "what.a"\n'


def test_a_line_in_which_an_object_of_a_mapped_field_is_text_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", KINDS["object"], None, KINDS["object"], "ada@example.com")

    said = complaint(tmp_path, NESTED, "*.jsonl")
    assert_documented("in one line of JSON, the object of a mapped field is text", said)
    optional = 'item_id = { column = "what.a", optional = true }\n'
    assert ingest(tmp_path, optional, "*.jsonl").accepted == 4
    assert stored(tmp_path, "item_id") == ["1", None, "1", None]


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_a_later_file_whose_object_of_a_mapped_field_is_text_is_named(tmp_path: Path, end: str) -> None:
    put(tmp_path, f"a.{end}", KINDS["object"])
    ingest(tmp_path, NESTED, f"*.{end}")
    put(tmp_path, f"b.{end}", "x")

    said = complaint(tmp_path, NESTED, f"*.{end}").replace(f"b.{end}", "b")
    assert_documented("in a later file, the object of a mapped field is text", said)
    assert stored(tmp_path, "item_id") == ["1"]


def test_types_that_drift_read_earlier_files_again_once_only(tmp_path: Path) -> None:
    columns = 'item_id = { sql = "what::varchar" }\n'
    for number, kind in enumerate(("object", "text", "text")):
        put(tmp_path, f"{number}.jsonl", KINDS[kind])
        said = ingest(tmp_path, columns, "*.jsonl")
    assert said.batch.files == 1


@pytest.mark.parametrize(
    ("end", "how"), [("jsonl", "at once"), ("parquet", "at once"), ("csv", "at once"), ("jsonl", "later")]
)
def test_a_file_without_the_column_of_users_is_named(tmp_path: Path, end: str, how: str) -> None:
    lines = {"a": "user,at,event\nada,2024-03-01,x\n", "b": "at,event\n2024-03-02,x\n"}
    for name, text in lines.items():
        if name == "b" and how == "later":
            ingest(tmp_path, files=f"*.{end}")
        if end == "csv":
            (tmp_path / f"{name}.csv").write_text(text)
        elif end == "jsonl":
            user = '"user":"ada",' if name == "a" else ""
            (tmp_path / f"{name}.jsonl").write_text(f'{{{user}"at":"2024-03-01","event":"x"}}\n')
        else:
            rows = {"user": ["ada"], "at": ["2024-03-01"], "event": ["x"]}
            pq.write_table(pa.table(rows if name == "a" else {"at": ["2024"], "event": ["x"]}), tmp_path / "b.parquet")
            pq.write_table(pa.table(rows), tmp_path / "a.parquet")

    said = complaint(tmp_path, "", f"*.{end}")
    assert said.startswith(f"events.columns.user_id: b.{end} has no ")
    assert "'user', which " in said
    if end == "jsonl":
        assert_documented("a file of JSON lines has no field for the user", said)


def test_a_users_file_of_json_lines_without_ids_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "x")
    (tmp_path / "u1.jsonl").write_text('{"id":"ada","plan":"pro"}\n')
    (tmp_path / "u2.jsonl").write_text('{"plan":"free"}\n')
    users = '[users]\nfiles = "u*.jsonl"\nuser_id = "id"\nattributes = ["plan"]\n'

    assert complaint(tmp_path, users, "*.parquet").startswith("users.user_id: u2.jsonl has no field 'id'")
