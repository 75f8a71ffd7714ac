"""How flows find the instant they are about; what is decided is in tests/test_as_of.py."""

from datetime import UTC, datetime
from pathlib import Path

import ibis
import pyarrow as pa
import pytest

import flows.instant
from features.events import EVENTS
from features.lake import Lake
from flows.configuration import Configuration, ConfigurationError, load
from flows.instant import decide, resolve_as_of

BERLIN = """
name = "shop"
time_zone = "Europe/Berlin"
[events]
files = "*.csv"
columns = { user_id = "u", occurred_at = "t", event_name = "e" }
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    (tmp_path / "habitus.toml").write_text(BERLIN)
    return load(tmp_path / "habitus.toml")


def add(lake: Lake, *times: str) -> None:
    rows = [
        {"event_id": f"e{number}", "user_id": "u", "event_name": "page_view", "source_file": "events.csv"}
        | dict.fromkeys(("occurred_at", "ingested_at"), datetime.fromisoformat(each).astimezone(UTC))
        for number, each in enumerate(times)
    ]
    lake.write(EVENTS, ibis.memtable(pa.Table.from_pylist(rows, schema=EVENTS.schema.to_pyarrow())))


def test_a_run_by_hand_is_about_the_end_of_the_last_whole_day_of_the_business(
    configuration: Configuration, lake: Lake
) -> None:
    add(lake, "2024-06-28T23:50+02:00", "2024-06-29T00:10+02:00", "2024-06-29T23:55+02:00")
    assert resolve_as_of(None, configuration, lake) == datetime(2024, 6, 29, 22, tzinfo=UTC)


def test_a_run_of_a_deployment_is_about_the_last_whole_day_before_its_schedule(
    configuration: Configuration, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, "2024-06-27T23:50+02:00", "2024-06-28T23:50+02:00", "2024-06-29T05:00+02:00")
    due = datetime(2024, 6, 29, 3, tzinfo=UTC)
    monkeypatch.setattr(flows.instant, "scheduled_start", lambda: due)
    decision = decide(None, configuration, lake)
    assert (decision.as_of, decision.due, decision.now) == (datetime(2024, 6, 28, 22, tzinfo=UTC), due, due)


def test_a_run_of_a_deployment_is_about_its_schedule_where_events_go_on_until_then(
    configuration: Configuration, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, "2024-06-28T23:50+02:00", "2024-06-29T04:59+02:00", "2024-06-29T05:00+02:00", "2024-06-30T05:00+02:00")
    due = datetime(2024, 6, 29, 3, tzinfo=UTC)
    monkeypatch.setattr(flows.instant, "scheduled_start", lambda: due)
    assert resolve_as_of(None, configuration, lake) == due


def test_what_was_not_known_at_the_schedule_does_not_change_it(
    configuration: Configuration, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, "2024-06-27T23:50+02:00", "2024-06-28T23:50+02:00", "2024-06-29T04:30+02:00")
    events = lake.read(EVENTS)
    is_late = events.event_id == "e2"
    known_at = ibis.ifelse(is_late, events.ingested_at + ibis.interval(hours=4), events.ingested_at)
    lake.write(EVENTS, events.mutate(ingested_at=known_at))
    monkeypatch.setattr(flows.instant, "scheduled_start", lambda: datetime(2024, 6, 29, 3, tzinfo=UTC))
    assert resolve_as_of(None, configuration, lake) == datetime(2024, 6, 28, 22, tzinfo=UTC)


def test_an_instant_that_is_given_is_taken_in_a_deployment_too(
    configuration: Configuration, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, "2024-06-28T23:50+02:00")
    monkeypatch.setattr(flows.instant, "scheduled_start", lambda: datetime(2024, 11, 29, 3, tzinfo=UTC))
    given = datetime.fromisoformat("2024-06-29T05:00+02:00")
    decision = decide(given, configuration, lake)
    assert resolve_as_of(given, configuration, lake) == decision.as_of == decision.due == given


def test_why_and_what_may_be_wrong_with_it_is_said_where_nobody_gave_the_instant(
    configuration: Configuration, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    add(lake, "2024-06-27T23:50+02:00", "2024-06-28T23:50+02:00", "2026-02-03T10:00+01:00")
    with caplog.at_level("INFO", "habitus"):
        as_of = resolve_as_of(None, configuration, lake)
        resolve_as_of(as_of, configuration, lake)
    said, note = caplog.messages
    assert said.startswith("instant: 2024-06-29 00:00 Europe/Berlin, the end of 2024-06-28, the last day")
    assert note.startswith("  1 event stands alone, on 2026-02-03, 585 days after all others")


def test_without_events_it_says_what_to_run(configuration: Configuration, lake: Lake) -> None:
    for given in (None, datetime(2024, 6, 29, tzinfo=UTC)):
        with pytest.raises(ConfigurationError, match="holds no events: run `habitus ingest"):
            resolve_as_of(given, configuration, lake)


def test_an_instant_that_is_not_after_the_first_event_is_refused_in_the_business_s_zone(
    configuration: Configuration, lake: Lake
) -> None:
    add(lake, "2024-06-28T23:50+02:00")
    said = r"as_of 2024-06-28 00:00 Europe/Berlin is not after the first event \(2024-06-28 23:50 Europe/Berlin\)"
    with pytest.raises(ConfigurationError, match=said):
        resolve_as_of(datetime(2024, 6, 27, 22, tzinfo=UTC), configuration, lake)
