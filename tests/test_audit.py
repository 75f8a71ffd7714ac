"""An audit finds planted leaks and nothing else, says what it looked at, and stores nothing."""

import io
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pytest
from histories import events_of
from rich.console import Console
from shops import Ran, habitus

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.increments import update_sessions
from features.snapshots import FEATURES
from features.time_travel import ExtraFeature, known
from flows.audit import Audited, audit, find_leaks, show
from flows.configuration import Configuration, ConfigurationError, load
from flows.instant import resolve_as_of
from flows.snapshot import store_snapshots
from publish.report.settings import ReportSettings

pytestmark = pytest.mark.ci

CONFIG = """
name = "club"
[events]
files = "events.csv"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
[users]
files = "users.csv"
user_id = "user"
attributes = ["plan", "status"]
[training]
snapshots = 1
"""
FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
USERS = 800


def write_lake(folder: Path, rows: list[dict[str, Any]], attributes: Sequence[tuple[str, str, str]] = ()) -> Path:
    """Fill a lake as ingest and sessions would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "habitus.toml").write_text(CONFIG)
    configuration = load(folder / "habitus.toml")
    with configuration.open_lake() as lake:
        lake.write(EVENTS, events_of(lake.engine, rows))
        described = [dict(zip(ATTRIBUTES.schema.names, row, strict=True)) for row in attributes]
        table = pa.Table.from_pylist(described, ATTRIBUTES.schema.to_pyarrow())
        lake.write(ATTRIBUTES, lake.engine.create_table("described", table, temp=True))
        update_sessions(lake, configuration.sessions.gap, lambda day, last_day: None)
    return folder / "habitus.toml"


@pytest.fixture(scope="module")
def club(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a club whose members come in most weeks, but for every second one, who stops at the beginning of March.

    A member's `plan` is honest, the `status` was written in June.
    """
    draw = np.random.default_rng(0)
    rows, attributes = [], []
    for number in range(USERS):
        leaves, user_id = number % 2 == 0, f"u{number}"
        for week in np.flatnonzero(draw.random(9 if leaves else 22) < 0.85).tolist():
            at = FIRST_DAY + timedelta(weeks=week, days=int(draw.integers(0, 7)), minutes=int(draw.integers(0, 1440)))
            rows.append({"user_id": user_id, "occurred_at": at, "event_id": f"{user_id}-{week}"})
        attributes += [
            (user_id, "plan", str(draw.choice(["basic", "plus"]))),
            (user_id, "status", "left" if leaves else "member"),
        ]
    config = write_lake(tmp_path_factory.mktemp("audit") / "club", rows, attributes)
    store_snapshots.fn(str(config), None, True)
    return config


def next_event_days(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    later = events.filter(events.occurred_at >= as_of)
    return later.group_by("user_id").agg(next_event_days=later.occurred_at.min().epoch_seconds() / 86_400)


def different_day_count(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    seen = known(events, as_of)
    return seen.group_by("user_id").agg(different_day_count=seen.occurred_at.date().nunique())


def quick(configuration: Configuration, extra: Sequence[ExtraFeature] = ()) -> Audited:
    """Look as training does."""
    with configuration.open_lake() as lake:
        before = set(lake.engine.list_tables(like="^materialized_"))
        looked = find_leaks(configuration, lake, resolve_as_of(None, configuration, lake), extra)
        assert set(lake.engine.list_tables(like="^materialized_")) == before  # training goes on in this lake
        return looked


@pytest.fixture(scope="module")
def found(club: Path) -> Audited:
    return quick(load(club), [next_event_days, different_day_count])


def in_words(found: Audited) -> str:
    written = io.StringIO()
    show(found, Console(file=written, width=10_000))
    return written.getvalue()


def test_a_feature_that_knows_the_future_is_found(found: Audited) -> None:
    assert {changed.feature for changed in found.changed} == {"next_event_days"}
    [finding] = [finding for finding in found.findings if "the future" in finding]
    assert finding.startswith("next_event_days knows the future: for ")
    assert finding.endswith("Use events with occurred_at < as_of and ingested_at <= as_of only.")


def test_a_category_that_encodes_the_label_is_found(found: Audited) -> None:
    assert {(one.feature, one.label) for one in found.too_good} == {("status", "churned")}
    assert {(one.feature, one.value, one.outcome) for one in found.naming} == {
        ("status", "left", True),
        ("status", "member", False),
    }
    [finding] = [finding for finding in found.findings if finding.startswith("status = left")]
    assert finding.startswith("status = left names churned: 100.0 % of the rows of its 3")
    assert finding.endswith(" % of the others. Leave status out if it is written after the fact.")


def test_a_personal_value_that_encodes_the_label_is_not_told(club: Path) -> None:
    settings = {"report": ReportSettings(personal=["status"])}
    found = quick(load(club).model_copy(update=settings))
    assert [(one.feature, one.value) for one in found.naming] == [("status", "…")] * 2
    assert [finding.partition(" names ")[0] for finding in found.findings if " names " in finding] == ["status = …"] * 2


def test_what_was_looked_at_is_said(found: Audited) -> None:
    words = in_words(found)
    assert {*FEATURES, "plan", "status", "next_event_days", "different_day_count"} <= set(found.features)
    assert f"1 snapshot (2024-05-06) of 300 of 800 users, {len(found.features)} features" in words
    assert found.events_after > 100
    assert f"{found.events_after:,} later events cut, moved and shuffled, {found.events_made_up:,} made up" in words
    assert f"Labels: churned, converted, in {found.labelled_rows:,} rows" in words
    assert "Best alone for churned: status, AUC 0.99" in words
    assert "converted: it is false of all" in words
    assert "Null in every row: " in words
    assert "The same in every row: " in words
    for finding in found.findings:
        assert finding in words


@pytest.mark.slow
def test_the_command_looks_at_more_ends_with_status_1_and_stores_nothing(club: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in club.parent.rglob("*") if path.is_file()}
    done = habitus("audit", str(club), "--json")
    assert done.exit_code == 1, done.stderr
    assert "audit: 3 found" in done.stderr
    result = json.loads(done.stdout)
    assert {finding.split(" ")[0] for finding in result["findings"]} == {"status"}
    assert {one["value"] for one in result["naming"]} == {"left", "member"}
    assert (result["users"], len(result["instants"])) == (USERS, 3)
    assert {path: path.stat().st_mtime_ns for path in club.parent.rglob("*") if path.is_file()} == before


def test_nothing_is_found_in_the_example(ran: Ran) -> None:
    looked = quick(ran.configuration)
    assert looked.findings == []
    assert "Nothing found." in in_words(looked)
    assert {best.label for best in looked.best} == {"churned", "converted"}


# --- what is missing, stale or too little ---


def copied(club: Path, folder: Path) -> Configuration:
    shutil.copytree(club.parent, folder / "club")
    return load(folder / "club" / "habitus.toml")


def test_without_events_sessions_or_snapshots_it_says_what_to_run(club: Path, tmp_path: Path) -> None:
    configuration = copied(club, tmp_path)
    for table, what in (("snapshots", "snapshot"), ("sessions", "sessions"), ("events", "ingest")):
        shutil.rmtree(configuration.lake / table)
        done = habitus("audit", str(configuration.file))
        assert done.exit_code == 2
        assert f"run `habitus {what} {configuration.file}`" in done.stderr
        assert sum(line.startswith("habitus: ") for line in done.stderr.splitlines()) == 1


def test_snapshots_of_other_events_are_not_audited(club: Path, tmp_path: Path) -> None:
    configuration = copied(club, tmp_path)
    with configuration.open_lake() as lake:
        described = lake.read(ATTRIBUTES)
        lake.write(ATTRIBUTES, described.filter(described.attribute == "plan"))
    with pytest.raises(ConfigurationError, match="is not that of the events and settings of now: run `habitus snapsh"):
        audit(configuration, None)


@pytest.mark.slow
def test_twelve_users_and_a_week_are_audited_as_far_as_can_be(tmp_path: Path) -> None:
    rows = [
        {"user_id": f"u{user}", "occurred_at": FIRST_DAY + timedelta(days=day, hours=user)}
        for user in range(12)
        for day in range(7)
    ]
    done = habitus("audit", str(write_lake(tmp_path / "club", rows)))
    assert done.exit_code == 0, done.stderr
    assert "Nothing found." in done.stdout
    words = " ".join(done.stdout.split())
    assert "1 snapshot (2024-01-08) of all 12 users" in words
    assert "No labels were looked at: the history is too short" in words
