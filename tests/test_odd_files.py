"""Files as they turn up: packed in any way, damaged, changing, and things that are no files."""

import gzip
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from messages import assert_documented

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.increments import update_sessions
from features.lake import Lake
from features.sessions import SESSIONS
from features.snapshots import take_snapshot
from features.sources import SourceError, UnreadableError, read_files
from flows.ingest import Ingested, accept_files

pytestmark = pytest.mark.ci

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GAP = timedelta(minutes=30)
CONFIG = """
name = "shop"
[events]
files = FILES
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
"""
CSV = b"user,at,event\nada,2024-03-01 10:00:00,home\n"
LINES = b'{"user":"ada","at":"2024-03-01 10:00:00","event":"home"}\n'


def ingest(folder: Path, files: str, settings: str = "") -> Ingested:
    text = CONFIG.replace("FILES", json.dumps(files)).replace("[events.columns]", f"{settings}\n[events.columns]")
    (folder / "habitus.toml").write_text(text)
    return accept_files.fn(str(folder / "habitus.toml"), NOW, False)


def complaint(folder: Path, files: str) -> str:
    with pytest.raises(SourceError) as caught:
        ingest(folder, files)
    with Lake(folder / "lake") as lake:
        assert not lake.has(EVENTS)
    return str(caught.value)


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return packed


def test_packed_files_are_read_whatever_the_case_of_their_end(tmp_path: Path) -> None:
    for number, end in enumerate(("gz", "GZ", "zst", "ZST")):
        pack = zstd if end.lower() == "zst" else gzip.compress
        (tmp_path / f"a.csv.{end}").write_bytes(pack(CSV.replace(b"ada", b"csv%d" % number)))
        (tmp_path / f"a.jsonl.{end}").write_bytes(pack(LINES.replace(b"ada", b"json%d" % number)))
    (tmp_path / "b.csv").write_bytes(CSV)
    (tmp_path / "b.jsonl").write_bytes(LINES)

    assert ingest(tmp_path, "*.csv*").accepted == 5
    assert ingest(tmp_path, "*.jsonl*").batch.accepted == 4  # ada is known


@pytest.mark.parametrize("end", ["GZ", "zst"])
def test_a_row_of_a_packed_file_is_found(tmp_path: Path, end: str) -> None:
    content = CSV + b"ada,soon,home\n"
    (tmp_path / f"a.csv.{end}").write_bytes(zstd(content) if end.lower() == "zst" else gzip.compress(content))

    assert f"a.csv.{end}, line 3: a time that could not be read" in complaint(tmp_path, "a.csv*")


@pytest.mark.parametrize("end", ["csv.zst", "jsonl.ZST"])
def test_a_packed_file_that_breaks_off_is_named_and_may_be_skipped(tmp_path: Path, end: str) -> None:
    content = LINES + os.urandom(3000) if "json" in end else CSV + os.urandom(3000)
    (tmp_path / f"b.{end}").write_bytes(zstd(content)[:-20])
    (tmp_path / f"a.{end}").write_bytes(zstd(LINES if "json" in end else CSV))

    assert complaint(tmp_path, f"*.{end}").startswith(f"b.{end}: cannot be read: ")
    assert ingest(tmp_path, f"*.{end}", "skip_unreadable = true").accepted == 1


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing.csv")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def refuse_to_be_read(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


@pytest.mark.skipif(sys.platform != "linux", reason="a file that the system lets nobody read is in /proc")
@pytest.mark.parametrize(
    ("make", "case"),
    [
        (os.mkfifo, "x.csv is a pipe"),
        (link_to_nothing, "x.csv is a link to what is not there"),
        (link_to_itself, None),
        (refuse_to_be_read, "x.csv is a file that the system does not let read"),
    ],
    ids=["pipe", "link", "loop", "unreadable"],
)
def test_what_is_no_file_to_be_read_is_named_and_may_be_skipped(
    tmp_path: Path, make: Callable[[Path], None], case: str | None
) -> None:
    make(tmp_path / "x.csv")
    (tmp_path / "a.csv").write_bytes(CSV)

    said = complaint(tmp_path, "*.csv")
    assert said.startswith("x.csv: cannot be read: ")
    if case:
        assert_documented(case, said)
    assert ingest(tmp_path, "*.csv", "skip_unreadable = true").accepted == 1


def test_a_pipe_for_users_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "users.txt")
    (tmp_path / "a.csv").write_bytes(CSV)
    text = CONFIG.replace("FILES", '"a.csv"') + '[users]\nfiles = "users.txt"\nuser_id = "id"\nattributes = ["plan"]\n'
    (tmp_path / "habitus.toml").write_text(text)

    with pytest.raises(UnreadableError, match=r"^users\.txt: cannot be read: it is no file"):
        accept_files.fn(str(tmp_path / "habitus.toml"), NOW, False)


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()

    assert_documented("x.csv is a folder", complaint(tmp_path, "x.csv"))


@pytest.mark.parametrize("then", ["grows", "vanishes"])
def test_a_file_that_changes_while_it_is_read_is_named_and_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CSV)

    def read_after_change(*arguments: Any, **options: Any) -> Any:
        if then == "grows":
            path.write_bytes(CSV + b"ada,2024-03-01 11:00:00,ho")
        else:
            path.unlink()
        return read_files(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("flows.ingest.read_files", read_after_change)
        said = complaint(tmp_path, "*.csv")
    case = "a file vanishes while it is read" if then == "vanishes" else "a file changes while it is read"
    assert_documented(case, said)
    path.write_bytes(CSV)
    assert ingest(tmp_path, "*.csv").accepted == 1


def test_a_parquet_file_that_names_a_column_twice_is_an_error(tmp_path: Path) -> None:
    arrays = [pa.array([text]) for text in ("ada", "eve", "2024-03-01", "home")]
    pq.write_table(pa.Table.from_arrays(arrays, ["user", "User", "at", "event"]), tmp_path / "a.parquet")

    assert_documented("a Parquet file names a column twice", complaint(tmp_path, "*.parquet"))


def test_a_column_of_times_that_is_all_null_has_no_times(tmp_path: Path) -> None:
    columns = {"user": ["ada"], "at": pa.nulls(1), "event": ["home"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert_documented("the column of times of a Parquet file is null throughout", complaint(tmp_path, "*.parquet"))
    pq.write_table(pa.table(columns | {"at": ["2024-03-01"]}), tmp_path / "b.parquet")

    assert ingest(tmp_path, "*.parquet", "rejected_max = 0.5").rejected == {"no_time": 1}


def test_a_file_of_one_line_that_is_no_row_says_so_in_english(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV[:14] + b"ada\n")

    assert_documented("no line of a file could be read as a row", complaint(tmp_path, "*.csv"))


NAMES = (
    "malformed",
    "row",
    "LINE",
    "source_file",
    "value",
    "attribute",
)


def test_attributes_may_be_called_like_what_habitus_uses_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    (tmp_path / "users.txt").write_text(f"id,{','.join(NAMES)}\nada,{','.join(map(str, range(len(NAMES))))}\n")
    users = f'[users]\nfiles = "users.txt"\nuser_id = "id"\nattributes = {json.dumps(NAMES)}\n'
    (tmp_path / "habitus.toml").write_text(CONFIG.replace("FILES", '"a.csv"') + users)
    accept_files.fn(str(tmp_path / "habitus.toml"), NOW, False)

    with Lake(tmp_path / "lake") as lake:
        update_sessions(lake, GAP)
        tables = lake.read(EVENTS), lake.read(SESSIONS), lake.read(ATTRIBUTES)
        found = take_snapshot(*tables, NOW, gap=GAP, attribute_names=NAMES)
        [row] = found.to_pyarrow().to_pylist()
    assert [row[name] for name in NAMES] == [str(number) for number in range(len(NAMES))]


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_a_column_that_is_called_like_one_that_is_read_beside_it_is_refused(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"a.{end}"
    if end == "parquet":
        pq.write_table(pa.table({"user": ["ada"], "Habitus_Line": ["x"]}), path)
    else:
        path.write_bytes((CSV if end == "csv" else LINES).replace(b"event", b"Habitus_Line"))

    said = complaint(tmp_path, f"*.{end}").replace(f"a.{end}", "a.csv")
    assert_documented("a column is called like one of Habitus' own", said)
