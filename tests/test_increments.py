"""Law 2: any split of the events into batches, in any order, gives the same sessions, ids and all, as one batch."""

import inspect
import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import ibis.expr.types as ir
import pytest
from histories import events_of, instant
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import law

import features.increments
import features.sessions
from features.aliases import ALIASES
from features.events import EVENTS
from features.increments import Sessionized, is_current, update_sessions
from features.lake import Lake
from features.sessions import SESSIONS, sessionize
from features.table import stack

Row = dict[str, Any]

GAP = timedelta(minutes=30)
A_MICROSECOND = timedelta(microseconds=1)
A_DAY = timedelta(days=1)


# --- rows written out ---


def add(lake: Lake, *rows: Row) -> Sessionized:
    """Add events to the lake, as an ingest does, and bring its sessions up to date."""
    fresh = events_of(lake.engine, list(rows))
    lake.write(EVENTS, stack(fresh, lake.read(EVENTS).anti_join(fresh, "event_id")))
    return update_sessions(lake, GAP)


def remove(lake: Lake, *event_ids: str) -> Sessionized:
    events = lake.read(EVENTS)
    lake.write(EVENTS, events.filter(events.event_id.notin(event_ids)))
    return update_sessions(lake, GAP)


def rows_of(table: ir.Table, *columns: str) -> list[tuple[Any, ...]]:
    listed = table.order_by(*columns).select(*columns).to_pyarrow().to_pylist()
    return [tuple(row.values()) for row in listed]


def spans(lake: Lake) -> list[tuple[str, str]]:
    """List start and end of the sessions, as day and time."""
    return [
        (f"{started_at:%d %H:%M}", f"{ended_at:%d %H:%M}")
        for started_at, ended_at in rows_of(lake.read(SESSIONS), "started_at", "ended_at")
    ]


def at(day_and_time: str, event_id: str, **more: Any) -> Row:
    return {"event_id": event_id, "occurred_at": f"2024-03-{day_and_time}", **more}


DAYS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "lake"
    with Lake(folder) as lake:
        add(lake, *(at(f"{day:02} 12:00", f"day {day}") for day in range(1, DAYS + 1)))
    return folder


@pytest.fixture
def days(made: Path, tmp_path: Path) -> Iterator[Lake]:
    """Have a session at 12:00 on each of some days, so that one more is an increment."""
    shutil.copytree(made, tmp_path / "lake")
    with Lake(tmp_path / "lake") as lake:
        yield lake


def test_an_event_far_from_all_sessions_begins_one(days: Lake) -> None:
    done = add(days, at("05 15:00", "new"))
    assert (done.added, done.revised, done.aliased, done.rebuilt) == (1, 0, 0, False)
    assert ("05 15:00", "05 15:00") in spans(days)


def test_a_late_event_within_the_gap_joins_its_session(days: Lake) -> None:
    done = add(days, at("05 12:30", "new"))
    assert (done.added, done.revised, done.aliased) == (0, 1, 0)
    assert ("05 12:00", "05 12:30") in spans(days)


def test_a_late_event_inside_a_session_counts_once_as_do_those_around_it(days: Lake) -> None:
    add(days, at("05 12:20", "second"))
    add(days, at("05 12:10", "late"))
    sessions = dict(rows_of(days.read(SESSIONS), "started_at", "event_count"))
    assert sessions[instant("2024-03-05 12:00")] == 3


def test_a_late_event_fuses_the_two_sessions_it_lies_between_and_the_older_id_survives(days: Lake) -> None:
    add(days, at("05 12:50", "second"))
    before = dict(rows_of(days.read(SESSIONS), "started_at", "session_id"))
    older, younger = before[instant("2024-03-05 12:00")], before[instant("2024-03-05 12:50")]
    done = add(days, at("05 12:25", "between"))
    assert (done.added, done.revised, done.aliased) == (0, 2, 1)
    assert ("05 12:00", "05 12:50") in spans(days)
    assert dict(rows_of(days.read(SESSIONS), "started_at", "session_id"))[instant("2024-03-05 12:00")] == older
    assert rows_of(days.read(ALIASES), "alias_id", "session_id") == [(younger, older)]


def test_a_session_whose_first_event_comes_late_goes_on_under_the_id_of_that(days: Lake) -> None:
    before = dict(rows_of(days.read(SESSIONS), "started_at", "session_id"))
    add(days, at("05 11:45", "first"))
    now = dict(rows_of(days.read(SESSIONS), "started_at", "session_id"))
    expected = [(before[instant("2024-03-05 12:00")], now[instant("2024-03-05 11:45")])]
    assert rows_of(days.read(ALIASES), "alias_id", "session_id") == expected


def test_an_alias_follows_the_session_it_names(days: Lake) -> None:
    add(days, at("05 11:45", "first"))
    add(days, at("05 11:30", "earlier"))
    now = dict(rows_of(days.read(SESSIONS), "started_at", "session_id"))[instant("2024-03-05 11:30")]
    assert [session_id for _, session_id in rows_of(days.read(ALIASES), "alias_id", "session_id")] == [now, now]


def test_an_id_that_is_back_is_no_alias(days: Lake) -> None:
    add(days, at("05 11:45", "first"))
    remove(days, "first")
    ids = [session_id for (session_id,) in rows_of(days.read(SESSIONS), "session_id")]
    assert not set(ids) & {alias_id for (alias_id,) in rows_of(days.read(ALIASES), "alias_id")}


def test_an_event_that_goes_parts_the_session_it_held_together(days: Lake) -> None:
    add(days, at("05 12:25", "between"), at("05 12:50", "second"))
    done = remove(days, "between")
    assert (done.added, done.revised) == (1, 1)
    assert {("05 12:00", "05 12:00"), ("05 12:50", "05 12:50")} <= set(spans(days))


def test_a_session_without_events_left_is_gone(days: Lake) -> None:
    done = remove(days, "day 5")
    assert (done.sessions, done.revised) == (DAYS - 1, 1)
    assert not [span for span in spans(days) if span[0].startswith("05")]


def test_a_late_event_fuses_across_midnight_and_moves_the_session_to_the_day_it_begins(days: Lake) -> None:
    add(days, at("06 00:10", "after"))
    add(days, at("05 23:50", "before"))
    assert ("05 23:50", "06 00:10") in spans(days)
    assert days.partitions(SESSIONS)[datetime(2024, 3, 6, tzinfo=UTC)] == 1


def test_a_late_event_joins_a_session_that_began_the_day_before(days: Lake) -> None:
    evening = [at(time, time) for time in ("05 23:00", "05 23:30", "06 00:00", "06 00:30", "06 01:00")]
    add(days, *evening)
    done = add(days, at("06 01:30", "late"))
    assert (done.added, done.revised) == (0, 1)
    assert ("05 23:00", "06 01:30") in spans(days)


def test_only_the_days_that_changed_are_written(days: Lake) -> None:
    files = set((days.folder / "sessions").rglob("*.parquet"))
    add(days, at("05 12:30", "new"))
    written = set((days.folder / "sessions").rglob("*.parquet")) - files
    assert [file.parent.name for file in written] == ["day=2024-03-05"]


def test_an_event_that_comes_again_changes_nothing(days: Lake) -> None:
    version = days.version(SESSIONS)
    done = add(days, at("05 12:00", "day 5"))
    assert (done.added, done.revised, done.changed) == (0, 0, False)
    assert days.version(SESSIONS) == version


def test_what_sessions_are_not_made_of_changes_no_session(days: Lake) -> None:
    done = add(days, at("05 12:00", "day 5", element="button"))
    assert (done.added, done.revised, done.changed) == (0, 0, False)


def test_a_late_event_before_a_session_that_the_cap_ended_moves_all_later_cuts(days: Lake) -> None:
    robot = [at(f"{8 + hour // 24:02} {hour % 24:02}:{minute:02}", f"r{hour}-{minute}", user_id="robot")
             for hour in range(60) for minute in (0, 20, 40)]  # fmt: skip
    add(days, *robot)
    assert ("08 00:00", "09 00:00") in spans(days)
    add(days, at("07 23:50", "late", user_id="robot"))
    assert [span for span in spans(days) if span[0] != span[1]] == [
        ("07 23:50", "08 23:40"),
        ("09 00:00", "10 00:00"),
        ("10 00:20", "10 11:40"),
    ]


def test_another_gap_makes_all_sessions_anew(days: Lake) -> None:
    add(days, at("05 12:40", "second"))
    done = update_sessions(days, timedelta(minutes=40))
    assert done.rebuilt
    assert ("05 12:00", "05 12:40") in spans(days)


def test_a_source_that_has_days_does_not_tell_of_bounces(days: Lake) -> None:
    def told(lake: Lake) -> set[tuple[Any, ...]]:
        return {row[1:] for row in rows_of(lake.read(SESSIONS), "started_at", "bounced", "engaged")}

    assert told(days) == {(True, False)}
    assert not is_current(days, GAP, day_level=True)
    assert update_sessions(days, GAP, day_level=True).rebuilt
    assert told(days) == {(None, None)}

    fresh = events_of(days.engine, [at("05 12:00", "second"), at("06 18:00", "lone")])
    days.write(EVENTS, stack(fresh, days.read(EVENTS)))
    done = update_sessions(days, GAP, day_level=True)

    assert not done.rebuilt
    assert (done.added, done.revised) == (1, 1)
    assert told(days) == {(None, None), (False, True)}
    assert is_current(days, GAP, day_level=True)


def test_events_replaced_as_a_whole_make_all_sessions_anew(days: Lake) -> None:
    events = days.read(EVENTS)
    days.write(EVENTS, events.mutate(occurred_at=events.occurred_at + timedelta(hours=1)))
    assert update_sessions(days, GAP).rebuilt
    assert ("05 13:00", "05 13:00") in spans(days)


def test_all_are_made_anew_where_the_events_of_then_are_gone(days: Lake) -> None:
    for file in (days.folder / "events" / "day=2024-03-05").iterdir():
        then = file
    add(days, at("05 13:00", "second"), at("06 13:00", "third"))
    days.write(EVENTS, days.read(EVENTS).filter(lambda events: events.event_id != "third"))
    then.unlink()
    (days.folder / "sessions").rename(days.folder / "sessions of now")
    with Lake(days.folder) as opened:
        assert update_sessions(opened, GAP).rebuilt


def test_a_crash_between_the_aliases_and_the_sessions_is_mended_by_running_again(days: Lake) -> None:
    add(days, at("05 12:50", "second"))
    fresh = events_of(days.engine, [at("05 12:25", "between")])
    days.write(EVENTS, stack(fresh, days.read(EVENTS)))
    log = days.folder / "sessions" / "_delta_log"
    before = set(log.iterdir())
    update_sessions(days, GAP)
    aliases = rows_of(days.read(ALIASES), "alias_id", "session_id")
    expected = rows_of(days.read(SESSIONS), *SESSIONS.schema.names)
    for commit in set(log.iterdir()) - before:  # what a crash before this commit leaves
        commit.unlink()
    with Lake(days.folder) as opened:
        assert ("05 12:50", "05 12:50") in spans(opened)
        update_sessions(opened, GAP)
        assert rows_of(opened.read(SESSIONS), *SESSIONS.schema.names) == expected
        assert rows_of(opened.read(ALIASES), "alias_id", "session_id") == aliases


@pytest.mark.parametrize("most_events", [1, 7, 1000])
def test_however_time_is_cut_into_chunks_the_same_bytes_are_written(
    lake: Lake, most_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.write(EVENTS, events_of(lake.engine, history(Random(3), users=3)))
    update_sessions(lake, GAP)
    expected = lake.content(SESSIONS)
    (lake.folder / "sessions").rename(lake.folder / "sessions in one chunk")
    monkeypatch.setattr(features.increments, "MOST_EVENTS_IN_CHUNK", most_events)
    with Lake(lake.folder) as opened:
        update_sessions(opened, GAP)
        assert opened.content(SESSIONS) == expected


def test_a_session_goes_on_in_the_next_chunk_up_to_exactly_the_gap(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.increments, "MOST_EVENTS_IN_CHUNK", 1)
    assert add(lake, at("05 23:30", "at the limit"), at("06 00:00", "in the next chunk")).sessions == 1


def test_no_events_make_no_sessions(lake: Lake) -> None:
    assert update_sessions(lake, GAP).sessions == 0


# --- random histories ---
# Everything happens close to a border: the gap, the cap, midnight, the same instant. Half of the users are robots.

PAUSES = [
    *(timedelta(0), A_MICROSECOND, timedelta(seconds=10), GAP / 2, GAP - A_MICROSECOND, GAP, GAP, GAP + A_MICROSECOND),
    *(A_DAY - GAP, A_DAY, A_DAY + A_MICROSECOND),
]
ROBOTS_PAUSES = [GAP / 2, GAP - A_MICROSECOND, GAP, GAP]
NAMES = ["page_view", "page_view", "add_to_cart", "purchase", "refund"]
BEGIN = datetime(2024, 3, 2, tzinfo=UTC)


def history(random: Random, users: int) -> list[Row]:
    """Make up the events of some users over some days."""
    rows = []
    for user in range(users):
        is_robot = random.random() < 0.5
        now = BEGIN + random.randrange(3) * A_DAY + random.choice([timedelta(0), -A_MICROSECOND, -GAP, GAP])
        for number in range(random.randrange(40, 150) if is_robot else random.randrange(1, 12)):
            rows.append(
                {
                    "event_id": f"{random.randrange(10)}-{user}-{number}",
                    "user_id": f"user {user}",
                    "occurred_at": now,
                    "event_name": random.choice(NAMES),
                    "page": random.choice([None, "/a", "/b"]),
                    "revenue": random.choice([None, 0.1, 19.99]),
                    "source": random.choice([None, "ads"]),
                    "device": random.choice([None, "phone"]),
                }
            )
            now += random.choice(ROBOTS_PAUSES if is_robot and random.random() < 0.97 else PAUSES)
    return rows


def batches(random: Random, rows: list[Row]) -> list[list[Row]]:
    """Split events into batches, each in any order; some come again, some go where a twin was known earlier."""
    count = random.randrange(2, 4)
    split: list[list[Row]] = [[] for _ in range(count)]
    for row in rows:
        split[random.choice([0, random.randrange(count)])].append(row)
    for number in range(1, count):
        known = [row for batch in split[:number] for row in batch]
        split[number] += random.sample(known, min(2, len(known)))
        moved = random.sample(known, min(2, len(known)))
        split[number] += [row | {"occurred_at": row["occurred_at"] + random.choice(PAUSES)} for row in moved]
        random.shuffle(split[number])
    return split


def differing_rows(update: Any, seed: int, users: int) -> int:
    """Feed a random history to a lake by batches; count the rows in which its sessions differ from one batch's."""
    random = Random(seed)
    with TemporaryDirectory() as folder, Lake(Path(folder) / "lake") as lake:
        known: dict[str, Row] = {}
        for batch in batches(random, history(random, users)):
            known |= {row["event_id"]: row for row in batch}
            lake.write(EVENTS, events_of(lake.engine, list(known.values())))
            update(lake, GAP)
        found = set(rows_of(lake.read(SESSIONS), *SESSIONS.schema.names))
        expected = set(rows_of(sessionize(lake.read(EVENTS), GAP), *SESSIONS.schema.names))
        return len(found ^ expected)


@contextmanager
def always_increments(module: types.ModuleType, most_events: int = 100) -> Iterator[None]:
    """Have a module revise sessions however much changed, and rebuild them by small chunks."""
    before = module.MOST_DAYS_SHARE, module.MOST_EVENTS_IN_CHUNK
    module.MOST_DAYS_SHARE, module.MOST_EVENTS_IN_CHUNK = 2, most_events  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.MOST_DAYS_SHARE, module.MOST_EVENTS_IN_CHUNK = before  # type: ignore[attr-defined]


USERS_OF_A_HISTORY = 20


@law(1)
@given(st.integers(0, 2**32))
def test_no_row_differs_whatever_the_batches(seed: int) -> None:
    with always_increments(features.increments):
        assert differing_rows(update_sessions, seed, users=8) == 0


@pytest.mark.slow
@settings(max_examples=1000 // USERS_OF_A_HISTORY, deadline=None)
@given(st.integers(0, 2**32))
def test_no_row_differs_over_a_thousand_random_histories(seed: int) -> None:
    with always_increments(features.increments):
        assert differing_rows(update_sessions, seed, USERS_OF_A_HISTORY) == 0


# --- mutants: each is a plausible mistake, and the histories above tell it ---

MUTANTS = {
    "an equal gap is too far to touch": (
        "increments",
        "us_between(sessions.ended_at, bounds.first_at) <= us(gap)",
        "us_between(sessions.ended_at, bounds.first_at) < us(gap)",
    ),
    "the end before instead of the latest end so far": (
        "increments",
        "latest_end = intervals.ended_at.max().over(before)",
        "latest_end = intervals.ended_at.lag().over(so_far)",
    ),
    "entry and exit page of equal times as they come": (
        "sessions",
        "order = sort_key(events.occurred_at, NULLS_LAST, events.event_id, NULLS_LAST)",
        "order = events.occurred_at",
    ),
    "sessions that began before the border are not looked for": ("increments", "before=CAP + gap", "before=gap"),
    "intervals that overlap give their events twice": (
        "increments",
        "_hull(stack(disturbed, touched.select(*disturbed.columns)))",
        "stack(disturbed, touched.select(*disturbed.columns))",
    ),
    "what may go on at the border of a chunk is over": (
        "sessions",
        "us_between(chains.ended_at, ibis.literal(border, TIME)) <= us(gap)",
        "us_between(chains.ended_at, ibis.literal(border, TIME)) < us(gap)",
    ),
}


def mutant(module: str, right: str, wrong: str) -> types.ModuleType:
    """Return features.increments with a mistake in it, or in the features.sessions that it uses."""
    sources = {name: inspect.getsource(sys.modules[f"features.{name}"]) for name in ("sessions", "increments")}
    assert sources[module].count(right) == 1, f"{right!r} is not, or not once, in features.{module}"
    sources[module] = sources[module].replace(right, wrong)
    sources["increments"] = sources["increments"].replace(
        "from features.sessions import", "from mutant_sessions import"
    )
    for name, source in sources.items():
        sys.modules[f"mutant_{name}"] = made = types.ModuleType(f"mutant_{name}")
        exec(compile(source, f"mutant_{name}.py", "exec"), made.__dict__)
    return sys.modules["mutant_increments"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_the_merge_is_told_by_random_histories(name: str) -> None:
    wrong = mutant(*MUTANTS[name])
    with always_increments(wrong):
        assert any(differing_rows(wrong.update_sessions, seed, USERS_OF_A_HISTORY) for seed in range(5))
