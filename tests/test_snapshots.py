import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import ibis.expr.types as ir
import pyarrow as pa
import pytest
from histories import events_of, instant
from ibis.backends.duckdb import Backend as DuckDB
from pydantic import ValidationError
from shops import small_shop

from features import engines
from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.sessions import sessionize
from features.snapshots import (
    FAVOURITES,
    FEATURES,
    SNAPSHOTS,
    FeatureSettings,
    feature_names,
    format_value,
    in_words,
    snapshots_table,
    take_snapshot,
    take_snapshots,
    title,
)
from features.sources import CONSENT, EMAIL, PHONE
from features.table import TIME, materialize
from flows.configuration import ConfigurationError, load
from flows.snapshot import store_snapshots

Row = dict[str, Any]

GAP = timedelta(minutes=30)
AS_OF = "2024-05-01T00:00"
"""A Wednesday. 28 days before it is 3 April, 56 days 6 March, 90 days 1 February."""


def at(time: str, event_name: str = "page_view", **columns: object) -> Row:
    """Make an event of 2024 at "month-dayThour:minute"."""
    return {"occurred_at": f"2024-{time}", "event_name": event_name} | columns


def attributes_of(engine: DuckDB, rows: Sequence[tuple[str, str, str]] = ()) -> ir.Table:
    table = pa.Table.from_pylist(
        [dict(zip(ATTRIBUTES.schema.names, row, strict=True)) for row in rows], ATTRIBUTES.schema.to_pyarrow()
    )
    return engine.create_table(f"attributes_{uuid.uuid4().hex}", table, temp=True)


def snapshot_of(
    engine: DuckDB, rows: list[Row], as_of: str = AS_OF, attributes: Sequence[tuple[str, str, str]] = (), **options: Any
) -> dict[str, Row]:
    """Take a snapshot; return its rows by user."""
    events = events_of(engine, rows)
    sessions = materialize(sessionize(events, GAP))
    snapshot = take_snapshot(events, sessions, attributes_of(engine, attributes), instant(as_of), gap=GAP, **options)
    return by_user(snapshot.to_pyarrow().to_pylist())


def snapshots_of(engine: DuckDB, rows: list[Row], *instants: str) -> dict[str, dict[str, Row]]:
    """Take snapshots at many instants; return their rows by instant, as "month-dayThour:minute" of 2024, and user."""
    events = events_of(engine, rows)
    sessions = materialize(sessionize(events, GAP))
    asked = [instant(f"2024-{time}") for time in instants]
    taken: dict[str, dict[str, Row]] = {}
    for some, table in take_snapshots(events, sessions, attributes_of(engine), asked, gap=GAP):
        found = table.to_pyarrow().to_pylist()
        assert {row["as_of"] for row in found} <= set(some)
        for as_of in some:
            taken[f"{as_of:%m-%dT%H:%M}"] = by_user([row for row in found if row["as_of"] == as_of])
    return taken


def by_user(rows: list[Row]) -> dict[str, Row]:
    found = {row["user_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


# --- what each column says ---
# Each case is the whole history of a user. All of them are in one snapshot, since a snapshot takes its time and users
# do not know of each other (test_laws.py). The histories further down are in it, too.


class Case(NamedTuple):
    column: str
    behaviour: str
    events: list[Row]
    expected: float | str | None

    @property
    def user_id(self) -> str:
        return f"{self.column}: {self.behaviour}"


FOUR_SESSIONS = [at("04-01T10:00"), at("04-02T10:00"), at("04-03T10:00"), at("04-04T10:00")]
THREE_KINDS_OF_SESSION = [
    *(at("04-01T10:00"),),
    *(at("04-02T10:00"), at("04-02T10:05")),
    *(at("04-03T10:00:00", "login"), at("04-03T10:00:05", "click")),
    *(at("04-04T10:00"), at("04-04T10:01")),
]
WITHOUT_PAGES = [
    *(at("04-05T10:00", "login"), at("04-05T10:05", "click")),
    *(at("04-06T10:00", "purchase"), at("04-07T10:00", "refund")),
]
ROUND_THE_CLOCK = [
    *(at("04-01T00:00"), at("04-02T05:59:59.999999")),
    *(at("04-03T06:00"), at("04-04T11:59:59"), at("04-05T07:00")),
    at("04-06T12:00"),
    *(at("04-07T17:59:59.999999"), at("04-08T18:00"), at("04-09T23:59:59"), at("04-10T20:00")),
]
THREE_CARTS = [
    *(at("04-01T10:00", "add_to_cart"), at("04-01T10:05", "add_to_cart")),
    *(at("04-10T10:00", "add_to_cart"), at("04-10T10:20", "purchase", revenue=30.0)),
    *(at("04-20T23:50", "add_to_cart"), at("04-21T00:00")),
    at("04-25T10:00"),
]
PURCHASES = [
    *(at("04-01T10:00", "purchase", revenue=10.1), at("04-01T10:01", "purchase", revenue=20.2)),
    at("04-05T10:00", "purchase", revenue=5.0),
    *(at("04-10T10:00", "refund", revenue=5.0), at("04-15T10:00")),
]
AT_EACH_BORDER = ["04-30T00:00", "04-24T00:00", "04-03T00:00", "02-01T00:00"]
BEFORE_EACH_BORDER = ["04-29T23:00", "04-23T23:00", "04-02T23:00", "01-31T23:00"]


def at_all_borders(event_name: str) -> list[Row]:
    """Make an event exactly 1, 7, 28 and 90 days before AS_OF, and one an hour before each of these."""
    return [at(time, event_name) for time in AT_EACH_BORDER + BEFORE_EACH_BORDER]


def favourite_cases(column: str) -> list[Case]:
    def on(time: str, value: str | None) -> Row:
        return at(f"04-{time}") | {column: value}

    thrice = [on("01T10:00", "a"), on("01T10:01", "a"), on("01T10:02", "a")]
    return [
        Case(column, "the most frequent of sessions, not of events", [*thrice, on("02", "b"), on("03", "b")], "b"),
        Case(column, "of equally frequent ones the first by name", [on("01", "c"), on("02", "a"), on("03", "b")], "a"),
        Case(column, "where it is unknown does not count", [on("01", None), on("02", None), on("03", "a")], "a"),
        Case(column, "does not apply where none is known", [on("01", None)], None),
    ]


CASES = [
    Case(
        "recency_days", "from the end of the last session", [at("04-10T10:00"), at("04-28T23:45"), at("04-29T00:00")], 2
    ),
    Case("recency_days", "nothing is rounded", [at("04-29T12:00")], 1.5),
    Case("recency_days", "a microsecond ago", [at("04-30T23:59:59.999999")], 1 / 86_400_000_000),
    Case(
        "tenure_days",
        "from the start of the first session",
        [at("04-21T00:00"), at("04-21T00:20"), at("04-30T10:00")],
        10,
    ),
    Case("session_count", "sessions, not events", [*FOUR_SESSIONS, at("04-04T10:30")], 4),
    Case("session_count", "however long ago", [{"occurred_at": "1969-07-20T20:17"}, at("04-04T10:30")], 2),
    Case(
        "session_trend_28d",
        "more than before",
        [at("03-20T10:00"), at("04-10T10:00"), at("04-11T10:00"), at("04-12T10:00")],
        0.5,
    ),
    Case("session_trend_28d", "only before", [at("03-20T10:00")], -1),
    Case("session_trend_28d", "only since", [at("04-20T10:00")], 1),
    Case("session_trend_28d", "as before", [at("03-20T10:00"), at("04-20T10:00")], 0),
    Case(
        "session_trend_28d",
        "exactly 28 days ago is since, exactly 56 before",
        [at("03-06T00:00"), at("04-03T00:00")],
        0,
    ),
    Case("session_trend_28d", "longer ago than 56 days says nothing", [at("03-05T23:59:59.999999")], None),
    Case(
        "return_absence_days",
        "from the end of the last session before to the first of the last 28 days",
        [at("02-01T10:00"), at("02-29T23:50"), at("03-01T00:00"), at("04-10T00:00"), at("04-10T00:20"), at("04-20")],
        40,
    ),
    Case(
        "return_absence_days", "a session exactly 28 days ago is of these", [at("03-04T00:00"), at("04-03T00:00")], 30
    ),
    Case("return_absence_days", "a session that goes on into the 28 days began before", [at("04-02T23:50")], None),
    Case("return_absence_days", "does not apply to who is new", [at("04-20T10:00"), at("04-21T10:00")], None),
    Case("return_absence_days", "does not apply to who did not come back", [at("03-01T10:00")], None),
    Case(
        "duration_mean_s",
        "of sessions of 0, 60 and 600 s",
        [at("04-01T10:00"), at("04-02T10:00"), at("04-02T10:01"), at("04-03T10:00"), at("04-03T10:10")],
        220,
    ),
    Case("duration_mean_s", "to the microsecond", [at("04-02T10:00:00"), at("04-02T10:00:01.500001")], 1.500001),
    Case(
        "duration_median_s",
        "of sessions of 0, 60 and 600 s",
        [at("04-01T10:00"), at("04-02T10:00"), at("04-02T10:01"), at("04-03T10:00"), at("04-03T10:10")],
        60,
    ),
    Case(
        "duration_median_s",
        "of an even number of sessions, the middle of the two",
        [at("04-01T10:00"), at("04-02T10:00"), at("04-02T10:01")],
        30,
    ),
    Case(
        "pages_per_session",
        "page views by sessions",
        [at("04-01T10:00"), at("04-01T10:01"), at("04-01T10:02", "click"), at("04-02T10:00")],
        1.5,
    ),
    Case("pages_per_session", "a session without a page view tells nothing of pages", THREE_KINDS_OF_SESSION, 5 / 3),
    Case("pages_per_session", "null without a page view", WITHOUT_PAGES, None),
    Case("bounce_rate", "one of three sessions with a page view", THREE_KINDS_OF_SESSION, 1 / 3),
    Case("bounce_rate", "none", [at("04-01T10:00"), at("04-01T10:01")], 0),
    Case("bounce_rate", "a refund is none", [at("04-01T10:00"), at("04-01T10:00", "refund"), at("04-02T10:00")], 0.5),
    Case("bounce_rate", "null without a page view", WITHOUT_PAGES, None),
    Case("engaged_rate", "two of three sessions with a page view", THREE_KINDS_OF_SESSION, 2 / 3),
    Case("engaged_rate", "none", FOUR_SESSIONS, 0),
    Case("engaged_rate", "a session without a page view does not count", [at("04-01T10:00"), *WITHOUT_PAGES], 0),
    Case("engaged_rate", "null without a page view", WITHOUT_PAGES, None),
    Case(
        "search_count",
        "events, not sessions",
        [at("04-01T10:00", "search"), at("04-01T10:01", "search"), at("04-02T10:00", "search")],
        3,
    ),
    Case("search_count", "none", FOUR_SESSIONS, 0),
    Case(
        "support_visit_count",
        "events, not sessions",
        [at("04-01T10:00", "support_view"), at("04-01T10:01", "support_view")],
        2,
    ),
    Case("support_visit_count", "none", FOUR_SESSIONS, 0),
    Case(
        "support_session_share",
        "sessions, not events",
        [*FOUR_SESSIONS, at("04-01T10:01", "support_view"), at("04-01T10:02", "support_view")],
        0.25,
    ),
    Case("support_session_share", "none", FOUR_SESSIONS, 0),
    Case(
        "campaign_session_count",
        "sessions whose first event came from a campaign",
        [
            *(at("04-01T10:00", campaign="spring"), at("04-01T10:05", campaign="summer")),
            *(at("04-02T10:00"), at("04-02T10:05", campaign="spring")),
            at("04-03T10:00", campaign="summer"),
        ],
        2,
    ),
    Case("campaign_session_count", "none", FOUR_SESSIONS, 0),
    Case("cart_count", "sessions with a cart, not additions", THREE_CARTS, 3),
    Case("cart_count", "none", FOUR_SESSIONS, 0),
    Case("cart_abandonment_rate", "two of three carts", THREE_CARTS, 2 / 3),
    Case(
        "cart_abandonment_rate",
        "every cart was bought",
        [at("04-01T10:00", "add_to_cart"), at("04-01T10:01", "purchase")],
        0,
    ),
    Case("cart_abandonment_rate", "does not apply without a cart", [at("04-01T10:00", "purchase")], None),
    Case("cart_abandoned_recency_days", "from the end of the session of the last abandoned cart", THREE_CARTS, 10),
    Case(
        "cart_abandoned_recency_days",
        "a bought cart is none",
        [at("04-11T00:00", "add_to_cart"), at("04-21T00:00", "add_to_cart"), at("04-21T00:00", "purchase")],
        20,
    ),
    Case(
        "cart_abandoned_recency_days",
        "does not apply where every cart was bought",
        [at("04-21T00:00", "add_to_cart"), at("04-21T00:00", "purchase")],
        None,
    ),
    Case("purchase_count", "sessions with a purchase, not order lines", PURCHASES, 2),
    Case("purchase_count", "none", FOUR_SESSIONS, 0),
    Case("revenue_total", "purchases less refunds", PURCHASES, 30.3),
    Case("revenue_total", "only a refund", [at("04-01T10:00", "refund", revenue=7.5)], -7.5),
    Case("revenue_total", "none", FOUR_SESSIONS, 0),
    Case("revenue_per_purchase", "by sessions with a purchase, less refunds", PURCHASES, 15.15),
    Case("revenue_per_purchase", "does not apply without a purchase", [at("04-01T10:00", "refund", revenue=7.5)], None),
    Case("conversion_rate", "of four sessions", PURCHASES, 0.5),
    Case("conversion_rate", "none", FOUR_SESSIONS, 0),
    Case("night_session_share", "from 0 to before 6", ROUND_THE_CLOCK, 0.2),
    Case("morning_session_share", "from 6 to before 12", ROUND_THE_CLOCK, 0.3),
    Case("afternoon_session_share", "from 12 to before 18", ROUND_THE_CLOCK, 0.2),
    Case("evening_session_share", "from 18 to before 24", ROUND_THE_CLOCK, 0.3),
    Case("night_session_share", "by its beginning", [at("04-01T05:50"), at("04-01T06:10")], 1),
    Case("morning_session_share", "by its beginning", [at("04-01T05:50"), at("04-01T06:10")], 0),
    Case(
        "weekend_session_share",
        "Saturday and Sunday, not Friday and Monday",
        [at("04-26T23:00"), at("04-27T00:00"), at("04-28T23:00"), at("04-29T00:00")],
        0.5,
    ),
    Case("weekend_session_share", "by its beginning", [at("04-26T23:50"), at("04-27T00:10")], 0),
    Case(
        "active_day_count",
        "days with an event, not sessions",
        [at("04-26T23:50"), at("04-27T00:10"), at("04-27T20:00")],
        2,
    ),
    Case(
        "support_recency_days",
        "from the last visit, not the end of its session",
        [at("04-02T00:00", "support_view"), at("04-21T00:00", "support_view"), at("04-21T00:20")],
        10,
    ),
    Case(
        "support_recency_days",
        "from when it happened, not when it was learnt of",
        [at("04-21T00:00", "support_view", ingested_at="2024-04-25")],
        10,
    ),
    Case("support_recency_days", "does not apply without one", FOUR_SESSIONS, None),
    Case(
        "purchase_recency_days",
        "from the last purchase, not the end of its session",
        [at("04-02T00:00", "purchase"), at("04-21T00:00", "purchase"), at("04-21T00:20"), at("04-22T00:00", "refund")],
        10,
    ),
    Case(
        "purchase_recency_days",
        "from when it happened, not when it was learnt of",
        [at("04-21T00:00", "purchase", ingested_at="2024-04-25")],
        10,
    ),
    Case("purchase_recency_days", "does not apply without one", FOUR_SESSIONS, None),
    Case(
        "item_count",
        "different items of any event",
        [
            at("04-01T10:00", item_id="a"),
            at("04-02T10:00", "purchase", item_id="a"),
            at("04-03T10:00", item_id="b"),
            at("04-04T10:00"),
        ],
        2,
    ),
    Case("item_count", "none", FOUR_SESSIONS, 0),
    Case(
        "category_count",
        "different categories of any event",
        [
            at("04-01T10:00", category="a"),
            at("04-02T10:00", "search", category="b"),
            at("04-03T10:00", category="b"),
            at("04-04T10:00"),
        ],
        2,
    ),
    Case("category_count", "none", FOUR_SESSIONS, 0),
    Case("session_count_1d", "begun exactly 1 day ago counts", at_all_borders("page_view"), 1),
    Case("session_count_7d", "begun exactly 7 days ago counts", at_all_borders("page_view"), 3),
    Case("session_count_28d", "begun exactly 28 days ago counts", at_all_borders("page_view"), 5),
    Case("session_count_90d", "begun exactly 90 days ago counts", at_all_borders("page_view"), 7),
    Case(
        "session_count_1d",
        "begun a microsecond earlier does not, though it goes on",
        [at("04-29T23:59:59.999999"), at("04-30T00:10")],
        0,
    ),
    Case("support_visit_count_1d", "in sessions of the window", at_all_borders("support_view"), 1),
    Case("support_visit_count_7d", "in sessions of the window", at_all_borders("support_view"), 3),
    Case("support_visit_count_28d", "in sessions of the window", at_all_borders("support_view"), 5),
    Case("support_visit_count_90d", "in sessions of the window", at_all_borders("support_view"), 7),
    Case(
        "support_visit_count_7d",
        "events, not sessions",
        [at("04-25T10:00", "support_view"), at("04-25T10:05", "support_view")],
        2,
    ),
    Case("purchase_count_1d", "in sessions of the window", at_all_borders("purchase"), 1),
    Case("purchase_count_7d", "in sessions of the window", at_all_borders("purchase"), 3),
    Case("purchase_count_28d", "in sessions of the window", at_all_borders("purchase"), 5),
    Case("purchase_count_90d", "in sessions of the window", at_all_borders("purchase"), 7),
    Case(
        "purchase_count_7d",
        "sessions, not order lines",
        [at("04-25T10:00", "purchase"), at("04-25T10:05", "purchase")],
        1,
    ),
    *(case for column in FAVOURITES for case in favourite_cases(column)),
]


# --- and what they do together: each history is that of the users named in it ---
# "known / u" is user u of the history "known"; those of every history are in the same snapshots, too.

DEVICES = ("b", "a", "a", None, "b", "b")
HISTORIES: dict[str, list[Row]] = {
    "as_of": [
        at("04-01T10:00", user_id="before"),
        at("04-30T23:59:59.999999", user_id="just before"),
        at("05-01T00:00", user_id="exactly then"),
        at("05-02T10:00", user_id="after"),
        at("04-01T10:00", user_id="learnt of later", ingested_at="2024-05-02"),
    ],
    "learnt of exactly then": [at("04-01T10:00"), at("04-20T10:00", ingested_at="2024-05-01T00:00")],
    "first sessions": [at("04-01T10:00"), at("04-03T10:00", user_id="v")],
    "ages": [at("04-01T00:00", "purchase"), at("04-05T00:00", "support_view")],
    "different": [
        at("04-01T10:00", item_id="a", category="c"),
        at("04-02T10:00", item_id="a"),
        at("04-02T20:00", item_id="b", category="c"),
        at("04-03T10:00", item_id="a", category="d"),
    ],
    "devices": [at(f"04-0{day}T10:00", device=device) for day, device in enumerate(DEVICES, start=1)],
    "durations": [at("04-01T10:00"), at("04-01T10:01"), at("04-02T10:00"), at("04-03T10:00"), at("04-03T10:10")],
    "cut": [
        *(at("04-01T10:00"), at("04-01T10:20", "add_to_cart"), at("04-01T10:40", "purchase", revenue=5.0)),
        at("04-01T23:00"),
    ],
    "late": [
        at("04-01T10:00", item_id="a", device="desktop"),
        at("04-02T10:00", "purchase", ingested_at="2024-04-05T00:00", item_id="b", device="phone"),
        at("04-06T10:00", device="desktop"),
    ],
    "fused": [
        at("03-20T10:00"),
        *(at("04-01T10:00"), at("04-01T10:25", ingested_at="2024-04-03T00:00"), at("04-01T10:50")),
        at("04-08T10:00"),
    ],
    "known later": [at("04-01T10:00"), at("04-02T10:00", user_id="v", ingested_at="2024-04-05T00:00")],
}
"""Several users, or one over time. Each has the events of a test below."""
BEFORE = [at("04-01T10:00", source="mail"), at("04-30T23:50", "add_to_cart", item_id="a")]
AFTER = [
    at("05-01T00:00", "purchase", revenue=9.0, item_id="b", source="ads"),
    at("05-01T00:10", "support_view", category="c", device="phone"),
    at("06-01T10:00", source="ads"),
]
KNOWN = [at("04-01T10:00", source="mail"), at("04-01T10:10", "add_to_cart", item_id="a")]
LATE = [
    at("04-01T10:05", "purchase", revenue=9.0, item_id="b", ingested_at="2024-05-01T00:00:00.000001"),
    at("04-20T10:00", "support_view", category="c", source="ads", ingested_at="2024-06-01"),
]
HISTORIES |= {"before": BEFORE, "before and after": BEFORE + AFTER, "known": KNOWN, "known and late": KNOWN + LATE}
INSTANTS = (
    *("03-01T00:00", "04-01T10:00", "04-01T10:10", "04-01T10:20", "04-01T10:30", "04-01T10:40", "04-01T12:00"),
    *("04-02T00:00", "04-02T15:00", "04-03T00:00", "04-04T00:00", "04-04T23:59", "04-05T00:00", "04-06T00:00"),
    *("04-07T00:00", "04-08T00:00", "04-09T00:00", "04-13T00:00", "05-01T00:00", "06-01T00:00"),
)
"""Those that the tests below ask about, of 2024."""


def all_events() -> list[Row]:
    cases = [event | {"user_id": case.user_id} for case in CASES for event in case.events]
    together = [
        event | {"user_id": f"{name} / {event.get('user_id', 'u')}"}
        for name, events in HISTORIES.items()
        for event in events
    ]
    return [event | {"event_id": f"{number:04}"} for number, event in enumerate([*cases, *together])]


@pytest.fixture(scope="module")
def shared() -> Iterator[DuckDB]:
    engine = engines.connect()
    yield engine
    engine.disconnect()


@pytest.fixture(scope="module")
def taken(shared: DuckDB) -> dict[str, dict[str, Row]]:
    """Take snapshots of all at INSTANTS; return their rows by instant and user."""
    return snapshots_of(shared, all_events(), *INSTANTS)


@pytest.fixture(scope="module")
def alone(shared: DuckDB) -> dict[str, Row]:
    """Take the snapshot of all at AS_OF, and at no other instant."""
    return snapshot_of(shared, all_events())


@pytest.fixture(params=["alone", "among others"])
def users(request: pytest.FixtureRequest) -> dict[str, Row]:
    """Return all users at AS_OF, by the snapshot that is taken alone and by the one that is taken among others."""
    if request.param == "alone":
        return request.getfixturevalue("alone")  # type: ignore[no-any-return]
    return request.getfixturevalue("taken")["05-01T00:00"]  # type: ignore[no-any-return]


def of(history: str, users: dict[str, Row]) -> dict[str, Row]:
    """Return the users of a history."""
    return {user.removeprefix(f"{history} / "): row for user, row in users.items() if user.startswith(f"{history} / ")}


def values(taken: dict[str, dict[str, Row]], history: str, instants: Sequence[str], *columns: str) -> list[list[Any]]:
    """Return what columns say of the one user of a history at each of some instants."""
    return [[taken[time][f"{history} / u"][column] for column in columns] for time in instants]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.user_id)
def test_column(case: Case, users: dict[str, Row]) -> None:
    assert users[case.user_id][case.column] == case.expected


def test_every_feature_and_favourite_has_a_case() -> None:
    assert {case.column for case in CASES} == {*FEATURES, *FAVOURITES}


NEEDS_TIMES = {
    *("duration_mean_s", "duration_median_s", "bounce_rate", "engaged_rate"),
    *("night_session_share", "morning_session_share", "afternoon_session_share", "evening_session_share"),
}
MAY_NOT_APPLY = {
    *("session_trend_28d", "cart_abandonment_rate", "cart_abandoned_recency_days", "revenue_per_purchase"),
    *("support_recency_days", "purchase_recency_days", "return_absence_days"),
    *("pages_per_session", "bounce_rate", "engaged_rate"),
}


def test_only_features_that_may_not_apply_are_ever_null(users: dict[str, Row]) -> None:
    assert {name for user in users.values() for name in FEATURES if user[name] is None} == MAY_NOT_APPLY


# --- who is in a snapshot, and what was known ---


def test_every_user_with_a_session_is_in_the_snapshot(users: dict[str, Row]) -> None:
    assert {case.user_id for case in CASES} <= users.keys()


def test_a_user_without_a_session_before_as_of_is_not_in_the_snapshot(users: dict[str, Row]) -> None:
    assert of("as_of", users).keys() == {"before", "just before"}


def test_what_happens_from_as_of_on_changes_nothing(users: dict[str, Row]) -> None:
    [before], [both] = of("before", users).values(), of("before and after", users).values()

    assert both | {"user_id": ""} == before | {"user_id": ""}


def test_what_was_learnt_of_after_as_of_changes_nothing(users: dict[str, Row]) -> None:
    [known], [both] = of("known", users).values(), of("known and late", users).values()

    assert both | {"user_id": ""} == known | {"user_id": ""}


def test_what_was_learnt_of_exactly_at_as_of_was_known(users: dict[str, Row]) -> None:
    assert of("learnt of exactly then", users)["u"]["session_count"] == 2


def test_nobody_is_in_a_snapshot_without_events(shared: DuckDB) -> None:
    assert snapshot_of(shared, []) == {}


def test_as_of_may_be_in_any_time_zone(shared: DuckDB) -> None:
    snapshot = snapshot_of(shared, [at("04-29T22:00"), at("04-30T22:00")], "2024-05-01T00:00+02:00")["u"]

    assert snapshot["as_of"] == instant("2024-04-30T22:00")
    assert (snapshot["session_count"], snapshot["recency_days"]) == (1, 1)


def test_a_snapshot_keeps_its_contract(shared: DuckDB) -> None:
    events = events_of(shared, [at("04-01T10:00")])
    snapshot = take_snapshot(events, sessionize(events, GAP), attributes_of(shared), instant(AS_OF), gap=GAP)

    assert SNAPSHOTS.check(snapshot).columns == tuple(SNAPSHOTS.schema.names)
    assert snapshot.to_pyarrow().schema.types == SNAPSHOTS.schema.to_pyarrow().types


def test_all_features_are_numbers_and_favourites_text() -> None:
    types = dict(SNAPSHOTS.schema.items())

    assert {str(types[name]) for name in FEATURES} == {"float64"}
    assert {str(types[name]) for name in FAVOURITES} == {"string"}
    assert types["as_of"] == TIME.copy(nullable=False)


# --- many instants at once ---


def test_snapshots_are_taken_in_order_at_each_instant_once(shared: DuckDB) -> None:
    taken = snapshots_of(shared, [at("04-01T10:00")], "05-01T00:00", "04-05T00:00", "05-01T00:00", "04-20T12:00")

    assert [*taken] == ["04-05T00:00", "04-20T12:00", "05-01T00:00"]


def test_no_instants_no_snapshots(shared: DuckDB) -> None:
    assert snapshots_of(shared, [at("04-01T10:00")]) == {}


def test_nobody_is_in_the_snapshot_at_an_instant_before_every_event(shared: DuckDB) -> None:
    taken = snapshots_of(shared, [at("04-01T10:00")], "03-01T00:00", "04-01T10:00", "04-02T10:00")

    assert [[*users] for users in taken.values()] == [[], [], ["u"]]


def test_nobody_is_in_any_snapshot_without_events(shared: DuckDB) -> None:
    assert snapshots_of(shared, [], "03-01T00:00", "04-01T00:00") == {"03-01T00:00": {}, "04-01T00:00": {}}


def test_a_user_is_in_every_snapshot_after_their_first_session(taken: dict[str, dict[str, Row]]) -> None:
    found = [sorted(of("first sessions", taken[time])) for time in ("04-02T00:00", "04-04T00:00", "06-01T00:00")]

    assert found == [["u"], ["u", "v"], ["u", "v"]]


def test_ages_and_windows_are_those_of_each_instant(taken: dict[str, dict[str, Row]]) -> None:
    instants = ("04-06T00:00", "04-08T00:00", "04-13T00:00")
    windows = ("session_count_7d", "purchase_count_7d", "support_visit_count_1d")

    assert values(taken, "ages", instants, "recency_days", "tenure_days") == [[1, 5], [3, 7], [8, 12]]
    assert values(taken, "ages", instants, *windows) == [[2, 1, 1], [2, 1, 0], [0, 0, 0]]
    assert values(taken, "ages", instants, "purchase_recency_days", "support_recency_days") == [[5, 1], [7, 3], [12, 8]]


def test_what_is_different_is_counted_as_of_each_instant(taken: dict[str, dict[str, Row]]) -> None:
    instants = ("04-02T00:00", "04-02T15:00", "04-03T00:00", "04-04T00:00", "04-05T00:00")

    assert values(taken, "different", instants, "item_count", "category_count", "active_day_count") == [
        [1, 1, 1],
        [1, 1, 2],
        [2, 1, 2],
        [2, 2, 3],
        [2, 2, 3],
    ]


def test_the_favourite_is_that_of_each_instant(taken: dict[str, dict[str, Row]]) -> None:
    instants = [f"04-0{day + 1}T00:00" for day in range(1, 7)]

    assert values(taken, "devices", instants, "device") == [["b"], ["a"], ["a"], ["a"], ["a"], ["b"]]


def test_the_median_is_that_of_each_instant(taken: dict[str, dict[str, Row]]) -> None:
    instants = ("04-02T00:00", "04-03T00:00", "04-04T00:00")

    assert values(taken, "durations", instants, "duration_median_s") == [[60], [30], [60]]


def test_a_session_is_cut_by_each_instant_that_it_spans(taken: dict[str, dict[str, Row]]) -> None:
    at_its_last_event = "04-01T10:40"
    instants = ("04-01T10:10", "04-01T10:20", "04-01T10:30", at_its_last_event, "04-01T12:00", "04-02T00:00")
    columns = ("session_count", "duration_mean_s", "cart_abandonment_rate", "revenue_total")

    assert values(taken, "cut", instants, *columns) == [
        [1, 0, None, 0],
        [1, 0, None, 0],
        [1, 1200, 1, 0],
        [1, 1200, 1, 0],
        [1, 2400, 0, 5],
        [2, 1200, 0, 5],
    ]


def test_an_event_counts_from_the_instant_at_which_it_was_known(taken: dict[str, dict[str, Row]]) -> None:
    instants = ("04-03T00:00", "04-04T23:59", "04-05T00:00", "04-07T00:00")
    columns = ("session_count", "purchase_count", "item_count", "device")

    assert values(taken, "late", instants, *columns) == [
        [1, 0, 1, "desktop"],
        [1, 0, 1, "desktop"],
        [2, 1, 2, "desktop"],
        [3, 1, 2, "desktop"],
    ]
    recencies = values(taken, "late", instants, "purchase_recency_days")
    assert [recency is None for [recency] in recencies] == [True, True, False, False]


def test_two_sessions_are_one_from_the_instant_at_which_what_fuses_them_was_known(
    taken: dict[str, dict[str, Row]],
) -> None:
    instants = ("04-01T10:30", "04-02T00:00", "04-03T00:00", "04-09T00:00")

    assert values(taken, "fused", instants, "session_count") == [[2], [3], [2], [3]]


def test_who_was_known_only_later_is_in_no_snapshot_before(taken: dict[str, dict[str, Row]]) -> None:
    found = [sorted(of("known later", taken[time])) for time in ("04-03T00:00", "04-04T00:00", "04-05T00:00")]

    assert found == [["u"], ["u"], ["u", "v"]]


def test_of_many_users_snapshots_are_taken_by_and_by(
    shared: DuckDB, taken: dict[str, dict[str, Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.snapshots.ROWS_AT_ONCE", 7 * len(taken["06-01T00:00"]))

    assert snapshots_of(shared, all_events(), *INSTANTS) == taken


# --- windows ---


def test_the_windows_are_the_callers_choice(shared: DuckDB) -> None:
    rows = [at("04-28T00:00", "support_view"), at("04-17T00:00", "purchase"), at("04-16T23:00")]
    snapshot = snapshot_of(shared, rows, windows_days=(3, 14))["u"]

    assert (snapshot["session_count_3d"], snapshot["session_count_14d"]) == (1, 2)
    assert (snapshot["support_visit_count_3d"], snapshot["support_visit_count_14d"]) == (1, 1)
    assert (snapshot["purchase_count_3d"], snapshot["purchase_count_14d"]) == (0, 1)
    assert list(snapshot) == list(snapshots_table((3, 14), ()).schema.names)


def test_a_window_adds_a_feature_of_each_kind() -> None:
    assert set(feature_names((3, 14))) - set(feature_names((14,))) == {
        "session_count_3d",
        "support_visit_count_3d",
        "purchase_count_3d",
    }


def test_windows_are_1_7_28_and_90_days_unless_set() -> None:
    assert FeatureSettings().windows_days == [1, 7, 28, 90]


@pytest.mark.parametrize("windows_days", [[], [0], [7, -1]])
def test_a_window_has_days(windows_days: list[int]) -> None:
    with pytest.raises(ValidationError):
        FeatureSettings(windows_days=windows_days)


# --- attributes ---

DESCRIBED = [("u", "plan", "gold"), ("u", "age_band", "0-35"), ("v", "plan", "free"), ("u", "shoe", "42")]
NOT_SEEN = [("w", "plan", "free")]
PRIVATE = [("u", EMAIL, "u@example.org"), ("u", f"{CONSENT}plan", "no"), ("v", PHONE, "020")]


def described(engine: DuckDB, attributes: Sequence[tuple[str, str, str]]) -> dict[str, Row]:
    rows = [at("04-01T10:00"), at("04-01T10:00", user_id="v")]
    return snapshot_of(engine, rows, attributes=attributes, attribute_names=("plan", "age_band"))


@pytest.fixture(scope="module")
def by_plan(shared: DuckDB) -> dict[str, Row]:
    return described(shared, DESCRIBED + NOT_SEEN)


def test_attributes_are_columns_null_where_a_user_has_none(by_plan: dict[str, Row]) -> None:
    named = [(by_plan[user]["plan"], by_plan[user]["age_band"]) for user in "uv"]

    assert named == [("gold", "0-35"), ("free", None)]
    assert "shoe" not in by_plan["u"]


def test_a_user_who_is_only_described_is_not_in_the_snapshot(by_plan: dict[str, Row]) -> None:
    assert by_plan.keys() == {"u", "v"}


def test_contacts_and_consents_are_no_features(shared: DuckDB, by_plan: dict[str, Row]) -> None:
    assert described(shared, DESCRIBED + NOT_SEEN + PRIVATE) == by_plan


def test_attributes_are_in_the_contract() -> None:
    table = snapshots_table((7,), ("plan",))

    assert table.schema.names[-1] == "plan"
    assert str(table.schema["plan"]) == "string"


# --- time zones and day-level sources ---

LOCAL = {
    "friday evening": [at("04-26T20:00"), at("04-26T20:20")],
    "around midnight": [at("04-26T23:50"), at("04-27T00:10")],
    "summer time": [at("03-30T04:30"), at("03-31T04:30")],
    "around midnight in Monrovia": [
        {"occurred_at": "1971-06-01T00:44:29", "event_name": "page_view"},
        {"occurred_at": "1971-06-01T00:44:30", "event_name": "page_view"},
    ],
    "anywhere": [at("03-30T04:30", "purchase", revenue=3.0), at("04-03T00:00"), at("04-30T23:59")],
}
"""Users by what they do, in UTC."""


@pytest.fixture(scope="module")
def local(shared: DuckDB) -> Callable[[str], dict[str, Row]]:
    """Take the snapshot of LOCAL users in a time zone, once."""
    rows = [
        event | {"user_id": user, "event_id": f"{user}{i}"} for user in LOCAL for i, event in enumerate(LOCAL[user])
    ]
    return cache(lambda time_zone: snapshot_of(shared, rows, time_zone=time_zone))


Local = Callable[[str], dict[str, Row]]


def test_hours_and_weekends_are_local(local: Local) -> None:
    tokyo = local("Asia/Tokyo")["friday evening"]

    assert (tokyo["evening_session_share"], tokyo["night_session_share"], tokyo["weekend_session_share"]) == (0, 1, 1)


def test_an_active_day_is_a_local_day(local: Local) -> None:
    assert local("Asia/Tokyo")["around midnight"]["active_day_count"] == 1


def test_an_active_day_ends_at_midnight_where_the_offset_is_of_seconds(local: Local) -> None:
    assert local("Africa/Monrovia")["around midnight in Monrovia"]["active_day_count"] == 2
    assert local("UTC")["around midnight in Monrovia"]["active_day_count"] == 1


def test_local_hours_follow_summer_time(local: Local) -> None:
    berlin = local("Europe/Berlin")["summer time"]

    assert (berlin["night_session_share"], berlin["morning_session_share"]) == (0.5, 0.5)


def test_the_time_zone_changes_nothing_else(local: Local) -> None:
    those = {*NEEDS_TIMES, "weekend_session_share", "active_day_count"}
    utc, samoa = (
        [{name: value for name, value in user.items() if name not in those} for user in local(time_zone).values()]
        for time_zone in ("UTC", "Pacific/Apia")
    )

    assert sorted(utc, key=itemgetter("user_id")) == sorted(samoa, key=itemgetter("user_id"))


def test_what_needs_a_time_of_day_is_null_where_the_source_has_days(shared: DuckDB) -> None:
    rows = [at("04-27T00:00"), at("04-27T00:00", "purchase"), at("04-29T00:00")]
    timed, daily = snapshot_of(shared, rows)["u"], snapshot_of(shared, rows, day_level=True)["u"]

    assert {name: daily[name] for name in timed if daily[name] != timed[name]} == dict.fromkeys(NEEDS_TIMES)


def test_the_days_of_a_day_level_source_are_local(shared: DuckDB) -> None:
    saturday_in_new_york = [at("04-27T04:00")]
    snapshot = snapshot_of(shared, saturday_in_new_york, time_zone="America/New_York", day_level=True)["u"]

    assert (snapshot["weekend_session_share"], snapshot["active_day_count"]) == (1, 1)


# --- the stage ---


def test_a_snapshot_wants_the_sessions_of_its_events(tmp_path: Path) -> None:
    config = small_shop(tmp_path / "shop")
    with load(config).open_lake() as lake:
        lake.write(EVENTS, events_of(lake.engine, [at("04-01T10:00")]))

    with pytest.raises(ConfigurationError, match="run `habitus sessions"):
        store_snapshots.fn(str(config), None, False)


# --- in words ---


def test_every_feature_has_a_title_of_its_own_fit_for_the_middle_of_a_sentence() -> None:
    titles = [title(name) for name in FEATURES]

    assert len(set(titles)) == len(FEATURES)
    assert [words for words in titles if not words[0].islower() or "_" in words or words.endswith(".")] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("session_count", "sessions"),
        ("session_count_1d", "sessions in the last day"),
        ("session_count_7d", "sessions in the last 7 days"),
        ("support_visit_count_90d", "support visits in the last 90 days"),
        ("purchase_count_365d", "purchases in the last 365 days"),
        ("session_trend_28d", "trend of sessions"),
        ("purchase_recency_days", "days since the last purchase"),
        ("device", "device"),
        ("age_band", "age band"),
        ("recency_days_7d", "recency days 7d"),
        ("session_count_x", "session count x"),
    ],
)
def test_title(name: str, words: str) -> None:
    assert title(name) == words


def test_a_value_in_words_has_the_title_before_it() -> None:
    assert in_words("session_count_7d", 3.0) == "sessions in the last 7 days: 3"


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("recency_days", float("nan"), "–"),
        ("bounce_rate", 0.0, "0 %"),
        ("bounce_rate", 0.254, "25 %"),
        ("bounce_rate", 0.004, "0.4 %"),  # some is not none
        ("bounce_rate", 0.996, "99.6 %"),  # and most is not all
        ("bounce_rate", 0.00001, "under 0.01 %"),
        ("bounce_rate", 0.99999, "over 99.99 %"),
        ("night_session_share", 1.0, "100 %"),
        ("duration_mean_s", 0.0, "0 s"),
        ("duration_mean_s", 59.4, "59 s"),
        ("duration_mean_s", 59.6, "1 min 0 s"),
        ("duration_median_s", 3_725.0, "62 min"),
        ("session_count", 3.0, "3"),
        ("session_count", 12_345.0, "12,345"),
        ("pages_per_session", 3.14159, "3.1"),
        ("pages_per_session", 31.4159, "31"),
        ("session_trend_28d", -0.5, "-0.5"),
        ("session_trend_28d", -0.04, "0.0"),
        ("revenue_total", -1234.56, "-1,235"),
    ],
)
def test_a_value_is_written_as_people_would(name: str, value: float, written: str) -> None:
    assert format_value(name, value) == written
