"""What a newcomer does wrong, and the line that Habitus says then: each is in docs/messages.md."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import ibis
import pytest
from messages import assert_documented
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from shops import Ran, habitus
from test_cli import CONFIG, EVENTS

from features.snapshots import snapshots_table
from features.table import TIME
from flows.configuration import ConfigurationError, load
from flows.serving import promote
from flows.snapshot import stored_snapshots
from flows.temporary_server import ServerError, _start, serving
from flows.world import in_one_line

HOUSE = Path(__file__).parents[1]


def said_of(folder: Path, config: str | bytes, *command: str, status: int = 2) -> str:
    """Return the one line that a command says of a configuration."""
    file = folder / "habitus.toml"
    file.write_bytes(config if isinstance(config, bytes) else config.encode())
    (folder / "events.csv").write_text(EVENTS)
    name, *options = command or ("run",)
    done = habitus(name, str(file), *options)
    assert done.exit_code == status, done.stderr
    lines: list[str] = done.stderr.splitlines()
    [line] = [line for line in lines if line.startswith("habitus: ")]
    return line.removeprefix("habitus: ")


USERS = '[users]\nfiles = "users.csv"\nuser_id = "user"\nattributes = ["self"]\n'


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("a horizon without an end", CONFIG + "[labels.churn]\nhorizon_days = inf\n"),
        ("a horizon of a million days", CONFIG + "[labels.churn]\nhorizon_days = 1e6\n"),
        ("a delay without an end", CONFIG + "[labels]\ndelay_days = inf\n"),
        ("a million days between snapshots", CONFIG + "[training]\nevery_days = 1e6\n"),
        ("a window of no days", CONFIG + "[features]\nwindows_days = [7, 0]\n"),
        ("yes or no where a number belongs", CONFIG.replace("[events]", "[events]\nrejected_max = true")),
        ("a lake that is no folder", CONFIG + '[storage]\nlake = "s3://bucket/lake"\n'),
        ("a unit of times that there is not", CONFIG.replace('"at"', '{ column = "at", time_unit = "minutes" }')),
        ("a number in quotes", CONFIG + '[training]\nsnapshots = "12"\n'),
        ("a duration in quotes", CONFIG + '[sessions]\ngap_minutes = "1.5h"\n'),
        ("a value where a section belongs", CONFIG.replace("[events]", "sessions = 30\n[events]")),
        ("a number where a label's section belongs", CONFIG + "[labels]\nchurn = 28\n"),
        ("a name with a capital letter", "name = 'Shop'\n" + CONFIG[CONFIG.index("[events]") :]),
        ("a memory limit in other units", CONFIG + '[engine]\nmemory_limit = "8 GiB"\n'),
        ("an empty list", CONFIG + "[features]\nwindows_days = []\n"),
        ("a number where a folder belongs", CONFIG + "[storage]\nlake = 3\n"),
        ("a section with a capital letter", CONFIG + "[Sessions]\ngap_minutes = 30\n"),
        ("a misspelt setting", CONFIG + "[sessions]\ngap_minuts = 30\n"),
        ("a setting that there is not", CONFIG + "[sessions]\nlength = 30\n"),
        ("a label called like a feature", CONFIG + '[labels.recency_days]\nkind = "churn"\n'),
        ("a label called like a column that Habitus has", CONFIG + '[labels.place]\nkind = "churn"\n'),
        ("an attribute called like a column that Habitus has", CONFIG + USERS),
        ("an attribute called like a grade of RFM", CONFIG + USERS.replace("self", "rfm_money_grade")),
        ("a grade of RFM beside a feature", CONFIG + '[rules.vip]\ncondition = "rfm_money_grade > session_count"\n'),
        ("a segment called like a column that Habitus has", CONFIG + '[rules.self]\ncondition = "recency_days < 3"\n'),
        ("an empty configuration", ""),
        ("a configuration in UTF-16", CONFIG.encode("utf-16")),
        ("a configuration that is not UTF-8", CONFIG.replace("shop", "Jörg").encode("latin-1")),
        ("a configuration with a NUL in a text", CONFIG.replace("events.csv", "events\\u0000.csv")),
        ("a configuration that is no text", bytes(1000)),
        ("a configuration of many megabytes", b"#" * 1_000_001),
        ("a configuration that is no TOML", CONFIG.replace('"events.csv"', "events.csv")),
        ("lists in lists in lists", f"name = {'[' * 5000}"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, case: str, config: str | bytes) -> None:
    assert_documented(case, said_of(tmp_path, config), tmp_path)


def test_a_configuration_with_the_mark_and_line_ends_of_windows_is_right(tmp_path: Path) -> None:
    file = tmp_path / "habitus.toml"
    file.write_bytes(b"\xef\xbb\xbf" + CONFIG.replace("\n", "\r\n").encode())

    assert load(file).name == "shop"


def test_a_configuration_that_is_not_there_or_a_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for case, command in (("no configuration", ["run"]), ("a folder for a configuration", ["run", "."])):
        done = habitus(*command)

        assert done.exit_code == 2
        assert_documented(case, done.stderr.removeprefix("habitus: "))


@pytest.mark.parametrize(
    ("case", "zone", "as_of"),
    [
        ("the last second of the calendar, west of Greenwich", "America/New_York", "9999-12-31T23:59:59"),
        ("the first day of the calendar, east of Greenwich", "Asia/Tokyo", "0001-01-01"),
        ("an instant that is none", "UTC", "30.06.2024"),
        ("an empty instant", "UTC", ""),
    ],
)
def test_a_wrong_instant_is_one_line(tmp_path: Path, case: str, zone: str, as_of: str) -> None:
    config = f'time_zone = "{zone}"\n{CONFIG}'

    assert_documented(case, said_of(tmp_path, config, "run", "--as-of", as_of), tmp_path)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("nothing to preview", []),
        ("a gap to preview that is none", ["--gap", "soon"]),
        ("a gap to preview of no end", ["--gap", "infm"]),
        ("a setting to preview without a value", ["--set", "features.windows_days"]),
        ("a setting to preview of another section", ["--set", "training.seed=1"]),
    ],
)
def test_a_wrong_preview_is_one_line(tmp_path: Path, case: str, options: list[str]) -> None:
    assert_documented(case, said_of(tmp_path, CONFIG, "preview", *options), tmp_path)


def test_a_file_where_the_lake_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("no folder")

    for command in ("ingest", "audit"):  # a stage, and what is none
        assert_documented("a file where the lake should be", said_of(tmp_path, CONFIG, command, status=1), tmp_path)


def test_a_folder_that_may_not_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "lake"))

    assert_documented("a lake that may not be written", in_one_line(error), tmp_path)


def test_snapshots_without_the_column_of_a_new_window_say_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "habitus.toml").write_text(CONFIG)
    configuration = load(tmp_path / "habitus.toml")
    table = snapshots_table([7], [])
    unknown = {name: ibis.null(dtype) for name, dtype in table.schema.items() if dtype.nullable}
    row = ibis.memtable({"user_id": ["u1"], "as_of": ["2024-03-01"]}).mutate(as_of=lambda t: t.as_of.cast(TIME))
    with configuration.open_lake() as lake:
        lake.write(table, row.mutate(**unknown))
        instants = [*lake.partitions(table)]
        (tmp_path / "habitus.toml").write_text(CONFIG + "[features]\nwindows_days = [7, 14]\n")
        with pytest.raises(ConfigurationError) as caught:
            stored_snapshots(lake, load(tmp_path / "habitus.toml"), instants)

    assert_documented("snapshots without the column of a new window", str(caught.value), tmp_path)


# --- Prefect's server ---


def refusal(settings: dict[Any, Any], call: Any) -> str:
    with temporary_settings(settings), pytest.raises(ServerError) as caught:
        call()
    return str(caught.value)


def use_server() -> None:
    with serving():
        pass


def test_a_server_that_is_named_and_not_there_is_one_line() -> None:
    said = refusal({PREFECT_API_URL: "http://127.0.0.1:9/api"}, use_server)

    assert_documented("PREFECT_API_URL names a server that is not there", said)


def test_a_folder_that_prefect_cannot_write_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal({PREFECT_HOME: tmp_path / "file" / "prefect"}, _start.__wrapped__)

    assert_documented("Prefect's folder cannot be written", said, tmp_path)


@pytest.mark.ci
def test_a_server_that_takes_too_long_is_one_line(tmp_path: Path) -> None:
    settings = {PREFECT_HOME: tmp_path, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 0}
    said = refusal(settings, _start.__wrapped__)

    assert_documented("Prefect's temporary server takes too long", said)


@pytest.mark.ci
def test_the_database_of_another_prefect_is_one_line(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('of_tomorrow')")
    database.close()
    said = refusal({PREFECT_HOME: tmp_path}, _start.__wrapped__)

    assert_documented("the folder of another version of Prefect", said, tmp_path)


# --- the end of a command ---


def start(code: str, **options: Any) -> subprocess.Popen[str]:
    """Start a process that ends as the command does, doing something else."""
    program = f"import signal, sys\nfrom flows.command import end_well\ndef run():\n    {code}\nend_well(run)"
    return subprocess.Popen([sys.executable, "-c", program], cwd=HOUSE, stderr=subprocess.PIPE, text=True, **options)


READY = "print('ready', flush=True)\n    "
QUERY = "import duckdb; duckdb.sql('SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b').fetchall()"


@pytest.mark.ci
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("work", ["signal.pause()", QUERY])
def test_a_command_that_is_stopped_says_so_in_one_line(work: str, number: signal.Signals, status: int) -> None:
    process = start(READY + work, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    assert process.returncode == status
    assert_documented("Ctrl-C, or a signal to end", said.removeprefix("habitus: "))


@pytest.mark.ci
def test_a_reader_who_goes_away_is_nothing_to_complain_of() -> None:
    process = start("print('line\\n' * 100_000)", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None

    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.ci
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        process = start("print('line')", stdout=full)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert_documented("the result cannot be written", said.removeprefix("habitus: "))


@pytest.mark.ci
def test_a_run_for_an_earlier_instant_says_at_its_start_that_it_will_be_held_and_can_be_stopped(ran: Ran) -> None:
    config = str(ran.configuration.file)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.command", "run", config, "--as-of", "2024-06-20"],
        cwd=HOUSE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "400"},
    )
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    process.send_signal(signal.SIGINT)
    lines += process.stderr.readlines()

    assert_documented("a run for an instant before the released one", lines[0].partition(" s  ")[2].strip())
    assert lines[-1] == "habitus: stopped; nothing was half-written: run the same command again\n"
    assert process.wait() == 130


def test_a_promotion_by_hand_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as said:
        promote(tmp_path, "shop-churn", 1, " ")
    assert_documented("a promotion without a reason", f"habitus.toml: {said.value}", tmp_path)
