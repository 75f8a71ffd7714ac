"""What is said of a broken lake: table, file, and what mends it."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import ibis
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from messages import assert_documented

from features.damage import DamagedError, check, find_damage
from features.lake import Lake
from features.table import TIME, Table

DAY = datetime(2024, 3, 1, tzinfo=UTC)
COLUMNS = ibis.schema({"user_id": "!string", "as_of": TIME.copy(nullable=False), "version": "!int64"})
NAMES = (
    *("events", "rejected", "files", "attributes", "sessions", "session_aliases", "snapshots", "labels"),
    *("assignments", "changes", "versions", "released", "audiences", "held", "erasures"),
)
CHANGING = ("events", "sessions", "changes", "versions", "released", "audiences")
ORIGINS: dict[str, Callable[[int], dict[str, int]]] = {
    "sessions": lambda number: {"events_version": number - 1},
    "audiences": lambda number: {"version": number, "released": number - 1},
}


def table_of(name: str) -> Table:
    partition = "as_of" if name in ("snapshots", "labels", "assignments", "changes") else None
    return Table(name, COLUMNS, key=("user_id",), partition="day of as_of" if name == "events" else partition)


def write(lake: Lake, name: str, number: int, **origin: int) -> None:
    rows = [{"user_id": f"user {user}", "as_of": DAY, "version": number} for user in range(100)]
    lake.write(
        table_of(name), ibis.memtable(pa.Table.from_pylist(rows, schema=COLUMNS.to_pyarrow())), origin=origin or None
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all tables, and some of them three times."""
    folder = tmp_path_factory.mktemp("made") / "lake"
    with Lake(folder) as lake:
        for number in (1, 2, 3):
            for name in NAMES if number == 1 else CHANGING:
                write(lake, name, number, **(ORIGINS[name](number) if name in ORIGINS else {}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "lake"))


def data(table: Path) -> Path:
    [path] = pa.table(DeltaTable(str(table)).get_add_actions())["path"].to_pylist()
    return table / str(path)


def last(table: Path) -> Path:
    return table / "_delta_log" / f"{2:020}.json"


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_last_byte(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def blank(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def blank_some(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:20] + bytes(20) + content[40:])


def put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def garble(file: Path) -> None:
    file.write_text("garbage\n")


def put_list(file: Path) -> None:
    file.write_text("[]\n")


def found_in(folder: Path) -> str:
    """Return what is said of a lake, as whoever opens it or fails to read it is told."""
    try:
        check(folder, "habitus.toml")
    except DamagedError as error:
        return str(error)
    return str(find_damage(folder, "habitus.toml", in_content=True))


def test_nothing_is_said_of_a_lake_that_is_whole(folder: Path) -> None:
    check(folder, "habitus.toml")
    assert find_damage(folder, "habitus.toml", in_content=True) is None


DAMAGES = (Path.unlink, cut, cut_last_byte, blank, blank_some, garble, put_folder)


@pytest.mark.parametrize(("name", "damage"), [*((name, cut) for name in NAMES), *(("events", one) for one in DAMAGES)])
def test_a_broken_file_of_a_table_is_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    file = data(folder / name)
    damage(file)
    assert found_in(folder).startswith(f"{name}: {file} is ")


@pytest.mark.parametrize("damage", [cut, blank, garble, put_list])
def test_a_broken_entry_of_a_log_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    file = last(folder / "changes")
    damage(file)
    assert found_in(folder).startswith(f"changes: {file} is broken: ")


@pytest.mark.parametrize("damage", [Path.unlink, put_folder, lambda file: file.write_text("")])
def test_an_entry_that_is_read_as_if_it_were_nothing_is_named_by_whoever_opens_the_lake(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    file = folder / "events" / "_delta_log" / f"{1:020}.json"
    damage(file)
    with pytest.raises(DamagedError, match=f"^events: {file} is (missing|no file|empty): put it back from a backup"):
        check(folder, "habitus.toml")


@pytest.mark.parametrize("name", ["changes", "versions", "released", "audiences"])
@pytest.mark.parametrize("part", [".", "_delta_log"])
def test_a_table_that_nothing_can_make_again_is_missed(folder: Path, name: str, part: str) -> None:
    shutil.rmtree(folder / name / part)
    with pytest.raises(DamagedError, match=rf"^{name}: .* is missing or empty: .*; nothing else can make it again$"):
        check(folder, "habitus.toml")


def test_who_was_erased_is_missed_where_a_receipt_says_that_somebody_was(folder: Path) -> None:
    shutil.rmtree(folder / "erasures")
    check(folder, "habitus.toml")  # nobody was
    (folder / "receipts").mkdir()
    (folder / "receipts" / "2024.json").write_text(json.dumps({"completed_at": "2024-03-01T00:00:00Z"}))
    with pytest.raises(DamagedError, match=r"^erasures: .* is missing or empty: "):
        check(folder, "habitus.toml")


def test_a_first_publish_that_was_killed_is_no_damage(tmp_path: Path) -> None:
    with Lake(tmp_path / "lake") as lake:
        lake.claim(table_of("audiences"))
        write(lake, "changes", 1)
        write(lake, "versions", 1)
        (tmp_path / "lake" / "released").mkdir()
    check(tmp_path / "lake", "habitus.toml")


def test_a_table_whose_first_commit_was_killed_was_never_written(tmp_path: Path) -> None:
    (tmp_path / "events" / "_delta_log").mkdir(parents=True)
    check(tmp_path, "habitus.toml")
    assert find_damage(tmp_path, "habitus.toml", in_content=True) is None
    with Lake(tmp_path) as lake:
        assert lake.tables() == []


def test_a_log_that_ends_before_what_another_table_was_made_of_is_named(folder: Path) -> None:
    last(folder / "released").unlink()
    assert found_in(folder).startswith(
        f"released: {folder}/released/_delta_log ends with version 1, and audiences name"
    )


def test_a_present_version_that_is_not_there_is_missed(folder: Path) -> None:
    last(folder / "versions").unlink()
    assert found_in(folder).startswith(f"versions: {folder}/versions/_delta_log lacks version 3, which is the present")


def test_a_file_that_only_earlier_sessions_were_made_of_may_be_removed(folder: Path) -> None:
    file = data(folder / "events")
    with Lake(folder) as lake:
        write(lake, "events", 4)
    cut(file)
    assert found_in(folder).endswith(
        "remove it, and run `habitus sessions habitus.toml`: only sessions of before were made of it"
    )


def test_a_hint_at_a_checkpoint_that_is_not_there_may_be_removed(folder: Path) -> None:
    hint = folder / "events" / "_delta_log" / "_last_checkpoint"
    hint.write_text('{"version": 700, "size": 3}')
    assert "remove it: the log says the same without it" in found_in(folder)
    hint.unlink()
    assert find_damage(folder, "habitus.toml", in_content=True) is None


def test_a_broken_checkpoint_may_be_removed_while_the_log_has_all_entries(folder: Path) -> None:
    table = folder / "events"
    DeltaTable(str(table)).create_checkpoint()
    [checkpoint] = (table / "_delta_log").glob("*.checkpoint.parquet")
    garble(checkpoint)
    assert f"{checkpoint} is broken: remove it and _last_checkpoint beside it" in found_in(folder)
    checkpoint.unlink()
    (table / "_delta_log" / "_last_checkpoint").unlink()
    assert find_damage(folder, "habitus.toml", in_content=True) is None


def test_a_table_that_is_a_file_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "sessions")
    (folder / "sessions").write_text("")
    assert found_in(folder).startswith(f"sessions: {folder}/sessions is no folder: ")


@pytest.mark.parametrize(
    ("case", "name", "damage"),
    [
        ("a file of events is missing", "events", Path.unlink),
        ("a file of sessions is cut off", "sessions", cut),
        ("a file of session aliases is broken", "session_aliases", garble),
        ("a file of a snapshot is broken", "snapshots", blank),
        ("a file of labels is missing", "labels", Path.unlink),
        ("a file of assignments is broken", "assignments", blank_some),
        ("a file of changes is broken", "changes", garble),
    ],
)
def test_what_mends_it_is_said(folder: Path, case: str, name: str, damage: Callable[[Path], None]) -> None:
    damage(data(folder / name))
    said = found_in(folder).replace(data(folder / name).name, "1f0c.parquet")
    assert_documented(case, said, folder.parent)


@pytest.mark.parametrize("damage", [Path.unlink, cut, blank_some])
def test_to_write_the_same_rows_again_mends_their_files(folder: Path, damage: Callable[[Path], None]) -> None:
    whole = data(folder / "events").read_bytes()
    damage(data(folder / "events"))
    with Lake(folder) as lake:
        assert not lake.version(table_of("events")) > 2
        write(lake, "events", 3)
        assert lake.version(table_of("events")) == 2
    assert data(folder / "events").read_bytes() == whole
