"""What a schedule does: runs of deployments, by a real Prefect server and worker."""

import gzip
import json
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from scheduled import schedule, shipped, wait_until
from shops import once, small_shop

from features.events import EVENTS, REJECTED
from features.files import FILES
from features.lake import Lake
from flows.configuration import load
from flows.snapshot import table_of
from publish import versions
from publish.lock import Work, working_lock

EVENTS_END = datetime.now(UTC).date() - timedelta(days=1)
EARLIER = EVENTS_END - timedelta(days=20)


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run a shop's deployments in each way, and return what became of the runs."""
    return dict(once(tmp_path_factory, "schedules", run_each_way))


def run_each_way(folder: Path) -> dict[str, Any]:
    config = small_shop(folder / "shop", EVENTS_END)
    config.write_text(config.read_text().replace('time_zone = "UTC"', 'time_zone = "Europe/Berlin"', 1))
    [daily, weekly] = shipped()
    given = daily["parameters"] | {"as_of": EARLIER}  # a date of YAML, not a text
    alone = daily | {"name": "alone", "entrypoint": "flows.snapshot.snapshot", "parameters": given}
    with schedule(folder, [daily, weekly, alone]) as prefect:
        with working_lock(folder / "shop" / "lake", Work("run of shop", "Europe/Berlin"), 0):
            scheduled = prefect.start("refresh/daily-score")
            wait_until(lambda: any("waiting for" in line for line in prefect.log(scheduled)), prefect.terminal)
            state_meanwhile = prefect.read(scheduled)["state_type"]
        runs = {"scheduled": prefect.await_end(scheduled)}
        started = {
            "date": prefect.start("refresh/daily-score", as_of=f"{EARLIER}"),
            "time": prefect.start("snapshot/alone", as_of=f"{EARLIER}T05:00"),
            "offset": prefect.start("snapshot/alone", as_of="2020-01-01T00:00+05:00"),
        }
        runs |= {form: prefect.await_end(run) for form, run in started.items()}
        artifacts = sorted(prefect.artifacts())
    with load(config).open_lake() as lake:
        snapshots = [instant.isoformat() for instant in lake.partitions(table_of(load(config)))]
    return {
        **runs,
        "state_meanwhile": state_meanwhile,
        "artifacts": artifacts,
        "snapshots": snapshots,
        "terminal": prefect.terminal.read_text(),
        "released": json.loads((folder / "shop" / "published" / "latest" / "manifest.json").read_text()),
        "config": str(config),
    }


@pytest.mark.ci
def test_a_scheduled_run_completes_and_publishes(ended: dict[str, Any]) -> None:
    assert (ended["scheduled"]["state_name"], ended["scheduled"]["run_count"]) == ("Completed", 1)
    assert datetime.fromisoformat(ended["released"]["as_of"]).date() >= EVENTS_END


@pytest.mark.ci
def test_a_run_waits_for_another_on_its_lake(ended: dict[str, Any]) -> None:
    said = [line for line in ended["scheduled"]["log"] if line.startswith("waiting for ")]
    assert said[0].startswith("waiting for run of shop (process ")
    assert ended["state_meanwhile"] == "RUNNING"


@pytest.mark.ci
def test_a_run_whose_version_is_held_says_why_and_how_to_release_it(ended: dict[str, Any]) -> None:
    held = ended["date"]

    assert (held["state_name"], held["state_type"]) == ("Held", "FAILED")
    message = held["state"]["message"]
    assert "which is before" in message
    assert f"; if that is right: habitus release {ended['config']} {message.split()[0]}" in message


@pytest.mark.ci
def test_an_instant_without_offset_is_of_the_configuration(ended: dict[str, Any]) -> None:
    assert ended["time"]["state_name"] == "Completed"
    five_in_berlin = datetime.combine(EARLIER, time(5), ZoneInfo("Europe/Berlin"))
    assert five_in_berlin.astimezone(UTC).isoformat() in ended["snapshots"]


@pytest.mark.ci
def test_a_run_that_fails_says_one_line(ended: dict[str, Any]) -> None:
    failed = ended["offset"]

    assert (failed["state_name"], failed["state_type"]) == ("Failed", "FAILED")
    message = failed["state"]["message"]
    assert "is not after the first event" in message
    assert [line for line in failed["log"] if "is not after" in line and "Finished" not in line] == [message]


@pytest.mark.ci
def test_no_run_shows_a_traceback(ended: dict[str, Any]) -> None:
    pages = [line for run in ("scheduled", "date", "time", "offset") for line in ended[run]["log"]]

    assert "Traceback" not in "\n".join([ended["terminal"], *pages])


@pytest.mark.ci
def test_what_runs_leave_on_prefects_pages_names_the_configuration(ended: dict[str, Any]) -> None:
    assert ended["artifacts"] == ["ecom-report", "ecom-segments"]


def arrive(folder: Path, number: int) -> None:
    """Add a file of what ten known users did a moment ago, whole at once."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    rows = [f"user_{user:04d},s,home,{now},desktop,email,2024-01,returning" for user in range(number, number + 10)]
    header = "user_id,session_id,event,timestamp,platform,acquisition_channel,user_cohort,user_lifecycle"
    (folder / "new.part").write_bytes(gzip.compress("\n".join([header, *rows]).encode()))
    (folder / "new.part").rename(folder / f"events-{number}.csv.gz")


@pytest.mark.slow
def test_ten_runs_in_a_row_complete_while_files_arrive(tmp_path: Path) -> None:
    config = small_shop(tmp_path / "shop", EVENTS_END)
    config.write_text(config.read_text().replace('"events.csv.gz"', '"events*.csv.gz"'))
    before = len(gzip.decompress((tmp_path / "shop" / "events.csv.gz").read_bytes()).splitlines()) - 1
    [daily, _] = shipped()
    with schedule(tmp_path, [daily]) as prefect:
        began = monotonic()
        assert prefect.await_end(prefect.start("refresh/daily-score"))["state_name"] == "Completed"
        interval_s = ceil(1.2 * (monotonic() - began))  # a run fits into that, just
        prefect.repeat("refresh/daily-score", interval_s)
        for number in range(10):
            arrive(tmp_path / "shop", number)
            wait_until(lambda: len(prefect.runs("daily-score")) > number, prefect.terminal)  # noqa: B023
        runs = prefect.runs("daily-score")[:10]

    assert [run["state_name"] for run in runs] == ["Completed"] * 10, prefect.terminal.read_text()[-5_000:]
    due = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
    assert {(later - earlier).total_seconds() for earlier, later in pairwise(due)} == {interval_s}
    with Lake(tmp_path / "shop" / "lake") as lake:
        files = lake.row_count(FILES)
        assert files >= 10  # the last one may have come too late
        assert lake.row_count(EVENTS) + lake.row_count(REJECTED) == before + 10 * (files - 1)
        present = versions.present(lake)
    assert present is not None
    assert present.as_of.date() >= EVENTS_END


@pytest.mark.slow
def test_two_runs_at_once_take_turns(tmp_path: Path) -> None:
    small_shop(tmp_path / "shop", EVENTS_END)
    with schedule(tmp_path, shipped()) as prefect:
        now = datetime.now(UTC)
        ids = [prefect.start(deployment, now) for deployment in ("refresh/daily-score", "run/weekly-train")]
        runs = [prefect.await_end(run) for run in ids]

    assert [run["state_name"] for run in runs] == ["Completed"] * 2, [run["state"] for run in runs]
    assert sum(any(line.startswith("waiting for ") for line in run["log"]) for run in runs) == 1
