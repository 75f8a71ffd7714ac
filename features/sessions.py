"""SESSIONS: the events of one user with no gap longer than a limit, and no longer than a day."""

from collections.abc import Callable
from datetime import datetime, timedelta

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pandas as pd
from pydantic import Field

from features.events import (
    ADD_TO_CART,
    PAGE_VIEW,
    PURCHASE,
    REFUND,
    SEARCH,
    SUPPORT_VIEW,
    epoch_us,
)
from features.sources import Settings
from features.table import TIME, Table, materialize, stack

SESSIONS = Table(
    name="sessions",
    schema=ibis.schema(
        {
            "session_id": "!string",
            "user_id": "!string",
            "started_at": TIME.copy(nullable=False),
            "ended_at": TIME.copy(nullable=False),
            "duration_s": "!float64",
            "event_count": "!int64",
            "page_view_count": "!int64",
            "search_count": "!int64",
            "support_count": "!int64",
            "cart_add_count": "!int64",
            "purchase_count": "!int64",
            "revenue": "!float64",
            "bounced": "boolean",
            "engaged": "boolean",
            "converted": "!boolean",
            "cart_abandoned": "boolean",
            "entry_page": "string",
            "exit_page": "string",
            "source": "string",
            "campaign": "string",
            "device": "string",
            "country": "string",
        }
    ),
    key=("session_id",),
    partition="day of started_at",
    contract=2,
)

CAP = timedelta(hours=24)
ENGAGED_AFTER_S = 10
COUNTED = {
    "page_view_count": PAGE_VIEW,
    "search_count": SEARCH,
    "support_count": SUPPORT_VIEW,
    "cart_add_count": ADD_TO_CART,
    "purchase_count": PURCHASE,
}
SUMMED = {**COUNTED, "refund_count": REFUND}
"""What an interval counts: refunds are no column of SESSIONS, but tell that a session is no bounce."""
OF_FIRST_EVENT = ("event_id", "source", "campaign", "device", "country")
MICROS = dt.Decimal(38, 0)
NULLS_LAST = "ASC NULLS LAST"


@ibis.udf.scalar.builtin(name="create_sort_key", signature=((TIME, dt.string, dt.string, dt.string), dt.binary))
def sort_key(
    occurred_at: ir.TimestampValue, time_order: str, event_id: ir.StringValue, id_order: str
) -> ir.BinaryValue:
    """Return what orders events: a value that is made once for each, and is a fifth faster than a struct of both."""


class SessionSettings(Settings):
    """Say when a session ends."""

    gap_minutes: float = Field(default=30, gt=0, le=24 * 60)

    @property
    def gap(self) -> timedelta:
        """Return the longest pause within a session."""
        return max(timedelta(minutes=self.gap_minutes), timedelta(microseconds=1))


def sessionize(events: ir.Table, gap: timedelta, day_level: bool = False) -> ir.Table:
    """Group EVENTS into SESSIONS.

    A pause of exactly `gap` stays in the session, a longer one ends it, midnight does not. A session lasts at most 24
    hours from its first event; the next event begins a new one. Equal times are ordered by event_id. Source, campaign,
    device and country are those of the first event (null: it had none), entry and exit page those of the first and
    last event that have a page. A session's id derives from its user and its first event.

    `engaged` is a session that is longer than 10 s or has two page views or a purchase. Where it has no page view and
    all of it is at one instant, nothing tells of the opposite: null. `bounced` is one page view and not engaged, and no
    refund in it; null without a page view. `day_level` says that the source has days, not times, and so no lengths.
    """
    closed, _ = advance(chains_of(events, gap), events, None, None, gap)
    return leave_lengths_open(closed) if day_level else closed


def chains_of(events: ir.Table, gap: timedelta) -> ir.Table:
    """Aggregate EVENTS to chains, each without a pause longer than the gap, however long it is in all."""
    return materialize(_fuse(materialize(_slots(events, gap)), gap))


def continue_chains(opened: ir.Table, chains: ir.Table, gap: timedelta) -> ir.Table:
    """Fuse chains that may go on with those of the next chunk: return the chains of their users."""
    return materialize(_fuse(materialize(stack(opened, chains.semi_join(opened, "user_id"))), gap))


def advance(
    chains: ir.Table,
    recent: ir.Table,
    opened: ir.Table | None,
    border: datetime | None,
    gap: timedelta,
    continue_chains: Callable[[ir.Table, ir.Table, timedelta], ir.Table] = continue_chains,
) -> tuple[ir.Table, ir.Table | None]:
    """Go on through time by the chains of a chunk: return the SESSIONS that are over, and the chains that may go on.

    `opened` are those of the chunk before, all of whose events came before those of this one. The next chunk begins at
    `border`; after the last (None) all sessions are over, and no chain is returned. `recent` are the EVENTS up to the
    border from `lookback` before the chunk on. Sessions by chunks equal sessions of all at once, however time is cut.
    """
    if opened is not None:
        chains = stack(chains.anti_join(opened, "user_id"), continue_chains(opened, chains, gap))
    is_overlong = us_between(chains.started_at, chains.ended_at) > us(CAP)
    overlong = materialize(chains.filter(is_overlong))
    if overlong.count().to_pyarrow().as_py():
        cuts = ibis.memtable(_cut(recent, overlong))
        pieces = materialize(_aggregate(within(recent, cuts), ["user_id", "interval_started_at"]))
        chains = stack(chains.filter(~is_overlong), pieces)
    if border is None:
        return SESSIONS.check(_measure(chains)), None
    # Of a chain that was cut only the last piece can be so near the border.
    goes_on = us_between(chains.ended_at, ibis.literal(border, TIME)) <= us(gap)
    return SESSIONS.check(_measure(chains.filter(~goes_on))), materialize(chains.filter(goes_on))


def lookback(gap: timedelta) -> timedelta:
    """Return how long before a chunk an interval that it continues may have begun."""
    return CAP + gap


def within(events: ir.Table, intervals: ir.Table) -> ir.Table:
    """Return the EVENTS inside of their user's intervals, ends included, each with its `interval_started_at`."""
    bounds = intervals.select("user_id", interval_started_at=intervals.started_at, interval_ended_at=intervals.ended_at)
    inside = events.join(
        bounds,
        [
            events.user_id == bounds.user_id,
            events.occurred_at >= bounds.interval_started_at,
            events.occurred_at <= bounds.interval_ended_at,
        ],
    )
    return inside.select(*events.columns, "interval_started_at")


def sessions_at(
    events: ir.Table, sessions: ir.Table, as_of: datetime, gap: timedelta, day_level: bool = False
) -> ir.Table:
    """Return SESSIONS as they were known at an instant, from all EVENTS and their SESSIONS.

    An instant cuts a session that spans it, and an event that was ingested later was not known: the sessions of users
    with either are made again from the events known then. What results equals sessionizing a truncated history.
    """
    instant = ibis.literal(as_of, TIME)
    known = events.filter(events.occurred_at < instant, events.ingested_at <= instant)
    late = events.filter(events.occurred_at < instant, events.ingested_at > instant).select("user_id")
    spanning = sessions.filter(sessions.started_at < instant, sessions.ended_at >= instant).select("user_id")
    touched = stack(late, spanning).distinct()
    untouched = sessions.filter(sessions.ended_at < instant).anti_join(touched, "user_id")
    return stack(SESSIONS.check(untouched), sessionize(known.semi_join(touched, "user_id"), gap, day_level))


def leave_lengths_open(sessions: ir.Table) -> ir.Table:
    """Return SESSIONS of a source that has days, not times: they have no length that would tell what they were not.

    `engaged` is true by pages or a purchase, or null, and `bounced` false or null.
    """
    return sessions.mutate(bounced=sessions.bounced.nullif(True), engaged=sessions.engaged.nullif(False))


def micros(amount: ir.FloatingValue) -> ir.DecimalValue:
    """Return whole millionths, since a sum of floats depends on the order of its rows in the last bits.

    They have 38 digits, so that no sum of amounts overflows. A half is rounded away from 0.
    """
    return (amount * 1_000_000).cast(MICROS)


def earned(events: ir.Table) -> ir.FloatingValue:
    """Return what an event adds to revenue: sources write refunds with either sign, and all count against it."""
    return ibis.cases(
        (events.event_name == PURCHASE, events.revenue), (events.event_name == REFUND, -events.revenue.abs())
    )


def _slots(events: ir.Table, gap: timedelta) -> ir.Table:
    """Aggregate events by user and slot of time as long as the gap: these are in one session by definition.

    That takes a hash aggregation where sorting all events would be needed, and leaves few rows for the window.
    """
    return _aggregate(events.mutate(slot=epoch_us(events.occurred_at) // us(gap)), ["user_id", "slot"]).drop("slot")


def _aggregate(events: ir.Table, keys: list[str]) -> ir.Table:
    order = sort_key(events.occurred_at, NULLS_LAST, events.event_id, NULLS_LAST)
    counts = {name: (events.event_name == event_name).sum() for name, event_name in SUMMED.items()}
    return events.group_by(keys).agg(
        started_at=events.occurred_at.min(),
        ended_at=events.occurred_at.max(),
        event_count=events.count(),
        **counts,
        revenue_micros=micros(earned(events)).sum().cast(MICROS).fill_null(0),
        # Where argmin skips nulls, the source of a direct session would be a later event's: hence the struct.
        first=ibis.struct({name: events[name] for name in OF_FIRST_EVENT}).argmin(order),
        entry_page=events.page.argmin(order, where=events.page.notnull()),
        exit_page=events.page.argmax(order, where=events.page.notnull()),
    )


def _fuse(intervals: ir.Table, gap: timedelta) -> ir.Table:
    """Fuse the intervals of a user that are no further apart than the gap; the given ones do not overlap.

    Most stand alone and pass as they are: only their bounds are sorted, and only those with a neighbour aggregated.
    """
    in_order = ibis.window(group_by="user_id", order_by="started_at")
    bounds = intervals.select("user_id", "started_at", "ended_at")
    pauses_us = bounds.mutate(
        before_us=us_between(bounds.ended_at.lag().over(in_order), bounds.started_at),
        after_us=us_between(bounds.ended_at, bounds.started_at.lead().over(in_order)),
    )
    flagged = pauses_us.select(
        "user_id",
        "started_at",
        follows=(pauses_us.before_us <= us(gap)).fill_null(False),
        leads=(pauses_us.after_us <= us(gap)).fill_null(False),
    )
    members = flagged.filter(flagged.follows | flagged.leads)
    chain = (~members.follows).cast("int64").cumsum().over(in_order)
    members = materialize(members.select("user_id", "started_at", chain=chain))
    alone = intervals.anti_join(members, ["user_id", "started_at"])
    chained = intervals.inner_join(members, ["user_id", "started_at"])
    sums = {name: chained[name].sum().cast("int64") for name in ("event_count", *SUMMED)}
    fused = chained.group_by(["user_id", "chain"]).agg(
        started_at=chained.started_at.min(),
        ended_at=chained.ended_at.max(),
        **sums,
        revenue_micros=chained.revenue_micros.sum().cast(MICROS),
        first=chained["first"].argmin(chained.started_at),
        entry_page=chained.entry_page.argmin(chained.started_at, where=chained.entry_page.notnull()),
        exit_page=chained.exit_page.argmax(chained.started_at, where=chained.exit_page.notnull()),
    )
    return stack(alone, fused.drop("chain"))


def _cut(events: ir.Table, overlong: ir.Table) -> pd.DataFrame:
    """Cut chains longer than the cap: a row for each piece with its user, start and end.

    Each piece begins at the first event after the one before is over, so there is no telling it without walking along
    the chain. Such chains are rare (robots, shared accounts), so their times are walked here.
    """
    inside = within(events, overlong).select("user_id", "interval_started_at", "occurred_at")
    times = inside.distinct().order_by("user_id", "interval_started_at", "occurred_at").to_pandas()
    pieces = []
    for (user_id, _), chain in times.groupby(["user_id", "interval_started_at"]):
        at = chain.occurred_at.reset_index(drop=True)
        begin = 0
        while begin < len(at):
            end = int(at.searchsorted(at[begin] + CAP, side="right"))
            pieces.append((user_id, at[begin], at[end - 1]))
            begin = end
    return pd.DataFrame(pieces, columns=["user_id", "started_at", "ended_at"])


def _measure(intervals: ir.Table) -> ir.Table:
    """Derive what a session says from what its events add up to."""
    first = intervals["first"]
    duration_s = us_between(intervals.started_at, intervals.ended_at) / 1_000_000
    converted = intervals.purchase_count > 0
    engaged = (duration_s > ENGAGED_AFTER_S) | (intervals.page_view_count >= 2) | converted
    with_page = intervals.page_view_count > 0
    bounced = (intervals.page_view_count == 1) & ~engaged & (intervals.refund_count == 0)
    with_cart = intervals.cart_add_count > 0
    return intervals.mutate(
        session_id=(intervals.user_id + "\x1f" + first.event_id).hexdigest("md5"),
        duration_s=duration_s,
        revenue=intervals.revenue_micros.cast("float64") / 1_000_000,
        converted=converted,
        engaged=ibis.ifelse(engaged | with_page | (duration_s > 0), engaged, ibis.null("boolean")),
        bounced=ibis.ifelse(with_page, bounced, ibis.null("boolean")),
        cart_abandoned=ibis.ifelse(with_cart, ~converted, ibis.null("boolean")),
        source=first.source,
        campaign=first.campaign,
        device=first.device,
        country=first.country,
    )


def us(duration: timedelta) -> int:
    """Return a duration in whole microseconds."""
    return duration // timedelta(microseconds=1)


def us_between(earlier: ir.TimestampValue, later: ir.TimestampValue) -> ir.IntegerValue:
    """Return the microseconds from one instant to another."""
    return epoch_us(later) - epoch_us(earlier)
