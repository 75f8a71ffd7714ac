"""What came after an instant is changed, and no feature may notice; one that does is named, with the change."""

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pytest
from histories import events_of
from ibis.backends.duckdb import Backend as DuckDB

from features import engines
from features.attributes import ATTRIBUTES
from features.sessions import sessionize, sessions_at
from features.snapshots import take_snapshot
from features.synthetic import Traffic, synthetic_events
from features.table import TIME, ContractError, materialize
from features.time_travel import (
    CHANGES,
    ExtraFeature,
    count_changed,
    known,
    sample_users,
    travel,
    with_features,
)

Row = dict[str, Any]

GAP = timedelta(minutes=30)
AS_OF = datetime(2024, 5, 1, tzinfo=UTC)
ROWS: list[Row] = [
    {"user_id": "before", "occurred_at": "2024-04-20T10:00"},
    {"user_id": "before", "occurred_at": "2024-04-21T10:00", "event_name": "purchase", "revenue": 10.5},
    {"user_id": "spanning", "occurred_at": "2024-04-30T23:50", "page": "/"},
    {"user_id": "spanning", "occurred_at": "2024-04-30T23:59:59.999999", "event_name": "add_to_cart"},
    {"user_id": "spanning", "occurred_at": "2024-05-01T00:00", "event_name": "purchase", "revenue": 7.0},
    {"user_id": "spanning", "occurred_at": "2024-05-09T10:00", "event_name": "support_view"},
    {"user_id": "late", "occurred_at": "2024-04-10T10:00"},
    {"user_id": "late", "occurred_at": "2024-04-10T10:20", "ingested_at": "2024-05-02T00:00"},
    {"user_id": "late", "occurred_at": "2024-05-03T10:00", "device": "phone"},
    {"user_id": "after", "occurred_at": "2024-05-02T10:00"},
]


def users_of(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    """Take a snapshot without a feature: the users who were known."""
    return known(events, as_of).select("user_id").distinct()


def snapshot_of(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    """Take a snapshot with the features of Habitus."""
    engine = events.get_backend()
    nothing = pa.Table.from_pylist([], schema=ATTRIBUTES.schema.to_pyarrow())
    attributes = engine.create_table(f"attributes_{uuid.uuid4().hex}", nothing, temp=True)
    return take_snapshot(events, sessions, attributes, as_of, gap=GAP)


# --- the features of Habitus ---


def test_no_feature_of_hand_written_events_knows_the_future(engine: DuckDB) -> None:
    events = events_of(engine, ROWS)
    journey = travel(snapshot_of, events, materialize(sessionize(events, GAP)), AS_OF, GAP)

    assert journey.changed == ()
    assert (journey.users, journey.events_after) == (3, 4)
    assert journey.events_made_up > 100
    assert {"recency_days", "revenue_total", "purchase_recency_days", "device"} <= set(journey.features)


@pytest.mark.slow
def test_no_feature_of_synthetic_events_knows_the_future(engine: DuckDB) -> None:
    events = synthetic_events(engine, Traffic(events=3_000, days=20, users=200, late_share=0.2))
    as_of = datetime.combine(date(2024, 1, 11), datetime.min.time(), UTC) + timedelta(hours=20)
    journey = travel(snapshot_of, events, materialize(sessionize(events, GAP)), as_of, GAP)

    assert journey.changed == ()
    assert journey.users > 80
    assert journey.events_after > 1_000


def test_no_bounce_of_a_source_that_has_days_knows_the_future(engine: DuckDB) -> None:
    def bounce_count(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        then = sessions_at(events, sessions, as_of, GAP, day_level=True)
        return then.group_by("user_id").agg(bounce_count=then.bounced.count(), engaged_count=then.engaged.count())

    events = events_of(engine, [{"occurred_at": f"2024-03-{day:02}"} for day in range(1, 20)])
    journey = travel(bounce_count, events, materialize(sessionize(events, GAP, day_level=True)), AS_OF, GAP, True)

    assert (journey.users, journey.changed) == (1, ())


# --- features of one's own ---
# All of them go on one journey, since a journey takes its time.


def everyone(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    """Take a snapshot of users who come later, too, and without a feature."""
    return events.select("user_id").distinct()


def honest_page_view_count(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    seen = known(events, as_of)
    return seen.group_by("user_id").agg(honest_page_view_count=seen.count(where=seen.event_name == "page_view"))


def honest_longest_s(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    then = sessions_at(events, sessions, as_of, GAP)
    return then.group_by("user_id").agg(honest_longest_s=then.duration_s.max())


def honest_last_microsecond_count(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    last = known(events, as_of).filter(events.occurred_at == as_of - timedelta(microseconds=1))
    return last.group_by("user_id").agg(honest_last_microsecond_count=last.count())


def next_event_s(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    later = events.filter(events.occurred_at > as_of)
    return later.group_by("user_id").agg(next_event_s=later.occurred_at.min().epoch_seconds())


def later_count(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    later = events.filter(events.occurred_at >= as_of)
    return later.group_by("user_id").agg(later_count=later.count())


def count_at_as_of(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    seen = events.filter(events.occurred_at <= as_of, events.ingested_at <= as_of)
    return seen.group_by("user_id").agg(count_at_as_of=seen.count())


def count_with_late(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    seen = events.filter(events.occurred_at < as_of)
    return seen.group_by("user_id").agg(count_with_late=seen.count())


def count_announced(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    seen = events.filter(events.ingested_at <= as_of)
    return seen.group_by("user_id").agg(count_announced=seen.count())


def count_of_begun_sessions(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    begun = sessions.filter(sessions.started_at < as_of)
    return begun.group_by("user_id").agg(count_of_begun_sessions=begun.event_count.sum())


def last_device(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    return events.group_by("user_id").agg(last_device=events.device.argmax(events.occurred_at))


def share_of_all(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
    counts = known(events, as_of).group_by("user_id").agg(n=lambda seen: seen.count())
    return counts.select("user_id", share_of_all=counts.n / events.count().name("all").as_scalar())


HONEST: tuple[ExtraFeature, ...] = (honest_page_view_count, honest_longest_s, honest_last_microsecond_count)
PLANTED: dict[ExtraFeature, set[str]] = {
    next_event_s: {"cut", "shuffled", "moved", "added"},
    later_count: {"cut", "added"},
    count_at_as_of: {"cut", "moved", "added"},
    count_with_late: {"late"},
    count_announced: {"cut", "added"},
    count_of_begun_sessions: {"cut", "late", "added"},
    last_device: {"cut", "added"},
    share_of_all: {"cut", "late", "added"},
}
"""Features that know more than was known, and changes that have to show it."""


@pytest.fixture(scope="module")
def noticed() -> dict[str, dict[str, int]]:
    """Return, for each feature that noticed any, the changes and for how many users it then was another."""
    engine = engines.connect()
    events = events_of(engine, ROWS)
    take = with_features(everyone, *HONEST, *PLANTED)
    journey = travel(take, events, materialize(sessionize(events, GAP)), AS_OF, GAP)
    engine.disconnect()
    found: dict[str, dict[str, int]] = {}
    for changed in journey.changed:
        found.setdefault(changed.feature, {})[changed.change] = changed.users
    return found


@pytest.mark.parametrize("feature", HONEST)
def test_a_feature_of_what_was_known_is_clean(noticed: dict[str, dict[str, int]], feature: ExtraFeature) -> None:
    assert feature.__name__ not in noticed


@pytest.mark.parametrize(("feature", "changes"), PLANTED.items())
def test_a_feature_of_what_was_not_known_is_found(
    noticed: dict[str, dict[str, int]], feature: ExtraFeature, changes: set[str]
) -> None:
    assert changes <= noticed[feature.__name__].keys()


def test_an_event_at_as_of_is_future(noticed: dict[str, dict[str, int]]) -> None:
    assert noticed["count_at_as_of"]["cut"] == 1  # of the user whose session spans as_of


def test_an_event_a_microsecond_before_as_of_is_past(engine: DuckDB) -> None:
    events = events_of(engine, ROWS)
    [row] = honest_last_microsecond_count(events, events, AS_OF).to_pyarrow().to_pylist()
    assert row == {"user_id": "spanning", "honest_last_microsecond_count": 1}


def test_what_arrives_late_is_told_from_what_happens_later(noticed: dict[str, dict[str, int]]) -> None:
    assert noticed["count_with_late"] == {"late": 4}


def test_how_many_users_are_others_is_counted(noticed: dict[str, dict[str, int]]) -> None:
    assert noticed["later_count"]["cut"] == 2  # who only comes later is no longer in the snapshot
    assert noticed["later_count"]["added"] == 4


def test_a_snapshot_of_users_who_were_not_there_yet_is_found(noticed: dict[str, dict[str, int]]) -> None:
    assert noticed["user_id"] == {"cut": 1}


def test_before_anything_happened_there_is_nothing_to_tell(engine: DuckDB) -> None:
    events = events_of(engine, [{"user_id": "after", "occurred_at": "2024-05-02T10:00"}])
    journey = travel(users_of, events, materialize(sessionize(events, GAP)), AS_OF, GAP)

    assert (journey.users, journey.changed) == (0, ())


def test_what_is_materialized_on_the_way_is_dropped(engine: DuckDB) -> None:
    events = events_of(engine, ROWS)
    sessions = materialize(sessionize(events, GAP))
    before = set(engine.list_tables())

    travel(users_of, events, sessions, AS_OF, GAP)

    assert {name for name in set(engine.list_tables()) - before if name.startswith("materialized_")} == set()


# --- the changes themselves ---


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leaves_what_was_known_as_it_was(engine: DuckDB, name: str) -> None:
    events = events_of(engine, ROWS)

    def listed(rows: ir.Table) -> list[Row]:
        found: list[Row] = rows.order_by("event_id").to_pyarrow().to_pylist()
        return found

    changed = materialize(CHANGES[name](events, AS_OF))
    assert listed(known(changed, AS_OF)) == listed(known(events, AS_OF))
    assert listed(changed) != listed(events)
    assert changed.count().to_pyarrow().as_py() == changed.event_id.nunique().to_pyarrow().as_py()


def test_a_late_event_and_one_at_as_of_are_among_those_made_up(engine: DuckDB) -> None:
    events = events_of(engine, ROWS)
    for name, at, arrived in (
        ("late", AS_OF - timedelta(microseconds=1), AS_OF + timedelta(microseconds=1)),
        ("added", AS_OF, AS_OF),
    ):
        changed = CHANGES[name](events, AS_OF)
        times = (changed.occurred_at == ibis.literal(at, TIME)) & (changed.ingested_at == ibis.literal(arrived, TIME))
        kinds = changed.filter(times).event_name.collect().to_pyarrow().as_py()
        assert {"purchase", "refund", "support_view", "page_view"} <= set(kinds)


def test_shuffling_keeps_each_users_and_names_number(engine: DuckDB) -> None:
    events = events_of(engine, [*ROWS, *({"user_id": f"u{n}", "occurred_at": "2024-06-01"} for n in range(20))])
    shuffled = materialize(CHANGES["shuffled"](events, AS_OF))
    for column in ("user_id", "event_name", "revenue", "occurred_at"):
        before, after = (table[column].collect().to_pyarrow().as_py() for table in (events, shuffled))
        assert sorted(map(str, before)) == sorted(map(str, after))


# --- one's own features in a snapshot ---


def test_a_further_feature_is_a_number_or_text_and_null_for_users_without(engine: DuckDB) -> None:
    def bought(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        purchases = known(events, as_of).filter(events.event_name == "purchase")
        return purchases.group_by("user_id").agg(bought=purchases.count() > 0)

    def first_page(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        seen = known(events, as_of)
        return seen.group_by("user_id").agg(first_page=seen.page.argmin(seen.occurred_at))

    events = events_of(engine, ROWS)
    taken = with_features(users_of, bought, first_page)(events, events, AS_OF)

    assert taken.schema() == ibis.schema({"user_id": "string", "bought": "float64", "first_page": "string"})
    rows = {row["user_id"]: row for row in taken.to_pyarrow().to_pylist()}
    assert rows["before"]["bought"] == 1.0
    assert rows["spanning"] == {"user_id": "spanning", "bought": None, "first_page": "/"}


def test_a_further_feature_has_a_name_of_its_own_and_gives_its_column(engine: DuckDB) -> None:
    def user_id(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        return events.select("user_id")

    def visits(events: ir.Table, sessions: ir.Table, as_of: datetime) -> ir.Table:
        return events.group_by("user_id").agg(n=events.count())

    events = events_of(engine, ROWS)
    with pytest.raises(ContractError, match="user_id: there is a column of that name already"):
        with_features(users_of, user_id)(events, events, AS_OF)
    with pytest.raises(ContractError, match="visits: gave user_id, n; it has to give user_id and visits"):
        with_features(users_of, visits)(events, events, AS_OF)


# --- comparing, and choosing users ---


def test_the_same_snapshot_differs_in_nothing_whatever_its_values(engine: DuckDB) -> None:
    schema = ibis.schema({"user_id": "string", "x": "float64", "c": "string"})
    rows = [("a", None, None), ("b", float("nan"), "x"), ("c", float("inf"), ""), ("d", 1e300, "y"), ("e", 0.1, "z")]
    now, then = (engine.create_table(name, ibis.memtable(rows, schema=schema)) for name in ("now", "then"))
    assert count_changed(now, then) == {}


@pytest.mark.parametrize(
    ("then", "changed"),
    [
        (("a", 1.0 + 1e-12, "x"), {}),
        (("a", 1.001, "x"), {"x": 1}),
        (("a", None, "x"), {"x": 1}),
        (("a", float("inf"), "x"), {"x": 1}),
        (("a", float("nan"), "x"), {"x": 1}),
        (("a", 1.0, None), {"c": 1}),
        (("b", 1.0, "x"), {"user_id": 2}),
    ],
)
def test_what_differs_is_counted(engine: DuckDB, then: tuple[str, float, str], changed: dict[str, int]) -> None:
    schema = ibis.schema({"user_id": "string", "x": "float64", "c": "string"})
    tables = [ibis.memtable([row], schema=schema) for row in (("a", 1.0, "x"), then)]
    before, after = (engine.create_table(f"t{number}", table) for number, table in enumerate(tables))
    assert count_changed(before, after) == changed


def test_a_sample_of_users_is_the_same_for_a_seed(engine: DuckDB) -> None:
    sessions = engine.create_table("s", ibis.memtable({"user_id": [f"u{n % 50}" for n in range(200)]}))

    def chosen(count: int, seed: int) -> list[str]:
        found: list[str] = sample_users(sessions, count, seed).to_pyarrow()["user_id"].to_pylist()
        return sorted(found)

    assert chosen(10, 0) == chosen(10, 0)
    assert chosen(10, 0) != chosen(10, 1)
    assert len(set(chosen(10, 0))) == 10
    assert len(chosen(1_000, 0)) == 50
