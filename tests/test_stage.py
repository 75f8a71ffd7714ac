"""What a stage is to Prefect, without a server."""

import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import ibis
import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError
from shops import habitus
from sqlalchemy.exc import OperationalError

import flows.turns
from features.delta import ConflictError
from features.events import EVENTS
from features.lake import Lake
from flows.configuration import ConfigurationError, load
from flows.instant import scheduled_start
from flows.run import run
from flows.stage import artifact_key, read_as_of
from flows.world import DeliveryError, may_pass
from publish.lock import LockedError, Work, working_lock

MIDNIGHT = datetime.fromisoformat("2024-05-13T00:00+02:00")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Write a configuration of a business in Berlin."""
    file = tmp_path / "habitus.toml"
    columns = 'user_id = "user"\noccurred_at = "at"\nevent_name = "event"\n'
    file.write_text(
        f'name = "big_shop"\ntime_zone = "Europe/Berlin"\n[events]\nfiles = "*.csv"\n[events.columns]\n{columns}'
    )
    return str(file)


@pytest.mark.parametrize(
    "given",
    [
        "2024-05-13",
        "2024-05-13T00:00",
        "2024-05-12T22:00Z",
        "2024-05-13 00:00:00+02:00",
        datetime(2024, 5, 13),
        MIDNIGHT,
    ],
)
def test_a_parameter_of_a_run_is_read_as_the_command_line_reads_it(config: str, given: datetime | str) -> None:
    parameters = run.validate_parameters({"config": config, "as_of": given})

    assert read_as_of(config, parameters["as_of"]) == MIDNIGHT


def test_without_an_instant_there_is_none(config: str) -> None:
    assert read_as_of(config, run.validate_parameters({"config": config, "as_of": None})["as_of"]) is None


def test_a_parameter_that_is_no_instant_says_what_would_be_one(config: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^as_of 'yesterday' is no instant: write 2024-06-30, "):
        read_as_of(config, "yesterday")


def test_the_start_of_a_scheduled_run_is_pythons_kind_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "daily-score")  # as in a deployment, whose start is now

    start = scheduled_start()

    assert (type(start), getattr(start, "tzinfo", None)) == (datetime, UTC)


def test_without_a_deployment_no_start_is_scheduled() -> None:
    assert scheduled_start() is None


def test_keys_of_artifacts_name_the_configuration(config: str) -> None:
    assert artifact_key(load(config), "segments") == "big-shop-segments"


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("MLflow says something else")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        OSError(28, "No space left on device"),
        duckdb.IOException("a file changed while it was read"),
        CommitFailedError("another wrote"),
        ConflictError("another changed the table"),
        caused_by(OperationalError("INSERT", None, sqlite3.OperationalError("database is locked"))),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'datetime.timedelta' object has no attribute '_to_microseconds'"),
        TypeError("can't compare offset-naive and offset-aware datetimes"),
        KeyError("segments"),
        duckdb.BinderException("no such column"),
        ConfigurationError("events.files: is missing"),
        PermissionError(13, "Permission denied"),
        LockedError("another works there"),
        DeliveryError("crm: 500"),
        caused_by(TypeError()),
    ],
)
def test_a_mistake_is_not_tried_again(error: Exception) -> None:
    assert not may_pass(error)


@pytest.mark.parametrize("command", ["ingest", "publish", "upgrade", "forget ada --config"])
def test_a_command_is_refused_in_one_line_while_another_works_on_its_lake(
    config: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.turns, "WAIT_S", 0)

    with working_lock(Path(config).parent / "lake", Work("run of big_shop", "Europe/Berlin"), 0):
        done = habitus(*command.split(), config)

    assert done.exit_code == 1
    [line] = [line for line in done.stderr.splitlines() if "waiting for" not in line]
    who = f"run of big_shop (process {os.getpid()}, since "
    assert line.startswith("habitus: ")
    assert f"{Path(config).parent / 'lake'} is in use by {who}" in line


def test_what_is_broken_is_named_in_one_line_also_outside_of_a_task(config: str) -> None:
    lake = Path(config).parent / "lake"
    event = {"event_id": "e", "user_id": "u", "event_name": "login", "source_file": "events.csv"}
    rows = [event | {"occurred_at": MIDNIGHT, "ingested_at": MIDNIGHT}]
    with Lake(lake) as opened:
        opened.write(EVENTS, ibis.memtable(pa.Table.from_pylist(rows, schema=EVENTS.schema.to_pyarrow())))
    [file] = (lake / "events").glob("day=*/*.parquet")
    file.write_bytes(b"")

    done = habitus("train", config)

    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"habitus: events: {file} is 0 bytes long, and was ")
