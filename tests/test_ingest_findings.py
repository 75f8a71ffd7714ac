"""What an ingest says of what it read: too many unusable rows, users that are none, names of events, users' files."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.attributes import ATTRIBUTES
from features.event_names import EventName
from features.events import EVENTS
from features.lake import Lake
from features.sources import SourceError
from features.user_match import UsersFound
from flows.ingest import Ingested, accept_files

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
name = "shop"
[events]
files = "*.csv"
SETTINGS
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
revenue = "amount"
"""
USERS = """
[users]
files = "people.txt"
user_id = "id"
attributes = ["plan"]
"""
GOOD = [f"ada,2024-03-01 10:00:0{second},home,1" for second in range(8)]


def put(folder: Path, name: str, *lines: str, header: str = "user,at,event,amount") -> None:
    (folder / name).write_text("\n".join([header, *lines]) + "\n")


def ingest(folder: Path, settings: str = "", more: str = "") -> Ingested:
    (folder / "habitus.toml").write_text(CONFIG.replace("SETTINGS", settings) + more)
    return accept_files.fn(str(folder / "habitus.toml"), NOW, False)


def complaint(folder: Path, settings: str = "", more: str = "") -> str:
    with pytest.raises(SourceError) as caught:
        ingest(folder, settings, more)
    return str(caught.value)


# --- unusable rows ---


def test_more_unusable_rows_than_a_fifth_stop_an_ingest_before_anything_is_stored(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD, ",2024-03-01,home,1", "ben,2024-03-01,home,89.95 EUR", "ben,soon,home,1")

    assert complaint(tmp_path) == (
        "events.files: 3 of 11 rows cannot be used, and events.rejected_max is 0.2: nothing was stored (no user: 1; a "
        "time that could not be read: 1; a quantity or revenue that is not a number: 1), such as a.csv, line 10: no "
        "user; a.csv, line 12: a time that could not be read; a.csv, line 11: a quantity or revenue that is not a "
        "number; mend the files or what [events.columns] makes of them, or, if these rows may be left out, set "
        "events.rejected_max = 0.28"
    )
    with Lake(tmp_path / "lake") as lake:
        assert not lake.has(EVENTS)
    assert ingest(tmp_path, "rejected_max = 0.28").accepted == 8


ROWS: list[dict[str, Any]] = [
    {"user": "ada", "at": "2024-03-01", "event": "home", "amount": 1.5},
    {"user": None, "at": "2024-03-01", "event": "home", "amount": 20.0},
]


def write_csv_gz(folder: Path) -> None:
    lines = ["user;at;event;amount", *(";".join(str(value or "") for value in row.values()) for row in ROWS)]
    (folder / "a.csv.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))


def write_jsonl(folder: Path) -> None:
    (folder / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS))


def write_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")


def write_broken_csv(folder: Path) -> None:
    put(folder, "a.csv", GOOD[0], "ada,2024-03-01,home,1,2")


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (write_csv_gz, "a.csv.gz, line 3: no user"),
        (write_jsonl, "a.jsonl, line 3: no user"),
        (write_parquet, "a.parquet, row 2: no user"),
        (write_broken_csv, "a.csv, line 3: a line that could not be read as a row"),
    ],
)
def test_an_unusable_row_is_found_in_every_format(tmp_path: Path, write: Callable[[Path], None], place: str) -> None:
    write(tmp_path)
    [file] = tmp_path.iterdir()
    (tmp_path / "habitus.toml").write_text(CONFIG.replace("SETTINGS", "").replace("*.csv", file.name))

    with pytest.raises(SourceError, match=f"such as {place}; mend"):
        accept_files.fn(str(tmp_path / "habitus.toml"), NOW, False)


def test_a_fifth_passes_and_each_ingest_is_judged_by_its_own_files(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD, ",2024-03-01,home,1", ",2024-03-01,home,2")
    assert ingest(tmp_path).rejected == {"no_user": 2}
    put(tmp_path, "b.csv", "ben,2024-03-02,home,1", ",2024-03-02,home,1")

    assert "1 of 2 rows cannot be used" in complaint(tmp_path)
    (tmp_path / "b.csv").unlink()
    assert ingest(tmp_path).accepted == 8


def test_duplicates_and_times_in_the_future_are_no_unusable_rows(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", GOOD[0], "ada,2099-01-01,home,1", "ada,2099-01-02,home,1")
    put(tmp_path, "b.csv", GOOD[0], "ada,2099-01-03,home,1")

    assert ingest(tmp_path).rejected == {"time_in_the_future": 3, "duplicate_id": 1}


def test_a_first_ingest_of_which_no_row_can_be_used_says_what_is_wrong_with_all(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "ada,01/03/2024,home,1")

    assert complaint(tmp_path).startswith("events.columns.occurred_at: no row has a time that can be read")


def test_other_limits_read_no_file_again(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD)
    ingest(tmp_path)

    assert ingest(tmp_path, "rejected_max = 0").known_files == 1


# --- users that are none ---


def test_rows_whose_user_is_a_placeholder_are_rejected_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD, "NULL,2024-03-01,home,1", "(not set),2024-03-01,home,1")
    ingested = ingest(tmp_path)

    assert ingested.rejected == {"no_user": 2}
    assert ingested.batch.placeholders == {"(not set)": 1, "null": 1}


def test_another_list_of_placeholders_reads_all_files_again(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD, "null,2024-03-01,home,1")
    ingest(tmp_path)
    ingested = ingest(tmp_path, "no_user = []")

    assert (ingested.known_files, ingested.accepted, ingested.batch.placeholders) == (0, 9, {})


# --- names of events ---


def test_names_of_new_events_are_counted_with_what_they_may_mean(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "ada,2024-03-01,PURCHASE ,1", "ada,2024-03-01,view,1", "ada,2024-03-02,view,1")
    ingested = ingest(tmp_path, more='[events.names]\nview = "page_view"\n')

    assert ingested.batch.names.names == [
        EventName("page_view", 2, standard=True, mapped=True, likely=None),
        EventName("PURCHASE ", 1, standard=False, mapped=False, likely="purchase"),
    ]
    assert ingested.hints == [
        '1 event is named \'PURCHASE \', which counts as no purchase; if it is one, write "PURCHASE " = "purchase" '
        "under [events.names]"
    ]
    again = ingest(tmp_path, more='[events.names]\nview = "page_view"\n')
    assert (again.batch.names.names, again.hints) == ([], [])


# --- users ---


def test_users_of_the_users_file_are_counted_by_whether_they_have_events(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD)
    put(tmp_path, "people.txt", "ada,pro", "ada,pro", "ben,", "None,free", ",free", header="id,plan")

    assert ingest(tmp_path, more=USERS).users == UsersFound(read=2, matched=1, unmatched=1, placeholders={"none": 1})
    assert ingest(tmp_path).users is None


def test_users_with_events_of_before_and_of_now_are_matched(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD)
    ingest(tmp_path)
    put(tmp_path, "b.csv", "ben,2024-03-02,home,1")
    put(tmp_path, "people.txt", "ada,pro", "ben,pro", header="id,plan")

    assert ingest(tmp_path, more=USERS).users == UsersFound(2, 2, 0)


def test_a_users_file_that_matches_nobody_stops_an_ingest_before_anything_is_stored(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD)
    put(tmp_path, "people.txt", "ADA,pro", header="id,plan")

    assert complaint(tmp_path, more=USERS).startswith(
        "users.files: none of 1 user has an event; 1 would but for upper and lower case; "
    )
    with Lake(tmp_path / "lake") as lake:
        assert not lake.has(EVENTS)


@pytest.mark.parametrize("rows", [(), (",gold", "null,gold")])
def test_a_users_file_without_a_user_stops_an_ingest_and_what_was_known_stays(
    tmp_path: Path, rows: tuple[str, ...]
) -> None:
    put(tmp_path, "a.csv", *GOOD)
    put(tmp_path, "people.txt", "ada,pro", header="id,plan")
    ingest(tmp_path, more=USERS)
    put(tmp_path, "people.txt", *rows, header="id,plan")
    assert complaint(tmp_path, more=USERS).startswith("users.files: people.txt has no row with a user")
    with Lake(tmp_path / "lake") as lake:
        assert lake.row_count(ATTRIBUTES) == 1


def test_users_who_have_no_events_for_how_their_ids_are_written_are_a_hint(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", *GOOD, "7,2024-03-01,home,1")
    put(tmp_path, "people.txt", "ada,pro", "007,pro", header="id,plan")

    assert ingest(tmp_path, more=USERS).hints == [
        "1 user of the users' file has no event; 1 would but for leading zeros"
    ]
