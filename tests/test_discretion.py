"""No error and no log holds what users' rows do: they are named by file and line, also in Prefect's store."""

import gzip
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import places_of

from features.discretion import form_of, hide_values
from features.places import place_of
from features.sources import SourceError
from flows.world import UnexpectedError, discreet

USER, MAIL = "planted_user_4711", "planted@zanzibar.example"


# --- what may be said ---


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Could not convert string 'ada' to DOUBLE", "Could not convert string … to DOUBLE"),
        ("Could not convert string 'O'Brien' to DOUBLE", "Could not convert string … to DOUBLE"),
        ("Could not convert string 'two", "Could not convert string …"),
        (
            'Malformed JSON at byte 6 of input: end.  Input: "{"a": ada"',
            "Malformed JSON at byte 6 of input: end.  Input: …",
        ),
        ("Could not convert string 'a\n'two' ada' to X\n\nLINE 1: SELECT 'b'", "Could not convert string … to X"),
        ("Could not cast value 4711.50 to DECIMAL(3,2)", "Could not cast value … to DECIMAL(…,…)"),
        ("Type INT64 with value -4711 is out of range", "Type INT64 with value … is out of range"),
        ("Overflow in multiplication of INT32 (4711 * 815)!", "Overflow in multiplication of INT32 (… * …)!"),
        ("CSV Error on Line: 12", "CSV Error on Line: 12"),
    ],
)
def test_an_engines_message_is_told_without_values(message: str, said: str) -> None:
    assert hide_values(message) == said


def test_a_form_is_no_longer_than_a_line() -> None:
    assert form_of("äb1\n" * 100) == "aa9 aa9 aa9 aa9 aa9 aa9 aa9 aa9 aa9 aa9…"


# --- where a row is ---


def csv_of(folder: Path, text: str, name: str = "users.csv") -> None:
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


@pytest.mark.parametrize("name", ["users.csv", "users.csv.gz"])
def test_a_row_of_csv_is_named_by_the_line_on_which_it_begins(tmp_path: Path, name: str) -> None:
    csv_of(tmp_path, 'user;note\nada;"two\nlines"\n\nben;\n', name)

    assert place_of(tmp_path, name, '{"user":"ada","note":"two\\nlines"}') == f"{name}, line 2"
    assert place_of(tmp_path, name, '{"user":"ben","note":null}') == f"{name}, line 5"


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    csv_of(tmp_path, "user,plan\r\nada,pro\r\nben,pro,extra\r\n")
    assert place_of(tmp_path, "users.csv", "ben,pro,extra") == "users.csv, line 3"


def test_a_line_of_json_is_named(tmp_path: Path) -> None:
    csv_of(tmp_path, '{"user": "ada"}\n{"user": "ben"}\n', "users.jsonl")
    assert place_of(tmp_path, "users.jsonl", '{"user": "ben"}') == "users.jsonl, line 2"


def test_where_there_are_no_lines_the_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["ada"]}), tmp_path / "users.parquet")
    assert place_of(tmp_path, "users.parquet", '{"user":"ada"}') == "users.parquet"
    assert place_of(tmp_path, "gone.csv", '{"user":"ada"}') == "gone.csv"
    csv_of(tmp_path, "user\nben\n")
    assert place_of(tmp_path, "users.csv", '{"user":"ada"}') == "users.csv"


# --- what crosses a task ---


def failing_with(error: Exception) -> Callable[[], None]:
    @discreet
    def fail() -> None:
        try:
            raise ValueError(USER)
        except ValueError as cause:
            raise error from cause

    return fail


def test_an_error_that_nobody_foresaw_says_its_type_and_place_and_no_more() -> None:
    with pytest.raises(UnexpectedError, match=r"^KeyError at test_discretion\.py:\d+ fail < ") as caught:
        failing_with(KeyError(USER))()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("error", [SourceError("users.csv, line 3: is wrong"), OSError(13, "Permission denied")])
def test_an_error_of_our_own_is_told_without_what_it_came_from(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        failing_with(error)()
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_query_that_a_signal_interrupts_is_no_error_of_the_query() -> None:
    @discreet
    def query() -> None:
        raise RuntimeError("Query interrupted") from KeyboardInterrupt()  # as DuckDB does

    with pytest.raises(KeyboardInterrupt):
        query()


# --- what Prefect keeps ---

EVENTS = "user,at,event\nada,2024-03-01T10:00:00Z,home\n"
CONFIG = """
name = "shop"
[events]
files = "events.*"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
"""
PEOPLE = '[users]\nfiles = "users.csv"\nuser_id = "user"\nattributes = ["plan"]\n'
MAILS = PEOPLE + 'email = "mail"\n'
OF_TEXT = 'revenue = { sql = "CAST(user AS DOUBLE)" }\n'
SAYING = 'page = { sql = "error(user)" }\n'
OF_TIMES = '{"user": "ada", "at": "2024-03-01T10:00:00Z", "event": "home"}\n'
FAILING = {
    "a user who is described twice": (CONFIG + PEOPLE, EVENTS, f"user,plan\n{USER},pro\n{USER},{MAIL}\n"),
    "a user with two addresses": (CONFIG + MAILS, EVENTS, f"user,plan,mail\n{USER},pro,{MAIL}\n{USER},pro,x{MAIL}\n"),
    "a row of users with a column too many": (CONFIG + PEOPLE, EVENTS, f"user,plan\n{USER},pro,{MAIL}\n"),
    "users without a header": (CONFIG + PEOPLE, EVENTS, f"{USER},{MAIL}\nada,pro\n"),
    "events without a header": (CONFIG, f"{USER},2024-03-01T10:00:00Z,{MAIL}\n" * 2, ""),
    "a first event with one thing twice": (CONFIG, f"{USER},{MAIL},{MAIL}\n" * 2, ""),
    "times that are none": (CONFIG, f"user,at,event\n{USER},{MAIL},home\n", ""),
    "an expression that fails": (CONFIG + OF_TEXT, EVENTS + f"{USER},2024-03-01T10:00:00Z,{MAIL}\n", ""),
    "an expression that fails on JSON": (CONFIG + OF_TEXT, OF_TIMES.replace("ada", USER), ""),
    "an expression that says what it likes": (
        CONFIG + 'page = { sql = "error(user)" }\n',
        f"user,at,event\n{USER},1,x\n",
        "",
    ),
}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        duckdb.IOException('Could not write "/lake/x": No space left on device'),
        duckdb.OutOfMemoryException("failed to offload data block. The limit was set by 'max_temp_directory_size'."),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_said_in_one_line_whoever_found_it(error: Exception) -> None:
    with pytest.raises(OSError, match=r"^the disk of \S+ is full: free some space") as caught:
        failing_with(error)()
    assert "/lake" not in str(caught.value)


@pytest.mark.ci
def test_prefect_keeps_nothing_of_users_of_an_ingest_that_failed(tmp_path: Path) -> None:
    configs = []
    for number, (config, events, users) in enumerate(FAILING.values()):
        folder = tmp_path / "shops" / str(number)
        folder.mkdir(parents=True)
        (folder / "habitus.toml").write_text(config)
        (folder / ("events.jsonl" if events.startswith("{") else "events.csv")).write_text(events)
        (folder / "users.csv").write_text(users)
        configs.append(str(folder / "habitus.toml"))
    home = tmp_path / "prefect"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    settings = {"PREFECT_HOME": str(home), "PREFECT_LOGGING_EXTRA_LOGGERS": "habitus", "DO_NOT_TRACK": "1"}
    settings |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "DEBUG"}

    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("failing_ingests.py")), *configs],
        env=kept | settings,
        input=USER,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    errors = done.stdout.splitlines()
    assert len(errors) == 1 + len(FAILING), errors
    told, converted, mail, user = places_of(home, "users.csv, line 3", "ConversionException at", MAIL, USER)
    assert any(place.startswith("prefect.db") for place in told)  # there is something to find
    assert any(place.startswith("prefect.db") for place in converted)
    assert any(place.startswith("storage/") for place in converted)
    assert (mail, user) == ([], [])
    assert not {USER, MAIL} & set(done.stdout.split())
    assert USER not in done.stdout + done.stderr
    assert MAIL not in done.stdout + done.stderr
