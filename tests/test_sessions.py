import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pytest
from histories import events_of, instant
from ibis.backends.duckdb import Backend as DuckDB
from pydantic import ValidationError

from features.events import accept
from features.sessions import SESSIONS, SessionSettings, sessionize, sessions_at
from features.sources import Columns, Source, read_events
from features.table import materialize

Row = dict[str, Any]

GAP = timedelta(minutes=30)
GOLDEN = Path(__file__).parent / "data" / "sessionization"


def at(time: str, **columns: object) -> Row:
    """Make an event of 2024-03-01, unless the time names another day."""
    return {"occurred_at": time if "T" in time else f"2024-03-01T{time}"} | columns


def sessions_of(engine: DuckDB, rows: list[Row], gap: timedelta = GAP) -> list[Row]:
    """Sessionize events; list the sessions by user and start."""
    return in_order(sessionize(events_of(engine, rows), gap).to_pyarrow().to_pylist())


def in_order(sessions: list[Row]) -> list[Row]:
    return sorted(sessions, key=lambda session: (session["user_id"], session["started_at"]))


def session_of(engine: DuckDB, rows: list[Row], gap: timedelta = GAP) -> Row:
    """Sessionize events that make one session."""
    [session] = sessions_of(engine, rows, gap)
    return session


def event_counts(sessions: list[Row]) -> list[int]:
    return [session["event_count"] for session in sessions]


# --- golden cases of other projects ---


def test_madlibs_events_fall_into_the_sessions_madlib_expects_and_those_without_time_into_none(engine: DuckDB) -> None:
    columns = Columns(user_id="user_id", occurred_at="occurred_at", event_name="event_name", revenue="revenue")
    raw = read_events(engine, Source(files="madlib_gap_3min.csv", columns=columns), GOLDEN)
    events, rejected = accept(raw, Source(files="", columns=columns), "UTC", datetime(2026, 1, 1, tzinfo=UTC))

    made = in_order(sessionize(events, timedelta(minutes=3)).to_pyarrow().to_pylist())

    expected = pd.read_csv(GOLDEN / "madlib_gap_3min.csv", dtype={"user_id": str}, parse_dates=["occurred_at"])
    timed = expected.dropna(subset="occurred_at").groupby(["user_id", "expected_session_index"])["occurred_at"]
    assert [(s["user_id"], s["started_at"], s["ended_at"], s["event_count"]) for s in made] == [
        (user_id, times.min(), times.max(), len(times)) for (user_id, _), times in timed
    ]
    assert rejected.reason.to_pyarrow().to_pylist() == ["no_time"] * 5


def test_datafus_events_fall_into_the_sessions_datafu_expects(engine: DuckDB) -> None:
    rows = pd.read_csv(GOLDEN / "datafu_gap_30min.csv", dtype={"user_id": str})
    events = [at(time, user_id=user_id) for time, user_id in zip(rows.occurred_at, rows.user_id, strict=True)]
    times = pd.to_datetime(rows.occurred_at)

    found = []
    for session in sessions_of(engine, events):
        is_inside = (rows.user_id == session["user_id"]) & times.between(session["started_at"], session["ended_at"])
        found.append((session["user_id"], rows.value[is_inside].max()))
    expected = pd.read_csv(GOLDEN / "datafu_gap_30min_expected.csv", dtype={"user_id": str})
    assert found == list(zip(expected.user_id, expected.max_value, strict=True))


# --- the gap ---


def test_a_gap_of_exactly_the_limit_stays_in_the_session(engine: DuckDB) -> None:
    assert event_counts(sessions_of(engine, [at("10:00:00"), at("10:30:00")])) == [2]


def test_a_gap_one_microsecond_longer_than_the_limit_ends_the_session(engine: DuckDB) -> None:
    assert event_counts(sessions_of(engine, [at("10:00:00"), at("10:30:00.000001")])) == [1, 1]


def test_the_gap_is_between_neighbours_not_to_the_first_event(engine: DuckDB) -> None:
    session = session_of(engine, [at("10:00"), at("10:25"), at("10:50"), at("11:15")])

    assert session["started_at"] == instant("2024-03-01T10:00")
    assert session["ended_at"] == instant("2024-03-01T11:15")
    assert session["duration_s"] == 75 * 60


def test_the_limit_is_the_callers_choice(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:30"), at("11:15")]

    assert event_counts(sessions_of(engine, rows, timedelta(minutes=20))) == [1, 1, 1]
    assert event_counts(sessions_of(engine, rows, timedelta(minutes=45))) == [3]


def test_midnight_does_not_end_a_session(engine: DuckDB) -> None:
    session = session_of(engine, [at("2024-03-01T23:59:59.999999"), at("2024-03-02T00:00:00")])

    assert session["duration_s"] == 0.000001


def test_a_new_campaign_does_not_split_a_session(engine: DuckDB) -> None:
    rows = [at("10:00", source="mail", campaign="spring"), at("10:01", source="ads", campaign="summer")]
    session = session_of(engine, rows)

    assert (session["source"], session["campaign"]) == ("mail", "spring")


@pytest.mark.parametrize("border", ["10:00", "10:30", "00:00"])
def test_events_a_microsecond_apart_are_in_one_session_wherever_the_clock_stands(engine: DuckDB, border: str) -> None:
    at_border = instant(f"2024-03-01T{border}")
    rows = [{"occurred_at": at_border + timedelta(microseconds=number)} for number in (-1, 0, 1)]

    assert event_counts(sessions_of(engine, rows)) == [3]


def test_a_gap_a_microsecond_too_long_ends_the_session_though_the_events_are_in_neighbouring_half_hours(
    engine: DuckDB,
) -> None:
    assert event_counts(sessions_of(engine, [at("10:29:59.999998"), at("10:59:59.999999")])) == [1, 1]


def test_sessions_before_1970_follow_the_same_rules(engine: DuckDB) -> None:
    before = [at("1969-12-31T23:00:00"), at("1969-12-31T23:30:00"), at("1969-12-31T23:59:59.999999")]
    after = [at("1970-01-01T00:00:00"), at("1970-01-01T00:30:00"), at("1970-01-01T01:00:00.000001")]

    assert event_counts(sessions_of(engine, before + after)) == [5, 1]


@pytest.mark.parametrize("year", ["0001", "1066", "1969"])
def test_the_gap_is_exact_to_the_microsecond_in_any_year(engine: DuckDB, year: str) -> None:
    day = f"{year}-03-01"
    rows = [at(f"{day}T10:00:00.000001"), at(f"{day}T10:30:00.000001"), at(f"{day}T11:00:00.000002")]

    assert event_counts(sessions_of(engine, rows)) == [2, 1]


def test_users_have_sessions_of_their_own(engine: DuckDB) -> None:
    rows = [at("10:00", user_id="a"), at("10:10", user_id="b"), at("10:40", user_id="a"), at("10:35", user_id="b")]
    sessions = sessions_of(engine, rows)

    assert [(session["user_id"], session["event_count"]) for session in sessions] == [("a", 1), ("a", 1), ("b", 2)]


def test_no_events_make_no_sessions(engine: DuckDB) -> None:
    assert sessions_of(engine, []) == []


# --- the cap of 24 hours ---

HALF_DAY = timedelta(hours=12)


def test_an_event_exactly_24_hours_after_the_first_stays_in_the_session(engine: DuckDB) -> None:
    rows = [at("2024-03-01T00:00"), at("2024-03-01T12:00"), at("2024-03-02T00:00")]
    [session] = sessions_of(engine, rows, HALF_DAY)

    assert session["duration_s"] == 86_400


def test_the_next_event_after_24_hours_begins_a_session(engine: DuckDB) -> None:
    rows = [at("2024-03-01T00:00"), at("2024-03-01T12:00"), at("2024-03-02T00:00"), at("2024-03-02T00:00:00.000001")]
    sessions = sessions_of(engine, rows, HALF_DAY)

    assert event_counts(sessions) == [3, 1]
    assert sessions[1]["started_at"] == instant("2024-03-02T00:00:00.000001")


def test_an_unbroken_chain_of_days_is_cut_again_and_again_from_each_sessions_first_event(engine: DuckDB) -> None:
    begin = instant("2024-03-01T00:00")
    rows = [{"occurred_at": begin + timedelta(hours=hours)} for hours in (0, 10, 20, 30, 40, 50, 60, 70)]
    sessions = sessions_of(engine, rows, HALF_DAY)

    assert [session["started_at"] - begin for session in sessions] == [
        timedelta(0),
        timedelta(hours=30),
        timedelta(hours=60),
    ]
    assert event_counts(sessions) == [3, 3, 2]


def test_a_robot_with_an_event_every_20_minutes_has_a_session_every_24_hours_and_20_minutes(engine: DuckDB) -> None:
    begin = instant("2024-03-01T00:00")
    rows = [{"occurred_at": begin + number * timedelta(minutes=20)} for number in range(3 * 73 + 1)]

    assert event_counts(sessions_of(engine, rows)) == [73, 73, 73, 1]


def test_the_cap_leaves_the_sessions_after_a_pause_and_of_other_users_alone(engine: DuckDB) -> None:
    overlong = [at("2024-03-01T00:00"), at("2024-03-01T12:00"), at("2024-03-02T00:00"), at("2024-03-02T12:00")]
    next_chain = [at("2024-03-03T01:00"), at("2024-03-03T13:00"), at("2024-03-04T01:00")]
    other = [at("2024-03-01T12:00", user_id="v"), at("2024-03-02T00:00", user_id="v")]
    sessions = sessions_of(engine, overlong + next_chain + other, HALF_DAY)

    assert [(s["user_id"], s["event_count"]) for s in sessions] == [("u", 3), ("u", 1), ("u", 3), ("v", 2)]


def test_events_at_one_instant_are_on_the_same_side_of_the_cap(engine: DuckDB) -> None:
    begin = [at("2024-03-01T00:00"), at("2024-03-01T12:00")]
    at_the_cap = [at("2024-03-02T00:00"), at("2024-03-02T00:00")]
    beyond = [at("2024-03-02T00:01"), at("2024-03-02T00:01"), at("2024-03-02T00:01")]

    assert event_counts(sessions_of(engine, begin + at_the_cap + beyond, HALF_DAY)) == [4, 3]


def test_a_session_begun_by_the_cap_has_its_own_first_event_counts_and_revenue(engine: DuckDB) -> None:
    rows = [
        at("2024-03-01T00:00", page="/a", source="mail", event_name="purchase", revenue=5.0),
        at("2024-03-01T12:00", page="/b"),
        at("2024-03-02T00:30", page="/c", source="ads", event_id="first"),
        at("2024-03-02T01:00", page="/d", event_name="purchase", revenue=7.0),
    ]
    earlier, later = sessions_of(engine, rows, HALF_DAY)

    assert (earlier["entry_page"], earlier["exit_page"], earlier["source"], earlier["revenue"]) == (
        "/a",
        "/b",
        "mail",
        5,
    )
    assert (later["entry_page"], later["exit_page"], later["source"], later["revenue"]) == ("/c", "/d", "ads", 7)
    assert (later["page_view_count"], later["purchase_count"]) == (1, 1)
    assert later["session_id"] == session_id("u", "first")


# --- first and last event ---


def test_entry_and_exit_page_are_those_of_the_first_and_last_event_that_have_a_page(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:01", page="/a"), at("10:02", page="/b"), at("10:03", page="/c"), at("10:04")]
    session = session_of(engine, rows)

    assert (session["entry_page"], session["exit_page"]) == ("/a", "/c")


def test_entry_and_exit_page_are_found_across_an_hour_of_events_without_page(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:30"), at("11:00", page="/a"), at("11:30", page="/b"), at("12:00"), at("12:30")]
    session = session_of(engine, rows)

    assert (session["entry_page"], session["exit_page"]) == ("/a", "/b")


def test_a_session_without_pages_has_no_entry_or_exit_page(engine: DuckDB) -> None:
    session = session_of(engine, [at("10:00"), at("10:01")])

    assert (session["entry_page"], session["exit_page"]) == (None, None)


def test_of_events_at_one_instant_the_lowest_event_id_is_first_and_the_highest_last(engine: DuckDB) -> None:
    rows = [
        at("10:00", event_id="b", page="/b", source="ads"),
        at("10:00", event_id="c", page="/c", source="search"),
        at("10:00", event_id="a", page="/a", source="mail"),
    ]
    session = session_of(engine, rows)

    assert (session["entry_page"], session["exit_page"], session["source"]) == ("/a", "/c", "mail")
    assert session["session_id"] == session_id("u", "a")


OF_FIRST_EVENT = ("source", "campaign", "device", "country")


def test_what_the_first_event_does_not_say_is_not_taken_from_a_later_one(engine: DuckDB) -> None:
    session = session_of(engine, [at("10:00"), at("10:01", **dict.fromkeys(OF_FIRST_EVENT, "later"))])

    assert [session[name] for name in OF_FIRST_EVENT] == [None] * 4


def test_what_the_first_event_says_holds_for_the_session(engine: DuckDB) -> None:
    first, later = dict.fromkeys(OF_FIRST_EVENT, "first"), dict.fromkeys(OF_FIRST_EVENT, "later")
    session = session_of(engine, [at("10:50", **later), at("10:00", **first), at("10:25")])

    assert [session[name] for name in OF_FIRST_EVENT] == ["first"] * 4


# --- counts and revenue ---


@pytest.mark.parametrize(
    ("event_name", "column"),
    [
        ("page_view", "page_view_count"),
        ("search", "search_count"),
        ("support_view", "support_count"),
        ("add_to_cart", "cart_add_count"),
        ("purchase", "purchase_count"),
    ],
)
def test_events_are_counted_by_name(engine: DuckDB, event_name: str, column: str) -> None:
    counts = ["page_view_count", "search_count", "support_count", "cart_add_count", "purchase_count"]
    session = session_of(engine, [at("10:00", event_name=event_name), at("10:25", event_name=event_name)])

    assert {name: session[name] for name in counts} == dict.fromkeys(counts, 0) | {column: 2}
    assert session["event_count"] == 2


def test_an_event_of_any_other_name_counts_as_an_event_only(engine: DuckDB) -> None:
    names = ["product_view", "remove_from_cart", "checkout_start", "login", "PAGE_VIEW", "?"]
    session = session_of(engine, [at("10:00", event_name=name, revenue=9.0) for name in names])

    assert session["event_count"] == 6
    counted = ("page_view_count", "search_count", "support_count", "cart_add_count", "purchase_count", "revenue")
    assert [session[name] for name in counted] == [0] * 6


@pytest.mark.parametrize("refund", [4.0, -4.0])
def test_revenue_is_purchases_less_refunds_whichever_sign_the_source_gives_these(engine: DuckDB, refund: float) -> None:
    rows = [
        at("10:00", event_name="purchase", revenue=10.0),
        at("10:10", event_name="purchase", revenue=0.5),
        at("10:20", event_name="refund", revenue=refund),
    ]

    assert session_of(engine, rows)["revenue"] == 6.5


def test_a_session_with_only_a_refund_has_negative_revenue_and_did_not_convert(engine: DuckDB) -> None:
    session = session_of(engine, [at("10:00", event_name="refund", revenue=4.0)])

    assert (session["revenue"], session["converted"]) == (-4, False)


def test_revenue_is_zero_where_a_purchase_says_none(engine: DuckDB) -> None:
    session = session_of(engine, [at("10:00", event_name="purchase")])

    assert (session["revenue"], session["converted"]) == (0, True)


def test_revenue_adds_up_to_the_cent(engine: DuckDB) -> None:
    rows = [at(f"10:0{minute}", event_name="purchase", revenue=amount) for minute, amount in enumerate([0.1, 0.2, 0.7])]

    assert session_of(engine, rows[:2])["revenue"] == 0.3
    assert session_of(engine, rows)["revenue"] == 1.0


# --- bounced, engaged, converted, cart_abandoned ---


def judged(session: Row) -> set[str]:
    return {name for name in ("bounced", "engaged", "converted") if session[name]}


def test_one_page_view_is_bounced(engine: DuckDB) -> None:
    assert judged(session_of(engine, [at("10:00")])) == {"bounced"}


def test_one_page_view_with_other_events_is_bounced_if_it_is_short(engine: DuckDB) -> None:
    assert judged(session_of(engine, [at("10:00:00"), at("10:00:09", event_name="click")])) == {"bounced"}


def test_a_session_without_page_views_does_not_tell_of_a_bounce(engine: DuckDB) -> None:
    lone, quick, long, converted = (
        session_of(engine, [at(time, event_name=name) for time, name in acts])
        for acts in (
            [("10:00", "login")],
            [("10:00:00", "login"), ("10:00:01", "click")],
            [("10:00", "login"), ("10:05", "click")],
            [("10:00", "purchase")],
        )
    )

    assert [one["bounced"] for one in (lone, quick, long, converted)] == [None] * 4


def test_one_event_without_a_page_view_tells_nothing_of_engagement(engine: DuckDB) -> None:
    assert session_of(engine, [at("10:00", event_name="login")])["engaged"] is None


def test_events_at_one_instant_without_a_page_view_tell_nothing_of_engagement(engine: DuckDB) -> None:
    assert session_of(engine, [at("10:00", event_name="login"), at("10:00", event_name="click")])["engaged"] is None


def test_two_quick_events_without_a_page_view_are_not_engaged(engine: DuckDB) -> None:
    rows = [at("10:00:00", event_name="login"), at("10:00:01", event_name="click")]

    assert session_of(engine, rows)["engaged"] is False


def test_longer_than_ten_seconds_is_engaged_without_a_page_view(engine: DuckDB) -> None:
    rows = [at("10:00:00", event_name="login"), at("10:00:11", event_name="click")]

    assert judged(session_of(engine, rows)) == {"engaged"}


def test_a_refund_is_no_bounce(engine: DuckDB) -> None:
    alone = session_of(engine, [at("10:00", event_name="refund", revenue=-5)])
    with_page = session_of(engine, [at("10:00:00"), at("10:00:05", event_name="refund", revenue=-5)])

    assert (alone["bounced"], alone["engaged"]) == (None, None)
    assert (with_page["bounced"], with_page["engaged"]) == (False, False)


def test_a_refund_in_another_part_of_the_session_is_no_bounce(engine: DuckDB) -> None:
    """The slots of 3 minutes end between the two."""
    rows = [at("10:02:55"), at("10:03:04", event_name="refund", revenue=-5)]

    assert session_of(engine, rows, timedelta(minutes=3))["bounced"] is False


def test_exactly_ten_seconds_are_not_longer_than_ten_seconds(engine: DuckDB) -> None:
    assert judged(session_of(engine, [at("10:00:00"), at("10:00:10", event_name="click")])) == {"bounced"}


def test_longer_than_ten_seconds_is_engaged(engine: DuckDB) -> None:
    assert judged(session_of(engine, [at("10:00:00"), at("10:00:10.000001", event_name="click")])) == {"engaged"}


def test_two_page_views_are_engaged_however_quick(engine: DuckDB) -> None:
    assert judged(session_of(engine, [at("10:00:00"), at("10:00:00")])) == {"engaged"}


def test_a_purchase_is_converted_and_engaged_and_not_bounced(engine: DuckDB) -> None:
    assert judged(session_of(engine, [at("10:00", event_name="purchase")])) == {"engaged", "converted"}
    assert judged(session_of(engine, [at("10:00"), at("10:00", event_name="purchase")])) == {"engaged", "converted"}


def test_a_cart_without_purchase_is_abandoned(engine: DuckDB) -> None:
    assert session_of(engine, [at("10:00", event_name="add_to_cart")])["cart_abandoned"] is True


def test_a_cart_with_a_purchase_is_not_abandoned(engine: DuckDB) -> None:
    rows = [at("10:00", event_name="add_to_cart"), at("10:20", event_name="purchase")]

    assert session_of(engine, rows)["cart_abandoned"] is False


def test_a_cart_is_abandoned_though_it_is_bought_in_the_next_session(engine: DuckDB) -> None:
    rows = [at("10:00", event_name="add_to_cart"), at("12:00", event_name="purchase")]

    assert [session["cart_abandoned"] for session in sessions_of(engine, rows)] == [True, None]


def test_abandonment_does_not_apply_without_a_cart(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:01", event_name="purchase"), at("10:02", event_name="remove_from_cart")]

    assert session_of(engine, rows)["cart_abandoned"] is None


# --- ids and contract ---


def session_id(user_id: str, first_event_id: str) -> str:
    return hashlib.md5(f"{user_id}\x1f{first_event_id}".encode()).hexdigest()


def test_a_sessions_id_is_the_same_forever(engine: DuckDB) -> None:
    session = session_of(engine, [at("10:00", user_id="ada", event_id="e1")])

    assert session["session_id"] == "5da88cceb8ee13f1c1a2f01b3252c93d"


def test_a_sessions_id_depends_on_its_user_and_first_event_only(engine: DuckDB) -> None:
    first = at("10:00", event_id="a")
    session = session_of(engine, [first])
    longer = session_of(engine, [at("10:10", event_id="b", event_name="purchase", page="/b"), first])
    elsewhen = session_of(engine, [first | at("18:00", source="ads")])

    assert session["session_id"] == longer["session_id"] == elsewhen["session_id"]


def test_another_first_event_or_user_gives_another_id(engine: DuckDB) -> None:
    rows = [at("10:00", event_id="a"), at("12:00", event_id="b"), at("14:00", event_id="c", user_id="v")]

    assert len({session["session_id"] for session in sessions_of(engine, rows)}) == 3


def test_sessions_keep_their_contract(engine: DuckDB) -> None:
    made = sessionize(events_of(engine, [at("10:00"), at("2024-03-05T10:00")]), GAP)

    assert SESSIONS.check(made).columns == tuple(SESSIONS.schema.names)
    assert made.to_pyarrow().schema.types == SESSIONS.schema.to_pyarrow().types


def test_cut_sessions_keep_their_contract(engine: DuckDB) -> None:
    rows = [at("2024-03-01T00:00"), at("2024-03-01T20:00"), at("2024-03-02T10:00")]
    made = sessionize(events_of(engine, rows), timedelta(hours=20))

    assert made.count().to_pyarrow().as_py() == 2
    assert SESSIONS.check(made).to_pyarrow().schema.types == SESSIONS.schema.to_pyarrow().types


def test_the_gap_is_30_minutes_unless_set() -> None:
    assert SessionSettings().gap == timedelta(minutes=30)


@pytest.mark.parametrize("gap_minutes", [0, -1, 24 * 60 + 1])
def test_a_gap_is_longer_than_nothing_and_at_most_a_day(gap_minutes: float) -> None:
    with pytest.raises(ValidationError):
        SessionSettings(gap_minutes=gap_minutes)


# --- sessions as known at an instant ---


def known_at(engine: DuckDB, rows: list[Row], as_of: str, gap: timedelta = GAP) -> list[Row]:
    events = events_of(engine, rows)
    known = sessions_at(events, materialize(sessionize(events, gap)), instant(as_of), gap)
    return in_order(known.to_pyarrow().to_pylist())


def test_an_instant_cuts_the_session_that_spans_it(engine: DuckDB) -> None:
    rows = [
        at("10:00", page="/a"),
        at("10:10", page="/b", event_name="add_to_cart"),
        at("10:20", page="/c", event_name="purchase", revenue=9.0),
    ]
    [session] = known_at(engine, rows, "2024-03-01T10:15")

    assert session["ended_at"] == instant("2024-03-01T10:10")
    assert (session["event_count"], session["exit_page"], session["revenue"]) == (2, "/b", 0)
    assert (session["converted"], session["cart_abandoned"]) == (False, True)


def test_a_session_that_ends_at_the_instant_loses_its_last_event(engine: DuckDB) -> None:
    assert event_counts(known_at(engine, [at("10:00"), at("10:20")], "2024-03-01T10:20")) == [1]


def test_a_session_that_ends_a_microsecond_before_the_instant_is_whole(engine: DuckDB) -> None:
    assert event_counts(known_at(engine, [at("10:00"), at("10:20")], "2024-03-01T10:20:00.000001")) == [2]


def test_a_session_that_begins_at_the_instant_is_not_known(engine: DuckDB) -> None:
    assert known_at(engine, [at("10:00"), at("10:20")], "2024-03-01T10:00") == []


def test_an_instant_cuts_a_piece_of_an_overlong_chain(engine: DuckDB) -> None:
    rows = [at("2024-03-01T00:00"), at("2024-03-01T20:00"), at("2024-03-02T10:00"), at("2024-03-03T00:00")]
    known = known_at(engine, rows, "2024-03-02T12:00", timedelta(hours=20))

    assert event_counts(known) == [2, 1]


def test_an_event_learnt_of_later_is_not_known(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:10", ingested_at="2024-03-02T00:00:00.000001")]

    assert event_counts(known_at(engine, rows, "2024-03-02T00:00")) == [1]


def test_an_event_learnt_of_at_the_instant_is_known(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:10", ingested_at="2024-03-02T00:00:00")]

    assert event_counts(known_at(engine, rows, "2024-03-02T00:00")) == [2]


def test_an_event_learnt_of_at_the_instant_is_known_in_a_session_that_the_instant_cuts_too(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:10", ingested_at="2024-03-01T10:15"), at("10:20")]

    assert event_counts(known_at(engine, rows, "2024-03-01T10:15")) == [2]


def test_an_event_learnt_of_later_joined_two_sessions_only_then(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:25", ingested_at="2024-03-05T00:00"), at("10:50")]

    assert event_counts(known_at(engine, rows, "2024-03-02T00:00")) == [1, 1]
    assert event_counts(known_at(engine, rows, "2024-03-05T00:00")) == [3]


def test_a_session_whose_first_event_was_learnt_of_later_had_the_id_of_its_second(engine: DuckDB) -> None:
    rows = [at("10:00", event_id="a", ingested_at="2024-03-05T00:00"), at("10:10", event_id="b")]

    assert [s["session_id"] for s in known_at(engine, rows, "2024-03-02T00:00")] == [session_id("u", "b")]
    assert [s["session_id"] for s in known_at(engine, rows, "2024-03-06T00:00")] == [session_id("u", "a")]


def test_a_user_of_whom_nothing_was_known_has_no_session(engine: DuckDB) -> None:
    assert known_at(engine, [at("10:00", ingested_at="2024-03-05T00:00")], "2024-03-02T00:00") == []


def test_sessions_of_other_users_are_as_they_were(engine: DuckDB) -> None:
    others = [at("10:00", user_id="v", event_id="v1"), at("10:20", user_id="v", event_id="v2")]
    cut = [at("11:55"), at("12:05")]
    late = [at("10:00", user_id="w", ingested_at="2024-03-05T00:00"), at("10:20", user_id="w")]
    known = known_at(engine, others + cut + late, "2024-03-01T12:00")

    assert [session for session in known if session["user_id"] == "v"] == sessions_of(engine, others)
    assert event_counts(known) == [1, 2, 1]


def test_an_instant_is_the_same_in_any_time_zone(engine: DuckDB) -> None:
    rows = [at("10:00"), at("10:10"), at("10:20")]

    assert known_at(engine, rows, "2024-03-01T12:15+02:00") == known_at(engine, rows, "2024-03-01T10:15Z")


def as_a_file_gives_it(engine: DuckDB, table: ir.Table) -> ir.Table:
    """Copy a table to one whose every column may be null, as far as the engine knows."""
    rows = table.to_pyarrow()
    schema = pa.schema([field.with_nullable(True) for field in rows.schema])
    return engine.create_table(f"copy_{uuid.uuid4().hex}", pa.Table.from_pylist(rows.to_pylist(), schema), temp=True)


@pytest.mark.parametrize("is_of_file", [(False, False), (False, True), (True, False), (True, True)])
def test_events_and_sessions_may_each_come_from_a_file(engine: DuckDB, is_of_file: tuple[bool, bool]) -> None:
    events = events_of(engine, [at("10:00"), at("10:20"), at("10:00", user_id="v")])
    sessions = sessionize(events, GAP)
    events, sessions = (
        as_a_file_gives_it(engine, table) if is_file else table
        for table, is_file in zip((events, sessions), is_of_file, strict=True)
    )

    known = sessions_at(events, sessions, instant("2024-03-01T10:10"), GAP)
    assert event_counts(in_order(known.to_pyarrow().to_pylist())) == [1, 1]


def test_sessions_as_known_at_an_instant_keep_their_contract(engine: DuckDB) -> None:
    events = events_of(engine, [at("10:00"), at("10:20"), at("10:00", user_id="v")])
    known = sessions_at(events, sessionize(events, GAP), instant("2024-03-01T10:10"), GAP)

    assert SESSIONS.check(known).to_pyarrow().schema.types == SESSIONS.schema.to_pyarrow().types
