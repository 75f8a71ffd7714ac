"""What holds for every history: of features.sessions, features.snapshots and features.labels."""

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from random import Random
from typing import Any, NamedTuple

import ibis.expr.types as ir
import pyarrow as pa
import pytest
from histories import events_of
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.labels import ChurnSettings, ConversionSettings, LabelSettings, label
from features.sessions import sessionize, sessions_at
from features.snapshots import take_snapshots
from features.table import TIME, materialize

Row = dict[str, Any]

A_MICROSECOND = timedelta(microseconds=1)
A_DAY = timedelta(days=1)

# --- histories ---
# Short ones, in which everything happens close to a border: the gap, the cap, midnight, the same instant.

GAPS = [timedelta(minutes=3), timedelta(minutes=30), timedelta(hours=8), A_DAY]
MIDNIGHTS = [datetime(1970, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 31, tzinfo=UTC)]
AFTER = [timedelta(0), -A_MICROSECOND, A_MICROSECOND, 3 * A_DAY]
LEARNT_AFTER = [timedelta(0), timedelta(0), timedelta(0), A_MICROSECOND, timedelta(hours=1), 3 * A_DAY]
ACTS: list[Row] = [
    {},
    {"page": "/a", "item_id": "i"},
    {"page": "/b", "source": "ads", "campaign": "spring", "device": "phone", "country": "FR"},
    {"page": "/c", "source": "mail", "device": "desktop", "category": "c"},
    {"event_name": "search", "category": "d"},
    {"event_name": "support_view", "page": "/help"},
    {"event_name": "add_to_cart", "item_id": "j", "category": "c"},
    {"event_name": "purchase", "revenue": 0.1},
    {"event_name": "purchase", "revenue": 19.99, "source": "ads"},
    {"event_name": "purchase"},
    {"event_name": "refund", "revenue": 0.2},
    {"event_name": "refund", "revenue": -0.7},
    {"event_name": "wave"},
]


class World(NamedTuple):
    """Hold a history, and what is asked of it."""

    gap: timedelta
    rows: list[Row]
    as_of: datetime

    def known(self) -> list[Row]:
        """List the events that were known at as_of."""
        return [row for row in self.rows if row["occurred_at"] < self.as_of and row["ingested_at"] <= self.as_of]


@st.composite
def worlds(draw: st.DrawFn, min_users: int = 2, max_users: int = 6) -> World:
    gap = draw(st.sampled_from(GAPS))
    pauses = st.sampled_from(
        [
            *(timedelta(0), A_MICROSECOND, timedelta(seconds=10), timedelta(seconds=10) + A_MICROSECOND),
            *(gap / 2, gap - A_MICROSECOND, gap, gap, gap + A_MICROSECOND),
            *(A_DAY - gap, A_DAY, A_DAY + A_MICROSECOND),
        ]
    )
    rows: list[Row] = []
    for user in range(draw(st.integers(min_users, max_users))):
        now = draw(st.sampled_from(MIDNIGHTS)) + draw(st.sampled_from([timedelta(0), -A_MICROSECOND, -gap]))
        for number in range(draw(st.integers(1, 9))):
            event_id = f"{draw(st.integers(0, 9))}-{user}-{number}"
            learnt_at = now + draw(st.sampled_from(LEARNT_AFTER))
            rows.append(
                {"event_id": event_id, "user_id": f"u{user}", "occurred_at": now, "ingested_at": learnt_at}
                | {"event_name": "page_view"}
                | draw(st.sampled_from(ACTS))
            )
            now += draw(pauses)
    as_of = draw(st.sampled_from(rows))["occurred_at"] + draw(st.sampled_from([*AFTER, gap]))
    return World(gap, rows, as_of)


A_CROWD = worlds(min_users=8, max_users=12)
"""Histories of many users at once: a snapshot takes its time whether it is of one user or of a dozen."""

# --- tables ---


def listed(table: ir.Table, *key: str) -> list[Row]:
    """Run a query; list its rows by their key. Null is None, so a NaN would be equal to nothing."""
    rows: list[Row] = table.to_pyarrow().to_pylist()
    return sorted(rows, key=lambda row: [row[name] for name in key])


def sessions_of(engine: DuckDB, rows: list[Row], gap: timedelta) -> list[Row]:
    return listed(sessionize(events_of(engine, rows), gap), "user_id", "started_at")


def snapshot_of(engine: DuckDB, rows: list[Row], as_of: datetime, gap: timedelta) -> list[Row]:
    return snapshots_of(engine, rows, [as_of], gap)


def snapshots_of(engine: DuckDB, rows: list[Row], instants: list[datetime], gap: timedelta) -> list[Row]:
    return _snapshots(engine, events_of(engine, rows), instants, gap)


def _snapshots(engine: DuckDB, events: ir.Table, instants: list[datetime], gap: timedelta) -> list[Row]:
    nothing = pa.Table.from_pylist([], schema=ATTRIBUTES.schema.to_pyarrow())
    attributes = engine.create_table(f"attributes_{uuid.uuid4().hex}", nothing, temp=True)
    sessions = materialize(sessionize(events, gap))
    taken = take_snapshots(events, sessions, attributes, instants, gap=gap, time_zone="Europe/Berlin")
    return [row for _, snapshots in taken for row in listed(snapshots, "as_of", "user_id")]


def labels_of(engine: DuckDB, users: list[Row], rows: list[Row], known_at: datetime) -> list[Row]:
    schema = pa.schema([("user_id", pa.string()), ("as_of", TIME.to_pyarrow()), ("recency_days", pa.float64())])
    snapshot = engine.create_table(f"snapshot_{uuid.uuid4().hex}", pa.Table.from_pylist(users, schema), temp=True)
    return listed(label(snapshot, events_of(engine, rows), known_at, LABELLED), "user_id", "as_of")


# --- sessions ---


def sessionize_by_walking(rows: list[Row], gap: timedelta) -> list[Row]:
    """Sessionize as one would by hand: walk along each user's events in order of time and id."""
    in_order = sorted(rows, key=lambda row: (row["user_id"], row["occurred_at"], row["event_id"]))
    sessions: list[list[Row]] = []
    for _, acts in groupby(in_order, key=lambda row: row["user_id"]):
        session: list[Row] = []
        for act in acts:
            now = act["occurred_at"]
            if not session or now - session[-1]["occurred_at"] > gap or now - session[0]["occurred_at"] > A_DAY:
                session = []
                sessions.append(session)
            session.append(act)
    return [measure(session) for session in sessions]


def measure(acts: list[Row]) -> Row:
    first, last = acts[0], acts[-1]
    names = [act["event_name"] for act in acts]
    pages = [act["page"] for act in acts if "page" in act]
    amounts = [(act["event_name"], Decimal(str(act["revenue"]))) for act in acts if "revenue" in act]
    duration_s = (last["occurred_at"] - first["occurred_at"]).total_seconds()
    converted = "purchase" in names
    page_view_count = names.count("page_view")
    engaged = duration_s > 10 or page_view_count >= 2 or converted
    return {
        "session_id": hashlib.md5(f"{first['user_id']}\x1f{first['event_id']}".encode()).hexdigest(),
        "user_id": first["user_id"],
        "started_at": first["occurred_at"],
        "ended_at": last["occurred_at"],
        "duration_s": duration_s,
        "event_count": len(acts),
        "page_view_count": page_view_count,
        "search_count": names.count("search"),
        "support_count": names.count("support_view"),
        "cart_add_count": names.count("add_to_cart"),
        "purchase_count": names.count("purchase"),
        "revenue": float(sum(amount if name == "purchase" else -abs(amount) for name, amount in amounts)),
        "bounced": page_view_count == 1 and not engaged and "refund" not in names if page_view_count else None,
        "engaged": engaged if engaged or page_view_count or duration_s else None,
        "converted": converted,
        "cart_abandoned": not converted if "add_to_cart" in names else None,
        "entry_page": pages[0] if pages else None,
        "exit_page": pages[-1] if pages else None,
        **{name: first.get(name) for name in ("source", "campaign", "device", "country")},
    }


@law(5)
@given(world=worlds())
def test_sessions_are_what_a_walk_along_the_events_says(engine: DuckDB, world: World) -> None:
    assert sessions_of(engine, world.rows, world.gap) == sessionize_by_walking(world.rows, world.gap)


@law(3)
@given(world=worlds())
def test_every_event_is_in_exactly_one_session(engine: DuckDB, world: World) -> None:
    sessions = sessions_of(engine, world.rows, world.gap)

    assert sum(session["event_count"] for session in sessions) == len(world.rows)
    for row in world.rows:
        around = [
            session["session_id"]
            for session in sessions
            if session["user_id"] == row["user_id"]
            and session["started_at"] <= row["occurred_at"] <= session["ended_at"]
        ]
        assert len(around) == 1


@law(3)
@given(world=worlds(), random=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_for_sessions(engine: DuckDB, world: World, random: Random) -> None:
    shuffled = random.sample(world.rows, len(world.rows))

    assert sessions_of(engine, shuffled, world.gap) == sessions_of(engine, world.rows, world.gap)


@law(3)
@given(world=worlds())
def test_sessions_at_an_instant_are_those_of_the_history_known_then(engine: DuckDB, world: World) -> None:
    events = events_of(engine, world.rows)
    sessions = materialize(sessionize(events, world.gap))
    known = sessions_at(events, sessions, world.as_of, world.gap)

    assert listed(known, "user_id", "started_at") == sessions_of(engine, world.known(), world.gap)


@law(3)
@given(world=worlds())
def test_another_user_changes_no_ones_sessions(engine: DuckDB, world: World) -> None:
    others = [row for row in world.rows if row["user_id"] != "u0"]
    sessions = sessions_of(engine, world.rows, world.gap)

    assert [session for session in sessions if session["user_id"] != "u0"] == sessions_of(engine, others, world.gap)


# --- snapshots ---


@law(1)
@given(world=A_CROWD, random=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_for_features(engine: DuckDB, world: World, random: Random) -> None:
    shuffled = random.sample(world.rows, len(world.rows))

    assert snapshot_of(engine, shuffled, world.as_of, world.gap) == snapshot_of(
        engine, world.rows, world.as_of, world.gap
    )


@law(1)
@given(world=A_CROWD)
def test_what_was_not_known_at_as_of_changes_no_feature(engine: DuckDB, world: World) -> None:
    assert snapshot_of(engine, world.rows, world.as_of, world.gap) == snapshot_of(
        engine, world.known(), world.as_of, world.gap
    )


@law(1)
@given(world=A_CROWD, numbers=st.lists(st.integers(0, 99), max_size=2), after=st.sampled_from(AFTER))
def test_many_snapshots_are_those_of_what_was_known_at_each_instant(
    engine: DuckDB, world: World, numbers: list[int], after: timedelta
) -> None:
    others = [world.rows[number % len(world.rows)]["occurred_at"] + after for number in numbers]
    alone = [
        row
        for as_of in sorted({world.as_of, *others})
        for row in snapshot_of(engine, world._replace(as_of=as_of).known(), as_of, world.gap)
    ]

    assert snapshots_of(engine, world.rows, [world.as_of, *others], world.gap) == alone


@law(1)
@given(world=A_CROWD)
def test_another_user_changes_no_ones_features(engine: DuckDB, world: World) -> None:
    others = [row for row in world.rows if row["user_id"] not in ("u0", "u1")]
    snapshot = snapshot_of(engine, world.rows, world.as_of, world.gap)

    assert [user for user in snapshot if user["user_id"] not in ("u0", "u1")] == snapshot_of(
        engine, others, world.as_of, world.gap
    )


@pytest.fixture
def many_events(engine: DuckDB) -> ir.Table:
    """Make as many events as it takes for DuckDB to share the work between threads, with amounts no float holds."""
    values = {
        "event_id": "'e' || i",
        "user_id": "'u' || hash(i) % 500",
        "occurred_at": "TIMESTAMPTZ '2024-01-01 00:00:00Z' + to_microseconds((hash(i, 1) % 7776000000000)::BIGINT)",
        "event_name": "['page_view', 'purchase', 'refund', 'add_to_cart', 'support_view'][(1 + hash(i, 2) % 5)::INT]",
        "revenue": "(hash(i, 3) % 100000) / 700",
        "source": "['ads', 'mail', NULL][(1 + hash(i, 4) % 3)::INT]",
    }
    columns = ", ".join(
        f"{values.get(name, values['occurred_at'] if name == 'ingested_at' else 'NULL')} AS {name}"
        for name in EVENTS.schema.names
    )
    engine.con.execute(f"CREATE TEMP TABLE many_events AS SELECT {columns} FROM range(250000) AS numbers(i)")
    return engine.table("many_events").cast(EVENTS.schema)


@pytest.mark.slow
def test_a_snapshot_taken_again_is_the_same_to_the_last_bit_with_any_number_of_threads(
    engine: DuckDB, many_events: ir.Table
) -> None:
    as_of, gap = datetime(2024, 3, 15, tzinfo=UTC), timedelta(minutes=30)

    taken = []
    for threads in (4, 1):
        engine.con.execute(f"SET threads = {threads}")
        taken.append(repr(_snapshots(engine, many_events, [as_of], gap)))

    assert taken[0] == taken[1]


# --- labels ---

LABELLED = LabelSettings(
    delay_days=1,
    churn=ChurnSettings(horizon_days=2, eligible_days=1),
    conversion=ConversionSettings(horizon_days=1, events=["purchase", "refund"]),
)


def label_by_looking(users: list[Row], rows: list[Row], known_at: datetime) -> list[Row]:
    """Label as one would by hand: look at each user's events in the window."""
    labels = []
    for user in users:
        begin, days_since = user["as_of"] + A_DAY, user["recency_days"]
        acts = [row for row in rows if row["user_id"] == user["user_id"] and row["ingested_at"] <= known_at]
        churn_window = [act for act in acts if begin <= act["occurred_at"] < begin + 2 * A_DAY]
        names = {act["event_name"] for act in acts if begin <= act["occurred_at"] < begin + A_DAY}
        churned = not churn_window if known_at >= begin + 2 * A_DAY and days_since <= 1 else None
        converted = bool(names & {"purchase", "refund"})
        if known_at >= begin + A_DAY:
            key = {"user_id": user["user_id"], "as_of": user["as_of"]}
            labels.append(key | {"churned": churned, "converted": converted})
    return sorted(labels, key=lambda row: (row["user_id"], row["as_of"]))


def snapshots_in(world: World) -> list[Row]:
    """Make of each user and each of some instants what a label needs of a snapshot."""
    return [
        {"user_id": user_id, "as_of": world.as_of - days * A_DAY, "recency_days": recency_days}
        for user_id, recency_days in zip(
            sorted({row["user_id"] for row in world.rows}), [1.0, 0.5, 1.1, 0.0, 9.0], strict=False
        )
        for days in (0, 1, 2, 3, 4)
    ]


@law(4)
@given(world=worlds())
def test_labels_are_what_a_look_at_the_window_says(engine: DuckDB, world: World) -> None:
    users = snapshots_in(world)

    assert labels_of(engine, users, world.rows, world.as_of) == label_by_looking(users, world.rows, world.as_of)


@law(3)
@given(world=worlds())
def test_what_was_not_known_changes_no_label(engine: DuckDB, world: World) -> None:
    users = snapshots_in(world)

    assert labels_of(engine, users, world.rows, world.as_of) == labels_of(engine, users, world.known(), world.as_of)


@law(3)
@given(world=worlds())
def test_another_user_changes_no_ones_labels(engine: DuckDB, world: World) -> None:
    users = snapshots_in(world)
    others = [user for user in users if user["user_id"] != "u0"]
    rows_of_others = [row for row in world.rows if row["user_id"] != "u0"]
    labels = labels_of(engine, users, world.rows, world.as_of)

    assert [row for row in labels if row["user_id"] != "u0"] == labels_of(engine, others, rows_of_others, world.as_of)
