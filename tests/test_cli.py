"""Mistakes a person makes: one line that says what would be right, exit status 2, and nothing half-written."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from shops import habitus

from flows.cli import app
from flows.progress import progress

CONFIG = """
name = "shop"
[events]
files = "events.csv"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
"""
EVENTS = "user,at,event\nu1,2024-03-01 10:00:00,home\nu2,2024-03-02 10:00:00,home\n"


def attempt(folder: Path, config: str = CONFIG, events: str | bytes = EVENTS, *options: str) -> Any:
    (folder / "habitus.toml").write_text(config)
    (folder / "events.csv").write_bytes(events if isinstance(events, bytes) else events.encode())
    return habitus("run", str(folder / "habitus.toml"), *options)


def assert_refused(folder: Path, done: Any, *words: str) -> None:
    assert done.exit_code == 2
    complaints = [line for line in done.stderr.splitlines() if line.startswith("habitus: ")]
    assert len(complaints) == 1
    for word in ("habitus.toml", *words):
        assert word in complaints[0]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["events.csv", "habitus.toml"]


def test_a_wrong_key_names_the_near_one(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG + "[sessions]\ngap_minuts = 30\n")

    assert_refused(tmp_path, done, "sessions.gap_minuts", "gap_minutes")


def test_a_missing_column_names_the_file_and_the_near_one(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG.replace('"user"', '"usr"'))

    assert_refused(tmp_path, done, "events.columns.user_id", "events.csv", "'usr'", "did you mean 'user'?")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG.replace("events.csv", "event.csv"))

    assert_refused(tmp_path, done, "event.csv: no such file")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG.replace('"events.csv"', '"events.csv"\nformat = "parquet"'))

    assert_refused(tmp_path, done, "events.csv: cannot be read")


def test_a_time_that_no_row_parses_says_what_can_be_set(tmp_path: Path) -> None:
    done = attempt(tmp_path, events="user,at,event\nu1,1.3.2024,home\nu2,2.3.2024,home\n")

    assert_refused(tmp_path, done, "events.columns.occurred_at", "'9.9.9999'", "events.csv, line 2", "events.time_unit")


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path, attempt(tmp_path, events="user,at,event\n"), "events.csv has no rows")


def test_a_file_in_which_no_row_is_accepted_says_why(tmp_path: Path) -> None:
    done = attempt(tmp_path, events="user,at,event\n,2024-03-01,home\n,2024-03-02,home\n")

    assert_refused(tmp_path, done, "no row of events.csv was accepted (no user: 2)")


def test_an_expression_that_fails_on_a_row_is_refused(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG + 'revenue = { sql = "CAST(event AS DOUBLE)" }\n')

    assert_refused(
        tmp_path, done, "events.columns.revenue: ", "Conversion Error: Could not convert string … to DOUBLE", "try_"
    )


def test_rows_of_the_users_file_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user,plan\nu1,pro\nu2,pro,extra\n")

    done = attempt(tmp_path, CONFIG + '[users]\nfiles = "users.csv"\nuser_id = "user"\nattributes = ["plan"]\n')

    assert done.exit_code == 2
    assert "users.files: 1 row cannot be read, such as users.csv, line 3; mend or remove what is wrong" in done.stderr
    assert not (tmp_path / "lake").exists()


def test_an_instant_that_is_none_is_refused(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG, EVENTS, "--as-of", "yesterday")

    assert done.exit_code == 2
    assert "as_of 'yesterday' is no instant: write 2024-06-30" in done.stderr


def test_an_instant_before_all_events_is_refused(tmp_path: Path) -> None:
    done = attempt(tmp_path, CONFIG, EVENTS, "--as-of", "2020-01-01")

    assert done.exit_code == 2
    assert "not after the first event" in done.stderr


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = habitus("run", str(tmp_path / "nope.toml"))

    assert done.exit_code == 2
    assert "nope.toml: no such file; name the configuration" in done.stderr


@pytest.mark.slow
def test_two_users_on_two_days_are_published_without_segments_and_told_why(tmp_path: Path) -> None:
    done = attempt(tmp_path)

    assert done.exit_code == 0
    assert "3 segments need at least 30 users, the snapshot has 1" in done.stderr
    assert (tmp_path / "published" / "latest" / "assignments.csv").read_text().splitlines()[1].startswith("u1,")


@pytest.mark.slow
def test_a_single_day_of_events_is_taken_whole(tmp_path: Path) -> None:
    done = attempt(tmp_path, events="user,at,event\nu1,2024-03-01 10:00:00,home\nu2,2024-03-01 23:59:59,home\n")

    assert done.exit_code == 0
    assert "2 users at 2024-03-02 00:00" in done.stderr


@pytest.mark.parametrize("command", ["run", "ingest", "sessions", "snapshot", "train", "score", "publish"])
def test_every_stage_is_a_command_with_help(command: str) -> None:
    done = habitus(command, "--help")

    assert done.exit_code == 0
    assert "CONFIG" in done.stdout


@pytest.mark.parametrize("command", [["segments"], ["segments", "rename", "S01", "Night owls", "--config"]])
def test_before_the_first_training_no_segments_serve(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "habitus.toml").write_text(CONFIG)
    (tmp_path / "events.csv").write_text(EVENTS)
    done = habitus(*command, str(tmp_path / "habitus.toml"))

    assert_refused(tmp_path, done, "no segments serve: run `habitus train")


def test_without_a_configuration_segments_are_those_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert "habitus.toml: no such file" in habitus("segments").stderr
    assert "habitus.toml: no such file" in habitus("segments", "rename", "S01", "Night owls").stderr


def test_brackets_in_a_line_of_progress_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with progress():
        logging.getLogger("habitus").info("S01 Gift hunters [/spring]: split into S01, S05")

    assert "S01 Gift hunters [/spring]: split" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where the lake should be")

    done = attempt(tmp_path)

    assert done.exit_code == 1
    [complaint] = [line for line in done.stderr.splitlines() if line.startswith("habitus: ")]
    assert "lake" in complaint
    assert "Traceback" not in done.stderr


def commands_of(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands_of(command, *path, name)


COMMANDS = dict(commands_of(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_all_that_is_written_of_a_command_and_its_options(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = " ".join(habitus(*path, "--help").stdout.split())

    written = [COMMANDS[path].help, *(getattr(option, "help", None) for option in COMMANDS[path].params)]
    for text in filter(None, written):
        assert " ".join(text.replace(r"\[", "[").split()) in shown
