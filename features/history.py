"""What was known at instants: which sessions then were not those of today, for many instants at once."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.events import epoch_us
from features.sessions import SESSIONS, sessionize, us
from features.table import TIME, materialize, stack

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AsKnown(NamedTuple):
    """Hold the SESSIONS of users at instants at which they had others than today, and who and when that is.

    Of `sessions` each row has the as_of at which it was known; `touched` has a row for each user_id and as_of.
    """

    touched: ir.Table
    sessions: ir.Table


def instants_table(instants: Sequence[datetime], first: int = 0) -> ir.Table:
    """Return instants, which ascend, as a table: `as_of`, and its `number`, counted from `first`."""
    numbers = range(first, first + len(instants))
    return ibis.memtable(
        pa.table({"as_of": pa.array(instants, TIME.to_pyarrow()), "number": pa.array(numbers, pa.int32())})
    )


def count_before(time_us: ir.IntegerValue, instants: Sequence[datetime]) -> ir.IntegerValue:
    """Return how many of `instants`, which ascend, are before a time: the number of the first that is not."""

    def bisect(first: int, last: int) -> ir.IntegerValue:
        if first == last:
            return ibis.literal(first, "int32")
        middle = (first + last) // 2
        is_before = time_us > us(instants[middle] - EPOCH)
        return ibis.ifelse(is_before, bisect(middle + 1, last), bisect(first, middle))

    return bisect(0, len(instants))


def sessions_as_known(events: ir.Table, sessions: ir.Table, instants: Sequence[datetime], gap: timedelta) -> AsKnown:
    """Return, from all EVENTS and their SESSIONS, the sessions that were others at `instants`, which ascend.

    An instant cuts a session that spans it, and an event that was ingested later was not known. A user's sessions from
    the first such one on are made again of the events known then; those that began before do not depend on it. Users
    who are not touched had, at that instant, those of today's sessions that were over.
    """
    touched = materialize(_touched(events, sessions, instants))
    before = sessions.join(touched, "user_id").filter(lambda both: both.started_at < both.from_at)
    before = before.select("as_of", *SESSIONS.schema.names)
    # Files of other times need not be read.
    [span] = touched.agg(first=touched.from_at.min(), last=touched.as_of.max()).to_pyarrow().to_pylist()
    if span["first"] is None:
        return AsKnown(touched, before)
    recent = events.filter(events.occurred_at.between(span["first"], span["last"]))
    known = recent.join(touched, "user_id").filter(
        lambda both: (
            (both.occurred_at >= both.from_at) & (both.occurred_at < both.as_of) & (both.ingested_at <= both.as_of)
        )
    )
    # What a user did up to one instant is sessionized as if it were another user's than what they did up to the next.
    made = sessionize(known.mutate(user_id=known.user_then).select(*events.columns), gap)
    made = made.rename(user_then="user_id").join(touched, "user_then").select("as_of", *SESSIONS.schema.names)
    return AsKnown(touched, materialize(stack(before, made)))


def _touched(events: ir.Table, sessions: ir.Table, instants: Sequence[datetime]) -> ir.Table:
    """Return user_id and as_of where sessions were others, `from_at` of when the first of them began.

    `user_then` names the two together.
    """

    def crossing(rows: ir.Table, at: ir.TimestampValue, last_us: ir.IntegerValue) -> ir.Table:
        """Return rows with instants after `at` and up to a last microsecond, and the numbers of those."""
        numbered = rows.select(
            "user_id", at=at, first=count_before(epoch_us(at) + 1, instants), end=count_before(last_us + 1, instants)
        )
        return numbered.filter(numbered["first"] < numbered.end)

    late = crossing(events, events.occurred_at, epoch_us(events.ingested_at) - 1)
    spanning = crossing(sessions, sessions.started_at, epoch_us(sessions.ended_at))
    spans = stack(late, spanning)
    spans = spans.group_by("user_id", "first", "end").agg(at=spans["at"].min())
    moments = instants_table(instants)
    spans = spans.join(moments, [spans["first"] <= moments.number, spans.end > moments.number])
    spans = spans.group_by("user_id", "as_of").agg(at=spans["at"].min())
    bounds = sessions.select("user_id", from_at=sessions.started_at, until_at=sessions.ended_at)
    inside = spans.join(bounds, "user_id").filter(lambda both: both["at"].between(both.from_at, both.until_at))
    user_then = inside.user_id + "\x1f" + epoch_us(inside.as_of).cast("string")
    return inside.select("user_id", "as_of", "from_at", user_then=user_then)
